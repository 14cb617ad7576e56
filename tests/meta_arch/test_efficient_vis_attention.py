"""Self-attention of tracklet queries: who hears whom, in which order, and how it starts."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vis_d2.meta_arch.efficient_vis.attention import QueryAttention

B, N, T, C = 2, 3, 4, 8
MODES = ("ftsa", "spatial", "temporal", "joint")
ALL = torch.ones(B, T, dtype=torch.bool)


def attention(mode: str, order: str = "temporal_spatial", norm: str = "post", **kwargs):
    """With weights that are far from the identity, norms included."""
    torch.manual_seed(1)
    module = QueryAttention(
        channels=C, num_heads=2, mode=mode, order=order, temporal_norm=norm, **kwargs
    )
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.eval()


def part_of(whole: QueryAttention, mode: str, norm: str) -> QueryAttention:
    """One of the two attentions of an "ftsa", with the same weights."""
    part = attention(mode, norm=norm)
    state = {k: v for k, v in whole.state_dict().items() if k.startswith(mode)}
    part.load_state_dict(state)
    return part


def changed(mode: str, where: tuple) -> Tensor:
    """Which embeddings (B, N, T) of the result move when those at ``where`` do."""
    module, queries = attention(mode), torch.randn(B, N, T, C)
    other = queries.clone()
    other[where] += 1.0
    return (module(queries, ALL) - module(other, ALL)).abs().amax(-1) > 1e-6


@pytest.mark.parametrize(
    "mode, reach",
    [
        ("temporal", (0, 1)),  # the same query, in all frames
        ("spatial", (0, slice(None), 2)),  # all queries, in the same frame
        ("joint", (0,)),
        ("ftsa", (0,)),
    ],
)
def test_how_far_one_embedding_is_heard(mode, reach):
    expected = torch.zeros(B, N, T, dtype=torch.bool)
    expected[reach] = True
    assert torch.equal(changed(mode, (0, 1, 2)), expected)


@pytest.mark.parametrize(
    "mode, parts", [("ftsa", 2), ("spatial", 1), ("temporal", 1), ("joint", 1)]
)
def test_every_mode_has_its_own_weights_only(mode, parts):
    module = attention(mode)
    kinds = [type(m).__name__ for m in module.children()]
    assert kinds.count("MultiheadAttention") == kinds.count("LayerNorm") == parts
    assert module(torch.randn(B, N, T, C), ALL).shape == (B, N, T, C)


def test_over_time_with_the_norm_first_and_last():
    queries = torch.randn(B, N, T, C)
    for norm in ("pre", "post"):
        module = attention("temporal", norm=norm)
        result = module(queries, ALL)
        for b in range(B):
            for i in range(N):
                q = queries[b, i][None]  # (1, T, C)
                if norm == "pre":
                    y = module.temporal_norm(q)
                    expected = q + module.temporal(y, y, y)[0]
                else:
                    expected = module.temporal_norm(q + module.temporal(q, q, q)[0])
                assert torch.allclose(result[b, i], expected[0], atol=1e-5)


def test_over_queries_the_norm_comes_last():
    module, queries = attention("spatial"), torch.randn(B, N, T, C)
    result = module(queries, ALL)
    q = queries[1, :, 2][None]  # (1, N, C)
    expected = module.spatial_norm(q + module.spatial(q, q, q)[0])
    assert torch.allclose(result[1, :, 2], expected[0], atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_order_of_the_two(norm):
    queries = torch.randn(B, N, T, C)
    results = {}
    for order in ("temporal_spatial", "spatial_temporal"):
        whole = attention("ftsa", order, norm)
        parts = {mode: part_of(whole, mode, norm) for mode in ("temporal", "spatial")}
        expected = queries
        for mode in order.split("_"):
            expected = parts[mode](expected, ALL)
        results[order] = whole(queries, ALL)
        assert torch.allclose(results[order], expected, atol=1e-5)
    assert not torch.allclose(*results.values(), atol=1e-2)


def test_attention_over_time_starts_as_the_identity_where_the_norm_is_first():
    queries = torch.randn(B, N, T, C)
    alone = attention("temporal", norm="pre")
    assert not torch.equal(alone(queries, ALL), queries)
    alone.reset_temporal()
    assert torch.equal(alone(queries, ALL), queries)
    both = attention("ftsa", norm="pre")
    both.reset_temporal()
    still = part_of(both, "spatial", "pre")
    assert torch.equal(both(queries, ALL), still(queries, ALL))
    post = attention("temporal", norm="post")
    post.reset_temporal()  # there zero weights would not be the identity
    assert post.temporal.out_proj.weight.any()


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("mode", MODES)
def test_frames_that_fill_a_clip_up_are_not_heard(mode, norm):
    module, queries = attention(mode, norm=norm), torch.randn(B, N, T, C)
    valid = torch.tensor([[True, True, False, False], [True, True, True, True]])
    other = torch.where(valid[:, None, :, None], queries, torch.full_like(queries, 9.0))
    result = module(queries, valid)
    assert torch.allclose(result[0, :, :2], module(other, valid)[0, :, :2], atol=1e-6)
    short = module(queries[:, :, :2], valid[:, :2])
    assert torch.allclose(result[0, :, :2], short[0], atol=1e-5)
    if mode != "spatial":
        assert not torch.allclose(result[1, :, :2], short[1], atol=1e-2)


@pytest.mark.parametrize("mode", MODES)
def test_a_clip_without_a_real_frame_stays_finite_and_bothers_nobody(mode):
    module = attention(mode)
    queries = torch.randn(B, N, T, C, requires_grad=True)
    valid = torch.tensor([[False] * T, [True] * T])
    result = module(queries, valid)
    assert torch.isfinite(result).all()
    assert torch.allclose(result[1], module(queries, ALL)[1], atol=1e-6)
    result.sum().backward()
    assert torch.isfinite(queries.grad).all()


@pytest.mark.parametrize("mode", MODES)
def test_permuted_queries_and_clips_give_permuted_results(mode):
    module, queries = attention(mode), torch.randn(B, N, T, C)
    result, order = module(queries, ALL), torch.tensor([2, 0, 1])
    assert torch.allclose(module(queries[:, order], ALL), result[:, order], atol=1e-5)
    assert torch.allclose(module(queries.flip(0), ALL), result.flip(0), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_without_positions_equal_frames_stay_equal(mode):
    """So the queries of the first stage cannot know their frame before they see its RoIs."""
    queries = torch.randn(B, N, 1, C).expand(-1, -1, T, -1)
    result = attention(mode)(queries, ALL)
    assert torch.allclose(result, result[:, :, :1].expand_as(result), atol=1e-5)


def test_dropout_is_of_the_weights_and_in_training_only():
    module, queries = attention("ftsa", dropout=0.5), torch.randn(B, N, T, C)
    assert torch.equal(module(queries, ALL), module(queries, ALL))
    module.train()
    assert not torch.equal(module(queries, ALL), module(queries, ALL))


def test_eight_heads_split_the_channels():
    """Attention weights differ between heads: not one weight per pair of embeddings."""
    torch.manual_seed(0)
    module = QueryAttention(
        channels=16, num_heads=8, mode="temporal", order="temporal_spatial", temporal_norm="post"
    )
    queries = torch.randn(1, 1, T, 16)
    x = queries[0]
    weights = module.temporal(x, x, x, average_attn_weights=False)[1]
    assert weights.shape == (1, 8, T, T)
    q, k, _ = F.linear(x[0], module.temporal.in_proj_weight).chunk(3, dim=-1)
    head = (q[:, 2:4] @ k[:, 2:4].t() / 2**0.5).softmax(-1)  # the second one has channels 2 and 3
    assert torch.allclose(weights[0, 1], head, atol=1e-5)


@pytest.mark.parametrize(
    "key, kwargs",
    [
        ("SELF_ATTN", {"mode": "time"}),
        ("FTSA_ORDER", {"mode": "ftsa", "order": "both"}),
        ("TEMPORAL_NORM", {"mode": "ftsa", "norm": "none"}),
    ],
)
def test_unknown_choices_are_named(key, kwargs):
    with pytest.raises(ValueError, match=f"{key}: expected one of .*, found '"):
        attention(**kwargs)
