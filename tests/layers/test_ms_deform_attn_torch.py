"""Both forms against a plain loop; what chunks, dtypes and the backward pass must not do."""

import subprocess
import sys

import pytest
import torch
from deform_attn_parts import CASES, assert_same, loop, random_inputs, run
from torch import Tensor, nn

from vis_d2.layers import checkpointed, ms_deform_attn_torch
from vis_d2.layers.ms_deform_attn_torch import by_grid_sample, by_rows

FORMS = {"rows": by_rows, "grid_sample": by_grid_sample}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def tiny_chunks(monkeypatch):
    """One query of one frame at a time."""
    monkeypatch.setattr(ms_deform_attn_torch, "POINTS", 1)


@forms
@cases
def test_values_and_gradients_are_those_of_the_loop(form, case):
    inputs, shapes = random_inputs(case)
    expected = run(loop, inputs, shapes)
    assert all(x.abs().max() > 0.01 for x in expected)
    assert_same(run(form, inputs, shapes), expected, 1e-5)


@pytest.mark.parametrize("points", [1, 60, 10**9])
def test_chunks_change_nothing(monkeypatch, points):
    """Pieces of a frame, one frame, both frames at once."""
    inputs, shapes = random_inputs("odd")
    expected = run(by_rows, inputs, shapes)
    monkeypatch.setattr(ms_deform_attn_torch, "POINTS", points)
    assert_same(run(by_rows, inputs, shapes), expected, 1e-6)


def test_every_thread_has_its_share(monkeypatch):
    monkeypatch.setattr(ms_deform_attn_torch, "POINTS", 15)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    value, weights = torch.zeros(2, 1, 3, 1), torch.zeros(2 * 7 * 3, 5)  # B, M and Q, L * P
    pieces = [[0, 6], [6, 12], [12, 18], [18, 21]]  # whole queries: 2 x 15 // 5 bags at most
    expected = [
        (slice(b, b + 1), [slice(21 * b + i, 21 * b + j) for i, j in pieces]) for b in (0, 1)
    ]
    assert list(ms_deform_attn_torch._parts(value, weights)) == expected
    value, weights = torch.zeros(5, 1, 3, 1), torch.zeros(5 * 4 * 3, 1)
    expected = [(slice(i, j), [slice(12 * i, 12 * j)]) for i, j in ((0, 2), (2, 4), (4, 5))]
    assert list(ms_deform_attn_torch._parts(value, weights)) == expected


@pytest.mark.parametrize("place", [0.25, 0.5, 0.75])
@forms
def test_a_point_on_a_cell_has_the_slope_to_its_right(form, place):
    """In a row of 2 cells 0.25 is the first, 0.75 the last, behind which is nothing."""
    value = torch.tensor([3.0, 10.0]).view(1, 2, 1, 1)
    locations = torch.tensor([place, 0.5]).view(1, 1, 1, 1, 1, 2)
    out, _, slope, share = run(form, [value, locations, torch.ones(1, 1, 1, 1, 1)], [(1, 2)])
    expected = {0.25: (3, 7), 0.5: (6.5, 7), 0.75: (10, -10)}[place]
    assert (out.item(), share.item()) == pytest.approx((expected[0], -expected[0]))
    assert slope.flatten()[0].item() == pytest.approx(-2 * expected[1])  # factor -1, 2 cells


@forms
def test_gradients_are_those_of_differences(form):
    inputs, shapes = random_inputs("small", torch.float64)

    def function(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return form(value, shapes, locations, weights)

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs], eps=1e-7)


@forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_only_the_result(form, dtype):
    inputs, shapes = random_inputs("odd")
    inputs[0] = inputs[0].to(dtype)
    expected = run(form, [x.float() for x in inputs], shapes)
    found = run(form, inputs, shapes)
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32, torch.float32]
    torch.testing.assert_close(found[0], expected[0].to(dtype))


def test_nothing_is_stored_but_the_inputs():
    stored = []

    def pack(x: Tensor) -> Tensor:
        stored.append(x.untyped_storage().data_ptr())
        return x

    (value, locations, weights), shapes = random_inputs("odd")
    leaves = [x.requires_grad_() for x in (value, locations, weights)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        by_rows(value, shapes, locations, weights)
    assert stored == [x.untyped_storage().data_ptr() for x in leaves]


def test_it_can_be_recomputed():
    inputs, shapes = random_inputs("small")

    def again(value, shapes, locations, weights):
        return checkpointed(by_rows, nn.Identity())(value, shapes, locations, weights)

    assert_same(run(again, inputs, shapes), run(by_rows, inputs, shapes), 0)


def test_nobody_is_warned_of_what_torch_has_in_beta():
    """torch warns once per process: this takes one of its own, with the file alone."""
    code = f"""
import runpy, torch, warnings
by_rows = runpy.run_path({ms_deform_attn_torch.__file__!r})["by_rows"]
warnings.simplefilter("error")
value, places = torch.rand(1, 4, 1, 1, requires_grad=True), torch.rand(1, 1, 1, 1, 1, 2)
by_rows(value, [(2, 2)], places, places[..., 0]).sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_inputs_keep_their_numbers():
    """One bag of one point is in the order of the computation already: no view of it is written."""
    for case in CASES:
        inputs, shapes = random_inputs(case)
        before = [x.clone() for x in inputs]
        run(by_rows, inputs, shapes)
        assert all(torch.equal(a, b) for a, b in zip(inputs, before))


def test_inputs_may_be_in_pieces(tiny_chunks):
    inputs, shapes = random_inputs("odd")
    expected = run(by_rows, inputs, shapes)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
    assert not turned[0].is_contiguous()
    assert_same(run(by_rows, turned, shapes), expected, 1e-6)


def test_not_a_number_goes_through_and_stays_with_its_query():
    (value, locations, weights), shapes = random_inputs("odd")
    expected = by_rows(value, shapes, locations, weights)
    locations[0, 2] = float("nan")
    locations[0, 3] = float("inf")
    locations[0, 4] = -1e30
    out = by_rows(value, shapes, locations, weights)
    assert out[0, 2].isnan().all() and out[0, 3:5].abs().max() == 0
    assert torch.equal(out[1], expected[1]) and torch.equal(out[0, 5:], expected[0, 5:])


@pytest.mark.parametrize("batch, queries", [(0, 3), (2, 0)])
def test_nobody_asks(batch, queries):
    value = torch.zeros(batch, 4, 2, 3, requires_grad=True)
    locations = torch.zeros(batch, queries, 2, 1, 2, 2, requires_grad=True)
    weights = torch.zeros(batch, queries, 2, 1, 2, requires_grad=True)
    out = by_rows(value, [(2, 2)], locations, weights)
    out.sum().backward()
    assert out.shape == (batch, queries, 6) and not value.grad.any()
