"""A small data set of moving shapes, drawn from a seed, written once in YouTube-VIS format.

It exists so that every system trains, is evaluated and is looked at within minutes, without a
download. What it looks like is in :mod:`.toy_drawing`, what it holds in ``datasets/README.md``.
"""

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple, Union

import numpy as np
import torch
from PIL import Image

from vis_d2.structures.rle import encode

from .toy_drawing import CATEGORIES, draw_video

__all__ = ["CATEGORIES", "write_toy"]

logger = logging.getLogger(__name__)

VERSION = 1  # raise it with every change that changes a pixel or an annotation
SEED = 0
SPLITS = {"train": 120, "val": 30}  # videos per split
MIN_VISIBLE = 16  # pixels; an object showing less counts as absent in that frame
JPEG_QUALITY = 90
_STAMP = "version.txt"


def write_toy(root: Union[str, Path], videos: Mapping[str, int] = SPLITS, seed: int = SEED) -> Path:
    """Writes the toy data set to ``root`` unless it is there.

    The files appear all at once (written beside ``root``, then renamed), so an interrupted run
    leaves nothing half-written, and of two processes that race one wins and both succeed.

    Args:
        root: folder that will hold ``{train,val}.json`` and ``{train,val}/JPEGImages``.
        videos: number of videos per split. A smaller number gives the first videos of the full set.
        seed: the same seed gives the same pixels and annotations.

    Returns:
        ``root``.

    Raises:
        FileExistsError: ``root`` exists but does not hold the data set.
    """
    root = Path(root)
    if not root.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        logger.info("Writing the toy data set to %s (once, a few seconds)", root)
        partial = Path(tempfile.mkdtemp(prefix=".toy-", dir=root.parent))
        try:
            partial.chmod(0o755)  # mkdtemp's 0700 would survive the rename
            for index, (split, count) in enumerate(videos.items()):
                _write_split(partial, split, count, (seed, index))
            (partial / _STAMP).write_text(f"{VERSION}\n")
            os.rename(partial, root)
        except OSError:
            if not root.is_dir():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    _check(root)
    return root


def _check(root: Path) -> None:
    stamp = root / _STAMP
    if not stamp.is_file():
        raise FileExistsError(
            f"{root} exists but has no {_STAMP}, so it is not the toy data set; remove the folder "
            "(it is then written anew) or set DETECTRON2_DATASETS"
        )
    version = stamp.read_text().strip()
    if version != str(VERSION):
        logger.warning(
            "%s is version %s of the toy data set, this program draws version %s; remove the "
            "folder to have it written anew",
            root,
            version,
            VERSION,
        )


def _write_split(root: Path, split: str, count: int, seed: Tuple[int, int]) -> None:
    videos: List[Dict[str, Any]] = []
    annotations: List[Dict[str, Any]] = []
    for index in range(count):
        rng = np.random.default_rng((*seed, index))
        frames, labels, categories = draw_video(rng)
        name = f"{split}_{index:03d}"
        folder = root / split / "JPEGImages"
        (folder / name).mkdir(parents=True)
        files = [f"{name}/{t:05d}.jpg" for t in range(len(frames))]
        for file, frame in zip(files, frames):
            Image.fromarray(frame).save(folder / file, quality=JPEG_QUALITY)
        height, width = labels.shape[1:]
        size = {"height": height, "width": width, "length": len(files)}
        videos.append({"id": index + 1, **size, "file_names": files})
        for row, category in enumerate(categories):
            track = _annotate(labels == row + 1)
            if any(track["segmentations"]):
                ids = {"id": len(annotations) + 1, "video_id": index + 1}
                annotations.append({**ids, "category_id": category + 1, **size, **track})
    content = {
        "info": {"description": "vis_d2 toy: moving shapes", "seed": seed[0]},
        "videos": videos,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)],
        "annotations": annotations,
    }
    (root / f"{split}.json").write_text(json.dumps(content))


def _annotate(masks: np.ndarray) -> Dict[str, Any]:
    """Turns the visible masks (T, H, W) bool of one object into the lists of the format."""
    masks = masks & (masks.sum((1, 2), keepdims=True) >= MIN_VISIBLE)
    boxes: List[Any] = []
    for mask in masks:
        if not mask.any():
            boxes.append(None)
            continue
        y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1)
        boxes.append([float(value) for value in box])
    return {
        "iscrowd": 0,
        "bboxes": boxes,
        "areas": [int(mask.sum()) or None for mask in masks],
        "segmentations": encode(torch.from_numpy(masks)),
    }
