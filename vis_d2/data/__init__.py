"""Files to tensors: data sets, which frames, which pixels, how a clip is packed."""

import importlib
from typing import Any

# Imported on use: checking and converting files needs neither torch nor detectron2.
_HOMES = {
    "ClipMapper": ".clip_mapper",
    "build_vis_test_loader": ".build",
    "build_vis_train_loader": ".build",
    "get_video_dicts": ".build",
    "load_ytvis_json": ".datasets.ytvis",
    "register_coco_images": ".datasets.coco_images",
    "register_ytvis_instances": ".datasets.ytvis",
}
__all__ = [
    "ClipMapper",
    "build_vis_test_loader",
    "build_vis_train_loader",
    "get_video_dicts",
    "load_ytvis_json",
    "register_coco_images",
    "register_ytvis_instances",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
