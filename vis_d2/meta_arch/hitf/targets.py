"""Truth on the grid of the mask logits, with one owner for each pixel."""

from dataclasses import dataclass
from typing import List

import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["SlotTargets", "exclusive", "slot_targets"]


@dataclass
class SlotTargets:
    """The N objects of one clip in F frames.

    Attributes:
        labels: (N,) int64 classes.
        masks: (N, F, h, w) bool; no pixel belongs to two objects.
        present: (N, F) bool, objects with at least one pixel.
        valid: (h, w) bool, False for padding. Background is valid: if it were not, masks could
            leak over it for free.
    """

    labels: Tensor
    masks: Tensor
    present: Tensor
    valid: Tensor

    def owner(self, frame: int) -> Tensor:
        """Object of each pixel of a frame, (h, w) int64, -1 for background."""
        rows = torch.arange(len(self.labels), device=self.masks.device)[:, None, None]
        return torch.where(self.masks[:, frame], rows + 1, 0).sum(0) - 1


def exclusive(masks: Tensor) -> Tensor:
    """Give each pixel of overlapping masks to the smallest; the first among equals.

    Args:
        masks: (N, h, w) bool.

    Returns:
        (N, h, w) bool.
    """
    if len(masks) < 2:
        return masks
    order = masks.flatten(1).sum(1).sort(stable=True).indices
    sorted_masks = masks[order]
    before = sorted_masks.long().cumsum(0) - sorted_masks.long()
    result = torch.empty_like(masks)
    result[order] = sorted_masks & (before == 0)
    return result


def slot_targets(frames: List[Instances], valid: Tensor, stride: int) -> SlotTargets:
    """Truth of one clip at the cells of the mask logits.

    Args:
        frames: F Instances; row i is the same object in each.
        valid: (h, w) bool, cells that do not lie on padding.
        stride: pixels from cell to cell; cell i lies on pixel ``stride * i``.
    """
    height, width = valid.shape
    count = len(frames[0])
    masks = valid.new_zeros((count, len(frames), height, width))
    for f, frame in enumerate(frames):
        seen = frame.gt_masks.tensor[:, ::stride, ::stride] & frame.gt_visible[:, None, None]
        masks[:, f, : seen.shape[1], : seen.shape[2]] = exclusive(seen)
    # An object between the cells, or behind smaller ones, is absent.
    return SlotTargets(frames[0].gt_classes, masks, masks.flatten(2).any(2), valid)
