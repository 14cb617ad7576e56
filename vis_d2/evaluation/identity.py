"""Identity metrics of tracks: HOTA, IDF1 and identity switches.

Definitions: HOTA by Luiten et al. (IJCV 2021), IDF1 by Ristani et al. (ECCV workshops 2016),
identity switches by Bernardin and Stiefelhagen (2008). Where those leave a choice, the numbers are
those of the public TrackEval program, so that they can be set beside published ones: two masks are
compared by their IoU within a frame, each category of each video is matched on its own, and a
crowd counts as an ordinary object.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Sequence, Tuple, Union

import numpy as np

from .error_matching import best_f1_threshold
from .track_pairs import VideoPair, frame_iou, read_pairs

# IoU from which two masks count as the same object: 0.05, 0.10 ... 0.95, and the one of the others.
ALPHAS = np.arange(1, 20) / 20
THRESHOLD = 0.5

IDENTITY_METRICS = ("HOTA", "DetA", "AssA", "LocA", "IDF1")


@dataclass
class Counts:
    """What is summed over videos; of two categories, what pools them.

    Attributes:
        matched: (A,) pairs of masks matched at each of ``ALPHAS``.
        truths, found: masks on either side, matched or not.
        association: (A,) sum over the matched pairs of how well their two tracks agree.
        overlap: (A,) sum of the IoU of the matched pairs.
        same_identity: masks in agreement under the best one-to-one assignment of identities.
        switches: how often an object comes back under another identity than it last had.
    """

    matched: np.ndarray = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    truths: int = 0
    found: int = 0
    association: np.ndarray = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    overlap: np.ndarray = field(default_factory=lambda: np.zeros(len(ALPHAS)))
    same_identity: int = 0
    switches: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def hota(self) -> np.ndarray:
        """(A,) HOTA at each of ``ALPHAS``."""
        return np.sqrt(self._detection() * self._association())

    def metrics(self) -> Dict[str, float]:
        """``IDENTITY_METRICS`` as fractions, means over ``ALPHAS``, and ``IDSW`` as a number."""
        # With nothing matched there is nothing to locate badly: LocA is 1, as in TrackEval.
        matched = np.maximum(self.matched, 1)
        location = np.where(self.matched > 0, self.overlap / matched, 1.0)
        values = {
            "HOTA": self.hota().mean(),
            "DetA": self._detection().mean(),
            "AssA": self._association().mean(),
            "LocA": location.mean(),
            "IDF1": 2 * self.same_identity / max(1, self.truths + self.found),
            "IDSW": self.switches,
        }
        return {name: float(value) for name, value in values.items()}

    def _detection(self) -> np.ndarray:
        return self.matched / np.maximum(1, self.truths + self.found - self.matched)

    def _association(self) -> np.ndarray:
        return self.association / np.maximum(1, self.matched)


def identity_metrics(
    gt: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    mode: str = "strict",
    score_threshold: Union[None, float, str] = None,
) -> Dict[str, float]:
    """Identity metrics of a result file.

    Unlike AP these do not look at scores: every result of the file counts fully, so a file with
    many results of low score has a low HOTA. Compare methods at a threshold that each one chose for
    itself; ``"best-f1"`` does that on the data at hand.

    Args:
        gt: content of a YouTube-VIS JSON file.
        results: entries of a result file.
        mode: of :class:`VideoCOCOeval`, "strict" or "official": which files are accepted. A track
            is absent from the frames beyond the end of its list.
        score_threshold: results below it are left out. None keeps all; "best-f1" takes the score at
            which the F1 of whole tracks (space-time IoU 0.5) is highest.

    Returns:
        ``HOTA``, ``DetA``, ``AssA``, ``LocA``, ``IDF1``: fractions in [0, 1], the mean over the
        categories with ground truth, as AP is; -1 if there is none. ``IDSW``: the number of
        identity switches in them. The same names with ``_pooled``: all categories as one, each by
        the number of its masks (categories without ground truth add false alarms there); TrackEval
        calls the two class-averaged and detection-averaged. ``score_threshold``: the one used; 0
        or the lowest score if all results were kept.
    """
    counts, threshold = _count_files(gt, results, mode, score_threshold)
    rows = [c.metrics() for c in counts.values() if c.truths]
    metrics = {n: float(np.mean([r[n] for r in rows])) if rows else -1.0 for n in IDENTITY_METRICS}
    metrics["IDSW"] = float(sum(row["IDSW"] for row in rows))
    pooled = sum(counts.values(), Counts()).metrics()
    for name, value in pooled.items():
        metrics[f"{name}_pooled"] = value if rows else -1.0
    metrics["score_threshold"] = threshold
    return metrics


def identity_metrics_by_category(
    gt: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    mode: str = "strict",
    score_threshold: Union[None, float, str] = None,
) -> Dict[int, Dict[str, float]]:
    """``IDENTITY_METRICS`` and ``IDSW`` by category id, for the categories with ground truth.

    Arguments as in :func:`identity_metrics`.
    """
    counts, _ = _count_files(gt, results, mode, score_threshold)
    return {c: counts[c].metrics() for c in sorted(counts) if counts[c].truths}


def count(iou: np.ndarray, truth_visible: np.ndarray, found_visible: np.ndarray) -> Counts:
    """Compare the tracks of one category in one video.

    Args:
        iou: (G, D, T) of each truth and each result in each frame.
        truth_visible, found_visible: (G, T) and (D, T) bool.
    """
    counts = Counts(truths=int(truth_visible.sum()), found=int(found_visible.sum()))
    if not counts.truths or not counts.found:
        return counts
    agreeing = (iou >= THRESHOLD).sum(axis=2)
    counts.same_identity = int(agreeing[_assign(agreeing)].sum())
    counts.switches = _switches(iou, truth_visible, found_visible)
    g, d, overlap = _match_masks(iou, truth_visible, found_visible)
    lengths = truth_visible.sum(axis=1)[:, None] + found_visible.sum(axis=1)  # (G, D)
    for a, alpha in enumerate(ALPHAS):
        chosen = overlap >= alpha
        together = np.zeros(lengths.shape, np.int64)
        np.add.at(together, (g[chosen], d[chosen]), 1)
        counts.matched[a] = chosen.sum()
        counts.overlap[a] = overlap[chosen].sum()
        agreement = together / np.maximum(1, lengths - together)
        counts.association[a] = (together * agreement).sum()
    return counts


def _count_files(
    gt: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    mode: str,
    score_threshold: Union[None, float, str],
) -> Tuple[Dict[int, Counts], float]:
    """Counts by category id, and the lowest score that was let in."""
    if isinstance(score_threshold, str) and score_threshold != "best-f1":
        raise ValueError(f"score_threshold must be a number or 'best-f1', got {score_threshold!r}")
    _, pairs = read_pairs(gt, results, mode=mode)
    if score_threshold is None:
        threshold = float(min((pair.dt.score.min(initial=0.0) for pair in pairs), default=0.0))
    elif isinstance(score_threshold, str):
        threshold = best_f1_threshold(pairs)
    else:
        threshold = float(score_threshold)
    total: Dict[int, Counts] = {}
    for pair in pairs:
        for category, counts in _count_video(pair, threshold).items():
            total[category] = total.get(category, Counts()) + counts
    return total, threshold


def _count_video(pair: VideoPair, threshold: float) -> Dict[int, Counts]:
    iou = frame_iou(pair, pair.common()).transpose(1, 0, 2)  # (D, G, T) -> (G, D, T)
    truth_visible, found_visible = pair.gt.area > 0, pair.dt.area > 0
    kept = ~(pair.dt.score < threshold)
    categories = np.union1d(pair.gt.category, pair.dt.category[kept])
    counts = {}
    for category in categories.tolist():
        g = np.flatnonzero(pair.gt.category == category)
        d = np.flatnonzero((pair.dt.category == category) & kept)
        counts[category] = count(iou[np.ix_(g, d)], truth_visible[g], found_visible[d])
    return counts


def _match_masks(
    iou: np.ndarray, truth_visible: np.ndarray, found_visible: np.ndarray
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HOTA's one-to-one matching within each frame: truth, result and IoU of all pairs.

    A pair is worth its IoU times how well its two tracks agree over the whole video, judged before
    anything is matched; the IoU of a mask counts there in proportion to its overlap with others.
    """
    rivals = iou.sum(axis=0)[None] + iou.sum(axis=1)[:, None] - iou
    soft = np.divide(iou, rivals, out=np.zeros_like(iou), where=rivals > 0).sum(axis=2)
    lengths = truth_visible.sum(axis=1)[:, None] + found_visible.sum(axis=1)
    alignment = soft / np.maximum(lengths - soft, 1e-12)
    rows: List[Tuple[np.ndarray, ...]] = []
    for t in range(iou.shape[2]):
        g, d = np.flatnonzero(truth_visible[:, t]), np.flatnonzero(found_visible[:, t])
        here = iou[np.ix_(g, d, [t])][..., 0]
        i, j = _assign(alignment[np.ix_(g, d)] * here)
        rows.append((g[i], d[j], here[i, j]))
    g, d, overlap = (np.concatenate(column) for column in zip(*rows))
    return g, d, overlap


def _switches(iou: np.ndarray, truth_visible: np.ndarray, found_visible: np.ndarray) -> int:
    """CLEAR's matching frame after frame; an object keeps its match as long as that is possible."""
    last: Dict[int, int] = {}  # truth -> the result it was last matched with
    current: Dict[int, int] = {}  # the same, of the previous frame only
    switches = 0
    for t in range(iou.shape[2]):
        g, d = np.flatnonzero(truth_visible[:, t]), np.flatnonzero(found_visible[:, t])
        if not len(g) or not len(d):
            continue
        here = iou[np.ix_(g, d, [t])][..., 0]
        kept = np.array([current.get(i, -1) for i in g.tolist()])[:, None] == d
        # Continuing one track outweighs any sum of overlaps.
        worth = np.where(here >= THRESHOLD, here + kept * (1.0 + min(here.shape)), 0.0)
        i, j = _assign(worth)
        possible = worth[i, j] > 0
        current = dict(zip(g[i[possible]].tolist(), d[j[possible]].tolist()))
        switches += sum(last.get(truth, found) != found for truth, found in current.items())
        last.update(current)
    return switches


def _assign(worth: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the one-to-one assignment with the greatest sum."""
    from scipy.optimize import linear_sum_assignment  # a third of a second to import

    return linear_sum_assignment(worth, maximize=True)
