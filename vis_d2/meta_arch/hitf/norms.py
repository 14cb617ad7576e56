"""Normalisations of the new layers: which one, and whether processes share their statistics."""

import math

import torch
from detectron2.layers import get_norm
from detectron2.utils import comm
from torch import Tensor, nn

from vis_d2.layers import ChannelNorm

__all__ = ["Norms", "Scaled", "batch_norm_name"]

KINDS = ("BN", "GN", "LN")


def batch_norm_name(device: str) -> str:
    """detectron2's name of the batch normalisation that fits the running processes.

    Args:
        device: ``MODEL.DEVICE``. torch's synchronised form runs on GPUs only.
    """
    if comm.get_world_size() == 1:
        return "BN"
    return "SyncBN" if device.startswith("cuda") else "naiveSyncBN"


class Norms:
    """Makes normalisations for maps (B, C, h, w); detectron2's layers take it as their ``norm``.

    Args:
        kind: "BN", "GN" or "LN" (over the channels of each position).
        batch_norm: detectron2's name of the batch normalisation, see ``batch_norm_name``.
        eps: of batch normalisation.
        momentum: share of a new batch in its running statistics.

    Raises:
        ValueError: unknown kind.
    """

    def __init__(
        self, *, kind: str, batch_norm: str = "BN", eps: float = 1e-3, momentum: float = 0.01
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {KINDS}, found {kind!r}")
        self.kind = kind
        self.batch_norm = batch_norm
        self.eps = eps
        self.momentum = momentum

    def __call__(self, channels: int, scale: float = 1.0) -> nn.Module:
        """A normalisation whose factor starts at ``scale``; 0 silences the branch it ends."""
        if self.kind == "LN":
            norm = ChannelNorm(channels)
        elif self.kind == "GN":
            norm = nn.GroupNorm(math.gcd(32, channels), channels)
        else:
            norm = get_norm(self.batch_norm, channels)
            norm.eps, norm.momentum = self.eps, self.momentum
        nn.init.constant_(norm.weight, scale)
        return norm

    def similarity(self, num_heads: int, depth: int) -> nn.Module:
        """For dot products (B, heads, q, k) of vectors of ``depth`` channels.

        Unscaled dot products are safe behind a batch normalisation per head only.
        """
        return self(num_heads) if self.kind == "BN" else Scaled(depth**-0.5)

    def logits(self, scale: float) -> nn.Module:
        """For mask logits as one channel (B, 1, slots, pixels); their spread at the start.

        Without batch normalisation filters are layer-normalised, and their products with unit
        vectors have a spread of 1 already.
        """
        return self(1, scale) if self.kind == "BN" else ScalarAffine(scale)


class Scaled(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class ScalarAffine(nn.Module):
    """Multiplies by a learned number and adds another."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(factor)))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias
