import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from deform_attn_parts import CASES, assert_same, random_inputs, run
from detectron2.modeling import build_model

from systems import moving_squares, small_cfg
from vis_d2.layers import MultiheadAttention, ms_deform_attn
from vis_d2.meta_arch.ms_sts import MSSTS
from vis_d2.meta_arch.ms_sts.split_attention import BlockSwitches, SplitAttention
from vis_d2.tools._plain_forms import attend_with_matrix

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "projects" / "MS-STS"
SHAPES = [(4, 6), (2, 3), (1, 2), (1, 1)]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("ms_sts_benchmark", FOLDER / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FOLDER))  # the script imports its neighbour
    sys.modules.pop("plain_forms", None)  # another project's
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("plain_forms", None)
    return module


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(small_cfg("ms_sts", "MODEL.MS_STS.MAX_KEPT", 3)).eval()


def split(**kwargs):
    torch.manual_seed(0)
    module = SplitAttention(
        channels=16, dim=8, num_heads=2, dropout=0.0, gate_init=1.0, chunk=8, **kwargs
    )
    for parameter in module.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("frames", [1, 3])
def test_the_split_attention_is_what_is_written_down(benchmark, frames):
    module, x = split(), torch.randn(2, frames, 33, 16)
    expected = module(x, SHAPES)
    assert expected.std() > 0.1
    plain = benchmark.split_attention(module, x, SHAPES)
    torch.testing.assert_close(plain, expected, atol=1e-5, rtol=1e-5)
    with benchmark.matrices(module):
        assert module.cells == 0 and MultiheadAttention.forward is attend_with_matrix
        torch.testing.assert_close(module(x, SHAPES), expected, atol=1e-5, rtol=1e-5)
    assert module.cells == 4 and MultiheadAttention.forward is not attend_with_matrix


@pytest.mark.parametrize(
    "switches",
    [
        {"blocks": BlockSwitches(inter=False)},
        {"blocks": BlockSwitches(concat="channel")},
        {"share_scales": False},
        {"temporal_pe": True},
    ],
)
def test_the_plain_form_has_the_default_switches(benchmark, switches):
    module = split(**switches)
    with pytest.raises(ValueError, match="SPLIT_ATTN: the plain form needs USE_INTRA"):
        benchmark.split_attention(module, torch.randn(1, 2, 33, 16), SHAPES)


@pytest.mark.parametrize("case", CASES)
def test_deformable_attention_level_by_level(benchmark, case):
    inputs, shapes = random_inputs(case)
    expected = run(ms_deform_attn, inputs, shapes)
    assert_same(run(benchmark.per_level, inputs, shapes), expected, 1e-5)


def test_masks_of_all_queries_hold_those_of_the_kept_ones(benchmark, model, monkeypatch):
    images, counts = moving_squares(3)["image"], []
    original = MSSTS._matched_masks

    def counted(self, features, outputs, matches):
        counts.append(len(matches[0][0]))
        return original(self, features, outputs, matches)

    monkeypatch.setattr(MSSTS, "_matched_masks", counted)
    ours = benchmark.infer(model, images, benchmark.nullcontext)
    kept, layers = len(ours[1]), 2
    assert counts == [kept] and 0 < kept < model.detector.query_embed.weight.shape[0]
    for every, times in ((True, layers), (False, 1)):
        counts.clear()

        def form(m, every=every):
            return benchmark.all_masks(m, every)

        found = benchmark.infer(model, images, form)
        assert benchmark.off(found, ours) < 1e-5
        assert counts == [len(model.detector.query_embed.weight)] * times
    assert "_matched_masks" not in vars(model) and "update" not in vars(model.linker)
    assert not model.detector._forward_hooks


def test_levels_of_padded_frames(benchmark):
    assert benchmark.level_shapes((360, 640)) == [(48, 80), (24, 40), (12, 20), (6, 10)]
    assert benchmark.level_shapes((32, 96)) == [(4, 12), (2, 6), (1, 3), (1, 2)]


def test_what_is_stored_and_what_is_needed_at_most(benchmark):
    x = torch.randn(100, 10, requires_grad=True)
    x.grad = torch.zeros_like(x)
    linear = torch.nn.Linear(10, 10, bias=False)
    linear.weight.grad = torch.zeros_like(linear.weight)

    def squares():
        return linear(x).exp().sin()

    training = benchmark.count_bytes(squares, linear, [x], True)
    assert training["stored"] == 4000  # the exponentials; of the sine nothing but its input
    assert training["peak"] >= 3 * 4000
    inference = benchmark.count_bytes(squares, linear, [x], False)
    assert inference == {"stored": 0, "peak": 8000}


def test_a_difference_is_an_error(benchmark):
    benchmark.check({"plain": 9e-5})
    for difference in (2e-4, float("nan")):
        with pytest.raises(ValueError, match="plain: differs by .*, tolerated are 1e-04"):
            benchmark.check({"matrices": 0.0, "plain": difference})
    assert benchmark.off([torch.tensor([1.0, -4.0])], [torch.tensor([1.0, -8.0])]) == 0.5


def test_without_the_module_there_is_nothing_to_measure(benchmark):
    with pytest.raises(ValueError, match="SPLIT_ATTN.ENABLED is False"):
        benchmark.module_case(torch.nn.Identity(), 1, (32, 32), None)


def test_the_whole_command(benchmark, tmp_path, capsys):
    small = small_cfg("ms_sts")
    benchmark.main(
        ["--frames", "2", "--sizes", "32x64", "--rounds", "1", "--objects", "1"]
        + ["--json", str(tmp_path / "rows.jsonl")]
        + ["--config-file", str(ROOT / "configs" / "quick" / "ms_sts.yaml")]
        # A data set whose classes are known without its files; a small model.
        + ["DATASETS.TRAIN", "('ytvis_2019_train',)", "MODEL.MS_STS.KEEP", "queries"]
        + ["MODEL.MS_STS.HIDDEN_DIM", str(small.MODEL.MS_STS.HIDDEN_DIM)]
        + ["MODEL.MS_STS.ENC_LAYERS", "1", "MODEL.MS_STS.DEC_LAYERS", "2"]
        + ["MODEL.MS_STS.MAX_KEPT", "3"]
    )
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["kind"], row["frames"], row["size"]) for row in rows] == [
        ("module", 2, [32, 64]),
        ("inference", 2, [32, 64]),
        ("deform", 2, [32, 64]),
    ]
    module, inference, deform = rows
    assert module["cells"] == deform["cells"] == 2 * (32 + 8 + 2 + 1)
    for part in (module["inference"], module["training"]):
        assert set(part["seconds"]) == set(part["bytes"]) == {"room", "matrices", "plain"}
        assert part["bytes"]["room"]["peak"] < part["bytes"]["plain"]["peak"]
    for layer in ("encoder", "decoder"):
        stored = deform[layer]["training"]["bytes"]
        assert stored["room"]["stored"] < stored["grid_sample"]["stored"]
        assert deform[layer]["inference"]["bytes"]["plain"]["stored"] == 0
    seconds = inference["seconds"]
    assert inference["kept"] == 3 and inference["bytes"]["masks"] < inference["bytes"]["all masks"]
    assert inference["all_over_room"] == pytest.approx(seconds["all"] / seconds["room"])
    text = capsys.readouterr().out
    assert "module, T = 2, 32x64, 86 cells:" in text and "3 queries kept:" in text
    assert text.count("x bytes") == 2 * 2 + 1 + 4 * 2
