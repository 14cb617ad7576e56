"""Made-up ground truth and results, as large as real ones, for measurements."""

from typing import Any, Dict, List, Tuple

import numpy as np
from pycocotools import mask as coco_mask

Row = Dict[str, Any]
_SHAPES = 64


class Outlines:
    """Blobs with smooth outlines, now and then concave, drawn once and pasted anywhere.

    Args:
        radius: mean radius in pixels.
        size: (H, W) of the frames.
    """

    def __init__(self, rng: np.random.Generator, radius: float, size: Tuple[int, int]) -> None:
        self._height, self._width = size
        side = min(2 * int(1.6 * radius) + 1, *size)
        y, x = np.mgrid[:side, :side] - side // 2
        angle, distance = np.arctan2(y, x), np.hypot(y, x)
        self._side = side
        self._stops = []
        for _ in range(_SHAPES):
            limit = np.full(angle.shape, radius * rng.uniform(0.7, 1.1))
            for k in range(2, 6):
                limit *= 1 + rng.normal(0, 0.1) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
            column = np.zeros((side, self._height), bool)
            column[:, :side] = (distance < limit).T
            self._stops.append(np.flatnonzero(np.diff(column.ravel(), prepend=False, append=False)))

    def paste(self, shape: int, x: float, y: float) -> Row:
        """The RLE of an outline whose box has its corner near x, y."""
        height, width = self._height, self._width
        column = int(np.clip(x, 0, width - self._side))
        row = int(np.clip(y, 0, height - self._side))
        stops = self._stops[shape % _SHAPES] + (column * height + row)
        runs = np.diff(stops, prepend=0, append=height * width).tolist()
        rle = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
        return {"size": [height, width], "counts": rle["counts"].decode()}


def make_files(
    videos: int, frames: int, size: Tuple[int, int], truths: int, results: int, categories: int
) -> Tuple[Dict[str, Any], List[Row]]:
    """A data set and results for it.

    Each truth has its share of the results: they are of its category, most of them near it, the
    last ones elsewhere in the frame.

    Args:
        videos, frames: how many, and frames in each video.
        size: (H, W).
        truths, results: tracks per video.
        categories: how many there are; with one, all tracks of a video compete.

    Returns:
        Content of a YouTube-VIS JSON file, and entries of a result file.
    """
    rng = np.random.default_rng(0)
    shapes = [Outlines(rng, min(size) * share, size) for share in (0.08, 0.14, 0.22)]
    rows, found = [], []
    for video in range(1, videos + 1):
        chosen = rng.permutation(categories)[:truths] if categories >= truths else [0] * truths
        for n in range(truths):
            category, outlines = int(chosen[n]) + 1, shapes[rng.integers(3)]
            track = _Track(rng, size, frames)
            base = {"video_id": video, "category_id": category}
            masks = track.masks(outlines, rng, 0.0)
            rows.append({**base, "id": len(rows) + 1, "iscrowd": 0, "segmentations": masks})
            for k in range(n, results, truths):
                far = k >= 0.6 * results
                other = _Track(rng, size, frames) if far else track
                entry = {**base, "score": round(float(rng.random()), 6)}
                found.append({**entry, "segmentations": other.masks(outlines, rng, 4.0)})
    sized = {"height": size[0], "width": size[1], "length": frames}
    gt = {
        "videos": [{"id": v, **sized} for v in range(1, videos + 1)],
        "categories": [{"id": k + 1, "name": f"class {k + 1}"} for k in range(categories)],
        "annotations": rows,
    }
    return gt, found


class _Track:
    """An object that drifts and changes its outline every few frames."""

    def __init__(self, rng: np.random.Generator, size: Tuple[int, int], frames: int) -> None:
        self._start = rng.uniform(0, 0.8, 2) * size
        self._speed = rng.normal(0, 0.004, 2) * size
        self._shapes = rng.integers(_SHAPES, size=frames // 4 + 1)
        self._frames = frames

    def masks(self, outlines: Outlines, rng: np.random.Generator, noise: float) -> List[Row]:
        offset = rng.normal(0, noise, 2)
        places = self._start + self._speed * np.arange(self._frames)[:, None] + offset
        return [outlines.paste(self._shapes[t // 4], x, y) for t, (y, x) in enumerate(places)]
