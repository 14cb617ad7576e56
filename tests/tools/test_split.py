import hashlib
import json
from pathlib import Path

import pytest
from fuzzing import write_sound_set

from vis_d2.data import load_ytvis_json
from vis_d2.tools import split

FILES = ["ids.txt", "ids.txt.sha256", "train.json", "val.json"]


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_sound_set(tmp_path / "set") / "train.json")


def _contents(folder: Path):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_ordinary_files_and_the_list(source, tmp_path, capsys):
    out = tmp_path / "a" / "b"
    assert split.main([source, "--val", "0.25", "--output", str(out)]) == 0
    assert sorted(_contents(out)) == FILES
    videos = {name: load_ytvis_json(str(out / f"{name}.json"), "") for name in ("train", "val")}
    assert {name: len(rows) for name, rows in videos.items()} == {"train": 3, "val": 1}
    listed = (out / "ids.txt").read_text().splitlines()
    assert listed == [f"{name} {v['video_id']}" for name in videos for v in videos[name]]
    digest = hashlib.sha256((out / "ids.txt").read_bytes()).hexdigest()
    assert (out / "ids.txt.sha256").read_text() == f"{digest}  ids.txt\n"
    text = capsys.readouterr().out
    assert digest in text and "3 videos, 2 of 2 categories with ground truth" in text


def test_the_same_bytes_again(source, tmp_path):
    for name in ("one", "two", "one"):
        split.main([source, "--val", "2", "--seed", "5", "--output", str(tmp_path / name)])
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")


def test_masks_are_written_as_they_were(source, tmp_path):
    split.main([source, "--val", "1", "--output", str(tmp_path / "out")])
    before = json.loads(Path(source).read_text())
    rows = []
    for name in ("train", "val"):
        rows += json.loads((tmp_path / "out" / f"{name}.json").read_text())["annotations"]
    assert sorted(rows, key=lambda row: row["id"]) == before["annotations"]


def test_the_list_rebuilds_the_split(source, tmp_path):
    split.main([source, "--val", "2", "--output", str(tmp_path / "one")])
    ids = str(tmp_path / "one" / "ids.txt")
    split.main([source, "--ids", ids, "--output", str(tmp_path / "two")])
    assert _contents(tmp_path / "one") == _contents(tmp_path / "two")


def test_a_list_that_does_not_fit_names_its_line(source, tmp_path):
    (tmp_path / "ids.txt").write_bytes(b"1\n\xff\n")
    with pytest.raises(ValueError, match="ids.txt: line 2 names no video of the file"):
        split.main([source, "--ids", str(tmp_path / "ids.txt"), "--output", str(tmp_path / "o")])


def test_a_recipe(source, tmp_path):
    assert split.main([source, "--recipe", "stmask", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "ids.txt").read_text() == "train 1\ntrain 2\ntrain 3\nval 4\n"
    with pytest.raises(ValueError, match="train.json: tfds splits the 2238"):
        split.main([source, "--recipe", "tfds", "--output", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_categories_of_one_side_are_named(source, tmp_path, capsys):
    content = json.loads(Path(source).read_text())
    content["categories"].append({"id": 9, "name": "rare"})
    content["annotations"][0]["category_id"] = 9
    Path(source).write_text(json.dumps(content))
    split.main([source, "--val", "1", "--output", str(tmp_path / "out")])
    assert "categories 9" in capsys.readouterr().out


def test_nothing_of_somebody_else_is_replaced(source, tmp_path):
    before = Path(source).read_bytes()
    for options in ([], ["--force"]):
        with pytest.raises(ValueError, match="the file to split"):
            split.main([source, "--val", "1", "--output", str(Path(source).parent), *options])
    assert Path(source).read_bytes() == before
    (tmp_path / "val.json").write_text("precious")
    with pytest.raises(FileExistsError, match="holds val.json"):
        split.main([source, "--val", "1", "--output", str(tmp_path)])
    assert (tmp_path / "val.json").read_text() == "precious"
    assert split.main([source, "--val", "1", "--output", str(tmp_path), "--force"]) == 0


@pytest.mark.parametrize("state", ["absent", "null", "empty"])
def test_a_file_without_annotations_says_so(source, tmp_path, state):
    content = json.loads(Path(source).read_text())
    content["annotations"] = None if state == "null" else []
    if state == "absent":
        del content["annotations"]
    Path(source).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"train.json: 'annotations' is {state}"):
        split.main([source, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_folder_has_a_default(source, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert split.main([str(source), "--val", "0.5", "--seed", "0", "--stratify", "category"]) == 0
    assert sorted(p.name for p in (tmp_path / "cwd" / "split").iterdir()) == [
        "ids.txt", "ids.txt.sha256", "train.json", "val.json",
    ]  # fmt: skip
