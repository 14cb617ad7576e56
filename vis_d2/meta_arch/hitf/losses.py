"""Losses of one frame as free functions, in full precision."""

from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vis_d2.modeling import dice_coefficient

__all__ = [
    "discrimination_loss",
    "empty_loss",
    "mask_identity_loss",
    "pair_losses",
    "semantic_loss",
    "valid_dice",
]

WEIGHT_FLOOR = 1e-5


def valid_dice(probs: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Overlap of each mask with its truth over all valid pixels, background included.

    Args:
        probs: (m, h, w) in [0, 1].
        truth: (m, h, w) bool.
        valid: (h, w) bool.

    Returns:
        (m,) in (0, 1].
    """
    # (m, h, w) -> (m, h * w)
    return dice_coefficient((probs.float() * valid).flatten(1), (truth & valid).flatten(1).float())


def pair_losses(
    class_logits: Tensor, mask_logits: Tensor, labels: Tensor, truth: Tensor, valid: Tensor,
    slots: Tensor, weighting: str,
) -> Tuple[Tensor, Tensor]:  # fmt: skip
    """Sums over the slots that show an object: of their mask losses, and of their class losses.

    Args:
        class_logits: (L, K + 1).
        mask_logits: (L or L + 1, h, w), of a softmax over the first axis.
        labels: (m,) classes of the objects.
        truth: (m, h, w) bool masks of the objects.
        valid: (h, w) bool.
        slots: (m,) slot of each object.
        weighting: "pq": the mask loss is weighted by the class probability and the class loss by
            the dice coefficient, both without gradient; "const": both by 1.
    """
    log_probs = F.log_softmax(class_logits.float(), dim=-1)[slots, labels]
    dice = valid_dice(mask_logits.float().softmax(0)[slots], truth, valid)
    mask_weight, class_weight = torch.ones_like(dice), torch.ones_like(dice)
    if weighting == "pq":
        mask_weight = log_probs.detach().exp().clamp(min=WEIGHT_FLOOR)
        class_weight = dice.detach().clamp(min=WEIGHT_FLOOR)
    return (mask_weight * (1 - dice)).sum(), -(class_weight * log_probs).sum()


def empty_loss(class_logits: Tensor, slots: Tensor) -> Tensor:
    """Cross entropy with the empty class, summed over all slots except ``slots``."""
    log_probs = F.log_softmax(class_logits.float(), dim=-1)[:, -1]
    empty = torch.ones_like(log_probs, dtype=torch.bool)
    empty[slots] = False
    return -log_probs[empty].sum()


def discrimination_loss(
    features: Tensor, owner: Tensor, valid: Tensor, temperature: float
) -> Tuple[Tensor, Tensor]:
    """Pixels of an object resemble its mean feature more than those of the others.

    The background is one of the others; without it a single object would have nobody to be told
    apart from. Its own pixels are not asked.

    Args:
        features: (D, h, w), of length 1 at each pixel.
        owner: (h, w) int64, number of the object, -1 for background.
        valid: (h, w) bool.
        temperature: divides the similarities.

    Returns:
        Sum of the cross entropies of object pixels, and their number.
    """
    pixels = features.float()[:, valid].t()  # (D, h, w) -> (p, D)
    groups, rows = owner[valid].unique(return_inverse=True)
    sums = pixels.new_zeros(len(groups), pixels.shape[1]).index_add(0, rows, pixels)
    prototypes = F.normalize(sums, dim=1)
    anchors = owner[valid] >= 0
    logits = pixels[anchors] @ prototypes.t() / temperature
    return F.cross_entropy(logits, rows[anchors], reduction="sum"), anchors.sum()


def mask_identity_loss(mask_logits: Tensor, target: Tensor) -> Tuple[Tensor, Tensor]:
    """Cross entropy of each pixel with its slot.

    Args:
        mask_logits: (C, h, w), of a softmax over the first axis.
        target: (h, w) int64, -1: the pixel is not asked.

    Returns:
        The sum and the number of pixels.
    """
    loss = F.cross_entropy(
        mask_logits.float()[None], target[None], ignore_index=-1, reduction="sum"
    )
    return loss, (target >= 0).sum()


def semantic_loss(
    logits: Tensor, owner: Tensor, labels: Tensor, valid: Tensor
) -> Tuple[Tensor, Tensor]:
    """Cross entropy of each valid pixel with its class.

    Args:
        logits: (K + 1, h, w), the background last.
        owner: (h, w) int64, number of the object, -1 for background.
        labels: (N,) classes of the objects.
        valid: (h, w) bool.

    Returns:
        The sum and the number of pixels.
    """
    background = labels.new_tensor([len(logits) - 1])
    # Number -1 is the last row.
    target = torch.cat([labels, background])[owner].masked_fill(~valid, -1)
    return mask_identity_loss(logits, target)
