"""Positions as sines and cosines, over any axes of a padded map."""

import math
from typing import Sequence

import torch
from torch import Tensor

__all__ = ["sine_encoding"]


def sine_encoding(
    valid: Tensor,
    channels: Sequence[int],
    *,
    temperature: float = 10000.0,
    scale: float = 2 * math.pi,
    offset: float = 0.0,
    eps: float = 1e-6,
) -> Tensor:
    """Sine encoding of the position of every cell among the valid ones, axis by axis.

    Along each axis a cell is at ``(c + offset) / (last + eps) * scale``, where c is the number of
    valid cells up to and with it (1, 2, ...) and ``last`` the count at the end of its line. Of the
    n channels of an axis, number 2k is the sine and number 2k + 1 the cosine of that position
    divided by ``temperature ** (2k / n)``.

    Source: "End-to-End Object Detection with Transformers", for one more axis "End-to-End Video
    Instance Segmentation with Transformers"; ``offset=-0.5`` (the middle of a cell) is the form of
    "Deformable DETR".

    Args:
        valid: (B, *axes) bool, True = real, False = padding; usually (B, H, W) or (B, T, H, W).
        channels: channels of each axis, even; 0 leaves an axis out.
        temperature: ratio of the longest wavelength to the shortest, for many channels.
        scale: position of the last valid cell, in radians; 2 pi makes it one full turn.
        offset: added to the count.
        eps: keeps a line without valid cells finite; what such cells get has no meaning.

    Returns:
        (B, sum(channels), *axes) float32, the channels in the order of the axes.

    Raises:
        ValueError: channels are odd or negative, or not one number per axis of ``valid``, or
            ``valid`` is not boolean.
    """
    if valid.dtype != torch.bool:
        raise ValueError(f"valid is {valid.dtype}, expected torch.bool (True = real)")
    if len(channels) != valid.dim() - 1:
        raise ValueError(
            f"channels {list(channels)} for valid of shape {tuple(valid.shape)}: expected one "
            f"number for each of its {valid.dim() - 1} axes after the batch"
        )
    if any(n % 2 or n < 0 for n in channels):
        raise ValueError(f"channels are {list(channels)}, expected even numbers")
    encodings = []
    for dim, size in enumerate(channels, start=1):
        # Whole numbers: their cumulative sum is the same in every run, also on a GPU.
        count = valid.cumsum(dim)
        last = count.narrow(dim, -1, 1)
        position = (count.float() + offset) / (last.float() + eps) * scale
        encodings.append(_sines(position, size, temperature))
    return torch.cat(encodings, dim=1)


def _sines(position: Tensor, channels: int, temperature: float) -> Tensor:
    """(B, *axes) -> (B, channels, *axes)."""
    exponents = torch.arange(0, channels, 2, device=position.device).float() / max(channels, 1)
    # (channels / 2, 1, ..., 1)
    periods = (temperature**exponents).view(-1, *[1] * (position.dim() - 1))
    angles = position[:, None] / periods
    # (B, channels / 2, 2, *axes) -> (B, channels, *axes): sine and cosine take turns
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1, 2)
