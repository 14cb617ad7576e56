"""Which results are right: the greedy matching behind AP, kept open to be looked into."""

from dataclasses import dataclass
from typing import Iterable, List, Optional, Sequence, Tuple

import numpy as np

from .track_pairs import VideoPair, tube_iou

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST_RESULTS = 100  # per video and category, as in AP
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass
class Matches:
    """Outcome of the results of one video at each of the thresholds (H of them).

    Attributes:
        truth: (H, D) index of the truth that a result was matched with, -1 if none.
        ignored: (H, D) bool, neither right nor wrong: matched with what does not count, of no
            match and itself outside of what counts, or beyond the 100 results of its category.
    """

    truth: np.ndarray
    ignored: np.ndarray


def match(
    pair: VideoPair,
    iou: np.ndarray,
    thresholds: Sequence[float] = THRESHOLDS,
    counted: Optional[Tuple[np.ndarray, np.ndarray]] = None,
) -> Matches:
    """Match the results of a video as the official evaluation does.

    Each category on its own, by falling score (ties by file order), each result with the free truth
    of the highest IoU; a truth that does not count is taken only if no other one will do.

    Args:
        iou: (D, G) space-time IoU.
        thresholds: H values of the IoU from which a result can be right.
        counted: (G,) and (D,) bool, to evaluate a part of the objects as AP does for sizes: truths
            that count, and results that count as wrong if they match nothing. Crowds never count.
    """
    limits = np.minimum(np.asarray(thresholds), 1 - 1e-10)
    shape = (len(limits), len(pair.dt))
    result = Matches(np.full(shape, -1), np.zeros(shape, bool))
    truth_counts = ~pair.gt.crowd if counted is None else ~pair.gt.crowd & counted[0]
    for category in np.unique(pair.dt.category):
        of_category = np.flatnonzero(pair.dt.category == category)
        order = of_category[np.argsort(-pair.dt.score[of_category], kind="mergesort")]
        result.ignored[:, order[MOST_RESULTS:]] = True
        truths = np.flatnonzero(pair.gt.category == category)
        free = np.ones((len(limits), len(truths)), bool)
        for d in order[:MOST_RESULTS]:
            chosen = _choose(iou[d, truths], limits, free, truth_counts[truths])
            hit = np.flatnonzero(chosen >= 0)
            result.truth[hit, d] = truths[chosen[hit]]
            free[hit, chosen[hit]] = pair.gt.crowd[truths[chosen[hit]]]
            result.ignored[hit, d] = ~truth_counts[truths[chosen[hit]]]
    if counted is not None:
        result.ignored |= (result.truth < 0) & ~counted[1]
    return result


def _choose(
    iou: np.ndarray, limits: np.ndarray, free: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """(H,) column of the truth that a result takes at each threshold, -1 for none."""
    chosen = np.full(len(limits), -1)
    if not len(iou) or iou.max() < limits.min():
        return chosen
    possible = free & (iou >= limits[:, None])
    for group in (~counts, counts):  # those that count come last and win
        open_ = possible & group
        values = np.where(open_, iou, -1.0)[:, ::-1]  # of equals the last one is taken
        best = len(iou) - 1 - values.argmax(axis=1)
        chosen = np.where(open_.any(axis=1), best, chosen)
    return chosen


def average_precision(hits: np.ndarray, num_truths: int) -> float:
    """AP of one category at one threshold.

    Args:
        hits: (n,) bool, whether each result is right, by falling score.
        num_truths: how many there are to be found, >= 1.
    """
    right = np.cumsum(hits, dtype=np.float64)
    recall = right / num_truths
    precision = right / (np.arange(1, len(hits) + 1) + np.spacing(1))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(envelope, 0.0)[places].mean())


def falling(score: np.ndarray) -> np.ndarray:
    """Order by falling score; equal scores stay in the order that they have."""
    return np.argsort(-score, kind="mergesort")


def best_f1_threshold(pairs: Iterable[VideoPair], iou_threshold: float = 0.5) -> float:
    """The lowest score to keep for the highest F1 of whole tracks, all categories together.

    Returns:
        One of the scores; of several equally good ones the highest. 0 without a right result.
    """
    scores: List[np.ndarray] = []
    hits: List[np.ndarray] = []
    num_truths = 0
    for pair in pairs:
        matches = match(pair, tube_iou(pair, pair.common()), [iou_threshold])
        keep = ~matches.ignored[0]
        scores.append(pair.dt.score[keep])
        hits.append(matches.truth[0, keep] >= 0)
        num_truths += int((~pair.gt.crowd).sum())
    score = np.concatenate(scores) if scores else np.zeros(0)
    if not len(score):
        return 0.0
    order = falling(score)
    score, right = score[order], np.cumsum(np.concatenate(hits)[order])
    f1 = 2 * right / (np.arange(1, len(score) + 1) + num_truths)
    f1[np.append(score[1:] == score[:-1], False)] = -1.0  # equal scores stay or go together
    best = int(np.argmax(f1))
    return float(score[best]) if f1[best] > 0 else 0.0
