"""Why a result is wrong, and which objects nobody found.

At a given threshold of the space-time IoU, each wrong result gets one kind, the first that fits:

``duplicate``: it is on an object of its class that a better result has found: its IoU reaches the
    threshold, or the finder is on that object, too, in most of the frames in which the result is.
``class``: its IoU with an object of another class reaches the threshold.
``identity``, ``incomplete``, ``mask``: it belongs to an object of its class (IoU of 0.1 or more, or
    it spends half of its frames on it), rather to one that is still to be found, but its IoU stays
    below the threshold. What would help more decides. The masks are at fault if the IoU over the
    frames in which it is on the object is no better than what it would reach with perfect masks in
    those frames and all else as it is; otherwise time is at fault. That is an identity error
    (swapped, merged or broken into pieces) if in most of the frames in question another result has
    the object or this one is on another object, and incomplete if nobody has the object there. A
    piece of an object that is found already counts as an identity error, too.
``mixed``: the same with an object of another class: no single repair would make it right.
``background``: none of these.

Objects to which none of the results above belongs, and which are not found, are ``missed``.

A result is *on* the object with which it has the highest IoU in a frame, from 0.1 on; it *has* the
object in that frame if that IoU is 0.5 or more.
"""

from dataclasses import dataclass
from typing import Tuple

import numpy as np

from .error_matching import Matches, falling
from .track_pairs import VideoPair, frame_iou, tube_iou

KINDS = (
    "missed",
    "class",
    "identity",
    "incomplete",
    "mask",
    "duplicate",
    "background",
    "mixed",
)
MEANING = {
    "missed": "objects that no result belongs to",
    "class": "right object, wrong class",
    "identity": "identities swapped, merged or broken into pieces",
    "incomplete": "right object, but only in a part of its frames",
    "mask": "right object at the right time, poor masks",
    "duplicate": "another result on an object already found",
    "background": "results on nothing",
    "mixed": "wrong class, and more than that",
}
ON, HAS = 0.1, 0.5


@dataclass
class Evidence:
    """What the kinds of a video follow from; nothing here depends on the threshold.

    Attributes:
        iou: (D, G) space-time IoU.
        on: (D, T) the truth that each result is on in each frame, -1 if none.
        belongs: (D, G) bool.
        fault: (D, G) index in ``KINDS`` of mask, identity or incomplete.
    """

    iou: np.ndarray
    on: np.ndarray
    belongs: np.ndarray
    fault: np.ndarray


def gather_evidence(pair: VideoPair) -> Evidence:
    """Compare all results of a video with all of its truths, whatever their classes."""
    common = pair.common()
    per_frame, iou = frame_iou(pair, common), tube_iou(pair, common)
    num_found, num_truths, length = common.shape
    if not num_truths or not num_found:
        empty = np.zeros((num_found, num_truths), np.int64)
        return Evidence(iou, np.full((num_found, length), -1), empty > 0, empty)
    best = per_frame.max(axis=1)
    on = np.where(best >= ON, per_frame.argmax(axis=1), -1)
    has = np.where(best >= HAS, on, -1)
    visible, present = pair.gt.area > 0, pair.dt.area > 0
    belongs, fault = iou >= ON, np.zeros(iou.shape, np.int64)
    for d, g in zip(*np.nonzero(belongs | (on[:, :, None] == np.arange(num_truths)).any(axis=1))):
        here = on[d] == g
        belongs[d, g] |= 2 * here.sum() >= present[d].sum()
        others_have_it = np.delete(has == g, d, axis=0).any(axis=0)
        # Frames that cost something, and those of them in which identities are mixed up.
        costly = ~here & (visible[g] | present[d])
        mixed_up = costly & ((visible[g] & others_have_it) | ((has[d] >= 0) & (has[d] != g)))
        time = "identity" if 2 * mixed_up.sum() >= costly.sum() else "incomplete"
        masks, perfected = _two_repairs(pair, common, int(d), int(g), here)
        fault[d, g] = KINDS.index("mask" if masks <= perfected else time)
    return Evidence(iou, on, belongs, fault)


def _two_repairs(
    pair: VideoPair, common: np.ndarray, d: int, g: int, here: np.ndarray
) -> Tuple[float, float]:
    """IoU with all but the frames ``here`` left out, and with perfect masks in those frames."""
    found, truth = pair.dt.area[d], pair.gt.area[g]
    shared = common[d, g][here].sum()
    masks = shared / max(1, found[here].sum() + truth[here].sum() - shared)
    perfected = truth[here].sum() / max(1, truth.sum() + found[~here].sum())
    return float(masks), float(perfected)


def assign_kinds(
    pair: VideoPair, evidence: Evidence, matches: Matches, row: int, threshold: float
) -> Tuple[np.ndarray, np.ndarray]:
    """The kind of each result at one threshold.

    Args:
        row: which row of ``matches`` belongs to ``threshold``.

    Returns:
        kind: (D,) index in ``KINDS``; -1 for results that are right or do not count.
        owner: (D,) index of the truth that a result belongs to, -1 if none.
    """
    matched, ignored = matches.truth[row], matches.ignored[row]
    kind, owner = np.full(len(pair.dt), -1), np.full(len(pair.dt), -1)
    finder = np.full(len(pair.gt), -1)
    finder[matched[matched >= 0]] = np.flatnonzero(matched >= 0)
    claimed = finder >= 0
    for d in falling(pair.dt.score):
        if matched[d] < 0 and not ignored[d]:
            name, owner[d] = _kind_of(pair, evidence, finder, claimed, d, threshold)
            kind[d] = KINDS.index(name)
            if owner[d] >= 0:
                claimed[owner[d]] = True
    return kind, owner


def _kind_of(
    pair: VideoPair,
    evidence: Evidence,
    finder: np.ndarray,
    claimed: np.ndarray,
    d: int,
    threshold: float,
) -> Tuple[str, int]:
    if not len(pair.gt):
        return "background", -1
    iou, lost = evidence.iou[d], finder < 0
    same = (pair.gt.category == pair.dt.category[d]) & ~pair.gt.crowd
    other = ~same & ~pair.gt.crowd
    reached, belongs = iou >= threshold, evidence.belongs[d]
    if (reached & same).any():
        return "duplicate", _best(iou, reached & same)
    if (reached & other).any():
        wanted = reached & other & lost
        return "class", _claim(iou, wanted if wanted.any() else reached & other, claimed)
    if (belongs & same & lost).any():
        g = _claim(iou, belongs & same & lost, claimed)
        return KINDS[evidence.fault[d, g]], g
    if (belongs & same).any():
        g = _best(iou, belongs & same)
        here = evidence.on[d] == g
        both = here & (evidence.on[finder[g]] == g)
        return ("duplicate" if 2 * both.sum() >= here.sum() else "identity"), g
    return ("mixed" if (belongs & other).any() else "background"), -1


def _claim(iou: np.ndarray, allowed: np.ndarray, claimed: np.ndarray) -> int:
    """The object that a result stands for: its best one, or one nearly as good that is left.

    Two results that swap their objects halfway have half of each; each stands for one of them.
    """
    best = _best(iou, allowed)
    left = allowed & ~claimed & (iou >= iou[best] / 2)
    return _best(iou, left) if left.any() else best


def _best(worth: np.ndarray, allowed: np.ndarray) -> int:
    return int(np.where(allowed, worth, -1.0).argmax())
