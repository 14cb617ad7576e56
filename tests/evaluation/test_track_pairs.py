import numpy as np
import pytest
from small_files import LEFT, RIGHT, annotation, box, ground_truth, result

from vis_d2.evaluation.track_pairs import frame_iou, read_pairs, tube_iou

HALF = box(0, 0, 2, 10)


def test_both_sides_of_each_video():
    rows = [annotation([LEFT, None], iscrowd=1), annotation([RIGHT, RIGHT], id=5, category=2)]
    found = [result([RIGHT, RIGHT], video=2), result([HALF, LEFT], 0.25)]
    categories, (first, second) = read_pairs(ground_truth(rows, length=2), found)
    assert categories == {1: "cat", 2: "dog", 3: "owl"}
    assert (first.video_id, second.video_id) == (1, 2)
    assert len(second.gt) == 0 and second.dt.index.tolist() == [0]
    assert first.gt.crowd.tolist() == [True, False] and first.gt.category.tolist() == [1, 2]
    assert first.gt.area.tolist() == [[40, 0], [40, 40]] and first.dt.area.tolist() == [[20, 40]]
    assert first.dt.score.tolist() == [0.25] and first.dt.index.tolist() == [1]


def test_overlaps():
    rows = [annotation([LEFT, None]), annotation([RIGHT, RIGHT], id=2)]
    _, (pair,) = read_pairs(ground_truth(rows, length=2), [result([HALF, LEFT])])
    common = pair.common()
    assert common.tolist() == [[[20, 0], [0, 0]]]
    assert frame_iou(pair, common).tolist() == [[[0.5, 0.0], [0.0, 0.0]]]
    assert tube_iou(pair, common) == pytest.approx(np.array([[20 / 80, 0.0]]))


def test_a_video_with_one_side_only():
    _, (pair,) = read_pairs(ground_truth([annotation([LEFT])]), [])
    common = pair.common()
    assert common.shape == (0, 1, 1) == frame_iou(pair, common).shape
    assert tube_iou(pair, common).shape == (0, 1)


def test_lists_of_any_length_in_official_mode():
    gt = ground_truth([annotation([LEFT, LEFT])], length=2)
    _, (pair,) = read_pairs(gt, [result([LEFT] * 3)], mode="official")
    assert pair.gt.area.tolist() == [[40, 40, 0]] and pair.dt.area.tolist() == [[40, 40, 40]]
    with pytest.raises(ValueError, match="3 segmentations"):
        read_pairs(gt, [result([LEFT] * 3)])
