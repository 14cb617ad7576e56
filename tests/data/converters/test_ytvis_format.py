import json

import pytest
from small_set import same_tracks

from vis_d2.data.converters.clips import Notes
from vis_d2.data.converters.ytvis_format import YTVISWriter, read_ytvis
from vis_d2.data.datasets.ytvis import load_ytvis_json


def copy_of(path, target, notes=None, **options):
    source = read_ytvis(path, notes or Notes(), **options)
    with YTVISWriter(target, source.categories) as writer:
        for clip in source.clips:
            writer.add(clip)
    return json.loads(target.read_text())


def test_a_copy_says_the_same(content, save, tmp_path):
    assert copy_of(save(content), tmp_path / "copy.json") == content


def test_what_is_missing_is_computed_and_what_is_wrong_is_repaired(content, save, tmp_path):
    broken = json.loads(json.dumps(content))
    for track in broken["annotations"]:
        track["bboxes"], track["id"] = [[0, 0, 1, 1]] * len(track["segmentations"]), 0
        del track["areas"], track["iscrowd"]
    broken["videos"].append({**broken["videos"][0], "id": 9, "length": 0, "file_names": []})
    notes = Notes()
    found = copy_of(save(broken), tmp_path / "copy.json", notes)
    same_tracks(found, content)
    assert [track["id"] for track in found["annotations"]] == [1, 2, 3, 4]
    assert any("4 tracks numbered anew" in line for line in notes.lines())
    assert any("1 videos without frames" in line for line in notes.lines())
    assert load_ytvis_json(str(tmp_path / "copy.json"), "")


@pytest.mark.parametrize("annotations", [None, [], "absent"])
def test_files_without_annotations(content, save, tmp_path, annotations):
    content["annotations"] = annotations
    if annotations == "absent":
        del content["annotations"]
    assert copy_of(save(content), tmp_path / "copy.json")["annotations"] == []


def test_errors_name_video_track_and_frame(content, save, tmp_path):
    content["annotations"][1]["segmentations"][2]["counts"] = "x1"
    with pytest.raises(ValueError, match=r"set.json: mask: video 3, track 12, frame 2: .*fill"):
        copy_of(save(content), tmp_path / "copy.json")
    with pytest.raises(ValueError, match="that is COCO"):
        read_ytvis(save({"images": []}), Notes())
    assert not (tmp_path / "copy.json").exists()


def test_absolute_names_become_relative(content, save, tmp_path):
    for video in content["videos"]:
        video["file_names"] = [f"{tmp_path}/frames/{name}" for name in video["file_names"]]
    path = save(content)
    with pytest.raises(ValueError, match="--images"):
        copy_of(path, tmp_path / "copy.json")
    found = copy_of(path, tmp_path / "copy.json", images=tmp_path / "frames")
    assert found["videos"][0]["file_names"][1] == "first/00005.jpg"
