import logging
from typing import Any, Dict, List, Tuple

import numpy as np
import plain_evaluation as plain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_files import LEFT, RIGHT, annotation, box, compress, ground_truth, result

from vis_d2.evaluation.video_coco_eval import METRICS, VideoCOCOeval, missing_annotations


def score(gt: Dict[str, Any], results: List[Dict[str, Any]], **options: Any) -> Dict[str, Any]:
    return rounded(VideoCOCOeval(gt, results, **options).run())


def both_modes(gt: Dict[str, Any], results: List[Dict[str, Any]]) -> Dict[str, Any]:
    strict, official = (
        VideoCOCOeval(gt, results, mode=mode).run() for mode in ("strict", "official")
    )
    assert strict == official  # to the last bit
    return rounded(strict)


def rounded(value: Any) -> Any:
    """COCO's guard against 0 / 0 makes a perfect precision 1 - 2e-16."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return round(value, 12) if isinstance(value, float) else value


# ---------------------------------------------------------------- against a plain program

AREAS = {"all": (0, 1e10), "small": (0, 8), "medium": (8, 20), "large": (20, 1e10)}


def random_masks(rng: np.random.Generator, length: int, shape: Tuple[int, int]) -> plain.Masks:
    """A rectangle that drifts, is out of sight now and then, and may have no pixel."""
    (y, x), size = rng.integers(shape), rng.integers(0, 7, 2)
    masks: plain.Masks = []
    for _ in range(length):
        mask = np.zeros(shape, bool)
        mask[y : y + size[0], x : x + size[1]] = True
        masks.append(None if rng.random() < 0.2 else mask)
        y, x = max(0, y + rng.integers(-1, 2)), max(0, x + rng.integers(-1, 2))
    return masks


def disturbed(rng: np.random.Generator, masks: plain.Masks) -> plain.Masks:
    kept = [None if mask is None or rng.random() < 0.1 else mask.copy() for mask in masks]
    for mask in kept:
        if mask is not None and rng.random() < 0.5:
            mask[:, rng.integers(mask.shape[1])] = rng.random() < 0.5
    return kept


def random_case(seed: int) -> Tuple[Dict[str, Any], List[Dict[str, Any]], Tuple]:
    """Files, and the same as plain tracks: crowds, ties, empty frames, given and missing areas."""
    rng = np.random.default_rng(seed)
    videos, categories = [7, 2, 9][: rng.integers(1, 4)], [5, 1, 40][: rng.integers(1, 4)]
    gt = {"videos": [], "categories": [{"id": c, "name": str(c)} for c in categories]}
    rows, results, truths, found = [], [], [], []
    for video in videos:
        length, shape = int(rng.integers(1, 4)), tuple(rng.integers(5, 11, 2).tolist())
        size = {"height": shape[0], "width": shape[1], "length": length}
        gt["videos"].append({"id": video, **size})
        here = []
        for _ in range(rng.integers(0, 5)):
            category, crowd = int(rng.choice(categories)), bool(rng.random() < 0.2)
            masks = random_masks(rng, length, shape)
            truth = plain.PlainTrack(video, category, masks, plain.mean_area(masks), crowd=crowd)
            row = annotation(to_rles(masks), len(rows) + 1, video, category, iscrowd=int(crowd))
            if rng.random() < 0.3:
                row["areas"] = [None if m is None else float(rng.integers(0, 30)) for m in masks]
                given = [a for a in row["areas"] if a]
                truth.area = float(np.mean(given)) if given else 0.0
            if not crowd and rng.random() < 0.3:
                del row["iscrowd"]
            rows.append(row)
            here.append(truth)
        truths += here
        for _ in range(rng.integers(0, 8)):
            category, masks = int(rng.choice(categories)), random_masks(rng, length, shape)
            if here and rng.random() < 0.7:
                target = here[rng.integers(len(here))]
                category, masks = target.category, disturbed(rng, target.masks)
            points = float(rng.integers(1, 5)) / 5  # few values: many ties
            area = plain.mean_area(masks)
            found.append(plain.PlainTrack(video, category, masks, area, score=points))
            results.append(result(to_rles(masks), points, video, category))
    gt["annotations"] = rows
    return gt, results, (videos, categories, truths, found)


def to_rles(masks: plain.Masks) -> List[Any]:
    return [None if mask is None else compress(mask) for mask in masks]


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equal_to_a_plain_program(seed: int) -> None:
    gt, results, tracks = random_case(seed)
    expected = plain.evaluate(*tracks, areas=AREAS)
    for mode in ("strict", "official"):
        evaluation = VideoCOCOeval(gt, results, mode=mode)
        evaluation.params.areaRng = [list(area) for area in AREAS.values()]
        metrics = evaluation.run()
        for name in METRICS:
            assert metrics[name] == pytest.approx(expected[name], abs=1e-9), (mode, name)
        for name in ("AP", "AP50", "AR100"):
            for category, value in metrics[f"per_category_{name}"].items():
                assert value == pytest.approx(expected[f"{name}@{category}"], abs=1e-9)


def test_the_random_cases_are_not_trivial() -> None:
    values = [score(*random_case(seed)[:2])["AP"] for seed in range(20)]
    assert len(set(values)) > 10 and any(0.1 < value < 0.9 for value in values)


# ---------------------------------------------------------------- each habit of the official one

FOUR = [LEFT] * 4


def test_quirk_lists_are_compared_up_to_the_end_of_the_shorter() -> None:
    gt = ground_truth([annotation(FOUR)], length=4)
    assert score(gt, [result([LEFT])], mode="official")["AP"] == 1.0
    padded = [result([LEFT, None, None, None])]
    evaluation = VideoCOCOeval(gt, padded, mode="official")
    assert evaluation.run()["AP"] == 0.0
    assert evaluation.ious[1, 1].tolist() == [[0.25]]
    with pytest.raises(
        ValueError, match="video 1, result 0: 1 segmentations for a video of length 4"
    ):
        score(gt, [result([LEFT])])


def test_quirk_frames_of_another_size_count_for_nothing() -> None:
    gt, wrong = ground_truth([annotation(FOUR)], length=4), box(0, 0, 4, 5, size=(5, 20))
    evaluation = VideoCOCOeval(gt, [result([LEFT, LEFT, wrong, LEFT])], mode="official")
    evaluation.run()
    assert evaluation.ious[1, 1].tolist() == [[1.0]]
    evaluation = VideoCOCOeval(gt, [result([wrong] * 4)], mode="official")
    assert evaluation.run()["AP"] == 0.0
    assert evaluation.ious[1, 1].tolist() == [[0.0]]
    message = r"video 1, result 0, frame 2: mask has size \[5, 20\], expected \[10, 10\]"
    with pytest.raises(ValueError, match=message):
        score(gt, [result([LEFT, LEFT, wrong, LEFT])])


def test_quirk_a_match_with_id_0_is_taken_for_none() -> None:
    gt = ground_truth([annotation([LEFT], id=0)])
    assert score(gt, [result([LEFT])], mode="official")["AP"] == 0.0
    assert score(gt, [result([LEFT])], mode="strict")["AP"] == 1.0


def test_quirk_the_union_with_a_crowd_is_the_usual_union() -> None:
    crowd, inside = box(0, 0, 10, 9), box(0, 0, 10, 4)  # IoU 4 / 9
    rows = [annotation([crowd], iscrowd=1), annotation([LEFT], id=2, video=2)]
    results = [result([inside], score=0.9), result([LEFT], score=0.8, video=2)]
    assert both_modes(ground_truth(rows), results)["AP"] == 0.5
    assert score(ground_truth(rows), results, crowd="coco")["AP"] == 1.0


def test_quirk_size_classes_include_both_ends_and_skip_empty_frames() -> None:
    size = (300, 300)
    square = box(0, 0, 128, 128, size)
    rows = [annotation([square, None, square])]
    metrics = both_modes(ground_truth(rows, 3, size), [result([square, None, square])])
    assert (metrics["APs"], metrics["APm"], metrics["APl"]) == (1.0, 1.0, -1.0)
    large = box(0, 0, 256, 256, size)
    metrics = both_modes(ground_truth([annotation([large])], 1, size), [result([large])])
    assert (metrics["APs"], metrics["APm"], metrics["APl"]) == (-1.0, 1.0, 1.0)
    larger = box(0, 0, 257, 256, size)
    metrics = both_modes(ground_truth([annotation([larger])], 1, size), [result([larger])])
    assert (metrics["APm"], metrics["APl"], metrics["ARl"]) == (-1.0, 1.0, 1.0)


def test_quirk_areas_of_the_truth_come_from_the_file(caplog: pytest.LogCaptureFixture) -> None:
    given = annotation([LEFT, LEFT], areas=[128**2 + 1.0, None])
    results = [result([LEFT, LEFT])]
    with caplog.at_level(logging.WARNING):
        metrics = both_modes(ground_truth([given], 2), results)
    assert (metrics["APs"], metrics["APm"]) == (-1.0, 1.0)
    assert "video 1, annotation 1" in caplog.text and "5%" in caplog.text
    computed = both_modes(ground_truth([annotation([LEFT, LEFT])], 2), results)
    assert (computed["APs"], computed["APm"]) == (1.0, -1.0)


def test_quirk_the_limit_on_results_is_per_category() -> None:
    rows = [annotation([LEFT]), annotation([RIGHT], id=2, category=2)]
    results = [result([LEFT]), result([RIGHT], category=2)]
    assert both_modes(ground_truth(rows), results)["AR1"] == 1.0
    rows[1]["category_id"] = results[1]["category_id"] = 1
    metrics = both_modes(ground_truth(rows), results)
    assert (metrics["AR1"], metrics["AR10"]) == (0.5, 1.0)


def test_quirk_categories_without_truth_are_left_out() -> None:
    wrong = [result([RIGHT], category=2, score=1.0) for _ in range(5)]
    metrics = both_modes(ground_truth([annotation([LEFT])]), [*wrong, result([LEFT])])
    assert metrics["AP"] == 1.0
    assert metrics["per_category_AP"] == {1: 1.0, 2: -1.0, 3: -1.0}
    assert metrics["counts"] == {"videos": 1, "tracks": 1, "categories": 1}


def test_quirk_a_truth_that_is_never_visible_is_a_miss() -> None:
    rows = [annotation([LEFT]), annotation([None], id=2)]
    metrics = both_modes(ground_truth(rows), [result([LEFT])])
    assert metrics["AP"] == pytest.approx(0.505, abs=5e-4)
    assert metrics["AR100"] == 0.5


def test_quirk_equal_scores_keep_the_order_of_the_file() -> None:
    gt = ground_truth([annotation([LEFT])])
    right, wrong = result([LEFT]), result([RIGHT])
    assert both_modes(gt, [right, wrong])["AP"] == 1.0
    assert both_modes(gt, [wrong, right])["AP"] == 0.5
    # In different videos the video with the lower id comes first, wherever it is in the file.
    wrong["video_id"] = 2
    assert both_modes(gt, [wrong, right])["AP"] == 1.0


def test_quirk_of_annotations_with_one_id_the_last_is_seen_twice() -> None:
    rows = [annotation([LEFT]), annotation([RIGHT], id=1, video=2)]
    results = [result([LEFT]), result([RIGHT], video=2)]
    assert score(ground_truth(rows), results)["AR100"] == 1.0
    assert score(ground_truth(rows), results, mode="official")["AR100"] == 0.5
    rows[1]["video_id"] = 1
    with pytest.raises(ValueError, match="annotation 1: a second annotation with this id"):
        score(ground_truth(rows), results)


@pytest.mark.parametrize("mode", ["strict", "official"])
def test_what_the_official_one_crashes_on_is_scored(mode: str) -> None:
    gt = ground_truth([annotation([LEFT])])
    assert score(gt, [], mode=mode)["AP"] == 0.0
    for key in ("iscrowd", "id"):
        del gt["annotations"][0][key]
    assert score(gt, [result([LEFT])], mode=mode)["AP"] == 1.0
    for annotations in (None, []):
        metrics = score(ground_truth(annotations), [result([LEFT])], mode=mode)
        assert {metrics[name] for name in METRICS} == {-1.0}
    del gt["annotations"]
    assert score(gt, [result([LEFT])], mode=mode)["AP"] == -1.0
    assert score(gt, [], mode=mode)["AP"] == -1.0


@pytest.mark.parametrize("mode", ["strict", "official"])
def test_all_ways_to_write_a_mask_score_alike(mode: str) -> None:
    runs = {"size": [10, 10], "counts": [0, 40, 60]}
    polygon = [[0.0, 0.0, 4.0, 0.0, 4.0, 10.0, 0.0, 10.0]]
    as_bytes = {**LEFT, "counts": LEFT["counts"].encode()}
    forms = [LEFT, runs, polygon, as_bytes]
    for form in forms:
        gt = ground_truth([annotation([form, []])], length=2)
        assert [score(gt, [result([f, None])], mode=mode)["AP"] for f in forms] == [1.0] * 4


# ---------------------------------------------------------------- malformed files


@pytest.mark.parametrize(
    "change, message",
    [
        ({"video_id": 9}, "video 9, result 1: no such video"),
        ({"video_id": "1"}, "result 1: video_id must be an integer"),
        ({"category_id": 9}, "video 1, result 1: unknown category_id 9"),
        ({"category_id": None}, "category_id must be an integer, got None"),
        ({"score": None}, "video 1, result 1: score must be a number"),
        ({"score": float("nan")}, "score must be finite, got nan"),
        ({"score": 10**400}, "score must be a number"),
        ({"segmentations": None}, "segmentations must be a list, got None"),
        ({"segmentations": [LEFT, LEFT]}, "2 segmentations for a video of length 1"),
        ({"segmentations": [{"size": [10, 10], "counts": "5"}]}, "result 1, frame 0: run lengths"),
    ],
)
def test_strict_names_what_is_wrong_with_a_result(change: Dict[str, Any], message: str) -> None:
    gt = ground_truth([annotation([LEFT])])
    with pytest.raises(ValueError, match=message):
        score(gt, [result([LEFT]), {**result([LEFT]), **change}])


def test_official_leaves_out_what_the_official_one_never_looks_at() -> None:
    gt = ground_truth([annotation([LEFT]), annotation([LEFT], id=2, video=77)])
    results = [result([LEFT]), result([RIGHT], score=1.0, category=77)]
    assert score(gt, results, mode="official")["AP"] == 1.0
    with pytest.raises(ValueError, match="video 77, annotation 2: no such video"):
        score(gt, results[:1])
    with pytest.raises(ValueError, match="video 77, result 0: no such video"):
        score(gt, [result([LEFT], video=77)], mode="official")


@pytest.mark.parametrize("mode", ["strict", "official"])
def test_a_mask_that_would_hang_the_c_code_is_an_error(mode: str) -> None:
    short = {"size": [10, 10], "counts": "0X1"}  # 40 of 100 pixels
    with pytest.raises(ValueError, match="video 1, result 0, frame 0: run lengths do not fill"):
        score(ground_truth([annotation([LEFT])]), [result([short])], mode=mode)


def test_the_number_of_further_faults_is_given() -> None:
    broken = [result([LEFT], category=8), result([LEFT], video=8), result([LEFT])]
    with pytest.raises(ValueError, match=r"unknown category_id 8 \(and 1 more\)"):
        score(ground_truth([annotation([LEFT])]), broken)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"areas": "large"}, "areas must be a list of numbers"),
        ({"areas": [1.0, 2.0]}, "2 areas for 1 segmentations"),
        ({"areas": [float("inf")]}, "areas must be finite"),
        ({"id": "one"}, "id must be an integer"),
    ],
)
def test_strict_names_what_is_wrong_with_an_annotation(change: Dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(ground_truth([{**annotation([LEFT]), **change}]), [])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"videos": None}, "expected a list of videos"),
        ({"videos": [{"id": "a"}]}, "a video needs an integer id"),
        ({"videos": [{"id": 1}]}, "video 1 needs height, width and length"),
        ({"categories": []}, "expected a list of categories"),
        ({"categories": [{"id": 1}, {"id": 1}]}, "a category id is used twice"),
        ({"annotations": {"a": 1}}, "expected a list of annotations"),
        ({"annotations": [5]}, "annotation 0: expected an object, got 5"),
    ],
)
def test_a_malformed_data_set_is_one_clear_error(change: Dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score({**ground_truth([]), **change}, [])


def test_modes_are_checked() -> None:
    with pytest.raises(ValueError, match="'lenient'"):
        VideoCOCOeval(ground_truth([]), [], mode="lenient")


def test_the_three_states_without_annotations_are_told_apart() -> None:
    gt = ground_truth([annotation([LEFT])])
    assert missing_annotations(gt) is None
    reasons = {missing_annotations({**gt, "annotations": value}) for value in (None, [])}
    del gt["annotations"]
    assert len(reasons | {missing_annotations(gt)}) == 3


def test_evaluation_prints_nothing(capsys: pytest.CaptureFixture) -> None:
    score(ground_truth([annotation([LEFT])]), [result([LEFT])])
    assert capsys.readouterr().out == ""
