import numpy as np
import pytest

from vis_d2.structures import column_sheets as module
from vis_d2.structures import rle
from vis_d2.structures.column_sheets import Sheets, column_sheets, common_pixels
from vis_d2.structures.mask_stack import read_stack

SIZE = (12, 10)


def sheets_of(masks: np.ndarray) -> Sheets:
    """Sheets of (n, H, W) bool, none of them empty."""
    return column_sheets(read_stack([r["counts"] for r in rle.encode_array(masks)], SIZE)[0])


def spans(sheets: Sheets, sheet: int):
    """Column, begin and end of the spans of a sheet, in rows."""
    x0, _, x1, _ = sheets.boxes[sheet]
    found = []
    for n, x in enumerate(range(x0, x1)):
        begin, end = (sheets.spans[at + n] for at in sheets.places[sheet])
        found += [(x, begin - x * SIZE[0], end - x * SIZE[0])] if begin < end else []
    return found


def blobs(number: int, seed: int) -> np.ndarray:
    """Rectangles, every other one with holes, some so tall that their runs join."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((number, *SIZE), bool)
    for n, mask in enumerate(masks):
        y, x = rng.integers(0, 6, 2)
        mask[y : y + rng.integers(3, 13), x : x + rng.integers(1, 5)] = True
        if n % 2:
            mask &= rng.random(SIZE) < 0.8
        mask[rng.integers(SIZE[0]), rng.integers(SIZE[1])] = True
    return masks


def test_a_convex_mask_is_one_sheet_and_its_runs_are_the_spans():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 2:5, 3:6] = True
    masks[1, 1:8, 0] = masks[1, 4:12, 1] = True
    sheets = sheets_of(masks)
    assert sheets.count.tolist() == [1, 1] and sheets.first.tolist() == [0, 1]
    assert spans(sheets, 0) == [(3, 2, 5), (4, 2, 5), (5, 2, 5)]
    assert spans(sheets, 1) == [(0, 1, 8), (1, 4, 12)]
    assert sheets.boxes[0].tolist() == [3, 2, 6, 5]


def test_holes_gaps_and_joined_runs_worked_out_by_hand():
    mask = np.zeros((1, *SIZE), bool)
    mask[0, 2:5, 3] = mask[0, 7:9, 3] = True
    mask[0, 0:12, 4] = mask[0, 0:1, 5] = True  # one run
    mask[0, 1:2, 8] = mask[0, 3:4, 8] = mask[0, 5:12, 8] = True
    sheets = sheets_of(mask)
    assert sheets.count.tolist() == [3]
    assert spans(sheets, 0) == [(3, 2, 5), (4, 0, 12), (5, 0, 1), (8, 1, 2)]
    assert spans(sheets, 1) == [(3, 7, 9), (8, 3, 4)]
    assert spans(sheets, 2) == [(8, 5, 12)]
    assert sheets.boxes.tolist() == [[3, 0, 9, 12], [3, 3, 9, 9], [8, 5, 9, 12]]


@pytest.mark.parametrize("block", [5, 1 << 16])
@pytest.mark.parametrize("seed", range(5))
def test_common_pixels_are_those_of_the_pixels(monkeypatch, seed, block):
    for limit in ("_RUNS_PER_BLOCK", "_COLUMNS_PER_TABLE"):
        monkeypatch.setattr(module, limit, block)
    masks = blobs(9, seed)
    numbers = np.random.default_rng(seed).integers(0, 9, (2, 40))
    dt, gt = masks[numbers]
    expected = (dt & gt).sum(axis=(1, 2))
    assert (expected > 0).sum() > 20
    assert common_pixels(sheets_of(masks), *numbers).tolist() == expected.tolist()


def test_pairs_that_never_meet_share_nothing():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, :3, :3] = masks[1, 5:, :3] = True
    pairs = np.array([[0, 1], [1, 0]])
    assert common_pixels(sheets_of(masks), *pairs).tolist() == [0, 0]


def test_fragmented_masks_are_left_to_the_walk_along_the_runs():
    comb = np.zeros((1, *SIZE), bool)
    comb[:, ::2] = True  # six spans in each column
    assert common_pixels(sheets_of(comb), *np.zeros((2, 1), np.int64)) is None
