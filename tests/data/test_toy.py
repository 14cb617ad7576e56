import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, List

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vis_d2.data.datasets import toy
from vis_d2.data.datasets.toy import CATEGORIES, write_toy
from vis_d2.data.datasets.ytvis import load_ytvis_json
from vis_d2.evaluation import VideoCOCOeval

SMALL = {"train": 2, "val": 1}
SPLITS = ("train", "val")


@pytest.fixture(scope="session")
def toy_files(toy_root) -> Dict[str, dict]:
    return {split: json.loads((Path(toy_root) / f"{split}.json").read_text()) for split in SPLITS}


def contents(root: Path) -> Dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def boxes_of(files: Dict[str, dict]) -> List[list]:
    return [track["bboxes"] for file in files.values() for track in file["annotations"]]


def test_same_seed_same_bytes_and_a_smaller_set_is_the_beginning(tmp_path):
    one = contents(write_toy(tmp_path / "one", SMALL))
    assert contents(write_toy(tmp_path / "two", SMALL)) == one
    other = contents(write_toy(tmp_path / "other", SMALL, seed=1))
    assert (
        other["train/JPEGImages/train_000/00000.jpg"] != one["train/JPEGImages/train_000/00000.jpg"]
    )
    first = contents(write_toy(tmp_path / "first", {"train": 1}))
    for name, data in first.items():
        assert name == "train.json" or one[name] == data


def test_written_once_and_nothing_else_is_left(tmp_path):
    root = write_toy(tmp_path / "data" / "toy", SMALL)
    frame = root / "val/JPEGImages/val_000/00000.jpg"
    changed = frame.stat().st_mtime_ns
    assert write_toy(root, SMALL) == root
    assert frame.stat().st_mtime_ns == changed
    assert [p.name for p in root.parent.iterdir()] == ["toy"]


def test_two_writers_at_once_both_succeed(tmp_path, monkeypatch):
    both_are_writing = threading.Barrier(2, timeout=30)
    write_split = toy._write_split

    def wait_then_write(root, split, *args):
        if split == "train":
            both_are_writing.wait()
        write_split(root, split, *args)

    monkeypatch.setattr(toy, "_write_split", wait_then_write)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(write_toy, tmp_path / "toy", SMALL) for _ in range(2)]
        assert [future.result() for future in futures] == [tmp_path / "toy"] * 2
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def test_interrupted_writer_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(root, split, *args):
        (root / "half").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "_write_split", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_toy(tmp_path / "toy", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_folder_with_something_else_is_not_touched(tmp_path, caplog):
    (tmp_path / "toy").mkdir()
    with pytest.raises(FileExistsError, match="toy exists but has no version.txt"):
        write_toy(tmp_path / "toy", SMALL)
    (tmp_path / "toy" / "version.txt").write_text("0\n")
    with caplog.at_level(logging.WARNING):
        write_toy(tmp_path / "toy", SMALL)
    assert "is version 0 of the toy data set" in caplog.text


def test_size_of_the_set(toy_files):
    assert [len(toy_files[split]["videos"]) for split in SPLITS] == [120, 30]
    videos = [video for file in toy_files.values() for video in file["videos"]]
    assert {video["length"] for video in videos} == set(range(12, 21))
    assert len({(video["height"], video["width"]) for video in videos}) >= 2
    for file in toy_files.values():
        assert [c["name"] for c in file["categories"]] == list(CATEGORIES)
        assert {track["category_id"] for track in file["annotations"]} == {1, 2, 3, 4, 5}
        counts = np.bincount([track["video_id"] for track in file["annotations"]])[1:]
        assert counts.min() >= 1 and counts.max() == 4
        assert (counts >= 2).mean() > 0.9


def test_it_loads_and_every_frame_is_there(toy_root, toy_files):
    root = Path(toy_root)
    videos = load_ytvis_json(str(root / "val.json"), str(root / "val" / "JPEGImages"))
    assert [v["video_id"] for v in videos] == [v["id"] for v in toy_files["val"]["videos"]]
    for video in videos:
        for file in video["file_names"]:
            assert Image.open(file).size == (video["width"], video["height"])


def test_what_makes_it_hard_is_there(toy_files):
    boxes = boxes_of(toy_files)
    returns, fast, scaled, sizes = 0, 0, 0, []
    for track in boxes:
        present = np.flatnonzero([box is not None for box in track])
        returns += present[-1] - present[0] >= len(present)
        inner = [b for b in track if b and min(b[0], b[1]) > 0]
        sizes += [max(b[2:]) for b in inner]
        scaled += max(sizes[-len(inner) :]) > 1.2 * min(sizes[-len(inner) :]) if inner else 0
        steps = [(a, b) for a, b in zip(track, track[4:]) if a and b]
        fast += any(np.hypot(b[0] - a[0], b[1] - a[1]) > max(a[2:]) for a, b in steps)
    assert returns > 0.08 * len(boxes)  # leaves (or is hidden) and comes back
    assert 0.1 * len(boxes) < fast < 0.5 * len(boxes)  # its own size within four frames
    assert scaled > 0.4 * len(boxes)
    assert 28 <= np.percentile(sizes, 5) and np.percentile(sizes, 95) <= 80


def test_visible_masks_do_not_overlap_and_some_are_occluded(toy_files):
    touching = 0
    file = toy_files["val"]
    for video in file["videos"]:
        tracks = [t for t in file["annotations"] if t["video_id"] == video["id"]]
        for t in range(video["length"]):
            masks = [k["segmentations"][t] for k in tracks if k["segmentations"][t]]
            boxes = [k["bboxes"][t] for k in tracks if k["bboxes"][t]]
            if len(masks) < 2:
                continue
            covered = coco_mask.area(coco_mask.merge(masks))
            assert covered == sum(int(coco_mask.area(m)) for m in masks)
            ious = coco_mask.iou(np.array(boxes), np.array(boxes), [0] * len(boxes))
            touching += (ious > 0.05).sum() > len(boxes)
    assert touching > 0.2 * sum(video["length"] for video in file["videos"])


def test_picture_and_annotation_show_the_same_object(toy_root, toy_files):
    """Objects are saturated, backgrounds are dull: the masks must separate the two."""
    file = toy_files["val"]
    for video in file["videos"][:5]:
        path = Path(toy_root) / "val" / "JPEGImages" / video["file_names"][0]
        pixels = np.asarray(Image.open(path).convert("HSV")).astype(float)
        tracks = [t for t in file["annotations"] if t["video_id"] == video["id"]]
        masks = [t["segmentations"][0] for t in tracks if t["segmentations"][0]]
        inside = coco_mask.decode(coco_mask.merge(masks)).astype(bool)
        assert pixels[inside, 1].mean() > pixels[~inside, 1].mean() + 60


def shuffled(tracks: List[dict], rng: np.random.Generator) -> List[dict]:
    """Results of one video: true masks, identities of each frame at random, majority category."""
    length = tracks[0]["length"]
    masks = [[None] * length for _ in tracks]
    votes: List[List[int]] = [[] for _ in tracks]
    for t in range(length):
        present = [i for i, track in enumerate(tracks) if track["segmentations"][t]]
        for source, target in zip(present, rng.permutation(present)):
            masks[target][t] = tracks[source]["segmentations"][t]
            votes[target].append(tracks[source]["category_id"])
    return [
        {
            "video_id": tracks[0]["video_id"],
            "category_id": int(np.bincount(vote).argmax()),
            "score": float(rng.random()),
            "segmentations": rles,
        }
        for vote, rles in zip(votes, masks)
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_perfect_masks_without_identity_are_worth_little(toy_files, split):
    file = toy_files[split]
    rng = np.random.default_rng(0)
    truth = [{**track, "score": 1.0} for track in file["annotations"]]
    by_video = [
        [track for track in file["annotations"] if track["video_id"] == video["id"]]
        for video in file["videos"]
    ]
    without = [result for tracks in by_video for result in shuffled(tracks, rng)]
    assert 100 * VideoCOCOeval(file, truth).run()["AP"] == pytest.approx(100)
    assert 100 * VideoCOCOeval(file, without).run()["AP"] < 20
