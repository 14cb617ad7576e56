import argparse
import json
from pathlib import Path

import pytest
import torch

from vis_d2.tools import benchmark
from vis_d2.tools._timing import STAGES

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "quick"
CONFIG = str(min(CONFIGS.glob("*.yaml")))  # whichever system there is
# A data set whose classes are known without its files; a small network input.
OPTS = ["DATASETS.TRAIN", "('ytvis_2019_train',)", "INPUT.MIN_SIZE_TEST", "64"]


def run(tmp_path, *options):
    argv = ["--config-file", CONFIG, "--device", "cpu", "--size", "32x48", "--json"]
    argv += [str(tmp_path / "rows.json"), *options, *OPTS]
    assert benchmark.main(argv) == 0
    return [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]


def test_the_row_says_how_fast_how_big_and_on_what(tmp_path, capsys):
    (row,) = run(tmp_path, "--frames", "4", "--warmup", "1")
    text = capsys.readouterr().out
    for name in STAGES:
        assert 0 <= row[f"{name}_p50_ms"] <= row[f"{name}_p95_ms"]
        assert f"{row[f'{name}_p50_ms']:.2f}" in text
    parts = sum(row[f"{name}_p50_ms"] for name in STAGES if name != "total")
    assert 0.5 * row["total_p50_ms"] < parts < 1.5 * row["total_p50_ms"]
    assert row["fps"] == pytest.approx(1e3 / row["total_p50_ms"], rel=0.02)
    assert row["frame_size"] == "32x48" and row["input_size"] == "64x96"
    assert (row["warmup_frames"], row["timed_frames"], row["batch"]) == (1, 4, 1)
    assert (row["device"], row["dtype"], row["weights"]) == ("cpu", "float32", "random")
    assert row["torch"] == torch.__version__ and row["device_name"]
    assert row["parameters"] > 1e6 and row["peak_resident_mb"] > 100
    assert row["peak_cuda_mb"] is None
    assert f"{row['gflops_per_frame']} G" in text


def test_flops_are_multiply_adds(monkeypatch):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)

        def forward(self, inputs):
            return self.conv(inputs[0]["image"].float()[None])

    image = torch.zeros(3, 10, 20, dtype=torch.uint8)
    assert benchmark.count_flops(Net(), image) == 8 * 3 * 9 * 10 * 20


@pytest.mark.parametrize(
    ("window", "stride", "counts"),
    [
        (1, 1, (3, 20)),
        (4, 4, (4, 20)),
        (9, 9, (9, 27)),  # 20 frames would end with a window of two
        (36, 36, (36, 108)),
        (5, 2, (5, 21)),  # a window of 5, and 8 times 2 frames more
        (0, 1, (3, 20)),  # the whole video: nothing to round to
    ],
)
def test_windows_are_timed_whole(window, stride, counts):
    model = argparse.Namespace(window=window, stride=stride)
    assert benchmark.frame_counts(model, None, None) == counts
    assert benchmark.frame_counts(model, 0, 7) == (0, 7)  # what is asked for


def test_a_model_of_clips(tmp_path, capsys):
    options = ["TEST.VIS.WINDOW", "3", "TEST.VIS.STRIDE", "3"]
    argv = ["--config-file", str(CONFIGS / "efficient_vis.yaml"), "--size", "32x48"]
    argv += ["--json", str(tmp_path / "rows.json"), "--frames", "6", "--device", "cpu"]
    assert benchmark.main([*argv, *OPTS, *options]) == 0
    row = json.loads((tmp_path / "rows.json").read_text())
    assert (row["window"], row["warmup_frames"], row["timed_frames"]) == (3, 3, 6)
    # Stages of a step, of a frame and of the run lengths, all divided by the same three frames.
    parts = sum(row[f"{name}_p50_ms"] for name in STAGES if name != "total")
    assert 0.5 * row["total_p50_ms"] < parts < 1.5 * row["total_p50_ms"]
    assert row["gflops_per_frame"] > 0
    assert "in a clip of one frame" in capsys.readouterr().out


def test_a_model_that_cannot_be_traced_is_still_timed(tmp_path, capsys, monkeypatch):
    import detectron2.utils.analysis as analysis

    def fail(*_):
        raise RuntimeError("cannot be traced")

    monkeypatch.setattr(analysis, "FlopCountAnalysis", fail)
    (row,) = run(tmp_path, "--frames", "1", "--warmup", "0")
    assert row["gflops_per_frame"] is None
    assert "could not be counted" in capsys.readouterr().out


def test_a_video_that_is_shorter_than_the_warmup(tmp_path):
    from vis_d2.tools._synthetic import write_frames

    (tmp_path / "frames").mkdir()
    write_frames(tmp_path / "frames", (32, 48), 2, 1)
    with pytest.raises(ValueError, match="no frame is left after 2 frames"):
        run(tmp_path, "--input", str(tmp_path / "frames"), "--warmup", "2")


@pytest.mark.parametrize("text", ["360", "360x", "0x640", "axb"])
def test_sizes_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="360x640"):
        benchmark.frame_size(text)


def test_a_size_is_height_by_width():
    assert benchmark.frame_size("360x640") == (360, 640)
