"""The mask pyramid and the head over the clip, against their plain form."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from vis_d2.meta_arch.tt_spn.instance_head import build_instance_head
from vis_d2.meta_arch.tt_spn.mask_head import MaskHead, group_norm

C, MAPS, LEVELS = 32, 2, (12, 10, 6)
SIZES = [(2, 3), (4, 6), (8, 11), (16, 22)]  # of strides 32, 16, 8, 4, one of them odd


@pytest.fixture
def head() -> MaskHead:
    head = MaskHead(channels=C, num_maps=MAPS, level_channels=LEVELS)
    torch.nn.init.normal_(head.conv_offset.weight, std=0.5)
    torch.nn.init.normal_(head.conv_offset.bias)
    return head


def plain(head, memory, attention, levels):
    """One query in one frame, channels side by side."""
    x = torch.cat([memory, attention])[None]
    x = F.gelu(head.gn1(head.lay1(x)))
    x = F.gelu(head.gn2(head.lay2(x)))
    steps = ((head.lay3, head.gn3), (head.lay4, head.gn4), (None, head.gn5))
    adapters = (head.adapter1, head.adapter2, head.adapter3)
    for (layer, norm), adapter, level in zip(steps, adapters, levels):
        level = adapter(level[None])
        x = level + F.interpolate(x, size=level.shape[-2:], mode="nearest")
        if layer is None:
            x = deform_conv2d(x, head.conv_offset(x), head.dcn.weight, padding=1)
        else:
            x = layer(x)
        x = F.gelu(norm(x))
    return x[0]


def test_what_queries_share_is_computed_once_and_changes_nothing(head):
    memory = torch.randn(2, C, *SIZES[0])
    levels = [torch.randn(2, c, *size) for c, size in zip(LEVELS, SIZES[1:])]
    attention, frames = torch.rand(3, MAPS, *SIZES[0]), torch.tensor([1, 0, 1])
    found = head(attention, frames, head.shared(memory, levels))
    assert found.shape == (3, C // 16, *SIZES[-1])
    for i, f in enumerate(frames):
        expected = plain(head, memory[f], attention[i], [level[f] for level in levels])
        assert torch.allclose(found[i], expected, atol=1e-4)


def test_the_size_of_the_real_head():
    head = MaskHead(channels=384, num_maps=8, level_channels=(256, 128, 64))
    assert sum(p.numel() for p in head.parameters()) == 2346042
    norms = [head.gn1, head.gn2, head.gn3, head.gn4, head.gn5]
    assert [(n.num_groups, n.num_channels) for n in norms] == [
        (8, 392), (8, 192), (8, 96), (8, 48), (8, 24),
    ]  # fmt: skip


def test_how_it_starts():
    head = MaskHead(channels=C, num_maps=MAPS, level_channels=LEVELS)
    assert not head.conv_offset.weight.any() and not head.conv_offset.bias.any()
    for name, parameter in head.named_parameters():
        assert not name.endswith("bias") or not parameter.any()
    # Kaiming-uniform: sqrt(3) * gain / sqrt(fan in), gain 1 and for the deformable one sqrt(2)
    assert head.lay2.weight.abs().max().item() == pytest.approx((3 / (34 * 9)) ** 0.5, rel=0.02)
    assert head.dcn.weight.abs().max().item() == pytest.approx((6 / (4 * 9)) ** 0.5, rel=0.1)


@pytest.mark.parametrize("groups, channels, found", [(8, 392, 8), (8, 12, 4), (8, 6, 2), (4, 3, 1)])
def test_groups_divide_the_channels(groups, channels, found):
    assert group_norm(groups, channels).num_groups == found


def test_the_head_over_the_clip():
    head = build_instance_head(24)
    assert sum(p.numel() for p in head.parameters()) == 15673
    assert {int(name.split(".")[0]) for name in head.state_dict()} == {0, 1, 3, 4, 6, 7, 9}
    assert (head[1].num_groups, head[1].num_channels) == (4, 12)
    for i in (0, 3, 6):
        assert head[i].dilation == head[i].padding == (2, 2, 2)
    x = torch.randn(2, 24, 5, 8, 7)
    assert head(x).shape == (2, 1, 5, 8, 7)
    # With dilation 2 a convolution sees the frames t - 2, t and t + 2.
    changed = x.clone()
    changed[:, :, 0] += 1
    moved = (head[0](changed) - head[0](x)).abs().flatten(3).amax(dim=(0, 1, 3)) > 1e-6
    assert moved.tolist() == [True, False, True, False, False]
