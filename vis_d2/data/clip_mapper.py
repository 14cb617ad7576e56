"""From a video dict to what a model's ``forward`` receives."""

from typing import Any, Dict, Hashable, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from vis_d2.structures import rle

from .augmentation import ClipAugmentation, ClipTransform, TestFrameTransform
from .frame_sampler import FrameSampler, build_sampler
from .lazy_frames import LazyFrames, read_frame
from .pseudo_clip import PseudoClip, PseudoClipTransform

__all__ = ["ClipMapper"]

MOST_DRAWS = 10  # clips tried before one without objects is taken after all


class ClipMapper:
    """Maps a video dict to a clip dict.

    For training: frames are chosen and read, transformed alike, and annotated with ``Instances``
    in which row i is the same object in every frame. Objects visible in no frame of the clip (not
    chosen, or cropped away) are dropped, and so are crowds; a clip without objects is legal. Boxes
    are those of the transformed masks. A video dict with ``is_image`` becomes a clip of changed
    copies of its one frame. For inference: all frames, decoded when they are used.

    Args:
        sampler: chooses the frames of a training clip. None for inference.
        augmentation: changes training clips. None for inference.
        transform: the frame transform of inference.
        prefetch: frames decoded ahead during inference; 0 = no thread.
        keep_empty: probability that a training clip without objects is used as it was drawn, be
            it that the frames show none or that the transform leaves nothing of them.
        pseudo_clip: makes training clips of images. None where there are none.

    Raises:
        ValueError: ``keep_empty`` is no probability.
    """

    @configurable
    def __init__(
        self,
        *,
        sampler: Optional[FrameSampler],
        augmentation: Optional[ClipAugmentation],
        transform: TestFrameTransform,
        prefetch: int = 0,
        keep_empty: float = 1.0,
        pseudo_clip: Optional[PseudoClip] = None,
    ) -> None:
        if not 0.0 <= keep_empty <= 1.0:  # not a number fails too
            raise ValueError(
                f"INPUT.CLIP.KEEP_EMPTY is {keep_empty}, expected a probability in [0, 1]"
            )
        self.sampler = sampler
        self.augmentation = augmentation
        self.transform = transform
        self.prefetch = prefetch
        self.keep_empty = keep_empty
        self.pseudo_clip = pseudo_clip

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> Dict[str, Any]:
        return {
            "sampler": build_sampler(cfg) if is_train else None,
            "augmentation": ClipAugmentation(cfg) if is_train else None,
            "transform": TestFrameTransform(cfg),
            "prefetch": cfg.TEST.VIS.PREFETCH,
            "keep_empty": cfg.INPUT.CLIP.KEEP_EMPTY,
            "pseudo_clip": PseudoClip(cfg) if is_train else None,
        }

    def __call__(
        self, video: Mapping[str, Any], rng: Optional[np.random.Generator] = None
    ) -> Dict[str, Any]:
        """Makes a clip of a video.

        Args:
            video: a video dict; it is not changed.
            rng: source of all randomness: the same generator state gives the same clip. None:
                a generator seeded from numpy's global state, which detectron2 seeds per worker.

        Returns:
            ``video_id``; ``frame_indices``, T positions in the video (of an image: in the clip);
            ``image``, T tensors uint8 (3, h, w); ``height`` and ``width`` on disk; for training
            ``instances``, T Instances with ``gt_classes`` and ``gt_ids`` (N,) int64,
            ``gt_visible`` (N,) bool, ``gt_boxes`` (N) XYXY in pixels of the transformed frame with
            exclusive lower right corners, and ``gt_masks`` BitMasks (N, h, w); zeros where not
            visible.

        Raises:
            OSError, ValueError: a frame cannot be used; names video, frame and path.
        """
        clip = {key: video[key] for key in ("video_id", "height", "width")}
        if self.sampler is None:
            frames = LazyFrames(video, self.transform, self.prefetch)
            return {**clip, "frame_indices": list(range(len(frames))), "image": frames}
        if rng is None:
            rng = np.random.default_rng(np.random.randint(2**31, size=4))
        for _ in range(MOST_DRAWS):
            drawn = self._draw_clip(video, rng)
            # Frames that show nothing have been accepted already; this is about crops.
            lost = not len(drawn["instances"][0]) and _shows(video, drawn["frame_indices"])
            if not lost or self._keeps_empty(rng):
                break
        return {**clip, **drawn}

    def _draw_clip(self, video: Mapping[str, Any], rng: np.random.Generator) -> Dict[str, Any]:
        """The part of a training clip that is drawn: frame indices, images, instances."""
        is_image = video.get("is_image", False)
        indices = self._copies(video, rng) if is_image else self._draw_frames(video, rng)
        shown = [0] * len(indices) if is_image else indices
        # A clip that is filled up repeats a frame many times: all is done once per distinct frame.
        decoded = {t: read_frame(video, t) for t in dict.fromkeys(shown)}
        augmentation = self.pseudo_clip if is_image else self.augmentation
        transform = augmentation.draw(decoded[shown[0]], len(shown), rng)
        images = _transform(decoded, shown, transform)
        annotations = {t: video["annotations"][t] for t in decoded}
        size = (video["height"], video["width"])
        instances = _annotate(annotations, shown, size, transform, images[0].shape[-2:])
        return {"frame_indices": indices, "image": images, "instances": instances}

    def _draw_frames(self, video: Mapping[str, Any], rng: np.random.Generator) -> List[int]:
        for _ in range(MOST_DRAWS):
            indices = self.sampler(video["length"], rng)
            if _shows(video, indices) or self._keeps_empty(rng):
                break
        return indices

    def _keeps_empty(self, rng: np.random.Generator) -> bool:
        # No number is drawn where every clip is kept, and none for a clip with objects.
        return self.keep_empty >= 1 or rng.random() < self.keep_empty

    def _copies(self, image: Mapping[str, Any], rng: np.random.Generator) -> List[int]:
        """Positions in the clip of an image: as many as the sampler takes of a video."""
        if self.pseudo_clip is None:
            raise ValueError(
                f"image {image['video_id']} ({image['file_names'][0]}): a ClipMapper without "
                "pseudo_clip makes no clip of an image"
            )
        # All different: a frame that is there twice stands for a video that is too short.
        return list(range(len(self.sampler(self.pseudo_clip.num_frames, rng))))


def _shows(video: Mapping[str, Any], indices: Sequence[int]) -> bool:
    """Whether these frames (of an image: its only one) show an object that is no crowd."""
    frames = [0] if video.get("is_image", False) else indices
    return any(not a["iscrowd"] for t in frames for a in video["annotations"][t])


def _transform(
    decoded: Mapping[int, np.ndarray],
    indices: Sequence[int],
    transform: Union[ClipTransform, PseudoClipTransform],
) -> List[Tensor]:
    """The frames ``indices`` transformed; each has memory of its own."""
    made: Dict[Any, Tensor] = {}
    images = []
    for i, t in enumerate(indices):
        key = (t, transform.motion(i), transform.jitter(i))
        if key in made:
            images.append(made[key].clone())
            continue
        made[key] = transform.image(decoded[t], i)
        images.append(made[key])
    return images


def _annotate(
    annotations: Mapping[int, Sequence[Mapping[str, Any]]],
    indices: Sequence[int],
    size: Tuple[int, int],
    transform: Union[ClipTransform, PseudoClipTransform],
    new_size: Sequence[int],
) -> List[Instances]:
    """Turns the annotations of T frames into T Instances with aligned rows.

    Args:
        annotations: by frame of the video, those of a video dict.
        indices: the T frames.
        size: (H, W) on disk.
        transform: what was done to the frames.
        new_size: (h, w) of the transformed frames.
    """
    things = {t: [a for a in annotations[t] if not a["iscrowd"]] for t in annotations}
    classes = {a["id"]: a["category_id"] for frame in things.values() for a in frame}
    rows = {track_id: row for row, track_id in enumerate(sorted(classes))}
    masks = torch.zeros((len(indices), len(rows), *new_size), dtype=torch.bool)  # (T, N, h, w)
    for t, frame in things.items():
        if frame:
            # Sets registered by other packages keep masks as their files have them.
            rles = rle.from_segmentations([a["segmentation"] for a in frame], size)
            decoded = rle.decode(rles, size)
            places = [i for i, shown in enumerate(indices) if shown == t]
            moved = _move(decoded, places, transform)
            for i in places:
                masks[i, [rows[a["id"]] for a in frame]] = moved[transform.motion(i)]
    visible = masks.flatten(2).any(dim=2)  # (T, N, h, w) -> (T, N, h * w) -> (T, N)
    keep = visible.any(dim=0)
    ids = torch.tensor(sorted(classes), dtype=torch.int64)[keep]
    labels = torch.tensor([classes[i] for i in ids.tolist()], dtype=torch.int64)
    return [_instances(labels, ids, visible[i, keep], masks[i, keep]) for i in range(len(masks))]


def _move(
    masks: Tensor, places: Sequence[int], transform: Union[ClipTransform, PseudoClipTransform]
) -> Dict[Hashable, Tensor]:
    """One frame's masks as they are in its places in the clip, by motion."""
    moved: Dict[Hashable, Tensor] = {}
    for i in places:
        if transform.motion(i) not in moved:
            moved[transform.motion(i)] = transform.masks(masks, i)
    return moved


def _instances(labels: Tensor, ids: Tensor, visible: Tensor, masks: Tensor) -> Instances:
    bitmasks = BitMasks(masks)
    boxes = bitmasks.get_bounding_boxes() if len(masks) else Boxes(torch.zeros((0, 4)))
    return Instances(
        tuple(masks.shape[1:]),
        gt_classes=labels,
        gt_ids=ids,
        gt_visible=visible,
        gt_boxes=boxes,
        gt_masks=bitmasks,
    )
