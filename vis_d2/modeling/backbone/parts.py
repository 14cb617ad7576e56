"""A backbone over the frames of a clip."""

from typing import Dict

import torch
from torch import Tensor, nn

from vis_d2.layers import checkpointed

__all__ = ["clip_features"]

# Activations of more frames do not stay in a processor's cache: a ResNet-50 over 36 frames of
# 384 x 640 took 490 ms per frame at once, 340 four by four and 220 two by two (2 cores).
FRAMES_ON_CPU = 2
FRAMES_RECOMPUTED = 6  # whose activations exist at a time


def clip_features(
    backbone: nn.Module, frames: Tensor, recompute: bool = False
) -> Dict[str, Tensor]:
    """Maps of all frames; on a CPU, of few frames at a time.

    Args:
        backbone: gives maps by name. In training it gets all frames at once, since its
            normalisations may learn from the batch.
        frames: (F, 3, H, W), F >= 1.
        recompute: store no activations for the backward pass, but recompute them there; of few
            frames at a time where no normalisation learns from the batch.

    Returns:
        Maps (F, C, h, w) by name.
    """
    run = checkpointed(backbone, backbone) if recompute else backbone
    parts = [run(part) for part in frames.split(_at_a_time(backbone, frames, recompute))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _at_a_time(backbone: nn.Module, frames: Tensor, recompute: bool) -> int:
    if recompute and torch.is_grad_enabled():
        norms = (nn.modules.batchnorm._BatchNorm,)
        whole = any(isinstance(m, norms) and m.training for m in backbone.modules())
        return len(frames) if whole else FRAMES_RECOMPUTED
    if backbone.training or frames.device.type != "cpu":
        return len(frames)
    return FRAMES_ON_CPU
