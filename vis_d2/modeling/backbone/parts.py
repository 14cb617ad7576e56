"""A backbone over the frames of a clip."""

from typing import Dict

import torch
from torch import Tensor, nn

__all__ = ["clip_features"]

# Activations of more frames do not stay in a processor's cache: a ResNet-50 over 36 frames of
# 384 x 640 took 490 ms per frame at once, 340 four by four and 220 two by two (2 cores).
FRAMES_ON_CPU = 2


def clip_features(backbone: nn.Module, frames: Tensor) -> Dict[str, Tensor]:
    """Maps of all frames; on a CPU, of few frames at a time.

    Args:
        backbone: gives maps by name. In training it gets all frames at once, since its
            normalisations may learn from the batch.
        frames: (F, 3, H, W), F >= 1.

    Returns:
        Maps (F, C, h, w) by name.
    """
    if backbone.training or frames.device.type != "cpu":
        return backbone(frames)
    parts = [backbone(part) for part in frames.split(FRAMES_ON_CPU)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
