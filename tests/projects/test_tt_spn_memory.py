import importlib.util
from pathlib import Path

import pytest
import torch

from systems import small_cfg
from vis_d2.meta_arch.tt_spn.deform_conv import DeformConv
from vis_d2.tools._step_memory import LiveBytes, make_clip, measure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "projects" / "TT-SPN" / "memory.py"
    spec = importlib.util.spec_from_file_location("tt_spn_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_is_made_for_the_clip(script):
    model = script.build(small_cfg("tt_spn"), 5, "all")
    assert model.detector.num_frames == 5 and len(model.detector.query_embed.weight) == 20
    assert model.training and model.recompute_backbone and model.masks.recompute


def test_the_deformable_convolution_keeps_inputs_and_lines_up_taps(script):
    usual = DeformConv.forward
    conv, frames = DeformConv(4, 2), 3
    x = torch.zeros(frames, 4, 8, 8, requires_grad=True)
    offset = torch.zeros(frames, 18, 8, 8, requires_grad=True)
    with script.compiled_deform_conv(), LiveBytes() as memory:
        y = conv(x, offset)
        taps, result = 4 * script.COLUMNS * 9 * 4 * 64, 4 * frames * 2 * 64
        assert memory.peaks["forward"] >= taps
        memory.part = "heads"
        held = torch.zeros(1)
        assert memory.peaks["heads"] < 2 * result + 100  # the taps are gone
        y.sum().backward()
        assert memory.peaks["heads"] >= taps + 4 * (x.numel() + offset.numel())
    assert y.shape == (frames, 2, 8, 8) and x.grad.shape == x.shape and held.numel() == 1
    assert DeformConv.forward is usual


def test_recomputation_saves_memory_where_it_says(script):
    clip, cfg, peaks = make_clip(3, (64, 96), 2), small_cfg("tt_spn"), {}
    with script.compiled_deform_conv():
        for choice in ("none", "masks", "all"):
            peaks[choice] = measure(script.build(cfg, 3, choice), clip, False, last="res5")
    most = {choice: max(peak.values()) for choice, peak in peaks.items()}
    assert most["all"] < most["masks"] < most["none"]
    assert all(peak > 0 for peak in peaks["none"].values())


def test_the_table(script, capsys):
    config = ["--config-file", str(ROOT / "configs" / "quick" / "tt_spn.yaml")]
    options = ["--size", "32x64", "--frames", "1", "2", "--at", "3", "6", "--objects", "1"]
    options += ["--recompute", "none", "all", "--amp", "on"]
    small = ["MODEL.VIS.NUM_CLASSES", "5", "MODEL.TT_SPN.HIDDEN_DIM", "32"]
    script.main([*options, *config, *small, "MODEL.TT_SPN.DEC_LAYERS", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert "not measured on a GPU: one clip of T frames of 32x64, 1 objects" in lines[0]
    assert [line[:8] for line in lines[3:]] == ["* none  ", "  all   "]
    words = lines[3].split()  # choice, AMP, two runs, error in %, two peaks with the part
    assert float(words[3]) <= float(words[4]) and float(words[7]) <= float(words[9])
