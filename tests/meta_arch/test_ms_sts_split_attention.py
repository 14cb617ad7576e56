"""Split attention: against a loop over cells, its symmetries, its reach, its switches."""

import pytest
import torch
from ms_sts_parts import C, levels_of, small_split
from room_parts import stored_bytes
from torch.nn import functional as F

from vis_d2.meta_arch.ms_sts import split_attention
from vis_d2.meta_arch.ms_sts.split_attention import BlockSwitches, SplitAttention

SHAPES = [(8, 6), (4, 3), (2, 2), (1, 1)]
AREAS = [h * w for h, w in SHAPES]
CELLS = sum(AREAS)
BOTH = BlockSwitches()


def clip(length: int = 3, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, CELLS, C)


def attend(module, query, key, value):
    """Softmax attention head by head: query (Q, d), key and value (L, d)."""
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    q, k, v = [x @ w.T + b for x, w, b in zip((query, key, value), weights, biases)]
    heads = [
        (a @ b.T / a.shape[1] ** 0.5).softmax(-1) @ c
        for a, b, c in zip(*(x.chunk(module.num_heads, dim=1) for x in (q, k, v)))
    ]
    return module.out_proj(torch.cat(heads, dim=1))


def plain(module, x, blocks=BOTH):
    """One clip (T, S, C), cell after cell, all 2 T queries of the attention across scales."""

    def of(parts, i):
        return parts[i % len(parts)]

    length = len(x)
    raw = module.reduce(x).split(AREAS, dim=1)
    coded = [u.clone() for u in raw]
    if blocks.intra:
        for i, level in enumerate(coded):
            block = of(module.intra, i)
            for s in range(level.shape[1]):
                u = raw[i][:, s]
                a = block.norm(u + attend(block.attn, u, u, u))
                level[:, s] = a + block.ffn(a)
    result = [y.clone() for y in coded]
    for i in range(len(coded) if blocks.inter else 0):
        block = of(module.inter, i)
        fine = block.align(coded[i])
        if i + 1 < len(coded):
            coarse = block.align(coded[i + 1]).transpose(1, 2).unflatten(2, SHAPES[i + 1])
            coarse = F.interpolate(coarse, size=SHAPES[i], mode="bilinear", align_corners=False)
            coarse = coarse.flatten(2).transpose(1, 2)
        else:
            coarse = block.align(raw[i])
        for s in range(fine.shape[1]):
            tokens = torch.cat([fine[:, s], coarse[:, s]])
            if blocks.concat == "channel":
                tokens = block.merge(torch.cat([fine[:, s], coarse[:, s]], dim=1))
            n = block.norm1(tokens)
            tokens = tokens + attend(block.attn, n, n, n)
            result[i][:, s] = (tokens + block.ffn(block.norm2(tokens)))[:length]
    return module.gate * module.expand(torch.cat(result, dim=1))


@pytest.mark.parametrize(
    "blocks",
    [
        BOTH,
        BlockSwitches(intra=False),
        BlockSwitches(inter=False),
        BlockSwitches(concat="channel"),
    ],
    ids=["both", "inter", "intra", "channel"],
)
@pytest.mark.parametrize("share_scales", [True, False])
@torch.no_grad()
def test_it_is_what_a_loop_over_cells_says(blocks, share_scales):
    module = small_split(blocks=blocks, share_scales=share_scales)
    x = clip(batch=2)
    found = module(x, SHAPES)
    expected = torch.stack([plain(module, part, blocks) for part in x])
    assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_frames_have_no_order():
    module, x, order = small_split(), clip(4), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(module(x[:, order], SHAPES), module(x, SHAPES)[:, order], atol=1e-6)
    # An encoding of the frames' numbers gives them one.
    module = small_split(temporal_pe=True)
    assert not torch.allclose(module(x[:, order], SHAPES), module(x, SHAPES)[:, order], atol=1e-3)


def changed_cells(module, place, frame=1):
    """Cells per level, (T, h, w) bool, that see a change of one cell in one frame."""
    x = clip()
    other = x.clone()
    other[0, frame, place] += torch.randn(C)
    moved = ((module(other, SHAPES) - module(x, SHAPES)).abs() > 1e-6).any(-1)[0]
    return [m.unflatten(1, shape) for m, shape in zip(moved.split(AREAS, dim=1), SHAPES)]


@torch.no_grad()
def test_a_cell_is_seen_at_its_place_in_all_frames_and_one_scale_finer():
    module = small_split()
    # Cell (2, 1) of the finest scale: only there.
    fine, *coarser = changed_cells(module, 2 * 6 + 1)
    assert fine[:, 2, 1].all() and fine.sum() == 3
    assert not any(level.any() for level in coarser)
    # Cell (1, 2) of the second scale, 4 x 3: there, and in the cells of the first whose middle is
    # less than a cell of the second away from its own: rows 1 to 4, columns 3 to 5.
    fine, middle, *coarser = changed_cells(module, AREAS[0] + 1 * 3 + 2)
    assert middle[:, 1, 2].all() and middle.sum() == 3
    assert fine[:, 1:5, 3:].all() and fine.sum() == 3 * 4 * 3
    assert not any(level.any() for level in coarser)
    # The coarsest scale: there and in the third, but no further.
    *rest, third, last = changed_cells(module, CELLS - 1)
    assert last.all() and third.all() and not any(level.any() for level in rest)


@torch.no_grad()
def test_without_one_attention_a_cell_is_seen_less():
    fine, *_ = changed_cells(small_split(blocks=BlockSwitches(inter=False)), AREAS[0] + 5)
    assert not fine.any()
    fine, middle, *_ = changed_cells(small_split(blocks=BlockSwitches(intra=False)), AREAS[0] + 5)
    assert fine.any() and middle.sum() == 3


@torch.no_grad()
def test_the_coarsest_scale_meets_its_own_input():
    """With T = 1 attention within a scale is a projection, and both meet in the second one."""
    module, x = small_split(), clip(1)
    out = module(x, SHAPES)
    assert torch.allclose(out[0], plain(module, x[0]), atol=1e-5)
    block = module.inter[0]
    u = module.reduce(x[0, :, -1])
    a = module.intra[0].norm(u + attend(module.intra[0].attn, u, u, u))
    f, c = block.align(a + module.intra[0].ffn(a)), block.align(u)
    n = block.norm1(torch.cat([f, c]))
    y = f + attend(block.attn, n[:1], n, n)
    y = y + block.ffn(block.norm2(y))
    assert torch.allclose(out[0, :, -1], module.gate * module.expand(y), atol=1e-5)


@torch.no_grad()
def test_padding_is_zero_and_nobody_sees_it():
    """Not even where a coarser scale is resized; the frame is as if its map ended there."""
    module = small_split()
    levels = levels_of((64, 128), [(40, 64)])
    inside = levels.valid[0]
    x = torch.randn(1, 2, len(inside), C)
    out = module(x, levels.shapes, levels.valid)
    other = x.clone()
    other[:, :, ~inside] = float("inf")
    again = module(other, levels.shapes, levels.valid)
    assert torch.equal(out[:, :, inside], again[:, :, inside])
    assert not out[:, :, ~inside].any() and not again[:, :, ~inside].any()
    levels = levels_of((64, 128), [(64, 64)])
    inside = levels.valid[0]
    out = module(x, levels.shapes, levels.valid)
    alone = module(x[:, :, inside], [(8, 8), (4, 4), (2, 2), (1, 1)])
    assert torch.allclose(out[:, :, inside], alone, atol=1e-6)


def test_a_gate_of_zero_says_nothing_and_can_open():
    module = SplitAttention(channels=C, dim=8, num_heads=2)
    out = module(clip(), SHAPES)
    assert not out.any()
    (out * torch.randn_like(out)).sum().backward()
    assert module.gate.grad.abs().min() > 0
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("chunk", [0, 2, 3, 50, 10**6])
@torch.no_grad()
def test_chunks_change_nothing(chunk):
    x = clip(batch=2)
    torch.manual_seed(1)
    expected = small_split()(x, SHAPES)
    torch.manual_seed(1)
    assert torch.allclose(small_split(chunk=chunk)(x, SHAPES), expected, atol=1e-6)


def test_no_attention_gets_more_sequences_than_a_chunk(monkeypatch):
    seen = []
    original = F.scaled_dot_product_attention

    def watched(query, key, value, **kwargs):
        seen.append((query.shape[0] * query.shape[1], query.shape[2], key.shape[2]))
        return original(query, key, value, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    small_split(chunk=41)(clip(batch=2), SHAPES)
    assert max(n for n, _, _ in seen) == 40  # 20 cells of 2 heads
    # Within a scale 3 frames look at 3, across scales at 6; all cells of both clips come by.
    for keys in (3, 6):
        assert sum(n for n, q, k in seen if (q, k) == (3, keys)) == 2 * 2 * CELLS


def test_recomputing_stores_less_and_gives_the_same_gradients():
    x = clip(4).requires_grad_()
    results = []
    for recompute in (False, True):
        torch.manual_seed(1)
        module = small_split(recompute=recompute, dropout=0.3).train()
        torch.manual_seed(2)
        out = module(x, SHAPES)
        (out**2).sum().backward()
        grads = [p.grad for p in module.parameters()] + [x.grad]
        results.append((out, grads, stored_bytes(lambda y: [module(y, SHAPES)], x)))  # noqa: B023
        x.grad = None
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(results[0][1], results[1][1]))
    assert results[1][2] < results[0][2] / 5


def test_what_is_stored_does_not_hold_the_gated_clip():
    """The gate's input has C channels, as the clip; it is never stored, the input once."""
    x = torch.randn(1, 2, CELLS, 4 * C, requires_grad=True)
    module = SplitAttention(channels=4 * C, dim=2, num_heads=1, ffn_ratio=1)
    size = x.numel() * 4
    assert stored_bytes(lambda y: [module(y, SHAPES)], x) < 1.7 * size


def test_the_size_of_the_real_module():
    def count(**kwargs):
        return sum(p.numel() for p in SplitAttention(**kwargs).parameters())

    # 256 -> 64, attention, norm and 64 -> 128 -> 64; 64 -> 64, attention, two norms and 64 -> 128
    # -> 64; 64 -> 256 and the gates
    intra = 4 * (64 * 64 + 64) + 128 + (64 * 128 + 128) + (128 * 64 + 64)
    inter = intra + (64 * 64 + 64) + 128
    ends = (256 * 64 + 64) + (64 * 256 + 256) + 256
    assert count() == intra + inter + ends == 104320
    assert count(share_scales=False) == 4 * (intra + inter) + ends
    assert count(blocks=BlockSwitches(inter=False)) == intra + ends
    assert count(blocks=BlockSwitches(intra=False)) == inter + ends
    assert count(blocks=BlockSwitches(concat="channel")) == 104320 + 128 * 64 + 64
    # of the whole model with the decoder's attention over frames: 50.51, 50.81, 52.07 M
    others = 48404173 + 6 * 263680
    assert round((others + 6 * count(ffn_ratio=1)) / 1e4) == 5051
    assert round((others + 6 * count(ffn_ratio=4)) / 1e4) == 5081
    assert round((others + 6 * count(dim=128)) / 1e4) == 5207


@torch.no_grad()
def test_dropout_is_where_it_should_be():
    """In feed-forward networks and on the attention across scales, not on its weights."""
    module, x = small_split(dropout=0.5).train(), clip()
    assert not torch.equal(module(x, SHAPES), module(x, SHAPES))
    within = small_split(dropout=0.5, blocks=BlockSwitches(inter=False)).train()
    within.intra[0].ffn[2].eval()
    assert torch.equal(within(x, SHAPES), within(x, SHAPES))
    module.intra[0].ffn[2].eval(), module.inter[0].ffn[2].eval()
    assert not torch.equal(module(x, SHAPES), module(x, SHAPES))
    module.inter[0].dropout.eval()
    assert torch.equal(module(x, SHAPES), module(x, SHAPES))


def test_bad_arguments():
    with pytest.raises(ValueError, match="expected intra or inter, found neither"):
        BlockSwitches(intra=False, inter=False)
    with pytest.raises(ValueError, match="'token' or 'channel', found 'frame'"):
        BlockSwitches(concat="frame")
    with pytest.raises(ValueError, match="cannot be divided"):
        SplitAttention(dim=60, num_heads=8)
    with pytest.raises(ValueError, match="even number, found 9"):
        SplitAttention(dim=9, num_heads=3, temporal_pe=True)


def test_resizing_has_a_weight_for_every_cell_of_the_frame():
    """Whatever the sizes, a finer cell in the frame finds a coarser one in the frame."""
    for fine in range(1, 12):
        coarse = (fine + 1) // 2
        for seen in range(1, fine + 1):
            valid = torch.arange(coarse) < (seen + 1) // 2
            x = torch.ones(1, coarse, 1, 1)
            out = split_attention._resized(x, (coarse, 1), (fine, 1), valid[None])
            assert torch.allclose(out[0, :seen], torch.ones(1)), (fine, seen)
