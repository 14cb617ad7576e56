"""Linear layers in a row."""

from typing import Callable

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MLP", "activation_function"]


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The element-wise function of that name: "relu" or "gelu" (exact, by the error function).

    Raises:
        ValueError: no such function.
    """
    functions = {"relu": F.relu, "gelu": F.gelu}
    if name not in functions:
        raise ValueError(f"activation is {name!r}, expected one of {', '.join(functions)}")
    return functions[name]


class MLP(nn.Module):
    """Linear layers with an activation between them, none after the last.

    The parameters are ``layers.{i}.weight`` and ``layers.{i}.bias``, as in DETR's checkpoints.

    Args:
        in_dim: channels of the input.
        hidden_dim: channels between the layers; without meaning when there is one layer only.
        out_dim: channels of the output.
        num_layers: linear layers, >= 1.
        activation: "relu" or "gelu".

    Raises:
        ValueError: no layers, or no such activation.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        num_layers: int,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}, expected at least 1")
        self.activation = activation_function(activation)
        widths = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(m, n) for m, n in zip(widths, widths[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) -> (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
