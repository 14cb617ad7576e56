"""Attention maps: one softmax over heads and pixels, no weight on padding."""

import pytest
import torch

from vis_d2.meta_arch.tt_spn.attention_maps import AttentionMaps

B, T, N, C, HEADS, H, W = 2, 3, 4, 8, 2, 3, 5


@pytest.fixture
def maps() -> AttentionMaps:
    return AttentionMaps(channels=C, num_heads=HEADS)


def test_weights_of_one_query_worked_out_one_by_one(maps):
    torch.nn.init.normal_(maps.q_linear.bias)
    states, memory = torch.randn(B, T, N, C), torch.randn(B, T, H, W, C)
    found = maps(states, memory)
    assert found.shape == (B, T, N, HEADS, H, W)
    b, t, n = 1, 2, 3
    query, keys = maps.q_linear(states[b, t, n]), maps.k_linear(memory[b, t])
    logits = torch.zeros(HEADS, H, W)
    for head, part in enumerate((slice(0, 4), slice(4, 8))):
        logits[head] = (keys[..., part] * query[part]).sum(-1) / 2  # of 4 channels: / sqrt(4)
    expected = logits.exp() / logits.exp().sum()
    assert torch.allclose(found[b, t, n], expected, atol=1e-6)


def test_padding_gets_nothing_and_changes_nothing(maps):
    states, memory = torch.randn(B, T, N, C), torch.randn(B, T, H, W, C)
    valid = torch.ones(B, T, H, W, dtype=torch.bool)
    valid[..., 3:] = False
    found = maps(states, memory, valid)
    assert (found[..., 3:] == 0).all()
    assert torch.allclose(found[..., :3], maps(states, memory[..., :3, :]), atol=1e-6)
    assert torch.allclose(found.sum((3, 4, 5)), torch.ones(B, T, N))


def test_biases_start_at_zero_and_weights_as_xavier_says(maps):
    for linear in (maps.q_linear, maps.k_linear):
        assert not linear.bias.any()
        assert linear.weight.abs().max() <= (6 / (C + C)) ** 0.5
