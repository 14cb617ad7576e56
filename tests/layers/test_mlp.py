import pytest
import torch
from torch import Tensor, nn

from vis_d2.layers import MLP


def erf_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


@pytest.mark.parametrize("name, function", [("relu", lambda x: x.clamp(min=0)), ("gelu", erf_gelu)])
def test_activation_stands_between_the_layers_and_not_after_the_last(name, function):
    torch.manual_seed(0)
    mlp = MLP(in_dim=3, hidden_dim=5, out_dim=4, num_layers=3, activation=name)
    x = 3 * torch.randn(2, 7, 3)
    expected = x
    for i, last in enumerate([False, False, True]):
        weights = mlp.state_dict()
        expected = expected @ weights[f"layers.{i}.weight"].T + weights[f"layers.{i}.bias"]
        expected = expected if last else function(expected)
    torch.testing.assert_close(mlp(x), expected, atol=1e-6, rtol=1e-6)
    assert (mlp(x) < -0.2).any()  # below what either activation can give


def test_parameters():
    mlp = MLP(in_dim=3, hidden_dim=5, out_dim=4, num_layers=3)
    assert {name: tuple(p.shape) for name, p in mlp.named_parameters()} == {
        "layers.0.weight": (5, 3), "layers.0.bias": (5,),
        "layers.1.weight": (5, 5), "layers.1.bias": (5,),
        "layers.2.weight": (4, 5), "layers.2.bias": (4,),
    }  # fmt: skip


def test_one_layer_is_linear():
    mlp = MLP(in_dim=3, hidden_dim=99, out_dim=4, num_layers=1)
    linear = nn.Linear(3, 4)
    linear.load_state_dict({k[len("layers.0.") :]: v for k, v in mlp.state_dict().items()})
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mlp(x), linear(x))


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"num_layers": 0}, "num_layers is 0, expected at least 1"),
        ({"activation": "selu"}, "activation is 'selu', expected one of relu, gelu"),
    ],
)
def test_bad_arguments(bad, message):
    arguments = {"in_dim": 3, "hidden_dim": 5, "out_dim": 4, "num_layers": 2, **bad}
    with pytest.raises(ValueError, match=message):
        MLP(**arguments)
