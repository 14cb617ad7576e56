"""What is inside compressed COCO RLE strings, for many strings at once.

pycocotools keeps the run lengths to itself, and its C code trusts every string it is given: a
broken one can make it read or write outside its memory. Here they are read in numpy, to be checked
and to be computed with.
"""

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from pycocotools import mask as coco_mask

RLE = Dict[str, Any]  # {"size": [H, W], "counts": str}

# A character is 48 + 6 bits. The highest says that one more follows; without it, the next is the
# sign of the other five.
_UNFINISHED = bytes(range(80, 112))
_LAST_BITS = bytes(((c - 48 & 31 ^ 16) - 16) & 255 for c in range(256))
# A run of 2**32 pixels takes 7 characters of 5 bits; a longer number can only be garbage.
_MAX_CHARACTERS = 7
# With numpy 2, pycocotools 2.0.11 cannot take the area of more than 255 masks in one call.
_AREAS_PER_CALL = 255


class Runs(NamedTuple):
    """Run lengths of n masks in column-major pixel order, in pairs of background and foreground.

    Attributes:
        background, foreground: (R,) int32, those of all masks one after the other, in pixels.
            Larger numbers wrap around as in the C code, so that both see the same mask.
        offsets: (n + 1,) int64; those of mask i are at ``offsets[i]:offsets[i + 1]``.
        added: places of foreground runs of length 0 that are not in the strings: they complete the
            pairs of masks that end with background.
        areas: (n,) int64 pixels of foreground.
    """

    background: np.ndarray
    foreground: np.ndarray
    offsets: np.ndarray
    added: np.ndarray
    areas: np.ndarray

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
        opening = self.background[starts]
        total = np.add.reduceat(self.background, starts, dtype=np.int64) + self.areas
        self.background[starts] = self.foreground[self.added] = 1  # these may be 0
        shortest = np.minimum.reduceat(self.background, starts)
        shortest = np.minimum(shortest, np.minimum.reduceat(self.foreground, starts))
        self.background[starts], self.foreground[self.added] = opening, 0
        return (total == pixels) & (opening >= 0) & (shortest >= 0), shortest != 0


def read_runs(strings: Sequence[str]) -> Runs:
    """Read the ``counts`` of n compressed RLEs, at least one.

    Raises:
        ValueError: one of the strings is not of the form that pycocotools writes.
    """
    # Nearly all masks end with background. With one more number, all of them are pairs.
    ended = np.zeros(len(strings), bool)
    text, unfinished, offsets = _characters(strings, ended)
    if (np.diff(offsets) % 2).any():
        ended = np.diff(offsets) % 2 == 1
        text, unfinished, offsets = _characters(strings, ended)
    offsets = offsets // 2
    added = offsets[1:][~ended] - 1
    background, foreground = _undo_deltas(_numbers(text, unfinished), offsets)
    foreground[added] = 0
    areas = np.add.reduceat(foreground, offsets[:-1], dtype=np.int64)
    return Runs(background, foreground, offsets, added, areas)


def run_lengths(strings: Sequence[str]) -> Tuple[np.ndarray, np.ndarray]:
    """Read the ``counts`` of n compressed RLEs.

    Returns:
        lengths: (R,) int32, the runs of all masks one after the other, background first.
        offsets: (n + 1,) int64; those of mask i are ``lengths[offsets[i]:offsets[i + 1]]``.

    Raises:
        ValueError: one of the strings is not of the form that pycocotools writes.
    """
    if not strings:
        return np.zeros(0, np.int32), np.zeros(1, np.int64)
    runs = read_runs(strings)
    lengths = np.stack([runs.background, runs.foreground], axis=1).reshape(-1)
    before = np.searchsorted(runs.added, runs.offsets)  # how many were added
    return np.delete(lengths, 2 * runs.added + 1), 2 * runs.offsets - before


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
        runs = read_runs([s if isinstance(s, str) else s.decode("latin1") for s in strings])
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


def _characters(strings: Sequence[str], ended: np.ndarray) -> Tuple[bytes, np.ndarray, np.ndarray]:
    """The strings in one, each with a number of one character behind it if it has not ``ended``.

    Returns:
        The text, the places of characters that do not end a number, ``offsets`` of the numbers.
    """
    stops = np.cumsum(np.fromiter(map(len, strings), np.int64, len(strings)) + ~ended)
    if ended.any():
        joined = "".join(s if end else s + "0" for s, end in zip(strings, ended.tolist()))
    else:
        joined = "0".join(strings) + "0"
    text = joined.encode("latin1", "replace")
    data = np.frombuffer(text, np.uint8)
    last = data[stops - ~ended - 1]
    if not all(strings) or data.min() < 48 or data.max() > 111 or last.max() > 79:
        raise ValueError("not a compressed COCO RLE string")
    unfinished = np.flatnonzero(data > 79)
    offsets = np.zeros(len(strings) + 1, np.int64)
    offsets[1:] = stops - np.searchsorted(unfinished, stops)
    return text, unfinished, offsets


def _numbers(text: bytes, unfinished: np.ndarray) -> np.ndarray:
    """The signed numbers that the characters spell: 5 bits each, lowest first, sign in the last."""
    final = text.translate(_LAST_BITS, _UNFINISHED)  # one pass in C instead of three in numpy
    numbers = np.frombuffer(final, np.int8).astype(np.int32)
    if len(unfinished):  # few: nearly all numbers have one character
        which = unfinished - np.arange(len(unfinished))  # index of the number they belong to
        bits = (np.frombuffer(text, np.uint8)[unfinished] - np.uint8(48)) & 31
        for _ in range(_MAX_CHARACTERS - 1):  # from the last but one of each number to its first
            last = np.append(which[1:] != which[:-1], True)
            here = which[last]
            numbers[here] = (numbers[here] << 5) + bits[last]
            which, bits = which[~last], bits[~last]
            if not len(which):
                return numbers
        raise ValueError("not a compressed COCO RLE string")
    return numbers


def _undo_deltas(numbers: np.ndarray, offsets: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Background and foreground runs.

    From its fourth number on, a string holds differences to the number two places before. So a sum
    runs through the background and one through the foreground of each string. They run on through
    all strings here; what they had reached before a string is subtracted afterwards.
    """
    starts, amounts = offsets[:-1], np.diff(offsets)
    background, foreground = numbers[0::2], numbers[1::2]
    opening = background[starts]  # the first number is in no sum
    background = np.cumsum(background, dtype=np.int32)
    background -= np.repeat(background[starts], amounts)
    background[starts] = opening
    before = foreground[starts]
    foreground = np.cumsum(foreground, dtype=np.int32)
    foreground -= np.repeat(foreground[starts] - before, amounts)
    return background, foreground
