import importlib.util
import json
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

import vis_d2
from vis_d2.data.datasets.toy import write_toy
from vis_d2.engine import build_checkpointer, prepare_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "quick" / "efficient_vis.yaml")
TINY = ["INPUT.MIN_SIZE_TEST", "64", "MODEL.EFFICIENT_VIS.NUM_STAGES", "1"]
TINY += ["MODEL.EFFICIENT_VIS.NUM_QUERIES", "2", "TEST.VIS.PREFETCH", "0"]


@pytest.fixture(scope="module")
def frame_rate():
    path = ROOT / "projects" / "EfficientVIS" / "frame_rate.py"
    spec = importlib.util.spec_from_file_location("efficient_vis_frame_rate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The first two toy videos of each split."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_toy(tmp_path / "toy", {"train": 2, "val": 2})


def test_videos_and_tracks_keep_every_nth_frame(frame_rate):
    masks = [{"size": [4, 4], "counts": [t, 16 - t]} for t in range(9)]
    seen_once = [None] * 9
    seen_once[1] = masks[1]
    content = {
        "categories": [{"id": 1, "name": "cat"}],
        "videos": [
            {"id": 1, "length": 9, "file_names": [f"a/{t}.jpg" for t in range(9)], "width": 4},
            {"id": 2, "length": 2, "file_names": ["b/0.jpg", "b/1.jpg"]},
        ],
        "annotations": [
            {"id": 1, "video_id": 1, "segmentations": masks, "areas": [*range(9)], "iscrowd": 0},
            {"id": 2, "video_id": 1, "segmentations": seen_once, "bboxes": [None] * 9},
            {"id": 3, "video_id": 2, "segmentations": [masks[3], None], "bboxes": None},
        ],
    }
    thin = frame_rate.thin_out(content, 4)
    assert thin["categories"] == content["categories"]
    assert thin["videos"] == [
        {"id": 1, "length": 3, "file_names": ["a/0.jpg", "a/4.jpg", "a/8.jpg"], "width": 4},
        {"id": 2, "length": 1, "file_names": ["b/0.jpg"]},
    ]
    # The second track shows in frame 1 only.
    assert [track["id"] for track in thin["annotations"]] == [1, 3]
    assert thin["annotations"][0]["segmentations"] == [masks[0], masks[4], masks[8]]
    assert thin["annotations"][0]["areas"] == [0, 4, 8]
    assert thin["annotations"][1] == {
        "id": 3,
        "video_id": 2,
        "segmentations": [masks[3]],
        "bboxes": None,
    }
    assert frame_rate.thin_out(content, 1) == content
    with pytest.raises(ValueError, match="no annotations"):
        frame_rate.thin_out({**content, "annotations": None}, 2)


def test_the_drop_and_the_mean_of_several_runs(frame_rate):
    def row(config, weights, full, thinned):
        return {
            "system": "Net",
            "config": config,
            "weights": weights,
            "full": {"AP": full},
            "thinned": {"AP": thinned},
        }

    rows = [row("a.yaml", "0", 40, 30), row("b.yaml", "x", 50, 51), row("a.yaml", "1", 42, 36)]
    assert frame_rate.table(rows, 4).splitlines()[2:] == [
        "| Net (a) | 0 | 40.0 | 30.0 | 10.0 |",
        "| Net (a) | 1 | 42.0 | 36.0 | 6.0 |",
        "| Net (a) | mean of 2 | 41.0 | 33.0 | 8.0 |",
        "| Net (b) | x | 50.0 | 51.0 | -1.0 |",
    ]


def test_a_system_is_evaluated_on_both(frame_rate, toy, tmp_path, capsys):
    cfg = get_cfg()
    vis_d2.add_vis_config(cfg)
    cfg.merge_from_file(CONFIG)
    cfg.merge_from_list(TINY)
    prepare_config(cfg)
    build_checkpointer(cfg, build_model(cfg), str(tmp_path)).save("weights")
    sets = set(DatasetCatalog.list())
    frame_rate.main(
        ["--every", "4", "--output", str(tmp_path / "out")]
        + ["--run", CONFIG, str(tmp_path / "weights.pth"), *TINY]
    )
    assert set(DatasetCatalog.list()) == sets
    (row,) = json.loads((tmp_path / "out" / "frame_rate.json").read_text())
    assert (row["system"], row["every"], row["dataset"]) == ("EfficientVIS", 4, "ytvis_toy_val")
    lengths = [v["length"] for v in json.loads((toy / "val.json").read_text())["videos"]]
    inference = tmp_path / "out" / "0_efficient_vis" / "inference"
    for name, every in (("ytvis_toy_val", 1), ("ytvis_toy_val_every_4", 4)):
        results = json.loads((inference / name / "results.json").read_text())
        found = {r["video_id"]: len(r["segmentations"]) for r in results}
        assert sorted(found.values()) == sorted(-(-length // every) for length in lengths)
    assert "| EfficientVIS (efficient_vis) |" in capsys.readouterr().out


def test_as_it_is_there_is_no_drop(frame_rate, toy, tmp_path, monkeypatch):
    def evaluate(cfg, dataset):
        videos = DatasetCatalog.get(dataset)
        return {"AP": float(sum(video["length"] for video in videos))}

    monkeypatch.setattr(frame_rate, "evaluate", evaluate)
    frame_rate.main(["--every", "1", "--output", str(tmp_path), "--run", CONFIG, "none.pth", *TINY])
    (row,) = json.loads((tmp_path / "frame_rate.json").read_text())
    assert row["full"] == row["thinned"] and row["full"]["AP"] >= 24
    with pytest.raises(SystemExit):
        frame_rate.main(["--every", "0", "--run", CONFIG, "none.pth"])
