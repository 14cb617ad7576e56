"""Sampling of deformable attention as two Triton kernels, for CUDA.

A program takes ``BLOCK_N`` bags (one per query and head) with all their channels. The forward
kernel adds up the four cells around each point. The backward kernel reads them again: a cell times
the bag's gradient tells the gradients of the point's place and weight, which no other program
writes; the gradient of the value is added atomically. Values may be in half precision, all sums
are in float32. Only imported where it is used: triton does not exist everywhere.

Letters: see :mod:`.ms_deform_attn_torch`.
"""

from typing import Any, Sequence, Tuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["by_kernels"]

BLOCK = 1024  # bags times channels of a program
Shapes = Sequence[Tuple[int, int]]


def by_kernels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """See :func:`vis_d2.layers.ms_deform_attn`; for CUDA and up to 32 bits."""
    return _ByKernels.apply(value, locations, weights, [tuple(shape) for shape in shapes])


@triton.jit
def _point(
    locations: tl.tensor, weights: tl.tensor, at: tl.tensor, there: tl.tensor, h: int, w: int
) -> tl.tensor:
    """Places (x, y) in cells and weights of one point of each bag; zeros where no bag is there."""
    x = tl.load(locations + 2 * at, mask=there, other=0.0).to(tl.float32) * w - 0.5
    y = tl.load(locations + 2 * at + 1, mask=there, other=0.0).to(tl.float32) * h - 0.5
    share = tl.load(weights + at, mask=there, other=0.0).to(tl.float32)
    return x, y, share


@triton.jit
def _cell(
    x: tl.tensor, y: tl.tensor, h: int, w: int, right: tl.constexpr, down: tl.constexpr
) -> tl.tensor:
    """One of the four cells around each point: its number in the level, how near it is, if any."""
    column = tl.floor(x) + right
    row = tl.floor(y) + down
    near_x = 1.0 - tl.abs(x - column)
    near_y = 1.0 - tl.abs(y - row)
    inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
    return row.to(tl.int32) * w + column.to(tl.int32), near_x, near_y, inside


@triton.jit
def _forward(
    value: tl.tensor,
    levels: tl.tensor,
    locations: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    bags: int,
    bags_per_frame: int,
    cells: int,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    # 64 bits: a long clip has more than 2 ** 31 numbers.
    bag = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)[None, :]
    there = bag < bags
    # Where the bag's head lies in the first cell of its frame.
    first = (bag // bags_per_frame * cells * HEADS + bag % HEADS) * CHANNELS
    total = tl.zeros((BLOCK_N, BLOCK_C), dtype=tl.float32)
    for level in range(LEVELS):
        h = tl.load(levels + 3 * level)
        w = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            at = (bag * LEVELS + level) * POINTS + point
            x, y, share = _point(locations, weights, at, there, h, w)
            for k in tl.static_range(4):
                cell, near_x, near_y, inside = _cell(x, y, h, w, k % 2, k // 2)
                place = first + (start + cell).to(tl.int64) * (HEADS * CHANNELS)
                used = (inside & there)[:, None] & (c < CHANNELS)
                read = tl.load(value + place[:, None] + c, mask=used, other=0.0).to(tl.float32)
                total += (share * near_x * near_y)[:, None] * read
    used = there[:, None] & (c < CHANNELS)
    tl.store(out + bag[:, None] * CHANNELS + c, total.to(out.dtype.element_ty), mask=used)


@triton.jit
def _backward(
    value: tl.tensor,
    levels: tl.tensor,
    locations: tl.tensor,
    weights: tl.tensor,
    grad: tl.tensor,
    by_value: tl.tensor,
    by_location: tl.tensor,
    by_weight: tl.tensor,
    bags: int,
    bags_per_frame: int,
    cells: int,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    bag = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)[None, :]
    there = bag < bags
    first = (bag // bags_per_frame * cells * HEADS + bag % HEADS) * CHANNELS
    used = there[:, None] & (c < CHANNELS)
    g = tl.load(grad + bag[:, None] * CHANNELS + c, mask=used, other=0.0).to(tl.float32)
    for level in range(LEVELS):
        h = tl.load(levels + 3 * level)
        w = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        for point in range(POINTS):
            at = (bag * LEVELS + level) * POINTS + point
            x, y, share = _point(locations, weights, at, there, h, w)
            by_x = tl.zeros((BLOCK_N,), dtype=tl.float32)
            by_y = tl.zeros((BLOCK_N,), dtype=tl.float32)
            by_share = tl.zeros((BLOCK_N,), dtype=tl.float32)
            for k in tl.static_range(4):
                cell, near_x, near_y, inside = _cell(x, y, h, w, k % 2, k // 2)
                place = first + (start + cell).to(tl.int64) * (HEADS * CHANNELS)
                used = (inside & there)[:, None] & (c < CHANNELS)
                read = tl.load(value + place[:, None] + c, mask=used, other=0.0).to(tl.float32)
                dot = tl.sum(read * g, axis=1)
                by_share += dot * near_x * near_y
                # The left and the upper cells get farther where the point moves right and down.
                by_x += dot * near_y * (2 * (k % 2) - 1)
                by_y += dot * near_x * (2 * (k // 2) - 1)
                part = (share * near_x * near_y)[:, None] * g
                tl.atomic_add(by_value + place[:, None] + c, part, mask=used, sem="relaxed")
            tl.store(by_location + 2 * at, by_x * share * w, mask=there)
            tl.store(by_location + 2 * at + 1, by_y * share * h, mask=there)
            tl.store(by_weight + at, by_share, mask=there)


def _launch(kernel: Any, value: Tensor, shapes: Shapes, others: Sequence[Tensor]) -> None:
    """Run a kernel on value (B, S, M, c), the levels and ``others``, of them weights the second."""
    frames, cells, heads, channels = value.shape
    _, queries, _, levels, points = others[1].shape
    bags = frames * queries * heads
    if not bags:
        return
    rows, start = [], 0
    for h, w in shapes:
        rows.append((h, w, start))
        start += h * w
    # Without waiting: the GPU may still be busy with what came before.
    table = torch.tensor(rows, dtype=torch.int32).to(value.device, non_blocking=True)
    block_c = triton.next_power_of_2(channels)
    block_n = max(1, BLOCK // block_c)
    sizes = {"HEADS": heads, "CHANNELS": channels, "LEVELS": levels, "POINTS": points}
    with torch.cuda.device_of(value):
        kernel[(triton.cdiv(bags, block_n),)](
            value,
            table,
            *others,
            bags,
            queries * heads,
            cells,
            **sizes,
            BLOCK_N=block_n,
            BLOCK_C=block_c,
        )


class _ByKernels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes
    ) -> Tensor:
        value, locations, weights = (x.contiguous() for x in (value, locations, weights))
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        out = value.new_empty(*weights.shape[:3], value.shape[-1])  # (B, Q, M, c)
        _launch(_forward, value, shapes, [locations, weights, out])
        return out.flatten(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:
        saved = ctx.saved_tensors
        by_value = torch.zeros_like(saved[0], dtype=torch.float32)
        by_points = [torch.empty_like(x, dtype=torch.float32) for x in saved[1:]]
        others = [*saved[1:], grad.contiguous(), by_value, *by_points]
        _launch(_backward, saved[0], ctx.shapes, others)
        return (*(g.to(x.dtype) for g, x in zip((by_value, *by_points), saved)), None)
