import copy
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fuzzing
import pytest
from fuzzing import write_sound_set

from vis_d2 import cli
from vis_d2.data import converters, load_ytvis_json
from vis_d2.tools import convert

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_sound_set(tmp_path / "set") / "train.json"


def run(*argv) -> int:
    return convert.main(list(map(str, argv)))


@pytest.mark.parametrize("target", ["coco", "davis", "mots", "mots-png"])
def test_every_target_comes_back_as_a_data_set(source, tmp_path, target, capsys):
    there, back, again = tmp_path / "there", tmp_path / "back.json", tmp_path / "again"
    assert run("ytvis", source, "--to", target, "--output", there) == 0
    kind = target.partition("-")[0]
    assert run(kind, there, "--output", back, "--categories", source) == 0
    old, new = (json.loads(path.read_text()) for path in (source, back))
    assert new["categories"] == old["categories"]
    crowds = target == "coco"  # pictures of numbers have no place for them
    kept = [row for row in old["annotations"] if crowds or not row["iscrowd"]]
    counts = [Counter(row["category_id"] for row in rows) for rows in (kept, new["annotations"])]
    assert counts[0] == counts[1]
    summary = capsys.readouterr().out.splitlines()[-1]
    assert "videos" in summary and str(back) in summary
    assert load_ytvis_json(str(back), "")
    assert run("ytvis", back, "--to", target, "--output", again) == 0
    files = [path.relative_to(there) for path in there.rglob("*.*")] if there.is_dir() else ["."]
    masks = [path for path in files if Path(path).suffix in (".txt", ".png")]
    assert masks or target == "coco"
    for path in masks:
        assert (there / path).read_bytes() == (again / path).read_bytes()


COCO = {
    "images": [
        {"id": n, "file_name": f"{n}.jpg", "height": 20, "width": 30} for n in (1, 2)
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"id": 2, "image_id": 1, "category_id": 44, "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"id": 3, "image_id": 2, "category_id": 44, "segmentation": [[1, 1, 9, 1, 9, 9]]},
    ],
    "categories": [{"id": 3, "name": "car"}, {"id": 44, "name": "bottle"}],
}  # fmt: skip


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    return tmp_path / "coco.json"


@pytest.mark.parametrize(
    "name, expected, classes",
    [("ytvis2019", 6, 40), ("ytvis2021", 5, 40), ("ovis", 25, 25)],
)
def test_coco_with_the_classes_of_another_set(coco, tmp_path, name, expected, classes, capsys):
    out = tmp_path / "out.json"
    assert run("coco", coco, "--map", f"coco-to-{name}", "--frames", "2", "--output", out) == 0
    content = json.loads(out.read_text())
    assert [row["category_id"] for row in content["annotations"]] == [expected]
    assert len(content["categories"]) == classes and len(content["videos"]) == 1
    assert content["videos"][0]["file_names"] == ["1.jpg", "1.jpg"]
    text = capsys.readouterr().out
    assert "2 tracks of class 'bottle' left out" in text and "1 videos without an object" in text
    assert "1 videos, 2 frames, 1 tracks, 2 masks" in text


def test_classes_can_be_chosen_and_videos_kept(coco, tmp_path):
    out = tmp_path / "out.json"
    assert run("coco", coco, "--categories", "Bottle,car", "--output", out) == 0
    content = json.loads(out.read_text())
    assert content["categories"] == [{"id": 1, "name": "Bottle"}, {"id": 2, "name": "car"}]
    assert [row["category_id"] for row in content["annotations"]] == [2, 1, 1]
    assert run("coco", coco, "--categories", "car", "--empty", "keep", "--output", out) == 0
    assert len(json.loads(out.read_text())["videos"]) == 2


def test_bad_input_is_one_line_and_leaves_nothing(coco, tmp_path, capsys):
    out = tmp_path / "out.json"
    commands = [
        ["coco", tmp_path / "no.json"],
        ["ytvis", coco],
        ["coco", coco, "--images", tmp_path / "none"],
        ["coco", coco, "--map", "ovis-to-ytvis2019"],
        ["davis", tmp_path],
        ["cvat", coco],
        ["mots", coco],
    ]
    for command in commands:
        assert cli.main(["convert", *map(str, command), "--output", str(out)]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[0].startswith("vis-d2 convert: error: ") and len(lines) == 2
        assert not out.exists()
    assert cli.main(["convert", "coco", str(coco), "--output", str(coco)]) == 1
    assert json.loads(coco.read_text()) == COCO


@pytest.mark.parametrize("target", sorted(converters.WRITERS))
def test_broken_files_are_clean_errors(tmp_path, target):
    videos = copy.deepcopy(COCO)
    for number, image in enumerate(videos["images"]):
        image.update(video_id=1, frame_id=number)
    for row in videos["annotations"]:
        row["track_id"] = row["id"]
    results = Counter()
    for seed in range(25):
        generator = random.Random(f"{target} {seed}")
        for kind, content in (
            ("coco", copy.deepcopy(videos)), ("ytvis", fuzzing.sound_files()[0])
        ):  # fmt: skip
            fuzzing.mutate(content, generator)
            folder = tmp_path / f"{kind}{seed}"
            folder.mkdir()
            (folder / "in.json").write_text(json.dumps(content))
            argv = [kind, folder / "in.json", "--to", target, "--output", folder / "out"]
            try:
                results[run(*argv)] += 1
            except fuzzing.CLEAN as error:
                assert str(folder) in str(error) and "\n" not in str(error)
                results["error"] += 1
            assert {path.name for path in folder.iterdir()} <= {"in.json", "out"}
    assert results[0] and results["error"]


def test_every_reader_and_writer_is_there():
    import importlib

    for entry in converters.READERS.values():
        module = importlib.import_module(entry.module, converters.__name__)
        assert callable(getattr(module, entry.function))
    for entry in converters.WRITERS.values():
        assert hasattr(importlib.import_module(entry.module, converters.__name__), entry.name)


def test_nothing_of_torch_is_imported(coco, tmp_path):
    """In a process of its own, started as the console script is."""
    code = (
        "import sys; sys.argv[0] = 'vis-d2'; from vis_d2 import cli; code = cli.main(sys.argv[1:]);"
        "print('torch' in sys.modules or 'detectron2' in sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "convert", "coco", str(coco), "--output", "o.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
