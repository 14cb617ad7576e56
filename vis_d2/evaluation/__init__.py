"""Result files, and how good they are."""

import importlib
from typing import Any

# Imported on use: scoring files needs neither torch nor detectron2.
_HOMES = {
    "VISEvaluator": ".vis_evaluator",
    "VideoCOCOeval": ".video_coco_eval",
    "check_results": ".results",
    "read_results": ".results",
    "to_results": ".results",
    "write_results": ".results",
    "write_zip": ".results",
}
__all__ = [
    "VISEvaluator",
    "VideoCOCOeval",
    "check_results",
    "read_results",
    "to_results",
    "write_results",
    "write_zip",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
