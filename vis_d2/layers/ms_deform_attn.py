"""Multi-scale deformable attention: every query averages a few points of each level.

Source: "Deformable DETR: Deformable Transformers for End-to-End Object Detection". Parameters are
named and values are those of its compiled operator, which is not needed.

Letters besides the house's: M heads, c = C / M channels of a head, L levels, P points per level, S
cells of all levels, which follow one another row by row.
"""

import logging
import math
from functools import lru_cache
from typing import Callable, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from .ms_deform_attn_torch import by_grid_sample, by_rows

__all__ = ["MSDeformAttn", "ms_deform_attn"]

logger = logging.getLogger(__name__)
Shapes = Sequence[Tuple[int, int]]
Form = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]


def ms_deform_attn(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Bilinear samples of the levels, weighted and summed over levels and points.

    On a CPU and on CUDA (there with Triton) this stores nothing but its inputs for the backward
    pass; see :mod:`.ms_deform_attn_torch` and :mod:`.ms_deform_attn_triton`. Where Triton cannot
    be used, ``grid_sample`` takes its place, and the log says so once. Sums are made in float32
    (of float64 in float64), whatever the dtype of the value. It can be differentiated once. The
    gradient of the value is the same in every run on a CPU, not on CUDA.

    Args:
        value: (B, S, M, c).
        shapes: (h, w) of each level, S cells together.
        locations: (B, Q, M, L, P, 2), (x, y) as shares of the level: (0, 0) is the upper left
            corner of its first cell, (1, 1) the lower right one of its last. Zeros lie outside.
        weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * c), of the value's dtype.

    Raises:
        ValueError: the shapes do not fit together.
    """
    _check(value, shapes, locations, weights)
    return _choose(value, weights)(value, shapes, locations, weights)


def _check(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    cells = sum(h * w for h, w in shapes)
    if value.dim() != 4 or value.shape[1] != cells or not all(h > 0 < w for h, w in shapes):
        raise ValueError(
            f"value is {tuple(value.shape)}, expected (B, {cells}, M, c) for levels {list(shapes)}"
        )
    expected = (value.shape[0], weights.shape[1], value.shape[2], len(shapes), weights.shape[-1])
    if weights.shape != expected or locations.shape != (*expected, 2):
        raise ValueError(
            f"locations are {tuple(locations.shape)} and weights {tuple(weights.shape)}, expected"
            f" (B, Q, M, L, P, 2) and (B, Q, M, L, P) with B = {expected[0]}, M = {expected[2]},"
            f" L = {expected[3]}"
        )


def _choose(value: Tensor, weights: Tensor) -> Form:
    if value.is_cuda:
        sizes = (value.shape[-1], *weights.shape[2:])
        return _kernels(value.device, value.dtype, *sizes) or by_grid_sample
    # What counts operations in a trace knows grid_sample.
    return by_grid_sample if value.device.type != "cpu" or torch.jit.is_tracing() else by_rows


@lru_cache(maxsize=None)
def _kernels(
    device: torch.device, dtype: torch.dtype, channels: int, heads: int, levels: int, points: int
) -> Optional[Form]:
    """The Triton kernels if they pass a trial with these sizes, else None and a line in the log.

    The trial compiles both kernels and compares with ``by_grid_sample``, so that neither a missing
    compiler nor a wrong result shows only in a backward pass.
    """
    if dtype == torch.float64:
        return None  # the kernels sum in float32
    try:
        from .ms_deform_attn_triton import by_kernels

        _try(by_kernels, device, dtype, (channels, heads, levels, points))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # whatever import, compiler and driver can raise
        _warn(f"{type(error).__name__}: {error}".splitlines()[0])
        return None
    return by_kernels


@lru_cache(maxsize=None)
def _warn(reason: str) -> None:
    logger.warning("deformable attention uses grid_sample, its Triton kernels fail (%s)", reason)


def _try(
    form: Form, device: torch.device, dtype: torch.dtype, sizes: Tuple[int, int, int, int]
) -> None:
    """Run a form forward and backward on a few numbers.

    Raises:
        ArithmeticError: it differs from ``by_grid_sample``.
    """
    channels, heads, levels, points = sizes
    shapes = [(2, 3)] * levels
    found = []
    with torch.inference_mode(False), torch.enable_grad():
        for run in (form, by_grid_sample):
            # Not random, which would shift the random numbers of the training.
            value, locations, weights = (
                torch.linspace(-0.2, 1.2, math.prod(shape), device=device).view(shape)
                for shape in (
                    (1, 6 * levels, heads, channels),
                    (1, 2, heads, levels, points, 2),
                    (1, 2, heads, levels, points),
                )
            )
            inputs = [x.requires_grad_() for x in (value.to(dtype), locations, weights)]
            out = run(inputs[0], shapes, *inputs[1:])
            grads = torch.autograd.grad(out.float().sin().sum(), inputs)
            found.append([x.detach().float() for x in (out, *grads)])
    for kind, a, b in zip(("value", "by value", "by location", "by weight"), *found):
        if not torch.allclose(a, b, rtol=0.05, atol=0.02 * float(b.abs().max())):
            raise ArithmeticError(f"the result differs, {kind}")


class MSDeformAttn(nn.Module):
    """Deformable attention with its projections.

    Args:
        channels: C, of queries, values and output.
        num_levels: L.
        num_heads: M, a divisor of C.
        num_points: P, per level and head.

    Raises:
        ValueError: the channels cannot be divided among the heads.
    """

    def __init__(
        self, *, channels: int = 256, num_levels: int = 4, num_heads: int = 8, num_points: int = 4
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be divided among {num_heads} heads")
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        points = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(channels, 2 * points)
        self.attention_weights = nn.Linear(channels, points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self._init_parameters()

    @torch.no_grad()
    def _init_parameters(self) -> None:
        for linear in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        # Each head looks its own way (with eight: the compass), point i as far as i + 1 cells.
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ways = torch.stack([angles.cos(), angles.sin()], -1)
        ways = ways / ways.abs().amax(-1, keepdim=True)
        far = torch.arange(1.0, self.num_points + 1)
        # (M, 1, 1, 2) * (P, 1) -> (M, L, P, 2)
        offsets = (ways[:, None, None] * far[:, None]).expand(-1, self.num_levels, -1, -1)
        self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        shapes: Shapes,
        padding: Optional[Tensor] = None,
    ) -> Tensor:
        """What each query finds around its reference.

        Args:
            query: (B, Q, C), with its position added.
            reference: (B, Q, L, 2) points (x, y) or (B, Q, L, 4) boxes (cx, cy, w, h), shares of
                the levels with their padding. Offsets count cells from a point, and shares of half
                a box, divided by P, from a box.
            value: (B, S, C).
            shapes: (h, w) of each level, S cells together.
            padding: (B, S) bool, True = counts as zeros.

        Returns:
            (B, Q, C).

        Raises:
            ValueError: the shapes do not fit together.
        """
        return self.output_proj(self.sample(query, reference, value, shapes, padding))

    def sample(
        self,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        shapes: Shapes,
        padding: Optional[Tensor] = None,
    ) -> Tensor:
        """``forward`` without the projection of its output."""
        value = self.value_proj(value)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))  # (B, S, C) -> (B, S, M, c)
        grid = (self.num_heads, self.num_levels, self.num_points)
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        # (B, Q, M, L * P) -> (B, Q, M, L, P)
        weights = weights.unflatten(-1, grid[1:])
        # Half precision has eight bits for a place in a row of a hundred cells.
        with torch.autocast(query.device.type, enabled=False):
            offsets = self.sampling_offsets(query.to(self.sampling_offsets.weight.dtype))
            offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
            # (B, Q, M * L * P * 2) -> (B, Q, M, L, P, 2)
            offsets = offsets.unflatten(-1, (*grid, 2))
            locations = self._locate(offsets, reference.to(offsets.dtype), shapes)
        return ms_deform_attn(value, shapes, locations, weights)

    def _locate(self, offsets: Tensor, reference: Tensor, shapes: Shapes) -> Tensor:
        # (B, Q, L, 2 or 4) -> (B, Q, 1, L, 1, 2 or 4)
        reference = reference[:, :, None, :, None]
        if reference.shape[-1] == 4:
            scale = reference[..., 2:] * (0.5 / self.num_points)
        elif reference.shape[-1] == 2:
            sizes = torch.tensor([(w, h) for h, w in shapes], dtype=offsets.dtype)
            # Without waiting: a GPU may still be busy with what came before.
            scale = 1 / sizes.to(offsets.device, non_blocking=True)[:, None]
        else:
            raise ValueError(f"references have {reference.shape[-1]} numbers, expected 2 or 4")
        return torch.addcmul(reference[..., :2], offsets, scale)
