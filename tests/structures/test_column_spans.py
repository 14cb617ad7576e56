import numpy as np
import pytest

from vis_d2.structures import column_spans as module
from vis_d2.structures import rle
from vis_d2.structures.column_spans import Range, column_spans, intersections
from vis_d2.structures.mask_stack import read_stack

SIZE, FRAMES = (12, 10), 3


def spans_of(tubes: np.ndarray):
    """Spans of (n, T, H, W) bool, empty masks left out as they are in files."""
    flat = tubes.reshape(-1, *SIZE)
    rows = np.flatnonzero(flat.any(axis=(1, 2)))
    counts = [r["counts"] for r in rle.encode_array(flat[rows])]
    stack = read_stack(counts, SIZE)[0]
    return column_spans(stack, np.arange(len(rows)), rows, tubes.shape[:2])


def rectangles_with_holes(number: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    tubes = np.zeros((number, FRAMES, *SIZE), bool)
    for mask in tubes.reshape(-1, *SIZE):
        y, x = rng.integers(0, 6, 2)
        mask[y : y + rng.integers(2, 7), x : x + rng.integers(1, 5)] = rng.random() < 0.8
        mask[y + 2, x] = False  # a second span in one column
    return tubes


def test_spans_and_boxes_of_a_mask_worked_out_by_hand():
    tubes = np.zeros((1, 1, *SIZE), bool)
    tubes[0, 0, 2:5, 3] = True
    tubes[0, 0, 7:9, 3] = True
    tubes[0, 0, 0:12, 4] = True  # joins the run of the column before and after
    tubes[0, 0, 0:1, 5] = True
    spans = spans_of(tubes)
    assert spans.last[:, 0, 0, 3].tolist() == [7, 9]
    assert spans.last[:, 0, 0, 4].tolist() == [0, 12]
    assert spans.last[:, 0, 0, 5].tolist() == [0, 1]
    assert (spans.slot.tolist(), spans.begin.tolist(), spans.end.tolist()) == ([3], [2], [5])
    assert spans.boxes[0, 0].tolist() == [3, 0, 6, 12]


@pytest.mark.parametrize("block", [4, 1 << 17])
@pytest.mark.parametrize("seed", range(5))
def test_common_pixels_are_those_of_the_pixels(monkeypatch, seed, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    tubes = rectangles_with_holes(7, seed)
    groups = [Range(0, 3, 5), Range(5, 6, 7)]
    parts = intersections(spans_of(tubes), groups)
    for group, part in zip(groups, parts):
        dt, gt = tubes[group.start : group.middle], tubes[group.middle : group.stop]
        expected = (dt[:, None] & gt[None]).sum(axis=(2, 3, 4))
        assert part.tolist() == expected.tolist()


def test_fragmented_masks_are_left_to_the_walk_along_the_runs():
    comb = np.zeros((2, 1, *SIZE), bool)
    comb[:, :, ::2] = True  # six spans in each column
    assert intersections(spans_of(comb), [Range(0, 1, 2)]) is None
