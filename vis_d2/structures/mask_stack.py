"""Many masks of one size, read from their strings once and kept as numbers."""

from dataclasses import dataclass
from typing import Sequence, Tuple

import numpy as np

from .rle_counts import Runs, read_runs

# Masks that are read at once: enough to spread the cost of a call, few enough for the cache.
_CHUNK = 1024


@dataclass(frozen=True)
class MaskStack:
    """Foreground runs of n masks.

    Attributes:
        size: (H, W).
        begins, ends: (R,) int32, where runs begin and end in the H * W pixels of their mask,
            column by column. The last of a mask may be empty, at the end of the frame.
        offsets: (n + 1,) int64; those of mask i are at ``offsets[i]:offsets[i + 1]``.
        areas: (n,) int64 pixels.
    """

    size: Tuple[int, int]
    begins: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)

    def amounts(self) -> np.ndarray:
        """(n,) int64 runs of each mask that are not empty."""
        last = self.offsets[1:] - 1
        return np.diff(self.offsets) - (self.begins[last] == self.ends[last])

    def columns(self) -> Tuple[np.ndarray, np.ndarray]:
        """(n,) int32 first column and end column of each mask; W and 0 if it is empty."""
        height, width = self.size
        starts, amounts = self.offsets[:-1], self.amounts()
        first = self.begins[starts] // height
        last = (self.ends[starts + np.maximum(amounts - 1, 0)] - 1) // height
        return np.where(amounts, first, np.int32(width)), np.where(amounts, last + 1, np.int32(0))


def join_stacks(stacks: Sequence[MaskStack]) -> MaskStack:
    """The masks of several stacks of the same size, at least one, in a single one."""
    if len(stacks) == 1:
        return stacks[0]
    begins, ends, areas = (
        np.concatenate([getattr(stack, name) for stack in stacks])
        for name in ("begins", "ends", "areas")
    )
    amounts = np.concatenate([np.diff(stack.offsets) for stack in stacks])
    return MaskStack(stacks[0].size, begins, ends, np.append(0, np.cumsum(amounts)), areas)


def read_stack(
    counts: Sequence[str], size: Tuple[int, int]
) -> Tuple[MaskStack, np.ndarray, np.ndarray]:
    """Read the ``counts`` of n compressed RLEs and check them.

    Returns:
        The masks, and ``valid`` and ``tidy`` of :meth:`Runs.check`; without valid masks, what the
        stack holds in their place is meaningless.

    Raises:
        ValueError: one of the strings is not of the form that pycocotools writes.
    """
    nothing = np.zeros(0, np.int64)
    if not counts:
        runs = nothing.astype(np.int32)
        empty = MaskStack(size, runs, runs, np.zeros(1, np.int64), nothing)
        return empty, nothing > 0, nothing > 0
    pixels = size[0] * size[1]
    step = max(1, min(_CHUNK, (2**31 - 1) // pixels))  # sums over a chunk fit 32 bits
    parts = []
    for start in range(0, len(counts), step):
        runs = read_runs(counts[start : start + step])
        amounts = np.diff(runs.offsets)
        parts.append((*_places(runs, amounts), amounts, runs.areas, *runs.check(pixels)))
    begins, ends, amounts, areas, valid, tidy = map(_joined, zip(*parts))
    offsets = np.concatenate([[0], np.cumsum(amounts)])
    return MaskStack(size, begins, ends, offsets, areas), valid, tidy


def _places(runs: Runs, amounts: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Where foreground runs begin and end: a sum through all masks, less what came before each."""
    pairs = runs.background + runs.foreground
    ends = np.cumsum(pairs, dtype=np.int32)
    starts = runs.offsets[:-1]
    ends -= np.repeat(ends[starts] - pairs[starts], amounts)
    return ends - runs.foreground, ends


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
