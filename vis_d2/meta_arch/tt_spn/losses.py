"""What a slot costs as an object's sequence of frames, and the losses of the matched ones.

Boxes are compared as shares of the frame without padding, so that a clip of any size counts alike.
"""

from typing import Dict, List, Mapping

import torch
from detectron2.utils import events
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from vis_d2.modeling import Match, Outputs, dice_coefficient, global_mean, paired_giou
from vis_d2.structures import TrackletTargets

__all__ = ["ClassLoss", "SequenceCost", "box_losses", "log_quality", "mask_losses", "num_pairs"]

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
SMOOTH = 1e-6  # of the IoU in matching


class SequenceCost:
    """Cost of every (slot, object) pair of a clip: means over frames.

    Class: minus the probability of the object's class. Boxes: the mean distance of the four
    coordinates, and minus the IoU. Masks, where there are some: the dice loss.

    Args:
        weights: factors "class", "l1", "iou" and "dice".
        visible_only: means over the frames that show the object; False: over all frames. A frame
            without the object then has an empty box in the corner, and costs nothing for its
            class: nobody is taught the class that stands there in the reference code.
    """

    def __init__(self, *, weights: Mapping[str, float], visible_only: bool = True) -> None:
        self.weights = dict(weights)
        self.visible_only = visible_only

    @torch.no_grad()
    def __call__(self, outputs: Outputs, targets: TrackletTargets) -> Tensor:
        """(N, T, ...) outputs and n objects to (N, n)."""
        shown = (targets.visible & targets.valid).float()  # (n, T)
        counted = shown if self.visible_only else torch.ones_like(shown)
        share = counted / counted.sum(dim=1, keepdim=True).clamp(min=1)
        probs = outputs["pred_logits"].float().softmax(-1)[..., targets.labels]  # (N, T, n)
        cost = -self.weights["class"] * torch.einsum("itj,jt->ij", probs, share * shown)
        if "pred_boxes_cxcywh" in outputs:
            boxes = outputs["pred_boxes_cxcywh"].float()[:, None]  # (N, 1, T, 4)
            truth = relative_boxes(targets.boxes, outputs["size"])[None]  # (1, n, T, 4)
            distance = (boxes - truth).abs().mean(-1)  # (N, n, T)
            pairs = self.weights["l1"] * distance - self.weights["iou"] * _iou(boxes, truth)
            cost = cost + (pairs * share).sum(-1)
        if "pred_masks" in outputs:
            dice = _pairwise_dice(outputs["pred_masks"], targets.masks)
            cost = cost + self.weights["dice"] * (dice * share).sum(-1)
        return cost


def relative_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (..., 4) XYXY in pixels to centre, width and height as shares of ``size`` (4,)."""
    return box_convert(boxes.float() / size, "xyxy", "cxcywh")


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes (..., 4) with centre and size, (...); 1 for two boxes without area."""
    one, other = (box_convert(x, "cxcywh", "xyxy") for x in (a, b))
    common = torch.minimum(one[..., 2:], other[..., 2:])
    common = common - torch.maximum(one[..., :2], other[..., :2])
    inter = common.clamp(min=0).prod(-1)
    union = a[..., 2:].prod(-1) + b[..., 2:].prod(-1) - inter
    return (inter + SMOOTH) / (union + SMOOTH)


def _pairwise_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss of logits (N, T, h, w) with masks (n, T, H, W) bool at the size of the logits."""
    small = F.interpolate(truth.float(), size=logits.shape[-2:], mode="area")
    probs = logits.float().sigmoid()
    common = torch.einsum("ithw,jthw->ijt", probs, small)
    mass = probs.sum((2, 3))[:, None] + small.sum((2, 3))[None]  # (N, n, T)
    return 1 - (2 * common + 1) / (mass + 1)


def _shown(target: TrackletTargets, objects: Tensor) -> Tensor:
    """Frames (m, T) that show each of the matched objects (m,)."""
    return target.visible[objects] & target.valid


class ClassLoss:
    """Cross entropy of every slot in every frame; frames without an object are "no object".

    Args:
        empty_weight: weight of "no object" in the weighted mean.
    """

    def __init__(self, empty_weight: float) -> None:
        self.empty_weight = empty_weight

    def __call__(
        self,
        outputs: Outputs,
        targets: List[TrackletTargets],
        matches: List[Match],
        number: Tensor,
    ) -> Dict[str, Tensor]:
        """``loss_ce``."""
        logits = outputs["pred_logits"].float()  # (B, N, T, K + 1)
        labels = target_labels(logits, targets, matches)
        weights = torch.ones_like(logits[0, 0, 0])
        weights[-1] = self.empty_weight
        # (B, N, T, K + 1) -> (B * N * T, K + 1)
        total = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weights, reduction="sum")
        return {"loss_ce": total / global_mean(weights[labels].sum(), floor=1e-6)}


def target_labels(logits: Tensor, targets: List[TrackletTargets], matches: List[Match]) -> Tensor:
    """Class of every slot in every frame, (B, N, T); K for "no object"."""
    empty = logits.shape[-1] - 1
    labels = torch.full(logits.shape[:3], empty, dtype=torch.int64, device=logits.device)
    for b, (target, (slots, objects)) in enumerate(zip(targets, matches)):
        known = target.labels[objects, None]
        labels[b, slots] = torch.where(_shown(target, objects), known, empty)
    return labels


def box_losses(
    outputs: Outputs, targets: List[TrackletTargets], matches: List[Match], number: Tensor
) -> Dict[str, Tensor]:
    """``loss_bbox``, the sum of four coordinates' distances, and ``loss_giou``."""
    pred, truth = [], []
    for b, (target, (slots, objects)) in enumerate(zip(targets, matches)):
        shown = _shown(target, objects)
        pred.append(outputs["pred_boxes_cxcywh"][b, slots][shown])
        truth.append(relative_boxes(target.boxes[objects], outputs["size"][b])[shown])
    boxes, true_boxes = torch.cat(pred).float(), torch.cat(truth)  # (p, 4)
    distance = (boxes - true_boxes).abs().sum()
    placed, true_placed = (box_convert(x, "cxcywh", "xyxy") for x in (boxes, true_boxes))
    giou = (1 - paired_giou(placed, true_placed)).sum()
    # With no pair at all the sums still hang on the boxes, at zero.
    nothing = outputs["pred_boxes_cxcywh"].sum() * 0.0
    return {"loss_bbox": distance / number + nothing, "loss_giou": giou / number + nothing}


def mask_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Focal and dice loss of p masks, sums over the masks: (2,).

    Args:
        logits: (p, h, w), resized to the masks' size first.
        truth: (p, H, W) bool.
    """
    values = F.interpolate(
        logits[:, None].float(), size=truth.shape[-2:], mode="bilinear", align_corners=False
    ).flatten(1)  # (p, 1, H, W) -> (p, H * W)
    masks = truth.flatten(1).float()
    focal = sigmoid_focal_loss(values, masks, ALPHA, GAMMA).mean(dim=1)
    dice = 1 - dice_coefficient(values.sigmoid(), masks)
    return torch.stack([focal.sum(), dice.sum()])


def num_pairs(targets: List[TrackletTargets], device: torch.device) -> Tensor:
    """What sums over masks are divided by: objects times frames, absent ones too; at least 1."""
    number = 0
    for target in targets:
        real = target.visible & target.valid
        number += int(real.any(dim=1).sum()) * int(target.valid.sum())
    return global_mean(torch.tensor(float(number), device=device), floor=1.0)


@torch.no_grad()
def log_quality(outputs: Outputs, targets: List[TrackletTargets], matches: List[Match]) -> None:
    """Write two curves, where a training loop keeps some.

    ``class_error``: matched (slot, frame) pairs whose best class is wrong, percent.
    ``cardinality_error``: difference of the number of (slot, frame) pairs with an object, as
    predicted and in truth, mean over clips.
    """
    try:
        storage = events.get_event_storage()
    except AssertionError:  # how detectron2 says that there is no storage
        return
    logits = outputs["pred_logits"]
    labels = target_labels(logits, targets, matches)
    best, empty = logits.argmax(-1), logits.shape[-1] - 1
    matched = labels != empty
    wrong = (best != labels)[matched].float().mean() if matched.any() else logits.new_zeros(())
    found = (best != empty).flatten(1).sum(1)
    there = torch.stack([(t.visible & t.valid).sum() for t in targets])
    storage.put_scalar("class_error", 100 * float(wrong))
    storage.put_scalar("cardinality_error", float((found - there).abs().float().mean()))
