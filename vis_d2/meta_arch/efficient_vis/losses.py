"""What a pair of tracklet and object costs in matching (Eq. 4), and the losses (Eq. 5)."""

from typing import Dict, List, Optional

import torch
from detectron2.layers import ROIAlign
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional as F

from vis_d2.modeling import Match, Outputs, focal_cost, global_mean, paired_giou
from vis_d2.structures import TrackletTargets, paste_rois

from .stage import FARTHEST

__all__ = ["ClassLoss", "TrackletCost", "box_losses", "mask_losses", "soft_mask_iou"]

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss
EMPTY_WEIGHT = 0.1  # of the class "empty" in the softmax loss
CLASS_LOSSES = ("focal", "softmax")
MASK_STRIDE = 4  # masks are compared at a quarter of the input's resolution
DICE_EPS = 1e-5
LARGEST_CROP = 4  # boxes this many times as large as the frame are sampled coarsely for targets


class TrackletCost:
    """Cost of every (query, object) pair of a clip: a mean over its real frames (Eq. 4).

    A frame with the object costs class, box and mask; a frame without it costs what the class
    probability is too high.

    Args:
        class_loss: "focal" or "softmax".
        weights: factors "class", "l1", "giou" and "mask".
    """

    def __init__(self, *, class_loss: str, weights: Dict[str, float]) -> None:
        _check_class_loss(class_loss)
        self.class_loss = class_loss
        self.weights = dict(weights)

    @torch.no_grad()
    def __call__(self, outputs: Outputs, targets: TrackletTargets) -> Tensor:
        """(N, T, ...) outputs and n objects to (N, n)."""
        shown = (targets.visible & targets.valid)[None]  # (1, n, T)
        present, absent = self._class_cost(outputs["pred_logits"], targets.labels)
        cost = self.weights["class"] * torch.where(shown, present, absent)
        pairs = self._box_cost(outputs["pred_boxes"], targets.boxes, outputs["size"])
        if self.weights["mask"] and "pred_masks" in outputs:
            probs = _class_masks(outputs["pred_masks"].float().sigmoid(), targets.labels)
            overlap = soft_mask_iou(probs, outputs["pred_boxes"], targets.masks)
            pairs = pairs - self.weights["mask"] * overlap
        cost = cost + torch.where(shown, pairs, torch.zeros_like(pairs))
        count = targets.valid.sum().clamp(min=1)
        # Frames that only fill the clip up are left out of the mean.
        return torch.where(targets.valid, cost, torch.zeros_like(cost)).sum(2) / count

    def _class_cost(self, logits: Tensor, labels: Tensor) -> List[Tensor]:
        """(N, T, K) to the costs (N, n, T) of frames with the object and without it."""
        if self.class_loss == "softmax":
            probs = logits.float().softmax(-1)
            empty = probs[..., -1:].expand(-1, -1, len(labels))
            return [-x.transpose(1, 2) for x in (probs[..., labels], empty)]
        positive, negative = focal_cost(logits[..., labels], ALPHA, GAMMA)
        return [x.transpose(1, 2) for x in (positive - negative, negative)]

    def _box_cost(self, boxes: Tensor, truth: Tensor, size: Tensor) -> Tensor:
        """(N, T, 4) and (n, T, 4) to (N, n, T)."""
        a, b = torch.broadcast_tensors(boxes[:, None].float(), truth[None].float())
        distance = ((a - b) / size).abs().sum(-1)
        giou = paired_giou(a.reshape(-1, 4), b.reshape(-1, 4)).view(distance.shape)
        return self.weights["l1"] * distance - self.weights["giou"] * giou


def soft_mask_iou(probs: Tensor, boxes: Tensor, truth: Tensor) -> Tensor:
    """Overlap of mask probabilities with masks, frame by frame, over the whole frame.

    What an object has outside of the predicted box counts as missed.

    Args:
        probs: (N, n or 1, T, m, m): the mask of query i as object j would read it.
        boxes: (N, T, 4) XYXY in pixels of the network input.
        truth: (n, T, H, W) bool.

    Returns:
        (N, n, T) in [0, 1]: sum(p g) / (sum p + sum g - sum p g).
    """
    num_queries, variants, length = probs.shape[:3]
    truth = F.avg_pool2d(truth.float(), MASK_STRIDE, ceil_mode=True)
    size = (truth.shape[2], truth.shape[3])
    where = boxes[:, None].expand(-1, variants, -1, -1) / MASK_STRIDE
    pasted = paste_rois(probs.flatten(0, 2), where.reshape(-1, 4), size)
    # (N * v * T, h, w) -> (N, v, T, h * w)
    pasted = pasted.view(num_queries, variants, length, -1)
    flat = truth.flatten(2)  # (n, T, h, w) -> (n, T, h * w)
    pasted = pasted.expand(-1, len(flat) if variants > 1 else 1, -1, -1)
    common = (
        torch.einsum("ijtp,jtp->ijt", pasted, flat)
        if variants > 1
        else torch.einsum("itp,jtp->ijt", pasted[:, 0], flat)
    )
    union = pasted.sum(-1) + flat.sum(-1) - common
    return common / union.clamp(min=1e-6)


class ClassLoss:
    """Class loss of every query in every real frame; of those without object: all "empty".

    Args:
        kind: "focal": a sigmoid per class; "softmax": one of K classes or "empty".
    """

    def __init__(self, kind: str) -> None:
        _check_class_loss(kind)
        self.kind = kind

    def __call__(
        self,
        outputs: Outputs,
        targets: List[TrackletTargets],
        matches: List[Match],
        number: Tensor,
    ) -> Dict[str, Tensor]:
        """``loss_cls``."""
        logits = outputs["pred_logits"].float()  # (B, N, T, K or K + 1)
        labels = torch.full(logits.shape[:3], -1, dtype=torch.int64, device=logits.device)
        for b, (truth, (queries, objects)) in enumerate(zip(targets, matches)):
            shown = truth.visible[objects] & truth.valid
            labels[b, queries] = torch.where(shown, truth.labels[objects, None], -1)
        valid = torch.stack([truth.valid for truth in targets])[:, None].expand_as(labels)
        if self.kind == "softmax":
            return {"loss_cls": self._softmax(logits, labels, valid)}
        # (B, N, T) -> (B, N, T, K): all zero where there is no object
        one_hot = F.one_hot(labels.clamp(min=0), logits.shape[-1]).to(logits.dtype)
        one_hot = one_hot * (labels >= 0)[..., None]
        loss = sigmoid_focal_loss(logits, one_hot, ALPHA, GAMMA)
        return {"loss_cls": (loss * valid[..., None]).sum() / number}

    @staticmethod
    def _softmax(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        num_classes = logits.shape[-1] - 1
        target = torch.where(labels >= 0, labels, num_classes)
        weights = torch.ones_like(logits[0, 0, 0])
        weights[num_classes] = EMPTY_WEIGHT
        loss = F.cross_entropy(
            logits.flatten(0, 2), target.flatten(), weights, reduction="none"
        )  # (B, N, T, K + 1) -> (B * N * T, K + 1)
        counted = weights[target.flatten()] * valid.flatten()
        return (loss * valid.flatten()).sum() / global_mean(counted.sum(), floor=1e-6)


def box_losses(
    outputs: Outputs, targets: List[TrackletTargets], matches: List[Match], number: Tensor
) -> Dict[str, Tensor]:
    """``loss_l1`` of coordinates divided by the frame's size, and ``loss_giou``; present frames."""
    pred, truth, sizes = [], [], []
    for b, (target, (queries, objects)) in enumerate(zip(targets, matches)):
        shown = target.visible[objects] & target.valid  # (m, T)
        pred.append(outputs["pred_boxes"][b, queries][shown])
        truth.append(target.boxes[objects][shown])
        sizes.append(outputs["size"][b].expand(len(pred[-1]), 4))
    boxes, true_boxes = torch.cat(pred).float(), torch.cat(truth).float()
    distance = ((boxes - true_boxes) / torch.cat(sizes)).abs().sum()
    giou = (1 - paired_giou(boxes, true_boxes)).sum()
    # With no pair at all the sums still hang on the boxes, at zero.
    nothing = outputs["pred_boxes"].sum() * 0.0
    return {"loss_l1": distance / number + nothing, "loss_giou": giou / number + nothing}


def mask_losses(
    outputs: Outputs, targets: List[TrackletTargets], matches: List[Match], number: Tensor
) -> Dict[str, Tensor]:
    """``loss_dice`` of present frames and ``loss_mask``, cross entropy of all real frames.

    Where the object is absent the target is an empty mask. Targets are cut out of the true masks
    with the predicted box. Masks are ``pred_masks`` of all queries or ``matched_masks``, whose row
    r belongs to the r-th pair.
    """
    logits, crops, shown = [], [], []
    of_pairs = "matched_masks" in outputs
    masks = outputs["matched_masks" if of_pairs else "pred_masks"]
    for b, (target, (queries, objects)) in enumerate(zip(targets, matches)):
        real = target.valid.expand(len(objects), -1)  # (m, T)
        rows = torch.arange(len(queries), device=masks.device) if of_pairs else queries
        channel = _channels(masks[b], rows, target.labels[objects])
        logits.append(channel[real])
        boxes = outputs["pred_boxes"][b, queries].detach()
        side = channel.shape[-1]
        crops.append(_crop(target.masks[objects][real], boxes[real], side))
        shown.append(target.visible[objects][real])
    values, truth = torch.cat(logits).float(), torch.cat(crops).float()  # (p, s, s)
    probs, present = values.sigmoid(), torch.cat(shown)
    entropy = F.binary_cross_entropy_with_logits(values, truth, reduction="none").mean((1, 2))
    common = (probs * truth).sum((1, 2))
    mass = (probs**2).sum((1, 2)) + (truth**2).sum((1, 2))
    dice = 1 - 2 * common / (mass + DICE_EPS)
    nothing = masks.sum() * 0.0
    return {
        "loss_dice": (dice * present).sum() / number + nothing,
        "loss_mask": entropy.sum() / number + nothing,
    }


def _crop(masks: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Masks (p, H, W) seen through boxes (p, 4): (p, side, side) bool, empty for tiny boxes."""
    crops = torch.zeros((len(masks), side, side), dtype=torch.bool, device=boxes.device)
    boxes = boxes.float()
    sizes = boxes[:, 2:] - boxes[:, :2]
    # Neither holds for NaN, on which the kernel crashes.
    usable = ((sizes >= 1) & (sizes < FARTHEST)).all(dim=1)
    frame = boxes.new_tensor([masks.shape[2], masks.shape[1]])
    huge = (sizes > LARGEST_CROP * frame).any(dim=1)
    # A sample per pixel, but for boxes so large that these would not fit into the memory.
    for chosen, samples in ((usable & ~huge, 0), (usable & huge, 2)):
        picked = boxes[chosen]
        rois = torch.cat([torch.arange(len(picked)).to(picked)[:, None], picked], dim=1)
        align = ROIAlign((side, side), 1.0, samples, aligned=True)
        crops[chosen] = align(masks[chosen, None].float(), rois)[:, 0] >= 0.5
    return crops


def _channels(masks: Tensor, queries: Tensor, labels: Tensor) -> Tensor:
    """Masks (N, T, 1 or K, s, s) of matched queries in the channel of their class: (m, T, s, s)."""
    if masks.shape[2] == 1:
        return masks[queries, :, 0]
    # Two index tensors around a slice put their axis first: (m, T, s, s)
    return masks[queries, :, labels]


def _class_masks(masks: Tensor, labels: Tensor) -> Tensor:
    """Masks (N, T, 1 or K, s, s) as each of n objects would read them: (N, 1 or n, T, s, s)."""
    masks = masks.transpose(1, 2)
    return masks if masks.shape[1] == 1 else masks[:, labels]


def _check_class_loss(kind: Optional[str]) -> None:
    if kind not in CLASS_LOSSES:
        raise ValueError(f"CLS_LOSS: expected one of {CLASS_LOSSES}, found {kind!r}")
