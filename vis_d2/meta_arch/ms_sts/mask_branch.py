"""Masks of chosen queries: three small convolutions, whose weights a query brings along."""

from typing import List, Optional, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_d2.layers import MLP, checkpointed

from .levels import frame_slices

__all__ = ["MaskBranch", "MaskFeatures", "doubled", "dynamic_masks"]

STRIDE = 8  # of the features; masks have half of it
FEATURES = 8  # of a cell, and hidden channels of a mask
# Numbers of weights and biases of the three convolutions; the first one has x and y in front of
# the features.
WEIGHTS = ((FEATURES, FEATURES + 2), (FEATURES, FEATURES), (1, FEATURES))
BIASES = (FEATURES, FEATURES, 1)
NUM_PARAMETERS = sum(m * n for m, n in WEIGHTS) + sum(BIASES)  # 169

# Mask cells (masks x frames x h x w) that exist at a time without gradients, at least one mask's
# in one frame: two hidden layers of 8 channels, 32 MB.
CHUNK_CELLS = 1 << 19


class MaskFeatures(nn.Module):
    """Features of every cell of stride 8 from three levels of encoded frames.

    Args:
        channels: C, at least 4.
    """

    def __init__(self, *, channels: int = 256) -> None:
        super().__init__()
        self.lay3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.lay4 = nn.Conv2d(channels, channels, 3, padding=1)
        self.dcn = nn.Conv2d(channels, channels, 3, padding=1)  # named after what it is no more
        self.lay1 = nn.Conv2d(channels, channels // 4, 3, padding=1)
        self.lay2 = nn.Conv2d(channels // 4, FEATURES, 3, padding=1)
        for conv in self.children():
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor], valid: Optional[Sequence[Tensor]] = None) -> Tensor:
        """Features of F frames.

        Args:
            maps: (F, C, h, w) at strides 8, 16 and 32.
            valid: (F, h, w) of each map, bool, cells that are no padding. None: all.

        Returns:
            (F, 8, h, w) at stride 8.
        """
        masks = [None] * 3 if valid is None else [~mask[:, None] for mask in valid]

        def run(conv: nn.Conv2d, x: Tensor, level: int) -> Tensor:
            # What a convolution makes of padding would look into the frame at the next one.
            x = conv(x).relu()
            return x if masks[level] is None else x.masked_fill(masks[level], 0.0)

        fine, middle, coarse = maps
        x = run(self.lay3, coarse, 2)
        x = run(self.lay4, middle + F.interpolate(x, size=middle.shape[-2:], mode="nearest"), 1)
        x = fine + F.interpolate(x, size=fine.shape[-2:], mode="nearest")
        for conv in (self.dcn, self.lay1, self.lay2):
            x = run(conv, x, 0)
        return x


class MaskBranch(nn.Module):
    """Masks of any choice of queries. Source of their form: "Conditional Convolutions for Instance
    Segmentation" (2020).

    Args:
        channels: C of queries and memory.
        recompute: compute the activations again in the backward pass instead of storing them.
    """

    def __init__(self, *, channels: int = 256, recompute: bool = False) -> None:
        super().__init__()
        self.controller = MLP(
            in_dim=channels, hidden_dim=channels, out_dim=NUM_PARAMETERS, num_layers=3
        )
        for layer in self.controller.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.mask_head = MaskFeatures(channels=channels)
        self.recompute = recompute

    def features(
        self, memory: Sequence[Tensor], valid: Optional[Sequence[Tensor]] = None
    ) -> Tensor:
        """What all queries' masks are made of.

        Args:
            memory: of ``ClipStates``: (B, T, C, h, w) at strides 8, 16 and 32.
            valid: of ``ClipStates``: (B, h, w) of each map, bool, cells that are no padding. None:
                all; where there is padding, cells beside it then see it.

        Returns:
            (B, T, 8, H / 8, W / 8).
        """
        frames = memory[0].shape[:2]
        maps = [level.flatten(0, 1) for level in memory]  # (B, T, C, h, w) -> (B * T, C, h, w)
        masks = None
        if valid is not None:
            masks = [mask.repeat_interleave(frames[1], dim=0) for mask in valid]
        run = checkpointed(self.mask_head, self.mask_head) if self.recompute else self.mask_head
        found = [
            run([x[part] for x in maps], None if masks is None else [m[part] for m in masks])
            for part in frame_slices(len(maps[0]), maps[0].device)
        ]
        return torch.cat(found).unflatten(0, frames)

    def forward(self, features: Tensor, rows: Tensor, states: Tensor, centers: Tensor) -> Tensor:
        """Masks of R queries.

        Args:
            features: (B, T, 8, h, w) of ``features``.
            rows: (R,) int64, the clip of each query.
            states: (R, C), the queries.
            centers: (R, T, 2), where each looked in each frame: x and y in pixels of the frame.

        Returns:
            (R, T, 2 h, 2 w) logits, float32, at stride 4.
        """
        parameters = self.controller(states)
        run = checkpointed(_clip_masks, self) if self.recompute else _clip_masks
        # Coordinates of a thousand pixels are no numbers for half precision.
        with torch.autocast(features.device.type, enabled=False):
            clips = [(rows == b).nonzero()[:, 0] for b in range(len(features))]
            masks = torch.cat(
                [
                    run(clip.float(), parameters[mine].float(), centers[mine].float())
                    for clip, mine in zip(features, clips)
                ]
            )
        order = torch.cat(clips)
        if torch.equal(order, torch.arange(len(rows), device=rows.device)):
            return masks  # the usual case: clip after clip
        return masks[order.argsort()]


def _clip_masks(features: Tensor, parameters: Tensor, centers: Tensor) -> Tensor:
    """Masks (R, T, 2 h, 2 w) of one clip's queries; without gradients few of them at a time."""
    length, _, height, width = features.shape
    if torch.is_grad_enabled() or not len(parameters):
        return doubled(dynamic_masks(features, parameters, centers))
    frames = min(max(CHUNK_CELLS // (height * width), 1), length)
    step = max(CHUNK_CELLS // (frames * height * width), 1)
    out = features.new_empty((len(parameters), length, 2 * height, 2 * width))
    for t in range(0, length, frames):
        for r in range(0, len(parameters), step):
            some, these = slice(r, r + step), slice(t, t + frames)
            found = dynamic_masks(features[these], parameters[some], centers[some, these])
            out[some, these] = doubled(found)
    return out


def dynamic_masks(features: Tensor, parameters: Tensor, centers: Tensor) -> Tensor:
    """Three 1 x 1 convolutions of each query on its distance to every cell and the features.

    The distance, (centre x - cell x, centre y - cell y) in pixels, enters linearly: the cell's part
    is that of two more features, the centre's a bias of the frame. Neither is ever as large as
    queries times cells.

    Args:
        features: (T, 8, h, w) of one clip.
        parameters: (R, 169), weights of the three layers, then their biases.
        centers: (R, T, 2), pixels.

    Returns:
        (R, T, h, w) logits.
    """
    length, _, height, width = features.shape
    count = len(parameters)
    numbers = parameters.split([m * n for m, n in WEIGHTS] + list(BIASES), dim=1)
    weights = [w.unflatten(1, shape) for w, shape in zip(numbers, WEIGHTS)]  # each (R, out, in)
    biases = numbers[3:]  # each (R, out)
    inputs = torch.cat([-_cell_centres(features), features.transpose(0, 1)])  # (10, T, h, w)
    # (R, 8, 2) x (R, 2, T) -> (R, 8, T): what the centres add
    offset = biases[0][..., None] + weights[0][..., :2] @ centers.transpose(1, 2)
    # (R * 8, 10) x (10, T * h * w) -> (R, 8, T, h * w)
    x = weights[0].flatten(0, 1) @ inputs.flatten(1)
    x = x.view(count, FEATURES, length, height * width)
    x = (x.add_(offset[..., None])).relu_().flatten(2)  # (R, 8, T * h * w)
    x = torch.baddbmm(biases[1][..., None], weights[1], x).relu_()
    x = torch.baddbmm(biases[2][..., None], weights[2], x)
    return x.view(count, length, height, width)  # (R, 1, T * h * w) -> (R, T, h, w)


def _cell_centres(features: Tensor) -> Tensor:
    """x and y in pixels of the cells of features (T, 8, h, w), (2, T, h, w)."""
    length, _, height, width = features.shape
    y, x = (
        torch.arange(n, device=features.device) * float(STRIDE) + STRIDE // 2
        for n in (height, width)
    )
    grid: List[Tensor] = [x[None, None].expand(length, height, width)]
    grid.append(y[None, :, None].expand(length, height, width))
    return torch.stack(grid)


def doubled(masks: Tensor) -> Tensor:
    """Masks (..., h, w) at twice the size, so that cells keep their corners in place.

    Value i of a line goes to 2 i + 1, and the mean of values i - 1 and i to 2 i, at the start of
    the line the first value itself.
    """
    for dim in (-1, -2):
        first, rest = masks.narrow(dim, 0, 1), masks.narrow(dim, 0, masks.shape[dim] - 1)
        before = torch.cat([first, rest], dim)
        pairs = torch.stack([(before + masks) / 2, masks], dim=dim)
        masks = pairs.flatten(dim - 1, dim)  # (..., w, 2) -> (..., 2 w); (..., h, 2, w) likewise
    return masks
