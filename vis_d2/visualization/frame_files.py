"""Drawn frames as PNG files instead of a video."""

from pathlib import Path
from typing import Any, Sequence

import numpy as np


class FrameFiles:
    """Writes each frame as a PNG file of its own; takes the place of a ``VideoWriter``.

    Attributes:
        path: the folder.
        num_frames: frames written so far.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        """
        Args:
            path: folder to write to; made if it does not exist.
            names: file name without extension of each frame.
        """
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.num_frames = 0
        self._names = list(names)

    def write(self, frame: np.ndarray) -> None:
        """Write the next frame, (H, W, 3) uint8 BGR."""
        from PIL import Image

        target = self.path / f"{self._names[self.num_frames]}.png"
        # Level 1 is four times as fast as the default and hardly larger.
        Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1])).save(target, compress_level=1)
        self.num_frames += 1

    def __enter__(self) -> "FrameFiles":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass
