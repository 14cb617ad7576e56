"""Small parts of HITF for its tests."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from systems import small_cfg
from vis_d2.meta_arch.hitf import HITF
from vis_d2.meta_arch.hitf.dual_path import AttentionDims
from vis_d2.meta_arch.hitf.norms import Norms

DIMS = AttentionDims(code=8, key=4, value=8, heads=2, ffn=12)
BN, LN = Norms(kind="BN"), Norms(kind="LN")


def cfg_with(*opts) -> CfgNode:
    """A tiny config; keys without a dot are those of the room."""
    named = (f"MODEL.HITF.{x}" if i % 2 == 0 and "." not in x else x for i, x in enumerate(opts))
    return small_cfg("hitf", *named)


def build(*opts) -> HITF:
    torch.manual_seed(0)
    return build_model(cfg_with(*opts))


def awake(module: nn.Module) -> nn.Module:
    """As after some training, for inference: no branch is silent, no statistic is a default."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(part, name, None)
            if isinstance(value, torch.Tensor) and value.dim() < 2 and hasattr(part, "eps"):
                low = 0.0 if name in ("bias", "running_mean") else 0.5
                value.data.uniform_(low, low + 0.5, generator=generator)
    for table in module.parameters():
        if table.dim() in (2, 3):  # positions
            table.data.normal_(generator=generator)
    return module.eval()
