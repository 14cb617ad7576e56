"""From the predictions for a frame to disjoint masks at output size."""

from dataclasses import dataclass
from typing import Dict, Iterator, List, Tuple

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Emission", "finish_slots", "label_overlaps", "make_tracks"]

RULES = ("nonempty", "score")


@dataclass(frozen=True)
class Emission:
    """Which slots show something, and which pixels are theirs.

    Attributes:
        rule: "nonempty": the best class is not the empty one, and has at least ``class_threshold``;
            "score": the best real class has at least ``class_threshold``.
        class_threshold: in [0, 1].
        mask_threshold: pixels more probable than this belong to their best slot, in [0, 1).
        score_masks: scores are multiplied by the mean probability inside of the mask.
    """

    rule: str = "nonempty"
    class_threshold: float = 0.0
    mask_threshold: float = 0.5
    score_masks: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule: expected one of {RULES}, found {self.rule!r}")

    def shown(self, class_probs: Tensor) -> Tensor:
        """Slots that may show something: (L, K + 1) with the empty class last to (L,) bool."""
        best = class_probs[:, :-1].amax(1)
        shown = best >= self.class_threshold
        return shown & (best >= class_probs[:, -1]) if self.rule == "nonempty" else shown

    def choose(
        self, class_probs: Tensor, labels: Tensor, probs: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Leave out what does not show.

        Args:
            class_probs: (L, K + 1), the empty class last.
            labels: (H, W) uint8 of ``finish_slots``.
            probs: (H, W) of ``finish_slots``.

        Returns:
            The labels without pixels of slots that show nothing, or of the background; slots with
            pixels (n,); and scores (L, K).
        """
        table = torch.zeros(256, dtype=torch.uint8, device=labels.device)
        shown = self.shown(class_probs).nonzero()[:, 0] + 1
        table[shown] = shown.to(torch.uint8)
        labels = table[labels.long()]
        flat = labels.flatten().long()  # (H, W) -> (H * W,)
        area = torch.bincount(flat, minlength=len(class_probs) + 1)
        scores = class_probs[:, :-1]
        if self.score_masks:
            inside = probs.new_zeros(len(area)).index_add(0, flat, probs.flatten())
            scores = scores * (inside / area.clamp(min=1))[1:, None]
        return labels, area[1:].nonzero()[:, 0], scores


def finish_slots(
    logits: Tensor,
    *,
    padded_size: Tuple[int, int],
    image_size: Tuple[int, int],
    output_size: Tuple[int, int],
    threshold: float,
) -> Tuple[Tensor, Tensor]:
    """The slot of each pixel of the output.

    Logits are resized, not probabilities: small objects would lose to their neighbours.

    Args:
        logits: (C, h, w) of a softmax over the first axis; cells lie on pixels ``stride * i``.
        padded_size: (height, width) of the padded network input.
        image_size: (height, width) of the network input without its padding.
        output_size: (height, width) of the result.
        threshold: a pixel belongs to its best slot if that is more probable than this.

    Returns:
        (H, W) uint8, 0 for pixels of nobody and i + 1 for those of slot i; and the probability of
        the best slot, (H, W) float.
    """
    x = F.interpolate(logits[None].float(), size=padded_size, mode="bilinear", align_corners=True)
    x = x[..., : image_size[0], : image_size[1]]
    if tuple(image_size) != tuple(output_size):
        # The frame was resized by its pixel areas, not by its corners.
        x = F.interpolate(x, size=output_size, mode="bilinear", align_corners=False)
    best, slot = x[0].max(0)
    probs = (best - x[0].logsumexp(0)).exp()
    return torch.where(probs > threshold, slot + 1, 0).to(torch.uint8), probs


def label_overlaps(now: Tensor, before: Tensor) -> Dict[Tuple[int, int], float]:
    """IoU of each pair of masks that have a pixel in common.

    Args:
        now: (H, W) uint8, 0 for nobody and i + 1 for slot i.
        before: the same of another frame.
    """
    size = 256  # values of a byte
    # One pass over the pixels, whatever the number of slots.
    table = torch.bincount(now.flatten().long() * size + before.flatten(), minlength=size**2)
    table = table.view(size, size)
    union = table.sum(1)[:, None] + table.sum(0)[None] - table
    rows, columns = table[1:, 1:].nonzero(as_tuple=True)
    iou = (table / union.clamp(min=1))[1:, 1:][rows, columns]
    return dict(zip(zip(rows.tolist(), columns.tolist()), iou.tolist()))


def make_tracks(
    labels: Tensor, slots: Tensor, ids: List[int], scores: Tensor, output_size: Tuple[int, int]
) -> Iterator[Instances]:
    """The tracks of one frame, when they are asked for.

    Args:
        labels: (H, W) uint8, 0 for nobody and i + 1 for slot i.
        slots: (n,) slots that show something.
        ids: their n identities.
        scores: (n, K).
        output_size: (H, W).
    """
    result = Instances(output_size)
    result.track_ids = torch.tensor(ids, dtype=torch.int64, device=labels.device)
    result.class_probs = scores
    result.pred_masks = labels[None] == (slots[:, None, None] + 1)
    yield result
