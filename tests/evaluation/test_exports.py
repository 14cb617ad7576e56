"""Every format is read back by what reads it elsewhere, and compared with what was written."""

import contextlib
import csv
import io
import json
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_files import annotation, box, ground_truth, result

from vis_d2.evaluation import exports
from vis_d2.evaluation.video_tracks import read_track_file

BIG, OVER, APART = box(0, 0, 6, 6), box(4, 4, 8, 9), box(9, 0, 10, 3)


def pixels(rle):
    return coco_mask.decode(rle).astype(bool)


def entries():
    """Of video 1: the second overlaps the first; the third is unsure and covers much."""
    return [
        result([BIG, None, BIG], 0.5),
        result([OVER, OVER, None], 0.75, category=3),
        result([box(0, 0, 10, 10), None, APART], 0.25, category=2),
    ]


def content():
    gt = ground_truth(
        [
            annotation([BIG, None, BIG], id=11),
            annotation([OVER, OVER, None], id=12, category=3, iscrowd=1),
            annotation([None, None, APART], id=40, video=2, category=2),
        ],
        length=3,
    )
    for video in gt["videos"]:
        name = "ab"[video["id"] - 1]
        video["file_names"] = [f"{name}/{t}.jpg" for t in range(3)]
    return gt


@pytest.fixture
def gt_path(tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps(content()))
    return str(tmp_path / "gt.json")


@pytest.fixture
def results(tmp_path, gt_path):
    (tmp_path / "r.json").write_text(json.dumps(entries()))
    return read_track_file(str(tmp_path / "r.json"), gt_path)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_csv_read_back_gives_the_results(results, tmp_path):
    assert exports.write_csv(results, tmp_path / "out") == 6
    rows = rows_of(tmp_path / "out" / "tracks.csv")
    rebuilt = {}
    for row in rows:
        key = (int(row["track"]), int(row["category_id"]), float(row["score"]))
        mask = json.loads(row["rle"])
        rebuilt.setdefault(key, [None] * 3)[int(row["frame"])] = mask
        ys, xs = np.nonzero(pixels(mask))
        tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert [int(row[side]) for side in "xywh"] == tight
        assert int(row["area"]) == len(xs)
        assert row["video_id"] == "1" and row["file_name"] == f"a/{row['frame']}.jpg"
    wanted = enumerate(entries(), start=1)
    assert rebuilt == {(i, e["category_id"], e["score"]): e["segmentations"] for i, e in wanted}
    assert {row["category"] for row in rows} == {"cat", "dog", "owl"}
    assert [row["frame"] for row in rows] == sorted(row["frame"] for row in rows)


def test_csv_of_annotations_has_their_ids_and_no_score(gt_path, tmp_path):
    exports.write_csv(read_track_file(gt_path), tmp_path)
    rows = rows_of(tmp_path / "tracks.csv")
    assert [(r["video_id"], r["track"], r["score"]) for r in rows] == [
        ("2", "40", ""), ("1", "11", ""), ("1", "12", ""), ("1", "12", ""), ("1", "11", ""),
    ]  # fmt: skip


def read_mots(path):
    """Masks by frame and object, as the MOTS tools read them."""
    found = defaultdict(dict)
    for line in path.read_text().splitlines():
        frame, object_id, class_id, height, width, rle = line.split(" ")
        assert int(object_id) // 1000 == int(class_id)
        mask = pixels({"size": [int(height), int(width)], "counts": rle.encode()})
        found[int(frame)][int(object_id)] = mask
    return found


def test_mots_read_back_has_no_overlap_and_the_sure_ones_whole(results, tmp_path):
    exports.write_mots(results, tmp_path / "mots")
    assert (tmp_path / "mots" / "b.txt").read_text() == ""
    found = read_mots(tmp_path / "mots" / "a.txt")
    assert {t: sorted(objects) for t, objects in found.items()} == {
        0: [1001, 2003, 3002], 1: [3002], 2: [1001, 2003],
    }  # fmt: skip
    assert (sum(mask.astype(int) for mask in found[0].values()) == 1).all()
    assert (found[0][3002] == pixels(OVER)).all()
    assert (found[0][1001] == (pixels(BIG) & ~pixels(OVER))).all()
    assert (found[1][3002] == pixels(OVER)).all()
    legend = rows_of(tmp_path / "mots" / exports.LEGEND_NAME)
    assert [(r["video"], r["number"], r["category"], r["score"]) for r in legend] == [
        ("a", "1", "cat", "0.5"), ("a", "2", "owl", "0.75"), ("a", "3", "dog", "0.25"),
    ]  # fmt: skip


def test_mots_numbers_annotations_in_their_video(gt_path, tmp_path):
    exports.write_mots(read_track_file(gt_path), tmp_path)
    assert list(read_mots(tmp_path / "b.txt")[2]) == [2001]
    legend = rows_of(tmp_path / exports.LEGEND_NAME)
    assert [(r["number"], r["track"]) for r in legend] == [("1", "40"), ("1", "11"), ("2", "12")]


def test_png_read_back(results, tmp_path):
    palette = [(i, 0, 255 - i) for i in range(256)]
    assert exports.write_png(results, tmp_path, palette=palette) == 6
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["0.png", "1.png", "2.png"]
    with Image.open(tmp_path / "a" / "0.png") as image:
        assert image.mode == "P" and image.getpalette()[6:9] == [2, 0, 253]
        ids = np.asarray(image)
    wanted = np.full((10, 10), 3)
    wanted[pixels(BIG)] = 1
    wanted[pixels(OVER)] = 2
    assert (ids == wanted).all()
    with Image.open(tmp_path / "b" / "1.png") as image:
        assert not np.asarray(image).any()


def test_of_equal_scores_the_first_is_on_top(results):
    video = results.videos[1]
    for track in video.tracks:
        track.score = 0.5
    assert (exports.id_map(video, 0)[pixels(BIG)] == 1).all()


def test_many_tracks_need_16_bits(results, tmp_path):
    video = results.videos[1]
    video.tracks = video.tracks[2:] * 299 + video.tracks[:1]
    exports.write_png(results, tmp_path)
    with Image.open(tmp_path / "a" / "0.png") as image:
        assert image.mode.startswith("I") and np.asarray(image)[0, 0] == 300
    video.tracks = video.tracks * 4
    with pytest.raises(ValueError, match="video 1 has 1200 tracks, MOTS can number 999"):
        exports.write_mots(results, tmp_path / "mots")
    assert not (tmp_path / "mots").exists()


def evaluate(truth, found):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, found, "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def test_coco_is_what_pycocotools_reads(gt_path, results, tmp_path):
    assert exports.write_coco(read_track_file(gt_path), tmp_path) == 5
    exports.write_coco(results, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "instances.json"))
        found = truth.loadRes(str(tmp_path / "results.json"))
    assert [image["file_name"] for image in truth.loadImgs(range(1, 7))] == [
        f"{name}/{t}.jpg" for name in "ba" for t in range(3)
    ]
    (shown,) = truth.loadAnns(truth.getAnnIds(imgIds=[5]))
    assert (shown["track_id"], shown["iscrowd"], shown["bbox"]) == (12, 1, [4, 4, 4, 5])
    assert (truth.annToMask(shown) == pixels(OVER)).all()
    assert len(found.anns) == 6 and {a["track_id"] for a in found.anns.values()} == {1, 2, 3}
    about = json.loads((tmp_path / "images.json").read_text())
    assert about["images"] == truth.dataset["images"]
    assert 0 < evaluate(truth, found) < 1


def test_coco_annotations_against_themselves(gt_path, tmp_path):
    exports.write_coco(read_track_file(gt_path), tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "instances.json"))
        copies = [{**a, "score": 0.9} for a in truth.dataset["annotations"] if not a["iscrowd"]]
        found = truth.loadRes(copies)
    assert evaluate(truth, found) == pytest.approx(1.0)


def test_images_keep_their_numbers_when_videos_are_left_out(gt_path, tmp_path):
    exports.write_coco(read_track_file(gt_path, choose=["a"]), tmp_path)
    written = json.loads((tmp_path / "instances.json").read_text())
    assert [image["id"] for image in written["images"]] == [4, 5, 6]
    assert {item["image_id"] for item in written["annotations"]} == {4, 5, 6}


@pytest.mark.parametrize("name", ["csv", "mots", "png", "coco"])
def test_no_result_at_all(name, gt_path, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    file = read_track_file(str(tmp_path / "none.json"), gt_path)
    seen = []
    write = getattr(exports, f"write_{name}")
    assert write(file, tmp_path / "out", lambda videos: seen.append(videos) or videos) == 0
    assert seen == [file.videos]
    if name == "coco":
        assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
