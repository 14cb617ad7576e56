import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "projects" / "SG-Net" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("sg_net_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_boxes_are_spread_over_the_image(benchmark):
    boxes = benchmark.spread_boxes(10, (60, 90))
    assert boxes.shape == (10, 4) and len(boxes.unique(dim=0)) == 10
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 90.01 and boxes[:, 3].max() <= 60.01
    assert (boxes[:, 2] - boxes[:, 0] - 30).abs().max() < 1e-3
    assert benchmark.spread_boxes(1, (60, 90)).shape == (1, 4)


def test_detector_and_whole_model_are_compared(benchmark, tmp_path, capsys, monkeypatch):
    masks = {}
    original = benchmark.rle.encode
    monkeypatch.setattr(
        benchmark.rle, "encode", lambda m: masks.setdefault(len(m), []).append(1) or original(m)
    )
    benchmark.main(
        ["--config-file", str(ROOT / "configs" / "quick" / "sg_net.yaml"), "--device", "cpu"]
        + ["--size", "64x96", "--rounds", "2", "--objects", "2", "7"]
        + ["--json", str(tmp_path / "row.json")]
        # A data set whose classes are known without its files.
        + ["DATASETS.TRAIN", "('ytvis_2019_train',)", "INPUT.MIN_SIZE_TEST", "64"]
    )
    row = json.loads((tmp_path / "row.json").read_text())
    names = ["detector", "2 objects", "RLE of 2", "7 objects", "RLE of 7"]
    assert list(row["ms"]) == names
    assert all(0 <= row["ms"][name]["p50"] <= row["ms"][name]["p95"] for name in names)
    assert {n: len(calls) for n, calls in masks.items()} == {2: 3, 7: 3}  # one round of warm-up
    ratio = 100 * (row["ms"]["7 objects"]["p50"] / row["ms"]["detector"]["p50"] - 1)
    assert row["branches_over_detector_percent"] == pytest.approx(ratio, abs=0.5)
    assert "7 objects over 2" in capsys.readouterr().out
