from vis_d2.data.dataset_check import check_annotations
from vis_d2.data.dataset_statistics import Statistics
from vis_d2.data.findings import Findings


def test_what_a_file_holds(content):
    counts = check_annotations(content, Findings()).to_json()
    assert counts["videos"] == 2 and counts["frames"] == 6
    assert counts["tracks"] == 3 and counts["masks"] == 6
    assert counts["frames_per_video"] == {"min": 3, "median": 3.0, "max": 3}
    assert counts["tracks_per_video"] == {"min": 1, "median": 1.5, "max": 2}
    assert counts["sizes"] == {"32x24": 2} and counts["videos_without_tracks"] == 0
    assert counts["categories"] == [
        {"id": 3, "name": "cat", "videos": 2, "tracks": 2, "masks": 3},
        {"id": 7, "name": "dog", "videos": 1, "tracks": 1, "masks": 3},
    ]


def test_nothing_at_all():
    counts = Statistics().to_json()
    assert counts["videos"] == counts["tracks"] == 0
    assert counts["frames_per_video"] == {} and counts["categories"] == []


def test_the_table(content):
    lines = list(check_annotations(content, Findings()).lines())
    assert lines[1].split() == ["3", "2", "2", "3", "cat"]
    assert lines[3] == "2 videos, 6 frames, 3 tracks, 6 masks; 0 videos without a track"
    assert lines[-1] == "sizes: 32x24 (2 videos)"
    assert list(Statistics().lines())[-1] == "sizes: -"


def test_many_sizes_are_cut(content):
    content["videos"] *= 4
    content["videos"] = [{**v, "id": i, "width": 9 + i} for i, v in enumerate(content["videos"])]
    lines = list(check_annotations(content, Findings()).lines())
    assert lines[-1].endswith("and 3 more")
