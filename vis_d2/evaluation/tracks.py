"""Annotations and results become tracks: the same rows on both sides, read and checked once."""

from collections import defaultdict
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Collection, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from vis_d2.structures import rle
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
        rows: entries with ``video_id``, ``category_id``, ``segmentations`` and, for results,
            ``score``.
        videos: the videos of the data set.
        category_ids: those of the data set; None does not check them.
        kind: "annotation" or "result".
        strict: False lets pass what the official evaluation lets pass: lists of any length, masks
            of any size, scores that are not finite; it drops entries of unknown categories, and
            annotations of unknown videos.

    Returns:
        tracks: in the order of the file.
        faults: one line for each entry that could not be read.
    """
    faults: List[str] = []
    by_video: Dict[int, List[Tuple[int, str, Row]]] = defaultdict(list)
    for index, row in enumerate(rows):
        name = _name(row, index, kind)
        fault = _fault_of_row(row, videos, kind, strict)
        if fault is None and category_ids is not None and row["category_id"] not in category_ids:
            fault = "" if not strict else f"unknown category_id {row['category_id']}"
        if fault is None:
            by_video[row["video_id"]].append((index, name, row))
        elif fault:
            faults.append(f"{name}: {fault}")
    tracks: List[Tuple[int, Track]] = []
    for video_id, group in by_video.items():
        tracks += _read_masks(group, videos[video_id], strict, faults)
    return [track for _, track in sorted(tracks, key=lambda pair: pair[0])], faults


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


def _read_masks(
    group: Sequence[Tuple[int, str, Row]], video: Video, strict: bool, faults: List[str]
) -> List[Tuple[int, Track]]:
    """The tracks of one video with their places in the file; all masks in one go if they allow."""
    size = (video.height or 0, video.width or 0)
    values = [value for _, _, row in group for value in row["segmentations"]]
    try:
        masks = rle.from_segmentations(values, size, any_size=not strict)
    except rle.SegmentationError as error:
        if len(group) == 1:
            faults.append(f"{group[0][1]}, frame {error.index}: {error}")
            return []
        one_by_one = [_read_masks([item], video, strict, faults) for item in group]
        return [track for tracks in one_by_one for track in tracks]
    areas = rle.areas(masks)
    tracks, start = [], 0
    for index, name, row in group:
        end = start + len(row["segmentations"])
        tracks.append((index, Track(name, row, masks[start:end], areas[start:end])))
        start = end
    return tracks


def is_int(value: Any) -> bool:
    """Whether a JSON value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number, of a size that fits a float."""
    return isinstance(value, float) or (is_int(value) and abs(value) < 2**1000)
