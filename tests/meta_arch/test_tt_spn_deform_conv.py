"""The deformable convolution has torchvision's numbers, in both of its forms."""

import pytest
import torch
from torchvision.ops import deform_conv2d

from vis_d2.meta_arch.tt_spn import deform_conv
from vis_d2.meta_arch.tt_spn.deform_conv import DeformConv


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 6), (9, 2)])
def test_same_values_and_gradients_as_torchvision(size, monkeypatch):
    monkeypatch.setattr(deform_conv, "CHUNK_PIXELS", 2 * size[0] * size[1])  # of 3: two chunks
    layer = DeformConv(6, 4).double()
    x = torch.randn(3, 6, *size, dtype=torch.float64, requires_grad=True)
    offset = (1.7 * torch.randn(3, 18, *size, dtype=torch.float64)).requires_grad_()
    found = layer(x, offset)
    expected = deform_conv2d(x, offset, layer.weight, padding=1)
    assert torch.allclose(found, expected, atol=1e-10)
    leaves, weight = (x, offset, layer.weight), torch.randn_like(found)
    for mine, theirs in zip(
        torch.autograd.grad(found, leaves, weight), torch.autograd.grad(expected, leaves, weight)
    ):
        assert torch.allclose(mine, theirs, atol=1e-9)


def test_without_offsets_it_is_a_convolution():
    layer, x = DeformConv(6, 4), torch.randn(2, 6, 5, 7)
    expected = torch.nn.functional.conv2d(x, layer.weight, padding=1)
    assert torch.allclose(layer(x, torch.zeros(2, 18, 5, 7)), expected, atol=1e-5)
    assert list(layer.state_dict()) == ["weight"]
