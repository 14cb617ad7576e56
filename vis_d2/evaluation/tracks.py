"""Annotations and results become tracks: the same rows on both sides, read and checked once."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from math import isfinite
from typing import (
    Any,
    Collection,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import numpy as np

from vis_d2.structures import rle
from vis_d2.structures.mask_stack import MaskStack
from vis_d2.structures.rle import RLE, shorten

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Video:
    """One entry of ``videos``; None where the file does not say."""

    id: int
    height: Optional[int]
    width: Optional[int]
    length: Optional[int]


@dataclass
class Track:
    """One annotation or result.

    Attributes:
        name: how messages call it, e.g. "result 3".
        row: the entry of the file as it stands.
        masks: T compressed RLEs, None where absent.
        areas: (T,) int64 pixels of the masks, 0 where absent.
    """

    name: str
    row: Row
    masks: List[Optional[RLE]] = field(repr=False)
    areas: np.ndarray = field(repr=False)


class Entry(NamedTuple):
    """A row of a file: its place there, how messages call it, and what it says."""

    index: int
    name: str
    row: Row


@dataclass
class Reading:
    """The masks of n entries of a video.

    Attributes:
        masks: n lists of RLEs as in :class:`Track`; None where they could not be read.
        areas: n arrays.
        faults: one line for each entry that could not be read.
        present: bool, for all masks entry by entry whether there is one.
        stack: those that are present; None if they differ in size or if there are faults.
    """

    masks: List[Optional[List[Optional[RLE]]]]
    areas: List[Optional[np.ndarray]]
    faults: List[str]
    present: Optional[np.ndarray] = None
    stack: Optional[MaskStack] = None

    def tracks(self, entries: Sequence[Entry]) -> Dict[int, Track]:
        """By place in the file."""
        rows = zip(entries, self.masks, self.areas)
        return {e.index: Track(e.name, e.row, m, a) for e, m, a in rows if m is not None}


def read_videos(rows: Any, *, strict: bool) -> Dict[int, Video]:
    """The videos of a data set by id.

    Raises:
        ValueError: no list of videos with integer ids; in strict mode also a repeated id, or a
            video without height, width and length (or ``file_names``).
    """
    if not isinstance(rows, (list, tuple)):
        raise ValueError(f"expected a list of videos, got {shorten(rows)}")
    videos: Dict[int, Video] = {}
    for row in rows:
        if not isinstance(row, dict) or not is_int(row.get("id")):
            raise ValueError(f"a video needs an integer id, got {shorten(row)}")
        names = row.get("file_names")
        length = row.get("length", len(names) if isinstance(names, list) else None)
        sizes = [n if is_int(n) and n > 0 else None for n in (row.get("height"), row.get("width"))]
        video = Video(row["id"], sizes[0], sizes[1], length if is_int(length) else None)
        if strict and video.id in videos:
            raise ValueError(f"video {video.id} is listed twice")
        if strict and None in (video.height, video.width, video.length):
            raise ValueError(f"video {video.id} needs height, width and length: {shorten(row)}")
        videos[video.id] = video
    return videos


def read_tracks(
    rows: Iterable[Any],
    videos: Mapping[int, Video],
    category_ids: Optional[Collection[int]],
    *,
    kind: str,
    strict: bool,
) -> Tuple[List[Track], List[str]]:
    """Read annotations or results, video by video.

    Args:
        rows, videos, category_ids, kind, strict: see :func:`entries_by_video`.

    Returns:
        tracks: in the order of the file.
        faults: one line for each entry that could not be read.
    """
    by_video, faults = entries_by_video(rows, videos, category_ids, kind=kind, strict=strict)
    tracks: Dict[int, Track] = {}
    for video_id, entries in by_video.items():
        reading = read_masks_of(entries, videos[video_id], strict)
        faults += reading.faults
        tracks.update(reading.tracks(entries))
    return [tracks[index] for index in sorted(tracks)], faults


def entries_by_video(
    rows: Iterable[Any],
    videos: Mapping[int, Video],
    category_ids: Optional[Collection[int]],
    *,
    kind: str,
    strict: bool,
) -> Tuple[Dict[int, List[Entry]], List[str]]:
    """Check everything but the masks.

    Args:
        rows: entries with ``video_id``, ``category_id``, ``segmentations`` and, for results,
            ``score``.
        videos: the videos of the data set.
        category_ids: those of the data set; None does not check them.
        kind: "annotation" or "result".
        strict: False lets pass what the official evaluation lets pass: lists of any length, masks
            of any size, scores that are not finite; it drops entries of unknown categories, and
            annotations of unknown videos.

    Returns:
        The sound entries by video id, and one line for each of the others.
    """
    faults: List[str] = []
    by_video: Dict[int, List[Entry]] = defaultdict(list)
    for index, row in enumerate(rows):
        name = _name(row, index, kind)
        fault = _fault_of_row(row, videos, kind, strict)
        if fault is None and category_ids is not None and row["category_id"] not in category_ids:
            fault = "" if not strict else f"unknown category_id {row['category_id']}"
        if fault is None:
            by_video[row["video_id"]].append(Entry(index, name, row))
        elif fault:
            faults.append(f"{name}: {fault}")
    return by_video, faults


def read_masks_of(entries: Sequence[Entry], video: Video, strict: bool) -> Reading:
    """Read and check the masks of some entries of one video, all in one go if they allow."""
    size = (video.height or 0, video.width or 0)
    values = [value for entry in entries for value in entry.row["segmentations"]]
    try:
        masks = rle.read_masks(values, size, any_size=not strict)
    except rle.SegmentationError as error:
        if len(entries) == 1:
            return Reading([None], [None], [f"{entries[0].name}, frame {error.index}: {error}"])
        parts = [read_masks_of([entry], video, strict) for entry in entries]
        lists = ([x for part in parts for x in getattr(part, n)] for n in ("masks", "areas"))
        return Reading(*lists, [fault for part in parts for fault in part.faults])
    stops = list(accumulate(len(entry.row["segmentations"]) for entry in entries))
    places = [slice(start, stop) for start, stop in zip([0, *stops], stops)]
    parts, areas = ([side[place] for place in places] for side in (masks.rles, masks.areas))
    return Reading(parts, areas, [], masks.present, masks.stack)


def _name(row: Any, index: int, kind: str) -> str:
    if not isinstance(row, dict):
        return f"{kind} {index}"
    number = row.get("id", index) if kind == "annotation" else index
    return f"video {shorten(row.get('video_id'), 20)}, {kind} {shorten(number, 20)}"


def _fault_of_row(row: Any, videos: Mapping[int, Video], kind: str, strict: bool) -> Optional[str]:
    """Why a row cannot be used; empty for one that is silently left out, None for a sound one."""
    if not isinstance(row, dict):
        return f"expected an object, got {shorten(row)}"
    for key in ("video_id", "category_id"):
        if not is_int(row.get(key)):
            return f"{key} must be an integer, got {shorten(row.get(key))}"
    if row["video_id"] not in videos:
        tolerated = kind == "annotation" and not strict
        return "" if tolerated else "no such video in the data set"
    score = row.get("score")
    if kind == "result":
        if not is_number(score):
            return f"score must be a number, got {shorten(score)}"
        if strict and not isfinite(score):
            return f"score must be finite, got {score}"
    segmentations, expected = row.get("segmentations"), videos[row["video_id"]].length
    if not isinstance(segmentations, (list, tuple)):
        return f"segmentations must be a list, got {shorten(segmentations)}"
    if strict and len(segmentations) != expected:
        return f"{len(segmentations)} segmentations for a video of length {expected}"
    return None


def is_int(value: Any) -> bool:
    """Whether a JSON value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number, of a size that fits a float."""
    return isinstance(value, float) or (is_int(value) and abs(value) < 2**1000)
