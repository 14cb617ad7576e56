"""Levels above P5."""

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone

import vis_d2.modeling  # noqa: F401  (registers the backbone)


def fpn_cfg(top_levels: int) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.FPN.TOP_LEVELS = top_levels
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_p5_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    return cfg


@pytest.mark.parametrize("top_levels", [0, 1, 2])
def test_levels_and_sizes(top_levels):
    backbone = build_backbone(fpn_cfg(top_levels))
    features = backbone(torch.zeros(1, 3, 96, 160))
    expected = {
        "p3": (12, 20),
        "p4": (6, 10),
        "p5": (3, 5),
        "p6": (2, 3),  # halves round up
        "p7": (1, 2),
    }
    names = ["p3", "p4", "p5", "p6", "p7"][: 3 + top_levels]
    assert {n: tuple(x.shape[-2:]) for n, x in features.items()} == {n: expected[n] for n in names}
    shapes = backbone.output_shape()
    assert [shapes[n].stride for n in names] == [8, 16, 32, 64, 128][: 3 + top_levels]
    assert {s.channels for s in shapes.values()} == {16}


def test_upper_levels_come_from_p5_with_a_relu_between():
    backbone = build_backbone(fpn_cfg(2)).eval()
    features = backbone(torch.randn(1, 3, 96, 160))
    p6 = backbone.top_block.p6(features["p5"])
    assert torch.equal(features["p6"], p6)
    assert torch.equal(features["p7"], backbone.top_block.p7(p6.clamp(min=0)))


def test_no_level_is_made_that_nobody_can_read():
    names = [n for n, _ in build_backbone(fpn_cfg(1)).named_parameters()]
    assert any("top_block.p6" in n for n in names)
    assert not any("p7" in n for n in names)


def test_wrong_number_of_levels_is_an_error():
    with pytest.raises(ValueError, match="TOP_LEVELS.*found 3"):
        build_backbone(fpn_cfg(3))
