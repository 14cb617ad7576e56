"""Where AP is lost: what each kind of error costs, and which objects are lost.

After TIDE (Bolya et al., ECCV 2020), for tracks in place of boxes. The cost of a kind is the AP
gained when that kind alone is repaired, at each threshold of AP on its own:

``class``, ``identity``, ``incomplete``, ``mask``: of the results of that kind that belong to one
    object, the one with the highest score becomes right at its score, unless the object is found
    already; the others are deleted.
``duplicate``, ``background``, ``mixed``: deleted.
``missed``: each missed object gets a right result, ahead of all others.

The kinds are defined in ``error_kinds``. Repairs overlap and depend on each other, so the gains do
not add up to what is lost; shares are of their sum.
"""

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from .error_groups import Group, evaluate_groups
from .error_kinds import KINDS, assign_kinds, gather_evidence
from .error_matching import THRESHOLDS, average_precision, falling, match
from .track_pairs import VideoPair, read_pairs

_OWNED = ("class", "identity", "incomplete", "mask")


class Problem(NamedTuple):
    """One wrong result or missed object at IoU 0.5; None where there is no such thing.

    ``result`` and ``annotation`` count from 0 in the order of the two files; ``annotation`` is the
    object concerned, ``iou`` the space-time IoU of the two.
    """

    video_id: int
    kind: str
    category_id: int
    score: Optional[float]
    result: Optional[int]
    annotation: Optional[int]
    iou: Optional[float]


@dataclass
class ErrorAnalysis:
    """What :func:`analyze_errors` found; AP and gains are fractions.

    Attributes:
        ap, ap50: as in ``VideoCOCOeval``.
        gain, gain50: AP and AP50 gained by repairing each of ``KINDS`` alone.
        number: wrong results of each kind at IoU 0.5; for "missed", objects.
        category_ap, category_ap50: by category id, those with ground truth.
        categories: names by category id.
        groups: AP and recall by length, size and motion of the object.
        problems: every wrong result and missed object at IoU 0.5, the costliest kinds first.
    """

    ap: float
    ap50: float
    gain: Dict[str, float]
    gain50: Dict[str, float]
    number: Dict[str, int]
    category_ap: Dict[int, float]
    category_ap50: Dict[int, float]
    categories: Dict[int, str]
    groups: Dict[str, List[Group]]
    problems: List[Problem]

    @property
    def share(self) -> Dict[str, float]:
        """Each kind's part of the sum of the gains; 0 if nothing is to be gained."""
        total = sum(self.gain.values())
        return {kind: gain / total if total else 0.0 for kind, gain in self.gain.items()}

    @property
    def main_cause(self) -> Optional[str]:
        """The kind whose repair gains most; None if nothing is to be gained."""
        best = max(KINDS, key=lambda kind: self.gain[kind])
        return best if self.gain[best] > 0 else None

    def to_json(self) -> Dict[str, Any]:
        """Everything but ``problems``, as plain dicts and lists."""
        share = self.share
        kinds = {
            kind: {
                "AP_gain": self.gain[kind],
                "AP50_gain": self.gain50[kind],
                "share": share[kind],
                "number": self.number[kind],
            }
            for kind in KINDS
        }
        return {
            "AP": self.ap,
            "AP50": self.ap50,
            "main_cause": self.main_cause,
            "kinds": kinds,
            "per_category_AP": self.category_ap,
            "per_category_AP50": self.category_ap50,
            "groups": {name: [g._asdict() for g in rows] for name, rows in self.groups.items()},
        }


@dataclass
class _Ledger:
    """All results that count at one threshold, by falling score; truths are numbered throughout."""

    category: np.ndarray
    hit: np.ndarray
    kind: np.ndarray
    owner: np.ndarray
    truth_category: np.ndarray  # of truths that count; -1 for crowds
    found: np.ndarray  # bool per truth
    missed: np.ndarray  # bool per truth

    def ap(self, repaired: Optional[str] = None) -> Dict[int, float]:
        """AP by category, with one kind repaired."""
        category, hit = self.category.copy(), self.hit.copy()
        keep = np.ones(len(hit), bool)
        if repaired in _OWNED:
            rows = np.flatnonzero(self.kind == KINDS.index(repaired))
            _, first = np.unique(self.owner[rows], return_index=True)
            best = rows[first]
            best = best[~self.found[self.owner[best]]]
            keep[rows], keep[best], hit[best] = False, True, True
            category[best] = self.truth_category[self.owner[best]]
        elif repaired not in (None, "missed"):
            keep = self.kind != KINDS.index(repaired)
        result = {}
        for c in np.unique(self.truth_category[self.truth_category >= 0]).tolist():
            hits, of_category = hit[keep & (category == c)], self.truth_category == c
            if repaired == "missed":
                hits = np.concatenate([np.ones((self.missed & of_category).sum(), bool), hits])
            result[c] = average_precision(hits, int(of_category.sum()))
        return result


def analyze_errors(gt: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> ErrorAnalysis:
    """Find out why AP is lost.

    Args:
        gt: content of a YouTube-VIS JSON file with annotations.
        results: entries of a result file.

    Raises:
        ValueError: an entry that the strict evaluation does not accept, or nothing to compare with.
    """
    categories, pairs = read_pairs(gt, results)
    if not sum(int((~pair.gt.crowd).sum()) for pair in pairs):
        raise ValueError("the ground truth has no annotations, so there is no AP to lose")
    evidence = [gather_evidence(pair) for pair in pairs]
    matches = [match(pair, e.iou) for pair, e in zip(pairs, evidence)]
    by_kind: Dict[Optional[str], List[Dict[int, float]]] = {k: [] for k in (None, *KINDS)}
    problems: List[Problem] = []
    for row, threshold in enumerate(THRESHOLDS):
        kinds = [
            assign_kinds(pair, e, m, row, threshold) for pair, e, m in zip(pairs, evidence, matches)
        ]
        ledger = _make_ledger(pairs, matches, kinds, row)
        for kind, aps in by_kind.items():
            aps.append(ledger.ap(kind))
        if row == 0:
            problems = _problems(pairs, evidence, kinds, ledger)
    category_ap = {c: float(np.mean([ap[c] for ap in by_kind[None]])) for c in by_kind[None][0]}
    ap = {
        kind: float(np.mean([list(row.values()) for row in aps])) for kind, aps in by_kind.items()
    }
    ap50 = {kind: float(np.mean(list(aps[0].values()))) for kind, aps in by_kind.items()}
    gain = {kind: max(0.0, ap[kind] - ap[None]) for kind in KINDS}
    return ErrorAnalysis(
        ap=ap[None],
        ap50=ap50[None],
        gain=gain,
        gain50={kind: max(0.0, ap50[kind] - ap50[None]) for kind in KINDS},
        number={kind: sum(p.kind == kind for p in problems) for kind in KINDS},
        category_ap=category_ap,
        category_ap50=dict(by_kind[None][0]),
        categories=categories,
        groups=evaluate_groups(pairs, [e.iou for e in evidence]),
        problems=sorted(problems, key=lambda p: (-gain[p.kind], -(p.score or 0.0))),
    )


def _make_ledger(pairs: List[VideoPair], matches: List, kinds: List, row: int) -> _Ledger:
    columns: List[List[np.ndarray]] = [[], [], [], [], []]
    starts = np.cumsum([0] + [len(pair.gt) for pair in pairs])
    found = np.zeros(starts[-1], bool)
    missed = np.ones(starts[-1], bool)
    for pair, m, (kind, owner), start in zip(pairs, matches, kinds, starts):
        keep, matched = ~m.ignored[row], m.truth[row]
        found[start + matched[matched >= 0]] = True
        claims = np.isin(kind, [KINDS.index(name) for name in _OWNED]) & (owner >= 0)
        missed[start + owner[claims]] = False
        owner = np.where(owner >= 0, owner + start, -1)
        # As in COCOeval: by score within the video first, then by score over the videos in order.
        order = falling(pair.dt.score)
        order = order[keep[order]]
        values = (pair.dt.category, matched >= 0, kind, owner, pair.dt.score)
        for column, value in zip(columns, values):
            column.append(value[order])
    category, hit, kind, owner, score = (np.concatenate(column) for column in columns)
    order = falling(score)
    crowd = np.concatenate([pair.gt.crowd for pair in pairs])
    truth_category = np.concatenate([pair.gt.category for pair in pairs])
    return _Ledger(
        *(value[order] for value in (category, hit, kind, owner)),
        truth_category=np.where(crowd, -1, truth_category),
        found=found,
        missed=missed & ~found & ~crowd,
    )


def _problems(
    pairs: List[VideoPair], evidence: List, kinds: List, ledger: _Ledger
) -> List[Problem]:
    problems, start = [], 0
    for pair, e, (kind, owner) in zip(pairs, evidence, kinds):
        for d in np.flatnonzero(kind >= 0).tolist():
            g = int(owner[d])
            problems.append(
                Problem(
                    video_id=pair.video_id,
                    kind=KINDS[kind[d]],
                    category_id=int(pair.dt.category[d]),
                    score=float(pair.dt.score[d]),
                    result=int(pair.dt.index[d]),
                    annotation=int(pair.gt.index[g]) if g >= 0 else None,
                    iou=float(e.iou[d, g]) if g >= 0 else None,
                )
            )
        for g in np.flatnonzero(ledger.missed[start : start + len(pair.gt)]).tolist():
            where = (int(pair.gt.category[g]), None, None, int(pair.gt.index[g]), None)
            problems.append(Problem(pair.video_id, "missed", *where))
        start += len(pair.gt)
    return problems
