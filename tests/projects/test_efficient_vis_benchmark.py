import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vis_d2.meta_arch.efficient_vis.temporal_dynamic_conv import TemporalDynamicConv

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "projects" / "EfficientVIS"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(
        "efficient_vis_benchmark", FOLDER / "benchmark.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(FOLDER))  # the script imports its neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


@pytest.fixture
def conv():
    return TemporalDynamicConv(channels=8, hidden=4)


def test_all_forms_agree_and_neighbours_matter(benchmark, conv):
    inputs = benchmark.make_inputs(conv, 4, 3, 2, CPU)
    assert not inputs[2].all()  # an invalid frame is among them
    results = {name: form(conv, *inputs) for name, form in benchmark.FORMS.items()}
    assert set(results) == {"room", "loop", "loop, filters at once", "stacked"}
    for name, result in results.items():
        torch.testing.assert_close(result, results["room"], atol=1e-6, rtol=1e-5, msg=name)
    moved = [inputs[0], inputs[1].clone(), inputs[2]]
    with torch.no_grad():
        moved[1][2] += 1
    for name, form in benchmark.FORMS.items():
        changed = (form(conv, *moved) - results[name]).abs().flatten(1).max(dim=1).values > 1e-4
        assert changed.tolist() == [False, True, True, True], name


def test_a_comparison_has_times_and_bytes_of_every_form(benchmark, conv):
    inputs = benchmark.make_inputs(conv, 5, 2, 3, CPU)
    rows = benchmark.compare(conv, inputs, 1, CPU)
    assert list(rows) == list(benchmark.FORMS)
    for row in rows.values():
        assert row["inference_ms"] > 0 and row["training_ms"] > 0
        assert row["gradients"] < 1e-6  # in double precision, but for the cosines
    assert 0 < rows["room"]["kept_mb"] < rows["stacked"]["kept_mb"]
    text = benchmark.convolution_table({"frames": 5, "side": 3, "forms": rows}, 2)
    assert f"{rows['loop']['training_ms']:.1f}" in text and "(1.0x)" in text


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("values", lambda *a: a[0](*a[1:]) + 1e-3),
        ("gradients", lambda *a: a[0](a[1], a[2].detach() + 0 * a[2], a[3])),
    ],
)
def test_a_form_that_differs_is_an_error(benchmark, conv, monkeypatch, kind, wrong):
    monkeypatch.setitem(benchmark.FORMS, "loop", wrong)
    with pytest.raises(ValueError, match=f"loop: {kind} differ by"):
        benchmark.compare(conv, benchmark.make_inputs(conv, 3, 2, 2, CPU), 1, CPU)


def test_bytes_count_once_and_for_the_inner_part(benchmark):
    weight = nn.Parameter(torch.ones(10))
    x, y = torch.ones(10, requires_grad=True), torch.ones(30, requires_grad=True)
    meter = benchmark.Meter(CPU, [weight])
    with meter.part("outer"):
        a = x * weight  # keeps x, 40 bytes, and the weight, which is there anyway
        b = x[:5] * x[5:]  # the same storage
        with meter.part("inner"):
            c = y * y
    assert dict(meter.kept) == {"outer": 40, "inner": 120}
    assert (a.sum() + b.sum() + c.sum()).requires_grad


def test_time_counts_for_the_inner_part(benchmark, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    class Worker:
        def work(self, seconds):
            now[0] += seconds
            return seconds

    worker, meter = Worker(), benchmark.Meter(CPU)
    with meter.watch(worker, "work", "inner"), meter.part("outer"):
        now[0] += 1
        assert worker.work(2) == 2
        assert worker.work(3) == 3
        now[0] += 4
    worker.work(10)  # no longer watched
    assert dict(meter.seconds) == {"inner": 5, "outer": 5}


def test_the_whole_command(benchmark, tmp_path, capsys):
    benchmark.main(
        ["--frames", "3", "2", "--rounds", "1", "--size", "64x96", "--clip-frames", "2"]
        + ["--queries", "2", "3", "--clip-sizes", "64x64", "64x128", "--objects", "1"]
        + ["--json", str(tmp_path / "rows.json")]
        + ["--config-file", str(ROOT / "configs" / "quick" / "efficient_vis.yaml")]
        # A data set whose classes are known without its files; a small model.
        + ["DATASETS.TRAIN", "('ytvis_2019_train',)", "INPUT.MIN_SIZE_TEST", "64"]
        + ["MODEL.EFFICIENT_VIS.NUM_STAGES", "1", "MODEL.EFFICIENT_VIS.NUM_QUERIES", "2"]
        + ["MODEL.EFFICIENT_VIS.MASK_POOL", "8"]
    )
    rows = [json.loads(line) for line in (tmp_path / "rows.json").read_text().splitlines()]
    convolution, model, clip = (row["cases"] for row in rows)
    assert [row["part"] for row in rows] == ["convolution", "model", "clip"]
    assert {row["device"] for row in rows} == {"cpu"}
    assert [(c["frames"], c["side"]) for c in convolution] == [(3, 7), (3, 8), (2, 7), (2, 8)]
    assert [case["frames"] for case in model] == [3, 2]
    parts = {"backbone", "refiner", "masks", "finishing"}
    assert all(set(c["ms_per_frame"]) == parts for c in model)
    assert all(ms > 0 for c in model for ms in c["ms_per_frame"].values())
    kept = {(c["queries"], *c["size"]): c["kept_mb"] for c in clip}
    # Twice the pixels, twice the backbone; half as many queries again, as much of the refiner.
    assert kept[2, 64, 128]["backbone"] == pytest.approx(2 * kept[2, 64, 64]["backbone"], rel=0.02)
    assert kept[3, 64, 64]["backbone"] == kept[2, 64, 64]["backbone"]
    assert kept[3, 64, 64]["refiner"] == pytest.approx(1.5 * kept[2, 64, 64]["refiner"], rel=0.05)
    assert all(c["forward_s"] > 0 and c["backward_s"] > 0 for c in clip)
    text = capsys.readouterr().out
    assert "RoIs 8x8" in text and "64x128" in text and "T = 3" in text
