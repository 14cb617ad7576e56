"""Where each query looks: attention of the queries of a frame over that frame."""

from typing import Optional

import torch
from torch import Tensor, nn

__all__ = ["AttentionMaps"]


class AttentionMaps(nn.Module):
    """Attention weights without values, for all frames at once.

    Args:
        channels: C.
        num_heads: maps per query.
        gain: factor on the weights. They are small beside other features, the smaller the larger
            the map is; what learns from them cannot do so quickly from random weights.
    """

    def __init__(self, *, channels: int, num_heads: int, gain: float = 1.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.gain = gain
        self.q_linear = nn.Linear(channels, channels)
        self.k_linear = nn.Linear(channels, channels)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor, memory: Tensor, valid: Optional[Tensor] = None) -> Tensor:
        """Maps of every query over its own frame.

        Args:
            states: (B, T, N, C), the queries of each frame.
            memory: (B, T, h, w, C).
            valid: (B, T, h, w) bool, pixels that are no padding; None: all.

        Returns:
            (B, T, N, heads, h, w) from 0, which padding has; they sum to the gain over heads, h
            and w.
        """
        height, width = memory.shape[2:4]
        # (B, T, N, C) -> (B, T, N, heads, d)
        queries = self.q_linear(states).unflatten(-1, (self.num_heads, -1))
        queries = queries * queries.shape[-1] ** -0.5
        # (B, T, h, w, C) -> (B, T, h * w, heads, d)
        keys = self.k_linear(memory.flatten(2, 3)).unflatten(-1, (self.num_heads, -1))
        logits = torch.einsum("btnkd,btpkd->btnkp", queries, keys)
        if valid is not None:
            padding = ~valid.flatten(2)[:, :, None, None]  # (B, T, h, w) -> (B, T, 1, 1, h * w)
            logits = logits.masked_fill(padding, float("-inf"))
        weights = self.gain * logits.flatten(3).softmax(-1)  # (B, T, N, heads * h * w)
        return weights.unflatten(-1, (self.num_heads, height, width))
