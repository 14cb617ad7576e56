"""From a model's mask values to masks at output size."""

from typing import Tuple

import torch
from detectron2.layers import paste_masks_in_image
from torch import Tensor
from torch.nn import functional as F

from vis_d2.compat import paste_batch

__all__ = ["finish_masks", "finish_rois", "paste_rois"]

# A box without area would divide by zero. The second number is a share of the coordinate: far out,
# the first is lost in rounding.
SMALLEST_SIDE, SMALLEST_SHARE = 1e-3, 1e-6  # pixels, 1


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


def finish_rois(
    probs: Tensor, boxes: Tensor, output_size: Tuple[int, int], threshold: float
) -> Tensor:
    """Paste the masks of boxes into a frame and threshold them.

    Args:
        probs: (n, m, m) in [0, 1], each the inside of its box.
        boxes: (n, 4) XYXY in pixels of the output; they may reach over its border.
        output_size: (height, width) of the result.
        threshold: a pixel belongs to the mask where its probability is at least this, in (0, 1].

    Returns:
        (n, output height, output width) bool, False outside of the boxes (for thresholds below
        0.5: further out than half a cell of the mask, see ``paste_rois``).
    """
    result = torch.zeros((len(probs), *output_size), dtype=torch.bool, device=probs.device)
    boxes = _with_area(boxes)
    limit = boxes.new_tensor([output_size[1], output_size[0]])
    # detectron2 fails on boxes that lie beside the frame; NaN compares False, too.
    inside = ((boxes[:, :2] < limit) & (boxes[:, 2:] > 0)).all(dim=1)
    if inside.any():
        pasted = paste_masks_in_image(probs[inside].float(), boxes[inside], output_size, threshold)
        result[inside] = pasted
    return result


def paste_rois(probs: Tensor, boxes: Tensor, size: Tuple[int, int]) -> Tensor:
    """Paste the masks of boxes into frames, without a threshold.

    Args:
        probs: (n, m, m), each the inside of its box.
        boxes: (n, 4) XYXY in pixels of the result.
        size: (h, w) of the result.

    Returns:
        (n, h, w) float. Values lie in the centres of the m x m cells and fade to 0 over one cell:
        they are half as large on the side of the box and 0 half a cell outside of it.
    """
    if len(probs) == 0:
        return probs.new_zeros((0, *size), dtype=torch.float32)
    # (n, m, m) -> (n, 1, m, m), as the sampler wants it
    return paste_batch(probs[:, None].float(), _with_area(boxes), size)


def _with_area(boxes: Tensor) -> Tensor:
    corner, other = boxes.float().split(2, dim=1)
    side = SMALLEST_SIDE + SMALLEST_SHARE * corner.abs()
    return torch.cat([corner, torch.maximum(other, corner + side)], dim=1)
