"""The decoder: the order of its steps, attention over frames, and boxes that move."""

import pytest
import torch
from ms_sts_parts import HEADS, NARROW, C, levels_of, shaken
from room_parts import stored_bytes
from torch import nn

from vis_d2.layers import MLP
from vis_d2.meta_arch.ms_sts.decoder import (
    ClipDecoder,
    DecoderLayer,
    TemporalSwitches,
    inverse_sigmoid,
)

LEVELS = levels_of((64, 96))
CELLS, N = sum(LEVELS.areas), 4
FORMS = [None, TemporalSwitches(), TemporalSwitches(prenorm=False), TemporalSwitches(position=True)]
IDS = ["without", "prenorm", "postnorm", "position"]


def layer(temporal=None, **kwargs) -> DecoderLayer:
    return shaken(DecoderLayer(**NARROW, temporal=temporal, **kwargs).eval())


def decoder(temporal=None, depth=2, **kwargs) -> ClipDecoder:
    return ClipDecoder(layers=[layer(temporal) for _ in range(depth)], **kwargs)


def heads(depth=2) -> nn.ModuleList:
    mlps = [MLP(in_dim=C, hidden_dim=C, out_dim=4, num_layers=2) for _ in range(depth)]
    return shaken(nn.ModuleList(mlps))


def queries():
    """Targets, positions and points."""
    return torch.randn(N, C), torch.randn(N, C), torch.rand(N, 2)


def torch_attention(module) -> nn.MultiheadAttention:
    twin = nn.MultiheadAttention(C, HEADS, batch_first=True).eval()
    twin.load_state_dict(module.state_dict())
    return twin


def plain_layer(module, instances, boxes, pos, reference, memory):
    """One clip, frame by frame: (N, C), T x (N, C), (N, C), (T, N, n), (T, S, C)."""

    def attend(attention, query, value):
        return torch_attention(attention)(query[None], query[None], value[None])[0][0]

    def feed(x, first, second, norm):
        return norm(x + second(first(x).relu()))

    m = module
    instances = m.norm2(instances + attend(m.self_attn, instances + pos, instances))
    boxes = [m.norm2_box(b + attend(m.self_attn_box, b + pos, b)) for b in boxes]
    if m.temporal is not None:
        stack = torch.stack(boxes)  # (T, N, C)
        value = m.norm_temp_box(stack) if m.temporal.prenorm else stack
        found = [attend(m.temp_attn_box, value[:, n] + pos[n], value[:, n]) for n in range(N)]
        stack = stack + torch.stack(found, dim=1)
        boxes = list(stack if m.temporal.prenorm else m.norm_temp_box(stack))
    looked, moved = [], []
    for b, ref, frame in zip(boxes, reference, memory):
        places = ref[None, :, None].expand(-1, -1, 4, -1)  # nothing is padded
        seen = m.cross_attn.sample(b[None] + pos, places, frame[None], LEVELS.shapes)[0]
        b = m.norm1_box(b + m.cross_attn.output_proj_box(seen))
        moved.append(feed(b, m.linear1_box, m.linear2_box, m.norm3_box))
        looked.append(m.cross_attn.output_proj(seen))
    scores = torch.stack([m.time_attention_weights(b) for b in moved])  # (T, N, 1)
    mean = (scores.softmax(0) * torch.stack(looked)).sum(0)
    instances = m.norm1(instances + mean)
    return feed(instances, m.linear1, m.linear2, m.norm3), torch.stack(moved)


@pytest.mark.parametrize("temporal", FORMS[:3], ids=IDS[:3])
@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
@torch.no_grad()
def test_a_layer_step_by_step(temporal, numbers):
    module = layer(temporal)
    instances, boxes = torch.randn(2, N, C), torch.randn(2, 3, N, C)
    reference, memory = torch.rand(2, 3, N, numbers), torch.randn(2, 3, CELLS, C)
    pos = torch.randn(N, C)
    levels = levels_of((64, 96), batch=2)
    found = module(instances, boxes, pos, reference, memory, levels)
    for b in range(2):
        expected = plain_layer(module, instances[b], boxes[b], pos, reference[b], memory[b])
        assert torch.allclose(found[0][b], expected[0], atol=1e-5)
        assert torch.allclose(found[1][b], expected[1], atol=1e-5)


@pytest.mark.parametrize("temporal", FORMS, ids=IDS)
@torch.no_grad()
def test_box_queries_of_the_first_layer_need_no_frames(temporal):
    """Equal in all frames, they say what one copy per frame would say."""
    module = layer(temporal)
    instances, boxes = torch.randn(1, N, C), torch.randn(1, 1, N, C)
    reference, memory = torch.rand(1, 3, N, 2), torch.randn(1, 3, CELLS, C)
    arguments = (torch.randn(N, C), reference, memory, LEVELS)
    once = module(instances, boxes, *arguments)
    copied = module(instances, boxes.expand(-1, 3, -1, -1), *arguments)
    assert torch.allclose(once[0], copied[0], atol=1e-5)
    assert torch.allclose(once[1], copied[1], atol=1e-5)


@pytest.mark.parametrize("temporal", FORMS, ids=IDS)
@torch.no_grad()
def test_frames_that_are_alike_are_as_one(temporal):
    module, moves = decoder(temporal), heads()
    target, pos, points = queries()
    memory = torch.randn(1, 1, CELLS, C)
    one = module(target, pos, points, memory, LEVELS, moves)
    four = module(target, pos, points, memory.expand(-1, 4, -1, -1), LEVELS, moves)
    for a, b in zip(one, four):
        assert torch.allclose(a.instances, b.instances, atol=1e-5)
        assert torch.allclose(a.boxes.expand(-1, 4, -1, -1), b.boxes, atol=1e-5)


@pytest.mark.parametrize("temporal", FORMS, ids=IDS)
@torch.no_grad()
def test_boxes_hear_of_other_frames_by_the_temporal_attention_only(temporal):
    module, moves = decoder(temporal), heads()
    target, pos, points = queries()
    memory = torch.randn(1, 3, CELLS, C)
    other = memory.clone()
    other[:, 0] = torch.randn_like(other[:, 0])
    first, second = (module(target, pos, points, x, LEVELS, moves) for x in (memory, other))
    moved = [(a.boxes - b.boxes).abs().amax((0, 2, 3)) for a, b in zip(first, second)]
    assert moved[0][0] > 1e-3 and moved[1][0] > 1e-3
    assert not moved[0][1:].any()  # before the first layer all frames are alike
    assert bool((moved[1][1:] > 1e-4).all()) == (temporal is not None)
    # The object's query hears of all frames in any case.
    assert not torch.allclose(first[0].instances, second[0].instances, atol=1e-3)


@torch.no_grad()
def test_how_the_temporal_attention_starts():
    """With the norm before it, at the layer without it; else at that layer and a norm."""
    boxes, pos = torch.randn(2, 3, N, C), torch.randn(N, C)
    module = DecoderLayer(**NARROW, temporal=TemporalSwitches()).eval()
    assert torch.equal(module._over_time(boxes, pos), boxes)
    module = DecoderLayer(**NARROW, temporal=TemporalSwitches(prenorm=False)).eval()
    assert torch.allclose(
        module._over_time(boxes, pos), nn.functional.layer_norm(boxes, (C,)), atol=1e-6
    )


@torch.no_grad()
def test_positions_tell_frames_apart():
    boxes, pos, order = torch.randn(1, 3, N, C), torch.randn(N, C), torch.tensor([2, 0, 1])
    for temporal, same in ((TemporalSwitches(), True), (TemporalSwitches(position=True), False)):
        module = layer(temporal)
        found = module._over_time(boxes[:, order], pos)
        expected = module._over_time(boxes, pos)[:, order]
        assert torch.allclose(found, expected, atol=1e-5) == same


def test_inverse_sigmoid():
    x = torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0])
    expected = [-11.5129, -1.0986, 0.0, 11.5129, 11.5129]  # log(1e-5), -log(3)
    assert torch.allclose(inverse_sigmoid(x), torch.tensor(expected), atol=1e-4)
    assert torch.allclose(inverse_sigmoid(x).sigmoid()[1:3], x[1:3])


@torch.no_grad()
def test_boxes_move_from_layer_to_layer():
    module, moves = decoder(), heads()
    for move in moves:  # whatever a box query holds
        nn.init.zeros_(move.layers[-1].weight)
        move.layers[-1].bias.copy_(torch.tensor([1.0, 0.0, -2.0, 0.5]))
    target, pos, _ = queries()
    points = torch.tensor([0.5, 0.25]).expand(N, 2)
    first, second = module(target, pos, points, torch.randn(1, 2, CELLS, C), LEVELS, moves)

    def sigmoid(*x):
        return torch.tensor(x).sigmoid().expand(1, 2, N, -1)

    low = -(3.0 ** torch.tensor(1.0)).log().item()  # the logit of 1 / 4
    assert torch.allclose(first.centres, points.expand(1, 2, N, 2))
    assert torch.allclose(first.boxes, sigmoid(1.0, low, -2.0, 0.5), atol=1e-6)
    assert torch.equal(second.centres, first.boxes[..., :2])
    assert torch.allclose(second.boxes, sigmoid(2.0, low, -4.0, 1.0), atol=1e-6)


def test_no_gradient_goes_from_layer_to_layer_by_the_boxes():
    module, moves = decoder(), heads()
    target, pos, points = queries()
    points.requires_grad_()
    states = module(target, pos, points, torch.randn(1, 2, CELLS, C), LEVELS, moves)
    assert not states[1].centres.requires_grad
    states[1].boxes.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in moves[0].parameters())
    assert all(p.grad is not None for p in moves[1].parameters())
    # Where queries look at first is learned, from where they look and from the first boxes.
    before = points.grad.clone()
    states[0].boxes.sum().backward()
    assert not torch.allclose(points.grad, before)


@pytest.mark.parametrize("temporal", FORMS, ids=IDS)
def test_few_frames_at_a_time_make_no_difference(temporal):
    module, moves = decoder(temporal), heads()
    arguments = (*queries(), torch.randn(2, 5, CELLS, C), levels_of((64, 96), batch=2), moves)
    expected = module(*arguments)
    with torch.no_grad():
        for a, b in zip(module(*arguments), expected):
            assert torch.allclose(a.boxes, b.boxes, atol=1e-5)
            assert torch.allclose(a.instances, b.instances, atol=1e-5)


@torch.no_grad()
def test_padding_is_not_looked_at():
    module, moves = decoder(TemporalSwitches()), heads()
    levels = levels_of((64, 128), [(64, 64), (40, 100)])
    memory = torch.randn(2, 2, levels.valid.shape[1], C)
    other = memory.masked_fill(~levels.valid[:, None, :, None], 1e6)
    start = queries()
    out = module(*start, memory, levels, moves)
    for a, b in zip(out, module(*start, other, levels, moves)):
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.instances, b.instances)
    # Boxes are shares of the frame, with and without padding around it.
    alone = module(*start, memory[:1, :, levels.valid[0]], levels_of((64, 64)), moves)
    for a, b in zip(out, alone):
        assert torch.allclose(a.boxes[:1], b.boxes, atol=1e-5)
        assert torch.allclose(a.instances[:1], b.instances, atol=1e-5)


def test_recomputing_stores_less_and_gives_the_same_gradients():
    layers = [DecoderLayer(**NARROW, dropout=0.3, temporal=TemporalSwitches()) for _ in range(2)]
    start, moves = queries(), heads()
    memory = torch.randn(1, 3, CELLS, C, requires_grad=True)
    results = []
    for recompute in (False, True):
        module = ClipDecoder(layers=layers, recompute=recompute).train()
        module.zero_grad()
        torch.manual_seed(0)
        states = module(*start, memory, LEVELS, moves)
        sum((s.instances**2).sum() + s.boxes.sum() for s in states).backward()
        grads = [p.grad.clone() for p in module.parameters()]
        stored = stored_bytes(lambda y: module(*start, y, LEVELS, moves), memory)  # noqa: B023
        results.append((states[-1].boxes, grads, stored))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(results[0][1], results[1][1]))
    assert results[1][2] < results[0][2] / 2


def test_size_and_start_of_the_real_layer():
    def count(**kwargs):
        return sum(p.numel() for p in DecoderLayer(**kwargs).parameters())

    assert count() == 1876865
    assert count(temporal=TemporalSwitches()) == 1876865 + 263680
    module = DecoderLayer()
    assert all(p.requires_grad for p in module.parameters())
    assert not module.time_attention_weights.weight.any()  # all frames count alike
    offsets = module.cross_attn.sampling_offsets.bias.view(8, 4, 4, 2)
    assert torch.allclose(offsets[1, 0, 3], torch.tensor([4.0, 4.0]))
    for linear in (module.self_attn.out_proj, module.cross_attn.output_proj_box):
        assert linear.weight.abs().max().item() == pytest.approx((6 / 512) ** 0.5, rel=0.01)
    assert module.linear2_box.weight.abs().max().item() == pytest.approx(
        (6 / 1280) ** 0.5, rel=0.01
    )
    assert module.self_attn.dropout == module.dropout.p == 0.1
