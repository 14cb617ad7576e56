"""Common pixels of many pairs of masks at once.

The masks of one side are laid out in a table that has, for each of their columns, where the span of
foreground pixels begins and ends. The runs of the other side stay as they are: each looks up the
span of its own column and is intersected with it. A mask with several spans in a column has one in
the table at a time, and those that are looked up again are few.
"""

from typing import List, NamedTuple, Tuple, Union

import numpy as np

from .mask_stack import MaskStack

Columns = Tuple[np.ndarray, np.ndarray]  # where something begins and where it ends
# Columns of one table, and runs that are looked up together, so that they stay in the cache.
_COLUMNS_PER_TABLE = 1 << 16
_RUNS_PER_BLOCK = 1 << 15
# Runs are taken where they lie, with those between them, if that is less than this many times more.
_WASTE = 1.5
# With more lookups than this for each pair of masks, walking along their runs is faster.
_LOOKUPS = 8


def cut_at_columns(stack: MaskStack) -> MaskStack:
    """The same masks, with runs that go on in the next column cut there."""
    height = np.uint32(stack.size[0])
    begins, ends = stack.begins.view(np.uint32), stack.ends.view(np.uint32)
    column, last = begins // height, (ends - np.uint32(1)) // height
    joined = np.flatnonzero(last > column)
    if not len(joined):
        return stack
    pieces = np.ones(len(begins), np.int64)
    pieces[joined] += last[joined] - column[joined]
    before = np.append(0, np.cumsum(pieces))
    column = np.repeat(column, pieces)
    column += (np.arange(len(column)) - np.repeat(before[:-1], pieces)).astype(np.uint32)
    begins = np.maximum(np.repeat(begins, pieces), column * height)
    ends = np.minimum(np.repeat(ends, pieces), (column + np.uint32(1)) * height)
    runs = begins.view(np.int32), ends.view(np.int32)
    return MaskStack(stack.size, *runs, before[stack.offsets], stack.areas)


def common_pixels(stack: MaskStack, columns: Columns, dt: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """Pixels that pairs of masks share.

    Args:
        stack: masks as :func:`cut_at_columns` leaves them.
        columns: ``stack.columns()``.
        dt, gt: (P,) masks of both sides, none of them empty. Those of ``gt`` go into tables; it is
            faster if they are fewer.

    Returns:
        (P,) int64; -1 where the masks of ``gt`` are so fragmented that walking along their runs is
        faster.
    """
    masks = _distinct(gt, len(stack))
    widths = (columns[1] - columns[0])[masks]
    table = np.zeros(len(stack), np.int64)  # where masks go to
    table[masks] = np.cumsum(widths, dtype=np.int64) // _COLUMNS_PER_TABLE
    number = table[gt]
    order = np.argsort(number * len(stack) + dt)
    edges = np.flatnonzero(np.diff(number[order], prepend=-1, append=-1)).tolist()
    pixels = np.zeros(len(dt), np.int64)
    for start, stop in zip(edges[:-1], edges[1:]):
        pairs = order[start:stop]
        pixels[pairs] = _in_one_table(stack, columns, dt[pairs], gt[pairs])
    return pixels


def _distinct(numbers: np.ndarray, stop: int) -> np.ndarray:
    """Those below ``stop`` that occur, ascending."""
    found = np.zeros(stop, bool)
    found[numbers] = True
    return np.flatnonzero(found)


def _in_one_table(stack: MaskStack, columns: Columns, dt: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """:func:`common_pixels` of pairs ordered by ``dt``."""
    masks = _distinct(gt, len(stack))
    # A mask has only its own columns in the table, so a run elsewhere finds a span of another one.
    # That is harmless if it is in another column of the frame, and from right to left it always is:
    # then no two masks have the same column 0.
    masks = masks[np.argsort(-columns[0][masks])]
    row = np.zeros(len(stack), np.int64)
    row[masks] = np.arange(len(masks))
    row = row[gt]
    layers = _layers(stack, masks, columns)
    pairs = [_meeting(layer, columns, dt, row) for layer in layers]
    if not layers or sum(map(len, pairs)) > _LOOKUPS * len(dt):
        return np.full(len(dt), -1)
    pixels = np.zeros(len(dt), np.int64)
    for layer, meeting in zip(layers, pairs):
        rows = row[meeting]
        runs = _shared_runs(stack, columns, dt[meeting], layer.low[rows], layer.high[rows])
        pixels[meeting] += _looked_up(stack, *runs, layer.origin[rows], layer.table())
    return pixels


class _Layer(NamedTuple):
    """One span of each column of m masks; those that have none are at 0 to 0.

    Attributes:
        low, high: (m,) int32, the columns that may have one.
        origin: (m,) uint32, where in the table column 0 would be.
        places, begins, ends: of the spans; of several in one place, the last counts.
        size: of the table.
    """

    low: np.ndarray
    high: np.ndarray
    origin: np.ndarray
    places: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    size: int

    def table(self) -> Columns:
        """Begins and ends by place."""
        table = np.zeros(self.size, np.int32), np.zeros(self.size, np.int32)
        table[0][self.places], table[1][self.places] = self.begins, self.ends
        return table


def _layers(stack: MaskStack, masks: np.ndarray, columns: Columns) -> List[_Layer]:
    """The masks as layers: the last span of each column, the last but one, and so on.

    Each layer holds all spans up to its own. Where that is too much, the result is empty.
    """
    height, width = stack.size
    low, high = (x[masks] for x in columns)
    stops = width + np.cumsum(high - low, dtype=np.int64)
    origin = (stops - high).astype(np.uint32)
    amounts = stack.amounts()[masks]
    runs = _ranges(stack.offsets[masks], amounts)
    begins, ends = stack.begins.take(runs), stack.ends.take(runs)
    places = np.repeat(origin, amounts) + begins.view(np.uint32) // np.uint32(height)
    size = int(stops[-1]) + width + 1
    layers = [_Layer(low, high, origin, places, begins, ends, size)]
    index = np.flatnonzero(places[1:] == places[:-1])
    owner = np.repeat(np.arange(len(masks)), amounts) if len(index) else index
    room = _LOOKUPS * len(runs)
    while len(index):
        room -= len(index)
        if room < 0:
            return []
        low, high = np.full(len(masks), width, np.int32), np.zeros(len(masks), np.int32)
        rows = owner[index]
        column = (places[index] - origin[rows]).astype(np.int32)
        low[rows[::-1]], high[rows] = column[::-1], column + 1  # the last one assigned stays
        layers.append(_Layer(low, high, origin, places[index], begins[index], ends[index], size))
        index = index[:-1][index[1:] - index[:-1] == 1]
    return layers


def _ranges(starts: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """``amounts`` numbers from each of ``starts`` on."""
    index = np.repeat(starts - (np.cumsum(amounts) - amounts), amounts)
    index += np.arange(len(index))
    return index


def _meeting(layer: _Layer, columns: Columns, dt: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The pairs of masks with common columns in a layer."""
    low, high = layer.low[row], layer.high[row]
    return np.flatnonzero((columns[0][dt] < high) & (low < columns[1][dt]))


def _shared_runs(
    stack: MaskStack, columns: Columns, masks: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Columns:
    """Where the runs of masks in the columns from ``low`` to ``high`` start and stop, or wider:
    at least one run.

    Most masks have at least one run in each of their columns. Then so many runs come before
    a column as columns do, and at most as many more as the mask has more runs than columns. Since
    runs are in order, one look tells whether that holds.
    """
    height = np.int64(stack.size[0])
    first, stop = stack.offsets[masks], stack.offsets[masks + 1]
    x0, x1 = (x[masks] for x in columns)
    start = np.minimum(first + (low - x0), stop - 1)
    sure = (low > x0) & (stack.begins[start - 1] < low * height)
    start = np.where(sure, start, first)
    end = np.maximum(stop - (x1 - high), start)
    sure = (high < x1) & (stack.begins[np.minimum(end, stop - 1)] >= high * height)
    return start, np.where(sure, np.maximum(end, start + 1), stop)


def _looked_up(
    stack: MaskStack, starts: np.ndarray, stops: np.ndarray, origin: np.ndarray, table: Columns
) -> np.ndarray:
    """Pixels that runs share with what is in a table.

    Args:
        stack: where the runs are.
        starts, stops: (n,) which runs belong together, ``starts`` ascending.
        origin: (n,) uint32, the place in the table with which their column 0 is compared.
        table: begins and ends.

    Returns:
        (n,) int32.
    """
    pixels = np.zeros(len(starts), np.int32)
    total = np.cumsum(stops - starts)
    start, done = 0, 0
    while start < len(starts):
        stop = max(start + 1, int(np.searchsorted(total, done + _RUNS_PER_BLOCK, "right")))
        part, amount = slice(start, stop), int(total[stop - 1]) - done
        one_by_one = _one_by_one if _are_close(starts[part], stops[part], amount) else _gathered
        pixels[part] = one_by_one(stack, starts[part], stops[part], origin[part], table)
        start, done = stop, done + amount
    return pixels


def _are_close(starts: np.ndarray, stops: np.ndarray, amount: int) -> bool:
    wide = stops[-1] - starts[0]
    return wide < _WASTE * amount and bool((starts[1:] >= stops[:-1]).all())


def _one_by_one(
    stack: MaskStack, starts: np.ndarray, stops: np.ndarray, origin: np.ndarray, table: Columns
) -> np.ndarray:
    """:func:`_looked_up` for runs that lie close together: with what is between them."""
    edges = np.stack([starts, stops], axis=1).reshape(-1)  # (n, 2) -> (2n,)
    edges -= starts[0]
    runs = slice(starts[0], stops[-1])
    origins = np.zeros(len(edges) - 1, np.uint32)
    origins[0::2] = origin
    places = np.repeat(origins, edges[1:] - edges[:-1])
    return _overlaps(stack, runs, places, edges[:-1], table)[0::2]


def _gathered(
    stack: MaskStack, starts: np.ndarray, stops: np.ndarray, origin: np.ndarray, table: Columns
) -> np.ndarray:
    """:func:`_looked_up` for any runs."""
    amounts = stops - starts
    runs, before = _ranges(starts, amounts), np.cumsum(amounts) - amounts
    return _overlaps(stack, runs, np.repeat(origin, amounts), before, table)


def _overlaps(
    stack: MaskStack,
    runs: Union[slice, np.ndarray],
    places: np.ndarray,
    starts: np.ndarray,
    table: Columns,
) -> np.ndarray:
    """Common pixels of runs with the spans at their columns, summed from each of ``starts`` on.

    Args:
        stack: where the runs are.
        runs: which.
        places: (R,) uint32 of their column 0 in the table; changed.
        starts: (n,) ascending.
        table: begins and ends.
    """
    begins, ends = stack.begins[runs], stack.ends[runs]
    places += begins.view(np.uint32) // np.uint32(stack.size[0])
    index = places.astype(np.intp)
    begin, end = table[0].take(index), table[1].take(index)
    np.maximum(begin, begins, out=begin)
    np.minimum(end, ends, out=end)
    end -= np.minimum(begin, end, out=begin)
    return np.add.reduceat(end, starts, dtype=np.int32)
