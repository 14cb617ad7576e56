"""Training and prediction."""

from .checkpointer import VISCheckpointer, build_checkpointer
from .curves import plot_metrics
from .distributed import launch_job
from .predictor import VideoPredictor
from .setup import merge_config, prepare_config, resolve_num_classes, setup_job
from .trainer import VISTrainer

__all__ = [
    "VISCheckpointer",
    "VISTrainer",
    "VideoPredictor",
    "build_checkpointer",
    "launch_job",
    "merge_config",
    "plot_metrics",
    "prepare_config",
    "resolve_num_classes",
    "setup_job",
]
