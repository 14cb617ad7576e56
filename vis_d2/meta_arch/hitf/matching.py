"""How well slots fit objects, judged by two frames at once."""

import torch
from torch import Tensor

from vis_d2.modeling import Match, assign

from .targets import SlotTargets

__all__ = ["match_slots", "pair_similarity"]

DICE_EPS = 1e-5


@torch.no_grad()
def pair_similarity(class_probs: Tensor, mask_probs: Tensor, targets: SlotTargets) -> Tensor:
    """Product of mask and class similarity of each (slot, object), (L, N), higher is better.

    The mask similarity is the dice coefficient of the frames side by side; the class similarity is
    the sum over the frames of the probability of the object's class, or of the empty class where
    the object is absent.

    Args:
        class_probs: (L, F, K + 1), the empty class last.
        mask_probs: (L, F, h, w).
        targets: of the same F frames.
    """
    probs = (mask_probs.float() * targets.valid).flatten(1)  # (L, F, h, w) -> (L, F * h * w)
    truth = (targets.masks & targets.valid).flatten(1).float()
    common = probs @ truth.t()
    dice = 2 * common / (probs.sum(1)[:, None] + truth.sum(1)[None] + DICE_EPS)
    empty = class_probs.shape[-1] - 1
    labels = torch.where(targets.present, targets.labels[:, None], empty)  # (N, F)
    frames = torch.arange(labels.shape[1], device=labels.device)
    fit = class_probs.float()[:, frames, labels]  # (L, F, K + 1) -> (L, N, F)
    return dice * fit.sum(2)


def match_slots(similarity: Tensor, targets: SlotTargets, objects: str = "union") -> Match:
    """Pairs of slots and objects with the largest total similarity.

    Args:
        similarity: (L, N).
        targets: says who is present; the last frame is the one that learns.
        objects: to be matched: "union" (present in any frame) or "current" (in the last).

    Returns:
        Slot and object indices. With more objects than slots the least similar are left out.
    """
    present = targets.present
    candidates = present.any(1) if objects == "union" else present[:, -1]
    return assign(-similarity, candidates=candidates)
