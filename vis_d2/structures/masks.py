"""From a model's mask values to masks at output size."""

from typing import Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["finish_masks"]


def finish_masks(
    values: Tensor,
    *,
    padded_size: Tuple[int, int],
    image_size: Tuple[int, int],
    output_size: Tuple[int, int],
    threshold: float,
) -> Tensor:
    """Resize values to the network input, cut its padding off, resize to the output, threshold.

    The two resizes take explicit sizes: a scale factor rounds differently from the sizes that the
    image was resized with and shifts masks by up to a pixel.

    Args:
        values: (n, h, w) float; logits (then ``threshold=0``) or probabilities (then 0.5).
        padded_size: (height, width) of the padded network input.
        image_size: (height, width) of the network input without its padding.
        output_size: (height, width) of the result.
        threshold: a pixel belongs to the mask where its value is above this.

    Returns:
        (n, output height, output width) bool.
    """
    if len(values) == 0:
        return torch.zeros((0, *output_size), dtype=torch.bool, device=values.device)
    values = values[:, None].float()  # (n, h, w) -> (n, 1, h, w), as interpolate wants it
    if values.shape[-2:] != tuple(padded_size):
        values = F.interpolate(values, size=padded_size, mode="bilinear", align_corners=False)
    values = values[..., : image_size[0], : image_size[1]]
    if tuple(image_size) != tuple(output_size):
        values = F.interpolate(values, size=output_size, mode="bilinear", align_corners=False)
    return values[:, 0] > threshold
