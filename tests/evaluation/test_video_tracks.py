import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_files import LEFT, RIGHT, annotation, ground_truth, result

from vis_d2.evaluation.results import write_zip
from vis_d2.evaluation.video_tracks import (
    adopt_ids,
    keep_tracks,
    read_track_file,
    to_instances,
    visible,
)


@pytest.fixture
def save(tmp_path):
    def write(content, name="file.json"):
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    return write


def named(gt, *folders):
    for video, folder in zip(gt["videos"], folders):
        video["file_names"] = [f"{folder}/{name}" for name in video["file_names"]]
    return gt


def test_annotations_keep_their_ids(save):
    rows = [annotation([LEFT, None], id=7), annotation([None, RIGHT], id=9, category=2, iscrowd=1)]
    file = read_track_file(save(ground_truth(rows, length=2)))
    assert not file.is_results and file.faults == []
    assert [video.id for video in file.videos] == [2, 1]  # the order of the file
    assert [video.first_image for video in file.videos] == [0, 2]
    first, second = file.videos[1].tracks
    assert (first.id, first.category_id, first.score, first.iscrowd) == (7, 1, None, 0)
    assert (second.id, second.category_id, second.iscrowd) == (9, 2, 1)
    assert first.areas.tolist() == [40, 0] and first.masks[1] is None
    assert visible(file.videos[1], 1) == [(2, second)]


@pytest.mark.parametrize("ids", [(3, 3), (None, None)])
def test_annotations_without_ids_of_their_own_are_numbered(ids, save):
    rows = [annotation([LEFT], id=id_) for id_ in ids]
    (video,) = read_track_file(save(ground_truth(rows)), choose=["1"]).videos
    assert [track.id for track in video.tracks] == [1, 2]


@pytest.mark.parametrize("zipped", [False, True])
def test_results_are_numbered_in_their_video(zipped, save, tmp_path):
    rows = [result([LEFT], video=2), result([LEFT], 0.1), result([RIGHT], 0.3, category=3)]
    path = save(rows, "results.json")
    if zipped:
        write_zip(path, str(tmp_path / "results.zip"))
        path = str(tmp_path / "results.zip")
    file = read_track_file(path, save(ground_truth(None)))
    assert file.is_results
    assert [[t.id for t in video.tracks] for video in file.videos] == [[1], [1, 2]]
    assert [t.score for t in file.videos[1].tracks] == [0.1, 0.3]


def test_results_of_one_video_need_no_annotations(save):
    file = read_track_file(save([result([None, LEFT], video=5, category=4)]))
    (video,) = file.videos
    assert (video.id, video.name, video.height, video.width) == (5, "video_5", 10, 10)
    assert len(video.file_names) == 2 and not video.has_file_names
    assert file.categories == {4: "class 4"}


def test_results_of_several_videos_need_annotations(save):
    with pytest.raises(ValueError, match=r"results of 2 videos; .*--gt"):
        read_track_file(save([result([LEFT]), result([LEFT], video=2)]))
    with pytest.raises(ValueError, match="results of 0 videos"):
        read_track_file(save([]))
    with pytest.raises(ValueError, match="no mask tells the size"):
        read_track_file(save([result([None])]))


def test_names_come_from_the_folders_where_they_are_safe(save):
    gt = named(ground_truth([]), "train/JPEGImages/ab.1", "..")
    assert [v.name for v in read_track_file(save(gt)).videos] == ["ab.1", "video_1"]
    gt = named(ground_truth([]), "a/Clip", "b/clip")
    assert [v.name for v in read_track_file(save(gt)).videos] == ["video_2", "video_1"]
    (video,) = read_track_file(save(named(ground_truth([], 2), "a", "b")), choose=["a"]).videos
    assert video.id == 2 and video.frame_names() == ["00000", "00001"]
    video.file_names = ["a/x.jpg", "b/x.jpg"]
    assert video.frame_names() == ["00000", "00001"]
    video.file_names = ["a/x 1.jpg", "a/../y.jpg"]
    assert video.frame_names() == ["00000", "00001"]
    video.file_names = ["a\\img_5.jpg", "a\\img_10.jpg"]
    assert video.frame_names() == ["img_5", "img_10"]


def test_an_unknown_video_is_named_with_those_that_are_near(save):
    gt = save(named(ground_truth([]), "horse", "house"))
    with pytest.raises(ValueError, match="no video 'hors'.* horse, house"):
        read_track_file(gt, choose=["hors"])


def test_malformed_entries_are_reported_and_the_others_read(save):
    rows = [annotation([LEFT, LEFT], id=1), annotation([LEFT], id=2), "?", annotation([5], id=4)]
    file = read_track_file(save(ground_truth(rows)))
    assert [t.id for t in file.videos[1].tracks] == [2]
    assert len(file.faults) == 3 and "2 segmentations for a video of length 1" in file.faults[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gt: gt.pop("videos"), "neither results nor annotations"),
        (lambda gt: gt.update(annotations=3), "expected a list of annotations"),
        (lambda gt: gt.update(categories=None), "expected categories"),
        (lambda gt: gt["videos"][0].update(file_names=["a", "b"]), "as many file_names"),
        (lambda gt: gt["videos"][0].update(file_names=[1]), "as many file_names"),
        (lambda gt: gt["videos"][0].update(height=None), "needs height"),
        (lambda gt: gt["videos"][0].update(height=10**9), "no video is as large"),
        (lambda gt: gt["videos"][0].update(length=10**12), "no video is as large"),
    ],
)
def test_what_cannot_be_read_at_all(change, message, save):
    gt = ground_truth([])
    change(gt)
    with pytest.raises(ValueError, match=f"file.json: .*{message}"):
        read_track_file(save(gt))


def test_tracks_to_keep(save):
    rows = [result([LEFT], 0.2), result([LEFT], 0.9), result([LEFT], 0.9, category=2)]
    path, gt = save(rows), save(ground_truth([annotation([LEFT])]), "gt.json")
    file = read_track_file(path, gt)
    assert keep_tracks(file, 0.5, "cat") == 1
    assert [t.id for t in file.videos[1].tracks] == [2]
    file = read_track_file(path, gt)
    assert keep_tracks(file, 0.0, "2") == 0
    assert [t.id for t in file.videos[1].tracks] == [3]
    file = read_track_file(gt)
    assert keep_tracks(file, 0.5) == 0 and len(file.videos[1].tracks) == 1
    with pytest.raises(ValueError, match="no class 'cow'; the classes are cat, dog, owl"):
        keep_tracks(file, 0.5, "cow")


def test_results_adopt_the_id_of_the_truth_they_cover_best(save):
    truths = [annotation([LEFT] * 3, id=5), annotation([RIGHT] * 3, id=8)]
    gt = save(ground_truth(truths, length=3), "gt.json")
    # The second swaps objects after one frame of three; the fourth only repeats the third.
    found = [[None, None, LEFT], [RIGHT, LEFT, LEFT], [LEFT, RIGHT, RIGHT], [LEFT, None, None]]
    rows = [result(masks) for masks in found]
    (truth,) = read_track_file(gt, choose=["1"]).videos
    (video,) = read_track_file(save(rows), gt, ["1"]).videos
    adopt_ids(video, truth)
    assert [track.id for track in video.tracks] == [9, 5, 8, 10]
    truth.tracks = []
    adopt_ids(video, truth)
    assert [track.id for track in video.tracks] == [1, 2, 3, 4]


def test_to_instances(save):
    rows = [annotation([LEFT, None], id=4, category=3), annotation([None, RIGHT], id=6)]
    file = read_track_file(save(ground_truth(rows, length=2)))
    instances = to_instances(file.videos[1], file.categories)
    assert instances.track_ids.tolist() == [4, 6] and instances.pred_classes.tolist() == [2, 0]
    assert instances.scores.tolist() == [1.0, 1.0]
    assert instances.frame(0).pred_masks.sum() == 40
    assert len(to_instances(file.videos[0], file.categories)) == 0


def test_reading_needs_no_torch():
    code = "import sys, vis_d2.evaluation.exports; assert 'torch' not in sys.modules"
    code = "import sys; sys.argv[0] = 'vis-d2'; " + code
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
