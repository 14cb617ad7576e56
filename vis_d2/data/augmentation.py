"""What happens to the pixels: drawn once per clip and applied to its T frames, or fixed (test)."""

import contextlib
from dataclasses import dataclass
from typing import Any, Dict, Hashable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from torch import Tensor

__all__ = ["ClipAugmentation", "ClipTransform", "TestFrameTransform"]

PHOTOMETRIC = ("none", "clip", "frame")
_GREY = np.array([0.114, 0.587, 0.299], dtype=np.float32)  # luma of B, G, R (ITU-R BT.601)


@dataclass(frozen=True)
class Jitter:
    """Factors by which a frame's brightness, contrast and saturation are multiplied."""

    brightness: float
    contrast: float
    saturation: float

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 BGR -> the same."""
        image = frame.astype(np.float32) * self.brightness
        image = image.mean() * (1.0 - self.contrast) + image * self.contrast
        grey = (image @ _GREY)[..., None]
        image = grey * (1.0 - self.saturation) + image * self.saturation
        return (image + 0.5).clip(0.0, 255.0).astype(np.uint8)


@dataclass(frozen=True)
class ClipTransform:
    """One draw of a :class:`ClipAugmentation`: what to do with each frame and mask of a clip.

    Attributes:
        geometry: the same for all frames.
        jitters: one per frame, or none at all.
        format: channel order of the result, "BGR" or "RGB".
    """

    geometry: T.TransformList
    jitters: Sequence[Jitter]
    format: str

    def image(self, frame: np.ndarray, t: int) -> Tensor:
        """Frame ``t`` of the clip, (H, W, 3) uint8 BGR -> (3, h, w) uint8."""
        if self.jitters:
            frame = self.jitters[t](frame)
        return to_tensor(self.geometry.apply_image(frame), self.format)

    def motion(self, t: int) -> Hashable:
        """Frames with equal answers are moved alike: here all of them."""
        return None

    def jitter(self, t: int) -> Optional[Jitter]:
        """What changes the colours of frame ``t``, None for nothing."""
        return self.jitters[t] if self.jitters else None

    def masks(self, masks: Tensor, t: int) -> Tensor:
        """Masks of frame ``t``, (n, H, W) bool -> (n, h, w) bool, n >= 1."""
        moved = [self.geometry.apply_segmentation(mask) for mask in masks.byte().numpy()]
        return torch.from_numpy(np.stack(moved)).bool()


class ClipAugmentation:
    """Random changes of training clips, made from detectron2's ``INPUT`` keys and ``INPUT.CLIP``.

    Args:
        geometric: detectron2 augmentations. They must not depend on what the image shows, because
            they are drawn on the first frame and applied to all.
        photometric: "none", "clip" (one draw per clip) or "frame" (one per frame).
        strength: s >= 0; brightness, contrast and saturation are each multiplied by a factor
            drawn from [1 - s, 1 + s].
        format: channel order that the model wants, "BGR" or "RGB".
    """

    @configurable
    def __init__(
        self, *, geometric: Sequence[T.Augmentation], photometric: str, strength: float, format: str
    ) -> None:
        if photometric not in PHOTOMETRIC:
            raise ValueError(
                f"INPUT.CLIP.PHOTOMETRIC is {photometric!r}, expected one of {PHOTOMETRIC}"
            )
        _check_format(format)
        self.geometric = T.AugmentationList(geometric)
        self.photometric = photometric
        self.strength = strength
        self.format = format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        geometric = build_augmentation(cfg, is_train=True)
        if cfg.INPUT.CROP.ENABLED:
            geometric.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        if cfg.INPUT.SIZED_CROP.PROB:
            geometric.insert(0, _sized_crop(cfg.INPUT.SIZED_CROP))
        return {
            "geometric": geometric,
            "photometric": cfg.INPUT.CLIP.PHOTOMETRIC,
            "strength": cfg.INPUT.CLIP.PHOTOMETRIC_STRENGTH,
            "format": cfg.INPUT.FORMAT,
        }

    def draw(self, first: np.ndarray, num_frames: int, rng: np.random.Generator) -> ClipTransform:
        """Draws what will happen to a clip.

        Args:
            first: a frame of the clip, (H, W, 3) uint8; only its size matters.
            num_frames: T.
            rng: source of all randomness.
        """
        with _global_seed(rng):
            geometry = self.geometric(T.AugInput(first))
        return ClipTransform(geometry, self._jitters(num_frames, rng), self.format)

    def _jitters(self, num_frames: int, rng: np.random.Generator) -> List[Jitter]:
        if self.photometric == "none":
            return []
        draws = num_frames if self.photometric == "frame" else 1
        factors = rng.uniform(1.0 - self.strength, 1.0 + self.strength, (draws, 3)).tolist()
        jitters = [Jitter(*three) for three in factors]
        return jitters * (num_frames // draws)


class TestFrameTransform:
    """The fixed transform of inference, for frames of a data set and of any other source.

    Args:
        min_size: length of the shorter side, pixels; 0 keeps the size.
        max_size: limit of the longer side, pixels.
        format: channel order that the model wants, "BGR" or "RGB".
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    @configurable
    def __init__(self, *, min_size: int, max_size: int, format: str) -> None:
        _check_format(format)
        self.resize = T.ResizeShortestEdge([min_size, min_size], max_size)
        self.format = format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        return {
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "format": cfg.INPUT.FORMAT,
        }

    def __call__(self, frame: np.ndarray) -> Tensor:
        """(H, W, 3) uint8 BGR -> (3, h, w) uint8 in the model's channel order."""
        return to_tensor(self.resize.get_transform(frame).apply_image(frame), self.format)


def _sized_crop(node: CfgNode) -> T.Augmentation:
    """With probability ``PROB``: a resize and a crop by numbers of pixels. See the config keys."""
    for key, sound, expected in (
        ("PROB", 0.0 <= node.PROB <= 1.0, "a probability in [0, 1]"),
        ("MIN_SIZES", min(node.MIN_SIZES, default=0) > 0, "numbers of pixels, at least one"),
        ("SIDES", len(node.SIDES) == 2 and 0 < node.SIDES[0] <= node.SIDES[-1], "0 < low <= high"),
    ):
        if not sound:
            raise ValueError(f"INPUT.SIZED_CROP.{key} is {node[key]}, expected {expected}")
    resize = T.ResizeShortestEdge(node.MIN_SIZES, sample_style="choice")
    crop = T.RandomCrop("absolute_range", node.SIDES)
    return T.RandomApply(T.AugmentationList([resize, crop]), node.PROB)


def to_tensor(image: np.ndarray, format: str) -> Tensor:
    """(H, W, 3) uint8 BGR -> (3, H, W) uint8 in ``format``."""
    channels = image[..., ::-1] if format == "RGB" else image
    return torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))  # HWC -> CHW


def _check_format(format: str) -> None:
    if format not in ("BGR", "RGB"):
        raise ValueError(f"INPUT.FORMAT is {format!r}, expected 'BGR' or 'RGB'")


@contextlib.contextmanager
def _global_seed(rng: np.random.Generator) -> Iterator[None]:
    """Lets detectron2's augmentations, which draw from numpy's global state, draw from ``rng``."""
    state: Tuple[Any, ...] = np.random.get_state()
    np.random.seed(int(rng.integers(2**32)))
    try:
        yield
    finally:
        np.random.set_state(state)
