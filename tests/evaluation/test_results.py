import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from small_files import LEFT, RIGHT, annotation, ground_truth, result

from vis_d2.evaluation import check_results, read_results, to_results, write_results, write_zip
from vis_d2.evaluation.results import read_json
from vis_d2.evaluation.video_coco_eval import VideoCOCOeval
from vis_d2.structures import VideoInstances

DATASET_IDS = {0: 1, 1: 2, 2: 3}


def instances(rows: list, classes: list) -> VideoInstances:
    n = len(rows)
    scores = torch.linspace(0.9, 0.5, n)
    ids = torch.arange(n)
    return VideoInstances((10, 10), 2, scores, torch.tensor(classes), ids, rows)


def test_results_have_the_ids_of_the_file_and_leave_out_what_is_never_seen() -> None:
    found = instances([[LEFT, None], [None, None], [RIGHT, LEFT]], [2, 0, 1])
    entries = to_results(7, found, DATASET_IDS)
    assert [entry["category_id"] for entry in entries] == [3, 2]
    assert [entry["video_id"] for entry in entries] == [7, 7]
    assert entries[0]["score"] == pytest.approx(0.9) and entries[1]["score"] == pytest.approx(0.5)
    assert entries[0]["segmentations"] == [LEFT, None]
    assert to_results(7, VideoInstances.empty((10, 10), 2), DATASET_IDS) == []


def test_a_class_that_the_data_set_lacks_is_an_error() -> None:
    with pytest.raises(ValueError, match="video 7: class 5 is none of the 3 classes"):
        to_results(7, instances([[LEFT, None]], [5]), DATASET_IDS)


def test_files_survive_the_round_trip(tmp_path: Path) -> None:
    entries = [result([LEFT, None], score=0.123456789), result([RIGHT, LEFT], video=2)]
    path, zip_path = tmp_path / "results.json", tmp_path / "anything.zip"
    write_results(entries, str(path))
    write_zip(str(path), str(zip_path))
    assert read_results(str(path)) == read_results(str(zip_path)) == entries
    assert zipfile.ZipFile(zip_path).namelist() == ["results.json"]
    first = zip_path.read_bytes()
    write_zip(str(path), str(zip_path))
    assert zip_path.read_bytes() == first
    assert {p.name for p in tmp_path.iterdir()} == {"results.json", "anything.zip"}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results([result([LEFT])], str(path))
    with pytest.raises(TypeError):
        write_results([result([LEFT]), object()], str(path))
    assert read_results(str(path)) == [result([LEFT])]


@pytest.mark.parametrize(
    "content, message",
    [("{", "not a JSON file"), ("[" * 100000, "not a JSON file"), ('{"a": 1}', "expected a list")],
)
def test_a_broken_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"broken.json.*{message}"):
        read_results(str(path))


def test_a_zip_without_results_at_its_root_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "sent.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/results.json", "[]")
    with pytest.raises(ValueError, match=r"sent.zip: no results.json.*found folder/results.json"):
        read_results(str(path))


def test_lists_of_runs_are_compressed_while_a_file_is_read(tmp_path: Path) -> None:
    runs = {"size": [10, 10], "counts": [0, 40, 60]}
    wrong = {"size": [10, 10], "counts": [0, 40]}
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(ground_truth([annotation([runs]), annotation([wrong], id=2)])))
    rows = read_json(str(path))["annotations"]
    assert rows[0]["segmentations"] == [LEFT]
    assert rows[1]["segmentations"] == [wrong]  # left for the check that can name it
    with pytest.raises(ValueError, match="video 1, annotation 2, frame 0: run lengths"):
        VideoCOCOeval(read_json(str(path)), [])


def test_a_sound_file_has_no_faults() -> None:
    gt = ground_truth([], length=2)
    entries = [result([LEFT, None]), result([RIGHT, LEFT], video=2, category=3)]
    assert check_results(entries, gt["videos"], [1, 2, 3]) == []
    assert check_results([], gt["videos"]) == []


def test_every_faulty_entry_is_listed_with_its_place() -> None:
    videos = ground_truth([], length=2)["videos"]
    small = {"size": [5, 5], "counts": "i0"}
    entries: Any = [
        result([LEFT, None]),
        result([LEFT]),
        result([None, small]),
        result([LEFT, None], video=9),
        result([LEFT, None], category=9),
        result([LEFT, None], score=float("inf")),
        "text",
        result([small, None], video=2),
    ]
    faults = check_results(entries, videos, [1, 2, 3])
    expected = [
        "video 1, result 1: 1 segmentations for a video of length 2",
        "video 9, result 3: no such video in the data set",
        "video 1, result 4: unknown category_id 9",
        "video 1, result 5: score must be finite, got inf",
        "result 6: expected an object, got 'text'",
        "video 1, result 2, frame 1: mask has size [5, 5], expected [10, 10]",
        "video 2, result 7, frame 0: mask has size [5, 5], expected [10, 10]",
    ]
    assert sorted(faults) == sorted(expected)
    assert len(check_results(entries, videos)) == 6  # without categories to compare with
