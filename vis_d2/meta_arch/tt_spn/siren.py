"""Sinusoidal layers and the class and box heads made of them."""

from math import sqrt
from typing import List

import torch
from torch import Tensor, nn

__all__ = ["SinusoidalHead", "SirenLayer"]


class SirenLayer(nn.Linear):
    """sin(w0 (W x + b)), the weights drawn for sines of sines.

    W and b are uniform in +-sqrt(6 / in_dim) / w0: the rule for a layer behind another one, whose
    inputs are features and not coordinates. Source: "Implicit Neural Representations with Periodic
    Activation Functions" (2020).

    Args:
        in_dim: input channels.
        out_dim: output channels.
        w0: frequency, > 0.
    """

    def __init__(self, in_dim: int, out_dim: int, w0: float = 1.0) -> None:
        super().__init__(in_dim, out_dim)
        self.w0 = w0
        bound = sqrt(6 / in_dim) / w0
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim) in [-1, 1]."""
        return torch.sin(self.w0 * super().forward(x))


class SinusoidalHead(nn.Module):
    """Sinusoidal layers, then two linear ones with GELU between them.

    Widths are halved from layer to layer: with two sinusoidal layers in_dim -> hidden -> hidden / 2
    -> hidden / 4 -> out_dim.

    Args:
        in_dim: C.
        hidden: width of the first layer.
        out_dim: logits or coordinates that come out.
        num_siren: sinusoidal layers.
        dropout: after each of these.
        w0: their frequency.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        hidden: int,
        out_dim: int,
        num_siren: int,
        dropout: float = 0.0,
        w0: float = 1.0,
    ) -> None:
        super().__init__()
        layers: List[nn.Module] = []
        width = in_dim
        for i in range(num_siren):
            layers += [SirenLayer(width, hidden >> i, w0), nn.Dropout(dropout)]
            width = hidden >> i
        layers += [nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, out_dim)]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) to (..., out_dim)."""
        return self.net(x)
