"""FLOP analysis imports (its module needs detectron2.export) and counts."""

import torch
from detectron2.layers import Conv2d
from detectron2.utils.analysis import FlopCountAnalysis


def test_flops_of_a_convolution() -> None:
    layer = Conv2d(3, 8, kernel_size=3, padding=1)
    flops = FlopCountAnalysis(layer, torch.zeros(1, 3, 16, 16))
    assert flops.total() == 8 * 3 * 9 * 16 * 16
