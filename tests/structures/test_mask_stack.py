import numpy as np
import pytest

from vis_d2.structures import mask_stack, rle
from vis_d2.structures.mask_stack import join_stacks, read_stack

SIZE = (7, 9)


def random_counts(number: int, seed: int = 0):
    masks = np.random.default_rng(seed).random((number, *SIZE)) < 0.4
    masks[0] = False
    masks[0, 0, 0] = True  # begins with a background run of length 0
    masks[1, -1, -1] = True  # ends with foreground
    return masks, [r["counts"] for r in rle.encode_array(masks)]


@pytest.mark.parametrize("chunk", [2, 1024])
def test_runs_and_areas_are_those_of_the_pixels(monkeypatch, chunk):
    monkeypatch.setattr(mask_stack, "_CHUNK", chunk)
    masks, counts = random_counts(5)
    stack, valid, tidy = read_stack(counts, SIZE)
    assert len(stack) == 5 and valid.all() and tidy.all()
    assert stack.areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    for i, mask in enumerate(masks):
        place = slice(*stack.offsets[i : i + 2])
        runs = list(zip(stack.begins[place].tolist(), stack.ends[place].tolist()))
        changes = np.diff(mask.T.reshape(-1), prepend=False, append=False)  # column by column
        edges = np.flatnonzero(changes).reshape(-1, 2).tolist()
        assert stack.amounts()[i] == len(edges)
        assert runs[: len(edges)] == [tuple(edge) for edge in edges]
        assert set(runs[len(edges) :]) <= {(mask.size, mask.size)}


def test_columns_are_those_of_the_pixels():
    masks, counts = random_counts(6, seed=1)
    counts.append("o1")  # 63 pixels of background: an empty mask
    stack, valid, _ = read_stack(counts, SIZE)
    assert valid.all()
    columns = [np.flatnonzero(mask.any(axis=0)) for mask in masks]
    assert stack.columns()[0].tolist() == [c[0] for c in columns] + [SIZE[1]]
    assert stack.columns()[1].tolist() == [c[-1] + 1 for c in columns] + [0]


def test_joined_stacks_are_those_of_all_masks():
    _, counts = random_counts(6, seed=1)
    whole = read_stack(counts, SIZE)[0]
    parts = [read_stack(counts[place], SIZE)[0] for place in (slice(4), slice(0), slice(4, 6))]
    for name in ("begins", "ends", "offsets", "areas"):
        assert getattr(join_stacks(parts), name).tolist() == getattr(whole, name).tolist()
    assert join_stacks([whole]) is whole


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
