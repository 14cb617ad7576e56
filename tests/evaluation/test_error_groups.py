import numpy as np
import pytest
from moving_squares import LENGTH, square, truth_and_perfect_result

from vis_d2.evaluation.error_groups import evaluate_groups, length, motion, size
from vis_d2.evaluation.track_pairs import read_pairs, tube_iou


def groups_of(gt, found):
    _, pairs = read_pairs(gt, found)
    return evaluate_groups(pairs, [tube_iou(pair, pair.common()) for pair in pairs])


def test_properties():
    gt, _ = truth_and_perfect_result()
    gt["annotations"][1]["segmentations"][1:7] = [None] * 6
    gt["annotations"][2]["segmentations"][1:] = [None] * (LENGTH - 1)
    gt["annotations"][3]["segmentations"] = [None] * LENGTH
    side = read_pairs(gt, [])[1][0].gt
    assert length(side).tolist() == [8, 2, 1, 0]
    assert size(side).tolist() == [12, 12, 12, 0]
    # 5 pixels per frame, also across the gap, of 12 pixels.
    assert motion(side) == pytest.approx([500 / 12, 500 / 12, 0, 0])


def test_ap_of_short_and_long_objects():
    """Three objects are short, and nobody finds them."""
    gt, found = truth_and_perfect_result()
    for row in gt["annotations"][::4]:
        row["segmentations"][3:] = [None] * (LENGTH - 3)
    found = [row for i, row in enumerate(found) if i % 4]
    short, long = groups_of(gt, found)["length"]
    assert (short.low, short.high, short.objects) == (3, 3, 3)
    assert (long.low, long.high, long.objects) == (8, 8, 9)
    assert (short.ap, short.recall50) == (0, 0) and (long.ap, long.recall50) == (1, 1)


def test_objects_that_are_all_alike_are_one_group():
    groups = groups_of(*truth_and_perfect_result())
    for name, value in (("length", 8), ("size", 12), ("motion", 500 / 12)):
        (group,) = groups[name]
        assert group.low == group.high == pytest.approx(value)
        assert (group.objects, group.ap, group.recall50) == (12, 1, 1)


def test_every_object_is_in_one_group():
    rng = np.random.default_rng(0)
    gt, found = truth_and_perfect_result()
    for row in gt["annotations"]:
        side = int(rng.integers(5, 14))
        masks = [square(0, t, side) if rng.random() < 0.8 else None for t in range(LENGTH)]
        row["segmentations"] = masks
    for groups in groups_of(gt, found).values():
        assert sum(group.objects for group in groups) == 12 and 1 <= len(groups) <= 4
        assert all(group.objects for group in groups)


def test_no_results():
    gt, _ = truth_and_perfect_result()
    (group,) = groups_of(gt, [])["size"]
    assert (group.objects, group.ap, group.recall50) == (12, 0, 0)
