import importlib.util
from pathlib import Path

import pytest
from detectron2.modeling import build_model

from systems import quick_cfg
from vis_d2.tools._step_memory import CHOICES, PARTS, measure

ROOT = Path(__file__).resolve().parents[2]
SIZE = (64, 96)


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


@pytest.mark.parametrize("mixed", [False, True])
def test_products_need_not_be_computed(script, model, mixed):
    script.set_recompute(model, "all")
    model.clip_length = 3
    sample = script.make_sample(3, False, SIZE, 2)
    cheap, full = (measure(model, sample, mixed, compute) for compute in (False, True))
    for part in PARTS:
        # Boxes that move fall on other levels of the pyramid, which costs some indices.
        assert full[part] == pytest.approx(cheap[part], rel=0.02), part


def test_recomputation_saves_memory_where_it_says(script, model):
    model.clip_length, peaks = 3, {}
    for choice in CHOICES:
        script.set_recompute(model, choice)
        peaks[choice] = measure(model, script.make_sample(3, False, SIZE, 2), False)
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
    assert float(words[4]) < 1 and {words[7], words[9]} <= set(PARTS)
