"""Losses as free functions, and the one rule by which sums over objects are normalised.

Every normaliser is the mean over all workers: gradients are averaged over workers, so that the
result equals one worker with the joined batch, also when one of them has no object.
"""

import torch
from detectron2.utils import comm
from torch import Tensor

__all__ = ["box_log_loss", "dice_coefficient", "global_mean", "paired_giou", "paired_iou"]

LOG_FLOOR = 1e-6  # the logarithm of an overlap stops here: -ln(1e-6) = 13.8


def global_mean(value: Tensor, floor: float) -> Tensor:
    """Mean of a scalar over all workers, at least ``floor``; carries no gradient."""
    value = value.detach().float()
    if comm.get_world_size() > 1:
        value = value.clone()
        torch.distributed.all_reduce(value)
        value = value / comm.get_world_size()
    return value.clamp(min=floor)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    size = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])  # (n, 2)
    return size.clamp(min=0).prod(dim=1)


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of row i of ``a`` and row i of ``b``, both (n, 4) XYXY; (n,) in [0, 1], 0 for no area."""
    inter = _overlap(a, b)
    return inter / (_areas(a) + _areas(b) - inter).clamp(min=1e-7)


def paired_giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of row i of ``a`` with row i of ``b``, both (n, 4) XYXY; (n,) in [-1, 1]."""
    inter = _overlap(a, b)
    union = _areas(a) + _areas(b) - inter
    hull_size = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])  # (n, 2)
    hull = hull_size.clamp(min=0).prod(dim=1)
    return inter / union.clamp(min=1e-7) - (hull - union) / hull.clamp(min=1e-7)


def box_log_loss(pred: Tensor, target: Tensor, kind: str) -> Tensor:
    """Logarithmic overlap loss of each pair of boxes, (n,) in [0, 13.8].

    Args:
        pred: (n, 4) XYXY.
        target: (n, 4) XYXY, same unit.
        kind: "giou": -ln((1 + GIoU) / 2), 0.693 for touching boxes and larger when they part;
            "iou": -ln(IoU), the loss of the FCOS detector.
    """
    if kind == "giou":
        overlap = (1 + paired_giou(pred, target)) / 2
    elif kind == "iou":
        overlap = paired_iou(pred, target)
    else:
        raise ValueError(f"box loss: expected 'giou' or 'iou', found {kind!r}")
    return -overlap.clamp(min=LOG_FLOOR).log()


def dice_coefficient(probs: Tensor, truth: Tensor) -> Tensor:
    """Overlap of each mask with its truth, (n,) in (0, 1]; 1 for two empty ones.

    One is added to numerator and denominator, so that an empty truth leaves a gradient.

    Args:
        probs: (n, p) in [0, 1].
        truth: (n, p) in [0, 1], float.
    """
    total = probs.sum(dim=1) + truth.sum(dim=1)
    return (2 * (probs * truth).sum(dim=1) + 1) / (total + 1)
