"""Masks as vertical spans, column by column: the form in which numpy can intersect many at once.

Most columns of most masks hold one span. The first span of each column therefore lies in a dense
table, where the spans of two masks are intersected by a minimum and a maximum; the others, where an
object has holes or arms, are kept in a list and looked up.
"""

from dataclasses import dataclass
from typing import Iterator, Optional, Tuple

import numpy as np

from .mask_stack import MaskStack

# Rows are counted in 16 bits, half the memory and twice the speed of 32.
MAX_HEIGHT = 2**16 - 1
# Numbers per step of a loop over large arrays, so that they stay in the processor's cache.
_BLOCK = 1 << 17


@dataclass(frozen=True)
class Spans:
    """The masks of n tubes over T frames, all (H, W).

    Attributes:
        first: (2, n, T, W) uint16, begin and end of the first span of each column; 0, 0 where the
            column is empty.
        boxes: (n, T, 4) int32 x0, y0, x1, y1, ends excluded; x0 > x1 where the mask is empty.
        tube, frame, column: (S,) int64, where the other spans are, tube by tube.
        begin, end: (S,) uint16, their rows.
    """

    first: np.ndarray
    boxes: np.ndarray
    tube: np.ndarray
    frame: np.ndarray
    column: np.ndarray
    begin: np.ndarray
    end: np.ndarray

    def tubes(self, start: int, stop: int) -> "Spans":
        """Some of the tubes; shares memory."""
        lo, hi = np.searchsorted(self.tube, (start, stop))
        more = (values[lo:hi] for values in (self.frame, self.column, self.begin, self.end))
        dense = self.first[:, start:stop], self.boxes[start:stop]
        return Spans(*dense, self.tube[lo:hi] - start, *more)


def column_spans(
    stack: MaskStack, masks: np.ndarray, rows: np.ndarray, shape: Tuple[int, int]
) -> Spans:
    """Spans of some masks of a stack.

    Args:
        stack: valid masks, of height ``MAX_HEIGHT`` at most.
        masks: (m,) which ones.
        rows: (m,) ascending, the place of each among the n * T of the result.
        shape: (n, T).
    """
    width = stack.size[1]
    slot, begin, end, amounts = _split_by_column(stack, masks, rows)
    first = np.zeros((2, *shape, width), np.uint16)
    opens = np.ones(len(slot), bool)
    np.not_equal(slot[1:], slot[:-1], out=opens[1:])
    others = np.flatnonzero(~opens)
    places, values = (slot, (begin, end))
    if len(others):
        places, values = slot[opens], (begin[opens], end[opens])
    for table, value in zip(first, values):
        table.reshape(-1)[places] = value
    row, at = np.divmod(slot[others], width)
    tube, frame = np.divmod(row, shape[1])
    boxes = _boxes(rows, slot, begin, end, amounts, width, shape)
    return Spans(first, boxes, tube, frame, at, begin[others], end[others])


def _split_by_column(
    stack: MaskStack, masks: np.ndarray, rows: np.ndarray
) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each span its column among those of all rows, its rows; and the spans of each mask."""
    height, width = stack.size
    starts = stack.offsets[masks]
    amounts = (stack.offsets[masks + 1] - starts) // 2  # foreground runs
    index = np.repeat(starts - 2 * (np.cumsum(amounts) - amounts), amounts)
    index += np.arange(0, 2 * len(index), 2)
    begin = stack.ends[index]
    index += 1
    end = stack.ends[index]
    column = begin // height
    top = column * height
    if (end - top > height).any():  # runs that go on at the top of the next column
        pieces = (end - 1) // height - column + 1
        before = np.cumsum(pieces) - pieces
        step = np.arange(int(pieces.sum()), dtype=np.int32) - np.repeat(before, pieces)
        amounts = _sums(pieces, amounts)
        column = np.repeat(column, pieces) + step
        top = column * height
        begin = np.maximum(np.repeat(begin, pieces), top)
        end = np.minimum(np.repeat(end, pieces), top + height)
    slot = column + np.repeat(rows * width, amounts)
    return slot, (begin - top).astype(np.uint16), (end - top).astype(np.uint16), amounts


def _sums(values: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Sums of consecutive parts, some of which may be empty."""
    total = np.concatenate([[0], np.cumsum(values)])
    stops = np.cumsum(amounts)
    return total[stops] - total[stops - amounts]


def _boxes(
    rows: np.ndarray,
    slot: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    amounts: np.ndarray,
    width: int,
    shape: Tuple[int, int],
) -> np.ndarray:
    boxes = np.zeros((shape[0] * shape[1], 4), np.int32)
    boxes[:, 0] = width + 1
    seen = np.flatnonzero(amounts)
    if len(seen):
        stop = np.cumsum(amounts)[seen]
        start, row = stop - amounts[seen], rows[seen]
        boxes[row, 0] = slot[start] - row * width
        boxes[row, 1] = np.minimum.reduceat(begin, start)
        boxes[row, 2] = slot[stop - 1] - row * width + 1
        boxes[row, 3] = np.maximum.reduceat(end, start)
    return boxes.reshape(*shape, 4)


def intersections(dt: Spans, gt: Spans) -> Optional[np.ndarray]:
    """(D, G) int64 common pixels of tubes, summed over the frames.

    None if the masks are so fragmented that walking along their runs would be faster.
    """
    partners = _partners(dt, gt)
    if partners is None:
        return None
    common = np.zeros((len(dt.boxes), len(gt.boxes)), np.int64)
    _add_first_and_first(dt, gt, common)
    _add_others_and_first(dt, gt, common)
    _add_others_and_first(gt, dt, common.T)
    _add_others_and_others(dt, gt, partners, common)
    return common


def _add_first_and_first(dt: Spans, gt: Spans, common: np.ndarray) -> None:
    for j, box in enumerate(gt.boxes):  # (T, 4)
        low = np.maximum(dt.boxes[..., :2], box[:, :2])  # (D, T, 2)
        meet = (low < np.minimum(dt.boxes[..., 2:], box[:, 2:])).all(axis=2)  # (D, T)
        frames = np.flatnonzero(meet.any(axis=0))
        if not len(frames):
            continue
        t0, t1 = frames[0], frames[-1] + 1
        visible = box[frames]
        x0, x1 = visible[:, 0].min(), visible[:, 2].max()
        begin, end = gt.first[:, j, t0:t1, x0:x1]
        tubes = np.flatnonzero(meet.any(axis=1))
        step = max(1, _BLOCK // begin.size)
        for k in range(0, len(tubes), step):
            chosen = tubes[k : k + step]
            low, high = dt.first[:, chosen, t0:t1, x0:x1]
            high = np.minimum(high, end)
            low = np.maximum(low, begin)
            high -= np.minimum(low, high, out=low)
            common[chosen, j] = high.reshape(len(chosen), -1).sum(axis=1, dtype=np.int64)


def _add_others_and_first(one: Spans, other: Spans, common: np.ndarray) -> None:
    """The pixels that the further spans of one side share with the first ones of the other."""
    step = max(1, _BLOCK // len(other.boxes))
    for k in range(0, len(one.tube), step):
        part = slice(k, k + step)
        begin, end = other.first[:, :, one.frame[part], one.column[part]]  # (n, S)
        pixels = _overlap(begin, end, one.begin[part], one.end[part])
        tube = one.tube[part]
        starts = np.flatnonzero(np.diff(tube, prepend=-1))
        common[tube[starts]] += np.add.reduceat(pixels, starts, axis=1, dtype=np.int64).T


_Partners = Tuple[np.ndarray, np.ndarray, np.ndarray]


def _partners(dt: Spans, gt: Spans) -> Optional[_Partners]:
    """For each further span of ``dt``, those of ``gt`` in the same column of the same frame.

    Returns:
        order: an order of ``gt``'s in which they are neighbours.
        first, number: in this order, where they begin and how many they are.
    """
    width = dt.first.shape[-1]
    dt_key, gt_key = (side.frame * width + side.column for side in (dt, gt))
    order = np.argsort(gt_key, kind="stable")
    first, stop = (np.searchsorted(gt_key[order], dt_key, side) for side in ("left", "right"))
    number = stop - first
    steps = len(dt_key) * len(gt.boxes) + len(gt_key) * len(dt.boxes)  # of such a walk
    return None if number.sum() > steps else (order, first, number)


def _add_others_and_others(
    dt: Spans, gt: Spans, partners: _Partners, common: np.ndarray
) -> None:
    order, first, number = partners
    for part in _blocks(number):
        amount = number[part]
        i = np.repeat(np.arange(part.start, part.stop), amount)
        j = np.arange(len(i)) + np.repeat(first[part] - np.cumsum(amount) + amount, amount)
        j = order[j]
        pixels = _overlap(dt.begin[i], dt.end[i], gt.begin[j], gt.end[j])
        cell = dt.tube[i] * len(gt.boxes) + gt.tube[j]
        # The floats of bincount hold sums of integers exactly up to 2**53.
        sums = np.bincount(cell, pixels, common.size)
        common += sums.astype(np.int64).reshape(common.shape)


def _blocks(amounts: np.ndarray) -> Iterator[slice]:
    """Consecutive parts whose amounts add up to about ``_BLOCK``."""
    total = np.cumsum(amounts)
    start = 0
    while start < len(total) and total[-1]:
        base = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, base + _BLOCK)))
        yield slice(start, min(stop, len(total)))
        start = stop


def _overlap(begin: np.ndarray, end: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    end = np.minimum(end, high)
    return end - np.minimum(np.maximum(begin, low), end)
