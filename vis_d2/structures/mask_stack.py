"""Many masks of one size, read from their strings once and kept as numbers."""

from dataclasses import dataclass
from typing import List, Sequence, Tuple

import numpy as np

from .rle_counts import Runs, run_lengths

# Masks that are read at once: enough to spread the cost of a call, few enough for the cache.
_CHUNK = 1024


@dataclass(frozen=True)
class MaskStack:
    """Run lengths of n masks.

    Attributes:
        size: (H, W).
        ends: (R,) int32, where the runs of each mask end in its H * W pixels, column by column;
            background first.
        offsets: (n + 1,) int64; those of mask i are ``ends[offsets[i]:offsets[i + 1]]``.
        areas: (n,) int64 pixels.
    """

    size: Tuple[int, int]
    ends: np.ndarray
    offsets: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)


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
    pixels = size[0] * size[1]
    step = max(1, min(_CHUNK, (2**31 - 1) // pixels))  # sums over a chunk fit 32 bits
    ends: List[np.ndarray] = []
    checks, areas, amounts = [], [], []
    for start in range(0, len(counts), step):
        runs = run_lengths(counts[start : start + step])
        checks.append(runs.check(pixels))
        areas.append(runs.areas())
        amounts.append(np.diff(runs.offsets))
        ends.append(_ends(runs, amounts[-1], pixels))
    if not ends:
        nothing = np.zeros(0, np.int64)
        empty = MaskStack(size, nothing.astype(np.int32), np.zeros(1, np.int64), nothing)
        return empty, nothing > 0, nothing > 0
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(amounts))])
    stack = MaskStack(size, _joined(ends), offsets, _joined(areas))
    valid, tidy = zip(*checks)
    return stack, _joined(valid), _joined(tidy)


def _ends(runs: Runs, amounts: np.ndarray, pixels: int) -> np.ndarray:
    """A sum that runs through all masks, each of which has this number of pixels."""
    ends = np.cumsum(runs.lengths, dtype=np.int32)
    return ends - np.repeat(np.arange(len(amounts), dtype=np.int32) * np.int32(pixels), amounts)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
