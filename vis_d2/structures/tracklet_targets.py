"""Ground truth of one clip as tensors over (objects, frames)."""

from dataclasses import dataclass
from typing import List, Optional, Tuple

import torch
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["TrackletTargets"]


@dataclass
class TrackletTargets:
    """The N objects of a clip of T frames.

    Attributes:
        labels: (N,) int64, contiguous class ids.
        ids: (N,) int64, identity within the video.
        boxes: (N, T, 4) float, XYXY in pixels of the network input, zeros where not visible.
        masks: (N, T, H, W) bool at the padded input size, zeros where not visible.
        visible: (N, T) bool.
        valid: (T,) bool, False for frames that only fill a short clip up; all True by default.
    """

    labels: Tensor
    ids: Tensor
    boxes: Tensor
    masks: Tensor
    visible: Tensor
    valid: Optional[Tensor] = None

    def __post_init__(self) -> None:
        n, t = self.visible.shape
        if self.valid is None:
            self.valid = torch.ones(t, dtype=torch.bool, device=self.visible.device)
        expected = {"labels": (n,), "ids": (n,), "boxes": (n, t, 4), "masks": (n, t), "valid": (t,)}
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if name == "masks":
                found = found[:2]  # of any height and width
            if found != shape:
                raise ValueError(f"{name}: expected shape {shape}, found {found}")

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_frames(
        cls,
        frames: List[Instances],
        padded_size: Tuple[int, int],
        valid: Optional[Tensor] = None,
    ) -> "TrackletTargets":
        """Stack the annotated frames of a clip; row i is the same object in every frame.

        Args:
            frames: T Instances with ``gt_classes``, ``gt_ids``, ``gt_visible`` (N,), ``gt_boxes``
                and ``gt_masks`` (BitMasks), as ``ClipMapper`` gives them.
            padded_size: (H, W) of the padded network input.
            valid: (T,) bool, real frames; None: all.

        Raises:
            ValueError: the rows of two frames are not the same objects.
        """
        first = frames[0]
        for t, frame in enumerate(frames):
            if not torch.equal(frame.gt_ids, first.gt_ids):
                raise ValueError(
                    f"frame {t} of the clip: rows are objects {frame.gt_ids.tolist()}, "
                    f"expected {first.gt_ids.tolist()} as in frame 0"
                )
        height, width = padded_size
        masks = first.gt_masks.tensor.new_zeros((len(first), len(frames), height, width))
        for t, frame in enumerate(frames):
            bitmap = frame.gt_masks.tensor
            masks[:, t, : bitmap.shape[1], : bitmap.shape[2]] = bitmap
        return cls(
            labels=first.gt_classes,
            ids=first.gt_ids,
            # T x (N, 4) -> (N, T, 4)
            boxes=torch.stack([f.gt_boxes.tensor for f in frames], dim=1),
            masks=masks,
            visible=torch.stack([f.gt_visible for f in frames], dim=1),  # T x (N,) -> (N, T)
            valid=valid,
        )
