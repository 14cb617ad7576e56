"""The small cases are worked out by hand; see the comments."""

import numpy as np
import pytest
from small_files import LEFT, RIGHT, annotation, box, ground_truth, result

from vis_d2.evaluation.identity import (
    ALPHAS,
    count,
    identity_metrics,
    identity_metrics_by_category,
)

HALF = box(0, 0, 2, 10)  # half of LEFT: IoU 0.5
FRACTIONS = ("HOTA", "DetA", "AssA", "LocA", "IDF1")


@pytest.fixture
def broken():
    """One object in four frames; one result has it for two frames, another, half, for the rest."""
    gt = ground_truth([annotation([LEFT] * 4)], length=4)
    found = [result([LEFT, LEFT, None, None]), result([None, None, HALF, HALF], 0.5)]
    return gt, found


def test_a_track_broken_in_two(broken):
    # At the 10 alphas up to 0.5 all 4 masks match: DetA = 4 / (4 + 4 - 4). For each of them the two
    # tracks share 2 frames of 4: AssA = 2 / (4 + 2 - 2).
    # At the 9 alphas above, the first 2 match: DetA = 2 / (4 + 4 - 2), AssA = 1 / 2 as before.
    metrics = identity_metrics(*broken)
    assert metrics["HOTA"] == pytest.approx((10 * np.sqrt(1 / 2) + 9 * np.sqrt(1 / 3 / 2)) / 19)
    assert metrics["DetA"] == pytest.approx((10 * 1 + 9 * 1 / 3) / 19)
    assert metrics["AssA"] == pytest.approx(1 / 2)
    assert metrics["LocA"] == pytest.approx((10 * 0.75 + 9 * 1) / 19)
    # One of the two results can be the object: 2 masks right, 2 missed, 2 false alarms.
    assert metrics["IDF1"] == pytest.approx(2 * 2 / (4 + 4))
    assert metrics["IDSW"] == 1


def test_hota_at_each_alpha():
    overlaps = np.array([[[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]])
    counts = count(overlaps, np.ones((1, 4), bool), overlaps[0] > 0)
    expected = np.where(ALPHAS <= 0.5, np.sqrt(1 / 2), np.sqrt(1 / 6))
    assert counts.hota() == pytest.approx(expected)
    assert ALPHAS[9] == 0.5 and len(ALPHAS) == 19 and ALPHAS[-1] == 0.95


def test_categories_are_averaged_or_pooled(broken):
    gt, found = broken
    gt["annotations"].append(annotation([RIGHT] * 4, id=2, video=2, category=2))
    found.append(result([RIGHT] * 4, video=2, category=2))
    by_category = identity_metrics_by_category(gt, found)
    metrics = identity_metrics(gt, found)
    assert set(by_category) == {1, 2}
    assert all(by_category[2][name] == 1 for name in FRACTIONS)
    for name in FRACTIONS:
        assert metrics[name] == pytest.approx((by_category[1][name] + 1) / 2)
    # Pooled, up to 0.5: 8 of 8 match, AssA = (4 * 1/2 + 4 * 1) / 8; above: 6 match.
    low, high = 1 * 3 / 4, 6 / (8 + 8 - 6) * (2 * 1 / 2 + 4) / 6
    assert metrics["HOTA_pooled"] == pytest.approx((10 * np.sqrt(low) + 9 * np.sqrt(high)) / 19)
    assert metrics["IDF1_pooled"] == pytest.approx(2 * 6 / 16)
    assert metrics["IDSW"] == metrics["IDSW_pooled"] == 1


def test_a_perfect_result_scores_one():
    gt = ground_truth([annotation([LEFT, None, LEFT]), annotation([RIGHT] * 3, id=2)], length=3)
    found = [result([RIGHT] * 3), result([LEFT, None, LEFT])]
    metrics = identity_metrics(gt, found)
    assert all(metrics[name] == metrics[f"{name}_pooled"] == 1 for name in FRACTIONS)
    assert metrics["IDSW"] == 0


def test_identities_swapped_halfway():
    gt = ground_truth([annotation([LEFT] * 4), annotation([RIGHT] * 4, id=2)], length=4)
    found = [result([LEFT, LEFT, RIGHT, RIGHT]), result([RIGHT, RIGHT, LEFT, LEFT])]
    metrics = identity_metrics(gt, found)
    # All masks are right, at every alpha. Each pair of tracks shares 2 frames: 2 / (4 + 4 - 2).
    assert metrics["DetA"] == metrics["LocA"] == 1
    assert metrics["AssA"] == pytest.approx(1 / 3)
    assert metrics["HOTA"] == pytest.approx(np.sqrt(1 / 3))
    assert metrics["IDF1"] == pytest.approx(1 / 2)
    assert metrics["IDSW"] == 2


def test_a_switch_counts_across_a_gap_and_not_on_the_way_back_to_the_same():
    overlaps = np.zeros((1, 2, 5))
    overlaps[0, 0, [0, 4]] = 1
    overlaps[0, 1, 2] = 1
    switches = count(overlaps, np.ones((1, 5), bool), overlaps[0] > 0).switches
    assert switches == 2  # to the other result after a frame without any, and back
    same = np.zeros((1, 1, 5))
    same[0, 0, [0, 4]] = 1
    assert count(same, np.ones((1, 5), bool), same[0] > 0).switches == 0


def test_an_object_keeps_its_match_against_a_better_newcomer():
    overlaps = np.array([[[0.9, 0.6], [0.0, 1.0]]])
    counts = count(overlaps, np.ones((1, 2), bool), np.ones((2, 2), bool))
    assert counts.switches == 0
    overlaps[0, 0, 1] = 0.4  # below 0.5 it is lost
    assert count(overlaps, np.ones((1, 2), bool), np.ones((2, 2), bool)).switches == 1


@pytest.mark.parametrize("annotations", [[], None])
def test_no_truth(annotations):
    metrics = identity_metrics(ground_truth(annotations), [result([LEFT])])
    assert all(metrics[name] == metrics[f"{name}_pooled"] == -1 for name in FRACTIONS)


def test_no_results():
    metrics = identity_metrics(ground_truth([annotation([LEFT])]), [])
    assert metrics["HOTA"] == metrics["DetA"] == metrics["AssA"] == metrics["IDF1"] == 0
    assert metrics["LocA"] == 1 and metrics["IDSW"] == 0
    assert identity_metrics(ground_truth([annotation([None])]), [])["HOTA"] == -1


def test_false_alarms_of_a_category_without_truth_count_only_where_pooled():
    gt = ground_truth([annotation([LEFT])])
    metrics = identity_metrics(gt, [result([LEFT]), result([RIGHT], category=3)])
    assert metrics["HOTA"] == 1 and metrics["HOTA_pooled"] == pytest.approx(np.sqrt(1 / 2))


def test_score_thresholds():
    gt = ground_truth([annotation([LEFT]), annotation([RIGHT], id=2)])
    found = [result([LEFT], 0.9), result([RIGHT], 0.6), result([box(4, 0, 6, 10)], 0.2)]
    everything = identity_metrics(gt, found)
    assert everything["DetA"] == pytest.approx(2 / 3)
    assert identity_metrics(gt, found, score_threshold=0.6)["DetA"] == 1
    assert identity_metrics(gt, found, score_threshold=0.61)["DetA"] == 1 / 2
    best = identity_metrics(gt, found, score_threshold="best-f1")
    assert best["DetA"] == 1 and best["score_threshold"] == 0.6
    with pytest.raises(ValueError, match="best-f1"):
        identity_metrics(gt, found, score_threshold="best")


def test_scores_below_zero_are_kept_without_a_threshold():
    assert identity_metrics(ground_truth([annotation([LEFT])]), [result([LEFT], -3.0)])["HOTA"] == 1


def test_modes():
    gt = ground_truth([annotation([LEFT, LEFT])], length=2)
    short = [result([LEFT])]
    with pytest.raises(ValueError, match="1 segmentations for a video of length 2"):
        identity_metrics(gt, short)
    assert identity_metrics(gt, short, mode="official")["DetA"] == 1 / 2


def test_the_numbers_are_those_of_trackeval():
    """Computed once with its release 1.3.0, for overlaps full of ties and limits."""
    g, d, t = np.ogrid[:4, :5, :9]
    truths = (np.arange(4)[:, None] + 2 * np.arange(9)) % 5 > 0
    found = (2 * np.arange(5)[:, None] + np.arange(9)) % 4 > 0
    overlaps = ((7 * g + 5 * d + 3 * t + g * d * t) % 11) / 10 * truths[:, None] * found
    expected = {
        "HOTA": 0.30727423825616,
        "DetA": 0.45852746298702374,
        "AssA": 0.20813122877476942,
        "LocA": 0.8207897015265436,
        "IDF1": 0.4918032786885246,
        "IDSW": 11,
    }
    assert count(overlaps, truths, found).metrics() == pytest.approx(expected)
