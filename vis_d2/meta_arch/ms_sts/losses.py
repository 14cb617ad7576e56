"""What a query costs as an object of the clip, and the losses of the matched queries.

Boxes are compared as shares of the frame without padding, so that a clip of any size counts alike.
"""

from typing import Dict, List, Mapping

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from vis_d2.modeling import (
    Match,
    Outputs,
    dice_coefficient,
    focal_cost,
    global_mean,
    paired_giou,
)
from vis_d2.structures import TrackletTargets

__all__ = ["BoxLosses", "ClassLoss", "ClipCost", "MaskLosses", "small_masks"]

EMPTY_WEIGHT = 0.1  # of the class "none" in the softmax loss
MASK_STRIDE, MASK_START = 4, 2  # masks are compared in every fourth pixel, from the third one on
SMALLEST = 1e-6  # coordinates and sides of an absent object's box


class ClipCost:
    """Cost of every (query, object) pair of a clip: class, distance of boxes, minus their GIoU.

    Class: what the focal loss charges the object's class more as a positive than as a negative;
    with "softmax" minus its probability. Boxes: one norm over all coordinates of all frames, and
    the mean of the frames' GIoU.

    Args:
        class_loss: "focal" or "softmax".
        weights: factors "class", "l1" and "giou".
        norm: p >= 1 of the norm.
        alpha: of the focal loss.
        gamma: of the focal loss.
        visible_only: boxes in frames that show the object, which then stand for all frames. False:
            in all frames; an absent object's box is empty, in the corner.
    """

    def __init__(
        self,
        *,
        class_loss: str = "focal",
        weights: Mapping[str, float],
        norm: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        visible_only: bool = False,
    ) -> None:
        self.class_loss = class_loss
        self.weights = dict(weights)
        self.norm = norm
        self.alpha, self.gamma = alpha, gamma
        self.visible_only = visible_only

    @torch.no_grad()
    def __call__(self, outputs: Outputs, targets: TrackletTargets) -> Tensor:
        """``pred_logits`` (N, K), ``pred_boxes`` (N, T, 4), ``size`` (4,), n objects: (N, n)."""
        share = _frame_shares(targets, self.visible_only)  # (n, T)
        boxes = outputs["pred_boxes"].float()[:, None]  # (N, 1, T, 4)
        truth = relative_boxes(targets.boxes, outputs["size"])[None]  # (1, n, T, 4)
        distance = (boxes - truth).abs() ** self.norm * share[..., None] * share.shape[1]
        distance = distance.sum((2, 3)) ** (1 / self.norm)  # (N, n, T, 4) -> (N, n)
        overlap = (_giou(boxes, truth) * share).sum(-1)  # (N, n, T) -> (N, n)
        return (
            self.weights["class"] * self._class_cost(outputs["pred_logits"], targets.labels)
            + self.weights["l1"] * distance
            - self.weights["giou"] * overlap
        )

    def _class_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, K) to (N, n)."""
        if self.class_loss == "softmax":
            return -logits.float().softmax(-1)[:, labels]
        positive, negative = focal_cost(logits[:, labels], self.alpha, self.gamma)
        return positive - negative


def relative_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Boxes (..., 4) XYXY in pixels to centre, width and height as shares of ``size`` (4,)."""
    return box_convert(boxes.float() / size, "xyxy", "cxcywh").clamp(min=SMALLEST)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """GIoU of boxes (..., 4) with centre and size, of shapes that broadcast: (...)."""
    one, other = torch.broadcast_tensors(*(box_convert(x, "cxcywh", "xyxy") for x in (a, b)))
    # (..., 4) -> (p, 4) -> (...)
    return paired_giou(one.reshape(-1, 4), other.reshape(-1, 4)).view(one.shape[:-1])


def _frame_shares(target: TrackletTargets, visible_only: bool) -> Tensor:
    """Part of each frame in an object's mean over frames, (n, T)."""
    counted = target.visible if visible_only else torch.ones_like(target.visible)
    return counted / counted.sum(dim=1, keepdim=True).clamp(min=1)


class ClassLoss:
    """Class loss of all queries, ``loss_ce``; the unmatched ones are no object.

    Args:
        kind: "focal": sum over queries and classes, per object; "softmax": weighted mean.
        alpha: of the focal loss.
        gamma: of the focal loss.
    """

    def __init__(self, kind: str = "focal", *, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.kind = kind
        self.alpha, self.gamma = alpha, gamma

    def __call__(
        self,
        outputs: Outputs,
        targets: List[TrackletTargets],
        matches: List[Match],
        number: Tensor,
    ) -> Dict[str, Tensor]:
        """Of ``pred_logits`` (B, N, K), with "softmax" (B, N, K + 1)."""
        logits = outputs["pred_logits"].float()
        labels = torch.full(logits.shape[:2], -1, dtype=torch.int64, device=logits.device)
        for b, (target, (queries, objects)) in enumerate(zip(targets, matches)):
            labels[b, queries] = target.labels[objects]
        if self.kind == "softmax":
            return {"loss_ce": _cross_entropy(logits, labels)}
        matched = (labels >= 0)[..., None]
        # (B, N) -> (B, N, K): all zero where there is no object
        truth = F.one_hot(labels.clamp(min=0), logits.shape[-1]) * matched
        loss = sigmoid_focal_loss(logits, truth.to(logits), self.alpha, self.gamma, "sum")
        return {"loss_ce": loss / number}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    empty = logits.shape[-1] - 1
    truth = torch.where(labels >= 0, labels, empty).flatten()
    weights = torch.ones_like(logits[0, 0])
    weights[empty] = EMPTY_WEIGHT
    # (B, N, K + 1) -> (B * N, K + 1)
    total = F.cross_entropy(logits.flatten(0, 1), truth, weights, reduction="sum")
    return total / global_mean(weights[truth].sum(), floor=1e-6)


class BoxLosses:
    """``loss_bbox``, the sum of four coordinates' distances, and ``loss_giou``: means over frames.

    Args:
        visible_only: of the frames that show the object; False: of all, see ``ClipCost``.
    """

    def __init__(self, *, visible_only: bool = False) -> None:
        self.visible_only = visible_only

    def __call__(
        self,
        outputs: Outputs,
        targets: List[TrackletTargets],
        matches: List[Match],
        number: Tensor,
    ) -> Dict[str, Tensor]:
        """Of ``pred_boxes`` (B, N, T, 4) and ``size`` (B, 4)."""
        boxes = outputs["pred_boxes"].float()
        distance = overlap = boxes.sum() * 0.0  # the sums hang on the boxes, also without a pair
        for b, (target, (queries, objects)) in enumerate(zip(targets, matches)):
            share = _frame_shares(target, self.visible_only)[objects]  # (m, T)
            truth = relative_boxes(target.boxes[objects], outputs["size"][b])  # (m, T, 4)
            found = boxes[b, queries]
            distance = distance + ((found - truth).abs().sum(-1) * share).sum()
            overlap = overlap + ((1 - _giou(found, truth)) * share).sum()
        return {"loss_bbox": distance / number, "loss_giou": overlap / number}


def small_masks(masks: Tensor) -> Tensor:
    """Masks (..., H, W) in every fourth pixel: (..., H / 4, W / 4)."""
    return masks[..., MASK_START::MASK_STRIDE, MASK_START::MASK_STRIDE]


class MaskLosses:
    """``loss_mask``, a focal loss, mean over the pixels of all frames, and ``loss_dice`` of tubes.

    Args:
        alpha: of the focal loss.
        gamma: of the focal loss.
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.alpha, self.gamma = alpha, gamma

    def __call__(
        self,
        outputs: Outputs,
        targets: List[TrackletTargets],
        matches: List[Match],
        number: Tensor,
    ) -> Dict[str, Tensor]:
        """Of ``matched_masks`` (R, T, H / 4, W / 4) logits, row r of the r-th pair of the batch."""
        truth = [small_masks(t.masks)[objects] for t, (_, objects) in zip(targets, matches)]
        masks = torch.cat(truth).flatten(1).float()  # (R, T, h, w) -> (R, T * h * w)
        logits = outputs["matched_masks"].float().flatten(1)
        focal = sigmoid_focal_loss(logits, masks, self.alpha, self.gamma)
        dice = 1 - dice_coefficient(logits.sigmoid(), masks)
        pixels = masks.shape[1]  # a mean over the pixels of no pair would be no number
        return {"loss_mask": focal.sum() / pixels / number, "loss_dice": dice.sum() / number}
