"""Backbones over clips."""

import copy
from typing import Dict

import pytest
import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from systems import moving_squares, small_cfg
from vis_d2.modeling import clip_features


class Two(nn.Module):
    """Two maps, and how many frames came at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4))
        self.asked = []

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        self.asked.append(len(x))
        y = self.layer(x)
        return {"fine": y, "coarse": y[..., ::2, ::2]}


@pytest.mark.parametrize("count, asked", [(1, [1]), (2, [2]), (5, [2, 2, 1])])
def test_few_frames_at_a_time_give_the_same_maps(count, asked):
    torch.manual_seed(0)
    backbone = Two().eval()
    frames = torch.randn(count, 3, 16, 24)
    maps = clip_features(backbone, frames)
    assert backbone.asked == asked
    for name, expected in backbone(frames).items():
        torch.testing.assert_close(maps[name], expected)


def test_training_sees_the_whole_batch():
    backbone = Two().train()
    clip_features(backbone, torch.randn(5, 3, 16, 24))
    assert backbone.asked == [5]


@pytest.mark.parametrize("layer, asked", [(nn.BatchNorm2d(4), [8]), (nn.Identity(), [6, 2])])
def test_recomputing_gives_the_same_gradients(layer, asked):
    """All frames at once where the batch's statistics count; each part runs a second time."""
    torch.manual_seed(0)
    plain = Two().train()
    plain.layer[1] = layer
    backbone, frames = copy.deepcopy(plain), torch.randn(8, 3, 16, 24)
    for net, recompute in ((plain, False), (backbone, True)):
        maps = clip_features(net, frames, recompute)
        sum((m**2).sum() for m in maps.values()).backward()
    assert plain.asked == [8]
    assert backbone.asked == asked + asked[::-1]
    for a, b in zip(plain.parameters(), backbone.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(plain.buffers(), backbone.buffers()):
        assert torch.equal(a, b)


def test_there_is_nothing_to_recompute_without_gradients():
    backbone = Two().eval()
    with torch.no_grad():
        clip_features(backbone, torch.randn(5, 3, 16, 24), recompute=True)
    assert backbone.asked == [2, 2, 1]


@pytest.mark.parametrize("system", ["efficient_vis", "tt_spn"])
def test_clip_models_look_at_few_frames_at_a_time(system):
    model = build_model(small_cfg(system)).eval()
    asked = []
    model.backbone.register_forward_hook(lambda _, frames, __: asked.append(len(frames[0])))
    model([moving_squares(3)])
    assert asked == [2, 1]
