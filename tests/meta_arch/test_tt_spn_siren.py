"""Sinusoidal layers and heads: range, initialisation, layout."""

import math

import pytest
import torch
from torch import nn

from vis_d2.meta_arch.tt_spn.siren import SinusoidalHead, SirenLayer


def test_a_layer_is_a_sine_of_a_linear_layer():
    layer = SirenLayer(2, 1, w0=3.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, -1.0]]))
        layer.bias.fill_(0.25)
    # sin(3 * (0.5 * 1 - 1 * 0.5 + 0.25))
    assert layer(torch.tensor([1.0, 0.5])).item() == pytest.approx(math.sin(0.75))


@pytest.mark.parametrize("fan_in, bound", [(384, 0.125), (128, 0.216506)])
def test_weights_and_biases_fill_the_bound_of_their_fan_in(fan_in, bound):
    layer = SirenLayer(fan_in, 400)
    for values in (layer.weight, layer.bias):
        assert 0.95 * bound < values.abs().max().item() <= bound + 1e-6
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)  # uniform
    out = layer(5 * torch.randn(50, fan_in))
    assert -1 <= out.min() < -0.9 and 0.9 < out.max() <= 1


def test_a_higher_frequency_starts_with_smaller_weights():
    slow, fast = SirenLayer(6, 500), SirenLayer(6, 500, w0=30.0)
    assert fast.weight.abs().max() <= 1 / 30 < 0.5 < slow.weight.abs().max()


@pytest.mark.parametrize(
    "num_siren, out_dim, kinds, widths, count",
    [
        (1, 42, "S-LGL", [384, 128, 64, 42], 60266),
        (2, 4, "S-S-LGL", [384, 128, 64, 32, 4], 59748),
    ],
)
def test_layers_of_a_head(num_siren, out_dim, kinds, widths, count):
    head = SinusoidalHead(in_dim=384, hidden=128, out_dim=out_dim, num_siren=num_siren, dropout=0.2)
    letters = {SirenLayer: "S", nn.Dropout: "-", nn.Linear: "L", nn.GELU: "G"}
    assert "".join(letters[type(m)] for m in head.net) == kinds
    linear = [m for m in head.net if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linear] + [linear[-1].out_features] == widths
    assert sum(p.numel() for p in head.parameters()) == count
    assert all(m.p == 0.2 for m in head.net if isinstance(m, nn.Dropout))
    assert head(torch.randn(3, 2, 384)).shape == (3, 2, out_dim)
