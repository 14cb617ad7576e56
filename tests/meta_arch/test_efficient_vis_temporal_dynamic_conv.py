"""Temporal dynamic convolution against its definition, written out as a loop."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vis_d2.meta_arch.efficient_vis.stage import BoxInteraction
from vis_d2.meta_arch.efficient_vis.temporal_dynamic_conv import TemporalDynamicConv

T, M, S, C, D = 5, 3, 4, 6, 2


def convolution(temporal: bool = True, temperature: float = 1.0) -> TemporalDynamicConv:
    torch.manual_seed(2)
    conv = TemporalDynamicConv(channels=C, hidden=D, temporal=temporal, temperature=temperature)
    for norm in (conv.norm1, conv.norm2):
        torch.nn.init.normal_(norm.weight, 1.0, 0.2)
        torch.nn.init.normal_(norm.bias, 0.3, 0.2)
    return conv


def inputs(length: int = T):
    return torch.randn(length, M, C), torch.randn(length, M, S, C)


def everywhere(length: int = T) -> Tensor:
    return torch.ones(length, M, dtype=torch.bool)


def defined(conv: TemporalDynamicConv, queries: Tensor, rois: Tensor, valid: Tensor) -> Tensor:
    """Eq. 3, one frame, one instance and one position after the other."""

    def convolve(x: Tensor, filters: Tensor) -> Tensor:
        first, second = filters[: C * D].view(C, D), filters[C * D :].view(D, C)
        return F.relu(conv.norm2(F.relu(conv.norm1(x @ first)) @ second))

    result = torch.zeros(*rois.shape)
    for t in range(len(rois)):
        for m in range(rois.shape[1]):
            filters = conv.dynamic_layer(queries[t, m])
            around = [u for u in (t - 1, t, t + 1) if u == t or 0 <= u < len(rois) and valid[u, m]]
            maps = {u: convolve(rois[u, m], filters) for u in around}
            for s in range(rois.shape[2]):
                vectors = [maps[u][s] for u in around]
                own = maps[t][s]
                cosines = [
                    torch.tensor(1.0) if u == t else own @ v / (own.norm() * v.norm()).clamp(1e-12)
                    for u, v in zip(around, vectors)
                ]
                shares = (torch.stack(cosines) / conv.temperature).softmax(0)
                result[t, m, s] = sum(share * v for share, v in zip(shares, vectors))
    return result


def with_gradients(function, conv, queries, rois, valid):
    """The result, and the gradients of everything it is made of."""
    leaves = [queries.clone().requires_grad_(), rois.clone().requires_grad_()]
    result = function(conv, *leaves, valid)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(3))
    grads = torch.autograd.grad((result * weights).sum(), leaves + list(conv.parameters()))
    return result, grads


HOLES = everywhere()
HOLES[1, 0] = HOLES[4, 0] = HOLES[0, 1] = HOLES[2, 2] = HOLES[3, 2] = False


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("valid", [everywhere(), HOLES], ids=["whole", "holes"])
def test_equals_the_loop_in_values_and_gradients(valid, temperature):
    conv, data = convolution(temperature=temperature), inputs()
    result, grads = with_gradients(TemporalDynamicConv.forward, conv, *data, valid)
    expected, expected_grads = with_gradients(defined, conv, *data, valid)
    assert torch.allclose(result, expected, atol=1e-5)
    assert len(grads) == 2 + 6
    for a, b in zip(grads, expected_grads):
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, float(b.abs().max())))


def test_the_filters_of_a_frame_run_over_the_neighbours():
    """The query of t convolves the RoIs of t - 1, t and t + 1, and nothing but the result of t."""
    conv, (queries, rois) = convolution(), inputs()
    other = queries.clone()
    other[1] += 1.0
    moved = (
        (conv(queries, rois, everywhere()) - conv(other, rois, everywhere())).abs().amax((1, 2, 3))
    )
    assert (moved > 1e-3).tolist() == [False, True, False, False, False]
    other = rois.clone()
    other[1] += torch.randn(M, S, C)
    moved = (conv(queries, rois, everywhere()) - conv(queries, other, everywhere())).abs()
    assert (moved.amax((1, 2, 3)) > 1e-3).tolist() == [True, True, True, False, False]


def test_instances_do_not_mix():
    conv, (queries, rois) = convolution(), inputs()
    others, other_rois = queries.clone(), rois.clone()
    others[:, 1], other_rois[:, 1] = 7.0, torch.randn(T, S, C)
    before, after = conv(queries, rois, everywhere()), conv(others, other_rois, everywhere())
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])


@pytest.mark.parametrize("temporal", [True, False])
def test_one_frame_is_the_convolution_of_an_image(temporal):
    conv, (queries, rois) = convolution(temporal), inputs(1)
    result = conv(queries, rois, everywhere(1))
    first, second = conv.dynamic_layer(queries[0]).split([C * D, D * C], dim=-1)
    x = F.relu(conv.norm1(torch.bmm(rois[0], first.view(M, C, D))))
    expected = F.relu(conv.norm2(torch.bmm(x, second.view(M, D, C))))
    assert torch.equal(result[0], expected)


def test_still_convolves_every_frame_by_itself():
    still, (queries, rois) = convolution(temporal=False), inputs()
    result = still(queries, rois, everywhere())
    for t in range(T):
        alone = still(queries[t : t + 1], rois[t : t + 1], everywhere(1))
        assert torch.allclose(result[t], alone[0], atol=1e-6)
    assert not torch.allclose(result, convolution()(queries, rois, everywhere()), atol=1e-2)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_equal_rois_give_the_still_result_also_at_the_edges(temperature):
    """The shares add up to one everywhere: nothing is padded and nothing counted twice."""
    queries, rois = inputs()
    rois = rois[:1].expand(T, -1, -1, -1)
    result = convolution(temperature=temperature)(queries, rois, HOLES)
    assert torch.allclose(result, convolution(False)(queries, rois, HOLES), atol=1e-6)


def test_the_neighbour_of_an_edge_or_of_a_hole_is_dropped():
    conv, (queries, rois) = convolution(), inputs()
    whole = conv(queries, rois, everywhere())
    # Frames 0 and 1 as a clip of two are the frames before a hole at 2.
    valid = everywhere()
    valid[2] = False
    holed = conv(queries, rois, valid)
    assert torch.allclose(holed[:2], conv(queries[:2], rois[:2], everywhere(2)), atol=1e-6)
    assert torch.allclose(holed[3:], conv(queries[3:], rois[3:], everywhere(2)), atol=1e-6)
    assert torch.equal(holed[0], whole[0]) and not torch.equal(holed[1], whole[1])
    garbage = rois.clone()
    garbage[2] = 1e4
    assert torch.equal(conv(queries, garbage, valid)[[0, 1, 3, 4]], holed[[0, 1, 3, 4]])


def shares(own, before, after, valid=None, temperature=1.0) -> Tensor:
    """(3, T) shares of own frame, before and after for vectors (T, C) of one place."""
    conv = convolution(temperature=temperature)
    vectors = [torch.as_tensor(x)[:, None, None] for x in (own, before, after)]
    length = len(vectors[0])
    valid = torch.ones(length, 1, dtype=torch.bool) if valid is None else valid
    return conv._weights(*vectors, valid)[:, :, 0, 0]


def test_the_share_of_the_own_frame_lies_between_two_bounds():
    z = torch.rand(3, 50, 8)  # after a ReLU: nothing below zero, so that cosines are in [0, 1]
    own = shares(*z)[0]
    assert (own[1:-1] >= 1 / 3).all() and (own[1:-1] <= math.e / (math.e + 2)).all()
    assert (own[[0, -1]] >= 0.5).all() and (own[[0, -1]] <= math.e / (math.e + 1)).all()
    same = torch.ones(3, 4)
    assert torch.allclose(shares(same, same, same)[0], torch.tensor([1 / 2, 1 / 3, 1 / 2]))
    x, y = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 2.0]] * 3)
    assert shares(x, y, y)[0].tolist() == pytest.approx([0.7311, 0.5761, 0.7311], abs=1e-4)


def test_missing_neighbours_have_no_share_and_the_rest_adds_up_to_one():
    valid = torch.tensor([[True], [False], [True], [True]])
    result = shares(*torch.rand(3, 4, 5), valid=valid)
    assert torch.allclose(result.sum(0), torch.ones(4))
    assert (result[1] == 0).tolist() == [True, False, True, False]
    assert (result[2] == 0).tolist() == [True, False, False, True]
    assert result[0, 0] == 1


def test_a_low_temperature_sharpens():
    x, y = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 2.0]] * 3)
    # e^(1 / 0.5) against twice e^0
    expected = math.exp(2) / (math.exp(2) + 2)
    assert shares(x, y, y, temperature=0.5)[0, 1].item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="TDC_TAU: expected a number above 0, found 0"):
        convolution(temperature=0)


def test_all_zero_vectors_are_no_problem():
    conv, (queries, rois) = convolution(), inputs()
    torch.nn.init.constant_(conv.norm2.bias, -100.0)
    result, grads = with_gradients(TemporalDynamicConv.forward, conv, queries, rois, HOLES)
    assert not result.any()
    assert all(torch.isfinite(g).all() for g in grads)
    zero = torch.zeros(3, 4)
    assert shares(zero, zero, zero)[0, 1].item() == pytest.approx(math.e / (math.e + 2), abs=1e-5)


def test_shares_have_full_precision_in_half_precision():
    z = torch.rand(3, 4, 16)
    exact, half = shares(*z), shares(*z.bfloat16())
    assert half.dtype == torch.float32
    assert torch.allclose(half.sum(0), torch.ones(4)) and torch.allclose(half, exact, atol=5e-3)
    conv, (queries, rois) = convolution(), inputs()
    with torch.autocast("cpu", torch.bfloat16):
        rough = conv(queries, rois, everywhere())
    assert torch.allclose(rough.float(), conv(queries, rois, everywhere()), atol=0.1)


def test_filters_are_laid_out_as_in_converted_weights():
    """First C * D outputs: (C, D) row by row; then (D, C)."""
    conv = convolution(temporal=False)
    torch.nn.init.zeros_(conv.dynamic_layer.weight)
    with torch.no_grad():
        conv.dynamic_layer.bias.copy_(torch.arange(2 * C * D).float() / 10)
    rois = torch.zeros(1, 1, 1, C)
    rois[..., 4] = 1.0  # picks row 4 of the first filter
    hidden = F.relu(conv.norm1(torch.tensor([4 * D + 0.0, 4 * D + 1.0]) / 10))
    second = (C * D + torch.arange(D * C).float().view(D, C)) / 10
    expected = F.relu(conv.norm2(hidden @ second))
    result = conv(torch.zeros(1, 1, C), rois, torch.ones(1, 1, dtype=torch.bool))
    assert torch.allclose(result.flatten(), expected, atol=1e-6)


def test_the_box_branch_flattens_position_by_position():
    torch.manual_seed(0)
    branch = BoxInteraction(pool_size=2, channels=C, hidden=D)
    queries, rois = inputs()
    maps = TemporalDynamicConv.forward(branch, queries, rois, everywhere())
    flat = torch.cat([maps[:, :, s] for s in range(S)], dim=-1)  # S times (T, M, C)
    expected = F.relu(branch.norm3(F.linear(flat, branch.out_layer.weight, branch.out_layer.bias)))
    result = branch(queries, rois, everywhere())
    assert result.shape == (T, M, C) and torch.allclose(result, expected, atol=1e-6)
