"""Temporal dynamic convolution: filters that a query makes, over RoIs of neighbouring frames."""

from typing import List, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TemporalDynamicConv"]

COSINE_EPS = 1e-6  # ReLU leaves all-zero vectors


class TemporalDynamicConv(nn.Module):
    """Two 1x1 convolutions whose filters come from the query of each frame (paper, Eq. 3).

    The filters of frame t run over the RoIs of t - 1, t and t + 1, each cut out with its own box.
    At every position the three results are averaged by a softmax of their cosine with the result
    of t itself. Neighbours that are beyond the clip, or not valid, take no part.

    Args:
        channels: C of queries and RoIs.
        hidden: channels between the two convolutions.
        temporal: False convolves the own frame alone ("still").
        temperature: the cosines are divided by it, > 0.
    """

    def __init__(
        self, *, channels: int, hidden: int, temporal: bool = True, temperature: float = 1.0
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"TDC_TAU: expected a number above 0, found {temperature}")
        self.channels = channels
        self.hidden = hidden
        self.temporal = temporal
        self.temperature = temperature
        self.dynamic_layer = nn.Linear(channels, 2 * channels * hidden)
        self.norm1 = nn.LayerNorm(hidden)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, queries: Tensor, rois: Tensor, valid: Tensor) -> Tensor:
        """Convolve.

        Time comes first here: the frames t - 1, t, t + 1 of all instances are then slices of one
        tensor, and no RoI is stored three times.

        Args:
            queries: (T, M, C), M = instances of all clips.
            rois: (T, M, S, C), S positions in row-major order.
            valid: (T, M) bool, frames that may be somebody's neighbour.

        Returns:
            (T, M, S, C), >= 0.
        """
        first, second = self._filters(queries)
        own = _batched_product(rois, first)
        if not self.temporal or len(rois) == 1:
            return self._finish(own, second)
        # Zeros stand for the neighbour that is missing, here where there are few channels: all
        # that follows, and its backward pass, then works on whole tensors.
        before = _pad_time(_batched_product(rois[:-1], first[1:]), (1, 0))
        after = _pad_time(_batched_product(rois[1:], first[:-1]), (0, 1))
        own, before, after = (self._finish(x, second) for x in (own, before, after))
        weights = self._weights(own, before, after, valid).to(own.dtype)[..., None]
        # In place, as each sum would be as large as all RoIs together.
        return (weights[0] * own).addcmul_(weights[1], before).addcmul_(weights[2], after)

    def _filters(self, queries: Tensor) -> List[Tensor]:
        first, second = self.dynamic_layer(queries).chunk(2, dim=-1)
        return [
            first.unflatten(-1, (self.channels, self.hidden)),  # (T, M, C * D) -> (T, M, C, D)
            second.unflatten(-1, (self.hidden, self.channels)),  # (T, M, D * C) -> (T, M, D, C)
        ]

    def _finish(self, x: Tensor, second: Tensor) -> Tensor:
        """From the first product, (T, M, S, D), to the result, (T, M, S, C)."""
        # In place: a norm's backward pass reads what went into it, not what came out.
        x = F.relu(self.norm1(x), inplace=True)
        return F.relu(self.norm2(_batched_product(x, second)), inplace=True)

    def _weights(self, own: Tensor, before: Tensor, after: Tensor, valid: Tensor) -> Tensor:
        """Shares of own frame, frame before and frame after, (3, T, M, S); they add up to 1."""
        nobody = torch.zeros_like(valid[:1])
        there = torch.stack(
            [
                torch.ones_like(valid),
                torch.cat([nobody, valid[:-1]]),
                torch.cat([valid[1:], nobody]),
            ]
        )
        # Half precision has too few digits for a cosine.
        with torch.autocast(own.device.type, enabled=False):
            own, before, after = own.float(), before.float(), after.float()
            length = _length(own)
            cosines = torch.stack(
                [torch.ones_like(length), _cosine(own, length, before), _cosine(own, length, after)]
            )
            cosines = cosines.masked_fill(~there[..., None], float("-inf"))
            return (cosines / self.temperature).softmax(dim=0)


def _batched_product(x: Tensor, filters: Tensor) -> Tensor:
    """(T, M, S, a) times (T, M, a, b): (T, M, S, b); slices over T are multiplied in place."""
    product = torch.bmm(x.flatten(0, 1), filters.flatten(0, 1))
    return product.unflatten(0, x.shape[:2])  # (T * M, S, b) -> (T, M, S, b)


def _pad_time(x: Tensor, frames: Tuple[int, int]) -> Tensor:
    """Zero frames before and after (T, M, S, D)."""
    return F.pad(x, (0, 0, 0, 0, 0, 0, *frames))


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1).clamp(min=COSINE_EPS)


def _cosine(a: Tensor, length: Tensor, b: Tensor) -> Tensor:
    """Of (..., C) vectors, those in ``a`` of known lengths (...)."""
    # Not F.cosine_similarity: it keeps two more tensors like a and b for its backward pass.
    return (a * b).sum(dim=-1) / (length * _length(b))
