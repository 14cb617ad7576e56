"""The result of a video: tracklets as run lengths."""

from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from . import rle
from .rle import RLE

__all__ = ["VideoInstances"]


@dataclass
class VideoInstances:
    """N tracklets over T frames; the only thing that leaves a model in evaluation mode.

    Attributes:
        image_size: (H, W) of the frames on disk, in pixels.
        num_frames: T, also when there is no tracklet.
        scores: (N,) float in [0, 1], descending.
        pred_classes: (N,) int64, contiguous class ids.
        track_ids: (N,) int64. Two rows share an id when one track is reported with two classes.
        segmentations: N lists of T entries; None where the tracklet is absent, never an empty mask.

    Raises:
        ValueError: lengths, shapes or sizes disagree; the message shows expected and actual.
    """

    image_size: Tuple[int, int]
    num_frames: int
    scores: Tensor
    pred_classes: Tensor
    track_ids: Tensor
    segmentations: List[List[Optional[RLE]]]

    def __post_init__(self) -> None:
        n = len(self.segmentations)
        for name in ("scores", "pred_classes", "track_ids"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.shape != (n,):
                found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"{name}: expected a tensor of shape ({n},), found {found}")
        for i, track in enumerate(self.segmentations):
            self._check_track(i, track)

    def _check_track(self, i: int, track: List[Optional[RLE]]) -> None:
        if len(track) != self.num_frames:
            raise ValueError(
                f"segmentations[{i}]: expected {self.num_frames} frames, found {len(track)}"
            )
        for t, mask in enumerate(track):
            if mask is not None and tuple(mask["size"]) != tuple(self.image_size):
                raise ValueError(
                    f"segmentations[{i}][{t}]: expected a mask of size {tuple(self.image_size)}, "
                    f"found {tuple(mask['size'])}"
                )

    @classmethod
    def empty(cls, image_size: Tuple[int, int], num_frames: int) -> "VideoInstances":
        """The result of a video in which nothing was found."""
        ids = torch.zeros(0, dtype=torch.int64)
        return cls(image_size, num_frames, torch.zeros(0), ids, ids.clone(), [])

    def __len__(self) -> int:
        return len(self.segmentations)

    def __getitem__(self, index: Any) -> "VideoInstances":
        """Select tracklets by an int, a slice, an index tensor (n,) int64 or a mask (N,) bool."""
        rows = torch.arange(len(self))[index].reshape(-1)  # an int selects one row -> (n,)
        return VideoInstances(
            self.image_size,
            self.num_frames,
            self.scores[rows],
            self.pred_classes[rows],
            self.track_ids[rows],
            [self.segmentations[i] for i in rows.tolist()],
        )

    def frame(self, t: int) -> Instances:
        """Decode one frame.

        Args:
            t: frame index, 0 <= t < T.

        Returns:
            Instances at ``image_size`` of the n tracklets that are present in frame t, with
            ``pred_masks`` (n, H, W) bool, ``pred_boxes`` (Boxes, the masks' tight boxes),
            ``scores``, ``pred_classes``, ``track_ids`` and ``ID`` (the name that detectron2's
            ``VideoVisualizer`` reads).

        Raises:
            IndexError: t is not a frame of the video.
        """
        if not 0 <= t < self.num_frames:
            raise IndexError(f"frame {t} of a video of {self.num_frames} frames")
        rows = [i for i, track in enumerate(self.segmentations) if track[t] is not None]
        masks = [self.segmentations[i][t] for i in rows]
        result = Instances(tuple(self.image_size))
        result.pred_masks = rle.decode(masks, self.image_size)
        result.pred_boxes = Boxes(rle.boxes(masks))
        result.scores = self.scores[rows]
        result.pred_classes = self.pred_classes[rows]
        result.track_ids = self.track_ids[rows]
        result.ID = self.track_ids[rows]
        return result
