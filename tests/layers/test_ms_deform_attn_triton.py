"""The kernels: their arithmetic in Triton's interpreter, that they compile, and on a GPU all of it.

The interpreter and the compiler need no GPU. Where there is no triton nothing is tested.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deform_attn_parts import CASES, assert_same, random_inputs, run

from vis_d2.layers import ms_deform_attn_torch

triton = pytest.importorskip("triton")

TESTS = Path(__file__).resolve().parents[1]
KERNELS = TESTS.parent / "vis_d2" / "layers" / "ms_deform_attn_triton.py"
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# The switch is read when triton is imported: this takes a process of its own. It loads the file
# alone, which is faster than the package.
SCRIPT = """
import importlib.util, sys, torch
from deform_attn_parts import CASES, random_inputs, run
spec = importlib.util.spec_from_file_location("kernels", sys.argv[1])
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
kernels.BLOCK = 128  # several programs, the last of them not full
results = {}
for case in CASES:
    for dtype in (torch.float32, torch.float16)[: 2 if case == "small" else 1]:
        inputs, shapes = random_inputs(case)
        inputs[0] = inputs[0].to(dtype)
        results[case, dtype] = run(kernels.by_kernels, inputs, shapes)
value = torch.zeros(1, 4, 2, 3, requires_grad=True)
out = kernels.by_kernels(value, [(2, 2)], torch.zeros(1, 0, 2, 1, 2, 2), torch.zeros(1, 0, 2, 1, 2))
out.sum().backward()
results["nobody asks"] = [out.detach(), value.grad]
torch.save(results, sys.argv[2])
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    file = tmp_path_factory.mktemp("interpreted") / "results.pt"
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", SCRIPT, str(KERNELS), str(file)], env=env, check=True)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    "case, dtype", [*((case, torch.float32) for case in CASES), ("small", torch.float16)]
)
def test_the_arithmetic(interpreted, case, dtype):
    inputs, shapes = random_inputs(case)
    inputs[0] = inputs[0].to(dtype)
    found = interpreted[case, dtype]
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32, torch.float32]
    expected = run(ms_deform_attn_torch.by_rows, inputs, shapes)
    assert_same(found, expected, 1e-5 if dtype == torch.float32 else 1e-3)


def test_nobody_asks(interpreted):
    out, grad = interpreted["nobody asks"]
    assert out.shape == (1, 0, 6) and not grad.any()


@pytest.mark.parametrize("value", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["_forward", "_backward"])
def test_they_compile_for_a_gpu_that_is_not_there(name, value, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vis_d2.layers import ms_deform_attn_triton

    kernel = getattr(ms_deform_attn_triton, name)
    sizes = {"HEADS": 8, "CHANNELS": 24, "LEVELS": 4, "POINTS": 4, "BLOCK_N": 32, "BLOCK_C": 32}
    kinds = {**dict.fromkeys(sizes, "constexpr"), "levels": "*i32"}
    kinds.update(dict.fromkeys(("bags", "bags_per_frame", "cells"), "i32"))
    kinds.update(dict.fromkeys(("value", "out", "grad"), f"*{value}"))
    signature = {argument: kinds.get(argument, "*fp32") for argument in kernel.arg_names}
    places = {(kernel.arg_names.index(argument),): size for argument, size in sizes.items()}
    source = ASTSource(kernel, signature, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert len(compiled.asm["cubin"]) > 1000
    assert ("atom" in compiled.asm["ptx"]) == (name == "_backward")


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu(case, dtype):
    from vis_d2.layers.ms_deform_attn_triton import by_kernels

    inputs, shapes = random_inputs(case)
    inputs[0] = inputs[0].to(dtype)
    expected = run(ms_deform_attn_torch.by_rows, inputs, shapes)
    inputs = [x.cuda() for x in inputs]
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    for form in (by_kernels, ms_deform_attn_torch.by_grid_sample):
        assert_same([x.cpu() for x in run(form, inputs, shapes)], expected, tolerance)


@pytest.mark.gpu
@on_gpu
def test_on_a_gpu_they_are_chosen(caplog):
    from vis_d2.layers.ms_deform_attn import _choose
    from vis_d2.layers.ms_deform_attn_triton import by_kernels

    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        value = torch.zeros(1, 30, 8, 32, dtype=dtype, device="cuda")
        assert _choose(value, torch.zeros(1, 5, 8, 4, 4)) is by_kernels
    assert not caplog.records


@pytest.mark.gpu
@on_gpu
def test_on_a_gpu_at_full_size():
    """Five frames of 360 x 640: more programs than run at a time, all of which add to the value."""
    from vis_d2.layers.ms_deform_attn_triton import by_kernels

    torch.manual_seed(0)
    shapes = [(45, 80), (23, 40), (12, 20), (6, 10)]
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(5, cells, 8, 32, device="cuda")
    locations = torch.rand(5, cells, 8, 4, 4, 2, device="cuda") * 1.1 - 0.05
    weights = torch.rand(5, cells, 8, 4, 4, device="cuda")
    inputs = [value, locations, weights]
    expected = run(ms_deform_attn_torch.by_grid_sample, inputs, shapes)
    found = run(by_kernels, inputs, shapes)
    for a, b in zip(found, expected):  # a point on a cell may be on either side of it
        assert (a - b).norm() < 3e-3 * b.norm()
