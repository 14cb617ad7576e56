"""Attention between a code of slots and the pixels of a frame, both ways at once (Eq. 1, 2).

Letters: L slots, n pixels, C channels of the code, Ck and Cv channels of keys and values over all
heads. Codes are (B, C, L, 1), maps (B, C, h, w), so that one kind of layer serves both.
"""

from dataclasses import dataclass
from typing import Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from .norms import Norms

__all__ = ["AttentionDims", "DualPathLayer", "Exchange", "Projection", "Retrieval", "attend"]


@dataclass(frozen=True)
class AttentionDims:
    """Widths of the layers.

    Attributes:
        code: channels of code and reduced pixels.
        key: channels of keys and queries, all heads together.
        value: channels of values, all heads together.
        heads: number of heads.
        ffn: hidden channels of the feed-forward network.
    """

    code: int
    key: int
    value: int
    heads: int
    ffn: int


class Projection(nn.Module):
    """A 1x1 convolution without bias, and its normalisation.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        norms: makes the normalisation.
        scale: factor of the normalisation at the start.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norms: Norms, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        nn.init.trunc_normal_(self.conv.weight, std=in_channels**-0.5)
        self.norm = norms(out_channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def attend(similarity: Tensor, valid: Optional[Tensor]) -> Tensor:
    """Softmax over the keys (..., k) of those that are valid, in full precision."""
    if valid is not None:
        similarity = similarity.masked_fill(~valid, float("-inf"))
    return similarity.float().softmax(-1)


class Retrieval(nn.Module):
    """Each query takes the mean of all values, weighted by one softmax over all keys.

    Args:
        dims: widths.
        norms: makes normalisations.
    """

    def __init__(self, dims: AttentionDims, norms: Norms) -> None:
        super().__init__()
        self.num_heads = dims.heads
        self.similarity_norm = norms.similarity(dims.heads, dims.key // dims.heads)
        self.value_norm = norms(dims.value)

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, valid: Optional[Tensor] = None
    ) -> Tensor:
        """Look up.

        Args:
            query: (B, Ck, q).
            keys: (B, Ck, k).
            values: (B, Cv, k).
            valid: (B, k) bool, keys that may be looked at, at least one; None: all.

        Returns:
            (B, Cv, q, 1), normalised and not negative.
        """
        # (B, C, n) -> (B, heads, C / heads, n)
        q, k, v = (x.unflatten(1, (self.num_heads, -1)) for x in (query, keys, values))
        similarity = self.similarity_norm(torch.einsum("bhdq,bhdk->bhqk", q, k))
        weights = attend(similarity, None if valid is None else valid[:, None, None])
        found = torch.einsum("bhqk,bhdk->bhdq", weights.to(v.dtype), v)
        # (B, heads, Cv / heads, q) -> (B, Cv, q, 1)
        return F.relu(self.value_norm(found.flatten(1, 2)[..., None]))


class FeedForward(nn.Module):
    """Two projections of the code around a ReLU, added to it."""

    def __init__(self, dims: AttentionDims, norms: Norms) -> None:
        super().__init__()
        self.first = Projection(dims.code, dims.ffn, norms)
        self.second = Projection(dims.ffn, dims.code, norms, scale=0.0)

    def forward(self, code: Tensor) -> Tensor:
        return self.second(F.relu(self.first(code)))


class Exchange(nn.Module):
    """Code and pixels look things up, side by side, and add what they find.

    All branches start at zero: a new layer is the identity for maps that are not negative.

    Args:
        channels: of the pixel map.
        dims: widths.
        norms: makes normalisations.
        drop_path: probability that a sample goes without a branch.
        to_code: the code looks up.
        to_pixels: the pixels look up.
    """

    def __init__(
        self,
        *,
        channels: int,
        dims: AttentionDims,
        norms: Norms,
        drop_path: float,
        to_code: bool = True,
        to_pixels: bool = True,
    ) -> None:
        super().__init__()
        self.drop = StochasticDepth(drop_path, "row")  # per sample
        self.code_retrieval = Retrieval(dims, norms) if to_code else None
        self.pixel_retrieval = Retrieval(dims, norms) if to_pixels else None
        if to_code:
            self.code_out = Projection(dims.value, dims.code, norms, scale=0.0)
            self.ffn = FeedForward(dims, norms)
        if to_pixels:
            self.pixel_out = Projection(dims.value, channels, norms, scale=0.0)

    def update_code(
        self, code: Tensor, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor
    ) -> Tensor:
        """The code (B, C, L, 1) after it looked up code and pixels, see ``Retrieval``."""
        found = self.code_out(self.code_retrieval(query, keys, values, valid))
        code = F.relu(code + self.drop(found))
        return F.relu(code + self.drop(self.ffn(code)))

    def update_pixels(self, pixels: Tensor, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The map (B, C, h, w) after its pixels looked up codes, see ``Retrieval``."""
        found = self.pixel_out(self.pixel_retrieval(query, keys, values))
        # (B, C, n, 1) -> (B, C, h, w); not negative, as residual blocks expect their input
        return F.relu(pixels + self.drop(found.reshape(pixels.shape)))


class DualPathLayer(nn.Module):
    """Attention within one frame: code to code and pixels, and pixels to code.

    Args:
        channels: of the pixel map.
        dims: widths.
        norms: makes normalisations.
        drop_path: probability that a sample goes without a branch.
    """

    def __init__(
        self, *, channels: int, dims: AttentionDims, norms: Norms, drop_path: float
    ) -> None:
        super().__init__()
        self.code_in = Projection(dims.code, dims.code, norms)
        self.pixel_in = Projection(channels, dims.code, norms)
        widths = (("query", dims.key), ("key", dims.key), ("value", dims.value))
        self.code = nn.ModuleDict({k: Projection(dims.code, w, norms) for k, w in widths})
        self.pixel = nn.ModuleDict({k: Projection(dims.code, w, norms) for k, w in widths})
        self.exchange = Exchange(channels=channels, dims=dims, norms=norms, drop_path=drop_path)

    def forward(self, pixels: Tensor, code: Tensor, valid: Tensor) -> Tuple[Tensor, Tensor]:
        """Update both from what both were.

        Args:
            pixels: (B, C', h, w), not negative.
            code: (B, C, L, 1).
            valid: (B, h, w) bool, False for padding.

        Returns:
            The two in the same shapes, not negative.
        """
        a, b = F.relu(self.code_in(code)), F.relu(self.pixel_in(pixels))
        # (B, C, L, 1) -> (B, C, L) and (B, C, h, w) -> (B, C, n)
        a = {name: layer(a).flatten(2) for name, layer in self.code.items()}
        b = {name: layer(b).flatten(2) for name, layer in self.pixel.items()}
        keys, values = (torch.cat([a[x], b[x]], dim=2) for x in ("key", "value"))
        seen = torch.cat([valid.new_ones(len(valid), code.shape[2]), valid.flatten(1)], dim=1)
        return (
            self.exchange.update_pixels(pixels, b["query"], a["key"], a["value"]),
            self.exchange.update_code(code, a["query"], keys, values, seen),
        )
