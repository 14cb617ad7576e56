"""Result files, and how good they are."""

from .results import check_results, read_results, to_results, write_results, write_zip
from .video_coco_eval import VideoCOCOeval
from .vis_evaluator import VISEvaluator

__all__ = [
    "VISEvaluator",
    "VideoCOCOeval",
    "check_results",
    "read_results",
    "to_results",
    "write_results",
    "write_zip",
]
