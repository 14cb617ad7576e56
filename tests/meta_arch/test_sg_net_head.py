"""Attention scores, base masks and the movement head."""

import pytest
import torch
from torch.nn import functional as F

from vis_d2.meta_arch.sg_net.granularity import box_indicator
from vis_d2.meta_arch.sg_net.head import AttentionScores, BaseMasks, MovementHead

SIZES = {"p3": (8, 12), "p4": (4, 6), "p5": (2, 3)}


def make_features(frames: int = 2, channels: int = 8):
    return {name: torch.randn(frames, channels, *size) for name, size in SIZES.items()}


def make_base_masks(**kwargs) -> BaseMasks:
    defaults = {
        "in_features": ["p3", "p4", "p5"],
        "in_stride": 8,
        "in_channels": 8,
        "channels": 16,
        "max_div": 3,
        "upsample": 4,
        "norm": "GN",
    }
    return BaseMasks(**{**defaults, **kwargs})


@pytest.mark.parametrize("max_div", [2, 4, 6, 8])
def test_attention_gives_one_score_per_cell_and_location(max_div):
    attention = AttentionScores(in_features=list(SIZES), channels=8, max_div=max_div, norm="GN")
    scores = attention(make_features())
    assert scores.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, max_div**2)
    assert scores.min() < 0 < scores.max()  # no activation


@pytest.mark.parametrize("upsample, stride", [(4, 2), (2, 4), (1, 8)])
def test_base_masks_are_finer_than_the_first_level(upsample, stride):
    module = make_base_masks(upsample=upsample)
    assert module(make_features()).shape == (2, 9, 8 * upsample, 12 * upsample)
    assert module.stride == stride


@pytest.mark.parametrize("levels", [["p3"], ["p3", "p4"], ["p3", "p4", "p5"]])
def test_base_masks_read_their_levels_and_no_other(levels):
    module, features = make_base_masks(in_features=levels), make_features()
    before = module(features)
    for name in SIZES:
        changed = module({**features, name: features[name] + torch.randn(SIZES[name])})
        assert torch.equal(before, changed) == (name not in levels)


def test_upsampling_and_the_last_convolution_commute():
    """The order of the paper and ours give the same base masks."""
    module, features = make_base_masks(), make_features()
    size = SIZES["p3"]
    stacked = torch.cat(
        [F.interpolate(x, size=size, mode="bilinear") for x in features.values()], dim=1
    )
    low = F.relu(module.reduce(module.refine(stacked)))
    high = F.interpolate(low, scale_factor=4, mode="bilinear")
    assert torch.allclose(module.base_conv(high), module(features), atol=1e-6)


def test_crop_and_the_last_convolution_commute():
    """Why base masks are computed per frame: without bias, zeroing outside a box may come last."""
    module = make_base_masks()
    inside = box_indicator(torch.tensor([[5.0, 9.0, 40.0, 33.0]]), (32, 48), 2.0)
    features = torch.randn(1, 9, 32, 48)
    crop_first = module.base_conv(features * inside)
    assert torch.allclose(crop_first, module.base_conv(features) * inside, atol=1e-6)
    assert module.base_conv.bias is None


@pytest.mark.parametrize("inputs", ["cat", "diff", "single", "ctr_only"])
def test_movement_reads_what_it_says(inputs):
    channels = 1 if inputs == "ctr_only" else 8
    head = MovementHead(channels=8, inputs=inputs)
    current = [torch.randn(2, channels, *size) for size in SIZES.values()]
    reference = [torch.randn_like(x) for x in current]
    movement = head(current, reference)
    assert movement.shape == (2, 126, 2)
    other = head(current, [x + torch.randn_like(x) for x in reference])
    assert torch.equal(movement, other) == (inputs == "single")
    assert head.reads_centerness == (inputs == "ctr_only")


def test_no_difference_no_movement():
    head = MovementHead(channels=8, inputs="diff")
    features = [torch.randn(1, 8, *size) for size in SIZES.values()]
    assert (head(features, features) == 0).all()


def test_unknown_input_is_named():
    with pytest.raises(ValueError, match="'sum'"):
        MovementHead(channels=8, inputs="sum")
