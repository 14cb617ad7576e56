"""What people draw with the mouse, as masks."""

import math
from typing import List, Sequence, Tuple

import numpy as np
from pycocotools import mask as coco_mask

from vis_d2.structures import rle as rle_ops
from vis_d2.structures.rle import RLE

__all__ = [
    "MOST_PIXELS",
    "box_polygon",
    "ellipse_polygon",
    "pasted_mask",
    "polygon_mask",
    "union",
]

MOST_PIXELS = 2**27  # of an image that has to be drawn
_ELLIPSE_POINTS = 72
Size = Tuple[int, int]


def polygon_mask(points: Sequence[float], size: Size) -> RLE:
    """The mask of one polygon.

    Args:
        points: x0, y0, x1, y1, ... in pixels, at least three pairs.
        size: (H, W).

    Raises:
        ValueError: too few points, not finite, or far outside the image.
    """
    return rle_ops.from_segmentation([list(points)], size)


def union(masks: Sequence[RLE]) -> RLE:
    """One mask of several, all of one size."""
    if len(masks) == 1:
        return masks[0]
    merged = coco_mask.merge(list(masks))
    return {"size": list(map(int, merged["size"])), "counts": merged["counts"].decode("ascii")}


def box_polygon(x0: float, y0: float, x1: float, y1: float, degrees: float = 0.0) -> List[float]:
    """The corners of a box, turned clockwise about its centre."""
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    return _turned(corners, corners.mean(0), degrees)


def ellipse_polygon(
    cx: float, cy: float, rx: float, ry: float, degrees: float = 0.0
) -> List[float]:
    """Points on an ellipse, turned clockwise about its centre."""
    angles = np.arange(_ELLIPSE_POINTS) * (2 * math.pi / _ELLIPSE_POINTS)
    center = np.array([cx, cy], np.float64)
    points = center + np.stack([rx * np.cos(angles), ry * np.sin(angles)], axis=1)
    return _turned(points, center, degrees)


def pasted_mask(patch: np.ndarray, left: int, top: int, size: Size) -> RLE:
    """A mask from a small picture of it.

    Args:
        patch: (h, w) bool.
        left, top: where its first pixel lies in the image.
        size: (H, W) of the image; what lies outside is cut off.

    Raises:
        ValueError: the image is too large.
    """
    height, width = size
    if height * width > MOST_PIXELS:
        raise ValueError(f"an image of {height}x{width} is too large")
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + patch.shape[1], width), min(top + patch.shape[0], height)
    full = np.zeros((1, height, width), bool)
    if x1 > x0 and y1 > y0:
        full[0, y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    (mask,) = rle_ops.encode_array(full)
    return mask or rle_ops.from_segmentation({"size": [height, width], "counts": [full.size]}, size)


def _turned(points: np.ndarray, center: np.ndarray, degrees: float) -> List[float]:
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    x, y = (points - center).T
    return (center + np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)).ravel().tolist()
