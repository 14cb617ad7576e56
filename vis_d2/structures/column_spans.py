"""Masks as vertical spans, column by column: the form in which numpy can intersect many at once.

Most columns of most masks hold one span. The last span of each column therefore lies in a dense
table, where the spans of two masks are intersected by a minimum and a maximum; the others, where an
object has holes or arms, are kept in a list and looked up.
"""

from dataclasses import dataclass
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .mask_stack import MaskStack

# Rows are counted in 16 bits, half the memory and twice the speed of 32.
MAX_HEIGHT = 2**16 - 1
# Numbers per step of a loop over large arrays, so that they stay in the processor's cache.
_BLOCK = 1 << 17


class Range(NamedTuple):
    """Tubes to compare with tubes: ``start`` to ``middle`` with ``middle`` to ``stop``."""

    start: int
    middle: int
    stop: int


@dataclass(frozen=True)
class Spans:
    """The masks of n tubes over T frames, all (H, W).

    Attributes:
        last: (2, n, T, W) uint16, begin and end of the last span of each column; 0, 0 where the
            column is empty.
        boxes: (n, T, 4) int32 x0, y0, x1, y1, ends excluded; x0 > x1 where the mask is empty.
        slot: (S,) int64, where the other spans are, ascending: (tube * T + frame) * W + column.
        begin, end: (S,) uint16, their rows.
    """

    last: np.ndarray
    boxes: np.ndarray
    slot: np.ndarray
    begin: np.ndarray
    end: np.ndarray


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
    last = np.zeros((2, *shape, width), np.uint16)
    for table, values in zip(last, (begin, end)):
        table.reshape(-1)[slot] = values  # of several in one place numpy keeps the last
    others = np.flatnonzero(slot[1:] == slot[:-1])
    boxes = _boxes(rows, slot, begin, end, amounts, width, shape)
    return Spans(last, boxes, slot[others], begin[others], end[others])


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


def intersections(spans: Spans, groups: Sequence[Range]) -> Optional[List[np.ndarray]]:
    """Common pixels of tubes, summed over the frames: (D, G) int64 for each group.

    None if the masks are so fragmented that walking along their runs is faster.
    """
    if 2 * len(spans.slot) > np.count_nonzero(spans.last[1]):
        return None
    pairs = _Pairs.of(spans, groups)
    common = np.zeros(len(pairs.dt), np.int64)
    _add_last_and_last(spans, pairs, common)
    if len(spans.slot):
        _add_others(spans, pairs, common)
    shapes = [(g.middle - g.start, g.stop - g.middle) for g in groups]
    stops = np.cumsum([d * g for d, g in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(common, stops), shapes)]


@dataclass(frozen=True)
class _Pairs:
    """The P pairs of tubes that are compared, truth by truth within detections of a group.

    Attributes:
        dt, gt: (P,) their tubes.
        meet: (P, T) bool, where their boxes overlap.
        runs: for each truth the pairs with it: those of a range of detections, all G apart.
    """

    dt: np.ndarray
    gt: np.ndarray
    meet: np.ndarray
    runs: List[Tuple[int, slice]]

    @classmethod
    def of(cls, spans: Spans, groups: Sequence[Range]) -> "_Pairs":
        dt, gt, runs, count = [], [], [], 0
        for start, middle, stop in groups:
            found, true = middle - start, stop - middle
            dt.append(np.repeat(np.arange(start, middle), true))
            gt.append(np.tile(np.arange(middle, stop), found))
            end = count + found * true
            runs += [(middle + j, slice(count + j, end, true)) for j in range(true)]
            count = end
        i, j = np.concatenate(dt), np.concatenate(gt)
        low = np.maximum(spans.boxes[i, :, :2], spans.boxes[j, :, :2])  # (P, T, 2)
        high = np.minimum(spans.boxes[i, :, 2:], spans.boxes[j, :, 2:])
        return cls(i, j, (low < high).all(axis=2), runs)


def _add_last_and_last(spans: Spans, pairs: _Pairs, common: np.ndarray) -> None:
    for j, run in pairs.runs:
        meet = pairs.meet[run]  # (D, T)
        tubes, frames = (np.flatnonzero(meet.any(axis=axis)) for axis in (1, 0))
        if not len(tubes):
            continue
        t0, t1 = frames[0], frames[-1] + 1
        x0, x1 = spans.boxes[j, frames, 0].min(), spans.boxes[j, frames, 2].max()
        begin, end = spans.last[:, j, t0:t1, x0:x1]
        base, step = pairs.dt[run.start], max(1, _BLOCK // begin.size)
        for k in range(0, len(tubes), step):
            chosen = tubes[k : k + step]
            span = slice(base + chosen[0], base + chosen[-1] + 1)
            which = span if chosen[-1] - chosen[0] < len(chosen) else base + chosen
            low, high = spans.last[:, which, t0:t1, x0:x1]
            high = np.minimum(high, end)
            low = np.maximum(low, begin)
            high -= np.minimum(low, high, out=low)
            sums = high.reshape(len(chosen), -1).sum(axis=1, dtype=np.int64)
            common[run][chosen] = sums


def _add_others(spans: Spans, pairs: _Pairs, common: np.ndarray) -> None:
    """What the other spans add: each is looked up in the masks whose boxes meet that of its own."""
    frames, width = spans.last.shape[2:]
    number = np.bincount(spans.slot // width, minlength=spans.boxes.shape[0] * frames)
    start = np.cumsum(number) - number
    pair, frame = np.nonzero(pairs.meet)
    dt, gt = (side[pair] * frames + frame for side in (pairs.dt, pairs.gt))
    for one, other in ((dt, gt), (gt, dt)):
        for part in _blocks(number[one]):
            amount = number[one[part]]
            before = np.cumsum(amount) - amount
            own = np.repeat(start[one[part]] - before, amount) + np.arange(int(amount.sum()))
            there = spans.slot[own] + np.repeat((other[part] - one[part]) * width, amount)
            cell = np.repeat(pair[part], amount)
            _add(common, cell, spans, own, spans.last.reshape(2, -1)[:, there])
            if one is dt:
                _add_others_and_others(spans, own, there, cell, common)


def _add_others_and_others(
    spans: Spans, own: np.ndarray, there: np.ndarray, cell: np.ndarray, common: np.ndarray
) -> None:
    place = np.searchsorted(spans.slot, there)
    slot = np.append(spans.slot, -1)
    while len(own):  # one round for each other span that a column has
        left = np.flatnonzero(slot[place] == there)
        own, place, there, cell = own[left], place[left], there[left], cell[left]
        _add(common, cell, spans, own, (spans.begin[place], spans.end[place]))
        place = place + 1


def _add(
    common: np.ndarray,
    cell: np.ndarray,
    spans: Spans,
    own: np.ndarray,
    partner: Sequence[np.ndarray],
) -> None:
    end = np.minimum(spans.end[own], partner[1])
    pixels = end - np.minimum(np.maximum(spans.begin[own], partner[0]), end)
    # The floats of bincount hold sums of integers exactly up to 2**53.
    common += np.bincount(cell, pixels, len(common)).astype(np.int64)


def _blocks(amounts: np.ndarray) -> Iterator[slice]:
    """Consecutive parts whose amounts add up to about ``_BLOCK``."""
    total = np.cumsum(amounts)
    start = 0
    while start < len(total) and total[-1]:
        base = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, base + _BLOCK)))
        yield slice(start, min(stop, len(total)))
        start = stop
