"""vis_d2: video instance segmentation for detectron2.

Importing the package registers the data sets and the meta-architectures with detectron2.
"""

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "TrackVisualizer": "vis_d2.visualization",
    "VISEvaluator": "vis_d2.evaluation",
    "VISTrainer": "vis_d2.engine",
    "VideoInstances": "vis_d2.structures",
    "VideoPredictor": "vis_d2.engine",
    "add_vis_config": "vis_d2.meta_arch",
    "register_ytvis_instances": "vis_d2.data",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


# The command line must answer --help at once, and its tools import what they need; everybody else
# gets data sets and models registered by the import, which takes torch's few seconds.
if os.path.basename(sys.argv[0] if sys.argv else "") not in ("vis-d2", "-m", "cli.py"):
    importlib.import_module("vis_d2.data.datasets.builtin").register_builtin()
    importlib.import_module("vis_d2.meta_arch")
