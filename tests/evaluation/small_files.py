"""Ground truth and results of a few pixels, written out by hand."""

from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from pycocotools import mask as coco_mask

SIZE = (10, 10)


def compress(mask: np.ndarray) -> Dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def box(x0: int, y0: int, x1: int, y1: int, size: Sequence[int] = SIZE) -> Dict[str, Any]:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return compress(mask)


LEFT, RIGHT = box(0, 0, 4, 10), box(6, 0, 10, 10)


def ground_truth(
    annotations: Optional[List[Dict[str, Any]]], length: int = 1, size: Sequence[int] = SIZE
) -> Dict[str, Any]:
    """Two videos, 1 and 2; three categories, 1 to 3."""
    names = [f"{t:05d}.jpg" for t in range(length)]
    video = {"height": size[0], "width": size[1], "length": length, "file_names": names}
    return {
        "videos": [{"id": 2, **video}, {"id": 1, **video}],
        "categories": [
            {"id": 1, "name": "cat"},
            {"id": 2, "name": "dog"},
            {"id": 3, "name": "owl"},
        ],
        "annotations": annotations,
    }


def annotation(masks: List[Any], id: int = 1, video: int = 1, category: int = 1, **more: Any):
    row = {"id": id, "video_id": video, "category_id": category, "segmentations": masks}
    return {**row, "iscrowd": 0, **more}


def result(masks: List[Any], score: float = 0.9, video: int = 1, category: int = 1):
    row = {"video_id": video, "score": score, "category_id": category}
    return {**row, "segmentations": masks}
