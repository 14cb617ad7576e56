"""From attention maps to mask features at stride 4, frame by frame and query by query."""

from math import gcd
from typing import List, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .deform_conv import DeformConv

__all__ = ["MaskHead", "group_norm"]


def group_norm(groups: int, channels: int) -> nn.GroupNorm:
    """Group normalisation with ``groups`` groups, or the most that divide both numbers."""
    return nn.GroupNorm(gcd(groups, channels), channels)


class MaskHead(nn.Module):
    """A feature pyramid whose coarsest level is a frame's memory and a query's attention maps.

    Queries of one frame share the memory and the backbone's maps. A convolution of channels side by
    side is the sum of a convolution of each, so that of the first layer only the part over the
    attention maps, 8 of 392 channels, is computed for each query: ``shared`` gives the rest.

    Args:
        channels: C of the memory, a multiple of 16. Levels have C / 2, C / 4, C / 8 and the result
            C / 16 channels.
        num_maps: attention maps per query.
        level_channels: of the backbone's maps at strides 16, 8 and 4.
    """

    def __init__(self, *, channels: int, num_maps: int, level_channels: Sequence[int]) -> None:
        super().__init__()
        widths = [channels // 2, channels // 4, channels // 8, channels // 16]
        joined = channels + num_maps
        self.channels = channels
        self.lay1 = nn.Conv2d(joined, joined, 3, padding=1)
        self.gn1 = group_norm(8, joined)
        self.lay2 = nn.Conv2d(joined, widths[0], 3, padding=1)
        self.gn2 = group_norm(8, widths[0])
        self.lay3 = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.gn3 = group_norm(8, widths[1])
        self.lay4 = nn.Conv2d(widths[1], widths[2], 3, padding=1)
        self.gn4 = group_norm(8, widths[2])
        self.conv_offset = nn.Conv2d(widths[2], 18, 1)  # (dy, dx) of each of 3 x 3 taps
        self.dcn = DeformConv(widths[2], widths[3])
        self.gn5 = group_norm(8, widths[3])
        self.adapter1 = nn.Conv2d(level_channels[0], widths[0], 1)
        self.adapter2 = nn.Conv2d(level_channels[1], widths[1], 1)
        self.adapter3 = nn.Conv2d(level_channels[2], widths[2], 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)
        nn.init.kaiming_uniform_(self.dcn.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv_offset.weight)

    def shared(self, memory: Tensor, levels: Sequence[Tensor]) -> List[Tensor]:
        """What all queries of a frame have in common.

        Args:
            memory: (F, C, h, w).
            levels: of the same frames, (F, c, h', w') at strides 16, 8 and 4.

        Returns:
            Four maps of the F frames, at strides 32, 16, 8 and 4.
        """
        base = F.conv2d(memory, self.lay1.weight[:, : self.channels], self.lay1.bias, padding=1)
        adapters = (self.adapter1, self.adapter2, self.adapter3)
        return [base] + [adapter(level) for adapter, level in zip(adapters, levels)]

    def forward(self, attention: Tensor, frames: Tensor, shared: Sequence[Tensor]) -> Tensor:
        """Features of P pairs of a query and a frame.

        Args:
            attention: (P, num_maps, h, w).
            frames: (P,) int64, which of the F frames.
            shared: of ``shared``.

        Returns:
            (P, C / 16, h', w') at stride 4.
        """
        maps = F.conv2d(attention, self.lay1.weight[:, self.channels :], padding=1)
        x = F.gelu(self.gn1(shared[0][frames] + maps))
        x = F.gelu(self.gn2(self.lay2(x)))
        x = F.gelu(self.gn3(self.lay3(_add_upsampled(x, shared[1], frames))))
        x = F.gelu(self.gn4(self.lay4(_add_upsampled(x, shared[2], frames))))
        x = _add_upsampled(x, shared[3], frames)
        return F.gelu(self.gn5(self._deform(x)))

    def _deform(self, x: Tensor) -> Tensor:
        offset = self.conv_offset(x)
        # The operator wants one type, and half-precision offsets would be as coarse as a pixel.
        with torch.autocast(x.device.type, enabled=False):
            return self.dcn(x.float(), offset.float())


def _add_upsampled(x: Tensor, level: Tensor, frames: Tensor) -> Tensor:
    """x (P, c, h, w), each pixel repeated to the size of its frame's ``level`` (F, c, h', w')."""
    return level[frames] + F.interpolate(x, size=level.shape[-2:], mode="nearest")
