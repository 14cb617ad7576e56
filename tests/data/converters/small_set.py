"""A small YouTube-VIS file with everything that a format may lose."""

from typing import Any, Dict, List, Optional

import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 24, 40


def dense(*boxes: Any) -> np.ndarray:
    """A mask (H, W) bool of rectangles (x, y, w, h)."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = True
    return mask


def rle(mask: np.ndarray) -> Dict[str, Any]:
    """By pycocotools, not by the code under test."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def decoded(segmentations: List[Optional[Dict[str, Any]]]) -> List[Optional[np.ndarray]]:
    return [s and coco_mask.decode(s).astype(bool) for s in segmentations]


def _track(id_: int, video: Dict[str, Any], category: int, masks: List[Any]) -> Dict[str, Any]:
    segmentations = [None if mask is None else rle(mask) for mask in masks]
    size = {key: video[key] for key in ("height", "width", "length")}
    return {
        "id": id_,
        "video_id": video["id"],
        "category_id": category,
        "iscrowd": 0,
        **size,
        "bboxes": [s and coco_mask.toBbox(s).tolist() for s in segmentations],
        "areas": [s and int(coco_mask.area(s)) for s in segmentations],
        "segmentations": segmentations,
    }


def make_set() -> Dict[str, Any]:
    """Two videos; objects in two parts, absent, of one class; none overlap."""
    size = {"height": HEIGHT, "width": WIDTH}
    first = {"id": 3, **size, "length": 3}
    first["file_names"] = [f"first/{t:05d}.jpg" for t in (0, 5, 10)]
    second = {"id": 7, **size, "length": 2}
    second["file_names"] = [f"second/{t:05d}.jpg" for t in (0, 5)]
    moving = [dense((2 + 3 * t, 3, 6, 5)) for t in range(3)]
    parts = [dense((20, 12, 4, 4), (30, 12, 3, 7)), None, dense((21, 12, 4, 4))]
    lower = [None, dense((2, 18, 5, 4)), dense((3, 18, 5, 4))]
    tracks = [
        _track(11, first, 1, moving),
        _track(12, first, 2, parts),
        _track(13, first, 1, lower),
        _track(20, second, 2, [dense((0, 0, WIDTH, 2)), dense((0, 1, WIDTH, 3))]),
    ]
    return {
        "annotations": tracks,
        "videos": [first, second],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "pedestrian"}],
    }


def same_tracks(found: Dict[str, Any], expected: Dict[str, Any]) -> None:
    """Videos, classes by name and masks are equal; ids may differ."""

    def rows(content: Dict[str, Any]) -> List[Any]:
        names = {row["id"]: row["name"] for row in content["categories"]}
        files = {video["id"]: tuple(video["file_names"]) for video in content["videos"]}
        return [
            (files[row["video_id"]], names[row["category_id"]], row["bboxes"], row["areas"],
             row["segmentations"])
            for row in content["annotations"]
        ]  # fmt: skip

    assert sorted(rows(found), key=repr) == sorted(rows(expected), key=repr)
    assert len(found["videos"]) == len(expected["videos"])
