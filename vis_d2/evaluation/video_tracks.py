"""Annotation and result files as the tracks of each video, for drawing and exporting."""

import difflib
import os
import re
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from typing import (
    TYPE_CHECKING,
    Any,
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

from vis_d2.structures.rle import RLE, shorten, tube_iou

from .results import read_json, read_results
from .tracks import Track, is_int, read_tracks, read_videos

if TYPE_CHECKING:
    from vis_d2.structures import VideoInstances

# What may become the name of a file: one that leads nowhere else and hides nothing.
_SAFE_NAME = re.compile(r"\w[\w.+-]{0,99}")
# Beyond these, a number in the file is a mistake that would fill the memory.
_MOST_PIXELS, _MOST_FRAMES = 2**28, 10**6
_LEAST_OVERLAP = 0.1  # a result shares less with a truth by accident


@dataclass
class LabelledTrack:
    """One object of one video.

    Attributes:
        id: of the annotation, or the place among the results of its video counted from 1.
        category_id: of the JSON file.
        score: None for an annotation.
        iscrowd: 0 or 1.
        masks: T compressed RLEs, None where absent.
        areas: (T,) int64 pixels, 0 where absent.
    """

    id: int
    category_id: int
    score: Optional[float]
    iscrowd: int
    masks: List[Optional[RLE]] = field(repr=False)
    areas: np.ndarray = field(repr=False)


@dataclass
class LabelledVideo:
    """One video and its tracks.

    Attributes:
        id: of the JSON file.
        name: of the folder of its frames where that is safe and unique, else made of the id.
        height, width: of the frames, pixels.
        file_names: T paths as the JSON file gives them; made up where it gives none,
        has_file_names: which is where this is False.
        first_image: number of frames in the videos before it in the file.
        tracks: in the order of the file.
    """

    id: int
    name: str
    height: int
    width: int
    file_names: List[str]
    has_file_names: bool = True
    first_image: int = 0
    tracks: List[LabelledTrack] = field(default_factory=list)

    def frame_names(self) -> List[str]:
        """A safe file name without extension for each frame, in the manner of ``file_names``."""
        stems = [os.path.splitext(_last_part(name))[0] for name in self.file_names]
        if len({stem.lower() for stem in stems}) == len(stems) and all(map(_is_safe, stems)):
            return stems
        return [f"{t:05d}" for t in range(len(stems))]


class TrackFile(NamedTuple):
    """What a file holds.

    Attributes:
        videos: the videos chosen, in the order of the file.
        categories: names by id.
        is_results: scores and places instead of annotation ids.
        faults: one line for each entry that could not be read, and so is in no video.
    """

    videos: List[LabelledVideo]
    categories: Dict[int, str]
    is_results: bool
    faults: List[str]


def read_track_file(
    path: str, gt_path: Optional[str] = None, choose: Sequence[str] = ()
) -> TrackFile:
    """Read annotations or results.

    Args:
        path: annotations in YouTube-VIS format, or results (``results.json`` or its zip).
        gt_path: the annotation file whose videos, frames and categories the results are about.
            Without it, results of one video can be read: its masks tell size and length.
        choose: ids or names of the videos to read; empty for all.

    Raises:
        ValueError: neither kind of file, unknown videos, results of several videos without
            ``gt_path``. Single entries that are malformed become ``faults``.
    """
    content = read_results(path) if zipfile.is_zipfile(path) else read_json(path)
    is_results = isinstance(content, list)
    if is_results:
        rows, about = content, _described(content, path) if gt_path is None else read_json(gt_path)
        about_path = path if gt_path is None else gt_path
    else:
        about, about_path = content, path
        rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(about, dict) or "videos" not in about:
        raise ValueError(f"{about_path}: neither results nor annotations in YouTube-VIS format")
    if not isinstance(rows, (list, type(None))):
        raise ValueError(f"{path}: expected a list of annotations, got {shorten(rows)}")
    videos = _videos(about["videos"], about_path)
    categories = _categories(about.get("categories"), about_path)
    chosen = _chosen(videos, choose, about_path)
    ids = {video.id for video in chosen}
    if len(chosen) < len(videos):  # masks of the others need not be read
        rows = [row for row in rows or () if isinstance(row, dict) and _video_of(row) in ids]
    kind = "result" if is_results else "annotation"
    checked = read_videos(about["videos"], strict=True)
    tracks, faults = read_tracks(rows or (), checked, categories, kind=kind, strict=True)
    _distribute(tracks, chosen, is_results)
    return TrackFile(chosen, categories, is_results, faults)


def keep_tracks(file: TrackFile, threshold: float, only_class: Optional[str] = None) -> int:
    """Drop tracks from the videos of a file.

    Args:
        file: changed in place.
        threshold: drop results with a lower score.
        only_class: name or category id of the class to keep; None keeps all.

    Returns:
        How many tracks of the class score too low.

    Raises:
        ValueError: ``only_class`` is no class of the file.
    """
    wanted = set(file.categories)
    if only_class is not None:
        wanted = {id_ for id_, name in file.categories.items() if only_class in (name, str(id_))}
        if not wanted:
            known = ", ".join(file.categories.values()) or "none"
            raise ValueError(f"there is no class {only_class!r}; the classes are {known}")
    hidden = 0
    for video in file.videos:
        tracks = [track for track in video.tracks if track.category_id in wanted]
        video.tracks = [t for t in tracks if t.score is None or t.score >= threshold]
        hidden += len(tracks) - len(video.tracks)
    return hidden


def to_instances(video: LabelledVideo, categories: Mapping[int, str]) -> "VideoInstances":
    """A video as a model would give it, with classes numbered in the order of ``categories``.

    Annotations get the score 1.
    """
    import torch

    from vis_d2.structures import VideoInstances

    order = {id_: place for place, id_ in enumerate(categories)}
    tracks = video.tracks
    return VideoInstances(
        (video.height, video.width),
        len(video.file_names),
        torch.tensor([1.0 if track.score is None else track.score for track in tracks]),
        torch.tensor([order[track.category_id] for track in tracks], dtype=torch.int64),
        torch.tensor([track.id for track in tracks], dtype=torch.int64),
        [track.masks for track in tracks],
    )


def adopt_ids(found: LabelledVideo, truth: LabelledVideo) -> None:
    """Number results after the truths they cover, so that equal ids mean the same object.

    Each truth gives its id to at most one result, best pairs over the whole video first; the other
    results are numbered after the last truth.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = tube_iou([t.masks for t in found.tracks], [t.masks for t in truth.tracks])
    pairs = zip(*linear_sum_assignment(-overlap))
    adopted = {i: truth.tracks[j].id for i, j in pairs if overlap[i, j] >= _LEAST_OVERLAP}
    free = 1 + max((track.id for track in truth.tracks), default=0)
    for i, track in enumerate(found.tracks):
        track.id = adopted.get(i, free)
        free += i not in adopted


def _video_of(row: Mapping[str, Any]) -> Optional[int]:
    return row.get("video_id") if is_int(row.get("video_id")) else None


def _described(rows: Sequence[Any], path: str) -> Dict[str, Any]:
    """What the results of a single video tell of it."""
    rows = [row for row in rows if isinstance(row, dict)]
    ids = {_video_of(row) for row in rows} - {None}
    if len(ids) != 1:
        raise ValueError(
            f"{path}: results of {len(ids)} videos; the annotation file they are about is needed "
            "to know their frames, sizes and classes (--gt)"
        )
    masks = [row["segmentations"] for row in rows if isinstance(row.get("segmentations"), list)]
    present = (mask for track in masks for mask in track if isinstance(mask, dict))
    size = next(present, {}).get("size")
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ValueError(
            f"{path}: no mask tells the size of the video (--gt names a file that does)"
        )
    labels = sorted({row["category_id"] for row in rows if is_int(row.get("category_id"))})
    video = {"id": ids.pop(), "height": size[0], "width": size[1], "length": len(masks[0])}
    return {"videos": [video], "categories": [{"id": i, "name": f"class {i}"} for i in labels]}


def _videos(rows: Any, path: str) -> List[LabelledVideo]:
    try:
        checked = read_videos(rows, strict=True)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    videos, first = [], 0
    for row, video in zip(rows, checked.values()):
        names = row.get("file_names")
        if video.height * video.width > _MOST_PIXELS or video.length > _MOST_FRAMES:
            raise ValueError(f"{path}: no video is as large as video {video.id}: {shorten(row)}")
        given = names is not None
        if not given:
            names = [f"{t:05d}" for t in range(video.length)]
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not texts or len(names) != video.length:
            raise ValueError(
                f"{path}: video {video.id} of length {video.length} needs as many file_names, "
                f"got {shorten(names)}"
            )
        folder = _last_part(names[0].replace("\\", "/").rpartition("/")[0]) if names else ""
        size = (video.height, video.width)
        videos.append(LabelledVideo(video.id, folder, *size, list(names), given, first))
        first += video.length
    frequency = Counter(video.name.lower() for video in videos)
    for video in videos:
        if not _is_safe(video.name) or frequency[video.name.lower()] > 1:
            video.name = f"video_{video.id}"
    return videos


def _categories(rows: Any, path: str) -> Dict[int, str]:
    sound = isinstance(rows, list) and all(
        isinstance(row, dict) and is_int(row.get("id")) for row in rows
    )
    if not sound:
        raise ValueError(f"{path}: expected categories with integer ids, got {shorten(rows)}")
    names = (_one_line(str(row.get("name", f"class {row['id']}"))) for row in rows)
    return {row["id"]: name for row, name in zip(rows, names)}


def _one_line(text: str) -> str:
    """A name as it can stand in labels, messages and cells of tables."""
    printable = "".join(c if c.isprintable() or c.isspace() else "?" for c in text)
    return " ".join(printable.split())[:100]


def _chosen(
    videos: Sequence[LabelledVideo], choose: Sequence[str], path: str
) -> List[LabelledVideo]:
    if not choose:
        return list(videos)
    wanted = set(choose)
    known = {key for video in videos for key in (str(video.id), video.name)}
    for key in choose:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or sorted(known)[:5]
            raise ValueError(
                f"{path}: no video {key!r}; there are, for instance, {', '.join(near)}"
            )
    return [video for video in videos if wanted & {str(video.id), video.name}]


def _distribute(tracks: Iterable[Track], videos: Sequence[LabelledVideo], is_results: bool) -> None:
    """Put the tracks into their videos, with ids that are unique in each."""
    by_id: Mapping[int, LabelledVideo] = {video.id: video for video in videos}
    for track in tracks:
        video, row = by_id[track.row["video_id"]], track.row
        id_ = row.get("id")
        usable = is_int(id_) and 0 <= id_ < 2**63
        score = float(row["score"]) if is_results else None
        crowd = int(bool(row.get("iscrowd")))
        masks = [mask if area else None for mask, area in zip(track.masks, track.areas)]
        video.tracks.append(
            LabelledTrack(
                id_ if usable else 0, row["category_id"], score, crowd, masks, track.areas
            )
        )
    for video in videos:
        ids = {track.id for track in video.tracks}
        if is_results or len(ids) < len(video.tracks):
            for place, track in enumerate(video.tracks, start=1):
                track.id = place


def _last_part(path: str) -> str:
    return path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def _is_safe(name: str) -> bool:
    return _SAFE_NAME.fullmatch(name) is not None


def visible(video: LabelledVideo, t: int) -> List[Tuple[int, LabelledTrack]]:
    """The tracks present in frame t with their places in the video, counted from 1."""
    pairs = enumerate(video.tracks, start=1)
    return [(place, track) for place, track in pairs if track.masks[t] is not None]
