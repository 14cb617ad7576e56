import json
import subprocess
from pathlib import Path

import pytest

from vis_d2.data import layouts
from vis_d2.data.datasets.categories import OVIS, YTVIS_2019, YTVIS_2021
from vis_d2.data.layouts import FOLDERS, find_frames, identify, link_commands, locate, survey

NAMES = ["video/00000.jpg", "video/00005.jpg"]


def _lay_out(folder: Path, json_file: str, frames: str, names=NAMES) -> None:
    """One split of a data set in some layout."""
    (folder / json_file).parent.mkdir(parents=True, exist_ok=True)
    content = {"videos": [{"id": 1, "file_names": names}], "categories": []}
    (folder / json_file).write_text(json.dumps(content))
    for name in names:
        (folder / frames / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / frames / name).write_text("")


def test_documented_layout_needs_nothing(tmp_path):
    for word in ("train", "valid", "test"):
        _lay_out(tmp_path, f"{word}.json", f"{word}/JPEGImages")
    for part, word in zip(survey(str(tmp_path)), ("train", "valid", "test")):
        assert part.json_file == str(tmp_path / f"{word}.json")
        assert part.frames == str(tmp_path / word / "JPEGImages")
        assert part.commands == []


@pytest.mark.parametrize(
    ("json_file", "frames"),
    [
        ("annotations/instances_train_sub.json", "train_all_frames/JPEGImages"),
        ("train/instances.json", "train/JPEGImages"),
    ],
)
def test_accepted_layouts_need_nothing(tmp_path, json_file, frames):
    _lay_out(tmp_path, json_file, frames)
    train = survey(str(tmp_path))[0]
    assert train.commands == [] and train.frames == str(tmp_path / frames)


@pytest.mark.parametrize(
    ("json_file", "frames"),
    [
        ("train/train/instances.json", "train/train/JPEGImages"),  # unzipped into a folder
        ("ytvis-train-v2.json", "Frames of train"),
        ("train.json", "train/Images"),  # "train" exists, but the frames are one level below
        ("annotations/train.json", "all/JPEGImages"),
    ],
)
def test_the_commands_put_it_right(tmp_path, monkeypatch, json_file, frames):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    folder = tmp_path / "ytvis_2019"
    _lay_out(folder, json_file, frames)
    part = survey(str(folder))[0]
    assert part.commands
    subprocess.run(["sh", "-ec", "\n".join(part.commands)], check=True)
    found_json, found_frames = locate("ytvis_2019", "train")
    assert Path(found_json).samefile(folder / json_file)
    assert Path(found_frames).samefile(folder / frames)
    assert survey(str(folder))[0].commands == []


def test_what_is_in_the_way_is_moved_aside(tmp_path):
    _lay_out(tmp_path, "train.json", "elsewhere")
    (tmp_path / "train/JPEGImages").mkdir(parents=True)
    part = survey(str(tmp_path))[0]
    assert part.commands[0].startswith("mv ")
    subprocess.run(["sh", "-ec", "\n".join(part.commands)], check=True)
    assert (tmp_path / "train/JPEGImages" / NAMES[0]).is_file()


def test_nothing_there(tmp_path):
    assert all(part[1:] == (None, None, []) for part in survey(str(tmp_path)))
    (tmp_path / "train.json").write_text("no JSON")
    assert survey(str(tmp_path))[0].frames is None


def test_links_are_quoted(tmp_path):
    _lay_out(tmp_path / "a b; c", "x.json", "frames")
    commands = link_commands(
        str(tmp_path / "new"),
        "val",
        str(tmp_path / "a b; c/x.json"),
        str(tmp_path / "a b; c/frames"),
    )
    subprocess.run(["sh", "-ec", "\n".join(commands)], check=True)
    assert (tmp_path / "new/valid/JPEGImages" / NAMES[1]).is_file()


def test_frames_are_found_near_by(tmp_path):
    _lay_out(tmp_path, "train.json", "train/JPEGImages")
    for start in ("train", ".", "train/JPEGImages"):
        assert Path(find_frames([str(tmp_path / start)], NAMES)).name == "JPEGImages"
    assert find_frames([str(tmp_path)], ["video/1.png"]) is None
    assert find_frames([str(tmp_path)], []) is None


@pytest.mark.parametrize(
    ("path", "names", "expected"),
    [
        ("a/train.json", YTVIS_2019, ("ytvis_2019", "train")),
        ("annotations/instances_valid.json", YTVIS_2021, ("ytvis_2021", "val")),
        ("ovis/annotations_validation.json", OVIS, ("ovis", "val")),
        ("train/val/instances.json", OVIS, ("ovis", "val")),
        ("instances.json", OVIS, None),
        ("train.json", ["person"], None),
    ],
)
def test_known_sets_are_recognised(path, names, expected):
    assert identify(path, list(names)) == expected


def test_every_known_set_has_a_class_of_its_own():
    tables = {"ytvis_2019": YTVIS_2019, "ytvis_2021": YTVIS_2021, "ovis": OVIS}
    for name, telltale in layouts._TELLTALES.items():
        assert [other for other, table in tables.items() if telltale in table] == [name]
    assert set(tables) == set(FOLDERS)
