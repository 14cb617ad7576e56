import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from systems import moving_squares, small_cfg
from vis_d2.layers import MultiheadAttention
from vis_d2.meta_arch.tt_spn.mask_branch import MaskBranch
from vis_d2.tools.benchmark import count_flops

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "projects" / "TT-SPN"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("tt_spn_benchmark", FOLDER / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FOLDER))  # the script imports its neighbour
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build_model(small_cfg("tt_spn", "MODEL.TT_SPN.FRAME_SCORE_THR", 0.0))
    # From zeros the deformable convolution would be a plain one, and its offsets never wrong.
    torch.nn.init.normal_(model.masks.mask_head.conv_offset.weight, std=0.3)
    return model


@pytest.mark.parametrize("size", [(64, 96), (50, 90)])
def test_both_forms_infer_the_same(benchmark, model, size):
    clip, model = moving_squares(3, size=size), model.eval()
    room, plain = (benchmark.infer(model, clip, form) for form in ("room", "plain"))
    probs, masks, boxes = room["inference"]
    assert probs.shape == (4, 3, 5) and boxes.shape == (4, 3, 4) and masks.std() > 0.01
    assert benchmark.compare(plain, room)["inference"] < 1e-5


def test_both_forms_learn_the_same(benchmark, model):
    clip, calls = moving_squares(3, size=(50, 90)), []
    model.masks.insmask_head.register_forward_hook(lambda m, i, y: calls.append(len(y)))
    room, plain = (benchmark.learn(model.train(), clip, form) for form in ("room", "plain"))
    assert calls == [2, 1, 1, 1, 1]  # both matched slots, and all four one by one
    assert room["gradients"][0].norm() > 0.1
    found = benchmark.compare(plain, room)
    assert found["losses"] < 1e-5 and found["gradients"] < 1e-4


def test_a_window_that_is_too_short_is_repeated_in_both(benchmark, model):
    clip = moving_squares(2)
    room, plain = (benchmark.infer(model.eval(), clip, form) for form in ("room", "plain"))
    assert room["inference"][0].shape[1] == 2
    assert benchmark.compare(plain, room)["inference"] < 1e-5


def test_the_room_is_left_as_it_was(benchmark, model):
    attention, masks = MultiheadAttention.forward, model.masks
    with pytest.raises(KeyError), benchmark.plain(model):
        assert MultiheadAttention.forward is not attention
        assert not isinstance(model.masks, MaskBranch)
        raise KeyError
    assert MultiheadAttention.forward is attention and model.masks is masks


def test_a_difference_is_an_error(benchmark):
    right = {"inference": [torch.ones(3)], "gradients": [torch.tensor([3.0, 4.0])]}
    wrong = {"inference": [torch.ones(3)], "gradients": [torch.tensor([3.0, 4.1])]}
    assert benchmark.compare(right, right) == {"inference": 0.0, "gradients": 0.0}
    with pytest.raises(ValueError, match="gradients: the plain form differs by 2.0e-02"):
        benchmark.compare(wrong, right)


def test_the_whole_command(benchmark, tmp_path, capsys):
    benchmark.main(
        ["--frames", "2", "--sizes", "32x64", "--rounds", "1", "--objects", "1"]
        + ["--json", str(tmp_path / "rows.json")]
        + ["--config-file", str(ROOT / "configs" / "quick" / "tt_spn.yaml")]
        # A data set whose classes are known without its files; a small model.
        + ["DATASETS.TRAIN", "('ytvis_2019_train',)", "MODEL.TT_SPN.HIDDEN_DIM", "32"]
        + ["MODEL.TT_SPN.ENC_LAYERS", "1", "MODEL.TT_SPN.DEC_LAYERS", "1"]
        + ["MODEL.TT_SPN.FFN_DIM", "16", "MODEL.TT_SPN.NUM_SLOTS", "3"]
    )
    rows = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    assert [(row["kind"], row["frames"], row["size"]) for row in rows] == [
        ("inference", 2, [32, 64]),
        ("training", 2, [32, 64]),
    ]
    for row in rows:
        seconds = row["seconds"]
        assert set(seconds) == {"room", "plain", "backbone alone"}
        assert 0 < seconds["backbone alone"] < min(seconds["room"], seconds["plain"])
        assert row["plain_over_room"] == pytest.approx(seconds["plain"] / seconds["room"])
    assert "training, T = 2, 32x64:  room" in capsys.readouterr().out


def test_the_work_of_a_frame_is_counted(model):
    """One frame is repeated to a whole window, but its backbone runs once."""
    work = count_flops(model.eval(), torch.zeros(3, 64, 96, dtype=torch.uint8))
    assert work > 1e6
