"""From decoded pixels and codes to classes and mask logits, and the auxiliary semantic head."""

import math
from typing import Dict

import torch
from detectron2.layers import Conv2d, DepthwiseSeparableConv2d
from torch import Tensor, nn
from torch.nn import functional as F

from .norms import Norms

__all__ = ["PixelHead", "SemanticHead", "SlotHeads"]

SMALL_STD = 0.01


class PixelHead(nn.Module):
    """Unit feature vectors for the pixels.

    Args:
        channels: of the decoded map.
        mask_dim: of the features.
        norms: makes normalisations.
    """

    def __init__(self, *, channels: int, mask_dim: int, norms: Norms) -> None:
        super().__init__()
        self.mix = DepthwiseSeparableConv2d(
            channels,
            channels,
            kernel_size=5,
            padding=2,
            norm1=norms,
            activation1=F.relu,
            norm2=norms,
            activation2=F.relu,
        )
        self.out = Conv2d(channels, mask_dim, 1, bias=False, norm=norms(mask_dim))
        nn.init.trunc_normal_(self.out.weight, std=SMALL_STD)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, mask_dim, h, w), of length 1 at every pixel."""
        return F.normalize(self.out(self.mix(x)).float(), dim=1)


class SlotHeads(nn.Module):
    """Classes and mask logits of the slots.

    Args:
        pixels: makes features of pixels.
        code_dim: channels of the code.
        mask_dim: channels of pixel features and filters.
        num_classes: K; class K is empty.
        empty_prior: probability of the empty class at the start, in (0, 1).
        logit_scale: spread of the mask logits at the start. Large ones saturate the softmax before
            anything is learned, small ones take long to grow.
        background: the masks get another channel, with a learned filter, behind the slots.
        norms: of the filters and the logits.
    """

    def __init__(
        self,
        *,
        pixels: PixelHead,
        code_dim: int,
        mask_dim: int,
        num_classes: int,
        empty_prior: float,
        logit_scale: float,
        background: bool,
        norms: Norms,
    ) -> None:
        super().__init__()
        self.pixels = pixels
        self.filters = nn.Sequential(
            Conv2d(code_dim, code_dim, 1, bias=False, norm=norms(code_dim), activation=F.relu),
            Conv2d(code_dim, mask_dim, 1, bias=False, norm=norms(mask_dim)),
        )
        self.classes = nn.Sequential(
            Conv2d(code_dim, code_dim, 1, activation=F.relu),
            Conv2d(code_dim, num_classes + 1, 1),
        )
        nn.init.trunc_normal_(self.classes[1].weight, std=SMALL_STD)
        nn.init.zeros_(self.classes[1].bias)
        with torch.no_grad():
            self.classes[1].bias[-1] = math.log(num_classes * empty_prior / (1 - empty_prior))
        self.background = nn.Parameter(torch.randn(mask_dim)) if background else None
        self.logit_norm = norms.logits(logit_scale)

    def forward(self, decoded: Tensor, code: Tensor) -> Dict[str, Tensor]:
        """Predict.

        Args:
            decoded: (B, C', h, w).
            code: (B, C, L, 1).

        Returns:
            ``pred_logits`` (B, L, K + 1); ``pred_masks`` (B, L, h, w), or L + 1 with the
            background last: logits of a softmax over that axis; ``pixel_features`` (B, D, h, w).
        """
        features = self.pixels(decoded)
        filters = self.filters(code)[..., 0]  # (B, D, L, 1) -> (B, D, L)
        if self.background is not None:
            last = self.background[None, :, None].expand(len(filters), -1, -1)
            filters = torch.cat([filters, last.to(filters.dtype)], dim=2)
        # (B, L, h * w), seen as one channel: all slots share one factor
        logits = torch.einsum("bdl,bdp->blp", filters, features.flatten(2).to(filters.dtype))
        logits = self.logit_norm(logits[:, None])[:, 0]
        return {
            "pred_logits": self.classes(code)[..., 0].transpose(1, 2),  # (B, K + 1, L, 1)
            "pred_masks": logits.unflatten(2, tuple(features.shape[-2:])),
            "pixel_features": features,
        }


class SemanticHead(nn.Module):
    """Class of each pixel from the encoded frame; for training only.

    Args:
        channels: of the coarse map.
        low_channels: of the fine map.
        low_dim: channels to which the fine map is reduced.
        hidden: channels between.
        num_classes: K; class K is the background.
        norms: makes normalisations.
    """

    def __init__(
        self,
        *,
        channels: int,
        low_channels: int,
        low_dim: int,
        hidden: int,
        num_classes: int,
        norms: Norms,
    ) -> None:
        super().__init__()
        self.reduce = self._block(channels, hidden, 3, norms)
        self.low = self._block(low_channels, low_dim, 1, norms)
        self.fuse = self._block(hidden + low_dim, hidden, 3, norms)
        self.out = Conv2d(hidden, num_classes + 1, 1)
        nn.init.trunc_normal_(self.out.weight, std=SMALL_STD)
        nn.init.zeros_(self.out.bias)

    @staticmethod
    def _block(channels: int, out: int, kernel: int, norms: Norms) -> Conv2d:
        return Conv2d(
            channels, out, kernel, padding=kernel // 2, bias=False, norm=norms(out),
            activation=F.relu,
        )  # fmt: skip

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """(B, C2, h2, w2) and (B, C5, h, w) to logits (B, K + 1, h2, w2)."""
        y, low = self.reduce(high), self.low(low)
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=True)
        return self.out(self.fuse(torch.cat([y, low], dim=1)))
