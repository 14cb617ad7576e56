"""LabelMe: a folder per video, a JSON per frame."""

import base64
import binascii
import io
import math
import os
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from vis_d2.structures.rle import RLE, shorten

from ..annotation_file import read_annotations
from .clips import Categories, Clip, ClipSet, ClipTrack, Notes
from .frame_names import FrameNames, image_size, natural_key, under_root
from .shapes import box_polygon, ellipse_polygon, pasted_mask, polygon_mask, union

__all__ = ["read_labelme"]

# "car 2", "car_2", "car-2", "car#2", "car2"
_NUMBERED = re.compile(r"^(.*?[^\d\s_\-#])[\s_\-#]*(\d+)$")
_SOLID = {"polygon", "rectangle", "circle", "mask", "oriented_rectangle"}
Identity = Tuple[str, Any]  # class, and what tells its objects apart


def read_labelme(
    path: Path,
    notes: Notes,
    *,
    images: Optional[Path] = None,
    categories: Optional[Categories] = None,
    all_frames: bool = False,
) -> ClipSet:
    """Reads folders of LabelMe files.

    An object is known by its ``group_id``, and otherwise by the number at the end of its label:
    "car 2" is the second car. Without either it is the only one of its class. Shapes with the same
    identity in one frame are parts of one object.

    Args:
        path: a folder of JSON files, or of such folders: one per video.
        notes: receives what was left out.
        images: folder of all images, by default ``path``.
        categories: classes whose names may end in a number.
        all_frames: images without a JSON file belong to the video, as frames without objects.

    Raises:
        FileNotFoundError: no JSON files.
        ValueError: broken; the message names file and shape.
    """
    folders: List[str] = []
    for folder, below, files in os.walk(path):
        below[:] = [name for name in below if not name.startswith(".")]
        if any(name.lower().endswith(".json") for name in files):
            folders.append(Path(folder).relative_to(path).as_posix())
    if not folders:
        raise FileNotFoundError(f"{path}: no folder with LabelMe's JSON files")
    folders.sort(key=natural_key)
    reader = _Reader(path, images or path, categories, notes, all_frames)
    reader.single = len(folders) == 1
    return ClipSet(Categories(), map(reader.clip, folders), len(folders))


class _Reader:
    def __init__(
        self,
        path: Path,
        images: Path,
        categories: Optional[Categories],
        notes: Notes,
        all_frames: bool,
    ) -> None:
        self.path, self.images = path, images
        self.categories = set(categories.names) if categories else set()
        self.notes, self.all_frames = notes, all_frames
        self.single = False  # one video's images need no folder of their own

    def clip(self, folder: str) -> Clip:
        """The video of one folder."""
        files = [f for f in os.listdir(self.path / folder) if f.lower().endswith(".json")]
        frames = FrameNames(self.images, [folder, "."] if self.single else [folder])
        found: Dict[str, Dict[Identity, RLE]] = {}  # image -> masks
        size = None
        for name in sorted(files, key=natural_key):
            file = self.path / folder / name
            content = read_annotations(str(file))
            if not isinstance(content.get("shapes"), list):
                raise ValueError(f"{file}: no list 'shapes', so it is not a LabelMe file")
            image = self._image(content, file, folder, frames)
            if image in found:
                raise ValueError(f"{file}: {image} is the image of another file, too")
            this_size = self._size(content, file, image)
            size = size or this_size
            if this_size != size:
                raise ValueError(f"{file}: size {this_size}, but the first frame has {size}")
            found[image] = self._masks(content["shapes"], file, size)
        names = list(found)
        if self.all_frames:
            names = sorted({*frames.all(), *found}, key=natural_key)
        else:
            rest = len(set(frames.all()) - set(found))
            self.notes.add("images without a JSON file left out", str(self.path / folder), rest)
        clip_name = folder if folder != "." else self.path.resolve().name
        identities = dict.fromkeys(key for masks in found.values() for key in masks)
        tracks = []
        for label, number in identities:
            masks = [found.get(name, {}).get((label, number)) for name in names]
            tracks.append(ClipTrack(label, masks, source_id=number))
        return Clip(clip_name, names, *size, tracks)

    def _image(
        self, content: Mapping[str, Any], file: Path, folder: str, frames: FrameNames
    ) -> str:
        """The image of a file: where it says, or else of its own name among the images."""
        given = content.get("imagePath")
        if not isinstance(given, str) or not given:
            return frames.of_stem(file.stem, str(file))
        given = given.replace("\\", "/")
        name = given.rpartition("/")[2]
        if name in frames.names:
            return frames.of_stem(Path(name).stem, str(file))
        path = os.path.normpath(os.path.join(self.path.resolve(), folder, given))
        if os.path.exists(path) or self.images == self.path:
            return under_root(path, self.images.resolve(), str(file))
        raise FileNotFoundError(f"{file}: no image {name} in {frames.path}")

    def _size(self, content: Mapping[str, Any], file: Path, image: str) -> Tuple[int, int]:
        size = (content.get("imageHeight"), content.get("imageWidth"))
        if size == (None, None):
            size = image_size(self.images / image)
        if not all(type(n) is int and 0 < n < 2**31 for n in size) or size[0] * size[1] >= 2**31:
            raise ValueError(f"{file}: imageHeight, imageWidth are {shorten(size)}")
        return size

    def _masks(
        self, shapes: Sequence[Any], file: Path, size: Tuple[int, int]
    ) -> Dict[Identity, RLE]:
        parts: Dict[Identity, List[RLE]] = {}
        alone: set = set()  # identities that only the label gives
        for number, shape in enumerate(shapes):
            where = f"{file}: shape {number}"
            if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
                raise ValueError(f"{where}: expected a shape with a label, got {shorten(shape)}")
            where += f" ({shape['label']!r})"
            kind = shape.get("shape_type") or "polygon"
            if not isinstance(kind, str) or kind not in _SOLID:
                self.notes.add(f"shapes of type {shorten(kind)} left out", where)
                continue
            key = self._identity(shape, where)
            if key[1] is None and key in alone:
                raise ValueError(
                    f"{where}: a second shape of this label, without group_id or number: give both "
                    "the same group_id if they are one object, and different ones if they are two"
                )
            if key[1] is None:
                alone.add(key)
            try:
                parts.setdefault(key, []).append(_mask(shape, kind, size))
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        return {key: union(masks) for key, masks in parts.items()}

    def _identity(self, shape: Mapping[str, Any], where: str) -> Identity:
        label, group = shape["label"].strip(), shape.get("group_id")
        if not label or not isinstance(group, (int, str, type(None))):
            raise ValueError(f"{where}: empty label, or group_id {shorten(group)} is no number")
        match = None if label in self.categories else _NUMBERED.match(label)
        if match and (group is None or match[1] in self.categories):
            return match[1], int(match[2]) if group is None else group
        return label, group


def _mask(shape: Mapping[str, Any], kind: str, size: Tuple[int, int]) -> RLE:
    points = shape.get("points")
    try:
        points = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1:] != (2,) or not np.isfinite(points).all():
        raise ValueError(f"points must be pairs of numbers, got {shorten(shape.get('points'))}")
    if kind in ("rectangle", "circle", "mask") and len(points) < 2:
        raise ValueError(f"a {kind} has two points, got {len(points)}")
    if kind == "mask":
        left, top = (math.floor(v) for v in np.clip(points[0], -(2**31), 2**31))
        return pasted_mask(_patch(shape.get("mask")), left, top, size)
    if kind == "circle":
        (cx, cy), edge = points[0], points[1]
        radius = math.hypot(edge[0] - cx, edge[1] - cy)
        return polygon_mask(ellipse_polygon(cx, cy, radius, radius), size)
    if kind == "rectangle" and len(points) == 2:  # newer versions save four corners
        return polygon_mask(box_polygon(*points.min(0), *points.max(0)), size)
    return polygon_mask(points.ravel().tolist(), size)


def _patch(text: Any) -> np.ndarray:
    """The picture of a mask, which LabelMe stores as PNG in base64."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            return np.array(image.convert("L")) > 0
    except (TypeError, ValueError, binascii.Error, UnidentifiedImageError, SyntaxError, OSError):
        raise ValueError(f"mask is not a PNG in base64: {shorten(text)}") from None
    except Image.DecompressionBombError:
        raise ValueError("the PNG of the mask is too large") from None
