"""Run-length masks: the one form in which masks leave a model, sit in a file and are compared.

An RLE is ``{"size": [H, W], "counts": str}``, the compressed COCO form with ``counts`` as text, so
that it can be written to JSON as it is. An object that is absent from a frame is None.
"""

from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, List, Optional, Sequence, Tuple

import numpy as np
from pycocotools import mask as coco_mask

from .mask_stack import MaskStack, read_stack
from .rle_counts import RLE, areas, check, run_lengths
from .tube_iou import tube_iou

if TYPE_CHECKING:  # torch takes seconds to import, and scoring files does not need it
    from torch import Tensor

__all__ = [
    "Masks",
    "RLE",
    "SegmentationError",
    "area",
    "areas",
    "boxes",
    "decode",
    "encode",
    "encode_array",
    "from_segmentation",
    "from_segmentations",
    "read_masks",
    "shorten",
    "tube_iou",
]


# These and map() run in C, which counts with hundreds of thousands of masks.
_size_of, _counts_of = itemgetter("size"), itemgetter("counts")


def encode(masks: "Tensor") -> List[Optional[RLE]]:
    """Encode masks.

    Args:
        masks: (n, H, W) bool.

    Returns:
        n RLEs, None for a mask without a pixel.
    """
    if masks.dim() != 3:
        raise ValueError(f"masks must be (n, H, W), got {tuple(masks.shape)}")
    return _encode_columns(masks.detach().bool().cpu().transpose(1, 2).contiguous().numpy())


def encode_array(masks: np.ndarray) -> List[Optional[RLE]]:
    """:func:`encode` for an array (n, H, W) bool."""
    if masks.ndim != 3:
        raise ValueError(f"masks must be (n, H, W), got {masks.shape}")
    return _encode_columns(np.ascontiguousarray(masks.transpose(0, 2, 1), dtype=bool))


def _encode_columns(columns: np.ndarray) -> List[Optional[RLE]]:
    # COCO runs go down the columns: (n, W, H) in memory is what its encoder calls (H, W, n).
    columns = columns.view(np.uint8)
    keep = columns.any(axis=(1, 2))
    encoded = iter(coco_mask.encode(columns[keep].transpose(2, 1, 0)) if keep.any() else ())
    return [_as_text(next(encoded)) if present else None for present in keep]


def decode(rles: Sequence[Optional[RLE]], size: Tuple[int, int]) -> "Tensor":
    """Decode masks.

    Args:
        rles: n RLEs; None is an empty mask.
        size: (H, W) that every RLE must have.

    Returns:
        (n, H, W) bool.

    Raises:
        ValueError: an RLE has another size.
    """
    import torch

    masks = torch.zeros((len(rles), size[0], size[1]), dtype=torch.bool)
    present = [i for i, rle in enumerate(rles) if rle is not None]
    for i in present:
        if tuple(rles[i]["size"]) != tuple(size):
            raise ValueError(f"mask {i} has size {rles[i]['size']}, expected {list(size)}")
    if present:
        dense = coco_mask.decode([rles[i] for i in present]).transpose(2, 0, 1)  # (n, H, W)
        masks[present] = torch.from_numpy(dense).bool()
    return masks


def from_segmentation(segmentation: Any, size: Tuple[int, int]) -> RLE:
    """The RLE of a mask as annotation files write it.

    Args:
        segmentation: polygons (list of [x0, y0, x1, y1, ...] in pixels), an RLE with a list of run
            lengths, or a compressed RLE (``str`` or ``bytes``).
        size: (H, W) of the frame.

    Raises:
        ValueError: none of these, of another size, or not well-formed.
    """
    rle = from_segmentations([segmentation], size)[0]
    if rle is None:
        raise ValueError(f"expected polygons or an RLE, got {segmentation!r}")
    return rle


def from_segmentations(
    segmentations: Sequence[Any], size: Tuple[int, int], *, any_size: bool = False
) -> List[Optional[RLE]]:
    """The same for many masks, much faster than one by one; see :func:`read_masks`."""
    return read_masks(segmentations, size, any_size=any_size).rles


@dataclass(frozen=True)
class Masks:
    """Masks that have been read and checked.

    Attributes:
        rles: n RLEs, None for an absent object.
        present: (n,) bool, those that are not None.
        areas: (n,) int64 pixels, 0 where absent.
        stack: those that are present, as numbers; None if they differ in size.
    """

    rles: List[Optional[RLE]]
    present: np.ndarray
    areas: np.ndarray
    stack: Optional[MaskStack]


def read_masks(
    segmentations: Sequence[Any], size: Tuple[int, int], *, any_size: bool = False
) -> Masks:
    """Read the masks of a file.

    Args:
        segmentations: n masks as in :func:`from_segmentation`; None and an empty list stand for
            an absent object and give None.
        size: (H, W) of the frame.
        any_size: accept RLEs of other sizes and leave them at their own.

    Raises:
        SegmentationError: a ValueError whose ``index`` tells which one is malformed.
    """
    rles: List[Optional[RLE]] = list(segmentations)
    if not _are_ours(rles, None if any_size else list(size)):
        rles = _each_compressed(segmentations, size, any_size)
    present = [i for i, rle in enumerate(rles) if rle is not None]
    given = [rles[i] for i in present]
    stack, valid, tidy = _read(given, size)
    for i in np.flatnonzero(~valid)[:1]:
        height, width = given[i]["size"]
        fault = f"run lengths do not fill {height} x {width}: {shorten(given[i]['counts'])}"
        raise SegmentationError(present[i], fault)
    if not tidy.all():
        for i in np.flatnonzero(~tidy):
            runs = run_lengths([given[i]["counts"]])[0].tolist()
            rles[present[i]] = _from_runs(runs, *given[i]["size"])
        return read_masks(rles, size, any_size=any_size)
    pixels = np.zeros(len(rles), np.int64)
    pixels[present] = areas(given) if stack is None else stack.areas
    seen = np.zeros(len(rles), bool)
    seen[present] = True
    return Masks(rles, seen, pixels, stack)


def _are_ours(values: Sequence[Any], size: Optional[List[int]]) -> bool:
    """Whether all masks are None or RLEs in the form that is used here, all of one size.

    Most files are. Their entries are shared, which saves a copy of each mask's dict.
    """
    rles = [value for value in values if value is not None]
    if not rles:
        return True
    if set(map(type, rles)) != {dict} or set(map(len, rles)) != {2}:
        return False
    try:
        sizes, counts = list(map(_size_of, rles)), map(_counts_of, rles)
        if set(map(type, counts)) != {str} or set(map(type, sizes)) != {list}:
            return False
    except KeyError:
        return False
    expected = sizes[0] if size is None else size
    if not _is_size(expected) or sizes.count(expected) < len(sizes):
        return False
    return set(map(type, chain.from_iterable(sizes))) == {int}  # 360.0 equals 360


def _each_compressed(
    segmentations: Sequence[Any], size: Tuple[int, int], any_size: bool
) -> List[Optional[RLE]]:
    rles: List[Optional[RLE]] = []
    for i, segmentation in enumerate(segmentations):
        try:
            rles.append(_to_compressed(segmentation, size, any_size))
        except ValueError as error:
            raise SegmentationError(i, str(error)) from None
    return rles


def _read(
    rles: Sequence[RLE], size: Tuple[int, int]
) -> Tuple[Optional[MaskStack], np.ndarray, np.ndarray]:
    """The masks as numbers, if they have one size and can be read; which are valid and tidy."""
    own = rles[0]["size"] if rles else size
    if list(map(_size_of, rles)).count(own) == len(rles):
        try:
            return read_stack(list(map(_counts_of, rles)), (int(own[0]), int(own[1])))
        except ValueError:
            pass  # the slow way tells which one it is
    return (None, *check(rles))


class SegmentationError(ValueError):
    """A mask that cannot be read; ``index`` is its place in the list that was given."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(message)
        self.index = index


def area(rles: Sequence[Optional[RLE]]) -> "Tensor":
    """Pixels of each mask, (n,) float64; 0 for None."""
    import torch

    return torch.from_numpy(areas(rles).astype(np.float64))


def boxes(rles: Sequence[Optional[RLE]]) -> "Tensor":
    """Tight boxes of masks, (n, 4) XYXY float32 in pixels; zeros for None and for empty masks."""
    import torch

    result = torch.zeros((len(rles), 4), dtype=torch.float32)
    present = [i for i, rle in enumerate(rles) if rle is not None]
    if present:
        xyxy = coco_mask.toBbox([rles[i] for i in present])
        xyxy[:, 2:] += xyxy[:, :2]
        result[present] = torch.from_numpy(xyxy).float()
    return result


def _to_compressed(segmentation: Any, size: Tuple[int, int], any_size: bool) -> Optional[RLE]:
    if segmentation is None:
        return None
    if isinstance(segmentation, (list, tuple)):
        return _from_polygons(segmentation, *map(int, size)) if segmentation else None
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise ValueError(f"expected polygons or an RLE, got {shorten(segmentation)}")
    found, counts = segmentation["size"], segmentation["counts"]
    if not _is_size(found) or not (any_size or tuple(found) == tuple(size)):
        raise ValueError(f"mask has size {shorten(found)}, expected {list(map(int, size))}")
    if isinstance(counts, (list, tuple)):
        return _from_runs(counts, *found)
    if not isinstance(counts, (str, bytes)):
        raise ValueError(f"counts must be a string or a list, got {shorten(counts)}")
    ours = len(segmentation) == 2 and isinstance(counts, str) and isinstance(found, list)
    return segmentation if ours else _as_text(segmentation)


def _from_polygons(polygons: Sequence[Any], height: int, width: int) -> RLE:
    if not _is_size((height, width)):
        raise ValueError("polygons need the height and width of the frame")
    # Far outside, the C rasteriser asks for memory in proportion to the coordinates.
    limit = 10 * max(height, width)
    for polygon in polygons:
        try:
            points = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            points = np.zeros(0)
        if points.ndim != 1 or len(points) < 6 or len(points) % 2:
            raise ValueError(f"expected a polygon of 3 or more x, y pairs, got {shorten(polygon)}")
        if not (np.abs(points) <= limit).all():
            raise ValueError(f"polygon leaves the {height} x {width} frame: {shorten(polygon)}")
    parts = coco_mask.frPyObjects([list(map(float, p)) for p in polygons], height, width)
    return _as_text(coco_mask.merge(parts))


def _from_runs(runs: Sequence[Any], height: int, width: int) -> RLE:
    sound = all(isinstance(n, int) and n >= 0 for n in runs)
    if not sound or sum(runs) != height * width:
        raise ValueError(f"run lengths do not fill {height} x {width}: {shorten(runs)}")
    tidy = list(runs[:1])
    for i, run in enumerate(runs[1:], start=1):
        if run and len(tidy) % 2 == i % 2:
            tidy.append(run)
        elif run:  # a run of length 0 came before: this one continues the last
            tidy[-1] += run
    return _as_text(coco_mask.frPyObjects({"size": [height, width], "counts": tidy}, height, width))


def _is_size(value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    height, width = value
    if not isinstance(height, (int, np.integer)) or not isinstance(width, (int, np.integer)):
        return False
    return height > 0 and width > 0 and height * width < 2**31  # the C code counts in 32 bits


def _as_text(rle: RLE) -> RLE:
    counts = rle["counts"]
    text = counts.decode("latin1") if isinstance(counts, bytes) else counts
    return {"size": [int(n) for n in rle["size"]], "counts": text}


def shorten(value: Any, length: int = 80) -> str:
    """``repr`` for an error message, cut to ``length`` characters."""
    try:
        text = repr(value)
    except RecursionError:  # JSON may be nested more deeply than the stack has left
        text = f"a {type(value).__name__} of many levels"
    return text if len(text) <= length else text[: length - 3] + "..."
