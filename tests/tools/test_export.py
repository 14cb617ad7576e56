import csv
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vis_d2 import cli
from vis_d2.utils.colors import identity_color


def mask(x):
    pixels = np.zeros((8, 12), np.uint8, order="F")
    pixels[2:6, x : x + 3] = 1
    found = coco_mask.encode(pixels)
    return {"size": found["size"], "counts": found["counts"].decode()}


@pytest.fixture
def files(tmp_path):
    """Annotations without objects of two videos, results of the first."""
    size = {"height": 8, "width": 12, "length": 2}
    names = {10: ["a/0.jpg", "a/1.jpg"], 11: ["../../b/0.jpg", "../../b/1.jpg"]}
    videos = [{"id": i, "file_names": n, **size} for i, n in names.items()]
    gt = {"videos": videos, "categories": [{"id": 2, "name": "cat"}, {"id": 5, "name": "dog"}]}
    entries = [
        {"video_id": 10, "score": s, "category_id": c, "segmentations": [mask(x), None]}
        for x, (s, c) in enumerate([(0.9, 2), (0.2, 2), (0.8, 5)])
    ]
    (tmp_path / "gt.json").write_text(json.dumps(gt))
    (tmp_path / "results.json").write_text(json.dumps(entries))
    return tmp_path


def export(files, name, *options):
    gt, output = str(files / "gt.json"), str(files / "out" / name)
    argv = ["--gt", gt, "--format", name, "--output", output, *options]
    return cli.main(["export", str(files / "results.json"), *argv])


def test_threshold_and_class_leave_tracks_out(files, capsys):
    assert export(files, "csv", "--threshold", "0.5", "--only-class", "cat") == 0
    with open(files / "out" / "csv" / "tracks.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["track"], row["category"], row["score"]) == ("1", "cat", "0.9")
    assert capsys.readouterr().out.startswith("1 masks of 1 tracks in 2 videos")


def test_pictures_have_the_colours_of_draw(files):
    assert export(files, "png", "--video", "a") == 0
    with Image.open(files / "out" / "png" / "a" / "0.png") as image:
        assert image.getpixel((0, 3)) == 1
        assert image.convert("RGB").getpixel((0, 3)) == identity_color(1)[::-1]


@pytest.mark.parametrize("name", ["csv", "mots", "png", "coco"])
def test_nothing_is_written_outside_the_folder(name, files):
    before = {path for path in files.rglob("*") if path.is_file()}
    assert export(files, name) == 0
    new = {path for path in files.rglob("*") if path.is_file()} - before
    assert new and all((files / "out" / name) in path.parents for path in new)
    assert not list(files.parent.glob("b"))


def test_a_malformed_result_is_one_line_and_no_file(files, capsys):
    entries = json.loads((files / "results.json").read_text())
    entries[1]["segmentations"].append(None)
    (files / "results.json").write_text(json.dumps(entries))
    assert export(files, "csv") == 1
    error = capsys.readouterr().err
    assert "result 1: 3 segmentations for a video of length 2" in error
    assert not (files / "out").exists()


def test_help_is_quick_and_has_an_example(capsys):
    with pytest.raises(SystemExit):
        cli.main(["export", "--help"])
    assert "vis-d2 export results.json --gt" in capsys.readouterr().out
