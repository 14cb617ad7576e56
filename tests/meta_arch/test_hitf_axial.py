"""Axial attention against a loop, its positions, and what it does to a bottleneck block."""

import pytest
import torch
from detectron2.modeling.backbone.resnet import BottleneckBlock
from hitf_parts import BN, LN, awake

from vis_d2.meta_arch.hitf.axial import (
    AxialAttention,
    AxialBlock,
    AxialBottleneck,
    LineAttention,
)

SIZES = {"key_dim": 4, "value_dim": 8, "num_heads": 2}


def line(norms=LN, span=3) -> LineAttention:
    torch.manual_seed(0)
    return awake(LineAttention(channels=6, span=span, norms=norms, **SIZES))


def axial(norms=LN, channels=6, span=8) -> AxialAttention:
    torch.manual_seed(0)
    return AxialAttention(channels=channels, span=span, norms=norms, **SIZES)


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_a_line_against_a_loop(norms):
    module = line(norms)
    torch.manual_seed(1)
    x = torch.randn(1, 6, 1, 5)
    q, k, v = (f(x)[0, :, 0] for f in (module.query, module.key, module.value))
    content, position = torch.zeros(8, 5), torch.zeros(8, 5)
    for head in range(2):
        d, e = slice(2 * head, 2 * head + 2), slice(4 * head, 4 * head + 4)
        for i in range(5):
            # Distances of two and more cells look alike: rows 0 to 4 of the tables.
            rows = [max(-2, min(2, j - i)) + 2 for j in range(5)]
            terms = [
                torch.stack([q[d, i] @ k[d, j] for j in range(5)]),
                torch.stack([q[d, i] @ module.query_positions[rows[j]] for j in range(5)]),
                torch.stack([k[d, j] @ module.key_positions[rows[j]] for j in range(5)]),
            ]
            padded = torch.zeros(3, 1, 2, 1, 5)  # a head's term among zeros, for its normalisation
            for n in range(3):
                padded[n, 0, head, 0] = terms[n]
            score = sum(f(p)[0, head, 0] for f, p in zip(module.similarity_norms, padded))
            weight = score.softmax(0)
            content[e, i] = v[e] @ weight
            position[e, i] = weight @ module.value_positions[rows]
    expected = sum(f(y[None, ..., None]) for f, y in zip(module.value_norms, (content, position)))
    torch.testing.assert_close(module(x), expected.transpose(2, 3), atol=1e-5, rtol=1e-4)


def test_columns_first_then_rows_reach_the_whole_map():
    module = awake(axial())
    x = torch.randn(1, 6, 3, 4)
    before = module(x)
    x[0, :, 0, 0] += 5.0
    changed = (module(x) - before).abs().amax(1)[0] > 1e-5
    assert changed.all()
    column = module.columns(x.transpose(2, 3)).transpose(2, 3)
    x[0, :, 0, 0] -= 5.0
    moved = (module.columns(x.transpose(2, 3)).transpose(2, 3) - column).abs().amax(1)[0] > 1e-5
    assert moved.tolist() == [[True, False, False, False]] * 3


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_padding_is_never_looked_at(norms):
    module, x = awake(axial(norms)), torch.randn(1, 6, 3, 4)
    valid = torch.zeros(1, 3, 4, dtype=torch.bool)
    valid[:, :2, :3] = True
    before = module(x, valid)
    x[..., 2, :], x[..., 3] = 50.0, -50.0
    after = module(x, valid)
    assert torch.isfinite(after).all()
    torch.testing.assert_close(after[..., :2, :3], before[..., :2, :3])


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_a_new_block_changes_nothing(norms):
    attention = axial(norms, channels=8)
    block = AxialBlock(channels=5, inner=8, drop_path=0.0, attention=attention, norms=norms)
    x, valid = torch.rand(2, 5, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool)
    assert torch.equal(block(x, valid), x)
    assert not torch.allclose(awake(block)(x, valid), x)


def bottleneck(stride=1) -> BottleneckBlock:
    return BottleneckBlock(12, 16, bottleneck_channels=8, stride=stride, norm="FrozenBN")


def test_replacing_keeps_the_other_layers_and_their_names():
    block = bottleneck()
    replaced = AxialBottleneck(block, axial(channels=8)).eval()
    kept = {n: v for n, v in block.state_dict().items() if not n.startswith("conv2")}
    assert all(torch.equal(replaced.state_dict()[n], v) for n, v in kept.items())
    x = torch.rand(1, 12, 3, 4)
    inner = replaced.conv2(block.conv1(x).relu()).relu()
    torch.testing.assert_close(replaced(x), (block.conv3(inner) + block.shortcut(x)).relu())


def test_a_stride_cannot_be_replaced():
    with pytest.raises(ValueError, match="RES5_DILATION to 2"):
        AxialBottleneck(bottleneck(stride=2), axial(channels=8))
