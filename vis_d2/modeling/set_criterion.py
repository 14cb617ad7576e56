"""Match queries with objects, then charge every layer of a decoder."""

from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from vis_d2.structures import TrackletTargets

from .losses import global_mean
from .matching import CostFn, Match, Outputs, assign

__all__ = ["Completion", "LossFn", "SetCriterion"]

# (batched outputs, targets, matches, normaliser) -> named losses
LossFn = Callable[[Outputs, List[TrackletTargets], List[Match], Tensor], Dict[str, Tensor]]
# (number of the layer, its batched outputs, matches) -> outputs with what was left out before
Completion = Callable[[int, Outputs, List[Match]], Outputs]
COUNTS = ("objects", "frames")


class SetCriterion(nn.Module):
    """Losses of queries that have no order: match them with the objects first, layer by layer.

    Args:
        cost: of every pair in one clip.
        losses: of the last layer.
        weights: factor for each loss name.
        auxiliary: losses of every layer before it.
        count: what sums are divided by: the number of "objects" that the clips show or keep from
            an earlier clip, or of "frames": these objects times the real frames of their clip.
            Averaged over the workers, at least 1.
    """

    def __init__(
        self,
        *,
        cost: CostFn,
        losses: Sequence[LossFn],
        weights: Mapping[str, float],
        auxiliary: Sequence[LossFn] = (),
        count: str = "objects",
    ) -> None:
        super().__init__()
        if count not in COUNTS:
            raise ValueError(f"count: expected one of {COUNTS}, found {count!r}")
        self.cost = cost
        self.losses = list(losses)
        self.weights = dict(weights)
        self.auxiliary = list(auxiliary)
        self.count = count

    def forward(
        self,
        layers: Sequence[Outputs],
        targets: List[TrackletTargets],
        kept: Optional[List[Match]] = None,
        births: bool = True,
        complete: Optional[Completion] = None,
    ) -> Tuple[Dict[str, Tensor], List[Match]]:
        """Losses of B clips. A layer without losses is not matched, unless it is the last.

        Args:
            layers: outputs of each layer, tensors with a leading axis B; the last one comes last.
            targets: B objects' truth. An object that no real frame shows is never matched anew.
            kept: per clip, pairs that hold on every layer without matching.
            births: objects that ``kept`` lacks may take queries that it leaves free.
            complete: called with a layer once it is matched, for outputs that the losses need of
                matched queries only and the cost not at all.

        Returns:
            Weighted scalars, those of earlier layers with the layer's number behind their name;
            and the B matches of the last layer.
        """
        number = self._normalizer(targets, kept, births, layers[-1])
        result: Dict[str, Tensor] = {}
        matches: List[Match] = []
        for i, outputs in enumerate(layers):
            last = i == len(layers) - 1
            losses = self.losses if last else self.auxiliary
            if not losses and not last:
                continue
            matches = self._match(outputs, targets, kept, births)
            if complete is not None:
                outputs = complete(i, outputs, matches)
            for loss in losses:
                for name, value in loss(outputs, targets, matches, number).items():
                    result[name if last else f"{name}_{i}"] = value * self.weights[name]
        return result, matches

    @torch.no_grad()
    def _match(
        self,
        outputs: Outputs,
        targets: List[TrackletTargets],
        kept: Optional[List[Match]],
        births: bool,
    ) -> List[Match]:
        if kept is not None and not births:
            return kept
        matches = []
        for b, truth in enumerate(targets):
            cost = self.cost({name: value[b] for name, value in outputs.items()}, truth)
            matches.append(assign(cost, kept[b] if kept is not None else None, _shown(truth)))
        return matches

    def _normalizer(
        self,
        targets: List[TrackletTargets],
        kept: Optional[List[Match]],
        births: bool,
        outputs: Outputs,
    ) -> Tensor:
        number = 0
        for b, truth in enumerate(targets):
            takes_part = _shown(truth) & (births or kept is None)
            if kept is not None:
                takes_part[kept[b][1]] = True
            per_object = 1 if self.count == "objects" else int(truth.valid.sum())
            number += int(takes_part.sum()) * per_object
        device = next(iter(outputs.values())).device
        return global_mean(torch.tensor(float(number), device=device), floor=1.0)


def _shown(truth: TrackletTargets) -> Tensor:
    """Objects that a real frame shows, (N,) bool. The others may be known from another clip."""
    return (truth.visible & truth.valid).any(dim=1)  # (N, T) -> (N,)
