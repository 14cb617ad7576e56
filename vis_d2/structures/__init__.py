"""What flows between the parts.

Letters used in every shape of the package: B clips in a batch, T frames in a clip, N objects or
tracklets, Q queries or slots, K classes, C channels, H and W padded input size, h and w feature
size. Batched frames are clip-major: index ``b * T + t``. Boxes are XYXY_ABS unless a name ends in
``_cxcywh``; masks are logits until a name says ``prob`` or a dtype says bool.
"""

import importlib
from typing import Any

# Imported on use: run lengths in files need no torch.
_HOMES = {
    "RLE": ".rle",
    "TrackletTargets": ".tracklet_targets",
    "VideoInstances": ".video_instances",
    "finish_masks": ".masks",
    "finish_rois": ".masks",
    "frame_sizes": ".padding",
    "paste_rois": ".masks",
    "valid_cells": ".padding",
}
__all__ = [
    "RLE",
    "TrackletTargets",
    "VideoInstances",
    "finish_masks",
    "finish_rois",
    "frame_sizes",
    "paste_rois",
    "valid_cells",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
