from typing import List, Optional

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from vis_d2.structures import span_tables
from vis_d2.structures import tube_iou as module
from vis_d2.structures.mask_stack import read_stack
from vis_d2.structures.rle import tube_iou
from vis_d2.structures.tube_iou import StackedTubes, stacked_tube_ious

Mask = Optional[np.ndarray]


def compress(mask: Mask) -> Optional[dict]:
    if mask is None:
        return None
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def compress_all(tubes: List[List[Mask]]) -> List[List[Optional[dict]]]:
    return [[compress(mask) for mask in tube] for tube in tubes]


def plain_iou(a: List[Mask], b: List[Mask], crowd: bool = False) -> float:
    """One pair, frame by frame, in pixels."""
    common = union = only_a = 0
    for x, y in zip(a, b):
        if x is not None and y is not None and x.shape != y.shape:
            continue
        x = np.zeros(1, bool) if x is None else x
        y = np.zeros(1, bool) if y is None else y
        common += int((x & y).sum())
        union += int((x | y).sum())
        only_a += int(x.sum())
    union = only_a if crowd else union
    return common / union if union else 0.0


def random_tubes(rng: np.random.Generator, number: int, lengths, shapes) -> List[List[Mask]]:
    """Rectangles with ragged pixels, absent now and then, empty now and then."""
    tubes = []
    for _ in range(number):
        tube: List[Mask] = []
        for _ in range(int(rng.choice(lengths))):
            height, width = shapes[rng.integers(len(shapes))]
            mask = np.zeros((height, width), bool)
            y, x = rng.integers(height), rng.integers(width)
            mask[y : y + rng.integers(8), x : x + rng.integers(8)] = True
            mask &= rng.random(mask.shape) < 0.9
            tube.append(None if rng.random() < 0.3 else mask)
        tubes.append(tube)
    return tubes


def expected(dt, gt, iscrowd=None) -> np.ndarray:
    flags = iscrowd or [0] * len(gt)
    return np.array([[plain_iou(d, g, flag) for g, flag in zip(gt, flags)] for d in dt])


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equal_to_counting_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape, length = (int(rng.integers(1, 14)), int(rng.integers(1, 14))), int(rng.integers(1, 6))
    dt, gt = (random_tubes(rng, int(rng.integers(1, 5)), [length], [shape]) for _ in range(2))
    iscrowd = rng.integers(0, 2, len(gt)).tolist()
    masks = compress_all(dt), compress_all(gt)
    np.testing.assert_array_equal(tube_iou(*masks), expected(dt, gt))
    np.testing.assert_array_equal(tube_iou(*masks, strict=False), expected(dt, gt))
    np.testing.assert_array_equal(tube_iou(*masks, iscrowd), expected(dt, gt, iscrowd))


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equal_to_counting_pixels_of_malformed_tubes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(5, 7), (5, 7), (7, 5), (5, 8), (5, 9)]
    dt, gt = (random_tubes(rng, int(rng.integers(1, 5)), [1, 2, 4], shapes) for _ in range(2))
    found = tube_iou(compress_all(dt), compress_all(gt), strict=False)
    np.testing.assert_array_equal(found, expected(dt, gt))


def test_frames_are_spread_over_calls_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    dt, gt = (random_tubes(rng, n, [9], [(12, 10)]) for n in (4, 3))
    masks = compress_all(dt), compress_all(gt)
    whole = tube_iou(*masks)
    assert (whole > 0).any()
    calls, iou = [], coco_mask.iou
    monkeypatch.setattr(coco_mask, "iou", lambda *args: calls.append(1) or iou(*args))
    for pairs, expected_calls in ((1, 9), (40, 5), (10**6, 1)):
        monkeypatch.setattr(module, "_PAIRS_PER_CALL", pairs)
        calls.clear()
        np.testing.assert_array_equal(tube_iou(*masks), whole)
        assert abs(len(calls) - expected_calls) <= 2


def test_large_frames_are_counted_exactly() -> None:
    full = {"size": [40000, 50000], "counts": None}  # 2e9 pixels each, 6e9 in all
    full["counts"] = coco_mask.frPyObjects({"size": full["size"], "counts": [0, 2 * 10**9]}, 1, 1)
    full["counts"] = full["counts"]["counts"].decode()
    part = {"size": [40000, 50000], "counts": [1, 2 * 10**9 - 1]}
    part = {"size": part["size"], "counts": coco_mask.frPyObjects(part, 1, 1)["counts"].decode()}
    assert tube_iou([[full] * 3], [[part] * 3])[0, 0] == (6 * 10**9 - 3) / (6 * 10**9)


def test_nothing_on_one_side() -> None:
    tube = compress_all([[np.ones((2, 2), bool)]])
    assert tube_iou([], tube).shape == (0, 1)
    assert tube_iou(tube, []).shape == (1, 0)
    assert tube_iou([[None]], [[None]]).tolist() == [[0.0]]
    assert tube_iou([[]], [[]]).tolist() == [[0.0]]


def test_strict_refuses_what_cannot_be_compared() -> None:
    one, two = compress_all([[np.ones((2, 3), bool)], [np.ones((2, 3), bool)] * 2])
    with pytest.raises(ValueError, match=r"differ in length: \[1, 2\] frames"):
        tube_iou([one], [two])
    (turned,) = compress_all([[np.ones((3, 2), bool)]])
    with pytest.raises(ValueError, match=r"differ in size: \[\(2, 3\), \(3, 2\)\]"):
        tube_iou([one], [turned])


def stacked(tubes: List[List[Mask]], shape, groups, iscrowd) -> StackedTubes:
    masks = [mask for tube in compress_all(tubes) for mask in tube]
    stack = read_stack([mask["counts"] for mask in masks if mask], shape)[0]
    present = np.array([mask is not None for mask in masks]).reshape(len(tubes), -1)
    return StackedTubes(stack, present, groups, iscrowd)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_videos_of_any_size_and_length_compared_together(seed: int) -> None:
    """Two groups in each, of which one may be empty on a side; flags in some."""
    rng = np.random.default_rng(seed)
    videos, wanted = [], []
    for _ in range(int(rng.integers(0, 4))):
        shape = [(9, 12), (9, 12), (11, 7)][rng.integers(3)]
        tubes = random_tubes(rng, 8, [int(rng.integers(1, 6))], [shape])
        ends = np.sort(rng.integers(0, 9, 3))
        sides = [part.tolist() for part in np.split(rng.permutation(8), ends)]
        groups = [(sides[0], sides[1]), (sides[2], sides[3])]
        flags = [rng.integers(0, 2, len(gt)).tolist() for _, gt in groups]
        iscrowd = [crowd if rng.random() < 0.5 else None for crowd in flags]
        videos.append(stacked(tubes, shape, groups, iscrowd))
        for (dt, gt), crowd in zip(groups, iscrowd):
            one, other = ([tubes[i] for i in side] for side in (dt, gt))
            wanted.append(expected(one, other, crowd).reshape(len(dt), len(gt)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIRS_PER_BLOCK", int(rng.choice([1, 40, 1 << 16])))
        found = [iou for ious in stacked_tube_ious(videos) for iou in ious]
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted):
        np.testing.assert_array_equal(one, other)


def test_only_groups_with_fragmented_masks_are_left_to_the_walk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(span_tables, "_COLUMNS_PER_TABLE", 4)
    comb, plain = np.zeros((60, 4), bool), np.ones((60, 4), bool)
    comb[::2] = True
    groups = [([0], [1]), ([2], [3])]
    tubes = [[plain] * 2, [plain, comb], [plain] * 2, [plain] * 2]  # one mask is enough
    video = stacked(tubes, (60, 4), groups, [None, None])
    ((of_comb, of_plain),) = stacked_tube_ious([video])
    assert of_comb is None and of_plain.tolist() == [[1.0]]
    many = compress_all([[plain] * 50, [comb] * 50])  # enough for the stack
    assert tube_iou(many[:1], many[1:]).tolist() == [[0.5]]
