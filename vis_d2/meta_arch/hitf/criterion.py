"""Matching and all losses of a batch of clips."""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from vis_d2.modeling import Match, Outputs, global_mean

from .losses import (
    discrimination_loss,
    empty_loss,
    mask_identity_loss,
    pair_losses,
    semantic_loss,
)
from .matching import match_slots, pair_similarity
from .targets import SlotTargets

__all__ = ["LossWeights", "SlotCriterion", "slot_of_pixels"]


@dataclass(frozen=True)
class LossWeights:
    """Factors of the losses.

    Attributes:
        pq: of the losses of slots.
        inst: share of slots with an object, in [0, 1]; the rest is for empty ones.
        aux: of the auxiliary losses together.
        disc: of instance discrimination.
        mask_id: of mask identity.
        sem: of semantics.
    """

    pq: float = 3.0
    inst: float = 0.75
    aux: float = 1.0
    disc: float = 1.0
    mask_id: float = 0.3
    sem: float = 1.0


class SlotCriterion(nn.Module):
    """Matches slots with objects by a pair of frames, then charges the later one, or both.

    Args:
        pair: match by both frames; else by the later one alone.
        objects: which are matched, see ``match_slots``.
        supervise_previous: the earlier frame is charged, too.
        weighting: of the losses of a pair, see ``pair_losses``.
        temperature: of instance discrimination.
        background: the mask logits have a channel for the background, behind the slots.
        weights: factors.
    """

    def __init__(
        self,
        *,
        pair: bool = True,
        objects: str = "union",
        supervise_previous: bool = False,
        weighting: str = "pq",
        temperature: float = 0.3,
        background: bool = False,
        weights: Optional[LossWeights] = None,
    ) -> None:
        super().__init__()
        self.pair = pair
        self.objects = objects
        self.supervise_previous = supervise_previous
        self.weighting = weighting
        self.temperature = temperature
        self.background = background
        self.weights = weights or LossWeights()

    @property
    def needs_previous(self) -> bool:
        """Whether predictions for the earlier frame are asked for."""
        return self.pair or self.supervise_previous

    def forward(
        self, now: Outputs, before: Optional[Outputs], targets: Sequence[SlotTargets]
    ) -> Dict[str, Tensor]:
        """Weighted losses of B clips.

        Args:
            now: of the later frame, with a leading axis B: ``pred_logits`` (L, K + 1),
                ``pred_masks`` (L or L + 1, h, w), ``pixel_features`` (D, h, w), ``semantic``
                (K + 1, h, w).
            before: of the earlier frame; ``pixel_features`` and ``semantic`` only if it is
                charged. None unless ``needs_previous``.
            targets: B times the truth of both frames, the earlier first.

        Returns:
            ``loss_mask``, ``loss_cls`` and ``loss_empty``, means over clips and slots;
            ``loss_disc``, ``loss_mask_id`` and ``loss_sem``, means over pixels.
        """
        matches = self.match(now, before, targets)
        losses = self._charge(now, targets, matches, frame=1)
        if self.supervise_previous:
            earlier = self._charge(before, targets, matches, frame=0)
            losses = {name: loss + earlier[name] for name, loss in losses.items()}
        return losses

    @torch.no_grad()
    def match(
        self, now: Outputs, before: Optional[Outputs], targets: Sequence[SlotTargets]
    ) -> List[Match]:
        """Pairs of slots and objects for each of B clips, see ``forward``."""
        frames = [before, now] if self.pair else [now]
        matches = []
        for b, truth in enumerate(targets):
            if not self.pair:
                truth = _only_last(truth)
            classes = [frame["pred_logits"][b].float().softmax(-1) for frame in frames]
            masks = [self._slots(frame["pred_masks"][b].float().softmax(0)) for frame in frames]
            similarity = pair_similarity(
                torch.stack(classes, dim=1),  # F x (L, K + 1) -> (L, F, K + 1)
                torch.stack(masks, dim=1),
                truth,
            )
            matches.append(match_slots(similarity, truth, self.objects))
        return matches

    def _slots(self, masks: Tensor) -> Tensor:
        """Without the channel of the background, which no object can have."""
        return masks[:-1] if self.background else masks

    def _charge(
        self, outputs: Outputs, targets: Sequence[SlotTargets], matches: List[Match], frame: int
    ) -> Dict[str, Tensor]:
        weights = self.weights
        total: Dict[str, Tensor] = {}
        pixels: Dict[str, Tensor] = {}
        for b, (truth, match) in enumerate(zip(targets, matches)):
            one = {name: value[b] for name, value in outputs.items()}
            slot_losses = self._slot_losses(one, truth, match, frame)
            _add(total, {name: loss / len(targets) for name, loss in slot_losses.items()})
            for name, (loss, count) in self._pixel_losses(one, truth, match, frame).items():
                _add(total, {name: loss})
                _add(pixels, {name: count})
        for name, count in pixels.items():
            total[name] = total[name] / global_mean(count, floor=1.0)
        factors = {
            "loss_mask": weights.pq * weights.inst,
            "loss_cls": weights.pq * weights.inst,
            "loss_empty": weights.pq * (1 - weights.inst),
            "loss_disc": weights.aux * weights.disc,
            "loss_mask_id": weights.aux * weights.mask_id,
            "loss_sem": weights.aux * weights.sem,
        }
        return {name: factors[name] * loss for name, loss in total.items()}

    def _slot_losses(
        self, one: Outputs, truth: SlotTargets, match: Match, frame: int
    ) -> Dict[str, Tensor]:
        """Of one clip, divided by the number of slots."""
        slots, objects = _shown(truth, match, frame)
        mask, label = pair_losses(
            one["pred_logits"],
            one["pred_masks"],
            truth.labels[objects],
            truth.masks[objects, frame],
            truth.valid,
            slots,
            self.weighting,
        )
        losses = {
            "loss_mask": mask,
            "loss_cls": label,
            "loss_empty": empty_loss(one["pred_logits"], slots),
        }
        return {name: loss / len(one["pred_logits"]) for name, loss in losses.items()}

    def _pixel_losses(
        self, one: Outputs, truth: SlotTargets, match: Match, frame: int
    ) -> Dict[str, Tuple[Tensor, Tensor]]:
        """Sums of one clip and their numbers of pixels."""
        owner = truth.owner(frame)
        last = len(one["pred_logits"]) if self.background else -1
        slots = slot_of_pixels(truth, match, frame, last)
        return {
            "loss_disc": discrimination_loss(
                one["pixel_features"], owner, truth.valid, self.temperature
            ),
            "loss_mask_id": mask_identity_loss(one["pred_masks"], slots),
            "loss_sem": semantic_loss(one["semantic"], owner, truth.labels, truth.valid),
        }


def slot_of_pixels(truth: SlotTargets, match: Match, frame: int, background: int) -> Tensor:
    """Slot that each pixel should choose, (h, w) int64; -1 where it does not matter.

    Args:
        truth: of the clip.
        match: its pairs; pixels of an object without a slot do not matter.
        frame: of the clip.
        background: channel of background pixels, -1 if there is none.
    """
    slots, objects = _shown(truth, match, frame)
    table = truth.labels.new_full((len(truth.labels) + 1,), -1)
    table[objects] = slots
    table[-1] = background  # the owner of background pixels is -1, the last row
    return table[truth.owner(frame)].masked_fill(~truth.valid, -1)


def _shown(truth: SlotTargets, match: Match, frame: int) -> Match:
    """The pairs whose object is present in a frame."""
    slots, objects = match
    shown = truth.present[objects, frame]
    return slots[shown], objects[shown]


def _only_last(truth: SlotTargets) -> SlotTargets:
    return SlotTargets(truth.labels, truth.masks[:, -1:], truth.present[:, -1:], truth.valid)


def _add(total: Dict[str, Tensor], more: Dict[str, Tensor]) -> None:
    for name, value in more.items():
        total[name] = total[name] + value if name in total else value
