import numpy as np
import pytest

from vis_d2.structures import mask_stack, rle
from vis_d2.structures.mask_stack import read_stack

SIZE = (7, 9)


def random_counts(number: int, seed: int = 0):
    masks = np.random.default_rng(seed).random((number, *SIZE)) < 0.4
    masks[0] = False
    masks[0, 0, 0] = True  # begins with a background run of length 0
    return masks, [r["counts"] for r in rle.encode_array(masks)]


@pytest.mark.parametrize("chunk", [2, 1024])
def test_runs_and_areas_are_those_of_the_pixels(monkeypatch, chunk):
    monkeypatch.setattr(mask_stack, "_CHUNK", chunk)
    masks, counts = random_counts(5)
    stack, valid, tidy = read_stack(counts, SIZE)
    assert len(stack) == 5 and valid.all() and tidy.all()
    assert stack.areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    for i, mask in enumerate(masks):
        ends = stack.ends[stack.offsets[i] : stack.offsets[i + 1]]
        column_major = mask.T.reshape(-1)
        changes = np.flatnonzero(np.diff(column_major)) + 1
        first = [0] if column_major[0] else []
        assert ends.tolist() == [*first, *changes, column_major.size]


def test_a_mask_that_does_not_fill_its_frame_is_not_valid():
    _, counts = random_counts(2)
    _, valid, _ = read_stack([counts[0], "1"], SIZE)
    assert valid.tolist() == [True, False]


def test_no_masks():
    stack, valid, tidy = read_stack([], SIZE)
    assert len(stack) == len(valid) == len(tidy) == 0


def test_a_string_that_is_none():
    with pytest.raises(ValueError, match="not a compressed COCO RLE string"):
        read_stack(["\x7f"], SIZE)
