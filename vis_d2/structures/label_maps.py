"""Formats in which a pixel has one owner: pictures of object numbers, and the lines of MOTS."""

import re
from pathlib import Path, PurePosixPath
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from . import rle as rle_ops
from .rle_counts import RLE

__all__ = [
    "MOTS_PER_CLASS",
    "frame_number",
    "frame_numbers",
    "mots_line",
    "paint_numbers",
    "save_numbers",
    "split_numbers",
]

MOTS_PER_CLASS = 1000  # an object of MOTS is class * 1000 + number of the object
_MOST_FRAMES = 100_000  # a larger number in a file name is a date or a time


def frame_number(name: str) -> Optional[int]:
    """The last number in the name of a frame's file; None without one."""
    digits = re.findall("[0-9]+", PurePosixPath(name.replace("\\", "/")).stem)
    return int(digits[-1]) if digits and len(digits[-1]) < 19 else None


def frame_numbers(file_names: Sequence[str]) -> List[int]:
    """The number of each frame as MOTS text counts it.

    That is the number of its image, so that text and images go together as in KITTI MOTS (images
    from 000000) and in the MOT challenge (from 000001). Where an image has no number, or they do
    not ascend, frames count from 0.
    """
    numbers = [frame_number(name) for name in file_names]
    ascending = None not in numbers and all(a < b for a, b in zip(numbers, numbers[1:]))
    sound = ascending and (not numbers or numbers[-1] < _MOST_FRAMES)
    return numbers if sound else list(range(len(numbers)))


def mots_line(frame: int, class_id: int, number: int, mask: RLE) -> str:
    """A line of MOTS text with its line break: ``frame object class height width rle``.

    Args:
        frame: see :func:`frame_numbers`.
        class_id: a category id.
        number: of the object in its class and video, below :data:`MOTS_PER_CLASS`.
        mask: compressed.
    """
    height, width = mask["size"]
    object_id = class_id * MOTS_PER_CLASS + number
    return f"{frame} {object_id} {class_id} {height} {width} {mask['counts']}\n"


def paint_numbers(size: Tuple[int, int], masks: Iterable[Tuple[int, RLE]]) -> np.ndarray:
    """A picture of numbers, (H, W) uint16, 0 where there is no mask.

    Args:
        size: (H, W).
        masks: number, up to 65535, and mask of each object; a later one hides those before it.
    """
    labels = np.zeros(size, np.uint16)
    for number, mask in masks:
        labels[coco_mask.decode(mask).astype(bool)] = number
    return labels


def split_numbers(labels: np.ndarray) -> Dict[int, RLE]:
    """The mask of each number except 0 in a picture, ascending."""
    numbers = [number for number in np.unique(labels).tolist() if number]
    if not numbers:
        return {}
    masks = labels[None] == np.array(numbers)[:, None, None]  # (n, H, W)
    return dict(zip(numbers, rle_ops.encode_array(masks)))


def save_numbers(path: Path, labels: np.ndarray, palette: Optional[Sequence[int]] = None) -> None:
    """Write a PNG: 8 bits for uint8, 16 bits for uint16.

    Args:
        path: its folder is made if it does not exist.
        labels: (H, W).
        palette: red, green, blue of each number, one after the other, for uint8; None: grey.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette is not None and labels.dtype == np.uint8:
        image.putpalette(list(palette))
    image.save(path)
