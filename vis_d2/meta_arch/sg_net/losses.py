"""The five losses: the detector's three, masks and centre offsets (Eq. 4)."""

from typing import Dict, List, Mapping, Tuple

import torch
from detectron2.structures import BitMasks, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from vis_d2.modeling import FCOSCriterion, FCOSOutputs, Positives, global_mean, paired_iou

from .granularity import GranularityBlender, box_indicator
from .head import BranchOutputs

__all__ = [
    "MaskLoss",
    "SGNetCriterion",
    "frame_targets",
    "key_and_reference",
    "movement_loss",
    "shrink_masks",
]

LOSSES = ("loss_cls", "loss_box", "loss_ctr", "loss_mask", "loss_track")


def key_and_reference(
    num_clips: int, num_frames: int, label_reference: bool
) -> Tuple[List[int], List[int]]:
    """Which frames of a clip-major batch learn, and each one's reference.

    Frame t >= 1 of a clip learns with frame t - 1 as its reference. The only frame of a clip
    learns against itself. With ``label_reference`` frame 0 learns too, with frame 1 as reference.

    Returns:
        Indices of the F key frames and of their F references.
    """
    if num_frames == 1:
        pairs = [(0, 0)]
    else:
        pairs = [(0, 1)] if label_reference else []
        pairs += [(t, t - 1) for t in range(1, num_frames)]
    starts = [clip * num_frames for clip in range(num_clips)]
    return (
        [start + key for start in starts for key, _ in pairs],
        [start + reference for start in starts for _, reference in pairs],
    )


def frame_targets(key: Instances, reference: Instances) -> Instances:
    """Ground truth of one key frame.

    Args:
        key: N objects, rows aligned with ``reference``; see the clip dict.
        reference: the same objects in the reference frame.

    Returns:
        The objects visible in the key frame, with ``gt_boxes``, ``gt_classes``, ``gt_masks``,
        ``gt_movement`` (n, 2), box centre minus that in the reference frame in pixels, and
        ``gt_moves`` (n,) bool, whether the object is visible in the reference frame.
    """
    visible = key.gt_visible
    target = Instances(key.image_size)
    target.gt_boxes = key.gt_boxes[visible]
    target.gt_classes = key.gt_classes[visible]
    target.gt_masks = key.gt_masks[visible]
    movement = key.gt_boxes.get_centers() - reference.gt_boxes.get_centers()
    target.gt_movement = movement[visible]
    target.gt_moves = reference.gt_visible[visible]
    return target


def shrink_masks(masks: BitMasks, padded_size: Tuple[int, int], size: Tuple[int, int]) -> Tensor:
    """Pad masks (N, height, width) and shrink them bilinearly to (N, h, w) float, 0 or 1."""
    values = masks.tensor[:, None].float()
    pad_y, pad_x = (p - s for p, s in zip(padded_size, values.shape[-2:]))
    values = F.pad(values, (0, pad_x, 0, pad_y))
    if len(values) == 0:
        return values.new_zeros((0, *size))
    values = F.interpolate(values, size=size, mode="bilinear", align_corners=False)
    return (values[:, 0] > 0.5).float()


def movement_loss(
    movement: Tensor, targets: List[Instances], positives: Positives, unit: Tensor
) -> Tensor:
    """Mean absolute error of the offsets, summed over x and y (Eq. 4), over the positives whose
    object is visible in both frames.

    Args:
        movement: (P, 2) predicted, in strides.
        targets: of ``frame_targets``, one per frame.
        positives: P of them.
        unit: (P,) pixels by which target and prediction are divided: the stride, or 1 (then the
            prediction counts in pixels).
    """
    # An index (frame, object) becomes one row in the objects of all frames together.
    counts = torch.tensor([0] + [len(t) for t in targets[:-1]], device=movement.device)
    rows = counts.cumsum(0)[positives.frames] + positives.objects
    wanted = torch.cat([t.gt_movement for t in targets])[rows]
    valid = torch.cat([t.gt_moves for t in targets])[rows]
    error = (movement - wanted / unit[:, None]).abs().sum(dim=1)
    return (error * valid).sum() / global_mean(valid.sum(), floor=1.0)


class MaskLoss:
    """Binary cross entropy inside the box of each positive location.

    Args:
        blender: makes masks from scores and base masks.
        box_source: boxes that divide and crop: "pred", as in inference, or "gt".
        max_positives: per frame, drawn at random when there are more.
        weight: of a positive: "score_iou" (class probability times IoU of its box: early, badly
            placed boxes hardly count), "centerness", or "none".

    Raises:
        ValueError: unknown ``box_source`` or ``weight``.
    """

    def __init__(
        self,
        *,
        blender: GranularityBlender,
        box_source: str = "pred",
        max_positives: int = 200,
        weight: str = "score_iou",
    ) -> None:
        if box_source not in ("pred", "gt"):
            raise ValueError(f"box_source: expected 'pred' or 'gt', found {box_source!r}")
        if weight not in ("score_iou", "centerness", "none"):
            raise ValueError(
                f"weight: expected 'score_iou', 'centerness' or 'none', found {weight!r}"
            )
        self.blender = blender
        self.box_source = box_source
        self.max_positives = max_positives
        self.weight = weight

    def __call__(
        self,
        outputs: FCOSOutputs,
        branches: BranchOutputs,
        positives: Positives,
        targets: List[Instances],
        padded_size: Tuple[int, int],
    ) -> Tensor:
        """Mean over frames of the weighted mean over a frame's positives."""
        stride = padded_size[0] / branches.bases.shape[-2]
        weights = self._weights(outputs, positives)
        scores = branches.scores[positives.frames, positives.locations]  # (P, M)
        source = positives.boxes.detach() if self.box_source == "pred" else positives.gt_boxes
        # Nothing, summed: a gradient for every parameter also when no frame has an object.
        total = branches.bases[:0].float().sum() + scores[:0].float().sum()
        for f, target in enumerate(targets):
            height, width = target.image_size
            # Not by Boxes.clip, which raises where a box is not finite: the training loop stops
            # there, too, but tells the iteration and all losses. A box of NaN has no area here.
            boxes = source.minimum(source.new_tensor([width, height, width, height])).clamp(min=0)
            size = boxes[:, 2:] - boxes[:, :2]
            large = size.prod(dim=1) > stride**2  # more than one pixel of the base masks
            chosen = self._draw(((positives.frames == f) & large).nonzero().squeeze(1))
            if len(chosen) == 0:
                continue
            masks = shrink_masks(target.gt_masks, padded_size, branches.bases.shape[-2:])
            errors = self._errors(
                scores[chosen],
                branches.bases[f],
                boxes[chosen],
                masks[positives.objects[chosen]],
                stride,
            )
            weight = weights[chosen]
            weight = weight * len(chosen) / (weight.sum() + 1e-4)
            total = total + (errors * weight).sum() / len(chosen)
        return total / len(targets)

    def _errors(
        self, scores: Tensor, bases: Tensor, boxes: Tensor, masks: Tensor, stride: float
    ) -> Tensor:
        """Summed cross entropy in each box over the box's area, (P,)."""
        raw = self.blender.raw(scores, bases, boxes, stride)
        inside = box_indicator(boxes, bases.shape[1:], stride)
        errors = self.blender.pixel_loss(raw[inside], masks[inside])
        rows = inside.nonzero()[:, 0]
        area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) / stride**2
        return errors.new_zeros(len(boxes)).index_add(0, rows, errors) / area

    def _draw(self, indices: Tensor) -> Tensor:
        if len(indices) <= self.max_positives:
            return indices
        order = torch.randperm(len(indices), device=indices.device)
        return indices[order[: self.max_positives]]

    @torch.no_grad()
    def _weights(self, outputs: FCOSOutputs, positives: Positives) -> Tensor:
        if self.weight == "none":
            return torch.ones_like(positives.centerness)
        if self.weight == "centerness":
            return positives.centerness
        logits = outputs.logits[positives.frames, positives.locations, positives.classes]
        return logits.float().sigmoid() * paired_iou(positives.boxes, positives.gt_boxes)


class SGNetCriterion(nn.Module):
    """All losses of a batch of key frames.

    Args:
        detection: of the detector.
        mask: of the blended masks.
        track_norm: unit of the offsets: "stride" of the level, or "none" for pixels, whose error
            is tens of units and swamps the other losses unless its weight is 0.01 to 0.1.
        label_reference: the first frame of a clip learns too, with the second as its reference.
        weights: factor of each loss by name; 1 where absent.

    Raises:
        ValueError: unknown ``track_norm`` or a weight of a loss that does not exist.
    """

    def __init__(
        self,
        *,
        detection: FCOSCriterion,
        mask: MaskLoss,
        track_norm: str = "stride",
        label_reference: bool = False,
        weights: Mapping[str, float],
    ) -> None:
        super().__init__()
        if track_norm not in ("stride", "none"):
            raise ValueError(f"track_norm: expected 'stride' or 'none', found {track_norm!r}")
        unknown = set(weights) - set(LOSSES)
        if unknown:
            raise ValueError(f"weights: expected names of {LOSSES}, found {sorted(unknown)}")
        self.detection = detection
        self.mask = mask
        self.track_norm = track_norm
        self.label_reference = label_reference
        self.weights = dict(weights)

    def forward(
        self,
        outputs: FCOSOutputs,
        branches: BranchOutputs,
        targets: List[Instances],
        padded_size: Tuple[int, int],
    ) -> Dict[str, Tensor]:
        """Losses of F key frames.

        Args:
            outputs: of the detector.
            branches: of the branches.
            targets: of ``frame_targets``, F of them.
            padded_size: (height, width) of the network input.
        """
        losses, positives = self.detection(outputs, targets)
        losses["loss_mask"] = self.mask(outputs, branches, positives, targets, padded_size)
        movement = branches.movement[positives.frames, positives.locations].float()
        unit = outputs.grid.strides[positives.locations]
        if self.track_norm == "none":
            unit = torch.ones_like(unit)
        losses["loss_track"] = movement_loss(movement, targets, positives, unit)
        return {name: loss * self.weights.get(name, 1.0) for name, loss in losses.items()}
