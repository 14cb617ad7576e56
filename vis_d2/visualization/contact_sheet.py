"""A video at a glance: frames spread evenly over its length in one picture."""

import math
import os
from typing import List, Tuple, Union

import numpy as np

from .labels import draw_chip

_GAP = 6
_BACKGROUND = 24


class ContactSheet:
    """Take every frame of a video of unknown length and keeps a few small ones, evenly spread.

    It keeps every frame at first, and every second of what it has whenever that becomes too much:
    at most ``4 * num_frames`` thumbnails exist, however long the video is.
    """

    def __init__(self, num_frames: int = 9, max_side: int = 480) -> None:
        """
        Args:
            num_frames: frames on the sheet (fewer if the video has fewer), >= 1.
            max_side: longer side of a frame on the sheet, pixels; smaller frames are not enlarged.

        Raises:
            ValueError: ``num_frames`` below 1.
        """
        if num_frames < 1:
            raise ValueError(f"a contact sheet needs at least one frame, got {num_frames}")
        self.num_frames = num_frames
        self.max_side = max_side
        self._kept: List[Tuple[int, np.ndarray]] = []
        self._every = 1

    def add(self, index: int, frame: np.ndarray) -> None:
        """Offer frame ``index`` of the video, (H, W, 3) uint8 BGR; call in order from 0."""
        if index % self._every:
            return
        if len(self._kept) == 4 * self.num_frames:
            self._every *= 2
            self._kept = self._kept[::2]
            if index % self._every:
                return
        self._kept.append((index, self._thumbnail(frame)))

    def picture(self) -> np.ndarray:
        """The sheet, uint8 BGR, each frame with its number; ValueError if no frame was added."""
        if not self._kept:
            raise ValueError("a contact sheet of a video without frames")
        count = min(self.num_frames, len(self._kept))
        chosen = np.linspace(0, len(self._kept) - 1, count).round().astype(int)
        frames = [self._kept[i] for i in chosen]
        height, width = frames[0][1].shape[:2]
        columns = _columns(count, height, width)
        rows = math.ceil(count / columns)
        shape = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3)
        sheet = np.full(shape, _BACKGROUND, dtype=np.uint8)
        for place, (index, frame) in enumerate(frames):
            y = _GAP + (place // columns) * (height + _GAP)
            x = _GAP + (place % columns) * (width + _GAP)
            cell = frame.copy()
            size = max(10, height // 18)
            draw_chip(cell, f"frame {index}", size, (0, height - size - size // 2), (40, 40, 40))
            sheet[y : y + height, x : x + width] = cell
        return sheet

    def save(self, path: Union[str, "os.PathLike[str]"]) -> None:
        """Write the sheet as PNG."""
        from PIL import Image

        rgb = np.ascontiguousarray(self.picture()[:, :, ::-1])
        Image.fromarray(rgb).save(path, format="PNG")

    def _thumbnail(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        scale = self.max_side / max(frame.shape[:2])
        if scale >= 1.0:
            return frame.copy()
        size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
        return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _columns(count: int, height: int, width: int) -> int:
    """Columns that make the sheet closest to 4:3 with few empty cells."""

    def badness(columns: int) -> float:
        rows = math.ceil(count / columns)
        shape = abs(math.log(columns * width / (rows * height) * 3 / 4))
        return shape + (rows * columns - count) / count

    return min(range(1, count + 1), key=badness)
