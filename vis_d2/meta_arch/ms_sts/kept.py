"""Which queries of a clip are worth a mask."""

from typing import Tuple

import torch
from torch import Tensor

__all__ = ["KeptQueries"]

KINDS = ("pairs", "queries")
CLASS_LOSSES = ("focal", "softmax")


class KeptQueries:
    """Keeps the few queries of a clip that can be reported; no mask of another is computed.

    Args:
        kind: "pairs": the queries of the best (query, class) pairs, with all of their classes;
            "queries": those with the best class, and of their classes those above ``score``.
        most: pairs or queries kept.
        score: see "queries"; in [0, 1].
        class_loss: what the logits were trained with: "focal", a sigmoid for each class, or
            "softmax", the last one being no object.
    """

    def __init__(
        self,
        *,
        kind: str = "pairs",
        most: int = 10,
        score: float = 0.05,
        class_loss: str = "focal",
    ) -> None:
        for name, value, allowed in (
            ("kind", kind, KINDS),
            ("class_loss", class_loss, CLASS_LOSSES),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: expected one of {allowed}, found {value!r}")
        self.kind = kind
        self.most = most
        self.score = score
        self.class_loss = class_loss

    def __call__(self, logits: Tensor) -> Tuple[Tensor, Tensor]:
        """Choose from N queries of one clip.

        Args:
            logits: (N, K), with "softmax" (N, K + 1).

        Returns:
            Queries (n,) int64, ascending, and their class probabilities (n, K) in [0, 1].
        """
        logits = logits.float()
        if self.class_loss == "softmax":
            probs = logits.softmax(-1)[:, :-1]
        else:
            probs = logits.sigmoid()
        if self.kind == "pairs":
            num_classes = probs.shape[1]
            pairs = probs.flatten().topk(min(self.most, probs.numel())).indices  # of N * K
            queries = torch.unique(pairs // num_classes)
            return queries, probs[queries]
        best = probs.amax(dim=1)
        queries = best.topk(min(self.most, len(best))).indices
        queries = queries[best[queries] > self.score].sort().values
        kept = probs[queries]
        return queries, kept * (kept > self.score)
