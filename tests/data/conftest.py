"""A small data set in YouTube-VIS format that tests change as they need."""

import json
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest
from PIL import Image

HEIGHT, WIDTH, LENGTH = 24, 32, 3


def rectangle(x: int, y: int, w: int, h: int) -> Dict[str, Any]:
    """RLE with a list of run lengths, written down without the code under test."""
    runs, end = [], 0
    for column in range(x, x + w):
        start = column * HEIGHT + y
        runs += [start - end, h]
        end = start + h
    return {"size": [HEIGHT, WIDTH], "counts": [*runs, HEIGHT * WIDTH - end]}


def make_content() -> Dict[str, Any]:
    """Two videos; the first with a track in all frames and one that is absent in frame 1."""
    video = {"height": HEIGHT, "width": WIDTH, "length": LENGTH}
    files = [[f"{name}/{t}.png" for t in range(LENGTH)] for name in ("first", "second")]
    moving = [rectangle(2 + 4 * t, 4, 8, 6) for t in range(LENGTH)]
    gone = [rectangle(20, 10, 5, 5), None, rectangle(20, 12, 5, 5)]
    return {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "videos": [
            {"id": 10, "file_names": files[0], **video},
            {"id": 20, "file_names": files[1], **video},
        ],
        "annotations": [
            {
                "id": 5,
                "video_id": 10,
                "category_id": 7,
                "iscrowd": 0,
                "bboxes": [[2 + 4 * t, 4, 8, 6] for t in range(LENGTH)],
                "areas": [48] * LENGTH,
                "segmentations": moving,
            },
            {
                "id": 6,
                "video_id": 10,
                "category_id": 3,
                "iscrowd": 0,
                "bboxes": [[20, 10, 5, 5], None, [20, 12, 5, 5]],
                "areas": [25, None, 25],
                "segmentations": gone,
            },
            {
                "id": 8,
                "video_id": 20,
                "category_id": 3,
                "segmentations": [None, rectangle(1, 1, 4, 4), None],
            },
        ],
    }


@pytest.fixture
def content() -> Dict[str, Any]:
    return make_content()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[Any], str]:
    """Writes the content as JSON and gives the path."""

    def write(content: Any) -> str:
        path = tmp_path / "set.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Frames for both videos: noise that differs from frame to frame."""
    rng = np.random.default_rng(0)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        for t in range(LENGTH):
            noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{t}.png")
    return tmp_path
