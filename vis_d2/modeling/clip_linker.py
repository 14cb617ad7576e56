"""Who is who from window to window, where windows share frames: masks link and merge the tracks."""

from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from .matching import Match, assign

__all__ = ["ClipLinker", "ClipTracks", "HeldFrame", "LinkedFrame", "LinkerMemory"]

SMALLEST = 1e-6  # pixels of a union


@dataclass(frozen=True)
class ClipTracks:
    """What a whole-clip model finds in one window: N slots over T frames.

    Attributes:
        class_probs: (N, T, K) in [0, 1].
        masks: (N, T, h, w) logits at low resolution; the object is where they are above 0.
        shown: (N, T) bool, whether the slot claims to be in the frame; None: everywhere.
        boxes: (N, T, 4), in any form whose mean is one; None: the model has none.
    """

    class_probs: Tensor
    masks: Tensor
    shown: Optional[Tensor] = None
    boxes: Optional[Tensor] = None

    def __post_init__(self) -> None:
        axes = {"class_probs": 3, "masks": 4, "shown": 2, "boxes": 3}
        parts = {name: getattr(self, name) for name in axes if getattr(self, name) is not None}
        # Whole numbers also where operations are traced, which makes tensors of sizes.
        found = {name: tuple(int(n) for n in part.shape) for name, part in parts.items()}
        fit = all(len(shape) == axes[name] for name, shape in found.items())
        if not fit or len({shape[:2] for shape in found.values()}) > 1:
            expected = "class_probs (N, T, K), masks (N, T, h, w), shown (N, T), boxes (N, T, 4)"
            raise ValueError(f"tracks of a window: expected {expected}, found {found}")


@dataclass(frozen=True)
class LinkedFrame:
    """Tracks of one frame that no later window changes, before masks are finished.

    Attributes:
        track_ids: (n,) int64, ascending.
        class_probs: (n, K) in [0, 1], mean of the windows that show the track here.
        masks: (n, h, w) logits, the same mean.
        boxes: (n, 4), the same mean; None without boxes.
    """

    track_ids: Tensor
    class_probs: Tensor
    masks: Tensor
    boxes: Optional[Tensor] = None


@dataclass(frozen=True)
class HeldFrame:
    """Tracks of one frame that the next window may see again.

    Attributes:
        track_ids: (n,) int64, ascending.
        sums: over the windows so far that show the track here: how many (n,), class
            probabilities (n, K), mask logits (n, h, w) and, where there are some, boxes (n, 4).
    """

    track_ids: Tensor
    sums: Tuple[Tensor, ...]

    def add(self, other: "HeldFrame") -> "HeldFrame":
        """Rows of one track become one row; tracks of only one of both are kept as they are."""
        ids, rows = torch.unique(torch.cat([self.track_ids, other.track_ids]), return_inverse=True)
        both = (torch.cat(pair) for pair in zip(self.sums, other.sums))
        sums = (b.new_zeros((len(ids), *b.shape[1:])).index_add_(0, rows, b) for b in both)
        return HeldFrame(ids, tuple(sums))

    def mean(self) -> LinkedFrame:
        """The frame as it leaves."""
        counts, probs, masks, *boxes = self.sums
        means = [x / counts.view(-1, *[1] * (x.dim() - 1)) for x in (probs, masks, *boxes)]
        return LinkedFrame(self.track_ids, *means)


@dataclass(frozen=True)
class LinkerMemory:
    """What is remembered of a video between two windows; its size does not grow.

    Attributes:
        frames: the frames held back, in order, at most the overlap.
        alive: (N,) int64, track of each slot of the last window; the others have ended.
        next_id: the id of the next new track.
    """

    frames: Tuple[HeldFrame, ...]
    alive: Tensor
    next_id: int


class ClipLinker:
    """Carries identities over windows that share frames, and merges what they say about those.

    Slots of the new window take over tracks of the last one by the assignment of greatest total
    IoU. A pair's IoU is the mean over the shared frames of the IoU of binary masks (logit > 0,
    of a track: mean logit so far; empty where the slot is not shown). Frames where both are empty
    do not count; without any other frame it is 0. Pairs below the threshold, or with nothing in
    common, take no part. Other slots start tracks, other tracks end; no id is used again.

    The soft IoU compares probabilities p and q instead: sum(p q) / sum(p + q - p q). It links
    masks, too, that are hardly there in the shared frames; but no pair reaches 1, and a frame
    without the object counts with little, so that its threshold is a low one.

    In a shared frame a track is the mean, over the windows that show it there, of class
    probabilities, mask logits and boxes; a track that no window shows there is left out.

    Args:
        overlap: frames shared with the window before, window - stride; 0: nothing is linked.
        threshold: least IoU of a link, in [0, 1].
        soft: of probabilities, not of binary masks.
    """

    def __init__(self, *, overlap: int, threshold: float = 0.1, soft: bool = False) -> None:
        if overlap < 0 or not 0 <= threshold <= 1:
            found = f"overlap {overlap}, threshold {threshold}"
            raise ValueError(f"{found}: expected overlap >= 0 and threshold in [0, 1]")
        self.overlap = overlap
        self.threshold = threshold
        self.soft = soft

    def start(self) -> LinkerMemory:
        """Memory of a video of which nothing was seen."""
        return LinkerMemory((), torch.zeros(0, dtype=torch.int64), 0)

    @torch.no_grad()
    def update(
        self, memory: LinkerMemory, clip: ClipTracks
    ) -> Tuple[List[LinkedFrame], LinkerMemory]:
        """Link one window; ``memory`` is not changed, the new one holds no part of ``clip``.

        Args:
            memory: of the last window, or of ``start``.
            clip: the window. Its first ``overlap`` frames were the last ones of the window before.

        Returns:
            The next final frames in order, all but the last ``overlap``; the new memory.

        Raises:
            ValueError: the window brings no new frame, or follows one shorter than the overlap.
        """
        shared, length = len(memory.frames), clip.masks.shape[1]
        if shared and not shared == self.overlap < length:
            found = f"a window of {length} frames after one that held {shared} back"
            raise ValueError(f"{found}: expected > {self.overlap} and {self.overlap} frames")
        tracks, slots = self._link(memory, clip)
        ids = memory.next_id + torch.arange(len(clip.masks), device=clip.masks.device)
        ids[slots] = memory.alive.to(ids)[tracks]
        frames = [_frame(clip, t, ids) for t in range(length)]
        frames[:shared] = [old.add(now) for old, now in zip(memory.frames, frames)]
        final = max(length - self.overlap, 0)
        held = LinkerMemory(tuple(frames[final:]), ids, memory.next_id + len(ids))
        return [frame.mean() for frame in frames[:final]], held

    def flush(self, memory: LinkerMemory) -> List[LinkedFrame]:
        """The frames held back, in order, when no window follows."""
        return [frame.mean() for frame in memory.frames]

    def _link(self, memory: LinkerMemory, clip: ClipTracks) -> Match:
        """Rows of ``memory.alive`` and slots of the clip that are one object."""
        iou = _mean_iou(memory, clip, self.soft)
        # Too small an IoU must not decide, as part of a total, who gets the good pairs.
        iou = iou.masked_fill(iou < self.threshold, 0)
        tracks, slots = assign(-iou)
        linked = iou[tracks, slots] > 0
        return tracks[linked], slots[linked]


def _frame(clip: ClipTracks, t: int, ids: Tensor) -> HeldFrame:
    """Frame t of a window, rows by track; ``ids`` (N,) are the tracks of its slots."""
    rows = ids.argsort()
    if clip.shown is not None:
        rows = rows[clip.shown[rows, t]]
    # Indexing copies: a frame that is held back does not keep the whole window in memory.
    sums = (torch.ones_like(rows), clip.class_probs[rows, t], clip.masks[rows, t])
    if clip.boxes is not None:
        sums += (clip.boxes[rows, t],)
    return HeldFrame(ids[rows], sums)


def _mean_iou(memory: LinkerMemory, clip: ClipTracks, soft: bool) -> Tensor:
    """(A, N): live tracks against slots, see ``ClipLinker``; one product of matrices per frame."""
    total = torch.zeros(len(memory.alive), len(clip.masks), device=clip.masks.device)
    counted = torch.zeros_like(total)
    # The product counts pixels, and half precision cannot count beyond 2048.
    with torch.autocast(clip.masks.device.type, enabled=False):
        for t, frame in enumerate(memory.frames):
            rows, tracks = (frame.track_ids[:, None] == memory.alive).nonzero().unbind(1)
            now = _cover(clip.masks[:, t], soft)
            if clip.shown is not None:
                now *= clip.shown[:, t, None]
            before = now.new_zeros(len(memory.alive), now.shape[1])
            counts, sums = frame.sums[0][rows], frame.sums[2][rows]
            before[tracks] = _cover(sums / counts.view(-1, 1, 1), soft)
            common = before @ now.t()
            union = before.sum(1)[:, None] + now.sum(1) - common
            total += common / union.clamp(min=SMALLEST)
            counted += union > 0
    return total / counted.clamp(min=1)


def _cover(logits: Tensor, soft: bool) -> Tensor:
    """How much of each pixel masks (n, h, w) cover, (n, h * w) float in [0, 1]."""
    flat = logits.flatten(1)
    return flat.float().sigmoid() if soft else (flat > 0).float()
