"""Truths and results of each video side by side, compared frame by frame."""

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np
from pycocotools import mask as coco_mask

from vis_d2.structures.tube_iou import Tube

from .video_coco_eval import VideoCOCOeval


@dataclass
class Side:
    """N tracks of a video, in the order of the file.

    Attributes:
        index: (N,) place of the track in the file, from 0.
        category: (N,) category ids.
        score: (N,) float64; 0 for truths.
        crowd: (N,) bool; False for results.
        size: (N,) mean area over the visible frames, pixels, by which AP tells sizes apart.
        tubes: N lists of T masks, None where absent.
        area: (N, T) int64 pixels of each mask.
    """

    index: np.ndarray
    category: np.ndarray
    score: np.ndarray
    crowd: np.ndarray
    size: np.ndarray
    tubes: List[Tube]
    area: np.ndarray

    def __len__(self) -> int:
        return len(self.tubes)


@dataclass
class VideoPair:
    """The truths and the results of one video; T is the length of its longest track."""

    video_id: int
    gt: Side
    dt: Side

    def common(self) -> np.ndarray:
        """(D, G, T) int64 pixels that a result and a truth have in common in each frame."""
        common = np.zeros((len(self.dt), len(self.gt), self.dt.area.shape[1]), np.int64)
        for t in range(common.shape[2]):
            d, g = np.flatnonzero(self.dt.area[:, t]), np.flatnonzero(self.gt.area[:, t])
            if not len(d) or not len(g):
                continue
            found, true = ([s.tubes[i][t] for i in n] for s, n in ((self.dt, d), (self.gt, g)))
            iou = np.maximum(coco_mask.iou(found, true, [0] * len(g)), 0)  # -1: sizes differ
            both = self.dt.area[d, t][:, None] + self.gt.area[g, t]
            # iou is the quotient of two integers, pixels / (both - pixels).
            common[np.ix_(d, g, [t])] = np.rint(iou * both / (1 + iou))[..., None]
        return common


def frame_iou(pair: VideoPair, common: np.ndarray) -> np.ndarray:
    """(D, G, T) IoU in each frame from the pixels in common; 0 where one of them is absent."""
    union = pair.dt.area[:, None] + pair.gt.area[None] - common
    return common / np.maximum(union, 1)


def tube_iou(pair: VideoPair, common: np.ndarray) -> np.ndarray:
    """(D, G) space-time IoU from the pixels in common."""
    total = common.sum(axis=2)
    union = pair.dt.area.sum(axis=1)[:, None] + pair.gt.area.sum(axis=1) - total
    return total / np.maximum(union, 1)


def read_pairs(
    gt: Mapping[str, Any], results: Sequence[Mapping[str, Any]], *, mode: str = "strict"
) -> Tuple[Dict[int, str], List[VideoPair]]:
    """Read both sides.

    Args:
        gt: content of a YouTube-VIS JSON file.
        results: entries of a result file.
        mode: of :class:`VideoCOCOeval`, which says what is accepted.

    Returns:
        categories: names by category id.
        pairs: the videos that have tracks, by id.

    Raises:
        ValueError: an entry that ``mode`` does not accept; names video, track, frame and fault.
    """
    evaluation = VideoCOCOeval(gt, results, mode=mode)
    by_video: Dict[int, Tuple[List, List]] = {}
    for side, rows in enumerate((evaluation.truths, evaluation.found)):
        for index, row in enumerate(rows):
            by_video.setdefault(row["image_id"], ([], []))[side].append((index, row))
    pairs = []
    for video_id, (truths, found) in sorted(by_video.items()):
        length = max(len(row["masks"]) for _, row in truths + found)
        pairs.append(VideoPair(video_id, _side(truths, length), _side(found, length)))
    return evaluation.categories, pairs


def _side(rows: List[Tuple[int, Dict[str, Any]]], length: int) -> Side:
    # Of equal length, which they are not in a malformed file.
    tubes = [list(row["masks"]) + [None] * (length - len(row["masks"])) for _, row in rows]
    area = np.zeros((len(rows), length), np.int64)
    for tube, areas in zip(tubes, area):
        present = [t for t, mask in enumerate(tube) if mask is not None]
        for t in present:
            areas[t] = coco_mask.area(tube[t])
    return Side(
        index=np.array([index for index, _ in rows], np.int64),
        category=np.array([row["category_id"] for _, row in rows], np.int64),
        score=np.array([row.get("score", 0.0) for _, row in rows], np.float64),
        crowd=np.array([bool(row.get("iscrowd")) for _, row in rows], bool),
        size=np.array([row["area"] for _, row in rows], np.float64),
        tubes=tubes,
        area=area,
    )
