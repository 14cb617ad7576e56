"""Where the cells of a clip's maps lie, and which of them are padding."""

from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from vis_d2.structures import valid_cells

__all__ = ["Levels", "frame_slices"]

Size = Tuple[int, int]
STRIDES = (8, 16, 32, 64)  # pixels from cell to cell, of the four levels

# Frames that a layer takes at a time without gradients, where it does not look from frame to frame:
# their activations, many times wider than the maps, are all that need memory, and stay in a
# processor's cache.
FRAMES_ON_CPU, FRAMES_ON_GPU = 2, 12


@dataclass(frozen=True)
class Levels:
    """Cells of four levels of B clips, S = h1 * w1 + ... of them, level by level and row by row.

    Frames of a clip have the same size, hence the same padding.

    Attributes:
        shapes: (h, w) of each level.
        ratios: (B, 4, 2) float, the part of each level's width and height that is no padding.
        valid: (B, S) bool, cells that are no padding; None: all.
    """

    shapes: List[Size]
    ratios: Tensor
    valid: Optional[Tensor]

    @classmethod
    def of(cls, shapes: Sequence[Size], sizes: Sequence[Size], device: torch.device) -> "Levels":
        """Levels of ``shapes``, of clips whose frames have ``sizes`` (height, width) in pixels.

        A cell is padding where its pixel is, the one at ``stride`` times its index.
        """
        shapes = [(int(h), int(w)) for h, w in shapes]
        counts = [
            [[min(-(-int(n) // stride), most) for n, most in zip(size, shape)] for size in sizes]
            for stride, shape in zip(STRIDES, shapes)
        ]  # levels x B x (height, width)
        full = torch.tensor(shapes, dtype=torch.float32, device=device)  # (4, 2)
        # (4, B, 2) -> (B, 4, 2), height and width -> width and height
        ratios = (torch.tensor(counts, device=device).transpose(0, 1) / full).flip(-1)
        if all(list(shape) == count for shape, row in zip(shapes, counts) for count in row):
            return cls(shapes, ratios, None)
        masks = [valid_cells(sizes, s, shape, device) for s, shape in zip(STRIDES, shapes)]
        # (B, h, w) -> (B, h * w) -> (B, S)
        return cls(shapes, ratios, torch.cat([mask.flatten(1) for mask in masks], dim=1))

    @property
    def areas(self) -> List[int]:
        """Cells of each level."""
        return [h * w for h, w in self.shapes]

    def maps(self, tokens: Tensor) -> List[Tensor]:
        """Tokens (B, ..., S) as a map (B, ..., h, w) of each level."""
        return [part.unflatten(-1, s) for part, s in zip(tokens.split(self.areas, -1), self.shapes)]

    def padding(self, length: int) -> Optional[Tensor]:
        """(B * T, S) bool, True in the padding of T = ``length`` frames per clip; None: nowhere."""
        if self.valid is None:
            return None
        return (~self.valid).repeat_interleave(length, dim=0)

    def places(self, reference: Tensor) -> Tensor:
        """Shares of the frame as shares of the levels, which are larger where there is padding.

        Args:
            reference: (B, ..., n), n = 2 (x, y) or 4 (centre x, y, width, height).

        Returns:
            (B, ..., 4, n), one place per level.
        """
        scale = self.ratios.repeat(1, 1, reference.shape[-1] // 2)  # (B, 4, n)
        # (B, 4, n) -> (B, 1, ..., 1, 4, n)
        scale = scale.view(len(scale), *[1] * (reference.dim() - 2), *scale.shape[1:])
        return reference[..., None, :] * scale

    def grid(self) -> Tensor:
        """The middle of every cell on all levels, (B, S, 4, 2) as (x, y) shares of the level."""
        centres = []
        for (h, w), ratio in zip(self.shapes, self.ratios.unbind(1)):
            # (h, w) -> (h * w, 2), pixels of the level
            y, x = torch.meshgrid(
                *(torch.arange(n, device=ratio.device) + 0.5 for n in (h, w)), indexing="ij"
            )
            points = torch.stack([x, y], dim=-1).flatten(0, 1)
            # shares of the frame: (h * w, 2) / (B, 1, 2) -> (B, h * w, 2)
            centres.append(points / (ratio * ratio.new_tensor([w, h]))[:, None])
        return self.places(torch.cat(centres, dim=1))


def frame_slices(total: int, device: torch.device) -> Iterator[slice]:
    """Frames to take at a time: all for a backward pass, few without."""
    step = FRAMES_ON_CPU if device.type == "cpu" else FRAMES_ON_GPU
    if torch.is_grad_enabled():
        step = max(total, 1)
    return (slice(start, start + step) for start in range(0, total, step))
