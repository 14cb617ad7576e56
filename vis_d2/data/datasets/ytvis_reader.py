"""The entries of a YouTube-VIS file: checked, completed, and put into video dicts."""

import logging
import math
import os
from typing import Any, Dict, List, Mapping, Optional

from detectron2.structures import BoxMode

from vis_d2.structures import rle as rle_ops

__all__ = ["TrackReader"]

logger = logging.getLogger(__name__)

_VIDEO_FIELDS = {"id": int, "height": int, "width": int, "file_names": list}


class TrackReader:
    """Checks and converts the videos and tracks of one file.

    Every error is a ValueError that names file, video, track and frame, as far as they go.

    Args:
        json_file: for the messages only.
        category_ids: dataset id -> contiguous id.
    """

    def __init__(self, json_file: str, category_ids: Dict[int, int]) -> None:
        self.json_file = json_file
        self.category_ids = category_ids
        self.clipped = 0

    def read_videos(self, entries: Any, image_root: str) -> Dict[int, Dict[str, Any]]:
        """Returns video dicts by id, so far without objects; videos of length 0 are left out."""
        if not isinstance(entries, list):
            raise ValueError(
                f"{self.json_file} has no list 'videos', so it is not in YouTube-VIS format"
            )
        videos: Dict[int, Dict[str, Any]] = {}
        for entry in entries:
            video = self._video(entry, image_root)
            if video["video_id"] in videos:
                raise ValueError(f"{self._where(video)}: this id is used by two videos")
            videos[video["video_id"]] = video
        for video_id in [i for i, video in videos.items() if not video["length"]]:
            logger.warning("%s has no frames; left out", self._where(videos.pop(video_id)))
        return videos

    def _video(self, entry: Mapping[str, Any], image_root: str) -> Dict[str, Any]:
        for key, kind in _VIDEO_FIELDS.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                raise ValueError(
                    f"{self.json_file}: a video needs {key} of type {kind.__name__}: "
                    f"{rle_ops.shorten(entry)}"
                )
        files, size = entry["file_names"], (entry["height"], entry["width"])
        if not all(isinstance(file, str) for file in files):
            raise ValueError(
                f"{self.json_file}: video {entry['id']}: file_names must be paths: "
                f"{rle_ops.shorten(files)}"
            )
        if files and (min(size) <= 0 or size[0] * size[1] >= 2**31):  # masks count in 32 bits
            raise ValueError(
                f"{self.json_file}: video {entry['id']}: height and width are "
                f"{rle_ops.shorten(size)}, expected those of an image in pixels"
            )
        length = entry.get("length", len(files))
        video = {
            "video_id": entry["id"],
            "file_names": [os.path.join(image_root, file) for file in files],
            "height": entry["height"],
            "width": entry["width"],
            "length": length,
            "annotations": [[] for _ in files],
        }
        if length != len(files):
            raise ValueError(
                f"{self._where(video)}: length is {rle_ops.shorten(length)}, but there are "
                f"{len(files)} file_names"
            )
        return video

    def add_tracks(self, videos: Dict[int, Dict[str, Any]], tracks: List[Dict[str, Any]]) -> None:
        """Adds the objects to their videos; ``tracks`` is used up."""
        if not isinstance(tracks, list):
            raise ValueError(
                f"{self.json_file}: annotations must be a list, got {rle_ops.shorten(tracks)}"
            )
        for track in tracks:
            if not isinstance(track, dict) or not isinstance(track.get("id"), (int, type(None))):
                raise ValueError(
                    f"{self.json_file}: a track must be an object whose id, if it has one, is an "
                    f"integer: {rle_ops.shorten(track)}"
                )
            for key in ("video_id", "category_id"):
                if not isinstance(track.get(key), int):
                    raise ValueError(
                        f"{self.json_file}: track {track.get('id')}: {key} must be an integer, got "
                        f"{rle_ops.shorten(track.get(key))}"
                    )
        free_id = 1 + max((track.get("id") or 0 for track in tracks), default=0)
        seen = set()
        tracks.reverse()
        while tracks:
            track = tracks.pop()  # so that what has been converted can be freed
            video = videos.get(track["video_id"])
            if video is None:
                raise ValueError(
                    f"{self.json_file}: track {track.get('id')} belongs to video "
                    f"{track['video_id']}, which is not in 'videos' or has no frames"
                )
            if track.get("id") is None:
                track["id"], free_id = free_id, free_id + 1
            if (video["video_id"], track["id"]) in seen:
                raise ValueError(f"{self._where(video, track)}: this id is used by two tracks")
            seen.add((video["video_id"], track["id"]))
            self._add_track(video, track)
        if self.clipped:
            logger.warning(
                "%s: %d boxes reach out of the image; clipped", self.json_file, self.clipped
            )

    def _check_track(self, video: Mapping[str, Any], track: Mapping[str, Any]) -> None:
        where = self._where(video, track)
        for key in ("segmentations", "bboxes", "areas"):
            values = track.get(key)
            if values is not None and not isinstance(values, list):
                raise ValueError(f"{where}: {key} must be a list: {rle_ops.shorten(values)}")
            if values is not None and len(values) != video["length"]:
                raise ValueError(
                    f"{where}: {len(values)} {key}, but the video has {video['length']} frames"
                )
        if track.get("segmentations") is None:
            raise ValueError(f"{where}: no 'segmentations'")
        category = track["category_id"]
        if category not in self.category_ids:
            raise ValueError(
                f"{where}: category_id {category} is not one of the file's categories "
                f"{sorted(self.category_ids)}"
            )
        if track.get("iscrowd") not in (None, 0, 1):
            crowd = rle_ops.shorten(track["iscrowd"])
            raise ValueError(f"{where}: iscrowd is {crowd}, expected 0 or 1")

    def _add_track(self, video: Dict[str, Any], track: Mapping[str, Any]) -> None:
        self._check_track(video, track)
        masks = self._masks(video, track)
        mask_boxes = rle_ops.boxes(list(masks.values())).tolist()
        given = track.get("bboxes") or [None] * video["length"]
        for (t, mask), (x0, y0, x1, y1) in zip(masks.items(), mask_boxes):
            box = self._box(video, track, t, given[t]) or [x0, y0, x1 - x0, y1 - y0]
            video["annotations"][t].append(
                {
                    "id": track["id"],
                    "category_id": self.category_ids[track["category_id"]],
                    "bbox": box,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "segmentation": mask,
                    "iscrowd": int(track.get("iscrowd") or 0),
                }
            )

    def _masks(self, video: Mapping[str, Any], track: Mapping[str, Any]) -> Dict[int, Any]:
        """Returns the compressed masks of the frames in which the object is seen, by frame."""
        size = (video["height"], video["width"])
        try:
            rles = rle_ops.from_segmentations(track["segmentations"], size)
        except rle_ops.SegmentationError as error:
            where = self._where(video, track, error.index)
            raise ValueError(f"{where}: bad mask: {error}") from None
        areas = rle_ops.area(rles).tolist()
        return {t: rle for t, (rle, area) in enumerate(zip(rles, areas)) if area}

    def _box(
        self, video: Mapping[str, Any], track: Mapping[str, Any], t: int, box: Any
    ) -> Optional[List[float]]:
        """Returns the box cut to the image, or None where the file gives no usable one."""
        if box is None or box == []:
            return None
        if not _is_box(box):
            raise ValueError(
                f"{self._where(video, track, t)}: box {rle_ops.shorten(box)}, expected four finite "
                "numbers"
            )
        x, y, w, h = map(float, box)
        if w <= 0 or h <= 0:
            return None
        x0, y0 = max(x, 0.0), max(y, 0.0)
        x1, y1 = min(x + w, float(video["width"])), min(y + h, float(video["height"]))
        if x1 <= x0 or y1 <= y0:
            raise ValueError(
                f"{self._where(video, track, t)}: box {list(box)} (XYWH) lies outside the "
                f"{video['width']}x{video['height']} image"
            )
        if (x0, y0, x1 - x0, y1 - y0) != (x, y, w, h) and max(x0 - x, y0 - y, x + w - x1) > 1e-3:
            self.clipped += 1
        return [x0, y0, x1 - x0, y1 - y0]

    def _where(
        self,
        video: Mapping[str, Any],
        track: Optional[Mapping[str, Any]] = None,
        t: Optional[int] = None,
    ) -> str:
        where = f"{self.json_file}: video {video['video_id']}"
        for file in video["file_names"][:1]:
            folder = os.path.basename(os.path.dirname(file))
            where += f" ({folder if folder.isprintable() else ascii(folder)})"
        where += "" if track is None else f", track {track['id']}"
        return where + ("" if t is None else f", frame {t}")


def _is_box(value: Any) -> bool:
    four = isinstance(value, (list, tuple)) and len(value) == 4
    return four and all(_is_finite(v) for v in value)


def _is_finite(value: Any) -> bool:
    small = isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**1000)
    return small and math.isfinite(value)
