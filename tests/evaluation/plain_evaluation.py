"""YouTube-VIS average precision the slow way: dense masks, one pair and one threshold at a time.

Written from the definition (see the tests that use it), sharing nothing with the package.
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

IOU_THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]
Masks = List[Optional[np.ndarray]]


@dataclass
class PlainTrack:
    video: int
    category: int
    masks: Masks
    area: float
    score: float = 0.0
    crowd: bool = False


def tube_iou(a: Masks, b: Masks) -> float:
    common = union = 0
    for x, y in zip(a, b):
        if x is None or y is None:
            union += sum(int(mask.sum()) for mask in (x, y) if mask is not None)
        else:
            common += int((x & y).sum())
            union += int((x | y).sum())
    return common / union if union else 0.0


def mean_area(masks: Masks) -> float:
    areas = [int(mask.sum()) for mask in masks if mask is not None and mask.any()]
    return sum(areas) / len(areas) if areas else 0.0


def match(
    found: List[PlainTrack],
    truths: List[PlainTrack],
    ious: Dict[Tuple[int, int], float],
    threshold: float,
    area: Tuple[float, float],
) -> Tuple[List[Optional[bool]], int]:
    """For each result True (hit), False (false alarm) or None (does not count); number of truths.

    The best free truth that counts is taken; only if there is none, the best that does not count.
    Crowds do not count and can be taken by many. Among equals the later one is taken.
    """
    counts = [not g.crowd and area[0] <= g.area <= area[1] for g in truths]
    taken = [False] * len(truths)
    outcomes: List[Optional[bool]] = []
    for d in found:
        hit = None
        for wanted in (True, False):
            best = threshold
            for j, g in enumerate(truths):
                free = not taken[j] or g.crowd
                iou = ious[id(d), id(g)]
                if counts[j] == wanted and free and iou >= best:
                    best, hit = iou, j
            if hit is not None:
                break
        if hit is None:
            outcomes.append(False if area[0] <= d.area <= area[1] else None)
        else:
            taken[hit] = True
            outcomes.append(True if counts[hit] else None)
    return outcomes, sum(counts)


def precision_and_recall(pooled: List[Tuple[float, bool]], number: int) -> Tuple[float, float]:
    """Mean over 101 recalls of the best precision at that recall or beyond; the final recall."""
    ranked = sorted(pooled, key=lambda pair: -pair[0])  # stable
    points, hits = [], 0
    for rank, (_, hit) in enumerate(ranked, start=1):
        hits += hit
        points.append((hits / number, hits / rank))
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        total += max((p for r, p in points if r >= recall), default=0.0)
    return total / 101, hits / number


def evaluate(
    videos: Sequence[int],
    categories: Sequence[int],
    truths: List[PlainTrack],
    found: List[PlainTrack],
    areas: Dict[str, Tuple[float, float]],
) -> Dict[str, float]:
    """The twelve numbers, -1 where undefined, and "AP@<category>"."""
    ious = {
        (id(d), id(g)): tube_iou(d.masks, g.masks)
        for d in found
        for g in truths
        if (d.video, d.category) == (g.video, g.category)
    }
    cells: Dict[Tuple, Tuple[float, float]] = {}
    for category in categories:
        for area_name, area in areas.items():
            for max_results in (1, 10, 100):
                for threshold in IOU_THRESHOLDS:
                    pooled, number = [], 0
                    for video in sorted(videos):
                        here = (video, category)
                        gts = [g for g in truths if (g.video, g.category) == here]
                        dts = [d for d in found if (d.video, d.category) == here]
                        dts = sorted(dts, key=lambda d: -d.score)[:max_results]
                        outcomes, count = match(dts, gts, ious, threshold, area)
                        number += count
                        for d, outcome in zip(dts, outcomes):
                            if outcome is not None:
                                pooled.append((d.score, outcome))
                    if number:
                        cell = precision_and_recall(pooled, number)
                        cells[category, area_name, max_results, threshold] = cell
    return summarise(cells, categories)


def summarise(cells: Dict, categories: Sequence[int]) -> Dict[str, float]:
    def mean(which: int, area: str, n: int, category=None, threshold=None) -> float:
        values = [
            cell[which]
            for (c, a, m, t), cell in cells.items()
            if (a, m) == (area, n) and category in (None, c) and threshold in (None, t)
        ]
        return sum(values) / len(values) if values else -1.0

    numbers = {
        "AP": mean(0, "all", 100),
        "AP50": mean(0, "all", 100, threshold=IOU_THRESHOLDS[0]),
        "AP75": mean(0, "all", 100, threshold=IOU_THRESHOLDS[5]),
        **{f"AP{a[0]}": mean(0, a, 100) for a in ("small", "medium", "large")},
        **{f"AR{n}": mean(1, "all", n) for n in (1, 10, 100)},
        **{f"AR{a[0]}": mean(1, a, 100) for a in ("small", "medium", "large")},
    }
    for c in categories:
        numbers[f"AP@{c}"] = mean(0, "all", 100, category=c)
        numbers[f"AP50@{c}"] = mean(0, "all", 100, category=c, threshold=IOU_THRESHOLDS[0])
        numbers[f"AR100@{c}"] = mean(1, "all", 100, category=c)
    return numbers
