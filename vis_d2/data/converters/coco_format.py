"""COCO annotation files: images as clips of one frame, or the frames of videos."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from pycocotools import mask as coco_mask

from vis_d2.structures import rle as rle_ops
from vis_d2.structures.rle import RLE, shorten

from ..annotation_file import compress_runs, read_annotations
from .clips import MOST_FRAMES, Categories, Clip, ClipSet, ClipTrack, Notes
from .frame_names import image_size, under_root
from .json_writer import JsonListsWriter

__all__ = ["CocoWriter", "read_coco"]

Row = Dict[str, Any]


def read_coco(
    path: Path,
    notes: Notes,
    *,
    images: Optional[Path] = None,
    clip_length: int = 1,
    per_image: bool = False,
) -> ClipSet:
    """Reads a COCO file.

    Images with a ``video_id`` are put together to videos, in the order of ``frame_id`` (or
    ``frame_index``); objects belong together by ``track_id`` (or ``instance_id``). Every other
    image becomes a clip that shows it ``clip_length`` times.

    Args:
        path: the JSON file.
        notes: receives what was left out.
        images: folder of the images: names are made relative to it, and sizes that the file does
            not tell are read there.
        clip_length: frames per clip.
        per_image: ignore ``video_id``.

    Raises:
        ValueError: the file is broken; the message names the image and the annotation.
    """
    if not 0 < clip_length <= MOST_FRAMES:
        raise ValueError(f"a clip has 1 to {MOST_FRAMES} frames, not {clip_length}")
    content = read_annotations(str(path), _compact)
    if "images" not in content and "videos" in content:
        raise ValueError(f"{path} has videos and no images: that is YouTube-VIS")
    reader = _Reader(path, content, notes, images)
    with_video = [row.get("video_id") is not None for row in reader.images]
    if per_image or not any(with_video):
        clips, total = reader.image_clips(clip_length), len(reader.images)
    elif clip_length > 1:
        raise ValueError(f"{path} holds videos; clips of one image each need --per-image")
    else:
        if not all(with_video):
            row = reader.images[with_video.index(False)]
            raise ValueError(f"{path}: image {row['id']} has no video_id, but others have one")
        videos = reader.by_video()
        clips, total = map(reader.video_clip, videos), len(videos)
    return ClipSet(reader.categories, iter(clips), total)


def _compact(value: Row) -> Any:
    """Keeps polygons as arrays while the file is being parsed: a third of the memory of lists."""
    polygons = value.get("segmentation")
    if isinstance(polygons, list):
        try:
            flat = all(isinstance(polygon, list) for polygon in polygons)
            value["segmentation"] = (
                [np.array(p, np.float64) for p in polygons] if flat else polygons
            )
        except (TypeError, ValueError, OverflowError):
            pass  # what is malformed is left for the check that knows image and annotation
        return value
    return compress_runs(value)


class _Reader:
    """Checks and converts the images and annotations of one file."""

    def __init__(self, path: Path, content: Row, notes: Notes, root: Optional[Path]) -> None:
        self.path, self.notes, self.root = path, notes, root
        self.categories = Categories(content.get("categories"), str(path))
        self.images = self._rows(content, "images")
        rows = self._rows(content, "annotations") if content.get("annotations") else []
        self._of_image: Dict[Any, List[Row]] = {row["id"]: [] for row in self.images}
        if len(self._of_image) < len(self.images):
            raise ValueError(f"{path}: an image id is used twice")
        for row in rows:
            image = row.get("image_id")
            if not isinstance(image, (int, str)) or image not in self._of_image:
                raise ValueError(
                    f"{path}: annotation {shorten(row.get('id'))}: no image {shorten(image)}"
                )
            self._of_image[image].append(row)
        self._keep_image_ids = _usable_ids(self.images)
        self._keep_ids = _usable_ids(rows)

    def _rows(self, content: Row, key: str) -> List[Row]:
        rows = content.get(key)
        if not isinstance(rows, list):
            raise ValueError(f"{self.path}: {key} must be a list, got {shorten(rows)}")
        for row in rows:
            if not isinstance(row, dict):
                raise ValueError(f"{self.path}: {key}: expected an object, got {shorten(row)}")
            if key == "images" and not isinstance(row.get("id"), (int, str)):
                raise ValueError(f"{self.path}: an image needs an id: {shorten(row)}")
        return rows

    def image_clips(self, length: int) -> Iterator[Clip]:
        """A clip per image."""
        for image in self.images:
            name, (height, width) = self._name(image), self._size(image)
            clip = Clip(f"image {image['id']} ({name})", [name] * length, height, width)
            clip.id = image["id"] if self._keep_image_ids else None
            for row, mask in self._objects(image, (height, width)):
                id_ = row["id"] if self._keep_ids else None
                track = ClipTrack(self._category(row), [mask] * length, _iscrowd(row), id_)
                clip.tracks.append(track)
            yield clip

    def by_video(self) -> List[List[Row]]:
        """The images of each video, in order."""
        videos: Dict[Any, List[Row]] = {}
        for image in self.images:
            if not isinstance(image["video_id"], (int, str)):
                raise ValueError(
                    f"{self._where(image)}: video_id must be a number or a name, got "
                    f"{shorten(image['video_id'])}"
                )
            videos.setdefault(image["video_id"], []).append(image)
        for frames in videos.values():
            orders = [row.get("frame_id", row.get("frame_index")) for row in frames]
            if all(isinstance(order, int) for order in orders):
                frames.sort(key=lambda row: row.get("frame_id", row.get("frame_index")))
        return list(videos.values())

    def video_clip(self, frames: Sequence[Row]) -> Clip:
        """The clip of one video."""
        size = self._size(frames[0])
        names = [self._name(image) for image in frames]
        video = frames[0]["video_id"]
        name = names[0].rpartition("/")[0] or f"video_{video}"
        clip = Clip(name, names, *size, id=video if type(video) is int and video > 0 else None)
        tracks: Dict[Any, ClipTrack] = {}
        for t, image in enumerate(frames):
            if self._size(image) != size:
                raise ValueError(
                    f"{self._where(image)}: {self._size(image)}, but the first image of video "
                    f"{video} is {size} (height, width)"
                )
            for row, mask in self._objects(image, size):
                self._add_to_track(tracks, row, image, t, [None] * len(frames), mask)
        clip.tracks = list(tracks.values())
        return clip

    def _add_to_track(
        self,
        tracks: Dict[Any, ClipTrack],
        row: Row,
        image: Row,
        t: int,
        absent: List[None],
        mask: RLE,
    ) -> None:
        where = f"{self._where(image)}, annotation {shorten(row.get('id'))}"
        key = row.get("track_id", row.get("instance_id"))
        if not isinstance(key, (int, str)):
            raise ValueError(f"{where}: no track_id or instance_id (--per-image does without)")
        category = self._category(row)
        if key not in tracks:
            # Track ids of other programs count within a video: the writer numbers anew.
            tracks[key] = ClipTrack(category, absent, _iscrowd(row), source_id=key)
        track = tracks[key]
        if track.category != category:
            raise ValueError(
                f"{where}: class {category!r}, but track {key} began as {track.category!r}"
            )
        if track.masks[t] is not None:
            raise ValueError(f"{where}: a second object with track id {key} in this image")
        track.masks[t] = mask

    def _objects(self, image: Row, size: Tuple[int, int]) -> Iterator[Tuple[Row, RLE]]:
        """The annotations of an image that have a mask."""
        rows = self._of_image.pop(image["id"])  # freed when done
        places = [f"{self._where(image)}, annotation {shorten(row.get('id'))}" for row in rows]
        given = [self._segmentation(row, where) for row, where in zip(rows, places)]
        try:
            masks = rle_ops.read_masks(given, size)  # at once: one by one takes three times as long
        except rle_ops.SegmentationError as error:
            raise ValueError(f"{places[error.index]}: bad mask: {error}") from None
        for row, where, mask, area in zip(rows, places, masks.rles, masks.areas):
            if area:
                yield row, mask
            else:
                self.notes.add("objects without a mask left out", where)

    def _segmentation(self, row: Row, where: str) -> Any:
        segmentation = row.get("segmentation")
        if not isinstance(segmentation, list):
            return segmentation
        sound = [part for part in segmentation if not _is_line(part)]
        dropped = len(segmentation) - len(sound)
        self.notes.add("polygons of fewer than 3 points left out", where, dropped)
        return [_plain(part) for part in sound]

    def _category(self, row: Row) -> str:
        id_ = row.get("category_id")
        name = self.categories.name(id_) if type(id_) is int else None
        if name is None:
            raise ValueError(
                f"{self.path}: annotation {shorten(row.get('id'))}: category_id {shorten(id_)} is "
                "not one of the file's categories"
            )
        return name

    def _name(self, image: Row) -> str:
        name, url = image.get("file_name"), image.get("coco_url")
        if name is None and isinstance(url, str):  # LVIS: the folder and the name on the server
            name = "/".join(url.split("/")[-2:])
        if not isinstance(name, str) or not name:
            raise ValueError(f"{self._where(image)}: no file_name")
        return under_root(name, self.root, self._where(image))

    def _size(self, image: Row) -> Tuple[int, int]:
        size = (image.get("height"), image.get("width"))
        if size == (None, None) and self.root is not None:
            size = image_size(self.root / self._name(image))
            image["height"], image["width"] = size
        if not all(type(n) is int and 0 < n < 2**31 for n in size) or size[0] * size[1] >= 2**31:
            raise ValueError(
                f"{self._where(image)}: height and width are {shorten(size)}; --images lets me "
                "look them up where they are missing"
            )
        return size

    def _where(self, image: Row) -> str:
        return f"{self.path}: image {shorten(image['id'])}"


def _usable_ids(rows: Sequence[Row]) -> bool:
    """Whether the ids can stand in the new file: positive integers, each used once."""
    ids = [row.get("id") for row in rows]
    return all(type(id_) is int and id_ > 0 for id_ in ids) and len(set(ids)) == len(ids)


def _is_line(polygon: Any) -> bool:
    """Whether a polygon is well-formed, but has fewer than three points."""
    return isinstance(polygon, np.ndarray) and polygon.ndim == 1 and len(polygon) < 6


def _plain(polygon: Any) -> Any:
    return polygon.tolist() if isinstance(polygon, np.ndarray) else polygon


def _iscrowd(row: Mapping[str, Any]) -> int:
    return int(row.get("iscrowd") in (1, True))


class CocoWriter:
    """Writes a COCO file with an image per frame; a context manager.

    Images tell ``video_id`` and ``frame_id`` (from 0), objects ``track_id`` and the same again as
    ``instance_id``, so that :func:`read_coco` can put the videos together again. A frame that a
    clip shows several times is one image.

    Args:
        path: the JSON file.
        categories: of the tracks to come.
    """

    def __init__(self, path: Union[str, Path], categories: Categories) -> None:
        self.categories = categories
        self.videos = self.tracks = self.frames = self.masks = 0
        self._file = JsonListsWriter(path, "annotations")
        self._images: List[Row] = []
        self._videos: List[Row] = []

    def __enter__(self) -> "CocoWriter":
        self._file.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        content = {"images": self._images, "videos": self._videos}
        self._file.content = {**content, "categories": self.categories.rows}
        self._file.__exit__(*exception)

    def add(self, clip: Clip) -> None:
        """Append the frames of a video."""
        self.videos += 1
        video_id = self.videos if clip.id is None else clip.id
        self._videos.append({"id": video_id, "name": clip.name})
        tracks = [track for track in clip.tracks if any(track.masks)]
        ids = [track.id for track in tracks]
        numbered = range(self.tracks + 1, self.tracks + 1 + len(tracks))
        ids = [number if id_ is None else id_ for id_, number in zip(ids, numbered)]
        self.tracks += len(tracks)
        listed = set()
        for t, name in enumerate(clip.file_names):
            if name in listed:
                continue
            listed.add(name)
            self.frames += 1
            size = {"height": clip.height, "width": clip.width}
            place = {"video_id": video_id, "frame_id": t}
            self._images.append({"id": self.frames, "file_name": name, **size, **place})
            for id_, track in zip(ids, tracks):
                if track.masks[t] is not None:
                    self._write(track, track.masks[t], id_)

    def _write(self, track: ClipTrack, mask: RLE, id_: int) -> None:
        self.masks += 1
        self._file.write(
            {
                "id": self.masks,
                "image_id": self.frames,
                "category_id": self.categories.id(track.category),
                "track_id": id_,
                "instance_id": id_,
                "iscrowd": track.iscrowd,
                "area": int(rle_ops.areas([mask])[0]),
                "bbox": coco_mask.toBbox(mask).tolist(),
                "segmentation": mask,
            }
        )
