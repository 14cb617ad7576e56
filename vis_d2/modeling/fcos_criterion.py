"""Training of the FCOS detector: which location learns which object, and the three losses."""

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import torch
from detectron2.structures import Instances
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor, nn
from torch.nn import functional as F

from .fcos import FCOSOutputs, LocationGrid
from .losses import box_log_loss, global_mean

__all__ = ["FCOSCriterion", "Positives", "assign_locations", "centerness_targets"]


@dataclass
class Positives:
    """The P locations that learn an object.

    Attributes:
        frames: (P,) int64, frame in the batch, ascending.
        locations: (P,) int64, index into the grid.
        objects: (P,) int64, row in the frame's ground truth.
        classes: (P,) int64, the object's class.
        boxes: (P, 4) the predicted box, XYXY, pixels; carries gradient.
        gt_boxes: (P, 4) the object's box.
        centerness: (P,) target in [0, 1].
    """

    frames: Tensor
    locations: Tensor
    objects: Tensor
    classes: Tensor
    boxes: Tensor
    gt_boxes: Tensor
    centerness: Tensor


def _side_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Left, top, right, bottom from points (..., 2) to the sides of boxes (..., 4)."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def assign_locations(
    grid: LocationGrid, boxes: Tensor, size_limits: Sequence[float], radius: float
) -> Tensor:
    """Give each location at most one object.

    A location may learn an object when it lies strictly inside both the box and the square of
    ``radius`` strides around the box's centre, and when the farthest side of the box is as far
    away as the level is responsible for. Of several objects the one with the smallest box wins.

    Args:
        grid: R locations on L levels.
        boxes: (N, 4) XYXY, pixels.
        size_limits: L - 1 ascending distances in pixels between the levels' responsibilities; a
            distance on a limit belongs to both.
        radius: half the side of the square, in strides.

    Returns:
        (R,) int64, row of the object, -1 for background.
    """
    if len(boxes) == 0:
        return torch.full_like(grid.levels, -1)
    limits = boxes.new_tensor([-1.0, *size_limits, float("inf")])
    points = grid.points[:, None]  # (R, 2) -> (R, 1, 2)
    sides = _side_distances(points, boxes[None])  # (R, N, 4)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    off_centre = (points - centre).abs().amax(dim=2)  # (R, N)
    reach = sides.amax(dim=2)
    candidate = (
        (sides.amin(dim=2) > 0)
        & (off_centre < radius * grid.strides[:, None])
        & (reach >= limits[grid.levels, None])
        & (reach <= limits[grid.levels + 1, None])
    )
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).expand_as(reach)
    smallest, rows = area.masked_fill(~candidate, float("inf")).min(dim=1)
    return rows.masked_fill(smallest.isinf(), -1)


def centerness_targets(points: Tensor, boxes: Tensor) -> Tensor:
    """How central points (P, 2) lie in boxes (P, 4): 1 at the centre, 0 at a side; (P,)."""
    left, top, right, bottom = _side_distances(points, boxes).unbind(dim=1)
    ratio_x = torch.minimum(left, right) / torch.maximum(left, right)
    ratio_y = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (ratio_x * ratio_y).clamp(min=0).sqrt()


class FCOSCriterion(nn.Module):
    """Assigns locations and computes the class, box and centerness losses.

    Args:
        size_limits: see ``assign_locations``.
        radius: see ``assign_locations``.
        focal_alpha: weight of the positive class.
        focal_gamma: exponent that fades well-classified locations out.
        box_loss: "giou" or "iou", see ``box_log_loss``.
        normalizer: of the class loss: "positives" of this batch, or "moving_positives", their
            exponential moving average over iterations.
    """

    def __init__(
        self,
        *,
        size_limits: Sequence[float],
        radius: float = 1.5,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_loss: str = "giou",
        normalizer: str = "positives",
    ) -> None:
        super().__init__()
        if normalizer not in ("positives", "moving_positives"):
            raise ValueError(
                f"normalizer: expected 'positives' or 'moving_positives', found {normalizer!r}"
            )
        self.size_limits = tuple(size_limits)
        self.radius = radius
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.box_loss = box_loss
        self.moving = normalizer == "moving_positives"
        if self.moving:
            self.register_buffer("positives_mean", torch.tensor(100.0))

    def forward(
        self, outputs: FCOSOutputs, targets: List[Instances]
    ) -> Tuple[Dict[str, Tensor], Positives]:
        """Losses of F frames.

        Args:
            outputs: of the head.
            targets: F Instances with ``gt_boxes`` and ``gt_classes``, visible objects only.

        Returns:
            ``loss_cls``, ``loss_box``, ``loss_ctr``, scalars with a gradient also when no frame
            has an object; and the positives, for the losses of further branches.
        """
        positives = self._positives(outputs, targets)
        labels = torch.zeros_like(outputs.logits, dtype=torch.float32)
        labels[positives.frames, positives.locations, positives.classes] = 1
        num_positives = global_mean(labels.sum(), floor=1.0)
        weight = positives.centerness
        box_loss = box_log_loss(positives.boxes, positives.gt_boxes, self.box_loss)
        centerness = outputs.centerness[positives.frames, positives.locations].float()
        losses = {
            "loss_cls": sigmoid_focal_loss(
                outputs.logits.float(), labels, self.focal_alpha, self.focal_gamma, "sum"
            )
            / self._class_normalizer(num_positives),
            "loss_box": (box_loss * weight).sum() / global_mean(weight.sum(), floor=1e-6),
            "loss_ctr": F.binary_cross_entropy_with_logits(centerness, weight, reduction="sum")
            / num_positives,
        }
        return losses, positives

    def _class_normalizer(self, num_positives: Tensor) -> Tensor:
        if not self.moving:
            return num_positives
        self.positives_mean.mul_(0.9).add_(num_positives, alpha=0.1)
        return self.positives_mean.clone()

    def _positives(self, outputs: FCOSOutputs, targets: List[Instances]) -> Positives:
        grid = outputs.grid
        found = []
        for target in targets:
            matched = assign_locations(grid, target.gt_boxes.tensor, self.size_limits, self.radius)
            locations = (matched >= 0).nonzero().squeeze(1)  # (p, 1) -> (p,)
            found.append((locations, matched[locations]))
        frames = torch.cat([torch.full_like(f[0], i) for i, f in enumerate(found)])
        locations = torch.cat([f[0] for f in found])
        gt_boxes = torch.cat([t.gt_boxes.tensor[f[1]] for t, f in zip(targets, found)])
        return Positives(
            frames=frames,
            locations=locations,
            objects=torch.cat([f[1] for f in found]),
            classes=torch.cat([t.gt_classes[f[1]] for t, f in zip(targets, found)]),
            boxes=outputs.boxes(frames, locations),
            gt_boxes=gt_boxes,
            centerness=centerness_targets(grid.points[locations], gt_boxes),
        )
