"""Sampling of deformable attention in PyTorch alone, in two forms with the same values.

``by_grid_sample`` runs on any device. It samples level after level, and a backward pass finds all
samples stored: 400 MB for one layer over five frames of 360 x 640.

``by_rows`` is for CPUs. A query's sum over levels, points and the four cells around each point is
one bag of ``embedding_bag``, whose table is the value as it lies in memory: each read is the c
numbers of one cell and head, one after the other. Weights and rows are worked out anew in
the backward pass, so nothing is stored but the inputs. ``projects/MS-STS/benchmark.py deform``
compares the forms.

Letters besides the house's: M heads, c channels of a head, L levels, P points per level, S cells of
all levels; n bags, one per query and head. Within ``by_rows`` c is a multiple of ``VECTOR``.
"""

import warnings
from functools import lru_cache
from typing import Any, Iterator, List, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["by_grid_sample", "by_rows"]

# Points that each thread works on at a time, so that their numbers stay in its cache; measured.
POINTS = 2**15
# Channels are filled up with zeros to a multiple of this, for the processor's vectors: 12 took half
# as long again as 16.
VECTOR = 16
Shapes = Sequence[Tuple[int, int]]


def by_grid_sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """See :func:`vis_d2.layers.ms_deform_attn`; on any device."""
    batch, _, heads, channels = value.shape
    count, points = locations.shape[1], locations.shape[4]
    dtype = _exact(value)
    grid = 2 * locations.to(dtype) - 1
    total = value.new_zeros((batch * heads, channels, count), dtype=dtype)
    for i, (shape, level) in enumerate(zip(shapes, value.split([h * w for h, w in shapes], 1))):
        # (B, h * w, M, c) -> (B * M, c, h, w)
        level = level.to(dtype).permute(0, 2, 3, 1).reshape(batch * heads, channels, *shape)
        # (B, Q, M, P, 2) -> (B * M, Q, P, 2); (B, Q, M, P) -> (B * M, 1, Q, P)
        places = grid[:, :, :, i].transpose(1, 2).flatten(0, 1)
        shares = weights[:, :, :, i].transpose(1, 2).reshape(batch * heads, 1, count, points)
        sampled = F.grid_sample(level, places, align_corners=False)  # (B * M, c, Q, P)
        total = total + (sampled * shares).sum(-1)
    # (B * M, c, Q) -> (B, M * c, Q) -> (B, Q, M * c)
    return total.view(batch, heads * channels, count).transpose(1, 2).to(value.dtype)


def by_rows(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """See :func:`vis_d2.layers.ms_deform_attn`; for CPUs, to be differentiated once."""
    return _ByRows.apply(value, locations, weights, [tuple(shape) for shape in shapes])


def _exact(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


class _Plan(NamedTuple):
    """What all chunks of a call share; L * P is one axis, as a level's points all lie in it.

    Attributes:
        sizes: (2, 1, L * P), w and h of the level.
        last: (2, 1, L * P), column and row of the last pair of neighbouring cells.
        sides: (2, 2, 1, L * P), where the first and the second cell of a pair lie, for x and y.
        first: (M, L * P) int32, the table's row of the level's first cell.
        steps: (4, L * P) int32, rows from a quadruple's first cell to each of its cells.
        shifts: per level (first cell, end, cells from a quadruple's first one to each).
    """

    sizes: Tensor
    last: Tensor
    sides: Tensor
    first: Tensor
    steps: Tensor
    shifts: List[Tuple[int, int, List[int]]]


def _plan(shapes: Shapes, heads: int, points: int, dtype: torch.dtype) -> _Plan:
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=dtype)
    # A level of one column has no second one: it lies where no point is near, and costs no step.
    second = torch.where(sizes > 1, 1.0, 1e30).to(dtype)
    shifts, start = [], 0
    for h, w in shapes:
        right, down = int(w > 1), w * int(h > 1)
        shifts.append((start, start + h * w, [0, right, down, down + right]))
        start += h * w
    starts = torch.tensor([start for start, _, _ in shifts], dtype=torch.int32)
    steps = torch.tensor([shift for _, _, shift in shifts], dtype=torch.int32)

    def spread(x: Tensor) -> Tensor:
        return x.repeat_interleave(points, 0).t().contiguous()  # (L, i) -> (i, L * P)

    return _Plan(
        sizes=spread(sizes)[:, None],
        last=spread((sizes - 2).clamp(min=0))[:, None],
        sides=torch.stack([torch.zeros_like(second), second])
        .transpose(1, 2)[:, :, None]
        # (2, 2, 1, L) -> (2, 2, 1, L * P)
        .repeat_interleave(points, -1),
        first=spread(starts[:, None]) * heads + torch.arange(heads, dtype=torch.int32)[:, None],
        steps=spread(steps) * heads,
        shifts=shifts,
    )


def _near(plan: _Plan, value: Tensor, locations: Tensor) -> Tuple[Tensor, Tensor]:
    """The four cells around each point.

    Args:
        plan: of the call.
        value: (b, S, M, c).
        locations: (n, L * P, 2), as many bags of each of the b frames.

    Returns:
        The row of the first cell, (n, L * P) int32, and (2, 2, n, L * P), how far the point lies
        behind the first and the second cell, along x and y.
    """
    batch, cells, heads = value.shape[:3]
    # (n, L * P, 2) -> (2, n, L * P), copied: what follows writes to it and runs over whole rows.
    at = locations.permute(2, 0, 1).clone(memory_format=torch.contiguous_format)
    at.mul_(plan.sizes).sub_(0.5)
    # The first cell stays inside with its neighbours. Not a number stays no row: fmin drops it.
    cell = torch.fmin(at.floor().clamp_(min=0), plan.last)
    far = at.sub_(cell) - plan.sides
    rows = torch.addcmul(cell[0], cell[1], plan.sizes[0]).int().mul_(heads)
    frames = torch.arange(batch, dtype=torch.int32) * (cells * heads)
    # (n, L * P) -> (b, q, M, L * P)
    rows.view(batch, -1, heads, rows.shape[1]).add_(plan.first + frames[:, None, None, None])
    return rows, far


def _hats(far: Tensor) -> Tensor:
    """Minus the bilinear weights along one axis: one at the cell, zero from its neighbours on.

    A point outside of the level is thereby weighted with what it has inside. The sign is saved:
    in the product of both axes it is gone.
    """
    return far.abs().sub_(1).clamp_(max=0)


def _shares(hats: Tensor, weights: Tensor, out: Tensor) -> None:
    """Bilinear weights of the four cells times the points' weights.

    Args:
        hats: (2, 2, n, L * P).
        weights: (n, L * P).
        out: (n, 4, L * P), of any strides, which is filled.
    """
    x, y = hats.unbind(1)
    y = y * weights
    for k in range(4):
        torch.mul(y[k // 2], x[k % 2], out=out[:, k])


def _parts(value: Tensor, weights: Tensor) -> Iterator[Tuple[slice, List[slice]]]:
    """Frames of value (B, S, M, c) and their bags of weights (B * Q * M, L * P).

    Either some frames with all their bags in one piece, or a frame with its bags in pieces.
    """
    batch, heads = value.shape[0], value.shape[2]
    bags = len(weights) // max(batch, 1)  # of a frame
    if not bags:
        return
    most = POINTS * torch.get_num_threads() // weights.shape[1]
    step = min(bags, max(heads, most // heads * heads))
    frames = max(1, most // bags)
    for i in range(0, batch, frames):
        stop = min(i + frames, batch)
        if frames > 1:
            yield slice(i, stop), [slice(i * bags, stop * bags)]
            continue
        starts = range(i * bags, stop * bags, step)
        yield slice(i, stop), [slice(j, min(j + step, stop * bags)) for j in starts]


def _products(table: Tensor, bags: Tensor, grad: Tensor) -> Tensor:
    """Rows of the table times the gradients of the bags that they are in.

    That is a matrix product of which only some entries are asked for. For this use it does not
    matter that rows are neither sorted nor unique within a bag, which is not checked.

    Args:
        table: (R, c).
        bags: (n, k) int32, rows.
        grad: (n, c).

    Returns:
        (n, k).
    """
    if bags.shape[1] > len(table):  # a sparse matrix has no more entries than a full one
        return (F.embedding(bags, table) * grad[:, None]).sum(-1)
    _use_sparse_tensors()
    ends = torch.arange(0, bags.numel() + 1, bags.shape[1], dtype=torch.int32)
    asked = torch.sparse_csr_tensor(
        ends,
        bags.flatten(),
        grad.new_zeros(bags.numel()),
        (len(bags), len(table)),
        check_invariants=False,
    )
    found = torch.sparse.sampled_addmm(asked, grad, table.t(), beta=0)
    return found.values().view(bags.shape)


@lru_cache(maxsize=None)
def _use_sparse_tensors() -> None:
    """Take the warning, once per process, that these tensors are in beta state."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nothing = torch.zeros(0, dtype=torch.int32)
        torch.sparse_csr_tensor(
            torch.zeros(2, dtype=torch.int32), nothing, nothing, (1, 1), check_invariants=False
        )


def _point_gradients(
    products: Tensor, far: Tensor, hats: Tensor, weights: Tensor
) -> Tuple[Tensor, Tensor]:
    """Gradients by the points' places in cells, (2, n, L * P), and by their weights, (n, L * P).

    ``products`` (n, 2, 2, L * P) are of the cells around the points, upper ones first, then left.
    """
    # Right-sided where a point lies on a cell: the cell itself and the next one count.
    slopes = torch.copysign(((far >= -1) & (far < 1)).to(far.dtype), far)
    (x0, y0), (x1, y1) = hats
    above, below = products.unbind(1)  # (n, x, L * P) each
    left = torch.addcmul(above[:, 0] * y0, below[:, 0], y1)
    right = torch.addcmul(above[:, 1] * y0, below[:, 1], y1)
    above = torch.addcmul(above[:, 0] * x0, above[:, 1], x1)
    below = torch.addcmul(below[:, 0] * x0, below[:, 1], x1)
    by_place = torch.empty_like(hats[0])
    torch.addcmul(left * slopes[0, 0], right, slopes[1, 0], out=by_place[0])
    torch.addcmul(above * slopes[0, 1], below, slopes[1, 1], out=by_place[1])
    return by_place.mul_(weights), torch.addcmul(above * y0, below, y1)


def _value_gradient(
    plan: _Plan, value: Tensor, rows: Tensor, shares: Tensor, grad: Tensor
) -> Tensor:
    """Sum of the bags' gradients over the points around each cell.

    The points are sorted by their first cell. Those of one cell are a bag, and the table is the
    gradients. No two threads write to one place, so the sum is the same in every run.

    Args:
        plan: of the call.
        value: (b, S, M, c).
        rows: (n, L * P), of all points of these frames.
        shares: (4, n, L * P).
        grad: (n, c).
    """
    points, rows = rows.shape[1], rows.flatten()
    order = rows.sort().indices
    held = torch.bincount(rows, minlength=value[..., 0].numel())
    starts = held.cumsum(0) - held
    bags = order.div(points, rounding_mode="floor")
    parts = []
    for share in shares.flatten(1):
        sorted_share = share.index_select(0, order)
        part = F.embedding_bag(bags, grad, starts, mode="sum", per_sample_weights=sorted_share)
        parts.append(part.view(value.shape))
    total = parts[0]
    for start, end, shifts in plan.shifts:
        for part, shift in zip(parts[1:], shifts[1:]):
            total[:, start + shift : end].add_(part[:, start : end - shift])
    return total


class _ByRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes
    ) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        batch, queries = weights.shape[:2]
        plan, table, locations, weights = _prepare(value, shapes, locations, weights)
        out = table.new_empty(len(weights), table.shape[-1])  # (B * Q * M, c)
        for frames, pieces in _parts(table, weights):
            for piece in pieces:
                rows, far = _near(plan, table[frames], locations[piece])
                shares = far.new_empty(len(rows), *plan.steps.shape)
                _shares(_hats(far), weights[piece], shares)
                out[piece] = F.embedding_bag(
                    # (n, 4, L * P) -> (n, 4 * L * P)
                    (rows[:, None] + plan.steps).flatten(1),
                    table[frames].flatten(0, 2),  # (b, S, M, c) -> (b * S * M, c)
                    mode="sum",
                    per_sample_weights=shares.flatten(1),
                )
        heads, channels = value.shape[2:]
        # (B * Q * M, c) -> (B, Q, M * c)
        out = out[:, :channels].reshape(batch, queries, heads * channels)
        return out.to(value.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Tensor, Tensor, Tensor, None]:
        saved = ctx.saved_tensors
        plan, table, locations, weights = _prepare(saved[0], ctx.shapes, *saved[1:])
        channels = saved[0].shape[-1]
        # (B, Q, M * c) -> (B * Q * M, c)
        grad = _filled(grad.to(table.dtype).reshape(len(weights), channels))
        by_value = torch.zeros_like(table)
        by_location, by_weight = torch.empty_like(locations), torch.empty_like(weights)
        for frames, pieces in _parts(table, weights):
            start, stop = pieces[0].start, pieces[-1].stop
            rows = torch.empty(stop - start, weights.shape[1], dtype=torch.int32)
            shares = weights.new_empty(4, *rows.shape)
            for piece in pieces:
                here = slice(piece.start - start, piece.stop - start)
                rows[here], far = _near(plan, table[frames], locations[piece])
                hats = _hats(far)
                _shares(hats, weights[piece], shares[:, here].transpose(0, 1))
                # (n, 4, L * P) -> (n, 4 * L * P)
                bags = (rows[here, None] + plan.steps).flatten(1)
                # (b, S, M, c) -> (b * S * M, c)
                products = _products(table[frames].flatten(0, 2), bags, grad[piece])
                places, by_weight[piece] = _point_gradients(
                    products.unflatten(1, (2, 2, -1)), far, hats, weights[piece]
                )
                # (2, n, L * P) -> (n, L * P, 2)
                by_location[piece] = places.mul_(plan.sizes).permute(1, 2, 0)
            some = grad[start:stop]
            by_value[frames] = _value_gradient(plan, table[frames], rows, shares, some)
        gradients = (by_value[..., :channels], by_location, by_weight)
        return (*(g.reshape(x.shape).to(x.dtype) for g, x in zip(gradients, saved)), None)


def _prepare(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Tuple[_Plan, Tensor, Tensor, Tensor]:
    """The plan, and in one dtype (B, S, M, c'), (B * Q * M, L * P, 2) and (B * Q * M, L * P)."""
    dtype = _exact(value)
    plan = _plan(shapes, value.shape[2], weights.shape[-1], dtype)
    value, locations, weights = (x.to(dtype).contiguous() for x in (value, locations, weights))
    bags = (weights.shape[:3].numel(), plan.steps.shape[1])
    return plan, _filled(value), locations.view(*bags, 2), weights.view(bags)


def _filled(x: Tensor) -> Tensor:
    """(..., c) -> (..., c') with zeros at the end."""
    return F.pad(x, (0, -x.shape[-1] % VECTOR)) if x.shape[-1] % VECTOR else x
