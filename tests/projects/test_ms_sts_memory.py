import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

from systems import small_cfg
from vis_d2.layers import MSDeformAttn
from vis_d2.tools._step_memory import LiveBytes, make_clip, measure

ROOT = Path(__file__).resolve().parents[2]
LAYER = importlib.import_module("vis_d2.layers.ms_deform_attn")


@pytest.fixture(scope="module")
def script():
    path = ROOT / "projects" / "MS-STS" / "memory.py"
    spec = importlib.util.spec_from_file_location("ms_sts_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_is_made_for_the_clip(script):
    model = script.build(small_cfg("ms_sts"), 3, "encoder")
    assert model.training and not model.recompute_backbone and not model.masks.recompute
    assert any(getattr(m, "recompute", False) for m in model.detector.modules())
    model = script.build(small_cfg("ms_sts"), 3, "all")
    assert model.recompute_backbone and model.masks.recompute


def test_sampling_keeps_its_inputs_and_adds_up_in_four_bytes(script):
    usual = LAYER.ms_deform_attn
    attention = MSDeformAttn(channels=32, num_levels=1, num_heads=4, num_points=2)
    query = torch.zeros(2, 16, 32, requires_grad=True)
    reference = torch.zeros(2, 16, 1, 2)
    with script.compiled_sampling(), LiveBytes() as memory:
        with torch.autocast("cpu", torch.bfloat16):
            out = attention.sample(query, reference, query, [(4, 4)])
        memory.part = "heads"
        held = torch.zeros(1)
        stored = memory.peaks["heads"]
        out.sum().backward()
    value, points = 2 * 16 * 32, 2 * 16 * 4 * 2
    assert out.dtype == torch.bfloat16 and out.shape == (2, 16, 32) and not out.any()
    assert query.grad.shape == query.shape and held.numel() == 1
    assert stored >= 2 * value + 4 * 3 * points
    assert memory.peaks["heads"] >= stored + 4 * value
    assert LAYER.ms_deform_attn is usual


def test_recomputation_saves_memory_where_it_says(script):
    clip, cfg, peaks = make_clip(3, (64, 96), 2), small_cfg("ms_sts"), {}
    with script.compiled_sampling():
        for choice in script.CHOICES:
            peaks[choice] = measure(script.build(cfg, 3, choice), clip, False, last="res3")
    most = {choice: max(peak.values()) for choice, peak in peaks.items()}
    assert most["all"] < most["encoder"] < most["none"] and most["backbone"] < most["none"]
    assert all(peak > 0 for peak in peaks["none"].values())


def test_the_table(script, capsys):
    config = ["--config-file", str(ROOT / "configs" / "quick" / "ms_sts.yaml")]
    options = ["--size", "32x64", "--frames", "1", "2", "--at", "3", "6", "--objects", "1"]
    options += ["--recompute", "none", "encoder", "--amp", "on"]
    small = ["MODEL.VIS.NUM_CLASSES", "5", "MODEL.MS_STS.HIDDEN_DIM", "64"]
    script.main([*options, *config, *small, "MODEL.MS_STS.DEC_LAYERS", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "not measured on a GPU: one clip of T frames of 32x64, 1 objects" in lines[0]
    assert [line[:11] for line in lines[3:]] == ["* none     ", "  encoder  "]
    words = lines[3].split()  # choice, AMP, two runs, error in %, two peaks with the part
    assert float(words[3]) <= float(words[4]) and float(words[7]) <= float(words[9])
