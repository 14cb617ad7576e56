import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_files import LEFT, RIGHT, SIZE, annotation, box, result

from vis_d2.evaluation import comparison
from vis_d2.evaluation.comparison import Rules, VideoJob, _descending, batched, compare
from vis_d2.evaluation.tracks import Video, entries_by_video


def jobs(num_videos: int = 1, bad: bool = False):
    videos = {v: Video(v, *SIZE, 1) for v in range(1, num_videos + 1)}
    truths = [annotation([LEFT], id=v, video=v) for v in videos]
    mask = {"size": [3, 3], "counts": "1"} if bad else box(0, 0, 2, 10)
    found = [result([m], s, video=v) for v in videos for m, s in ((mask, 0.5), (LEFT, 0.9))]
    sides = [
        entries_by_video(rows, videos, {1, 2, 3}, kind=kind, strict=True)[0]
        for rows, kind in ((truths, "annotation"), (found, "result"))
    ]
    return [VideoJob(videos[v], *(side.get(v, []) for side in sides)) for v in videos]


RULES = Rules(strict=True, crowd="official", max_results=100)


def test_rows_are_results_by_score_and_columns_truths():
    compared = compare(jobs(), RULES)
    assert compared.ious[1, 1].tolist() == [[1.0], [0.5]]
    assert [track.row["score"] for track in compared.found] == [0.5, 0.9]  # as in the file
    assert [track.areas.tolist() for track in compared.truths] == [[40]]
    assert not compared.faults


def test_only_the_best_results_are_compared():
    assert compare(jobs(), RULES._replace(max_results=1)).ious[1, 1].tolist() == [[1.0]]


def test_a_category_on_one_side_is_not_compared():
    (job,) = jobs()
    other = compare([job._replace(found=[])], RULES)
    assert other.ious == {} and len(other.truths) == 1


def test_a_fault_names_its_place():
    (fault,) = compare(jobs(bad=True), RULES).faults
    assert "video 1, result 0" in fault and "[3, 3]" in fault


def test_videos_are_taken_together_until_they_have_enough_masks(monkeypatch):
    monkeypatch.setattr(comparison, "_MASKS_PER_BATCH", 4)  # a video has three
    videos = jobs(5)
    assert batched(videos) == [videos[:2], videos[2:4], videos[4:]]
    assert batched([]) == []


def test_a_fault_in_a_video_leaves_the_others_of_its_batch():
    compared = compare([*jobs(), *jobs(bad=True)], RULES)
    assert len(compared.faults) == 1 and len(compared.truths) == 1
    assert compared.ious[1, 1].tolist() == [[1.0], [0.5]]


SCORES = st.one_of(st.floats(), st.integers(-3, 3), st.integers(2**60, 2**60 + 3))


@settings(max_examples=60, derandomize=True, deadline=None)
@example([float("nan"), 1.0, 2.0, float("nan"), 0.5])
@example([0.0, 2**60, 2**60 + 1])
@given(st.lists(SCORES, max_size=6))
def test_scores_are_ordered_as_numpy_does(scores):
    expected = np.argsort([-score for score in scores], kind="mergesort").tolist()
    assert _descending(scores) == expected


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_and_batches_change_nothing(monkeypatch, processes, batch):
    monkeypatch.setattr(comparison, "_MASKS_PER_PROCESS", 4)
    monkeypatch.setattr(comparison, "_MASKS_PER_BATCH", batch)
    compared = compare(jobs(6), RULES, processes)
    assert sorted(compared.ious) == [(v, 1) for v in range(1, 7)]
    assert all(np.array_equal(iou, [[1.0], [0.5]]) for iou in compared.ious.values())
    assert [track.row["video_id"] for track in compared.truths] == list(range(1, 7))
    assert RIGHT not in [track.masks[0] for track in compared.found]
