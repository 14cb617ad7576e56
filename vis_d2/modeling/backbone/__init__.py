"""Backbones beside those that detectron2 registers."""

from .fpn import build_resnet_fpn_p5_backbone
from .parts import clip_features
from .timm import TimmBackbone, build_timm_backbone

__all__ = ["TimmBackbone", "build_resnet_fpn_p5_backbone", "build_timm_backbone", "clip_features"]
