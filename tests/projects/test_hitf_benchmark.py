import importlib.util
import json
from pathlib import Path

import pytest
import torch
from hitf_parts import build

from systems import moving_squares
from vis_d2.meta_arch.hitf.fusion import Memory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "projects" / "HITF" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("hitf_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def video():
    return moving_squares(4, size=(40, 56))["image"]


@pytest.fixture
def model(benchmark, video):
    model = build().eval()
    benchmark.settle(model, video)
    return model


def test_settled_weights_listen_to_references_and_stay_as_they_are(benchmark, video):
    model = build().eval()
    images = model.preprocess(video)

    def spread():
        with torch.no_grad():
            features = model.encode(images.tensor, images.image_sizes)
            memory = model.remember(features)
            last, refs = features.select(torch.tensor([3])), ([[2, 1]], [[0, 1]])
            a, b = (model.predict(last, memory.select(torch.tensor(r))) for r in refs)
        return float((a["pred_masks"] - b["pred_masks"]).abs().max())

    assert spread() == 0  # fresh branches are silent: any references would do
    benchmark.settle(model, video)
    settled = {key: value.clone() for key, value in model.state_dict().items()}
    assert spread() > 1e-2 and not any(part.training for part in model.modules())
    assert all(torch.equal(value, settled[key]) for key, value in model.state_dict().items())
    assert model.intra.layers[0].code_in.norm.momentum == 0.01


def test_both_ways_agree(benchmark, model, video):
    assert benchmark.check_equal(model, video, (40, 56)) < 1e-9


def test_references_that_went_stale_are_an_error(benchmark, model, video, monkeypatch):
    step = type(model).step

    def forgetful(self, images, state):
        tracks, new = step(self, images, state)
        new.references = state.references[:1] or new.references  # the first frame for ever
        return tracks, new

    monkeypatch.setattr(type(model), "step", forgetful)
    with pytest.raises(ValueError, match="frame 2: kept and new references differ by"):
        benchmark.check_equal(model, video, (40, 56))


def test_outputs_that_are_no_numbers_are_an_error(benchmark, model, video):
    model.heads.logit_norm.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="frame 0: .* differ by nan"):
        benchmark.check_equal(model, video, (40, 56))


def test_bytes_of_a_memory_are_its_storages(benchmark):
    whole = torch.zeros(2, 6, 10)
    memory = Memory([whole[:1], whole[:1, 1:]], torch.zeros(1, 10, dtype=torch.bool))
    assert benchmark.held_bytes(memory) == 4 * 120 + 10  # a part keeps the whole alive


def test_the_paper_s_size_takes_5_megabytes(benchmark):
    model = build("CODE_DIM", 256, "KEY_DIM", 128, "VALUE_DIM", 256, "NUM_SLOTS", 10)
    cells = 41 * 41
    # Keys and values of ten slots and all cells in two layers, in four bytes; which are valid.
    assert 2 * 384 * (10 + cells) * 4 == 5_194_752
    assert benchmark.computed_bytes(model, (641, 641)) == 5_194_752 + 10 + cells
    channels = model.backbone.output_shape()["res5"].channels
    assert benchmark.map_bytes(model, (641, 641)) == 4 * (channels * cells + 2560)


@pytest.mark.parametrize("opts", [(), ("INTER_C2", False)])
def test_bytes_by_shapes_are_those_held(benchmark, video, opts):
    model = build(*opts).eval()
    online = benchmark.Online(model, (40, 56))
    images = model.preprocess(video[:1])
    with torch.no_grad():
        online(images)
    (memory,) = online.state.references
    shape = tuple(images.tensor.shape[-2:])
    assert benchmark.held_bytes(memory) == benchmark.computed_bytes(model, shape)


def test_the_whole_command(benchmark, tmp_path, capsys):
    benchmark.main(
        ["--config-file", str(ROOT / "configs" / "quick" / "hitf.yaml"), "--device", "cpu"]
        + ["--size", "48x64", "--rounds", "2", "--json", str(tmp_path / "row.json")]
        # A data set whose classes are known without its files; a small model.
        + ["DATASETS.TRAIN", "('ytvis_2019_train',)", "INPUT.MIN_SIZE_TEST", "48"]
        + ["MODEL.HITF.NUM_REF", "2", "INPUT.CLIP.NUM_FRAMES", "3"]
        + ["MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"]
    )
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["input"] == [49, 65] and row["references"] == 2 and row["weights"] == "random"
    assert set(row["ms"]) == {"kept", "anew"}
    assert all(0 < ms["p50"] <= ms["p95"] for ms in row["ms"].values())
    ratio = row["ms"]["anew"]["p50"] / row["ms"]["kept"]["p50"]
    assert row["times_faster"] == pytest.approx(ratio, abs=0.02)
    assert 0 <= row["largest_difference_double"] < 1e-9
    # 32 + 64 channels of 10 slots and 4 x 5 cells in two layers.
    assert row["bytes_per_frame"] == row["bytes_computed"] == 2 * 96 * 30 * 4 + 30
    assert "times as fast as anew" in capsys.readouterr().out
