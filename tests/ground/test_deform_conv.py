"""Deformable convolution of detectron2 trains on a CPU."""

from typing import Tuple

import pytest
import torch
from detectron2 import _C
from detectron2.layers import DeformConv, ModulatedDeformConv
from torch import Tensor
from torchvision.ops import deform_conv2d

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "DEFORM_CONV_ON_CPU"), reason="a compiled detectron2 has no CPU operator"
)

# stride, padding, dilation, groups, offset groups
GEOMETRIES = [(1, 1, 1, 1, 1), (2, 2, 2, 1, 2), (1, 0, 1, 2, 1)]


def inputs(geometry: Tuple[int, ...], dtype: torch.dtype) -> Tuple[Tensor, Tensor, Tensor]:
    """An input (2, 4, 6, 7) and offsets and masks of the output's size."""
    stride, padding, dilation, _, offset_groups = geometry
    h, w = [(n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in (6, 7)]
    x = torch.randn(2, 4, 6, 7, dtype=dtype)
    offset = 1.3 * torch.randn(2, offset_groups * 18, h, w, dtype=dtype)
    mask = torch.rand(2, offset_groups * 9, h, w, dtype=dtype)
    return x, offset, mask


def layer(kind: type, geometry: Tuple[int, ...], **options: bool) -> torch.nn.Module:
    stride, padding, dilation, groups, offset_groups = geometry
    return kind(
        4, 4, 3, stride, padding, dilation, groups=groups, deformable_groups=offset_groups,
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_same_numbers_as_torchvision(geometry: Tuple[int, ...]) -> None:
    x, offset, mask = inputs(geometry, torch.float32)
    plain, modulated = layer(DeformConv, geometry), layer(ModulatedDeformConv, geometry, bias=True)
    torch.nn.init.normal_(modulated.bias)
    torch.testing.assert_close(
        plain(x, offset),
        deform_conv2d(x, offset, plain.weight, None, *geometry[:3]),
        rtol=1e-5,
        atol=1e-5,
    )
    torch.testing.assert_close(
        modulated(x, offset, mask),
        deform_conv2d(x, offset, modulated.weight, modulated.bias, *geometry[:3], mask),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("kind, bias", [(DeformConv, False), (ModulatedDeformConv, True)])
def test_gradients(kind: type, bias: bool, geometry: Tuple[int, ...]) -> None:
    module = layer(kind, geometry, bias=bias).double()
    *tensors, mask = inputs(geometry, torch.float64)
    tensors += [mask] if kind is ModulatedDeformConv else []
    parameters = dict(module.named_parameters())

    def run(*values: Tensor) -> Tensor:
        given = dict(zip(parameters, values))
        return torch.func.functional_call(module, given, values[len(parameters) :])

    leaves = [value.detach().requires_grad_() for value in (*parameters.values(), *tensors)]
    # Fast mode compares random projections of the Jacobian instead of all of its entries.
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_a_step_of_training_lowers_the_loss() -> None:
    geometry = GEOMETRIES[0]
    x, offset, _ = inputs(geometry, torch.float32)
    module = layer(DeformConv, geometry)
    target = torch.randn_like(module(x, offset))
    losses = []
    for _ in range(2):
        loss = (module(x, offset) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            module.weight -= 0.1 * module.weight.grad
    assert losses[1] < losses[0]


def test_other_compiled_operators_fail_when_called_and_say_so() -> None:
    with pytest.raises(NotImplementedError, match="box_iou_rotated.*built from its sources"):
        _C.box_iou_rotated(torch.zeros(1, 5), torch.zeros(1, 5))
