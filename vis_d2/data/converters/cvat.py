"""CVAT: "CVAT for video 1.1", one XML file per video."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Set, Tuple

import numpy as np

from vis_d2.structures.rle import RLE, shorten

from .clips import MOST_FRAMES, Categories, Clip, ClipSet, ClipTrack, Notes
from .frame_names import FrameNames, natural_key
from .safe_xml import parse_xml
from .shapes import box_polygon, ellipse_polygon, pasted_mask, polygon_mask, union

__all__ = ["read_cvat"]

_SOLID = {"polygon", "mask", "box", "ellipse"}
_NO_AREA = {"polyline", "points", "cuboid", "skeleton"}
_PATTERN = "frame_{:06d}.PNG"  # how CVAT names the frames that it exports


def read_cvat(path: Path, notes: Notes, *, images: Optional[Path] = None) -> ClipSet:
    """Reads CVAT's XML files.

    A shape stands until the next one of its track, or until the track is ``outside``: where a file
    has every frame, as CVAT writes it, that changes nothing. Boxes become filled rectangles.

    Args:
        path: an XML file, or a folder of them: one per video.
        notes: receives what was left out.
        images: folder of the frames: those of a video lie in it, or in the folder that is called
            as the XML file.

    Raises:
        FileNotFoundError: no XML file.
        ValueError: broken; the message names file and line.
    """
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.xml"), key=lambda file: natural_key(file.name))
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"{path}: no XML file")
    # One video's frames need no folder of their own; "images" is that of CVAT's own exports.
    places = [".", "images"] if len(files) == 1 else []
    categories = Categories()
    reader = (_VideoFile(file, notes).read(images, categories, places) for file in files)
    return ClipSet(categories, reader, len(files))


@dataclass
class _Track:
    label: str
    id: str
    shapes: Dict[int, List[RLE]] = field(default_factory=dict)  # frame number -> parts
    outside: Set[int] = field(default_factory=set)  # frame numbers
    line: int = 0  # of the last shape


class _VideoFile:
    """What is known of one file while it is being parsed."""

    def __init__(self, path: Path, notes: Notes) -> None:
        self.path, self.notes = path, notes
        self.meta: Dict[str, str] = {}
        self.labels: List[str] = []
        self.tracks: List[_Track] = []
        self.tasks = 0
        self.size: Optional[Tuple[int, int]] = None
        self._shape: Optional[Tuple[int, bool]] = None

    def read(self, images: Optional[Path], categories: Categories, places: List[str]) -> Clip:
        """Parse the file and make a clip of it; frames lie in its own folder or in ``places``."""
        frames = FrameNames(images, [self.path.stem, *places])
        if images is not None and not frames.names:
            raise FileNotFoundError(f"{self.path}: no images in {images}")
        self.size = frames.size()
        parse_xml(self.path, self._end, self._start)
        if self.size is None:
            raise ValueError(f"{self.path}: no original_size; --images lets me look it up")
        for label in self.labels:
            categories.id(label)
        numbers = self._frame_numbers(frames)
        if not numbers:
            raise ValueError(f"{self.path}: no frames: neither a size in meta nor a shape")
        clip = Clip(self.path.stem, self._names(frames, numbers), *self.size)
        clip.tracks = [self._hold(track, numbers) for track in self.tracks]
        return clip

    def _start(self, path: Tuple[str, ...], given: Mapping[str, str], _: str, line: int) -> None:
        if len(path) == 1 and path[0] != "annotations":
            raise ValueError(f"<{path[0]}> is not CVAT's <annotations>")
        if path == ("annotations", "image"):
            raise ValueError("images, not tracks: export the task as 'CVAT for video 1.1'")
        if path == ("annotations", "track"):
            if not given.get("label"):
                raise ValueError("a track needs a label")
            self.tracks.append(_Track(given["label"], given.get("id", str(len(self.tracks)))))

    def _end(self, path: Tuple[str, ...], given: Mapping[str, str], text: str, line: int) -> None:
        if path[:2] == ("annotations", "meta"):
            self._add_meta(path[2:], text)
        elif path[:2] == ("annotations", "track") and len(path) == 3:
            self._add_shape(path[2], given, line)

    def _add_meta(self, path: Tuple[str, ...], text: str) -> None:
        if path[-2:] == ("label", "name"):
            self.labels.append(text)
        if path[-1:] == ("task",):
            self.tasks += 1
            if self.tasks > 1:
                raise ValueError("several tasks in one file: export each by itself")
        if len(path) < 2 or path[-2] not in ("task", "job", "original_size"):
            return
        self.meta[path[-1]] = text
        if path[-1] in ("size", "start_frame") and text:
            _integer(self.meta, path[-1])
        if path[-2] == "original_size" and {"width", "height"} <= set(self.meta):
            size = (_integer(self.meta, "height"), _integer(self.meta, "width"))
            if min(size) <= 0 or size[0] * size[1] >= 2**31:
                raise ValueError(f"original_size {size} is not that of an image")
            if self.size not in (None, size):
                raise ValueError(f"original_size is {size}, but the images are {self.size}")
            self.size = size

    def _add_shape(self, kind: str, given: Mapping[str, str], line: int) -> None:
        track = self.tracks[-1]
        where = f"{self.path}: line {line}"
        if kind in _NO_AREA:
            self.notes.add(f"shapes of type {kind} left out", where)
        if kind not in _SOLID:
            return
        frame = _integer(given, "frame")
        if not 0 <= frame < 2**31:
            raise ValueError(f"there is no frame {frame}")
        track.line = line
        if given.get("outside") in ("1", "true", "True"):
            track.outside.add(frame)
            return
        if self.size is None:
            raise ValueError("a shape before original_size; --images lets me look it up")
        if kind == "box":
            self.notes.add("boxes made filled rectangles", where)
        track.shapes.setdefault(frame, []).append(_mask(kind, given, self.size))

    def _frame_numbers(self, frames: FrameNames) -> List[int]:
        """The numbers that the frames of the video have in the file."""
        used = {n for track in self.tracks for n in (*track.shapes, *track.outside)}
        last = max(used, default=-1)
        if not self.meta.get("size"):
            amount = len(frames.names) or last + 1
            first, step = 0, 1
        else:
            amount = _integer(self.meta, "size")
            first = _integer(self.meta, "start_frame") if self.meta.get("start_frame") else 0
            step = re.search(r"step\s*=\s*([1-9]\d{0,8})", self.meta.get("frame_filter", ""))
            step = int(step[1]) if step else 1
        if not 0 <= amount <= MOST_FRAMES:
            raise ValueError(f"{self.path}: {amount} frames are more than {MOST_FRAMES}")
        numbers = [first + step * i for i in range(amount)]
        if used <= set(numbers):
            return numbers
        if last < amount:  # counted within the task
            return list(range(amount))
        # A track may end behind the last frame.
        shown = {n for track in self.tracks for n in track.shapes}
        if not shown <= set(numbers):
            extra = min(shown - set(numbers))
            line = next(track.line for track in self.tracks if extra in track.shapes)
            raise ValueError(
                f"{self.path}: the track that ends in line {line} has a shape in frame {extra}, "
                f"but the video has {amount} frames from {first} in steps of {step}"
            )
        return numbers

    def _names(self, frames: FrameNames, numbers: List[int]) -> List[str]:
        if len(frames.names) == len(numbers):
            return frames.all()
        return [frames.of_number(number, str(self.path), _PATTERN) for number in numbers]

    def _hold(self, track: _Track, numbers: List[int]) -> ClipTrack:
        masks: List[Optional[RLE]] = []
        current: Optional[RLE] = None
        for number in numbers:
            if number in track.shapes:
                current = union(track.shapes[number])
            elif number in track.outside:
                current = None
            masks.append(current)
        source_id = int(track.id) if track.id.isdecimal() else track.id
        return ClipTrack(track.label, masks, source_id=source_id)


def _integer(given: Mapping[str, str], key: str) -> int:
    text = given.get(key, "")
    if not re.fullmatch(r"\s*-?\d{1,15}\s*", text):
        raise ValueError(f"{key} must be an integer, got {shorten(text)}")
    return int(text)


def _number(given: Mapping[str, str], key: str, default: Optional[str] = None) -> float:
    text = given.get(key, default)
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{key} must be a number, got {shorten(text)}")
    return value


def _mask(kind: str, given: Mapping[str, str], size: Tuple[int, int]) -> RLE:
    if kind == "mask":
        return _run_lengths(given, size)
    if kind == "polygon":
        text = given.get("points", "")
        try:
            pairs = [tuple(map(float, pair.split(","))) for pair in text.split(";")]
        except ValueError:
            pairs = [()]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"points must be 'x,y;x,y;...', got {shorten(text)}")
        return polygon_mask([value for pair in pairs for value in pair], size)
    degrees = _number(given, "rotation", "0")
    if kind == "box":
        corners = [_number(given, key) for key in ("xtl", "ytl", "xbr", "ybr")]
        return polygon_mask(box_polygon(*corners, degrees), size)
    ellipse = [_number(given, key) for key in ("cx", "cy", "rx", "ry")]
    return polygon_mask(ellipse_polygon(*ellipse, degrees), size)


def _run_lengths(given: Mapping[str, str], size: Tuple[int, int]) -> RLE:
    """A mask in its box, row by row, background first."""
    left, top, width, height = (_integer(given, key) for key in ("left", "top", "width", "height"))
    inside = 0 <= left <= size[1] - width and 0 <= top <= size[0] - height
    if width <= 0 or height <= 0 or not inside:
        raise ValueError(f"mask of {width}x{height} at ({left}, {top}) is not in the image")
    text = given.get("rle", "")
    try:
        runs = np.array([int(run) for run in text.split(",")], np.int64)
    except (ValueError, OverflowError):
        runs = np.array([-1])
    if runs.min() < 0 or runs.max() > width * height or runs.sum() != width * height:
        raise ValueError(f"run lengths do not fill {height} x {width}: {shorten(text)}")
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return pasted_mask(values.reshape(height, width), left, top, size)
