"""Made-up videos for measurements."""

import json
from pathlib import Path
from typing import Iterator, Sequence, Tuple

import numpy as np


def synthetic_frames(
    size: Tuple[int, int], num_frames: int, num_objects: int
) -> Iterator[np.ndarray]:
    """Textured squares that drift over a noisy background.

    Args:
        size: (H, W) in pixels.
        num_frames, num_objects: how many.

    Yields:
        (H, W, 3) uint8 BGR, the same ones at every call.
    """
    rng = np.random.default_rng(0)
    height, width = size
    side = max(4, min(size) // 4)
    background = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
    squares = rng.integers(0, 255, (num_objects, side, side, 3), dtype=np.uint8)
    places = rng.uniform(0, 1, (num_objects, 2))
    for t in range(num_frames):
        frame = background.copy()
        for square, (row, column) in zip(squares, places):
            y = int(row * (height - side))
            x = int((column * width + 3 * t) % (width - side))
            frame[y : y + side, x : x + side] = square
        yield frame


def write_frames(folder: Path, size: Tuple[int, int], num_frames: int, num_objects: int) -> None:
    """Write synthetic frames as JPEG files ``00000.jpg``, ``00001.jpg`` …"""
    from PIL import Image

    for t, frame in enumerate(synthetic_frames(size, num_frames, num_objects)):
        Image.fromarray(frame[:, :, ::-1].copy()).save(folder / f"{t:05d}.jpg", quality=90)


def write_video_json(
    path: Path, size: Tuple[int, int], num_frames: int, class_names: Sequence[str]
) -> None:
    """Describe what :func:`write_frames` wrote as a data set of one video without annotations."""
    video = {
        "id": 1,
        "height": size[0],
        "width": size[1],
        "length": num_frames,
        "file_names": [f"{t:05d}.jpg" for t in range(num_frames)],
    }
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
    path.write_text(json.dumps({"videos": [video], "categories": categories}), encoding="utf8")
