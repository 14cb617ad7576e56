"""What stands beside the detector: sub-region scores, base masks and centre offsets.

Letters beside the common ones: F frames in a batch, R locations, M = m * m sub-region channels.
"""

from dataclasses import dataclass
from typing import Dict, List, Sequence

import fvcore.nn.weight_init as weight_init
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_d2.modeling import conv_block, flatten_maps

__all__ = ["AttentionScores", "BaseMasks", "BranchOutputs", "MovementHead", "SGNetBranches"]

# Channels of the movement head's input for C channels of the box tower.
MOVEMENT_INPUTS = {
    "cat": lambda channels: 2 * channels,
    "diff": lambda channels: channels,
    "single": lambda channels: channels,
    "ctr_only": lambda channels: 2,
}


@dataclass
class BranchOutputs:
    """What the branches say.

    Attributes:
        scores: (F, R, M) attention scores of the sub-regions.
        bases: (F, M, h, w) base masks.
        movement: (F, R, 2) x and y of the object's centre minus that in the reference frame, in
            strides of the level.
    """

    scores: Tensor
    bases: Tensor
    movement: Tensor


def _init_normal(module: nn.Module, std: float) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class AttentionScores(nn.Module):
    """Spatial attention module: one score per sub-region at each location, of any sign.

    Args:
        in_features: names of the levels; the weights are shared.
        channels: of the features.
        max_div: m.
        norm: see ``conv_block``.
    """

    def __init__(
        self, *, in_features: Sequence[str], channels: int, max_div: int, norm: str
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.sam_conv1 = nn.Sequential(*conv_block(channels, channels, norm))
        self.sam_conv2 = nn.Conv2d(channels, max_div**2, 3, padding=1)
        _init_normal(self, std=0.01)

    def forward(self, features: Dict[str, Tensor]) -> Tensor:
        """(F, C, h, w) by level name -> (F, R, M)."""
        return flatten_maps(
            [self.sam_conv2(self.sam_conv1(features[name])) for name in self.in_features]
        )


class BaseMasks(nn.Module):
    """Base mask module: fuses fine levels into M base masks per frame.

    The last two steps of the paper are a bilinear upsampling and a 1x1 convolution. Both are
    linear and the convolution has no bias, so they are swapped here: the same numbers at 1 / 16
    of the convolution's cost. No bias also lets it swap with the crop to an instance's box, which
    is why base masks are computed once per frame and not once per instance.

    Args:
        in_features: names of the levels, fine to coarse; the first sets the size.
        in_stride: stride of the first level in pixels.
        in_channels: of the features.
        channels: of the two 3x3 convolutions.
        max_div: m.
        upsample: factor from the first level to the base masks: 4, 2 or 1.
        norm: see ``conv_block``.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        in_stride: int,
        in_channels: int,
        channels: int,
        max_div: int,
        upsample: int,
        norm: str,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.upsample = upsample
        self.stride = in_stride / upsample
        self.refine = nn.Sequential(
            *conv_block(in_channels * len(self.in_features), channels, norm),
            *conv_block(channels, channels, norm),
        )
        self.reduce = nn.Conv2d(channels, max_div**2, 1)
        self.base_conv = nn.Conv2d(max_div**2, max_div**2, 1, bias=False)
        for layer in [*self.refine, self.reduce]:
            if isinstance(layer, nn.Conv2d):
                weight_init.c2_xavier_fill(layer)
        nn.init.normal_(self.base_conv.weight, std=0.01)

    def forward(self, features: Dict[str, Tensor]) -> Tensor:
        """(F, C, h, w) by level name -> (F, M, h * upsample, w * upsample) of the first level."""
        maps = [features[name] for name in self.in_features]
        size = maps[0].shape[-2:]
        maps[1:] = [self._resize(x, size) for x in maps[1:]]
        low = self.base_conv(F.relu(self.reduce(self.refine(torch.cat(maps, dim=1)))))
        if self.upsample == 1:
            return low
        return self._resize(low, (size[0] * self.upsample, size[1] * self.upsample))

    @staticmethod
    def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class MovementHead(nn.Module):
    """Tracking branch: how far the object of a location moved since the reference frame.

    Args:
        channels: of the box tower.
        inputs: "cat": the tower's features of both frames; "diff": their difference; "single":
            those of the current frame alone (which cannot know the past; for ablation);
            "ctr_only": the centerness maps of both frames.

    Raises:
        ValueError: unknown ``inputs``.
    """

    def __init__(self, *, channels: int, inputs: str = "cat") -> None:
        super().__init__()
        if inputs not in MOVEMENT_INPUTS:
            raise ValueError(f"inputs: expected one of {list(MOVEMENT_INPUTS)}, found {inputs!r}")
        self.inputs = inputs
        self.conv = nn.Conv2d(MOVEMENT_INPUTS[inputs](channels), 2, 1)
        _init_normal(self, std=0.001)

    @property
    def reads_centerness(self) -> bool:
        """Whether the cues are centerness maps instead of the tower's features."""
        return self.inputs == "ctr_only"

    def forward(self, current: List[Tensor], reference: List[Tensor]) -> Tensor:
        """Cues of both frames, (F, C, h, w) per level -> (F, R, 2) in strides."""
        return flatten_maps([self.conv(self._join(a, b)) for a, b in zip(current, reference)])

    def _join(self, current: Tensor, reference: Tensor) -> Tensor:
        if self.inputs == "single":
            return current
        if self.inputs == "diff":
            return current - reference
        return torch.cat([current, reference], dim=1)


class SGNetBranches(nn.Module):
    """The three branches together.

    Args:
        attention: scores.
        base_masks: base masks.
        movement: centre offsets.
    """

    def __init__(
        self, *, attention: AttentionScores, base_masks: BaseMasks, movement: MovementHead
    ) -> None:
        super().__init__()
        self.attention = attention
        self.base_masks = base_masks
        self.movement = movement

    def forward(
        self, features: Dict[str, Tensor], cues: List[Tensor], reference_cues: List[Tensor]
    ) -> BranchOutputs:
        """Run on F frames.

        Args:
            features: (F, C, h, w) by level name.
            cues: what the movement head reads of the same frames.
            reference_cues: the same of their reference frames.
        """
        return BranchOutputs(
            self.attention(features),
            self.base_masks(features),
            self.movement(cues, reference_cues),
        )
