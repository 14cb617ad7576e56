"""Encoder: deformable attention within frames, and beside it split attention over frames."""

from typing import Optional, Sequence

import torch
from torch import Tensor, nn

from vis_d2.layers import checkpointed, init_xavier

from .deform_attn import TwoWayDeformAttn
from .levels import Levels, frame_slices
from .split_attention import SplitAttention

__all__ = ["ClipEncoder", "EncoderLayer"]


class EncoderLayer(nn.Module):
    """Two attentions side by side and a feed-forward network, a norm after each.

    Args:
        channels: C.
        num_heads: of the deformable attention.
        num_points: per head and level.
        ffn_dim: hidden width of the feed-forward network.
        dropout: of the branches and of the hidden units.
        mssts: the split attention of this layer; None: there is none, or all layers share one.
        num_levels: levels of the maps.
    """

    def __init__(
        self,
        *,
        channels: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dim: int = 1024,
        dropout: float = 0.1,
        mssts: Optional[SplitAttention] = None,
        num_levels: int = 4,
    ) -> None:
        super().__init__()
        self.self_attn = TwoWayDeformAttn(
            channels=channels,
            num_levels=num_levels,
            num_heads=num_heads,
            num_points=num_points,
            second=False,
        )
        self.mssts = mssts
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        init_xavier(self.linear1)
        init_xavier(self.linear2)

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        reference: Tensor,
        levels: Levels,
        shared: Optional[SplitAttention] = None,
    ) -> Tensor:
        """Encode a clip once more.

        Args:
            x: (B, T, S, C), the cells of all levels.
            pos: (B, S, C), their positions, added to the queries.
            reference: (B, S, levels, 2), their places as shares of each level.
            levels: where the cells lie.
            shared: the split attention that all layers share.

        Returns:
            (B, T, S, C).
        """
        batch, length = x.shape[:2]
        split = shared if self.mssts is None else self.mssts
        said = None if split is None else split(x, levels.shapes, levels.valid).flatten(0, 1)
        padding = levels.padding(length)
        cells = x.flatten(0, 1)  # (B, T, S, C) -> (B * T, S, C)
        clip = torch.arange(batch, device=x.device).repeat_interleave(length)
        parts = [
            self._frames(
                cells[part],
                _by_frame(pos, clip[part]),
                _by_frame(reference, clip[part]),
                levels,
                None if padding is None else padding[part],
                None if said is None else said[part],
            )
            for part in frame_slices(len(cells), x.device)
        ]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.unflatten(0, (batch, length))  # (B * T, S, C) -> (B, T, S, C)

    def _frames(
        self,
        x: Tensor,
        pos: Tensor,
        reference: Tensor,
        levels: Levels,
        padding: Optional[Tensor],
        said: Optional[Tensor],
    ) -> Tensor:
        """Frames (F, S, C), to which the split attention has ``said`` (F, S, C)."""
        found = self.self_attn(x + pos, reference, x, levels.shapes, padding)
        if said is not None:
            found = found + said
        x = self.norm1(x + self.dropout(found))
        hidden = self.dropout(self.linear1(x).relu())
        return self.norm2(x + self.dropout(self.linear2(hidden)))


def _by_frame(x: Tensor, clip: Tensor) -> Tensor:
    """Rows ``clip`` (F,) of x (B, ...): (F, ...), without a copy where there is one clip."""
    return x.expand(len(clip), *x.shape[1:]) if len(x) == 1 else x[clip]


class ClipEncoder(nn.Module):
    """Encoder layers in a row.

    Args:
        layers: the layers.
        recompute: compute the layers again in the backward pass instead of storing activations.
        mssts: one split attention for all layers, which then have none of their own.
    """

    def __init__(
        self,
        *,
        layers: Sequence[EncoderLayer],
        recompute: bool = False,
        mssts: Optional[SplitAttention] = None,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.recompute = recompute
        self.mssts = mssts

    def forward(self, x: Tensor, pos: Tensor, levels: Levels) -> Tensor:
        """(B, T, S, C) with positions (B, S, C) -> (B, T, S, C), zero at padding."""
        reference = levels.grid().to(x)
        for layer in self.layers:
            run = checkpointed(layer, layer) if self.recompute else layer
            x = run(x, pos, reference, levels, self.mssts)
        if levels.valid is None:
            return x
        return x.masked_fill(~levels.valid[:, None, :, None], 0.0)  # (B, 1, S, 1)
