"""AP against properties of the objects: how long, how large and how fast they are."""

from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np
from pycocotools import mask as coco_mask

from .error_matching import average_precision, falling, match
from .track_pairs import Side, VideoPair

_MOST_GROUPS = 4


class Group(NamedTuple):
    """The objects of which a property lies between ``low`` and ``high``, both being among them.

    ``ap`` is AP as ``VideoCOCOeval`` has it for sizes: objects outside do not count, nor do results
    outside that match nothing. ``recall50`` is the share of the objects that are found at a
    space-time IoU of 0.5, ``objects`` their number.
    """

    low: float
    high: float
    objects: int
    ap: float
    recall50: float


def length(side: Side) -> np.ndarray:
    """(N,) frames in which a track is visible."""
    return (side.area > 0).sum(axis=1).astype(np.float64)


def size(side: Side) -> np.ndarray:
    """(N,) side of the square of a track's mean visible area, pixels."""
    visible = np.maximum((side.area > 0).sum(axis=1), 1)
    return np.sqrt(side.area.sum(axis=1) / visible)


def motion(side: Side) -> np.ndarray:
    """(N,) how far the middle of a track's box moves per frame, in percent of its ``size``.

    The mean over the visible frames; 0 for a track that is visible once.
    """
    speeds = np.zeros(len(side))
    for i, tube in enumerate(side.tubes):
        frames = np.flatnonzero(side.area[i])
        if len(frames) > 1:
            xywh = np.concatenate([coco_mask.toBbox([tube[t]]) for t in frames])
            centres = xywh[:, :2] + xywh[:, 2:] / 2
            steps = np.linalg.norm(np.diff(centres, axis=0), axis=1) / np.diff(frames)
            speeds[i] = steps.mean()
    return 100 * speeds / np.maximum(size(side), 1.0)


PROPERTIES: Dict[str, Callable[[Side], np.ndarray]] = {
    "length": length,
    "size": size,
    "motion": motion,
}


def evaluate_groups(
    pairs: Sequence[VideoPair], ious: Sequence[np.ndarray]
) -> Dict[str, List[Group]]:
    """AP of up to four groups of about equally many objects, for each of ``PROPERTIES``.

    Args:
        ious: (D, G) space-time IoU of each video.
    """
    groups: Dict[str, List[Group]] = {}
    for name, measure in PROPERTIES.items():
        truths = [measure(pair.gt) for pair in pairs]
        found = [measure(pair.dt) for pair in pairs]
        values = np.concatenate([v[~pair.gt.crowd] for v, pair in zip(truths, pairs)])
        highs = _highs(values)
        # Results may lie outside of what the objects span.
        limits = [-np.inf, *highs[:-1], np.inf]
        groups[name] = []
        for below, above in zip(limits[:-1], limits[1:]):
            parts = [
                ((below < t) & (t <= above), (below < f) & (f <= above))
                for t, f in zip(truths, found)
            ]
            inside = values[(below < values) & (values <= above)]
            span = float(inside.min()), float(inside.max())
            groups[name].append(Group(*span, *_evaluate(pairs, ious, parts)))
    return groups


def _highs(values: np.ndarray) -> List[float]:
    """Upper ends of the groups: quantiles, so that no group is empty."""
    steps = np.linspace(0, 1, _MOST_GROUPS + 1)[1:]
    return np.unique(np.quantile(values, steps, method="inverted_cdf")).tolist()


def _evaluate(
    pairs: Sequence[VideoPair],
    ious: Sequence[np.ndarray],
    parts: Sequence[Tuple[np.ndarray, np.ndarray]],
) -> Tuple[int, float, float]:
    """Number of objects, AP and recall at IoU 0.5 of one group."""
    columns: List[Tuple[np.ndarray, ...]] = []
    truth_category = []
    for pair, iou, part in zip(pairs, ious, parts):
        matches = match(pair, iou, counted=part)
        order = falling(pair.dt.score)
        columns.append(
            (
                pair.dt.score[order],
                pair.dt.category[order],
                (matches.truth >= 0).T[order],  # (H, D) -> (D, H)
                matches.ignored.T[order],
            )
        )
        truth_category.append(pair.gt.category[part[0] & ~pair.gt.crowd])
    score, category, hit, ignored = (np.concatenate(column) for column in zip(*columns))
    order = falling(score)
    category, hit, ignored = category[order], hit[order], ignored[order]
    aps, found = [], 0
    present, numbers = np.unique(np.concatenate(truth_category), return_counts=True)
    for c, number in zip(present, numbers):
        for row in range(hit.shape[1]):
            keep = (category == c) & ~ignored[:, row]
            aps.append(average_precision(hit[keep, row], int(number)))
        found += int((hit[:, 0] & ~ignored[:, 0] & (category == c)).sum())
    total = int(numbers.sum())
    return total, float(np.mean(aps)) if aps else -1.0, found / max(1, total)
