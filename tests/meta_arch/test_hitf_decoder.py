"""Geometry of decoder and heads: corners aligned, padding left out."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from hitf_parts import BN, LN, awake

from vis_d2.meta_arch.hitf.decoder import AlignedDecoder
from vis_d2.meta_arch.hitf.heads import PixelHead, SemanticHead, SlotHeads


def decoder() -> AlignedDecoder:
    torch.manual_seed(0)
    module = AlignedDecoder(
        low=ShapeSpec(channels=6, stride=4), high=ShapeSpec(channels=8, stride=16), low_dim=4,
        channels=8, dilations=[1, 2, 3], dropout=0.0, norms=BN,
    )  # fmt: skip
    return awake(module)


def test_upsampling_puts_cell_i_on_cell_four_i():
    """A map that is linear in the coordinates stays linear, up to the border."""
    module, seen = decoder(), []
    module.decoder["res2"]["fuse_conv"].register_forward_pre_hook(
        lambda m, args: seen.append(args[0])
    )
    aspp = module.decoder["res5"]["project_conv"]
    ramp = torch.arange(3.0)[:, None] * 100 + torch.arange(5.0)  # a value that names its cell
    aspp.project.register_forward_hook(lambda m, args, out: ramp.expand(1, 8, 3, 5))
    module(torch.rand(1, 6, 9, 17), torch.rand(1, 8, 3, 5), torch.ones(1, 3, 5, dtype=torch.bool))
    upsampled = seen[0][0, -1]
    expected = torch.arange(9.0)[:, None] * 25 + torch.arange(17.0) / 4
    torch.testing.assert_close(upsampled, expected)


def test_the_frame_is_pooled_without_its_padding():
    module, seen = decoder(), []
    pooling = module.decoder["res5"]["project_conv"].convs[-1][1]
    pooling.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    high = torch.rand(2, 8, 2, 3)
    valid = torch.tensor([[[1, 1, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1]]], dtype=torch.bool)
    module(torch.rand(2, 6, 5, 9), high, valid)
    expected = torch.stack([high[0, :, 0, :2].mean(1), high[1].mean((1, 2))])
    torch.testing.assert_close(seen[0][..., 0, 0], expected)


def test_without_padding_the_pyramid_is_detectron2s():
    module = decoder()
    aspp, high = module.decoder["res5"]["project_conv"], torch.rand(1, 8, 2, 3)
    seen = []
    module.decoder["res2"]["fuse_conv"].register_forward_pre_hook(
        lambda m, args: seen.append(args[0][:, 4:])
    )
    module(torch.rand(1, 6, 2, 3), high, torch.ones(1, 2, 3, dtype=torch.bool))
    torch.testing.assert_close(seen[0], aspp(high))


def heads(norms=BN, **options) -> SlotHeads:
    torch.manual_seed(0)
    arguments = {"num_classes": 40, "empty_prior": 0.9, "logit_scale": 0.1, "background": False}
    pixels = PixelHead(channels=8, mask_dim=5, norms=norms)
    return SlotHeads(
        pixels=pixels, code_dim=8, mask_dim=5, norms=norms, **{**arguments, **options}
    )  # fmt: skip


@pytest.mark.parametrize("norms", [BN, LN], ids=["bn", "scaled_ln"])
def test_first_predictions(norms):
    """Empty with the prior probability, masks nearly flat, features of length one."""
    module = heads(norms).train()
    out = module(torch.rand(4, 8, 9, 13), torch.rand(4, 8, 3, 1))
    probs = out["pred_logits"].softmax(-1)
    assert probs.shape == (4, 3, 41) and out["pred_masks"].shape == (4, 3, 9, 13)
    torch.testing.assert_close(probs[..., -1], torch.full((4, 3), 0.9), atol=0.02, rtol=0)
    assert module.classes[1].bias[-1].item() == pytest.approx(math.log(360), abs=1e-4)
    assert 0.01 < out["pred_masks"].std() < 0.2
    masks = out["pred_masks"].softmax(1)
    torch.testing.assert_close(masks.sum(1), torch.ones(4, 9, 13))
    torch.testing.assert_close(out["pixel_features"].norm(dim=1), torch.ones(4, 9, 13))


def test_logits_are_products_with_one_factor_for_all_slots():
    module = awake(heads())
    decoded, code = torch.rand(1, 8, 4, 5), torch.rand(1, 8, 3, 1)
    out = module(decoded, code)
    filters, norm = module.filters(code)[0, :, :, 0], module.logit_norm
    products = torch.einsum("dl,dhw->lhw", filters, out["pixel_features"][0])
    scaled = (products - norm.running_mean) / (norm.running_var + 1e-3).sqrt()
    torch.testing.assert_close(out["pred_masks"][0], scaled * norm.weight + norm.bias)


def test_background_is_one_more_channel_with_a_filter_of_its_own():
    module = awake(heads(background=True))
    decoded = torch.rand(2, 8, 4, 5)
    out, other = (module(decoded, torch.rand(2, 8, 3, 1)) for _ in range(2))
    assert out["pred_masks"].shape == (2, 4, 4, 5) and out["pred_logits"].shape == (2, 3, 41)
    # It does not ask the code.
    torch.testing.assert_close(out["pred_masks"][:, 3], other["pred_masks"][:, 3])
    assert not torch.allclose(out["pred_masks"][:, 0], other["pred_masks"][:, 0])


def test_semantic_head():
    head = SemanticHead(
        channels=8, low_channels=6, low_dim=4, hidden=8, num_classes=40, norms=BN
    )  # fmt: skip
    assert head(torch.rand(2, 6, 9, 17), torch.rand(2, 8, 3, 5)).shape == (2, 41, 9, 17)
