"""Attention over the frames of a clip, cell by cell, within a scale and then across two."""

from dataclasses import dataclass
from typing import Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_d2.layers import MultiheadAttention, checkpointed, sine_encoding

__all__ = ["BlockSwitches", "SplitAttention"]

Size = Tuple[int, int]
MOST_CELLS = 2**16 - 1


@dataclass(frozen=True)
class BlockSwitches:
    """Parts of the split attention.

    Attributes:
        intra: attention within a scale.
        inter: attention of a scale with the next coarser one.
        concat: how the two meet: "token" side by side in 2 T tokens, "channel" mixed into T tokens.

    Raises:
        ValueError: neither attention, or no such ``concat``.
    """

    intra: bool = True
    inter: bool = True
    concat: str = "token"

    def __post_init__(self) -> None:
        if not (self.intra or self.inter):
            raise ValueError("split attention: expected intra or inter, found neither")
        if self.concat not in ("token", "channel"):
            raise ValueError(f"concat: expected 'token' or 'channel', found {self.concat!r}")


class _Intra(nn.Module):
    """Attention of n cells over their T frames, and a feed-forward network."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attn = MultiheadAttention(channels=dim, num_heads=num_heads)
        self.norm = nn.LayerNorm(dim)
        self.ffn = _feed_forward(dim, ffn_dim, dropout)

    def forward(self, x: Tensor, pos: Optional[Tensor] = None) -> Tensor:
        """x (n, T, d), pos (T, d) for queries and keys: (n, T, d)."""
        placed = x if pos is None else x + pos
        x = self.norm(x + self.attn(placed, placed, x))
        return x + self.ffn(x)


class _Inter(nn.Module):
    """Attention of n cells to their own frames and to those of a coarser scale at their place.

    The coarser scale only gives keys and values: its own queries would be thrown away.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float, concat: str) -> None:
        super().__init__()
        self.align = nn.Linear(dim, dim)
        self.merge = nn.Linear(2 * dim, dim) if concat == "channel" else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = MultiheadAttention(channels=dim, num_heads=num_heads)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = _feed_forward(dim, ffn_dim, dropout)

    def forward(self, fine: Tensor, coarse: Tensor, pos: Optional[Tensor] = None) -> Tensor:
        """fine and coarse (n, T, d), both aligned, pos (T, d): (n, T, d)."""
        if self.merge is not None:
            # 2 x (n, T, d) -> (n, T, 2 d) -> (n, T, d)
            fine = self.merge(torch.cat([fine, coarse], dim=-1))
            value = self.norm1(fine)
            key = query = value if pos is None else value + pos
        else:
            value = self.norm1(torch.cat([fine, coarse], dim=1))  # 2 x (n, T, d) -> (n, 2 T, d)
            key = value if pos is None else value + torch.cat([pos, pos])
            query = key[:, : fine.shape[1]]
        x = fine + self.dropout(self.attn(query, key, value))
        return x + self.ffn(self.norm2(x))


def _feed_forward(dim: int, hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
    )


class SplitAttention(nn.Module):
    """What the frames of a clip have to say to each other, to add to an encoder layer's attention.

    A sequence is one cell over T frames; its cost is linear in cells, and frames have no order.
    Across scales a cell also sees the next coarser one, resized to its scale; the coarsest scale
    sees its own input instead. Source: the figures of "Video Instance Segmentation via Multi-scale
    Spatio-temporal Split Attention Transformer" (2022), which leave widths and axes open.

    Args:
        channels: C of the clip.
        dim: d, channels inside, a multiple of ``num_heads``.
        num_heads: of both attentions.
        ffn_ratio: hidden width of the feed-forward networks, in d.
        dropout: of the feed-forward networks and of the attention across scales.
        blocks: which attentions there are.
        num_levels: scales.
        share_scales: the same two attentions for all scales; the projections from C to d and back
            are shared in any case.
        gate_init: factor of the result, per channel, at the start; with 0 the result is 0.
        temporal_pe: sine encoding of the frame's number, which gives frames an order.
        chunk: cells times heads that an attention takes at a time, and at most 65,535 cells, more
            than which CUDA's kernels do not take; 0: all. Without gradients it bounds the memory.
        recompute: store the input only, and recompute the rest in the backward pass.

    Raises:
        ValueError: d cannot be divided among the heads, or is odd and frames have an encoding.
    """

    def __init__(
        self,
        *,
        channels: int = 256,
        dim: int = 64,
        num_heads: int = 8,
        ffn_ratio: float = 2,
        dropout: float = 0.1,
        blocks: BlockSwitches = BlockSwitches(),  # noqa: B008, it is frozen
        num_levels: int = 4,
        share_scales: bool = True,
        gate_init: float = 0.0,
        temporal_pe: bool = False,
        chunk: int = 65536,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if temporal_pe and dim % 2:
            raise ValueError(f"dim: a frame's encoding needs an even number, found {dim}")
        self.dim = dim
        self.temporal_pe = temporal_pe
        self.cells = min(max(chunk // num_heads, 1), MOST_CELLS) if chunk else 0
        self.recompute = recompute
        self.reduce = nn.Linear(channels, dim)
        sizes = (dim, num_heads, int(ffn_ratio * dim), dropout)
        count = 1 if share_scales else num_levels
        self.intra = nn.ModuleList(_Intra(*sizes) for _ in range(count if blocks.intra else 0))
        self.inter = nn.ModuleList(
            _Inter(*sizes, blocks.concat) for _ in range(count if blocks.inter else 0)
        )
        self.expand = nn.Linear(dim, channels)
        self.gate = nn.Parameter(torch.full((channels,), float(gate_init)))

    def forward(self, x: Tensor, shapes: Sequence[Size], valid: Optional[Tensor] = None) -> Tensor:
        """What to add to the clip.

        Args:
            x: (B, T, S, C), the cells of all scales, from fine to coarse.
            shapes: (h, w) of each scale.
            valid: (B, S) bool, cells that are no padding; None: all.

        Returns:
            (B, T, S, C), zero at padding, which no other cell looks at.
        """
        run = checkpointed(self._forward, self) if self.recompute else self._forward
        return run(x, shapes, valid)

    def _forward(self, x: Tensor, shapes: Sequence[Size], valid: Optional[Tensor]) -> Tensor:
        pos = self._positions(x) if self.temporal_pe else None
        areas = [h * w for h, w in shapes]
        # (B, T, S, C) -> (B, T, S, d) -> (B, S, T, d) -> (B, s, T, d) of each scale
        raw = self.reduce(x).transpose(1, 2).split(areas, dim=1)
        masks = [None] * len(areas) if valid is None else valid.split(areas, dim=1)
        levels = list(raw)
        if self.intra:
            levels = [
                self._in_chunks(_of(self.intra, i), [level], pos) for i, level in enumerate(levels)
            ]
        if self.inter:
            levels = [
                self._across(_of(self.inter, i), levels, raw, shapes, masks, i, pos)
                for i in range(len(levels))
            ]
        # (B, s, T, d) -> (B, S, T, d) -> (B, T, S, d)
        out = torch.cat(levels, dim=1).transpose(1, 2).contiguous()
        # The gate in the weights: the result before it, as large as the clip, is never stored.
        weight, bias = self.gate[:, None] * self.expand.weight, self.gate * self.expand.bias
        out = F.linear(out, weight, bias)
        return out if valid is None else out.masked_fill_(~valid[:, None, :, None], 0.0)

    def _positions(self, x: Tensor) -> Tensor:
        """(T, d), the frames' shares of the clip: a longer clip is not farther than any seen."""
        frames = torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device)
        return sine_encoding(frames, [self.dim], offset=-0.5)[0].T

    def _across(
        self,
        block: _Inter,
        levels: List[Tensor],
        raw: Sequence[Tensor],
        shapes: Sequence[Size],
        masks: Sequence[Optional[Tensor]],
        i: int,
        pos: Optional[Tensor],
    ) -> Tensor:
        """Scale i (B, s, T, d) after its attention to the next coarser one."""
        if i + 1 < len(levels):
            coarse = block.align(levels[i + 1])
            coarse = _resized(coarse, shapes[i + 1], shapes[i], masks[i + 1])
        else:
            coarse = block.align(raw[i])
        return self._in_chunks(block, [block.align(levels[i]), coarse], pos)

    def _in_chunks(
        self, block: Callable[..., Tensor], levels: List[Tensor], pos: Optional[Tensor]
    ) -> Tensor:
        """A block over the cells of levels (B, s, T, d), some of them at a time."""
        batch, area = levels[0].shape[:2]
        cells = [level.flatten(0, 1) for level in levels]  # (B, s, T, d) -> (B * s, T, d)
        if not self.cells or batch * area <= self.cells:
            out = block(*cells, pos)
        else:
            parts = zip(*(level.split(self.cells) for level in cells))
            out = torch.cat([block(*part, pos) for part in parts])
        return out.unflatten(0, (batch, area))  # (B * s, T, d) -> (B, s, T, d)


def _of(blocks: nn.ModuleList, level: int) -> nn.Module:
    return blocks[min(level, len(blocks) - 1)]  # one for all, or one for each


def _resized(x: Tensor, size: Size, target: Size, valid: Optional[Tensor]) -> Tensor:
    """Cells (B, s', T, d) of a level of ``size`` bilinearly at the places of one of ``target``.

    Padding (``valid`` (B, s') False) has no weight; at the border of the frame the result is what
    it would be if the map ended there.
    """
    frames = x.shape[2:]
    # (B, h * w, T, d) -> (B, h, w, T * d) -> (B, T * d, h, w): channels last, without a copy
    x = x.flatten(2).unflatten(1, size).permute(0, 3, 1, 2)
    options = {"size": target, "mode": "bilinear", "align_corners": False}
    if valid is None:
        x = F.interpolate(x, **options)
    else:
        mask = valid.unflatten(1, size)[:, None]  # (B, h * w) -> (B, 1, h, w)
        weight = F.interpolate(mask.to(x.dtype), **options)
        x = F.interpolate(x.masked_fill(~mask, 0.0), **options)
        x = x / weight.masked_fill(weight == 0, 1.0)
    # (B, T * d, h, w) -> (B, h, w, T * d) -> (B, h * w, T, d)
    return x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, frames)
