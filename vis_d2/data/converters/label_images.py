"""Pictures whose pixels are numbers of objects."""

from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from vis_d2.structures import rle as rle_ops
from vis_d2.structures.label_maps import paint_numbers
from vis_d2.structures.rle import RLE

from .clips import Clip, ClipTrack, Notes
from .shapes import MOST_PIXELS

__all__ = ["PALETTE", "VOID", "paint", "read_labels"]

VOID = 255  # of palette pictures: neither an object nor background


def _palette() -> np.ndarray:
    """The 256 colours of PASCAL VOC and DAVIS, (256, 3): the bits of the index, spread."""
    index = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colors


PALETTE = _palette()


def read_labels(path: Path) -> np.ndarray:
    """The numbers in a picture: (H, W) uint8 or uint16, 0 where there is nothing.

    A picture with a palette gives its indices, :data:`VOID` set to 0; a grey one its values, except
    that black and white alone mean one object; a coloured one the places of its colours in
    :data:`PALETTE`.

    Raises:
        ValueError: not a picture, or a colour that is not in the palette.
    """
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.array(image)
    except (UnidentifiedImageError, SyntaxError, OSError, Image.DecompressionBombError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} cannot be read as an image: {error}") from None
    if mode in ("1", "L", "P"):
        labels = pixels.astype(np.uint8)
        if mode == "1" or (mode == "L" and not ((labels > 0) & (labels < 255)).any()):
            return (labels > 0).astype(np.uint8)
        labels[labels == VOID] = 0
        return labels
    if mode in ("I", "I;16", "I;16B", "I;16L"):
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"{path}: numbers of objects go from 0 to 65535")
        return pixels.astype(np.uint16)
    if mode in ("RGB", "RGBA"):
        return _labels_of_colors(path, pixels[..., :3])
    raise ValueError(f"{path}: expected a picture with a palette or a grey one, got mode {mode}")


def _labels_of_colors(path: Path, pixels: np.ndarray) -> np.ndarray:
    weights = np.array([1 << 16, 1 << 8, 1])
    codes, inverse = np.unique(pixels @ weights, return_inverse=True)
    index_of = {tuple(color): i for i, color in enumerate(PALETTE.tolist())}
    labels = np.zeros(len(codes), np.uint8)
    for i, code in enumerate(codes.tolist()):
        # DAVIS has 191 where VOC has 192.
        color = tuple((value + 1) // 2 * 2 for value in code.to_bytes(3, "big"))
        if color not in index_of:
            raise ValueError(
                f"{path}: colour #{code:06x} is not in the palette of DAVIS; save the masks with a "
                "palette, or in grey"
            )
        labels[i] = index_of[color]
    labels[labels == VOID] = 0
    return labels[inverse].reshape(pixels.shape[:2])


def paint(
    clip: Clip, tracks: Sequence[Tuple[int, ClipTrack]], t: int, notes: Notes
) -> Tuple[np.ndarray, List[int]]:
    """Draws the objects of one frame into a picture of numbers.

    Where objects overlap, the smaller one is seen: the other way round it might vanish.

    Args:
        clip: whose size it is.
        tracks: number and track of each object.
        t: the frame.
        notes: receives the pixels that two objects claim.

    Returns:
        (H, W) uint16, and the numbers that are to be seen.

    Raises:
        ValueError: the picture would be too large.
    """
    if clip.height * clip.width > MOST_PIXELS:
        raise ValueError(f"{clip.name}: {clip.height}x{clip.width} is too large for a picture")
    seen: List[Tuple[int, RLE]] = []
    for number, track in tracks:
        mask: Optional[RLE] = track.masks[t]
        if mask is not None:
            seen.append((number, mask))
    areas = rle_ops.areas([mask for _, mask in seen])
    order = np.argsort(-areas, kind="stable")
    labels = paint_numbers((clip.height, clip.width), (seen[i] for i in order))
    overlap = int(areas.sum()) - int(np.count_nonzero(labels))
    notes.add("pixels of overlapping objects given to the smaller one",
              f"{clip.name}, frame {t}", overlap)  # fmt: skip
    return labels, [number for number in np.unique(labels).tolist() if number]
