import importlib.util
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from systems import quick_cfg

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = (3, False, (64, 96), 2)


@pytest.fixture(scope="module")
def script():
    path = ROOT / "projects" / "EfficientVIS" / "memory.py"
    spec = importlib.util.spec_from_file_location("efficient_vis_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    return build_model(quick_cfg("efficient_vis")).train()


def test_a_tensor_counts_once_and_for_as_long_as_it_lives(script):
    there = torch.zeros(1000)
    memory = script.LiveBytes()
    memory.ignore(there)
    with memory:
        there.add_(1)
        a = torch.zeros(1000)  # 4,000 bytes
        b = a.view(10, 100)
        a.add_(1)
        assert memory.peaks["forward"] == 4000
        del a
        c = torch.zeros(500)
        assert memory.peaks["forward"] == 6000  # the view keeps the storage
        del b, c
        memory.part = "heads"
        d = torch.zeros(100)
    assert memory.peaks == {"forward": 6000, "heads": 400, "backbone": 0}
    assert d.sum() == 0 and there.sum() == 1000


def test_what_autograd_saves_counts(script):
    x = torch.zeros(1000, requires_grad=True)
    with script.LiveBytes() as memory:
        y = (x * 2).exp().sum()  # 2 x: gone again; exp: saved
        memory.part = "heads"
        held = torch.zeros(1)
    assert memory.peaks["forward"] >= 8000
    assert 4000 <= memory.peaks["heads"] < 8000
    assert y.requires_grad and held.numel() == 1


@pytest.mark.parametrize("mixed", [False, True])
def test_products_need_not_be_computed(script, model, mixed):
    script.set_recompute(model, "all")
    cheap = script.measure(model, SAMPLE, mixed, compute=False)
    full = script.measure(model, SAMPLE, mixed, compute=True)
    for part in script.PARTS:
        # Boxes that move fall on other levels of the pyramid, which costs some indices.
        assert full[part] == pytest.approx(cheap[part], rel=0.02), part


def test_recomputation_saves_memory_where_it_says(script, model):
    peaks = {}
    for choice in script.CHOICES:
        script.set_recompute(model, choice)
        peaks[choice] = script.measure(model, SAMPLE, False, compute=False)
    forward = {choice: peak["forward"] for choice, peak in peaks.items()}
    assert forward["all"] < min(forward["masks"], forward["backbone"])
    assert max(forward["masks"], forward["backbone"]) < forward["none"]
    # The backbone is recomputed at once, when what the heads have stored is gone.
    assert peaks["all"]["backbone"] < peaks["none"]["heads"]


def test_the_table_names_its_own_row_and_fits_a_line(script, capsys):
    config = ["--config-file", str(ROOT / "configs" / "quick" / "efficient_vis.yaml")]
    options = ["--size", "64x96", "--frames", "2", "3", "--at", "5", "9", "--objects", "2"]
    script.main([*options, *config, "MODEL.VIS.NUM_CLASSES", "5"])
    lines = capsys.readouterr().out.splitlines()
    assert "not measured on a GPU: one clip of T frames of 64x96, 2 objects" in lines[0]
    rows = [line for line in lines if " on  " in line or " off  " in line]
    assert len(rows) == 8 and [line[0] for line in rows].count("*") == 1
    assert rows[4].startswith("* none      on ")
    words = rows[0].split()  # none off, two runs, error in %, two peaks with the part they are in
    assert float(words[2]) < float(words[3]) < float(words[6]) < float(words[8])
    assert float(words[4]) < 1 and {words[7], words[9]} <= set(script.PARTS)


def test_a_line_through_points(script):
    line = script.fit([2, 3, 4], [30, 40, 50])
    assert line.at(36) == pytest.approx(370) and line.error < 1e-9
    assert script.fit([2, 3, 4], [30, 44, 50]).error > 0.03
