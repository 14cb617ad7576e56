import numpy as np
import pytest
from small_files import LEFT, RIGHT, annotation, box, ground_truth, result

from vis_d2.evaluation.error_matching import (
    average_precision,
    best_f1_threshold,
    falling,
    match,
)
from vis_d2.evaluation.track_pairs import read_pairs, tube_iou

WIDER = box(0, 0, 5, 10)  # IoU 0.8 with LEFT


def matched(rows, found, thresholds=(0.5,), counted=None):
    _, (pair,) = read_pairs(ground_truth(rows), found)
    return match(pair, tube_iou(pair, pair.common()), thresholds, counted)


def test_the_best_score_comes_first():
    found = [result([LEFT], 0.5), result([WIDER], 0.9), result([RIGHT], 0.1)]
    rows = [annotation([LEFT]), annotation([RIGHT], id=2)]
    outcome = matched(rows, found, (0.5, 0.9))
    assert outcome.truth.tolist() == [[-1, 0, 1], [0, -1, 1]]
    assert not outcome.ignored.any()


def test_of_equal_scores_the_first_and_of_equal_truths_the_last():
    found = [result([LEFT]), result([LEFT])]
    rows = [annotation([WIDER], id=1), annotation([WIDER], id=2)]
    assert matched(rows, found).truth.tolist() == [[1, 0]]


def test_crowds_are_taken_last_and_by_many():
    rows = [annotation([LEFT], iscrowd=1), annotation([WIDER], id=2)]
    outcome = matched(rows, [result([LEFT], s) for s in (0.9, 0.8, 0.7)])
    assert outcome.truth.tolist() == [[1, 0, 0]]
    assert outcome.ignored.tolist() == [[False, True, True]]


def test_what_does_not_count():
    rows = [annotation([LEFT]), annotation([RIGHT], id=2)]
    found = [result([LEFT]), result([RIGHT]), result([box(4, 0, 6, 10)]), result([WIDER], 0.1)]
    counted = (np.array([True, False]), np.array([True, True, False, True]))
    outcome = matched(rows, found, counted=counted)
    assert outcome.truth.tolist() == [[0, 1, -1, -1]]
    assert outcome.ignored.tolist() == [[False, True, True, False]]


def test_no_more_than_a_hundred_results_of_a_category():
    found = [result([RIGHT], 0.9) for _ in range(100)] + [result([LEFT], 0.8)]
    outcome = matched([annotation([LEFT])], found + [result([LEFT], 0.7, category=2)])
    assert outcome.truth.max() == -1
    assert np.flatnonzero(outcome.ignored[0]).tolist() == [100]


def test_average_precision():
    assert average_precision(np.array([True, True]), 2) == pytest.approx(1)
    assert average_precision(np.zeros(0, bool), 2) == 0
    # Recall 0 to 0.5 (51 points) at precision 1, beyond (50 points) at 2 of 3.
    expected = (51 + 50 * 2 / 3) / 101
    assert average_precision(np.array([True, False, True]), 2) == pytest.approx(expected)


def test_falling_keeps_ties_in_order():
    assert falling(np.array([0.5, 0.9, 0.5, 0.9])).tolist() == [1, 3, 0, 2]


def test_the_threshold_of_the_best_f1():
    rows = [annotation([LEFT]), annotation([RIGHT], id=2)]
    found = [result([LEFT], 0.9), result([box(4, 0, 6, 10)], 0.6), result([RIGHT], 0.6)]
    found.append(result([WIDER], 0.2))
    _, pairs = read_pairs(ground_truth(rows), found)
    # 0.9: 2 * 1 / (1 + 2); 0.6, both results of it: 2 * 2 / (3 + 2); 0.2: 2 * 2 / (4 + 2).
    assert best_f1_threshold(pairs) == 0.6
    assert best_f1_threshold([]) == 0
    assert best_f1_threshold(read_pairs(ground_truth(rows), found[1:2])[1]) == 0
