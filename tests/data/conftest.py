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


def make_coco() -> Dict[str, Any]:
    """Five images: polygons, run lengths, crowds, classes that a video data set may not have."""
    names = {1: "person", 2: "bicycle", 4: "motorcycle", 17: "cat", 47: "cup", 74: "mouse"}
    square = [[2, 2, 14, 2, 14, 10, 2, 10]]  # 12 x 8 pixels
    rows = [
        (11, 1, square, 0),
        (11, 74, [[20, 10, 24, 10, 24, 14, 20, 14]], 0),
        (11, 1, rectangle(0, 15, 30, 5), 1),
        (12, 2, rectangle(4, 4, 10, 12), 0),
        (12, 4, [[10, 8, 20, 8, 20, 20, 10, 20]], 0),
        (13, 47, square, 0),
        (14, 1, rectangle(3, 3, 20, 18), 1),
        (15, 17, [[1, 1, 9, 1, 9, 9, 1, 9], [12, 12, 16, 12, 16, 16, 12, 16]], 0),
    ]
    size = {"height": HEIGHT, "width": WIDTH}
    return {
        "images": [{"id": i, "file_name": f"{i:06}.png", **size} for i in range(11, 16)],
        "categories": [{"id": i, "name": name} for i, name in names.items()],
        "annotations": [
            {
                "id": 900 + i,
                "image_id": image,
                "category_id": c,
                "segmentation": s,
                "iscrowd": crowd,
            }
            for i, (image, c, s, crowd) in enumerate(rows)
        ],
    }


@pytest.fixture
def coco() -> Dict[str, Any]:
    return make_coco()


@pytest.fixture
def coco_folder(tmp_path: Path) -> Path:
    """The images of ``coco``, as DETECTRON2_DATASETS/coco has them, and room for annotations."""
    folder = tmp_path / "coco" / "train2017"
    folder.mkdir(parents=True)
    (tmp_path / "coco" / "annotations").mkdir()
    rng = np.random.default_rng(1)
    for i in range(11, 16):
        noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i:06}.png")
    return folder


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
