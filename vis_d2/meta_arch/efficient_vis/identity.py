"""Who is who from clip to clip: slots that keep their query, or hand-crafted links."""

from dataclasses import dataclass, replace
from typing import Optional, Tuple

import torch
from torch import Tensor

from vis_d2.modeling import assign, paired_iou

__all__ = ["ClipEnds", "ClipSummary", "HandcraftedLinks", "SlotIdentity", "Slots"]


@dataclass(frozen=True)
class ClipEnds:
    """What hand-crafted links compare: one frame of the N slots of a clip.

    Attributes:
        boxes: (N, 4) XYXY in pixels of the network input.
        masks: (N, h, w) probabilities at a lower resolution.
        classes: (N,) best class over the clip.
        scores: (N,) its mean probability.
        size: (4,) width, height, width, height of the frame.
    """

    boxes: Tensor
    masks: Tensor
    classes: Tensor
    scores: Tensor
    size: Tensor


@dataclass(frozen=True)
class ClipSummary:
    """What a clip tells about identity.

    Attributes:
        initial: (N, C) queries that a video starts from.
        queries: (N, C), time mean of the final queries.
        scores: (N,) best mean class probability of each slot.
        votes: (N, K) those of ``Slots`` plus the class probabilities of this clip's frames.
        ends: the first and the last frame; None where they are not needed.
    """

    initial: Tensor
    queries: Tensor
    scores: Tensor
    votes: Tensor
    ends: Optional[Tuple[ClipEnds, ClipEnds]] = None


@dataclass(frozen=True)
class Slots:
    """What is remembered of a video between two clips; its size does not grow.

    Attributes:
        queries: (N, C) for the next clip; None before the first.
        track_ids: (N,) int64, identity of each slot.
        idle: (N,) int64, clips in a row that showed background.
        votes: (N, K), sums of the class probabilities in the frames that a slot's track had so
            far; zeros, also (N, 1), where no track goes on in its slot.
        next_id: the id of the next new track.
        ends: last frame of the last clip, where links need it.
    """

    queries: Optional[Tensor]
    track_ids: Tensor
    idle: Tensor
    votes: Tensor
    next_id: int
    ends: Optional[ClipEnds] = None


class SlotIdentity:
    """The slot is the identity; a slot that shows background for long starts anew.

    Args:
        background: a clip shows background if the best mean class probability is below this.
        patience: clips in a row after which the query starts anew, with a new identity; 0: never.
    """

    needs_ends = False

    def __init__(self, *, background: float, patience: int) -> None:
        self.background = background
        self.patience = patience

    def update(self, slots: Slots, clip: ClipSummary) -> Tuple[Tensor, Slots]:
        """Identities (N,) of a clip's slots, and the memory for the next clip."""
        background = clip.scores < self.background
        idle = torch.where(background, slots.idle + 1, torch.zeros_like(slots.idle))
        again = idle >= self.patience if self.patience else torch.zeros_like(background)
        fresh = slots.next_id + again.cumsum(0) - 1
        return slots.track_ids, replace(
            slots,
            queries=torch.where(again[:, None], clip.initial.to(clip.queries), clip.queries),
            track_ids=torch.where(again, fresh, slots.track_ids),
            idle=idle.masked_fill(again, 0),
            votes=clip.votes.masked_fill(again[:, None], 0.0),
            next_id=slots.next_id + int(again.sum()),
        )


class HandcraftedLinks:
    """Clips start from the same queries; slots are linked where the clips meet (ablation).

    The affinity of a slot in the last frame of one clip and a slot in the first frame of the next
    is box IoU, minus the distance of normalised boxes, plus mask IoU, plus one for the same class.

    Args:
        score: slots whose best mean class probability is below it are not linked.
        affinity: pairs of slots that are less alike are not linked either.
    """

    needs_ends = True

    def __init__(self, *, score: float, affinity: float) -> None:
        self.score = score
        self.affinity = affinity

    def update(self, slots: Slots, clip: ClipSummary) -> Tuple[Tensor, Slots]:
        """Identities (N,) of a clip's slots, and the memory for the next clip."""
        first, last = clip.ends
        ids, next_id = slots.track_ids, slots.next_id
        if slots.ends is not None:
            rows = (slots.ends.scores >= self.score).nonzero()[:, 0]
            columns = (first.scores >= self.score).nonzero()[:, 0]
            affinity = _affinity(slots.ends, first)[rows][:, columns]
            # A pair below the gate is worth as much as none, whatever its affinity.
            before, now = assign(-affinity.clamp(min=self.affinity))
            alike = affinity[before, now] >= self.affinity
            before, now = before[alike], now[alike]
            ids = slots.next_id + torch.arange(len(ids), device=ids.device)
            ids[columns[now]] = slots.track_ids[rows[before]]
            next_id += len(ids)
        return ids, replace(slots, track_ids=ids, next_id=next_id, ends=last)


def _affinity(a: ClipEnds, b: ClipEnds) -> Tensor:
    """(N, N), higher is more alike."""
    boxes, others = torch.broadcast_tensors(a.boxes[:, None], b.boxes[None])
    shape = boxes.shape[:2]
    box_iou = paired_iou(boxes.reshape(-1, 4), others.reshape(-1, 4)).view(shape)
    distance = ((boxes - others) / a.size).abs().sum(-1)
    mine, theirs = a.masks.flatten(1), b.masks.flatten(1)  # (N, h, w) -> (N, h * w)
    common = mine @ theirs.t()
    union = mine.sum(1)[:, None] + theirs.sum(1)[None] - common
    same_class = (a.classes[:, None] == b.classes[None]).float()
    return box_iou - distance + common / union.clamp(min=1e-6) + same_class
