"""Annotations of other programs, to and from YouTube-VIS.

A reader gives a :class:`.clips.ClipSet`, one video at a time; a writer is a context manager that
takes one video at a time. Every reader goes with every writer. Modules are imported on use.
"""

from typing import Dict, NamedTuple, Tuple

__all__ = ["READERS", "WRITERS", "Reader", "Writer"]


class Reader(NamedTuple):
    """Where a reader is, and which keyword arguments it takes besides ``images``."""

    module: str
    function: str
    options: Tuple[str, ...]
    help: str


class Writer(NamedTuple):
    """Where a writer is; a folder's writer also takes ``notes``."""

    module: str
    name: str
    folder: bool
    help: str


READERS: Dict[str, Reader] = {
    "coco": Reader(
        ".coco_format", "read_coco", ("clip_length", "per_image"),
        "COCO JSON: images as clips of one frame; with video_id and track_id, videos",
    ),
    "ytvis": Reader(".ytvis_format", "read_ytvis", (), "YouTube-VIS JSON"),
    "davis": Reader(
        ".davis", "read_davis", ("categories", "all_frames", "semantics"),
        "DAVIS: folders of palette PNGs",
    ),
    "mots": Reader(
        ".mots", "read_mots", ("categories",), "MOTS: text files or folders of 16-bit PNGs"
    ),
    "labelme": Reader(
        ".labelme", "read_labelme", ("categories", "all_frames"),
        "LabelMe: folders with a JSON file per frame",
    ),
    "cvat": Reader(".cvat", "read_cvat", (), "CVAT for video 1.1: an XML file per video"),
}  # fmt: skip

WRITERS: Dict[str, Writer] = {
    "ytvis": Writer(".ytvis_format", "YTVISWriter", False, "YouTube-VIS JSON"),
    "coco": Writer(".coco_format", "CocoWriter", False, "COCO JSON, an image per frame"),
    "davis": Writer(".davis", "DavisWriter", True, "folders of palette PNGs"),
    "mots": Writer(".mots", "MotsWriter", True, "MOTS text files"),
    "mots-png": Writer(".mots", "MotsPictureWriter", True, "MOTS 16-bit PNGs"),
}
