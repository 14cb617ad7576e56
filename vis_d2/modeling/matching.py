"""Which query learns which object: the assignment of least cost."""

from typing import Callable, Dict, Optional, Tuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vis_d2.structures import TrackletTargets

__all__ = ["CostFn", "Match", "Outputs", "assign", "focal_cost", "weighted_sum"]

Outputs = Dict[str, Tensor]
Match = Tuple[Tensor, Tensor]  # query indices (m,) and object indices (m,), int64
CostFn = Callable[[Outputs, TrackletTargets], Tensor]  # -> (Q, N), lower is better

WORST = 1e6  # stands for costs that are no numbers: such a pair is taken only if nothing is left


def assign(
    cost: Tensor, kept: Optional[Match] = None, candidates: Optional[Tensor] = None
) -> Match:
    """One-to-one pairs of queries and objects with the least total cost.

    Args:
        cost: (Q, N), any device; NaN and infinite entries count as 1e6.
        kept: pairs that are settled. Their queries and objects take no part in the search.
        candidates: (N,) bool, objects that may be given away; None: all.

    Returns:
        Query and object indices (m,) on ``cost``'s device: the kept pairs first, then the new
        ones by query. Without enough queries the most expensive objects stay without.
    """
    num_queries, num_objects = cost.shape
    free = torch.ones(num_queries, dtype=torch.bool)
    open_objects = torch.ones(num_objects, dtype=torch.bool)
    if candidates is not None:
        open_objects &= candidates.cpu()
    none = torch.zeros(0, dtype=torch.int64, device=cost.device)
    queries, objects = kept if kept is not None else (none, none)
    free[queries.cpu()] = False
    open_objects[objects.cpu()] = False
    rows, columns = free.nonzero()[:, 0], open_objects.nonzero()[:, 0]
    part = cost.detach().float().cpu()[rows][:, columns]
    part = part.nan_to_num(nan=WORST, posinf=WORST, neginf=WORST)
    i, j = linear_sum_assignment(part.numpy())
    new_queries, new_objects = rows[torch.as_tensor(i)], columns[torch.as_tensor(j)]
    return (
        torch.cat([queries, new_queries.to(queries.device)]),
        torch.cat([objects, new_objects.to(objects.device)]),
    )


def weighted_sum(*terms: Tuple[float, CostFn]) -> CostFn:
    """One cost out of (weight, cost) pairs."""

    def total(outputs: Outputs, targets: TrackletTargets) -> Tensor:
        return sum(weight * cost(outputs, targets) for weight, cost in terms)

    return total


def focal_cost(logits: Tensor, alpha: float, gamma: float) -> Tuple[Tensor, Tensor]:
    """What the focal loss would charge each logit as a positive, and as a negative.

    Args:
        logits: any shape.
        alpha: weight of positives, in [0, 1].
        gamma: focusing exponent, >= 0.

    Returns:
        Two tensors of ``logits``' shape, both >= 0.
    """
    logits = logits.float()
    prob = logits.sigmoid()
    # -log(p) = softplus(-logit): no overflow where p rounds to 0 or 1.
    positive = alpha * (1 - prob) ** gamma * torch.nn.functional.softplus(-logits)
    negative = (1 - alpha) * prob**gamma * torch.nn.functional.softplus(logits)
    return positive, negative
