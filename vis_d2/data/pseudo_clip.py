"""An annotated image becomes a training clip: every frame is a changed copy of it."""

from dataclasses import dataclass
from typing import Any, Dict, Hashable, List, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from torch import Tensor

from .augmentation import ClipAugmentation, to_tensor
from .image_copy import CopyAugmentation, ImageCopy

__all__ = ["PseudoClip", "PseudoClipTransform", "condense", "expand"]

_MOST_IDS = 255  # of a map of uint8, which detectron2's transforms take


@dataclass(frozen=True)
class PseudoClipTransform:
    """One draw of a :class:`PseudoClip`; used as a :class:`ClipTransform` is.

    Attributes:
        copies: what is done to the image for each frame of the clip.
        geometry: what is done to all frames afterwards.
        format: channel order of the result, "BGR" or "RGB".
        exclusive: see :class:`PseudoClip`.
    """

    copies: Sequence[ImageCopy]
    geometry: T.TransformList
    format: str
    exclusive: bool = False

    def image(self, frame: np.ndarray, t: int) -> Tensor:
        """The image, (H, W, 3) uint8 BGR -> frame ``t`` of the clip, (3, h, w) uint8."""
        copy = self.copies[t].image(frame)
        return to_tensor(self.geometry.apply_image(copy), self.format)

    def motion(self, t: int) -> Hashable:
        """Frames with equal answers are moved alike: here every one goes its own way."""
        return t

    def jitter(self, t: int) -> None:
        """None: the colours of a copy belong to its motion."""
        return None

    def masks(self, masks: Tensor, t: int) -> Tensor:
        """Those of the image, (n, H, W) bool -> those of frame ``t``, (n, h, w) bool, n >= 1."""
        maps = condense(masks) if self.exclusive else masks.byte().numpy()
        moved = [self.geometry.apply_segmentation(self.copies[t].mask(one)) for one in maps]
        stack = torch.from_numpy(np.stack(moved))
        return expand(stack, len(masks)) if self.exclusive else stack.bool()


class PseudoClip:
    """Makes clips of images: copies that are moved each for itself, and then augmented together.

    ``INPUT.CLIP.PHOTOMETRIC`` is for videos; copies have keys of their own.

    Args:
        augmentation: what is done to all frames of a clip; only its geometry is used.
        copy: what is done to each copy.
        num_frames: length in frames of the video that a frame sampler is told to choose from.
        keep_original: one frame, at a random place, shows the image as it is.
        exclusive: a pixel of several objects belongs to the last one only. The masks are then
            carried as one map of ids, which takes less time where there are many.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentation: ClipAugmentation,
        copy: CopyAugmentation,
        num_frames: int,
        keep_original: bool = False,
        exclusive: bool = False,
    ) -> None:
        self.augmentation = augmentation
        self.copy = copy
        self.num_frames = num_frames
        self.keep_original = keep_original
        self.exclusive = exclusive

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        return {
            "augmentation": ClipAugmentation(cfg),
            "copy": CopyAugmentation(cfg),
            "num_frames": cfg.INPUT.CLIP.NUM_FRAMES,
            "keep_original": cfg.INPUT.PSEUDO_CLIP.KEEP_ORIGINAL,
            "exclusive": cfg.INPUT.PSEUDO_CLIP.EXCLUSIVE,
        }

    def draw(
        self, image: np.ndarray, num_frames: int, rng: np.random.Generator
    ) -> PseudoClipTransform:
        """Draws what will happen to a clip; as :meth:`ClipAugmentation.draw`.

        Args:
            image: (H, W, 3) uint8; only its size matters.
            num_frames: T.
            rng: source of all randomness.
        """
        shared = self.augmentation.draw(image, num_frames, rng)
        copies = [self.copy.draw(image.shape[:2], rng) for _ in range(num_frames)]
        if self.keep_original:
            copies[int(rng.integers(num_frames))] = ImageCopy()
        return PseudoClipTransform(copies, shared.geometry, shared.format, self.exclusive)


def condense(masks: Tensor) -> List[np.ndarray]:
    """Masks as maps of ids: where masks overlap, the last one wins.

    Args:
        masks: (n, H, W) bool, n >= 1.

    Returns:
        Maps (H, W) uint8 for up to 255 masks each: 0 is nobody, i + 1 the i-th mask of the map.
    """
    owner = np.zeros(masks.shape[1:], np.int32)
    for number, mask in enumerate(masks.numpy(), start=1):
        np.putmask(owner, mask, number)
    maps = []
    for first in range(0, len(masks), _MOST_IDS):
        ids = owner - first
        maps.append(np.where((ids > 0) & (ids <= _MOST_IDS), ids, 0).astype(np.uint8))
    return maps


def expand(maps: Tensor, count: int) -> Tensor:
    """Undoes :func:`condense`: maps (m, h, w) uint8 -> ``count`` masks (n, h, w) bool."""
    return torch.stack([maps[i // _MOST_IDS] == i % _MOST_IDS + 1 for i in range(count)])
