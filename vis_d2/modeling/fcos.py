"""The FCOS detector (Tian et al., ICCV 2019): head, locations and decoding.

Letters beside the common ones: F frames in a batch, R locations of all levels together.
"""

import math
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.layers import batched_nms, get_norm
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "FCOSDetector",
    "FCOSHead",
    "FCOSOutputs",
    "LocationGrid",
    "Scale",
    "conv_block",
    "flatten_maps",
]


@dataclass
class LocationGrid:
    """The R locations of all levels, level by level, row-major within a level.

    Attributes:
        points: (R, 2) float, x and y in pixels of the padded input.
        strides: (R,) float, pixels between neighbours on the location's level.
        levels: (R,) int64, index of the level.
        sizes: (h, w) of each level.
    """

    points: Tensor
    strides: Tensor
    levels: Tensor
    sizes: List[Tuple[int, int]]

    @classmethod
    def build(
        cls, sizes: Sequence[Tuple[int, int]], strides: Sequence[int], device: torch.device
    ) -> "LocationGrid":
        """Location (ix, iy) of a level stands at (ix * s + s // 2, iy * s + s // 2)."""
        points, spacing, levels = [], [], []
        for level, ((height, width), stride) in enumerate(zip(sizes, strides)):
            x = torch.arange(width, device=device) * stride + stride // 2
            y = torch.arange(height, device=device) * stride + stride // 2
            grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
            points.append(torch.stack([grid_x.flatten(), grid_y.flatten()], dim=1).float())
            spacing.append(torch.full((height * width,), float(stride), device=device))
            levels.append(torch.full((height * width,), level, device=device))
        return cls(torch.cat(points), torch.cat(spacing), torch.cat(levels), list(sizes))

    def split(self, values: Tensor) -> List[Tensor]:
        """Cut (..., R) into one (..., h * w) per level."""
        return list(values.split([height * width for height, width in self.sizes], dim=-1))


@dataclass
class FCOSOutputs:
    """What the head says at each location of each frame.

    Attributes:
        grid: the locations.
        logits: (F, R, K) class logits.
        distances: (F, R, 4) left, top, right, bottom from the location to the box's sides, >= 0,
            in strides of the level.
        centerness: (F, R) logits.
    """

    grid: LocationGrid
    logits: Tensor
    distances: Tensor
    centerness: Tensor

    def boxes(self, frames: Tensor, locations: Tensor) -> Tensor:
        """Boxes (n, 4), XYXY, pixels of the padded input, at n pairs of frame and location."""
        points = self.grid.points[locations]
        reach = self.distances[frames, locations].float() * self.grid.strides[locations, None]
        return torch.cat([points - reach[:, :2], points + reach[:, 2:]], dim=1)


class Scale(nn.Module):
    """A learnable factor."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(value))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.scale


def conv_block(in_channels: int, channels: int, norm: str, kernel_size: int = 3) -> List[nn.Module]:
    """Convolution, normalisation (left out where ``norm`` is empty) and ReLU.

    "GN" has 32 groups as in FCOS, and groups of four channels where the layer is narrower than
    128: with 32 groups it would normalise single channels.
    """
    layers: List[nn.Module] = [
        nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2)
    ]
    if norm == "GN":
        layers.append(nn.GroupNorm(min(32, max(channels // 4, 1)), channels))
    elif norm:
        layers.append(get_norm(norm, channels))
    layers.append(nn.ReLU())
    return layers


def flatten_maps(maps: List[Tensor]) -> Tensor:
    """Levels of (F, C, h, w) -> (F, R, C)."""
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)


class FCOSHead(nn.Module):
    """Two towers, shared by all levels, and their outputs.

    Args:
        in_features: names of the levels, fine to coarse.
        strides: their strides in pixels.
        channels: of the features and of the towers.
        num_classes: K.
        num_convs: convolutions per tower.
        norm: of the towers; "GN" or a name that detectron2's ``get_norm`` knows, "" for none.
        prior_prob: class probability everywhere at the start of training.
        use_scale: multiply the box output by a learnable factor per level.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str],
        strides: Sequence[int],
        channels: int,
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        prior_prob: float = 0.01,
        use_scale: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.strides = tuple(strides)
        self.num_classes = num_classes
        self.cls_tower = self._tower(channels, num_convs, norm)
        self.bbox_tower = self._tower(channels, num_convs, norm)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.ctrness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.ModuleList(Scale() if use_scale else nn.Identity() for _ in in_features)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    @staticmethod
    def _tower(channels: int, num_convs: int, norm: str) -> nn.Sequential:
        blocks = [conv_block(channels, channels, norm) for _ in range(num_convs)]
        return nn.Sequential(*[layer for block in blocks for layer in block])

    def box_features(self, features: Dict[str, Tensor]) -> List[Tensor]:
        """Output of the box tower, (F, C, h, w) per level."""
        return [self.bbox_tower(features[name]) for name in self.in_features]

    def forward(
        self, features: Dict[str, Tensor], box_features: Optional[List[Tensor]] = None
    ) -> FCOSOutputs:
        """Detect on F frames.

        Args:
            features: (F, C, h, w) by level name.
            box_features: what ``box_features`` gave for the same frames, if it ran already.
        """
        if box_features is None:
            box_features = self.box_features(features)
        logits = [self.cls_logits(self.cls_tower(features[name])) for name in self.in_features]
        distances = [
            F.relu(scale(self.bbox_pred(x))) for scale, x in zip(self.scales, box_features)
        ]
        centerness = [self.ctrness(x) for x in box_features]
        sizes = [tuple(x.shape[-2:]) for x in box_features]
        grid = LocationGrid.build(sizes, self.strides, box_features[0].device)
        return FCOSOutputs(
            grid,
            flatten_maps(logits),
            flatten_maps(distances),
            flatten_maps(centerness).squeeze(2),  # (F, R, 1) -> (F, R)
        )


class FCOSDetector:
    """From outputs to detections: score, top locations per level, non-maximum suppression.

    Args:
        score_threshold: detections score above it, class probability times centerness.
        pre_nms_topk: locations kept per level, by their best class.
        nms_threshold: IoU above which the lower score of one class is suppressed.
        max_detections: kept per frame.
        class_agnostic: suppress across classes, too, so that an object whose class is in doubt is
            one detection and not two.
    """

    def __init__(
        self,
        *,
        score_threshold: float = 0.03,
        pre_nms_topk: int = 200,
        nms_threshold: float = 0.5,
        max_detections: int = 10,
        class_agnostic: bool = False,
    ) -> None:
        self.score_threshold = score_threshold
        self.pre_nms_topk = pre_nms_topk
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.class_agnostic = class_agnostic

    def __call__(self, outputs: FCOSOutputs, frame: int, image_size: Tuple[int, int]) -> Instances:
        """Detections of one frame, in descending score.

        Args:
            outputs: of F frames.
            frame: which of them.
            image_size: (height, width) of the un-padded input; boxes are clipped to it.

        Returns:
            Instances of n detections with ``pred_boxes``, ``scores`` (n,), ``pred_classes`` (n,)
            and ``locations`` (n,) int64, index into the grid. One location may give several
            classes.
        """
        centerness = outputs.centerness[frame].float().sigmoid()  # (R,)
        scores = outputs.logits[frame].float().sigmoid() * centerness[:, None]  # (R, K)
        kept = self._candidates(outputs.grid, scores.amax(dim=1))
        row, classes = (scores[kept] > self.score_threshold).nonzero(as_tuple=True)
        locations = kept[row]
        scores = scores[locations, classes]
        boxes = Boxes(outputs.boxes(torch.full_like(locations, frame), locations))
        boxes.clip(image_size)
        real = boxes.nonempty()
        boxes, scores, classes, locations = (
            boxes[real],
            scores[real],
            classes[real],
            locations[real],
        )
        groups = torch.zeros_like(classes) if self.class_agnostic else classes
        keep = batched_nms(boxes.tensor, scores, groups, self.nms_threshold)
        keep = keep[: self.max_detections]
        return Instances(
            image_size,
            pred_boxes=boxes[keep],
            scores=scores[keep],
            pred_classes=classes[keep],
            locations=locations[keep],
        )

    def _candidates(self, grid: LocationGrid, best: Tensor) -> Tensor:
        """Indices (n,) of the best locations of each level."""
        start, kept = 0, []
        for scores in grid.split(best):
            top = scores.topk(min(self.pre_nms_topk, len(scores)))
            kept.append(top.indices[top.values > self.score_threshold] + start)
            start += len(scores)
        return torch.cat(kept)
