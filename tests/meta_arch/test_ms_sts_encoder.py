"""The encoder: two attentions in one sum, frames apart without the second one, padding unseen."""

import pytest
import torch
from ms_sts_parts import NARROW, C, levels_of, shaken, small_split
from room_parts import stored_bytes

from vis_d2.meta_arch.ms_sts.encoder import ClipEncoder, EncoderLayer
from vis_d2.meta_arch.ms_sts.split_attention import SplitAttention

LEVELS = levels_of((64, 96))
CELLS = sum(LEVELS.areas)


def layer(split=None, **kwargs) -> EncoderLayer:
    return shaken(EncoderLayer(**NARROW, mssts=split, **kwargs).eval(), 0.1)


def clip(length=3, batch=1, cells=CELLS):
    return torch.randn(batch, length, cells, C), torch.randn(batch, cells, C)


@pytest.mark.parametrize("with_split", [False, True])
def test_a_layer_step_by_step(with_split):
    split = small_split() if with_split else None
    module = layer(split)
    x, pos = clip(batch=2)
    reference = levels_of((64, 96), batch=2).grid()
    found = module(x, pos, reference, LEVELS)
    for b in range(2):
        said = split(x[b : b + 1], LEVELS.shapes)[0] if with_split else torch.zeros_like(x[b])
        for t in range(3):
            y = x[b : b + 1, t]
            seen = module.self_attn(
                y + pos[b], reference[b : b + 1], y, LEVELS.shapes
            )  # of one frame
            y = module.norm1(y + seen + said[t])
            y = module.norm2(y + module.linear2(module.linear1(y).relu()))
            assert torch.allclose(found[b, t], y[0], atol=1e-5)


@torch.no_grad()
def test_frames_meet_in_the_split_attention_only():
    x, pos = clip()
    other = x.clone()
    other[:, 0] += torch.randn_like(other[:, 0])
    for split, meet in ((None, False), (small_split(), True)):
        encoder = ClipEncoder(layers=[layer(split), layer(split)])
        moved = (encoder(other, pos, LEVELS) - encoder(x, pos, LEVELS)).abs().amax((0, 2, 3))
        assert moved[0] > 0.1
        assert (moved[1:] > 0.01).tolist() == [meet] * 2


@torch.no_grad()
def test_a_closed_gate_is_no_split_attention():
    x, pos = clip()
    module = layer(SplitAttention(channels=C, dim=8, num_heads=2))
    module.mssts.gate.zero_()
    plain = layer()
    plain.load_state_dict(module.state_dict(), strict=False)
    reference = LEVELS.grid()
    assert torch.equal(module(x, pos, reference, LEVELS), plain(x, pos, reference, LEVELS))


def test_few_frames_at_a_time_make_no_difference():
    encoder = ClipEncoder(layers=[layer(small_split()), layer(small_split())])
    x, pos = clip(length=5)
    expected = encoder(x, pos, LEVELS)
    with torch.no_grad():
        assert torch.allclose(encoder(x, pos, LEVELS), expected, atol=1e-5)


@torch.no_grad()
def test_padding_is_zero_and_nobody_sees_it():
    encoder = ClipEncoder(layers=[layer(small_split()), layer(small_split())])
    levels = levels_of((64, 128), [(64, 64), (40, 100)])
    x, pos = clip(batch=2, length=2, cells=levels.valid.shape[1])
    out = encoder(x, pos, levels)
    assert not out[(~levels.valid)[:, None].expand(-1, 2, -1)].any()
    other = x.masked_fill(~levels.valid[:, None, :, None], 1e6)
    assert torch.equal(encoder(other, pos, levels), out)
    # The first clip's maps without their padding:
    alone, inside = levels_of((64, 64)), levels.valid[0]
    found = encoder(x[:1, :, inside], pos[:1, inside], alone)
    assert torch.allclose(out[:1, :, inside], found, atol=1e-5)


def test_layers_may_share_one_split_attention():
    split = small_split()
    encoder = ClipEncoder(layers=[layer(), layer()], mssts=split)
    names = [name for name, _ in encoder.named_parameters() if "mssts" in name]
    assert all(name.startswith("mssts.") for name in names)
    assert len(names) == len(list(split.parameters()))
    x, pos = clip()
    expected, reference = x, LEVELS.grid()
    for own in encoder.layers:
        own.mssts = split
        expected = own(expected, pos, reference, LEVELS)
        own.mssts = None
    assert torch.allclose(encoder(x, pos, LEVELS), expected, atol=1e-5)


def test_recomputing_stores_less_and_gives_the_same_gradients():
    x, pos = clip()
    x.requires_grad_()
    layers = [EncoderLayer(**NARROW, dropout=0.3, mssts=small_split(dropout=0.3)) for _ in range(2)]
    results = []
    for recompute in (False, True):
        encoder = ClipEncoder(layers=layers, recompute=recompute).train()
        encoder.zero_grad()
        torch.manual_seed(0)
        out = encoder(x, pos, LEVELS)
        (out**2).sum().backward()
        grads = [p.grad.clone() for p in encoder.parameters() if p.requires_grad]
        stored = stored_bytes(lambda y: [encoder(y, pos, LEVELS)], x)  # noqa: B023
        results.append((out, grads, stored))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(results[0][1], results[1][1]))
    assert results[1][2] < results[0][2] / 4


def test_size_and_start_of_the_real_layer():
    module = EncoderLayer()
    assert sum(p.numel() for p in module.parameters()) == 822656
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    assert frozen == {f"self_attn.output_proj_box.{name}" for name in ("weight", "bias")}
    attention = module.self_attn
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
    # (heads, levels, points, 2): the first head looks right, the second right and down
    offsets = attention.sampling_offsets.bias.view(8, 4, 4, 2)
    assert torch.allclose(offsets[0, 0, :, 0], torch.tensor([1.0, 2, 3, 4]))
    assert torch.allclose(offsets[0, :, :, 1], torch.zeros(4, 4), atol=1e-6)
    assert torch.allclose(offsets[1, 3, 2], torch.tensor([3.0, 3.0]))
    for linear in (attention.value_proj, attention.output_proj, attention.output_proj_box):
        assert linear.weight.abs().max().item() == pytest.approx((6 / 512) ** 0.5, rel=0.01)
        assert not linear.bias.any()
    assert module.linear1.weight.abs().max().item() == pytest.approx((6 / 1280) ** 0.5, rel=0.01)
    assert module.dropout.p == 0.1
