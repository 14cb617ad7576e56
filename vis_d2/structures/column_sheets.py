"""Masks as sheets, the form in which numpy can intersect many at once.

A sheet has at most one vertical span in each column. Most masks are one sheet, and the ends of
their runs are its spans as they stand; a mask with holes or arms is several sheets on top of each
other. The spans of a column are disjoint, so the common pixels of two masks are those of all pairs
of their sheets. Two sheets are intersected by a minimum and a maximum over the columns they share,
which lie side by side in memory.
"""

from dataclasses import dataclass
from typing import List, NamedTuple, Optional, Tuple

import numpy as np

from .mask_stack import MaskStack

# Runs that are looked at together, so that they stay in the processor's cache.
_RUNS_PER_BLOCK = 1 << 18
# The same for the columns of pairs of sheets, and for the pairs.
_COLUMNS_PER_TABLE = 1 << 16
_MOST_ROWS = 1 << 12
# With more pairs of sheets than this for each pair of masks, walking along their runs is faster.
_SHEET_PAIRS = 16


@dataclass(frozen=True)
class Sheets:
    """The S sheets of n masks, mask by mask.

    Attributes:
        spans: int32, begins and ends of spans in pixels of the frame, column by column.
        first, count: (n,) int64, the first sheet of each mask, and how many it has.
        boxes: (S, 4) int32 x0, y0, x1, y1, ends excluded.
        places: (S, 2) int64, where in ``spans`` the begins and the ends of its columns start; a
            row of the frame fits in behind.
    """

    spans: np.ndarray
    first: np.ndarray
    count: np.ndarray
    boxes: np.ndarray
    places: np.ndarray


class _Part(NamedTuple):
    """Some sheets and their spans, in which ``places`` are."""

    mask: np.ndarray
    boxes: np.ndarray
    places: np.ndarray
    spans: List[np.ndarray]


def column_sheets(stack: MaskStack) -> Sheets:
    """The sheets of valid masks."""
    nothing = np.zeros((0, 4), np.int32)
    parts = [_Part(nothing[:, 0], nothing, nothing[:, :2], [])] if not len(stack) else []
    start = 0
    while start < len(stack):
        stop = (
            int(np.searchsorted(stack.offsets, stack.offsets[start] + _RUNS_PER_BLOCK, "right")) - 1
        )
        stop = min(max(stop, start + 1), len(stack))
        parts += _sheets_of(stack, start, stop)
        start = stop
    return _joined(parts, stack)


def _joined(parts: List[_Part], stack: MaskStack) -> Sheets:
    """One list, ordered by mask."""
    spans = [array for part in parts for array in part.spans]
    spans.append(np.zeros(stack.size[1], np.int32))
    sizes = [sum(map(len, part.spans)) for part in parts]
    before = (np.cumsum(sizes) - sizes).tolist()
    mask = np.concatenate([part.mask for part in parts])
    boxes = np.concatenate([part.boxes for part in parts])
    places = np.concatenate([part.places + n for part, n in zip(parts, before)])
    if len(parts) > 1:
        order = np.argsort(mask, kind="stable")
        boxes, places = boxes[order], places[order]
    count = np.bincount(mask, minlength=len(stack))
    return Sheets(np.concatenate(spans), np.cumsum(count) - count, count, boxes, places)


def _sheets_of(stack: MaskStack, start: int, stop: int) -> List[_Part]:
    """Those of some masks: first what is one sheet as it stands, then what is left of them."""
    height = stack.size[0]
    chosen = slice(stack.offsets[start], stack.offsets[stop])
    offsets = stack.offsets[start : stop + 1] - chosen.start
    part = MaskStack(stack.size, stack.begins[chosen], stack.ends[chosen], offsets, stack.areas)
    part, rest = _without_seconds(part)
    begins, ends, amounts = part.begins, part.ends, part.amounts()
    seen = np.flatnonzero(amounts)
    first, amounts = part.offsets[seen], amounts[seen]
    column = begins // height
    corner = column * np.int32(height)
    places = np.stack([first, first + amounts], axis=1)
    x0, x1 = column[first], column[places[:, 1] - 1] + 1
    top, bottom = _extremes(begins - corner, ends - corner, places)
    boxes = np.stack([x0, top, x1, bottom], axis=1)
    # No two of these runs begin in one column. So if their number is that of the columns, one
    # begins in each, and if none goes on in the next column, they are a sheet.
    simple = (amounts == x1 - x0) & (bottom <= height)
    if not simple.all():
        others, simple = np.flatnonzero(~simple), np.flatnonzero(simple)
        index = _ranges(first[others], amounts[others])
        runs = np.repeat(seen[others], amounts[others]), begins[index], ends[index]
        rest = tuple(np.concatenate(both) for both in zip(rest, runs))
        order = np.lexsort(rest[1::-1])  # by mask, then by begin
        rest = tuple(values[order] for values in rest)
        boxes, first, seen = boxes[simple], first[simple], seen[simple]
    places = np.stack([first, first + len(begins)], axis=1)
    parts = [_Part(start + seen, boxes, places, [begins, ends])]
    return [*parts, _layered(start + rest[0], *rest[1:], height)] if len(rest[0]) else parts


def _without_seconds(stack: MaskStack) -> Tuple[MaskStack, Tuple[np.ndarray, ...]]:
    """Take out the runs that begin in the same column as the one before.

    Without them most masks are one sheet.

    Returns:
        What stays, and of the runs taken out mask, begin and end.
    """
    column = stack.begins // stack.size[0]
    index = np.flatnonzero(column[1:] == column[:-1]) + 1
    mask = np.searchsorted(stack.offsets, index, "right") - 1
    same = index > stack.offsets[mask]
    index, mask = index[same], mask[same]
    rest = mask, stack.begins[index], stack.ends[index]
    if not len(index):
        return stack, rest
    stays = np.ones(len(column), bool)
    stays[index] = False
    offsets = stack.offsets - np.searchsorted(mask, np.arange(len(stack.offsets)))
    runs = stack.begins[stays], stack.ends[stays]
    return MaskStack(stack.size, *runs, offsets, stack.areas), rest


def _extremes(
    begins: np.ndarray, ends: np.ndarray, places: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """Smallest begin and largest end in each of (n, 2) ascending ranges."""
    edges = places.reshape(-1)
    if len(edges) and edges[-1] == len(begins):
        edges = edges[:-1]  # for the last range this says the same
    return np.minimum.reduceat(begins, edges)[::2], np.maximum.reduceat(ends, edges)[::2]


def _ranges(starts: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """``amounts`` numbers from each of ``starts`` on."""
    index = np.repeat(starts - (np.cumsum(amounts) - amounts), amounts)
    index += np.arange(len(index))
    return index


def _layered(mask: np.ndarray, begin: np.ndarray, end: np.ndarray, height: int) -> _Part:
    """Sheets of any spans, ordered by mask and begin: the n-th of each column make a sheet."""
    mask, column, begin, end = _cut_at_columns(mask, begin, end, height)
    new = _changes(mask, column)
    places = np.arange(len(column))
    layer = places - places[new][np.cumsum(new) - 1]
    if layer.any():
        order = np.lexsort((layer, mask))  # stable: columns stay in order
        mask, column, layer = mask[order], column[order], layer[order]
        begin, end = begin[order], end[order]
    start = np.flatnonzero(_changes(mask, layer))
    amounts = np.diff(start, append=len(mask))
    x0, x1 = column[start], column[start + amounts - 1] + 1
    widths = (x1 - x0).astype(np.int64)
    sheet_at = np.cumsum(widths) - widths
    slot = column + np.repeat(sheet_at - x0, amounts)
    spans = np.zeros((2, int(widths.sum())), np.int32)  # 0 to 0 where a sheet has a gap
    spans[0, slot], spans[1, slot] = begin, end
    corner = column * np.int32(height)
    top = np.minimum.reduceat(begin - corner, start)
    bottom = np.maximum.reduceat(end - corner, start)
    boxes = np.stack([x0, top, x1, bottom], axis=1)
    places = np.stack([sheet_at, sheet_at + spans.shape[1]], axis=1)
    return _Part(mask[start], boxes, places, list(spans))


def _changes(*arrays: np.ndarray) -> np.ndarray:
    """Where one of the arrays differs from the place before; true at the first."""
    new = np.ones(len(arrays[0]), bool)
    new[1:] = np.any([array[1:] != array[:-1] for array in arrays], axis=0)
    return new


def _cut_at_columns(
    mask: np.ndarray, begin: np.ndarray, end: np.ndarray, height: int
) -> Tuple[np.ndarray, ...]:
    """Mask, column, begin and end of spans, of which those over several columns are cut."""
    column = begin // height
    pieces = (end - 1) // height - column + 1
    if (pieces > 1).any():
        step = np.arange(int(pieces.sum()), dtype=np.int32)
        step -= np.repeat((np.cumsum(pieces) - pieces).astype(np.int32), pieces)
        mask, column = np.repeat(mask, pieces), np.repeat(column, pieces) + step
        begin = np.maximum(np.repeat(begin, pieces), column * np.int32(height))
        end = np.minimum(np.repeat(end, pieces), (column + 1) * np.int32(height))
    return mask, column, begin, end


def common_pixels(sheets: Sheets, dt: np.ndarray, gt: np.ndarray) -> Optional[np.ndarray]:
    """Pixels that pairs of masks share.

    Args:
        sheets: the masks.
        dt, gt: (P,) those of both sides.

    Returns:
        (P,) int64; None if the masks are so fragmented that walking along their runs is faster.
    """
    amounts = sheets.count[dt] * sheets.count[gt]
    if int(amounts.sum()) > _SHEET_PAIRS * len(dt):
        return None
    pair, i, j = _sheet_pairs(sheets, dt, gt, amounts)
    one, other = sheets.boxes[i], sheets.boxes[j]
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    size = high - low
    meet = np.flatnonzero((size[:, 0] > 0) & (size[:, 1] > 0))
    meet = meet[np.argsort(size[meet, 0])]  # sheets that share about as many columns share a table
    widths, x0, pair = size[meet, 0], low[meet, 0], pair[meet]
    places = []
    for side, boxes in ((i[meet], one), (j[meet], other)):
        places.append(sheets.places[side] + (x0 - boxes[meet, 0])[:, None])
    pixels = np.zeros(len(meet), np.int32)
    start = 0
    while start < len(meet):
        part = slice(start, start + _rows_of_table(widths[start : start + _MOST_ROWS]))
        pixels[part] = _overlaps(sheets.spans, *(p[part].T for p in places), widths[part])
        start = part.stop
    return np.bincount(pair, pixels, len(dt)).astype(np.int64)


def _sheet_pairs(
    sheets: Sheets, dt: np.ndarray, gt: np.ndarray, amounts: np.ndarray
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of sheets of pairs of masks: which pair of masks, and both sheets.

    Args:
        sheets: the masks.
        dt, gt: (P,) masks.
        amounts: (P,) how many pairs of sheets they have.
    """
    pair = np.repeat(np.arange(len(amounts)), amounts)
    i, j = sheets.first[dt[pair]], sheets.first[gt[pair]]
    several = np.flatnonzero((amounts > 1)[pair])
    if len(several):
        number = several - (np.cumsum(amounts) - amounts)[pair[several]]
        others = sheets.count[gt[pair[several]]]
        i[several] += number // others
        j[several] += number % others
    return pair, i, j


def _rows_of_table(widths: np.ndarray) -> int:
    """How many of these ascending widths, padded to the last, make a table of the right size."""
    sizes = np.arange(1, len(widths) + 1) * widths
    return max(1, int(np.searchsorted(sizes, _COLUMNS_PER_TABLE, "right")))


def _overlaps(spans: np.ndarray, dt: np.ndarray, gt: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Common pixels of n pairs of sheets in ``widths`` columns, (n,) int32.

    Args:
        spans: see :class:`Sheets`.
        dt, gt: (2, n) where the begins and the ends in these columns start.
        widths: ascending.
    """
    width, step = int(widths[-1]), spans.itemsize
    shape = (len(spans) - width + 1, width)
    windows = np.ndarray(shape, spans.dtype, spans, strides=(step, step))  # overlapping rows
    begin, end = windows[dt[0]], windows[dt[1]]
    np.maximum(begin, windows[gt[0]], out=begin)
    np.minimum(end, windows[gt[1]], out=end)
    end -= np.minimum(begin, end, out=begin)
    # What lies between the columns of a pair and the next row belongs to other masks.
    places = np.empty(2 * len(widths), np.int64)
    places[0::2] = np.arange(0, end.size, width)
    places[1::2] = places[0::2] + widths
    return np.add.reduceat(end.reshape(-1), places[:-1], dtype=np.int32)[::2]
