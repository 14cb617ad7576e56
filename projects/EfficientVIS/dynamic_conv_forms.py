"""Temporal dynamic convolution in other forms, for comparison: same arguments, same values.

All take a ``TemporalDynamicConv`` for its weights and (T, M, C) queries, (T, M, S, C) RoIs and
(T, M) valid frames, as its ``forward`` does.
"""

from typing import Callable, Dict

import torch
from torch import Tensor
from torch.nn import functional as F

from vis_d2.meta_arch.efficient_vis.temporal_dynamic_conv import COSINE_EPS, TemporalDynamicConv

Convolution = Callable[[TemporalDynamicConv, Tensor, Tensor, Tensor], Tensor]


def room(conv: TemporalDynamicConv, queries: Tensor, rois: Tensor, valid: Tensor) -> Tensor:
    """The module as the model uses it."""
    return conv(queries, rois, valid)


def loop(conv: TemporalDynamicConv, queries: Tensor, rois: Tensor, valid: Tensor) -> Tensor:
    """The equation, one frame of one instance after the other."""
    return _loop(conv, lambda t, i: conv.dynamic_layer(queries[t, i]), rois, valid)


def loop_of_filters(
    conv: TemporalDynamicConv, queries: Tensor, rois: Tensor, valid: Tensor
) -> Tensor:
    """The loop again, but with the filters of all frames and instances made in one product."""
    made = [row.unbind(0) for row in conv.dynamic_layer(queries).unbind(0)]
    return _loop(conv, lambda t, i: made[t][i], rois, valid)


def _loop(
    conv: TemporalDynamicConv, filters: Callable[[int, int], Tensor], rois: Tensor, valid: Tensor
) -> Tensor:
    # Unbound: indexing would write a gradient of the size of all RoIs for each of them.
    cut = [row.unbind(0) for row in rois.unbind(0)]  # T x M x (S, C)
    length, count = valid.shape
    rows = []
    for t in range(length):
        for i in range(count):
            first, second = filters(t, i).chunk(2)
            first = first.view(conv.channels, conv.hidden)
            second = second.view(conv.hidden, conv.channels)
            results = []
            for u in (t, t - 1, t + 1):
                if u == t or (0 <= u < length and valid[u, i]):
                    x = F.relu(conv.norm1(cut[u][i] @ first))
                    results.append(F.relu(conv.norm2(x @ second)))
            cosines = [torch.ones_like(results[0][:, 0])]
            cosines += [
                F.cosine_similarity(results[0], z, dim=-1, eps=COSINE_EPS) for z in results[1:]
            ]
            shares = (torch.stack(cosines) / conv.temperature).softmax(dim=0)
            rows.append((shares[..., None] * torch.stack(results)).sum(dim=0))
    return torch.stack(rows).view(rois.shape)


def stacked(conv: TemporalDynamicConv, queries: Tensor, rois: Tensor, valid: Tensor) -> Tensor:
    """All at once, with the RoIs of t, t - 1 and t + 1 side by side."""
    length, count, positions, channels = rois.shape
    nothing, nobody = torch.zeros_like(rois[:1]), torch.zeros_like(valid[:1])
    before, after = torch.cat([nothing, rois[:-1]]), torch.cat([rois[1:], nothing])
    window = torch.stack([rois, before, after], dim=2)  # (T, M, 3, S, C)
    there = torch.stack(
        [torch.ones_like(valid), torch.cat([nobody, valid[:-1]]), torch.cat([valid[1:], nobody])], 2
    )
    first, second = conv.dynamic_layer(queries).chunk(2, dim=-1)
    # (T, M, 3, S, C) -> (T * M, 3 * S, C)
    x = window.view(length * count, 3 * positions, channels)
    x = F.relu(conv.norm1(x @ first.unflatten(-1, (channels, conv.hidden)).flatten(0, 1)))
    x = F.relu(conv.norm2(x @ second.unflatten(-1, (conv.hidden, channels)).flatten(0, 1)))
    z = x.view(window.shape)
    own = z[:, :, :1]
    cosines = F.cosine_similarity(own.expand_as(z[:, :, 1:]), z[:, :, 1:], dim=-1, eps=COSINE_EPS)
    cosines = torch.cat([torch.ones_like(cosines[:, :, :1]), cosines], dim=2)
    cosines = cosines.masked_fill(~there[..., None], float("-inf"))
    shares = (cosines / conv.temperature).softmax(dim=2)
    return (shares[..., None] * z).sum(dim=2)


FORMS: Dict[str, Convolution] = {
    "room": room,
    "loop": loop,
    "loop, filters at once": loop_of_filters,
    "stacked": stacked,
}
