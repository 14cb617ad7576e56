"""Files to tensors: data sets, which frames, which pixels, how a clip is packed."""

from .build import build_vis_test_loader, build_vis_train_loader, get_video_dicts
from .clip_mapper import ClipMapper
from .datasets import load_ytvis_json, register_ytvis_instances

__all__ = [
    "ClipMapper",
    "build_vis_test_loader",
    "build_vis_train_loader",
    "get_video_dicts",
    "load_ytvis_json",
    "register_ytvis_instances",
]
