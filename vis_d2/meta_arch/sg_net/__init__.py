"""SG-Net (Liu et al., CVPR 2021): online video instance segmentation in one stage."""

from .sg_net import SGNet

__all__ = ["SGNet"]
