"""Everything that is wrong with the tracks of an annotation file."""

import math
from collections import defaultdict
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from pycocotools import mask as coco_mask

from vis_d2.structures import rle as rle_ops
from vis_d2.structures.rle import RLE, shorten

from .dataset_statistics import CheckedVideo, Statistics
from .findings import Findings

__all__ = ["TrackCheck", "is_int"]

BOX_TOLERANCE = 2.0  # pixels; whether the last column belongs to a box is a matter of taste
AREA_TOLERANCE = 0.05


class TrackCheck:
    """Checks one entry of ``annotations`` after the other."""

    def __init__(self, statistics: Statistics, findings: Findings) -> None:
        self.statistics = statistics
        self.findings = findings
        self.ids: Dict[int, Set[int]] = defaultdict(set)  # track id -> videos
        self.masks: Dict[Tuple[int, int], Any] = {}  # (video id, hash of the masks) -> name

    def check(self, row: Any, index: int) -> None:
        """Check the entry at that place of the file."""
        if not isinstance(row, dict):
            self.findings.add("track", f"annotation {index} is no object: {shorten(row)}")
            return
        video = row["video_id"] if is_int(row.get("video_id")) else None
        name = row.get("id") if is_int(row.get("id")) else f"at place {index}"
        if video is None:
            text = f"video_id must be an integer, got {shorten(row.get('video_id'))}"
            self.findings.add("track", text, None, name)
            return
        where = (video, name)
        self._id(row, where)
        usable = self.statistics.videos.get(video)
        if usable is None or not usable.file_names:
            self.findings.add("track-video", "there is no such video", *where)
            return
        self.statistics.tracks_of_video[video] += 1
        self._category(row, where)
        if row.get("iscrowd") not in (None, 0, 1):
            self.findings.add("iscrowd", f"got {shorten(row['iscrowd'])}", *where)
        masks = self._masks(row, usable, where)
        if masks is not None:
            self._count(row, masks, where)
            self._areas(row, masks, where)
            self._boxes(row, usable, masks, where)

    def _id(self, row: Mapping[str, Any], where: Tuple[int, Any]) -> None:
        id_ = row.get("id")
        if id_ is None:
            self.findings.add("no-id", "no id", *where)
            return
        if not is_int(id_):
            self.findings.add("track", f"id must be an integer, got {shorten(id_)}", *where)
            return
        if id_ == 0:
            self.findings.add("id-0", "the id is 0", *where)
        if where[0] in self.ids[id_]:
            self.findings.add("track-id", "a second track with this id", *where)
        elif self.ids[id_]:
            text = f"also a track of video {min(self.ids[id_])}"
            self.findings.add("shared-id", text, *where)
        self.ids[id_].add(where[0])

    def _category(self, row: Mapping[str, Any], where: Tuple[int, Any]) -> None:
        category = row.get("category_id")
        if not is_int(category) or category not in self.statistics.names:
            self.findings.add("track-category", f"category_id {shorten(category)}", *where)
            return
        self.statistics.tracks_of_category[category] += 1
        self.statistics.videos_of_category[category].add(where[0])

    def _list(self, row: Mapping[str, Any], key: str, length: int, where: Any) -> Optional[List]:
        """The list of that key, or None if it is absent or of no use."""
        values = row.get(key)
        if values is None:
            return None
        if not isinstance(values, list):
            self.findings.add("track", f"{key} must be a list, got {shorten(values)}", *where)
            return None
        if len(values) != length:
            text = f"{len(values)} {key} for a video of {length} frames"
            self.findings.add("list-length", text, *where)
            return None
        return values

    def _masks(
        self, row: Mapping[str, Any], video: CheckedVideo, where: Tuple[int, Any]
    ) -> Optional[List[Optional[RLE]]]:
        values = self._list(row, "segmentations", len(video.file_names), where)
        if values is None:
            if row.get("segmentations") is None:
                self.findings.add("track", "no segmentations", *where)
            return None
        try:
            masks = rle_ops.from_segmentations(values, (video.height, video.width))
        except rle_ops.SegmentationError:  # more than one may be bad: one by one
            masks = [self._mask(value, video, (*where, t)) for t, value in enumerate(values)]
        for t, area in enumerate(rle_ops.areas(masks)):
            if masks[t] is not None and not area:
                self.findings.add("empty-mask", "no pixel", *where, t)
                masks[t] = None
        return masks

    def _mask(self, value: Any, video: CheckedVideo, where: Tuple[int, Any, int]) -> Optional[RLE]:
        try:
            return rle_ops.from_segmentations([value], (video.height, video.width))[0]
        except rle_ops.SegmentationError as error:
            size = value.get("size") if isinstance(value, dict) else None
            differs = isinstance(size, list) and size != [video.height, video.width]
            self.findings.add("mask-size" if differs else "mask", str(error), *where)
            return None

    def _count(self, row: Mapping[str, Any], masks: Sequence[Any], where: Tuple[int, Any]) -> None:
        seen = [mask for mask in masks if mask is not None]
        if not seen:
            self.findings.add("never-visible", "no mask in any frame", *where)
            return
        if is_int(row.get("category_id")):
            self.statistics.masks_of_category[row["category_id"]] += len(seen)
        fingerprint = hash(tuple(mask and mask["counts"] for mask in masks))
        twin = self.masks.setdefault((where[0], fingerprint), where[1])
        if twin != where[1]:
            self.findings.add("same-masks", f"the same as those of track {twin}", *where)

    def _areas(self, row: Mapping[str, Any], masks: Sequence[Any], where: Tuple[int, Any]) -> None:
        given = self._list(row, "areas", len(masks), where)
        for t, (area, mask) in enumerate(zip(given or (), rle_ops.areas(masks).tolist())):
            if area is not None and not _is_number(area):
                self.findings.add("areas", f"got {shorten(area)}", *where, t)
            elif abs((area or 0) - mask) > AREA_TOLERANCE * mask:
                text = f"area {shorten(area)}, but the mask has {mask} pixels"
                self.findings.add("area-differs", text, *where, t)

    def _boxes(
        self,
        row: Mapping[str, Any],
        video: CheckedVideo,
        masks: Sequence[Optional[RLE]],
        where: Tuple[int, Any],
    ) -> None:
        boxes = self._list(row, "bboxes", len(masks), where)
        if boxes is None:
            return
        present = [t for t, mask in enumerate(masks) if mask is not None]
        tight = coco_mask.toBbox([masks[t] for t in present]) if present else ()
        tight_by_frame = dict(zip(present, map(list, tight)))
        for t, box in enumerate(boxes):
            if box is None or box == []:
                if t in tight_by_frame:
                    self.findings.add("mask-without-box", "no box, but a mask", *where, t)
            elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
                text = f"got {shorten(box)}, expected [x, y, width, height]"
                self.findings.add("box", text, *where, t)
            elif t not in tight_by_frame:
                if any(box):  # zeros are a way to say "absent"
                    self.findings.add("box-without-mask", f"box {shorten(box)}", *where, t)
            else:
                self._box(box, tight_by_frame[t], video, (*where, t))

    def _box(
        self, box: List[float], tight: List[float], video: CheckedVideo, where: Tuple[Any, ...]
    ) -> None:
        """Check the box of a frame with a mask; ``tight`` is the mask's own."""
        x, y, w, h = map(float, box)
        if w <= 0 or h <= 0:
            self.findings.add("box-empty", f"box {shorten(box)}", *where)
            return
        over = (-x, -y, x + w - video.width, y + h - video.height)
        text = f"box {shorten(box)} in an image of {video.width}x{video.height}"
        if x + w <= 0 or y + h <= 0 or x >= video.width or y >= video.height:
            self.findings.add("box-outside", text, *where)
            return
        if max(over) > 1e-3:
            self.findings.add("box-clipped", text, *where)
        tx, ty, tw, th = tight
        lacking = max(x - tx, y - ty, tx + tw - (x + w), ty + th - (y + h))
        if lacking > BOX_TOLERANCE:
            spans = [int(v) for v in tight]
            text = f"box {shorten(box)} lacks {lacking:g} pixels of its mask's {spans}"
            self.findings.add("box-too-small", text, *where)


def is_int(value: Any) -> bool:
    """Whether a JSON value is an integer."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    small = isinstance(value, float) or (is_int(value) and abs(value) < 2**1000)
    return small and math.isfinite(value)
