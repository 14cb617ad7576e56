"""Masks from the RoIs of refined boxes."""

from typing import List

from detectron2.layers import get_norm
from torch import Tensor, nn
from torch.nn import functional as F

from .temporal_dynamic_conv import TemporalDynamicConv

__all__ = ["MaskHead"]


class MaskHead(nn.Module):
    """Temporal dynamic convolution of the mask RoIs, convolutions, a doubling, one logit map.

    Args:
        interaction: with filters of its own.
        channels: C.
        pool_size: side m of the RoIs; masks have side 2m.
        num_convs: 3x3 convolutions.
        num_masks: 1, or K for a mask per class.
        norm: a name that detectron2's ``get_norm`` knows.
    """

    def __init__(
        self,
        *,
        interaction: TemporalDynamicConv,
        channels: int,
        pool_size: int,
        num_convs: int,
        num_masks: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.inst_interact = interaction
        self.pool_size = pool_size
        layers: List[nn.Module] = []
        for _ in range(num_convs):
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
            layers += [nn.Sequential(conv, get_norm(norm, channels) or nn.Identity())]
        self.convs = nn.ModuleList(layers)
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.mask_logits = nn.Conv2d(channels, num_masks, 1)

    def forward(self, queries: Tensor, rois: Tensor, valid: Tensor) -> Tensor:
        """Make masks.

        Args:
            queries: (T, M, C), after attention.
            rois: (T, M, m * m, C).
            valid: (T, M) bool.

        Returns:
            (T, M, 1 or K, 2m, 2m) logits.
        """
        x = self.inst_interact(queries, rois, valid)
        # (T, M, m * m, C) -> (T * M, C, m, m)
        x = x.flatten(0, 1).transpose(1, 2).unflatten(2, (self.pool_size, self.pool_size))
        for conv in self.convs:
            x = F.relu(conv(x))
        logits = self.mask_logits(F.relu(self.upsample(x)))
        return logits.unflatten(0, rois.shape[:2])  # (T * M, ., ., .) -> (T, M, ., ., .)
