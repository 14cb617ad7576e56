import json
import resource
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


def test_a_zip_that_unpacks_to_far_more_than_results_do_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("results.json", "w", force_zip64=True) as target:
            for _ in range(257):
                target.write(b" " * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = r"bomb.zip: results.json would unpack from 1\.\d MB to 257.0 MB, as no results do"
    with pytest.raises(ValueError, match=message):
        read_results(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10  # kB
    assert path.stat().st_size < 2**21


def test_a_zip_that_lies_about_its_size_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "r.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", "[" + " " * 10**6 + "]")
    said, less = ((10**6 + 2).to_bytes(4, "little"), (3).to_bytes(4, "little"))
    path.write_bytes(path.read_bytes().replace(said, less))
    with pytest.raises(ValueError, match="r.zip: the zip cannot be read: Bad CRC-32"):
        read_results(str(path))


def test_zips_that_cannot_be_unpacked_are_clean_errors(tmp_path: Path) -> None:
    path = tmp_path / "r.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", "[]" + " " * 100)
    sound = path.read_bytes()
    assert read_results(str(path)) == []
    encrypted = sound.replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01")
    encrypted = encrypted.replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    )
    cases = {
        "encrypted": encrypted,
        "compression": sound.replace(b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x00\x00\x63\x00"),
        "cannot be read": sound[:45] + b"\xff" * 4 + sound[49:],
        "not a JSON file": sound[: len(sound) // 2],
    }
    for message, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"r.zip: .*{message}"):
            read_results(str(path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_results_must_be_at_the_root_of_a_zip_once(tmp_path: Path) -> None:
    path = str(tmp_path / "r.zip")
    for names, message in (
        ((), "no results.json at the root of the zip, found nothing"),
        (("a/results.json", "\x1b[2J.json"), r"found a/results.json, \\x1b\[2J.json"),
        (("results.json", "results.json"), "2 results.json at the root"),
        (("../results.json",), r"no results.json at the root of the zip, found ../results.json"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, "[]")
        with pytest.raises(ValueError, match=message):
            read_results(path)
    with zipfile.ZipFile(path, "w") as archive:  # what else is in it does not matter
        archive.writestr("results.json", "[]")
        archive.writestr("readme.txt", "hello")
    assert read_results(path) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.zip"]


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
