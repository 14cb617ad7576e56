"""Deformable convolution that learns at a usable speed on a CPU, too."""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

__all__ = ["DeformConv"]

CHUNK_PIXELS = 1 << 16  # of the output at a time; each has 9 vectors, one per tap


class DeformConv(DeformConv2d):
    """Deformable convolution of 3 x 3 taps without modulation, stride 1, the size kept, no bias.

    Weights, offsets and values are torchvision's, whose compiled operator runs on a GPU. Its
    gradients on a CPU took 8 times as long as those of the form used there: a 1 x 1 convolution
    gives every tap's share of the result, and each share is sampled where its tap looks. Sampling
    is linear, so that the order does not matter, and there are fewer channels after than before.

    Args:
        in_channels: of the input.
        out_channels: of the result.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: (P, c, h, w) float32.
            offset: (P, 18, h, w) float32, (dy, dx) of each tap, in pixels, row by row.

        Returns:
            (P, out_channels, h, w).
        """
        if x.is_cuda:
            return super().forward(x, offset)
        step = max(CHUNK_PIXELS // (x.shape[2] * x.shape[3]), 1)
        parts = [self._sample(*part) for part in zip(x.split(step), offset.split(step))]
        return torch.cat(parts)

    def _sample(self, x: Tensor, offset: Tensor) -> Tensor:
        pairs, _, height, width = x.shape
        # (o, c, 3, 3) -> (3, 3, o, c) -> (9 * o, c, 1, 1)
        taps = self.weight.permute(2, 3, 0, 1).flatten(0, 2)[..., None, None]
        # (P, 9 * o, h, w) -> (P * 9, o, h, w)
        shares = F.conv2d(x, taps).view(pairs * 9, -1, height, width)
        where = offset.view(pairs, 9, 2, height, width).movedim(2, -1)  # (P, 9, h, w, 2)
        where = (where + _taps(height, width, x.device)).flip(-1)  # (y, x) -> (x, y)
        # Pixels to [-1, 1] over the whole map: pixel i has its centre at i + 0.5.
        size = torch.tensor([width, height], dtype=x.dtype, device=x.device)
        grid = ((2 * where + 1) / size - 1).flatten(0, 1)  # (P * 9, h, w, 2)
        sampled = F.grid_sample(shares, grid, align_corners=False)
        # (P * 9, o, h, w) -> (P, 9, o, h, w) -> (P, o, h, w)
        return sampled.unflatten(0, (pairs, 9)).sum(dim=1)


def _taps(height: int, width: int, device: torch.device) -> Tensor:
    """Where the nine taps of each pixel look without an offset, (9, h, w, 2) as (y, x)."""
    step = torch.arange(-1.0, 2.0, device=device)
    y = step[:, None, None, None] + torch.arange(float(height), device=device)[:, None]
    x = step[None, :, None, None] + torch.arange(float(width), device=device)
    y, x = torch.broadcast_tensors(y, x)  # (3, 3, h, w) each
    return torch.stack([y, x], dim=-1).flatten(0, 1)
