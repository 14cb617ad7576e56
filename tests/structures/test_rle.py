import json
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from vis_d2.structures import rle

SQUARE = [[1.0, 1.0, 4.0, 1.0, 4.0, 5.0, 1.0, 5.0]]


def random_masks(n: int, size: tuple) -> torch.Tensor:
    return torch.rand(n, *size) < torch.rand(n, 1, 1)


@pytest.mark.parametrize("size", [(1, 1), (7, 1), (1, 8), (23, 41)])
def test_masks_survive_the_round_trip(size: tuple) -> None:
    masks = random_masks(6, size)
    encoded = rle.encode(masks)
    assert torch.equal(rle.decode(encoded, size), masks)
    decoded = rle.decode(json.loads(json.dumps(encoded)), size)
    assert decoded.dtype == torch.bool and torch.equal(decoded, masks)


def test_a_mask_without_a_pixel_is_none() -> None:
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[1, 2, 3] = True
    encoded = rle.encode(masks)
    assert [mask is None for mask in encoded] == [True, False, True]
    assert torch.equal(rle.decode(encoded, (4, 5)), masks)
    assert rle.encode(masks[:1]) == [None]


def test_no_masks() -> None:
    assert rle.encode(torch.zeros(0, 4, 5, dtype=torch.bool)) == []
    assert rle.decode([], (4, 5)).shape == (0, 4, 5)
    assert rle.area([]).shape == (0,)
    assert rle.boxes([]).shape == (0, 4)


def test_encode_takes_transposed_memory_and_refuses_single_masks() -> None:
    masks = random_masks(2, (9, 5)).transpose(1, 2)
    assert torch.equal(rle.decode(rle.encode(masks), (5, 9)), masks)
    with pytest.raises(ValueError, match=r"\(n, H, W\), got \(5, 9\)"):
        rle.encode(masks[0])


def test_decode_names_the_mask_of_another_size() -> None:
    encoded = rle.encode(torch.ones(1, 4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mask 1 has size \[4, 5\], expected \[5, 4\]"):
        rle.decode([None, *encoded], (5, 4))


def test_area_and_boxes() -> None:
    masks = torch.zeros(2, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    encoded = [*rle.encode(masks), None]
    assert rle.area(encoded).tolist() == [18.0, 0.0, 0.0]
    assert rle.area(encoded).dtype == torch.float64
    assert rle.boxes(encoded).tolist() == [[3.0, 2.0, 9.0, 5.0], [0.0] * 4, [0.0] * 4]
    assert rle.boxes(encoded).dtype == torch.float32


def test_the_three_ways_of_files_to_write_a_mask_agree() -> None:
    mask = torch.zeros(1, 6, 7, dtype=torch.bool)
    mask[0, 1:5, 1:4] = True
    compressed = rle.encode(mask)[0]
    pixels = mask[0].T.reshape(-1).tolist()  # (6, 7) -> (42,), column by column
    changes = [0, *(i for i in range(1, 42) if pixels[i] != pixels[i - 1]), 42]
    runs = {"size": [6, 7], "counts": np.diff(changes).tolist()}
    as_bytes = {"size": [6, 7], "counts": compressed["counts"].encode()}
    for segmentation in (SQUARE, runs, compressed, as_bytes):
        assert rle.from_segmentation(segmentation, (6, 7)) == compressed
    assert rle.from_segmentations([None, SQUARE, [], runs], (6, 7)) == [
        None,
        compressed,
        None,
        compressed,
    ]


def test_several_polygons_are_one_mask() -> None:
    second = [5.0, 0.0, 7.0, 0.0, 7.0, 2.0, 5.0, 2.0]
    masks = [rle.from_segmentation(p, (6, 7)) for p in (SQUARE, [second], [*SQUARE, second])]
    one, other, both = rle.decode(masks, (6, 7))
    assert torch.equal(both, one | other) and other.any()


def test_runs_of_length_0_are_merged_because_comparing_stops_at_them() -> None:
    untidy = {"size": [4, 5], "counts": [2, 3, 0, 3, 4, 0, 2, 6, 0]}
    other = {"size": [4, 5], "counts": [2, 3, 0, 3, 12]}
    strings = [
        {**raw, "counts": coco_mask.frPyObjects(raw, 4, 5)["counts"].decode()}
        for raw in (untidy, other)
    ]
    expected = rle.decode(strings, (4, 5))
    for raw in ([untidy, other], strings):
        tidy = rle.from_segmentations(raw, (4, 5))
        assert tidy == rle.encode(expected)
        assert rle.tube_iou([[tidy[0]]], [[tidy[1]]]).tolist() == [[0.5]]


@pytest.mark.parametrize(
    "segmentation, message",
    [
        (None, "expected polygons or an RLE"),
        ([], "expected polygons or an RLE"),
        ("text", "expected polygons or an RLE, got 'text'"),
        ({"counts": "0"}, "expected polygons or an RLE"),
        ([[1.0, 2.0, 3.0, 4.0]], "3 or more x, y pairs"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]], "3 or more x, y pairs"),
        ([["a"] * 6], "3 or more x, y pairs"),
        ([[1.0, 1.0, 1e9, 1.0, 1e9, 9.0]], "leaves the 6 x 7 frame"),
        ([[1.0, 1.0, float("nan"), 1.0, 3.0, 9.0]], "leaves the 6 x 7 frame"),
        ({"size": [7, 6], "counts": "Z1"}, r"mask has size \[7, 6\], expected \[6, 7\]"),
        ({"size": "big", "counts": "Z1"}, "mask has size 'big'"),
        ({"size": [6, 7], "counts": 42}, "counts must be a string or a list"),
        ({"size": [6, 7], "counts": "5"}, "do not fill 6 x 7"),
        ({"size": [6, 7], "counts": "P"}, "do not fill 6 x 7"),
        ({"size": [6, 7], "counts": [40, 3]}, "do not fill 6 x 7"),
        ({"size": [6, 7], "counts": [-1, 43]}, "do not fill 6 x 7"),
        ({"size": [6, 7], "counts": [1.5, 40.5]}, "do not fill 6 x 7"),
    ],
)
def test_a_malformed_segmentation_is_one_clear_error(segmentation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.from_segmentation(segmentation, (6, 7))


def test_among_many_the_malformed_one_is_named() -> None:
    broken = {"size": [6, 7], "counts": "5"}
    with pytest.raises(rle.SegmentationError, match="do not fill") as caught:
        rle.from_segmentations([SQUARE, None, broken, SQUARE], (6, 7))
    assert caught.value.index == 2


def test_other_sizes_pass_only_where_they_are_allowed() -> None:
    other = rle.encode(torch.ones(1, 3, 3, dtype=torch.bool))[0]
    assert rle.from_segmentations([other], (6, 7), any_size=True) == [other]
    with pytest.raises(rle.SegmentationError, match="expected"):
        rle.from_segmentations([other], (6, 7))


def test_polygons_need_the_size_of_the_frame() -> None:
    with pytest.raises(ValueError, match="height and width"):
        rle.from_segmentation(SQUARE, (0, 0))


def test_long_values_are_cut_in_messages() -> None:
    assert rle.shorten([1, 2]) == "[1, 2]"
    text = rle.shorten(list(range(1000)))
    assert len(text) == 80 and text.endswith("...")


def test_values_of_many_levels_do_not_break_messages() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert rle.shorten(value) == "a list of many levels"
    while value:  # freed level by level: all at once needs a deep stack, too
        value = value[0]


def test_numbers_beyond_floats_are_refused_in_polygons() -> None:
    with pytest.raises(ValueError, match="expected a polygon"):
        rle.from_segmentation([[0, 0, 10**400, 0, 5, 5]], (6, 7))
