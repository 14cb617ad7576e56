"""What is inside compressed COCO RLE strings, for many strings at once.

pycocotools keeps the run lengths to itself, and its C code trusts every string it is given: a
broken one can make it read or write outside its memory. Here they are read in numpy, to be checked.
"""

from typing import Any, Dict, Optional, Sequence, Tuple

import numpy as np
from pycocotools import mask as coco_mask

RLE = Dict[str, Any]  # {"size": [H, W], "counts": str}

# A run of 2**32 pixels takes 7 characters of 5 bits; a longer number can only be garbage.
_MAX_CHARACTERS = 7
# With numpy 2, pycocotools 2.0.11 cannot take the area of more than 255 masks in one call.
_AREAS_PER_CALL = 255


def run_lengths(rles: Sequence[RLE]) -> Tuple[np.ndarray, np.ndarray]:
    """Run lengths of compressed RLEs in column-major pixel order, background first.

    Args:
        rles: n RLEs whose ``counts`` are ``str`` or ``bytes``.

    Returns:
        runs: int64, the run lengths of all RLEs one after the other, in pixels.
        offsets: int64 (n + 1,); those of RLE i are ``runs[offsets[i]:offsets[i + 1]]``.

    Raises:
        ValueError: one of the strings is not of the form that pycocotools writes.
    """
    strings = [rle["counts"] for rle in rles]
    strings = [s.encode("latin1", "replace") if isinstance(s, str) else s for s in strings]
    last = np.cumsum(np.fromiter(map(len, strings), np.int64, len(strings))) - 1
    if not strings:
        return np.zeros(0, np.int64), np.zeros(1, np.int64)
    data = np.frombuffer(b"".join(strings), np.uint8) - np.uint8(48)  # 6 bits; bit 5: one more
    ends = np.flatnonzero(data < 32)  # last character of each number
    sizes = np.diff(ends, prepend=-1)
    sound = all(map(len, strings)) and data.max() < 64 and (data[last] < 32).all()
    if not sound or sizes.max() > _MAX_CHARACTERS:
        raise ValueError("not a compressed COCO RLE string")
    offsets = np.concatenate([[0], np.searchsorted(ends, last, side="right")])
    return _undo_deltas(_numbers(data, ends, sizes), offsets), offsets


def check(rles: Sequence[RLE]) -> Tuple[np.ndarray, np.ndarray]:
    """Which compressed RLEs pycocotools can be trusted with.

    Args:
        rles: n RLEs whose ``counts`` are ``str`` or ``bytes`` and whose ``size`` is [H, W].

    Returns:
        valid: (n,) bool, readable and covering exactly the pixels of ``size``.
        tidy: (n,) bool, without runs of length 0 after the first one. pycocotools decodes those,
            but stops at them when it compares two masks.
    """
    if not len(rles):
        return np.zeros(0, bool), np.zeros(0, bool)
    try:
        runs, offsets = run_lengths(rles)
    except ValueError:
        if len(rles) == 1:
            return np.zeros(1, bool), np.ones(1, bool)
        valid, tidy = zip(*(check([rle]) for rle in rles))
        return np.concatenate(valid), np.concatenate(tidy)
    starts = offsets[:-1]
    pixels = np.array([rle["size"][0] * rle["size"][1] for rle in rles])
    valid = (np.add.reduceat(runs, starts) == pixels) & (runs[starts] >= 0)
    runs[starts] = 1  # the first may be 0
    shortest = np.minimum.reduceat(runs, starts)
    return valid & (shortest >= 0), shortest != 0


def areas(rles: Sequence[Optional[RLE]]) -> np.ndarray:
    """Pixels of each mask, (n,) int64; 0 for None."""
    result = np.zeros(len(rles), np.int64)
    present = [i for i, rle in enumerate(rles) if rle is not None]
    for start in range(0, len(present), _AREAS_PER_CALL):
        chunk = present[start : start + _AREAS_PER_CALL]
        result[chunk] = coco_mask.area([rles[i] for i in chunk])
    return result


def _numbers(data: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The signed numbers that the characters spell: 5 bits each, lowest first, sign in the last."""
    numbers = ((data[ends].astype(np.int8) ^ 16) - 16).astype(np.int64)
    for size in range(2, int(sizes.max()) + 1):  # rare: nearly all numbers have one character
        chosen = np.flatnonzero(sizes == size)
        first = ends[chosen] - (size - 1)
        value = numbers[chosen] << (5 * (size - 1))
        for k in range(size - 1):
            value |= (data[first + k].astype(np.int64) & 31) << (5 * k)
        numbers[chosen] = value
    return numbers


def _undo_deltas(numbers: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """From its fourth number on, a string holds differences to the number two places before."""
    amounts = np.diff(offsets)
    rows = (amounts + 1) // 2  # whole rows per RLE: column 0 background, column 1 foreground
    first_row = np.cumsum(rows) - rows
    slots = np.arange(len(numbers)) + np.repeat(2 * first_row - offsets[:-1], amounts)
    table = np.zeros(2 * int(rows.sum()), np.int64)
    table[slots] = numbers
    very_first = table[2 * first_row]
    table[2 * first_row] = 0  # the third number is not relative to the first
    table = table.reshape(-1, 2)  # (2 * rows,) -> (rows, 2)
    sums = np.cumsum(table, axis=0)
    sums -= np.repeat(sums[first_row] - table[first_row], rows, axis=0)
    runs = sums.reshape(-1)  # (rows, 2) -> (2 * rows,)
    runs[2 * first_row] = very_first
    return runs[slots]
