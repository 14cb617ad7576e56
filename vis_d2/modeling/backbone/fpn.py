"""Feature pyramid whose upper levels come from P5."""

from typing import List

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ExtraLevels", "build_resnet_fpn_p5_backbone"]


class ExtraLevels(nn.Module):
    """One or two 3x3 stride-2 convolutions on P5: P6, and P7 from P6 after a ReLU.

    detectron2's own block always makes both and, from C5 by default; a level that no head reads
    would be a convolution without gradient.

    Args:
        channels: channels of P5 and of the levels made.
        num_levels: 1 or 2.
    """

    in_feature = "p5"  # read by detectron2's FPN, as is num_levels

    def __init__(self, channels: int, num_levels: int) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self.p6)
        if num_levels == 2:
            self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
            weight_init.c2_xavier_fill(self.p7)

    def forward(self, p5: Tensor) -> List[Tensor]:
        """(B, C, h, w) -> the levels above, each half the size of the one below, rounded up."""
        p6 = self.p6(p5)
        return [p6] if self.num_levels == 1 else [p6, self.p7(F.relu(p6))]


@BACKBONE_REGISTRY.register()
def build_resnet_fpn_p5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet and FPN with ``MODEL.FPN.TOP_LEVELS`` (0, 1 or 2) levels above P5.

    Called by ``build_backbone(cfg)`` when it is named in ``MODEL.BACKBONE.NAME``.

    Raises:
        ValueError: TOP_LEVELS is not 0, 1 or 2.
    """
    top_levels = cfg.MODEL.FPN.TOP_LEVELS
    if top_levels not in (0, 1, 2):
        raise ValueError(f"MODEL.FPN.TOP_LEVELS: expected 0, 1 or 2, found {top_levels}")
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=ExtraLevels(channels, top_levels) if top_levels else None,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
