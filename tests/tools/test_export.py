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


def annotated(files):
    """Annotations whose frames have the numbers 5 and 10."""
    gt = json.loads((files / "gt.json").read_text())
    del gt["videos"][1]
    gt["videos"][0]["file_names"] = ["a/00005.jpg", "a/00010.jpg"]
    gt["annotations"] = [
        {"id": i, "video_id": 10, "category_id": c, "iscrowd": 0, "segmentations": masks}
        for i, c, masks in ((7, 2, [mask(0), mask(1)]), (9, 5, [None, mask(6)]))
    ]
    path = files / "annotated.json"
    path.write_text(json.dumps(gt))
    return str(path)


def test_export_and_convert_agree(files):
    """Two commands write MOTS, pictures and COCO: the same frames, pixels and identities."""
    path, out = annotated(files), files / "both"
    for kind in ("mots", "png", "coco"):
        assert cli.main(["export", path, "--format", kind, "--output", f"{out}/ours/{kind}"]) == 0
    for kind, target in (("mots", "mots"), ("davis", "davis"), ("coco", "coco.json")):
        assert (
            cli.main(["convert", "ytvis", path, "--to", kind, "--output", f"{out}/{target}"]) == 0
        )
    lines = (out / "ours" / "mots" / "a.txt").read_text()
    assert lines == (out / "mots" / "a.txt").read_text()
    assert [line.split()[:3] for line in lines.splitlines()] == [
        ["5", "2001", "2"], ["10", "2001", "2"], ["10", "5002", "5"],
    ]  # fmt: skip
    for name in ("00005.png", "00010.png"):
        with Image.open(out / "ours" / "png" / "a" / name) as ours:
            with Image.open(out / "davis" / "Annotations" / "a" / name) as theirs:
                assert (np.asarray(ours) == np.asarray(theirs)).all()
    ours, theirs = (
        json.loads((out / name).read_text()) for name in ("ours/coco/instances.json", "coco.json")
    )
    assert ours["images"] == theirs["images"] and ours["categories"] == theirs["categories"]
    shared = [{key: row[key] for key in ours["annotations"][0]} for row in theirs["annotations"]]
    assert ours["annotations"] == shared


def test_mots_of_results_is_read_back_with_its_images(files):
    """Frames are numbered as their images are, so a converter finds them again."""
    path = annotated(files)
    for t in (5, 10):
        (files / "images" / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8)).save(files / "images" / "a" / f"{t:05d}.jpg")
    argv = [str(files / "results.json"), "--gt", path, "--format", "mots", "--only-class", "cat"]
    assert cli.main(["export", *argv, "--threshold", "0.5", "--output", str(files / "mots")]) == 0
    (files / "mots" / "legend.csv").unlink()
    read = ["mots", str(files / "mots"), "--images", str(files / "images"), "--categories", "x,cat"]
    assert cli.main(["convert", *read, "--output", str(files / "back.json")]) == 0
    back = json.loads((files / "back.json").read_text())
    assert back["videos"][0]["file_names"] == ["a/00005.jpg", "a/00010.jpg"]
    assert [row["segmentations"] for row in back["annotations"]] == [[mask(0), None]]


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
