"""Parts of MS-STS VIS in their plain form, for comparison: same weights, same values."""

from contextlib import contextmanager
from typing import Any, Iterator, List, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_d2.meta_arch.ms_sts import MSSTS
from vis_d2.meta_arch.ms_sts.detector import ClipStates
from vis_d2.meta_arch.ms_sts.split_attention import SplitAttention
from vis_d2.modeling import Match, Outputs
from vis_d2.tools._plain_forms import attend_with_matrix, attention_with_matrices

Shapes = Sequence[Tuple[int, int]]


@contextmanager
def matrices(module: nn.Module) -> Iterator[nn.Module]:
    """Attention with matrices, over all cells at once, within the ``with`` block."""
    splits = [m for m in module.modules() if isinstance(m, SplitAttention)]
    cells = [split.cells for split in splits]
    for split in splits:
        split.cells = 0
    try:
        with attention_with_matrices():
            yield module
    finally:
        for split, count in zip(splits, cells):
            split.cells = count


def split_attention(module: SplitAttention, x: Tensor, shapes: Shapes) -> Tensor:
    """``SplitAttention.forward`` as it is written down, with the default switches, no padding.

    Both scales of a pair ask, 2 T queries, and the coarse one's answers are thrown away. The gate
    is applied to the result.

    Raises:
        ValueError: a switch has another value.
    """
    blocks = (*module.intra, *module.inter)
    if len(blocks) != 2 or module.inter[0].merge is not None or module.temporal_pe:
        raise ValueError(
            "MODEL.MS_STS.SPLIT_ATTN: the plain form needs USE_INTRA, USE_INTER, SHARE_SCALES, "
            "INTER_CONCAT 'token' and no TEMPORAL_PE"
        )
    areas = [h * w for h, w in shapes]
    # (B, T, S, d) -> (B, T, s, d) -> (B, s, T, d) -> (B * s, T, d) of each scale
    raw = [z.transpose(1, 2).flatten(0, 1) for z in module.reduce(x).split(areas, dim=2)]
    intra, inter = module.intra[0], module.inter[0]
    levels = []
    for u in raw:
        a = intra.norm(u + attend_with_matrix(intra.attn, u, u, u))
        levels.append(a + intra.ffn(a))
    out = []
    for i, level in enumerate(levels):
        fine = inter.align(level)
        coarse = inter.align(raw[i] if i + 1 == len(levels) else levels[i + 1])
        if i + 1 < len(levels):
            coarse = _enlarged(coarse, len(x), shapes[i + 1], shapes[i])
        tokens = torch.cat([fine, coarse], dim=1)  # (B * s, 2 T, d)
        n = inter.norm1(tokens)
        found = tokens + inter.dropout(attend_with_matrix(inter.attn, n, n, n))
        found = found[:, : fine.shape[1]]
        found = found + inter.ffn(inter.norm2(found))
        # (B * s, T, d) -> (B, s, T, d) -> (B, T, s, d)
        out.append(found.unflatten(0, (len(x), -1)).transpose(1, 2))
    return module.gate * module.expand(torch.cat(out, dim=2))


def _enlarged(x: Tensor, batch: int, size: Tuple[int, int], target: Tuple[int, int]) -> Tensor:
    length, dim = x.shape[1:]
    # (B * h * w, T, d) -> (B, h, w, T, d) -> (B, T, d, h, w) -> (B * T, d, h, w)
    maps = x.view(batch, *size, length, dim).permute(0, 3, 4, 1, 2).flatten(0, 1)
    maps = F.interpolate(maps, size=target, mode="bilinear", align_corners=False)
    # (B * T, d, h, w) -> (B, T, d, h * w) -> (B, h * w, T, d) -> (B * h * w, T, d)
    return maps.view(batch, length, dim, -1).permute(0, 3, 1, 2).flatten(0, 1)


def every_mask(
    model: MSSTS, features: Tensor, outputs: Outputs, layers: Sequence[Outputs]
) -> Tensor:
    """Masks (N, T, H / 4, W / 4) of all queries of each of ``layers``, the last of which stay.

    Args:
        model: whose mask branch is used.
        features: of the mask branch, of one clip.
        outputs: what the model completes a layer's outputs with.
        layers: of the decoder.
    """
    queries = torch.arange(layers[-1]["states"].shape[1], device=features.device)
    masks = features.new_empty(0)
    for layer in layers:
        outputs = {**outputs, **layer}
        masks = MSSTS._matched_masks(model, features, outputs, [(queries, queries)])
    return masks


@contextmanager
def all_masks(model: MSSTS, every_layer: bool = True) -> Iterator[MSSTS]:
    """The model with masks of all queries, of every decoder layer or of the last one.

    The masks that were asked for are picked from the last layer's.
    """
    seen: List[ClipStates] = []

    def masks(features: Tensor, outputs: Outputs, matches: List[Match]) -> Tensor:
        layers = seen.pop().layers
        found = every_mask(model, features, outputs, layers if every_layer else layers[-1:])
        return found[matches[0][0]]

    def remember(module: nn.Module, inputs: Any, states: ClipStates) -> None:
        seen.append(states)

    handle = model.detector.register_forward_hook(remember)
    model._matched_masks = masks
    try:
        yield model
    finally:
        del model._matched_masks  # the class's is seen again
        handle.remove()


def per_level(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``ms_deform_attn`` level by level: all samples first, then weights and sum."""
    batch, _, heads, channels = value.shape
    _, queries, _, levels, points, _ = locations.shape
    samples = []
    for i, (part, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], dim=1), shapes)):
        # (B, h * w, M, c) -> (B, M, c, h * w) -> (B * M, c, h, w)
        maps = part.permute(0, 2, 3, 1).reshape(batch * heads, channels, h, w)
        # (B, Q, M, P, 2) -> (B, M, Q, P, 2) -> (B * M, Q, P, 2)
        grid = 2 * locations[:, :, :, i].transpose(1, 2).flatten(0, 1) - 1
        samples.append(F.grid_sample(maps, grid, align_corners=False))  # (B * M, c, Q, P)
    # L x (B * M, c, Q, P) -> (B * M, c, Q, L, P) -> (B * M, c, Q, L * P)
    stacked = torch.stack(samples, dim=-2).flatten(-2)
    # (B, Q, M, L, P) -> (B, M, Q, L, P) -> (B * M, 1, Q, L * P)
    shares = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    # (B * M, c, Q) -> (B, M * c, Q) -> (B, Q, M * c)
    return (stacked * shares).sum(-1).view(batch, heads * channels, queries).transpose(1, 2)
