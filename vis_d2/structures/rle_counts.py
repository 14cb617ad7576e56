"""What is inside compressed COCO RLE strings, for many strings at once.

pycocotools keeps the run lengths to itself, and its C code trusts every string it is given: a
broken one can make it read or write outside its memory. Here they are read in numpy, to be checked
and to be computed with.
"""

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from pycocotools import mask as coco_mask

RLE = Dict[str, Any]  # {"size": [H, W], "counts": str}

# A run of 2**32 pixels takes 7 characters of 5 bits; a longer number can only be garbage.
_MAX_CHARACTERS = 7
# With numpy 2, pycocotools 2.0.11 cannot take the area of more than 255 masks in one call.
_AREAS_PER_CALL = 255


class Runs(NamedTuple):
    """Run lengths of n masks in column-major pixel order, background first.

    Attributes:
        lengths: (R,) int32, those of all masks one after the other, in pixels. Larger numbers wrap
            around as in the C code, so that both see the same mask.
        offsets: (n + 1,) int64; those of mask i are ``lengths[offsets[i]:offsets[i + 1]]``.
    """

    lengths: np.ndarray
    offsets: np.ndarray

    def check(self, pixels: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Which masks pycocotools can be trusted with.

        Args:
            pixels: (n,) or a number, the pixels of a frame.

        Returns:
            valid: (n,) bool, covering exactly the pixels of the frame.
            tidy: (n,) bool, without runs of length 0 after the first one. pycocotools decodes
                those, but stops at them when it compares two masks.
        """
        starts = self.offsets[:-1]
        opening = self.lengths[starts]
        valid = (np.add.reduceat(self.lengths, starts) == pixels) & (opening >= 0)
        self.lengths[starts] = 1  # the first may be 0
        shortest = np.minimum.reduceat(self.lengths, starts)
        self.lengths[starts] = opening
        return valid & (shortest >= 0), shortest != 0

    def areas(self) -> np.ndarray:
        """(n,) int64 pixels of valid masks."""
        signed = self.lengths.copy()
        np.negative(signed[1::2], out=signed[1::2])
        starts = self.offsets[:-1]
        balance = np.add.reduceat(signed, starts)  # background minus foreground, or the opposite
        balance = np.where(starts % 2 == 1, balance, -balance).astype(np.int64)
        return (np.add.reduceat(self.lengths, starts) + balance) // 2


def run_lengths(strings: Sequence[str]) -> Runs:
    """Read the ``counts`` of n compressed RLEs.

    Raises:
        ValueError: one of the strings is not of the form that pycocotools writes.
    """
    if not strings:
        return Runs(np.zeros(0, np.int32), np.zeros(1, np.int64))
    text = "".join(strings).encode("latin1", "replace")
    last = np.cumsum(np.fromiter(map(len, strings), np.int64, len(strings))) - 1
    data = np.frombuffer(text, np.uint8) - np.uint8(48)  # 6 bits; bit 5: one more character
    if not all(strings) or data.max() > 63 or data[last].max() > 31:
        raise ValueError("not a compressed COCO RLE string")
    unfinished = np.flatnonzero(data > 31)
    offsets = np.zeros(len(strings) + 1, np.int64)
    offsets[1:] = last + 1 - np.searchsorted(unfinished, last)
    return Runs(_undo_deltas(_numbers(data, unfinished), offsets), offsets)


def check(rles: Sequence[RLE]) -> Tuple[np.ndarray, np.ndarray]:
    """Which compressed RLEs pycocotools can be trusted with.

    Args:
        rles: n RLEs whose ``counts`` are ``str`` or ``bytes`` and whose ``size`` is [H, W].

    Returns:
        ``valid`` and ``tidy`` of :meth:`Runs.check`; one that cannot be read is not valid.
    """
    if not len(rles):
        return np.zeros(0, bool), np.zeros(0, bool)
    strings = [rle["counts"] for rle in rles]
    try:
        runs = run_lengths([s if isinstance(s, str) else s.decode("latin1") for s in strings])
    except ValueError:
        if len(rles) == 1:
            return np.zeros(1, bool), np.ones(1, bool)
        valid, tidy = zip(*(check([rle]) for rle in rles))
        return np.concatenate(valid), np.concatenate(tidy)
    return runs.check(np.array([rle["size"][0] * rle["size"][1] for rle in rles]))


def areas(rles: Sequence[Optional[RLE]]) -> np.ndarray:
    """Pixels of each mask, (n,) int64; 0 for None."""
    result = np.zeros(len(rles), np.int64)
    present = [i for i, rle in enumerate(rles) if rle is not None]
    for start in range(0, len(present), _AREAS_PER_CALL):
        chunk = present[start : start + _AREAS_PER_CALL]
        result[chunk] = coco_mask.area([rles[i] for i in chunk])
    return result


def _numbers(data: np.ndarray, unfinished: np.ndarray) -> np.ndarray:
    """The signed numbers that the characters spell: 5 bits each, lowest first, sign in the last."""
    final = data[np.flatnonzero(data < 32)]
    numbers = ((final ^ 16).view(np.int8) - np.int8(16)).astype(np.int32)
    if len(unfinished):  # few: nearly all numbers have one character
        which = unfinished - np.arange(len(unfinished))  # index of the number they belong to
        first = np.flatnonzero(np.diff(which, prepend=-1))
        amount = np.diff(first, append=len(which)).astype(np.int32)
        if amount.max() >= _MAX_CHARACTERS:
            raise ValueError("not a compressed COCO RLE string")
        place = np.arange(len(which), dtype=np.int32) - np.repeat(first.astype(np.int32), amount)
        parts = (data[unfinished] & 31).astype(np.int32) << (5 * place)
        which = which[first]
        numbers[which] = (numbers[which] << (5 * amount)) + np.add.reduceat(parts, first)
    return numbers


def _undo_deltas(numbers: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """From its fourth number on, a string holds differences to the number two places before.

    So two sums run through each string, over every other number. They run on through all strings
    here; what they had reached before a string is subtracted afterwards.
    """
    sums = np.empty_like(numbers)
    for k in (0, 1):
        np.cumsum(numbers[k::2], out=sums[k::2], dtype=numbers.dtype)
    start, last = offsets[:-1], len(numbers) - 1
    before = []  # the third number starts one sum, the second the other; the first is not relative
    for n in (2, 1):
        place = np.minimum(start + n, last)
        before.append(sums[place] - numbers[place])
    odd = start % 2 == 1
    half = (offsets + 1) // 2
    sums[::2] -= np.repeat(np.where(odd, before[1], before[0]), np.diff(half))
    sums[1::2] -= np.repeat(np.where(odd, before[0], before[1]), np.diff(offsets - half))
    sums[start] = numbers[start]
    return sums
