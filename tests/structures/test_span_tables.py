import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vis_d2.structures import rle
from vis_d2.structures import span_tables as module
from vis_d2.structures.mask_stack import MaskStack, read_stack
from vis_d2.structures.span_tables import common_pixels, cut_at_columns

SIZE = (12, 10)
LIMITS = ("_COLUMNS_PER_TABLE", "_RUNS_PER_BLOCK", "_WASTE")


def stack_of(masks: np.ndarray) -> MaskStack:
    """Those of (n, H, W) bool, none of them empty."""
    return read_stack([r["counts"] for r in rle.encode_array(masks)], SIZE)[0]


def common(masks: np.ndarray, dt, gt) -> list:
    stack = stack_of(masks)
    pairs = np.asarray(dt, np.int64), np.asarray(gt, np.int64)
    return common_pixels(cut_at_columns(stack), stack.columns(), *pairs).tolist()


def blobs(number: int, rng: np.random.Generator) -> np.ndarray:
    """Rectangles, every other one with holes and gaps, some so tall that their runs join."""
    masks = np.zeros((number, *SIZE), bool)
    for n, mask in enumerate(masks):
        y, x = rng.integers(0, 6, 2)
        mask[y : y + rng.integers(3, 13), x : x + rng.integers(1, 5)] = True
        if n % 2:
            mask &= rng.random(SIZE) < 0.8
            mask[:, rng.integers(SIZE[1])] = False
        mask[rng.integers(SIZE[0]), rng.integers(SIZE[1])] = True
    return masks


def test_runs_over_several_columns_are_cut_there():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 2:5, 3] = masks[0, 7:, 3] = masks[0, :, 4] = masks[0, :1, 5] = True
    masks[1, 11, 9] = True
    stack = stack_of(masks)
    assert stack.offsets.tolist() == [0, 3, 4]  # an empty run at the end of the first
    cut = cut_at_columns(stack)
    assert cut.offsets.tolist() == [0, 5, 6]
    assert cut.begins.tolist() == [38, 43, 48, 60, 120, 119]
    assert cut.ends.tolist() == [41, 48, 60, 61, 120, 120]
    assert cut_at_columns(cut) is cut
    for one, other in zip(stack.columns(), cut.columns()):
        assert one.tolist() == other.tolist()


def test_spans_in_one_column_worked_out_by_hand():
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 2:5, 3] = masks[0, 7:9, 3] = True
    masks[0, 1:2, 8] = masks[0, 3:4, 8] = masks[0, 5:12, 8] = True
    masks[1, 4:8, 2:9] = True  # rows 4 and 7 of column 3, rows 5 to 7 of column 8
    masks[2, 0:4, 8] = True  # rows 1 and 3
    assert common(masks, [1, 2, 1, 0], [0, 0, 2, 1]) == [5, 2, 0, 5]


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_common_pixels_are_those_of_the_pixels(seed):
    rng = np.random.default_rng(seed)
    masks = blobs(9, rng)
    dt, gt = rng.integers(0, 9, (2, 40))
    if seed % 2:  # each once, in order
        dt, gt = np.arange(9), rng.integers(0, 9, 9)
    expected = (masks[dt] & masks[gt]).sum(axis=(1, 2)).tolist()
    with pytest.MonkeyPatch.context() as patch:
        for limit in LIMITS:
            patch.setattr(module, limit, int(rng.choice([1, 20, 1 << 16])))
        assert common(masks, dt, gt) == expected


def test_a_span_of_another_mask_is_not_taken_for_one_of_this():
    """All pairs of all single pixels: whatever place is looked up, only equal ones meet."""
    masks = np.eye(SIZE[0] * SIZE[1], dtype=bool).reshape(-1, *SIZE)
    dt, gt = np.divmod(np.arange(len(masks) ** 2), len(masks))
    assert common(masks, dt, gt) == (dt == gt).astype(int).tolist()


@pytest.mark.parametrize("close", [True, False])
def test_runs_that_lie_together_are_not_gathered(monkeypatch, close):
    masks = np.zeros((5, *SIZE), bool)
    masks[:, 2:5, 3:6] = True
    called = []
    for name in ("_one_by_one", "_gathered"):
        way = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, w=way: called.append(n) or w(*a))
    dt = [1, 2, 3, 4] if close else [1, 1, 2, 2]
    assert common(masks, dt, [0] * 4) == [9] * 4
    assert called == ["_one_by_one" if close else "_gathered"]


def test_only_the_shared_columns_are_looked_up():
    masks = np.zeros((2, *SIZE), bool)
    # Columns 0 to 9, with a second span in column 4, and an empty run at the end.
    masks[0, 2:5] = masks[0, 7, 4] = True
    stack = stack_of(masks[:1])
    shared = [(0, 10, 0, 12), (2, 8, 2, 10), (5, 9, 5, 11), (9, 10, 9, 12), (0, 1, 0, 3)]
    for low, high, start, stop in shared:
        columns = np.array([low], np.int32), np.array([high], np.int32)
        found = module._shared_runs(stack, stack.columns(), np.zeros(1, np.int64), *columns)
        assert [x.tolist() for x in found] == [[start], [stop]]
    masks[0, :, 1:4] = False  # fewer runs before column 5 than columns: all of them
    stack = stack_of(masks[:1])
    low, high = np.array([5], np.int32), np.array([9], np.int32)
    found = module._shared_runs(stack, stack.columns(), np.zeros(1, np.int64), low, high)
    assert [x.tolist() for x in found] == [[0], [8]]


@pytest.mark.parametrize("spans", [10, 50])  # too many lookups; not even laid out for them
def test_fragmented_masks_are_left_to_the_walk_along_the_runs(spans):
    comb = np.zeros((2, 2 * spans, 10), bool)
    comb[0, ::2] = comb[1] = True
    counts = [r["counts"] for r in rle.encode_array(comb)]
    stack = read_stack(counts, comb.shape[1:])[0]
    one, other = np.zeros(1, np.int64), np.ones(1, np.int64)
    cut, columns = cut_at_columns(stack), stack.columns()
    assert common_pixels(cut, columns, other, one).tolist() == [-1]
    assert common_pixels(cut, columns, one, other).tolist() == [10 * spans]
    assert bool(module._layers(cut, one, columns)) == (spans == 10)
