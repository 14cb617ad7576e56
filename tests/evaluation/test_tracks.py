import random

import pytest
from small_files import LEFT, RIGHT, annotation, ground_truth, result

from vis_d2.evaluation.tracks import is_number, read_tracks, read_videos


def test_videos_take_their_length_from_the_frames_if_need_be() -> None:
    rows = ground_truth([], length=3)["videos"]
    del rows[0]["length"]
    videos = read_videos(rows, strict=True)
    assert {video.length for video in videos.values()} == {3}
    del rows[0]["file_names"]
    with pytest.raises(ValueError, match="video 2 needs height, width and length"):
        read_videos(rows, strict=True)
    assert read_videos(rows, strict=False)[2].length is None


def test_a_video_listed_twice_is_an_error_in_strict_mode() -> None:
    rows = ground_truth([])["videos"] * 2
    with pytest.raises(ValueError, match="video 2 is listed twice"):
        read_videos(rows, strict=True)
    assert sorted(read_videos(rows, strict=False)) == [1, 2]


def test_tracks_keep_the_order_of_the_file_across_videos() -> None:
    videos = read_videos(ground_truth([], length=2)["videos"], strict=True)
    rows = [
        result([LEFT, None], video=2),
        result([RIGHT, RIGHT], video=1),
        result([None, None], video=2),
    ]
    tracks, faults = read_tracks(rows, videos, [1], kind="result", strict=True)
    assert not faults
    assert [track.row for track in tracks] == rows
    assert [track.masks for track in tracks] == [row["segmentations"] for row in rows]
    assert [track.areas.tolist() for track in tracks] == [[40, 0], [40, 40], [0, 0]]
    assert tracks[1].name == "video 1, result 1"


def test_one_bad_mask_does_not_hide_the_others() -> None:
    videos = read_videos(ground_truth([])["videos"], strict=True)
    rows = [annotation([LEFT], id=4), annotation([{"size": [10, 10]}], id=5), annotation([RIGHT])]
    tracks, faults = read_tracks(rows, videos, [1], kind="annotation", strict=True)
    assert [track.row["id"] for track in tracks] == [4, 1]
    assert len(faults) == 1 and faults[0].startswith("video 1, annotation 5, frame 0: expected")


def test_numbers_of_json() -> None:
    assert all(map(is_number, (1, 0.5, float("nan"), 10**300)))
    assert not any(map(is_number, (True, None, "1", 10**400)))


def test_mutated_rows_are_a_fault_or_a_track() -> None:
    """Any value anywhere: never an exception, never a track with masks that cannot be compared."""
    rng = random.Random(0)
    videos = read_videos(ground_truth([], length=2)["videos"], strict=True)
    junk = [None, True, -1, 0, 10**20, 0.5, float("nan"), "", "P", [], [[]], {}, {"size": 3}, [1]]
    junk += [{"size": [10, 10], "counts": value} for value in (None, "PPP", [], [-5], [[]], "~")]
    junk += [{"size": value, "counts": "i0"} for value in ([0, 5], [-1, -1], [2**31, 2], ["a", 1])]
    for _ in range(2000):
        row = result([LEFT, RIGHT])
        key = rng.choice(list(row))
        if rng.random() < 0.5:
            row[key] = rng.choice(junk)
        else:
            row["segmentations"][rng.randrange(2)] = rng.choice(junk)
        for strict in (True, False):
            tracks, faults = read_tracks([row], videos, [1, 2, 3], kind="result", strict=strict)
            seen = len(tracks) + len(faults)
            assert seen == 1 or (seen == 0 and not strict)  # left out, as the official one does
            assert all(len(track.masks) == len(track.areas) for track in tracks)
