"""YouTube-VIS annotation files: read, and written video by video."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Union

from pycocotools import mask as coco_mask

from vis_d2.structures import rle as rle_ops

from ..annotation_file import read_annotations
from ..dataset_check import check_annotations
from ..findings import Findings
from .clips import Categories, Clip, ClipSet, ClipTrack, Notes
from .frame_names import under_root
from .json_writer import JsonListsWriter

__all__ = ["YTVISWriter", "read_ytvis"]

# Of what `check-dataset` calls an error, that which stands in the way here: boxes and areas do not,
# they are computed from the masks.
_FATAL = (
    "categories",
    "video",
    "video-id",
    "video-length",
    "track",
    "track-video",
    "track-category",
    "iscrowd",
    "list-length",
    "mask",
    "mask-size",
)


def read_ytvis(path: Path, notes: Notes, *, images: Optional[Path] = None) -> ClipSet:
    """Reads a YouTube-VIS file.

    Args:
        path: the JSON file.
        notes: receives what was left out.
        images: folder that the new file's names will be relative to.

    Raises:
        ValueError: the file is broken; the message names video, track and frame.
    """
    content = read_annotations(str(path))
    if "videos" not in content and "images" in content:
        raise ValueError(f"{path} has images and no videos: that is COCO (vis-d2 convert coco)")
    findings = Findings()
    videos = check_annotations(content, findings).videos
    fatal = [finding for finding in findings if finding.kind in _FATAL]
    if fatal:
        more = f" (and {len(fatal) - 1} more; see vis-d2 check-dataset)" if len(fatal) > 1 else ""
        raise ValueError(f"{path}: {fatal[0].kind}: {fatal[0]}{more}")
    rows = content.get("annotations") or []
    ids = [row.get("id") for row in rows]
    unique = None not in ids and 0 not in ids and len(set(ids)) == len(ids)
    if not unique and rows:
        notes.add(
            "tracks numbered anew: their ids are missing, 0 or used twice", str(path), len(ids)
        )
    of_video: Dict[int, List[Any]] = {}
    for row in rows:
        of_video.setdefault(row["video_id"], []).append(row)
    content.pop("annotations", None)
    del rows, ids
    categories = Categories(content["categories"], str(path))

    def clips() -> Iterator[Clip]:
        for id_, video in videos.items():
            where = f"{path}: video {id_}"
            if not video.file_names:
                notes.add("videos without frames left out", where)
                continue
            names = [under_root(name, images, where) for name in video.file_names]
            clip = Clip(_name(id_, names), names, video.height, video.width, id=id_)
            for row in of_video.pop(id_, ()):  # freed when done
                clip.tracks.append(_track(row, clip, categories, unique))
            yield clip

    return ClipSet(categories, clips(), len(videos))


def _name(id_: int, file_names: List[str]) -> str:
    return file_names[0].rpartition("/")[0] or f"video_{id_}"


def _track(row: Mapping[str, Any], clip: Clip, categories: Categories, unique: bool) -> ClipTrack:
    return ClipTrack(
        categories.name(row["category_id"]),
        rle_ops.from_segmentations(row["segmentations"], (clip.height, clip.width)),
        int(row.get("iscrowd") or 0),
        row["id"] if unique else None,
        row.get("source_id"),
    )


class YTVISWriter:
    """Writes a YouTube-VIS file; a context manager.

    Args:
        path: the JSON file.
        categories: of the tracks to come.
    """

    def __init__(self, path: Union[str, Path], categories: Categories) -> None:
        self.categories = categories
        self.videos = self.tracks = self.frames = self.masks = 0
        self._file = JsonListsWriter(path, "annotations")
        self._videos: List[Dict[str, Any]] = []

    def __enter__(self) -> "YTVISWriter":
        self._file.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.content = {"videos": self._videos, "categories": self.categories.rows}
        self._file.__exit__(*exception)

    def add(self, clip: Clip) -> None:
        """Append a video; tracks that are never seen are left out."""
        self.videos += 1
        self.frames += len(clip.file_names)
        size = {"height": clip.height, "width": clip.width, "length": len(clip.file_names)}
        video_id = self.videos if clip.id is None else clip.id
        self._videos.append({"id": video_id, **size, "file_names": clip.file_names})
        for track in clip.tracks:
            if not any(track.masks):
                continue
            self.tracks += 1
            entry = {
                "id": self.tracks if track.id is None else track.id,
                "video_id": video_id,
                "category_id": self.categories.id(track.category),
                "iscrowd": track.iscrowd,
                **size,
                **_lists(track),
            }
            if track.source_id is not None:
                entry["source_id"] = track.source_id
            self._file.write(entry)
            self.masks += sum(mask is not None for mask in track.masks)


def _lists(track: ClipTrack) -> Dict[str, List[Any]]:
    boxes: List[Any] = [None] * len(track.masks)
    areas: List[Any] = [None] * len(track.masks)
    for t, area in enumerate(rle_ops.areas(track.masks).tolist()):
        if area:
            boxes[t] = coco_mask.toBbox(track.masks[t]).tolist()
            areas[t] = area
    return {"bboxes": boxes, "areas": areas, "segmentations": track.masks}
