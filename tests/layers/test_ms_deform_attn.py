"""The function by hand and against a plain loop, which form it takes, and the module around it."""

import logging
import math
import sys
import types

import pytest
import torch
from deform_attn_parts import assert_same, loop, random_inputs, run
from torch import nn

from vis_d2.layers import MSDeformAttn, ms_deform_attn
from vis_d2.layers import ms_deform_attn_torch as forms
from vis_d2.tools.benchmark import count_flops

# The package's name for it is the function's.
module = sys.modules["vis_d2.layers.ms_deform_attn"]
KERNELS = "vis_d2.layers.ms_deform_attn_triton"
SHAPES = [(4, 6), (2, 3)]
CELLS = 30


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def attention():
    torch.manual_seed(0)
    attention = MSDeformAttn(channels=8, num_levels=2, num_heads=2, num_points=3)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.3)
    return attention


@pytest.fixture
def choices():
    """Forgets what was found out before and after a test."""
    for function in (module._kernels, module._warn):
        function.cache_clear()
    yield
    for function in (module._kernels, module._warn):
        function.cache_clear()


# The function.


def test_the_equation():
    inputs, shapes = random_inputs("odd")
    assert_same(run(ms_deform_attn, inputs, shapes), run(loop, inputs, shapes), 1e-5)


@pytest.mark.parametrize(
    "place, expected",
    [
        ((0.5, 0.5), 2.5),  # between all four
        ((0.25, 0.75), 3.0),  # on the third
        ((0.0, 0.0), 0.25),  # a corner of the level: a quarter of the first cell
        ((0.5, 1.0), 1.75),  # the lower edge: half of the mean of the lower two
        ((1.5, 0.5), 0.0),  # outside
    ],
)
def test_places_are_shares_of_the_level(place, expected):
    """One level of two by two cells, and a second one that is not looked at."""
    value = torch.tensor([1.0, 2.0, 3.0, 4.0, 100.0]).view(1, 5, 1, 1)
    locations = torch.tensor([place, (0.5, 0.5)]).view(1, 1, 1, 2, 1, 2)
    weights = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2, 1)
    out = ms_deform_attn(value, [(2, 2), (1, 1)], locations, weights)
    assert out.item() == pytest.approx(expected)


def test_heads_stand_side_by_side():
    value = torch.arange(6.0).view(1, 1, 3, 2)
    locations, weights = torch.full((1, 1, 3, 1, 1, 2), 0.5), torch.ones(1, 1, 3, 1, 1)
    out = ms_deform_attn(value, [(1, 1)], locations, weights)
    assert out.tolist() == [[[0, 1, 2, 3, 4, 5]]]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"shapes": [(4, 6), (3, 2), (1, 1)]},
            r"value is \(2, 30, 2, 4\), expected \(B, 31, M, c\)",
        ),
        ({"shapes": [(-4, -6), (2, 3)]}, r"levels \[\(-4, -6\), \(2, 3\)\]"),
        ({"value": torch.zeros(2, 30, 8)}, r"value is \(2, 30, 8\), expected \(B, 30, M, c\)"),
        ({"weights": torch.zeros(2, 5, 2, 1, 3)}, r"weights \(2, 5, 2, 1, 3\), expected .* L = 2"),
        ({"locations": torch.zeros(2, 5, 2, 2, 3, 3)}, r"locations are \(2, 5, 2, 2, 3, 3\)"),
        ({"weights": torch.zeros(6, 5)}, r"weights \(6, 5\), expected .* B = 2, M = 2"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    arguments = {
        "value": torch.zeros(2, CELLS, 2, 4),
        "shapes": SHAPES,
        "locations": torch.zeros(2, 5, 2, 2, 3, 2),
        "weights": torch.zeros(2, 5, 2, 2, 3),
    }
    assert ms_deform_attn(**arguments).shape == (2, 5, 8)
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(**{**arguments, **change})


# Which form it takes. There is no GPU here: the CPU plays its part.


def kernels_module(form):
    fake = types.ModuleType(KERNELS)
    fake.by_kernels = form
    return fake


def find(dtype=torch.float32, points=3):
    return module._kernels(torch.device("cpu"), dtype, 4, 2, 2, points)


class OnCuda:
    """What the choice looks at."""

    is_cuda, device, dtype, shape = True, torch.device("cpu"), torch.float32, (1, CELLS, 2, 4)


def test_kernels_that_pass_a_trial_are_taken_on_cuda(monkeypatch, choices, caplog):
    calls = []

    def form(*args):
        calls.append(args)
        return forms.by_rows(*args)

    monkeypatch.setitem(sys.modules, KERNELS, kernels_module(form))
    random = torch.get_rng_state()
    with torch.inference_mode():  # nothing keeps the trial from its backward pass
        assert find() is form and find() is form
    assert len(calls) == 1 and not caplog.records
    value, shapes, locations, weights = calls[0]
    assert value.shape[2:] == (2, 4) and len(shapes) == 2 and weights.shape[2:] == (2, 2, 3)
    assert find(points=1) is form and find(torch.bfloat16) is form and len(calls) == 3
    assert calls[2][0].dtype == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), random)
    assert find(torch.float64) is None and len(calls) == 3 and not caplog.records
    assert module._choose(OnCuda, torch.zeros(1, 1, 2, 2, 3)) is form and len(calls) == 3


def breaks(*args):
    raise RuntimeError("no compiler\nin a long trace")


def wrong_value(*args):
    return 1.5 * forms.by_rows(*args)


def wrong_gradient(value, shapes, locations, weights):
    return forms.by_rows(value, shapes, locations.detach() + 0 * locations, weights)


@pytest.mark.parametrize(
    "kernels, reason",
    [
        (None, "ModuleNotFoundError: import of vis_d2.layers.ms_deform_attn_triton halted"),
        (kernels_module(breaks), "RuntimeError: no compiler)"),
        (kernels_module(wrong_value), "ArithmeticError: the result differs, value)"),
        (kernels_module(wrong_gradient), "ArithmeticError: the result differs, by location)"),
    ],
    ids=["import", "compiler", "value", "gradient"],
)
def test_otherwise_grid_sample_and_one_line_in_the_log(
    monkeypatch, choices, caplog, kernels, reason
):
    monkeypatch.setitem(sys.modules, KERNELS, kernels)  # None: the import fails
    with caplog.at_level(logging.WARNING):
        assert find() is None and find() is None and find(points=4) is None
        assert module._choose(OnCuda, torch.zeros(1, 1, 2, 2, 3)) is forms.by_grid_sample
    (record,) = caplog.records
    assert record.name == "vis_d2.layers.ms_deform_attn"
    assert "uses grid_sample" in record.getMessage() and reason in record.getMessage()


def test_a_full_gpu_is_no_reason(monkeypatch, choices):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setitem(sys.modules, KERNELS, kernels_module(full))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        find()


def test_a_cpu_gathers_rows_and_others_sample_a_grid():
    weights = torch.zeros(1, 1, 2, 2, 3)
    assert module._choose(torch.zeros(1, CELLS, 2, 4), weights) is forms.by_rows
    on_meta = torch.zeros(1, CELLS, 2, 4, device="meta")
    assert module._choose(on_meta, weights) is forms.by_grid_sample


def test_operations_can_be_counted(attention):
    class Model(nn.Module):
        def __init__(self, levels):
            super().__init__()
            self.attention, self.levels = attention, levels

        def forward(self, inputs):
            query = inputs[0]["image"].flatten().view(1, CELLS, 8)
            reference = torch.full((1, CELLS, 2, 2), 0.5)
            return self.attention(query, reference, query, SHAPES)

    work = count_flops(Model(2), randn(3, 8, 10))
    products = CELLS * (8 * 8 + 8 * 24 + 8 * 12 + 8 * 8)
    samples = 4 * CELLS * 8 * 2 * 3  # four cells, L levels, P points
    assert work == products + samples


# The module.


def test_parameters_are_those_of_the_compiled_operators_module():
    shapes = {k: tuple(v.shape) for k, v in MSDeformAttn().state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (256, 256),  # 8 heads, 4 levels, 4 points, x and y
        "sampling_offsets.bias": (256,),
        "attention_weights.weight": (128, 256),
        "attention_weights.bias": (128,),
        "value_proj.weight": (256, 256),
        "value_proj.bias": (256,),
        "output_proj.weight": (256, 256),
        "output_proj.bias": (256,),
    }


def test_the_beginning():
    """Eight ways of the compass, each point a cell farther, all with the same weight."""
    torch.manual_seed(0)
    attention = MSDeformAttn()
    assert not attention.sampling_offsets.weight.any()
    assert not any(p.any() for p in attention.attention_weights.parameters())
    offsets = attention.sampling_offsets.bias.view(8, 4, 4, 2)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, way in enumerate(compass):
        for point in range(4):
            expected = torch.tensor(way) * (point + 1.0)
            torch.testing.assert_close(offsets[head, :, point], expected.expand(4, 2))
    for linear in (attention.value_proj, attention.output_proj):
        bound = math.sqrt(6 / 512)  # Xavier
        assert 0.9 * bound < linear.weight.abs().max() <= bound and not linear.bias.any()
    assert all(p.requires_grad for p in attention.parameters())


def plain_module(attention, query, places, value, weights):
    """With the loop: ``places`` are (B, Q, M, L, P, 2)."""
    projected = nn.functional.linear(value, *attention.value_proj.parameters())
    sampled = loop(projected.view(*value.shape[:2], 2, 4), SHAPES, places, weights)
    return sampled, nn.functional.linear(sampled, *attention.output_proj.parameters())


def softmax_weights(attention, query):
    logits = query @ attention.attention_weights.weight.T + attention.attention_weights.bias
    return logits.view(*query.shape[:2], 2, 6).softmax(-1).view(*query.shape[:2], 2, 2, 3)


@pytest.mark.parametrize("numbers", [2, 4])
def test_offsets_count_cells_or_shares_of_half_a_box(attention, numbers):
    query, value = randn(2, 3, 8), randn(2, CELLS, 8, seed=1)
    reference = torch.rand(2, 3, 2, numbers, generator=torch.Generator().manual_seed(2))
    offsets = query @ attention.sampling_offsets.weight.T + attention.sampling_offsets.bias
    offsets = offsets.view(2, 3, 2, 2, 3, 2)
    places = torch.empty_like(offsets)
    for level, (h, w) in enumerate(SHAPES):
        for i, cells in enumerate((w, h)):
            unit = 1 / cells if numbers == 2 else reference[:, :, level, 2 + i, None, None] / 2 / 3
            at = reference[:, :, level, i, None, None]
            places[:, :, :, level, :, i] = at + offsets[:, :, :, level, :, i] * unit
    weights = softmax_weights(attention, query)
    sampled, expected = plain_module(attention, query, places, value, weights)
    torch.testing.assert_close(attention.sample(query, reference, value, SHAPES), sampled)
    torch.testing.assert_close(attention(query, reference, value, SHAPES), expected)


def test_padding_counts_as_zeros_behind_the_projection(attention):
    query, value = randn(1, 3, 8), randn(1, CELLS, 8, seed=1)
    reference = torch.full((1, 3, 2, 2), 0.5)
    padding = torch.ones(1, CELLS, dtype=torch.bool)
    padding[0, 14] = False  # third row, third column of the first level
    out = attention.sample(query, reference, value, SHAPES, padding)
    alone = torch.zeros(1, CELLS, 8)
    alone[0, 14] = nn.functional.linear(value[0, 14], *attention.value_proj.parameters())
    with torch.no_grad():
        attention.value_proj.weight.copy_(torch.eye(8))
        attention.value_proj.bias.zero_()
    torch.testing.assert_close(out, attention.sample(query, reference, alone, SHAPES))
    assert out.abs().max() > 0.01
    padding[0, 14] = True
    assert not attention.sample(query, reference, value, SHAPES, padding).any()


@pytest.mark.parametrize("half", ["autocast", "half"])
def test_places_are_exact_in_half_precision(attention, monkeypatch, half):
    """At column 700 of 1000, bfloat16 tells only every fourth column from the next."""
    seen = []

    def watched(value, shapes, locations, weights):
        seen.append((value.dtype, locations))
        return ms_deform_attn(value, shapes, locations, weights)

    monkeypatch.setattr(module, "ms_deform_attn", watched)
    attention = MSDeformAttn(channels=8, num_levels=1, num_heads=2, num_points=3)
    with torch.no_grad():
        attention.sampling_offsets.bias.add_(0.003)
    query, value = randn(1, 2, 8), randn(1, 1000, 8)
    reference = torch.full((1, 2, 1, 2), 0.7005)
    if half == "half":
        attention, query, value = attention.bfloat16(), query.bfloat16(), value.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        out = attention.sample(query, reference, value, [(1, 1000)])
    ((dtype, locations),) = seen
    assert dtype == out.dtype == torch.bfloat16 and locations.dtype == torch.float32
    steps = locations[0, 0, 0, 0, :, 0] * 1000 - 700.5
    expected = torch.tensor([1.0, 2, 3]) + (0.003 if half == "autocast" else 0)
    torch.testing.assert_close(steps, expected, atol=1e-3, rtol=0)


def test_everything_learns(attention):
    query, reference = randn(2, 3, 8), torch.rand(2, 3, 2, 4)
    attention(query, reference, randn(2, CELLS, 8), SHAPES).square().sum().backward()
    assert all(p.grad.abs().max() > 1e-6 for p in attention.parameters())


def test_bad_arguments(attention):
    with pytest.raises(ValueError, match="10 channels cannot be divided among 4 heads"):
        MSDeformAttn(channels=10, num_heads=4)
    query, value = randn(1, 3, 8), randn(1, CELLS, 8)
    with pytest.raises(ValueError, match="references have 3 numbers, expected 2 or 4"):
        attention(query, torch.rand(1, 3, 2, 3), value, SHAPES)
    with pytest.raises(ValueError, match="value is .1, 30, 2, 4., expected .B, 27, M, c."):
        attention(query, torch.rand(1, 3, 2, 2), value, [(4, 6), (1, 3)])
