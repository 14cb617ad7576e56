"""Self-attention of pixels along columns, then along rows, with learned relative positions."""

from typing import Optional

import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from .dual_path import Projection, attend
from .norms import Norms

__all__ = ["AxialAttention", "AxialBlock", "AxialBottleneck", "LineAttention"]

POSITION_STD = 1.0


class LineAttention(nn.Module):
    """Attention among the cells of each line; relative positions speak in all three terms.

    Args:
        channels: of the input.
        key_dim: channels of keys and queries, all heads together.
        value_dim: channels of values, all heads together.
        num_heads: number of heads, which share their positions.
        span: distances of ``span - 1`` and more cells look alike.
        norms: makes normalisations.
    """

    def __init__(
        self,
        *,
        channels: int,
        key_dim: int,
        value_dim: int,
        num_heads: int,
        span: int,
        norms: Norms,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.span = span
        self.query = Projection(channels, key_dim, norms)
        self.key = Projection(channels, key_dim, norms)
        self.value = Projection(channels, value_dim, norms)
        depth = key_dim // num_heads
        self.similarity_norms = nn.ModuleList(
            norms.similarity(num_heads, depth) for _ in ("content", "query", "key")
        )
        self.value_norms = nn.ModuleList(norms(value_dim) for _ in ("content", "position"))
        self.query_positions = _positions(span, depth)
        self.key_positions = _positions(span, depth)
        self.value_positions = _positions(span, value_dim // num_heads)

    def forward(self, x: Tensor, valid: Optional[Tensor] = None) -> Tensor:
        """Attend along the last axis.

        Args:
            x: (B, C, lines, n).
            valid: (B, lines, n) bool, cells that may be looked at; None: all.

        Returns:
            (B, value_dim, lines, n).
        """
        batch, _, lines, n = x.shape
        q, k, v = (self._heads(f(x)) for f in (self.query, self.key, self.value))
        at = torch.arange(n, device=x.device)
        distance = (at[None] - at[:, None]).clamp(1 - self.span, self.span - 1) + self.span - 1
        q_at, k_at, v_at = (
            table[distance].to(v.dtype)  # (n, n, depth)
            for table in (self.query_positions, self.key_positions, self.value_positions)
        )
        terms = (
            torch.einsum("bhdi,bhdj->bhij", q, k),
            torch.einsum("bhdi,ijd->bhij", q, q_at),
            torch.einsum("bhdj,ijd->bhij", k, k_at),
        )
        similarity = sum(norm(term) for norm, term in zip(self.similarity_norms, terms))
        if valid is not None:
            valid = valid.flatten(0, 1)  # (B, lines, n) -> (B * lines, n)
            # A line of nothing but padding looks at itself: a softmax over nothing is no number.
            valid = (valid | ~valid.any(dim=1, keepdim=True))[:, None, None]
        weights = attend(similarity, valid).to(v.dtype)
        found = (
            torch.einsum("bhij,bhdj->bhdi", weights, v),
            torch.einsum("bhij,ijd->bhdi", weights, v_at),
        )
        # (B * lines, heads, d, n) -> (B * lines, value_dim, n, 1)
        out = sum(norm(y.flatten(1, 2)[..., None]) for norm, y in zip(self.value_norms, found))
        # -> (B, lines, value_dim, n) -> (B, value_dim, lines, n)
        return out[..., 0].unflatten(0, (batch, lines)).transpose(1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, C, lines, n) -> (B * lines, heads, C / heads, n)."""
        return x.transpose(1, 2).flatten(0, 1).unflatten(1, (self.num_heads, -1))


def _positions(span: int, depth: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * span - 1, depth), std=POSITION_STD))


class AxialAttention(nn.Module):
    """Attention along the columns of a map, then along its rows.

    Args:
        channels: of the input.
        key_dim: channels of keys and queries.
        value_dim: channels of the result.
        num_heads: heads of each of the two.
        span: see ``LineAttention``.
        norms: makes normalisations.
    """

    def __init__(
        self,
        *,
        channels: int,
        key_dim: int,
        value_dim: int,
        num_heads: int,
        span: int,
        norms: Norms,
    ) -> None:
        super().__init__()
        shared = {
            "key_dim": key_dim,
            "value_dim": value_dim,
            "num_heads": num_heads,
            "span": span,
            "norms": norms,
        }
        self.columns = LineAttention(channels=channels, **shared)
        self.rows = LineAttention(channels=value_dim, **shared)

    def forward(self, x: Tensor, valid: Optional[Tensor] = None) -> Tensor:
        """(B, C, h, w) to (B, value_dim, h, w); ``valid`` (B, h, w) bool."""
        turned = None if valid is None else valid.transpose(1, 2)
        x = self.columns(x.transpose(2, 3), turned).transpose(2, 3)  # columns as lines, and back
        return self.rows(x, valid)


class AxialBlock(nn.Module):
    """Axial attention as a residual branch of its own, silent at the start.

    Args:
        channels: of the map.
        inner: channels inside the branch.
        drop_path: probability that a sample goes without it.
        attention: from ``inner`` to ``inner`` channels.
        norms: makes normalisations.
    """

    def __init__(
        self,
        *,
        channels: int,
        inner: int,
        drop_path: float,
        attention: AxialAttention,
        norms: Norms,
    ) -> None:
        super().__init__()
        self.reduce = Projection(channels, inner, norms)
        self.attention = attention
        self.expand = Projection(inner, channels, norms, scale=0.0)
        self.drop = StochasticDepth(drop_path, "row")  # per sample

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """(B, C, h, w) and (B, h, w) bool to (B, C, h, w), not negative."""
        y = F.relu(self.attention(F.relu(self.reduce(x)), valid))
        return F.relu(x + self.drop(self.expand(y)))


class AxialBottleneck(nn.Module):
    """A bottleneck block of a ResNet with axial attention for its 3x3 convolution.

    Args:
        block: gives its other layers, under the names that they have in it.
        attention: from and to the block's inner channels.

    Raises:
        ValueError: the 3x3 convolution has a stride, which attention has not.
    """

    def __init__(self, block: BottleneckBlock, attention: AxialAttention) -> None:
        super().__init__()
        if block.conv2.stride != (1, 1):
            raise ValueError(
                "MODEL.HITF.PIXEL_ATTN: 'replace' needs a res5 of stride 1; set "
                "MODEL.RESNETS.RES5_DILATION to 2"
            )
        self.conv1 = block.conv1
        self.conv2 = attention
        self.conv3 = block.conv3
        self.shortcut = block.shortcut

    def forward(self, x: Tensor, valid: Optional[Tensor] = None) -> Tensor:
        """(B, C, h, w) to (B, C', h', w'); ``valid`` (B, h', w') bool."""
        y = F.relu(self.conv2(F.relu(self.conv1(x)), valid))
        return F.relu(self.conv3(y) + (x if self.shortcut is None else self.shortcut(x)))
