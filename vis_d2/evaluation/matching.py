"""COCO's greedy matching within one category of one video, and the curve that follows from it."""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

Row = Mapping[str, Any]


class _Cell(NamedTuple):
    """Results by descending score, truths in the order of the file."""

    found: List[Row]
    truths: List[Row]
    near: List[List[Tuple[int, float]]]  # for each result truth and IoU, those worth looking at
    thresholds: Sequence[float]


def match_cell(
    truths: Sequence[Row],
    found: Sequence[Row],
    ious: np.ndarray,
    ranges: Sequence[Sequence[float]],
    thresholds: Sequence[float],
    most: int,
) -> List[Dict[str, Any]]:
    """What ``COCOeval.evaluateImg`` computes, for all ranges of areas at once.

    Args:
        truths: rows with ``id``, ``area``, ``ignore``, ``iscrowd``.
        found: rows with ``id``, ``area``, ``score``.
        ious: (D, G), rows by descending score; empty without truths or results.
        ranges: smallest and largest area of each range, both included.
        thresholds: of IoU, ascending.
        most: results that count, best first.

    Returns:
        For each range a dict of ``dtMatches`` (T, D) ids of truths, ``gtMatches`` (T, G) ids of
        results, 0 for none, ``dtIgnore``, ``gtIgnore``, ``dtScores``, ``dtIds`` and ``gtIds``;
        truths that count come first.
    """
    order = np.argsort([-row["score"] for row in found], kind="mergesort")[:most]
    best = [found[i] for i in order]
    near = [
        [(j, iou) for j, iou in enumerate(row) if iou >= min(thresholds[0], _LARGEST)]
        for row in (ious.tolist() if len(ious) else [[]] * len(best))
    ]
    cell = _Cell(best, list(truths), near, thresholds)
    scores, ids = [row["score"] for row in best], [row["id"] for row in best]
    known: Dict[Tuple[bool, ...], Tuple[np.ndarray, ...]] = {}
    results = []
    for low, high in ranges:
        ignored = tuple(bool(g["ignore"]) or not low <= g["area"] <= high for g in truths)
        if ignored not in known:
            known[ignored] = _match(cell, ignored)
        dt_matches, gt_matches, dt_ignored, columns = known[ignored]
        outside = np.array([d["area"] < low or d["area"] > high for d in best], bool)
        results.append(
            {
                "dtIds": ids,
                "gtIds": [truths[j]["id"] for j in columns],
                "dtMatches": dt_matches,
                "gtMatches": gt_matches,
                "dtScores": scores,
                "gtIgnore": np.array([ignored[j] for j in columns], int),
                "dtIgnore": dt_ignored | ((dt_matches == 0) & outside),
            }
        )
    return results


_LARGEST = 1 - 1e-10  # COCO's limit for thresholds


def _match(cell: _Cell, ignored: Sequence[bool]) -> Tuple[np.ndarray, ...]:
    shape = (len(cell.thresholds), len(cell.found))
    columns = sorted(range(len(ignored)), key=lambda j: ignored[j])  # stable
    place = {j: n for n, j in enumerate(columns)}
    dt_matches, gt_matches = np.zeros(shape), np.zeros((shape[0], len(columns)))
    dt_ignored = np.zeros(shape, bool)
    near = [sorted(row, key=lambda pair: ignored[pair[0]]) for row in cell.near]
    largest = max((iou for row in near for _, iou in row), default=-1.0)
    for t, threshold in enumerate(cell.thresholds):
        if min(threshold, _LARGEST) > largest:
            break
        taken = set()
        for i, row in enumerate(near):
            j = _choose(row, min(threshold, _LARGEST), taken, ignored) if row else None
            if j is None:
                continue
            if not cell.truths[j]["iscrowd"]:  # a crowd can be found often
                taken.add(j)
            dt_ignored[t, i] = ignored[j]
            dt_matches[t, i] = cell.truths[j]["id"]
            gt_matches[t, place[j]] = cell.found[i]["id"]
    return dt_matches, gt_matches, dt_ignored, np.array(columns, int)


def _choose(
    row: Sequence[Tuple[int, float]], least: float, taken: set, ignored: Sequence[bool]
) -> Optional[int]:
    """The free truth of the largest IoU, of equal ones the last; one that counts, if there is."""
    chosen = None
    for j, iou in row:
        if j in taken:
            continue
        if chosen is not None and ignored[j] and not ignored[chosen]:
            break
        if iou >= least:
            least, chosen = iou, j
    return chosen


def precision_and_recall(
    cells: Sequence[Mapping[str, Any]], most: int, recalls: np.ndarray
) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    """Of one category and range of areas, over all videos.

    Args:
        cells: what ``evaluateImg`` returned for the videos.
        most: results that count per video, best first.
        recalls: (R,) where precision is wanted.

    Returns:
        (thresholds, R) precision at these recalls or beyond, (thresholds,) final recall; None
        without ground truth that counts.
    """
    truths = sum(int(np.count_nonzero(cell["gtIgnore"] == 0)) for cell in cells)
    if not truths:
        return None
    order = np.argsort(-np.concatenate([c["dtScores"][:most] for c in cells]), kind="mergesort")
    matched, ignored = (
        np.concatenate([cell[key][:, :most] for cell in cells], axis=1)[:, order].astype(bool)
        for key in ("dtMatches", "dtIgnore")
    )
    hits = np.cumsum(matched & ~ignored, axis=1).astype(float)
    false_alarms = np.cumsum(~matched & ~ignored, axis=1).astype(float)
    precision = np.zeros((len(hits), len(recalls)))
    if not len(order):
        return precision, np.zeros(len(hits))
    recall = hits / truths
    raw = hits / (false_alarms + hits + np.spacing(1))
    best = np.maximum.accumulate(raw[:, ::-1], axis=1)[:, ::-1]  # at this recall or beyond
    for row, reached, values in zip(precision, recall, best):
        places = np.searchsorted(reached, recalls, side="left")
        places = places[places < len(order)]
        row[: len(places)] = values[places]
    return precision, recall[:, -1]
