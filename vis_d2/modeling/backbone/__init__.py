"""Backbones beside those that detectron2 registers."""

from .fpn import build_resnet_fpn_p5_backbone

__all__ = ["build_resnet_fpn_p5_backbone"]
