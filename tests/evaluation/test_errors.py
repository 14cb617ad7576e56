import json

import numpy as np
import pytest
from moving_squares import (
    add_background,
    change_class,
    degrade_masks,
    drop_tracks,
    duplicate,
    end_early,
    fragment,
    spoil_class_and_masks,
    square,
    swap_between_classes,
    swap_halfway,
    truth_and_perfect_result,
)

from vis_d2.evaluation.error_kinds import KINDS
from vis_d2.evaluation.errors import analyze_errors
from vis_d2.evaluation.video_coco_eval import VideoCOCOeval


def test_a_perfect_result_loses_nothing():
    analysis = analyze_errors(*truth_and_perfect_result())
    assert analysis.ap == analysis.ap50 == 1
    assert analysis.main_cause is None and not analysis.problems
    assert set(analysis.share.values()) == {0.0}


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (swap_halfway, "identity"),
        (swap_between_classes, "identity"),
        (fragment, "identity"),
        (end_early, "incomplete"),
        (degrade_masks, "mask"),
        (change_class, "class"),
        (drop_tracks, "missed"),
        (duplicate, "duplicate"),
        (add_background, "background"),
        (spoil_class_and_masks, "mixed"),
    ],
)
def test_the_cause_is_named(spoil, kind):
    gt, found = truth_and_perfect_result()
    analysis = analyze_errors(gt, spoil(found))
    assert analysis.ap < 0.9
    assert analysis.main_cause == kind
    assert analysis.share[kind] > 0.95
    # Nothing but this is wrong, so its repair repairs everything.
    assert analysis.ap + analysis.gain[kind] == pytest.approx(1)
    assert analysis.ap50 + analysis.gain50[kind] == pytest.approx(1)
    assert {p.kind for p in analysis.problems} <= {kind, "duplicate"}
    assert analysis.number[kind] == sum(p.kind == kind for p in analysis.problems) > 0


def test_ap_is_that_of_the_evaluation():
    """On results with all kinds of errors, ties, crowds and empty tracks."""
    rng = np.random.default_rng(3)
    gt, found = truth_and_perfect_result()
    gt["annotations"][5]["iscrowd"] = 1
    gt["annotations"][7]["segmentations"] = [None] * 8
    for _ in range(3):
        for row in list(found[:12]):
            start, shift, side = rng.integers(0, 4), rng.integers(-3, 4), rng.integers(8, 14)
            masks = [
                None if t < start else square(int(rng.integers(0, 2)), t, int(side), int(shift))
                for t in range(8)
            ]
            category = int(rng.integers(1, 4))
            more = {"category_id": category, "score": float(rng.integers(1, 10)) / 10}
            found.append({**row, "segmentations": masks, **more})
    analysis = analyze_errors(gt, found)
    metrics = VideoCOCOeval(gt, found).run()
    assert analysis.ap == pytest.approx(metrics["AP"], abs=1e-12)
    assert analysis.ap50 == pytest.approx(metrics["AP50"], abs=1e-12)
    for category, ap in analysis.category_ap.items():
        assert ap == pytest.approx(metrics["per_category_AP"][category], abs=1e-12)
    assert set(analysis.category_ap) == {1, 2}
    assert all(0 <= gain <= 1 - analysis.ap + 1e-12 for gain in analysis.gain.values())


def test_problems_point_into_the_files():
    gt, found = truth_and_perfect_result()
    found[1]["category_id"] = 3
    del found[6]
    analysis = analyze_errors(gt, found)
    wrong, missed = sorted(analysis.problems, key=lambda p: p.kind)
    assert (wrong.kind, wrong.result, wrong.annotation, wrong.iou) == ("class", 1, 1, 1.0)
    assert (wrong.video_id, wrong.category_id, wrong.score) == (1, 3, found[1]["score"])
    assert (missed.kind, missed.annotation, missed.video_id) == ("missed", 6, 2)
    assert missed.result is None and missed.score is None


def test_a_repair_puts_one_result_right_for_each_object():
    """Two poor results on one object: the better one becomes right, the other goes."""
    gt, found = truth_and_perfect_result()
    found = degrade_masks(found) + [dict(row, score=0.99) for row in degrade_masks(found)]
    analysis = analyze_errors(gt, found)
    assert analysis.number["mask"] == 24
    assert analysis.ap + analysis.gain["mask"] == pytest.approx(1)


@pytest.mark.parametrize("annotations", [None, []])
def test_nothing_to_compare_with(annotations):
    gt, found = truth_and_perfect_result()
    gt["annotations"] = annotations
    with pytest.raises(ValueError, match="no annotations"):
        analyze_errors(gt, found)


def test_no_results():
    gt, _ = truth_and_perfect_result()
    analysis = analyze_errors(gt, [])
    assert analysis.ap == 0 and analysis.main_cause == "missed"
    assert analysis.gain["missed"] == 1 and analysis.number["missed"] == 12


def test_to_json():
    gt, found = truth_and_perfect_result()
    data = json.loads(json.dumps(analyze_errors(gt, swap_halfway(found)).to_json()))
    assert data["main_cause"] == "identity" and set(data["kinds"]) == set(KINDS)
    assert data["kinds"]["identity"]["number"] == 12
    assert set(data["groups"]) == {"length", "size", "motion"}
    assert data["per_category_AP"] == {"1": 0.0, "2": 0.0}


def test_malformed_entries():
    gt, found = truth_and_perfect_result()
    found[2]["segmentations"].pop()
    with pytest.raises(ValueError, match="7 segmentations for a video of length 8"):
        analyze_errors(gt, found)
