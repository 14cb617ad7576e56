"""Attention between code and pixels against loops, and what must not change at the start."""

import pytest
import torch
from hitf_parts import BN, DIMS, LN, awake

from vis_d2.meta_arch.hitf.dual_path import DualPathLayer, Retrieval

L, H, W = 3, 2, 4
VALID = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]], dtype=torch.bool)[None]


def layer(norms, **kwargs) -> DualPathLayer:
    torch.manual_seed(0)
    return DualPathLayer(channels=10, dims=DIMS, norms=norms, drop_path=0.0, **kwargs)


def inputs(batch=1):
    torch.manual_seed(1)
    return torch.rand(batch, 10, H, W), torch.rand(batch, 8, L, 1), VALID.expand(batch, -1, -1)


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_retrieval_against_a_loop(norms):
    module = awake(Retrieval(DIMS, norms))
    torch.manual_seed(2)
    query, keys, values = torch.randn(1, 4, 2), torch.randn(1, 4, 5), torch.randn(1, 8, 5)
    valid = torch.tensor([[1, 1, 0, 1, 1]], dtype=torch.bool)
    found = torch.zeros(1, 8, 2, 1)
    for head in range(2):
        k, v = slice(2 * head, 2 * head + 2), slice(4 * head, 4 * head + 4)
        for i in range(2):
            score = torch.stack([query[0, k, i] @ keys[0, k, j] for j in range(5)])
            if norms is BN:  # one mean, deviation, factor and offset per head, on unscaled products
                norm = module.similarity_norm
                score = (score - norm.running_mean[head]) / (norm.running_var[head] + 1e-3).sqrt()
                score = score * norm.weight[head] + norm.bias[head]
            else:
                score = score / 2**0.5
            score[2] = -float("inf")
            found[0, v, i, 0] = values[0, v] @ score.softmax(0)
    expected = module.value_norm(found).relu()
    torch.testing.assert_close(module(query, keys, values, valid), expected)


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_padding_is_never_looked_at(norms):
    module = awake(layer(norms))
    pixels, code, valid = inputs()
    a_pixels, a_code = module(pixels, code, valid)
    pixels[..., 3] = 100.0
    b_pixels, b_code = module(pixels, code, valid)
    torch.testing.assert_close(a_code, b_code)
    torch.testing.assert_close(a_pixels[..., :3], b_pixels[..., :3])
    # What is not padding is looked at.
    pixels[..., 2] = 100.0
    assert not torch.allclose(module(pixels, code, valid)[1], b_code, atol=1e-3)


def test_code_and_pixels_share_one_softmax():
    """With all keys alike, every slot and every valid pixel weighs 1 / (L + n)."""
    module = awake(layer(LN))
    seen = []
    module.exchange.code_retrieval.register_forward_hook(lambda m, args, out: seen.append(args))
    module.exchange.pixel_retrieval.register_forward_hook(lambda m, args, out: seen.append(args))
    module(*inputs())
    (_, pixel_keys, _), (query, keys, values, valid) = seen
    assert query.shape == (1, 4, L) and keys.shape == (1, 4, L + H * W)
    assert values.shape == (1, 8, L + H * W)
    assert valid.tolist() == [[True] * L + VALID.flatten().tolist()]
    torch.testing.assert_close(pixel_keys, keys[..., :L])  # pixels look at the same code, as it was


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_a_new_layer_changes_nothing(norms):
    pixels, code, valid = inputs(4)
    for mode in (True, False):
        new_pixels, new_code = layer(norms).train(mode)(pixels, code, valid)
        assert torch.equal(new_pixels, pixels) and torch.equal(new_code, code)


def test_an_awake_layer_changes_both_and_stays_positive():
    pixels, code, valid = inputs()
    new_pixels, new_code = awake(layer(BN))(pixels, code, valid)
    assert not torch.allclose(new_pixels, pixels) and not torch.allclose(new_code, code)
    assert (new_pixels >= 0).all() and (new_code >= 0).all()


def test_drop_path_leaves_samples_as_they_were():
    module = awake(layer(LN)).train()
    module.exchange.drop.p = 0.5
    pixels, code, valid = inputs(64)
    new_pixels, _ = module(pixels, code, valid)
    same = (new_pixels == pixels).flatten(1).all(1)
    assert 10 < same.sum() < 54
    torch.testing.assert_close(
        module.exchange.drop(torch.ones(4000, 1)).mean().item(), 1.0, atol=0.1, rtol=0
    )
    assert not (module.eval()(pixels, code, valid)[0] == pixels).flatten(1).all(1).any()
