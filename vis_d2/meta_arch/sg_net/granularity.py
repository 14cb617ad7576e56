"""The granularity blender: sub-region scores and base masks become instance masks (Eq. 2).

Letters beside the common ones: m largest number of sub-regions per side, M = m * m channels,
P instances (detections or training positives), h and w the size of the base masks.
"""

from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["GranularityBlender", "box_indicator", "pixel_centres"]

LOGIT_MODES = ("sum_sigmoid_outer", "subregion")
PROBABILITY_MODES = ("literal", "mean")
CHANNEL_MAPS = ("grid", "first")
PROBABILITY_FLOOR = 1e-6  # keeps the logarithms of the cross entropy finite


def pixel_centres(size: int, stride: float, device: torch.device) -> Tensor:
    """Centres (size,) of a row of mask pixels, in input pixels."""
    return (torch.arange(size, device=device) + 0.5) * stride


def box_indicator(boxes: Tensor, size: Tuple[int, int], stride: float) -> Tensor:
    """Which mask pixels have their centre in each box: x1 <= x < x2 and y1 <= y < y2.

    Args:
        boxes: (P, 4) XYXY, input pixels.
        size: (h, w) of the masks.
        stride: input pixels per mask pixel.

    Returns:
        (P, h, w) bool.
    """
    y = pixel_centres(size[0], stride, boxes.device)
    x = pixel_centres(size[1], stride, boxes.device)
    in_x = (x >= boxes[:, 0, None]) & (x < boxes[:, 2, None])  # (P, w)
    in_y = (y >= boxes[:, 1, None]) & (y < boxes[:, 3, None])  # (P, h)
    return in_y[:, :, None] & in_x[:, None, :]


class GranularityBlender:
    """Divides boxes into sub-regions and blends their scores with the base masks.

    Args:
        max_div: m, most sub-regions per side.
        cell: side of a sub-region in input pixels.
        mode: with a the scores, B the base masks, j over the J sub-regions of the instance:
            "sum_sigmoid_outer": sigmoid(sum_j a_j B_j);
            "subregion": sigmoid(a_j B_j) of the pixel's own sub-region j;
            "literal": sum_j sigmoid(a_j B_j), Eq. 2 to the letter, up to J;
            "mean": the same divided by J.
            Outside the box every mask is 0, whatever the mode: a base mask of zero would give
            sigmoid(0) = 1/2 for each sub-region there.
        channel_map: channel of sub-region (row u, column v) of r1 columns: "grid" u * m + v, so
            that a channel always means the same offset in the box; "first" u * r1 + v.
        divide: False uses all M scores for every instance (the ablation without attention).

    Raises:
        ValueError: an unknown mode or channel map.
    """

    def __init__(
        self,
        *,
        max_div: int = 6,
        cell: float = 50.0,
        mode: str = "sum_sigmoid_outer",
        channel_map: str = "grid",
        divide: bool = True,
    ) -> None:
        if mode not in LOGIT_MODES + PROBABILITY_MODES:
            raise ValueError(f"mode: expected {LOGIT_MODES + PROBABILITY_MODES}, found {mode!r}")
        if channel_map not in CHANNEL_MAPS:
            raise ValueError(f"channel_map: expected {CHANNEL_MAPS}, found {channel_map!r}")
        self.max_div = max_div
        self.cell = cell
        self.mode = mode
        self.channel_map = channel_map
        self.divide = divide

    def divisions(self, boxes: Tensor) -> Tuple[Tensor, Tensor]:
        """Columns r1 and rows r2 of each box (P, 4): two (P,) int64 in [1, m]."""
        if not self.divide:
            full = torch.full_like(boxes[:, 0], self.max_div, dtype=torch.int64)
            return full, full
        size = boxes[:, 2:] - boxes[:, :2]
        columns, rows = (size / self.cell).ceil().long().clamp(1, self.max_div).unbind(dim=1)
        return columns, rows

    def used_channels(self, boxes: Tensor) -> Tensor:
        """Which of the M channels each box uses: (P, M) bool, J of them True."""
        columns, rows = self.divisions(boxes)
        index = torch.arange(self.max_div**2, device=boxes.device)  # (M,)
        if self.channel_map == "first":
            return index < (columns * rows)[:, None]
        u, v = index // self.max_div, index % self.max_div
        return (u < rows[:, None]) & (v < columns[:, None])

    def raw(self, scores: Tensor, bases: Tensor, boxes: Tensor, stride: float) -> Tensor:
        """Blend, before the box indicator.

        Args:
            scores: (P, M), at each instance's location.
            bases: (M, h, w) base masks of the frame.
            boxes: (P, 4) XYXY, input pixels.
            stride: input pixels per pixel of the base masks.

        Returns:
            (P, h, w) float: logits in the modes with one sigmoid per pixel, else the (mean) sum of
            sigmoids.
        """
        scores, bases = scores.float(), bases.float()
        used = self.used_channels(boxes)
        if self.mode == "sum_sigmoid_outer":
            # (P, M) x (M, h * w) -> (P, h * w) -> (P, h, w)
            return ((scores * used) @ bases.flatten(1)).view(-1, *bases.shape[1:])
        if self.mode == "subregion":
            return self._own_cell(scores, bases, boxes, stride)
        inside = box_indicator(boxes, bases.shape[1:], stride)
        total = torch.zeros_like(inside, dtype=torch.float32)
        # One channel at a time: all at once would need J times the memory.
        for score, base, is_used in zip(scores.unbind(1), bases, used.unbind(1)):
            term = torch.sigmoid(score[:, None, None] * base * inside)
            total = total + term * is_used[:, None, None]
        return total / used.sum(1)[:, None, None] if self.mode == "mean" else total

    def pixel_loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Binary cross entropy of each value of ``raw`` with ``target`` in {0, 1}, same shape."""
        if self.mode in LOGIT_MODES:
            return F.binary_cross_entropy_with_logits(raw, target, reduction="none")
        probability = raw.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
        return F.binary_cross_entropy(probability, target, reduction="none")

    def masks(self, scores: Tensor, bases: Tensor, boxes: Tensor, stride: float) -> Tensor:
        """Mask values (P, h, w): 0 outside the box, above 1/2 on the object; see ``raw``."""
        values = self.raw(scores, bases, boxes, stride)
        if self.mode in LOGIT_MODES:
            values = values.sigmoid()
        return values * box_indicator(boxes, bases.shape[1:], stride)

    def _own_cell(self, scores: Tensor, bases: Tensor, boxes: Tensor, stride: float) -> Tensor:
        """a_j B_j of the sub-region j in which each pixel lies, (P, h, w)."""
        height, width = bases.shape[1:]
        columns, rows = self.divisions(boxes)
        v = self._cell_index(boxes[:, 0], boxes[:, 2], columns, width, stride)  # (P, w)
        u = self._cell_index(boxes[:, 1], boxes[:, 3], rows, height, stride)  # (P, h)
        per_row = columns if self.channel_map == "first" else torch.full_like(columns, self.max_div)
        channel = u[:, :, None] * per_row[:, None, None] + v[:, None, :]  # (P, h, w)
        flat = channel.flatten(1)  # (P, h * w)
        base = bases.flatten(1).gather(0, flat)  # (M, h * w) at (P, h * w)
        return (scores.gather(1, flat) * base).view_as(channel)

    @staticmethod
    def _cell_index(low: Tensor, high: Tensor, count: Tensor, size: int, stride: float) -> Tensor:
        """Sub-region index (P, size) of each pixel along one axis, clamped to the box's own."""
        centres = pixel_centres(size, stride, low.device)
        extent = (high - low).clamp(min=1e-6)
        position = (centres - low[:, None]) * (count / extent)[:, None]
        return torch.minimum(position.floor().long().clamp(min=0), count[:, None] - 1)
