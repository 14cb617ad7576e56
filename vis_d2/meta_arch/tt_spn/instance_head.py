"""Masks of an object from its features over the whole clip, by convolutions in space and time."""

from torch import nn

from .mask_head import group_norm

__all__ = ["build_instance_head"]


def build_instance_head(channels: int) -> nn.Sequential:
    """Three dilated 3 x 3 x 3 convolutions and a linear one: (P, channels, T, h, w) to one channel.

    Args:
        channels: even; hidden layers have half as many.
    """
    hidden = channels // 2
    layers = []
    for width in (channels, hidden, hidden):
        layers += [
            nn.Conv3d(width, hidden, 3, padding=2, dilation=2),
            group_norm(4, hidden),
            nn.GELU(),
        ]
    return nn.Sequential(*layers, nn.Conv3d(hidden, 1, 1))
