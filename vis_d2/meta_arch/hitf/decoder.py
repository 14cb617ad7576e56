"""detectron2's DeepLabV3+ decoder, for maps whose cells lie on pixel ``stride * i``."""

from typing import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.projects.deeplab import DeepLabV3PlusHead
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import Norms

__all__ = ["AlignedDecoder"]


class AlignedDecoder(DeepLabV3PlusHead):
    """Upsamples with corners aligned, and pools the frame without its padding.

    The parent upsamples as if cells were squares that tile the frame. Cells of an input of
    ``stride * k + 1`` pixels have their centres on pixels ``stride * i`` instead; the difference
    grows to 0.36 of a cell towards the border.

    Args:
        low: fine map, channels and stride.
        high: coarse map, channels and stride.
        low_dim: channels to which the fine map is reduced.
        channels: of the result.
        dilations: three, of the atrous pyramid, in cells.
        dropout: of its result.
        norms: makes normalisations.
    """

    def __init__(
        self,
        *,
        low: ShapeSpec,
        high: ShapeSpec,
        low_dim: int,
        channels: int,
        dilations: Sequence[int],
        dropout: float,
        norms: Norms,
    ) -> None:
        super().__init__(
            input_shape={"res2": low, "res5": high},
            project_channels=[low_dim],
            aspp_dilations=list(dilations),
            aspp_dropout=dropout,
            decoder_channels=[channels, channels],
            common_stride=low.stride,
            norm=norms,
            train_size=None,
            num_classes=None,
        )

    def forward(self, low: Tensor, high: Tensor, valid: Tensor) -> Tensor:
        """Decode.

        Args:
            low: (B, C2, h2, w2).
            high: (B, C5, h, w).
            valid: (B, h, w) bool, False for padding; some cell of each frame is valid.

        Returns:
            (B, C, h2, w2).
        """
        y = pyramid(self.decoder["res5"]["project_conv"], high, valid)
        low = self.decoder["res2"]["project_conv"](low)
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=True)
        return self.decoder["res2"]["fuse_conv"](torch.cat([low, y], dim=1))


def pyramid(aspp: nn.Module, x: Tensor, valid: Tensor) -> Tensor:
    """detectron2's ``ASPP`` with its image pooling over valid cells only: (B, C, h, w)."""
    *convolutions, pooling = aspp.convs
    weight = valid[:, None].to(x.dtype)
    mean = (x * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True)
    branches = [convolution(x) for convolution in convolutions]
    branches.append(pooling[1](mean).expand(-1, -1, *x.shape[-2:]))
    y = aspp.project(torch.cat(branches, dim=1))
    return F.dropout(y, aspp.dropout, training=aspp.training)
