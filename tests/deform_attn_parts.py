"""Deformable attention as a plain loop, and inputs for it."""

import itertools
import math
from typing import List, Sequence, Tuple

import torch
from torch import Tensor

# Sizes that are neither powers of two nor alike; levels of one row, one column and one cell.
SHAPES = [(5, 3), (1, 4), (3, 1), (1, 1), (2, 6)]
CASES = {
    "odd": (2, 3, 5, 2, 7, SHAPES),  # B, M, c, P, Q and the levels
    "even": (1, 2, 8, 4, 4, [(4, 4), (2, 2)]),
    "small": (1, 2, 2, 2, 3, [(3, 2), (1, 2)]),
    "one of all": (1, 1, 1, 1, 1, [(2, 2)]),
}


def loop(
    value: Tensor, shapes: Sequence[Tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The equation, one corner of one point after the other."""
    batch, queries, heads, levels, points = weights.shape
    rows = []
    for b, q, m in itertools.product(range(batch), range(queries), range(heads)):
        total, start = torch.zeros_like(value[b, 0, m], dtype=weights.dtype), 0
        for i in range(levels):
            h, w = shapes[i]
            for p in range(points):
                x, y = locations[b, q, m, i, p].mul(torch.tensor([w, h])).sub(0.5).unbind()
                left, top = math.floor(x.item()), math.floor(y.item())
                for column, row in itertools.product((left, left + 1), (top, top + 1)):
                    if 0 <= column < w and 0 <= row < h:
                        share = (1 - abs(x - column)) * (1 - abs(y - row))
                        cell = value[b, start + row * w + column, m]
                        total = total + weights[b, q, m, i, p] * share * cell
            start += h * w
        rows.append(total)
    return torch.stack(rows).view(batch, queries, -1)  # (B * Q * M, c) -> (B, Q, M * c)


def random_inputs(case: str, dtype: torch.dtype = torch.float32) -> Tuple[List[Tensor], list]:
    """Value, locations (also outside, also far away) and weights, none of which is normalised."""
    batch, heads, channels, points, queries, shapes = CASES[case]
    generator = torch.Generator().manual_seed(0)
    cells = sum(h * w for h, w in shapes)
    value = torch.randn(batch, cells, heads, channels, generator=generator)
    sizes = (batch, queries, heads, len(shapes), points)
    locations = torch.rand(*sizes, 2, generator=generator) * 1.8 - 0.4
    locations[:, 1:2, 0] += 3
    weights = torch.randn(sizes, generator=generator)
    return [x.to(dtype) for x in (value, locations, weights)], shapes


def run(form, inputs: Sequence[Tensor], shapes: Sequence[Tuple[int, int]]) -> List[Tensor]:
    """Result and gradients by value, locations and weights."""
    value, locations, weights = (x.clone().requires_grad_() for x in inputs)
    out = form(value, shapes, locations, weights)
    factors = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
    leaves = (value, locations, weights)
    return [out.detach(), *torch.autograd.grad(out, leaves, factors.view(out.shape))]


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected):
        limit = tolerance * max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a.to(b), b, atol=limit, rtol=0)
