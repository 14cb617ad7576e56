import copy

from vis_d2.data.dataset_statistics import CheckedVideo, Statistics
from vis_d2.data.findings import Findings
from vis_d2.data.track_check import TrackCheck


def _check(content):
    """The findings in the tracks of a file whose videos and categories are sound."""
    videos = [CheckedVideo(v["id"], 24, 32, v["file_names"]) for v in content["videos"]]
    statistics = Statistics({3: "cat", 7: "dog"}, {video.id: video for video in videos})
    findings = Findings()
    checker = TrackCheck(statistics, findings)
    for index, row in enumerate(content["annotations"]):
        checker.check(row, index)
    return list(findings)


def test_tracks_with_the_same_masks(content):
    content["annotations"].append({**copy.deepcopy(content["annotations"][0]), "id": 9})
    (finding,) = _check(content)
    assert finding.kind == "same-masks" and "track 5" in str(finding)


def test_zeros_mean_an_absent_box(content):
    content["annotations"][1]["bboxes"][1] = [0, 0, 0, 0]
    content["annotations"][1]["areas"][1] = 0
    assert _check(content) == []


def test_a_box_may_be_off_by_the_last_pixel(content):
    content["annotations"][0]["bboxes"][0] = [2, 4, 7, 5]
    assert _check(content) == []


def test_the_first_and_the_last_pixel_beyond_the_tolerance(content):
    boxes = content["annotations"][0]["bboxes"]
    boxes[0], boxes[1] = [2, 4, 5, 6], [9, 4, 5, 6]
    assert [(f.kind, f.frame) for f in _check(content)] == [
        ("box-too-small", 0),
        ("box-too-small", 1),
    ]
