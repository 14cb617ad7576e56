"""Where the frames of a batch end and their padding begins."""

from typing import Optional, Sequence, Tuple

import torch
from detectron2.structures import ImageList
from torch import Tensor

__all__ = ["frame_sizes", "valid_cells"]


def frame_sizes(images: ImageList, batch: int) -> Tensor:
    """Width, height, width, height of each clip's frames without padding, (B, 4) float.

    Args:
        images: B * T frames, clip-major; those of a clip have one size.
        batch: B.
    """
    length = len(images.tensor) // batch
    sizes = [images.image_sizes[b * length] for b in range(batch)]
    return torch.tensor([[w, h, w, h] for h, w in sizes], device=images.tensor.device).float()


def valid_cells(
    sizes: Sequence[Tuple[int, int]],
    stride: int,
    shape: Tuple[int, int],
    device: Optional[torch.device] = None,
) -> Tensor:
    """Cells of a map that lie on a frame and not on its padding.

    Cell i lies on pixel ``stride * i``, as padded convolutions place it and as a nearest resize
    reads it.

    Args:
        sizes: (height, width) of each frame in pixels.
        stride: pixels from cell to cell.
        shape: (h, w) of the map.
        device: of the result.

    Returns:
        (F, h, w) bool.
    """
    y, x = (torch.arange(n, device=device) * stride for n in shape)
    # As numbers: while a model is traced, sizes are tensors.
    limits = torch.tensor([[int(n) for n in size] for size in sizes], device=device)  # (F, 2)
    return (y < limits[:, :1])[:, :, None] & (x < limits[:, 1:])[:, None]
