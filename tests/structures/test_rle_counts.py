import numpy as np
import pytest
from pycocotools import mask as coco_mask

from vis_d2.structures.rle_counts import areas, check, run_lengths


def compress(mask: np.ndarray) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def runs_of(mask: np.ndarray) -> np.ndarray:
    """Run lengths the slow way: walk down the columns and count."""
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1):  # (H, W) -> (W * H,), column by column
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return np.array(runs)


def test_run_lengths_of_many_strings_are_those_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 9), (9, 1), (37, 29), (60, 90)]
    masks = [rng.random(shapes[i % 5]) < rng.random() ** 2 for i in range(60)]
    masks += [np.zeros((20, 2000), bool), np.ones((20, 2000), bool)]
    runs, offsets = run_lengths([compress(mask)["counts"] for mask in masks])
    assert len(offsets) == len(masks) + 1
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(runs[offsets[i] : offsets[i + 1]], runs_of(mask))


def test_run_lengths_accept_no_rle_at_all() -> None:
    runs, offsets = run_lengths([])
    assert len(runs) == 0 and offsets.tolist() == [0]


def test_bytes_are_checked_like_text() -> None:
    rle = compress(np.eye(4, dtype=bool))
    assert check([{"size": [4, 4], "counts": rle["counts"].encode()}])[0].tolist() == [True]


@pytest.mark.parametrize(
    "counts",
    ["", "~~", "\u20ac4", "4P", "oooooooooooo0", "5", "d0d0", "3N6"],
    ids="empty character unicode unfinished endless short long negative".split(),
)
def test_broken_strings_are_found_among_sound_ones(counts: str) -> None:
    sound = compress(np.eye(4, dtype=bool))
    rles = [sound, {"size": [4, 4], "counts": counts}, sound]
    assert check(rles)[0].tolist() == [True, False, True]


def test_runs_of_length_0_are_found_except_at_the_start() -> None:
    rles = []
    for runs in ([16], [0, 16], [4, 4, 0, 8], [0, 4, 12], [4, 12, 0]):
        rle = coco_mask.frPyObjects({"size": [4, 4], "counts": runs}, 4, 4)
        rles.append({"size": [4, 4], "counts": rle["counts"].decode()})
    valid, tidy = check(rles)
    assert valid.all()
    assert tidy.tolist() == [True, True, False, True, False]
    assert [len(part) for part in check([])] == [0, 0]


def test_run_lengths_of_an_unreadable_string_are_an_error() -> None:
    with pytest.raises(ValueError, match="not a compressed COCO RLE"):
        run_lengths(["4P"])


def test_areas_of_more_masks_than_one_call_takes() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((700, 5, 6)) < 0.3
    rles = [compress(mask) if i % 7 else None for i, mask in enumerate(masks)]
    expected = [int(mask.sum()) if i % 7 else 0 for i, mask in enumerate(masks)]
    assert areas(rles).tolist() == expected
    assert areas([]).shape == (0,)
