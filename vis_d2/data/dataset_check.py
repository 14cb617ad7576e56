"""Everything that is wrong with an annotation file, not only the first thing."""

import os
from typing import Any, Dict, Mapping, Optional

from tqdm import tqdm

from vis_d2.structures.rle import shorten

from .dataset_statistics import CheckedVideo, Statistics
from .findings import Findings
from .track_check import TrackCheck, is_int

__all__ = ["check_annotations"]


def check_annotations(content: Mapping[str, Any], findings: Findings) -> Statistics:
    """Check an annotation file by itself, without its frames.

    A file without errors loads, trains, and is accepted by the strict evaluation.

    Args:
        content: what :func:`read_annotations` gives.
        findings: receives what is wrong.

    Returns:
        What the file holds.
    """
    statistics = Statistics()
    statistics.names = _categories(content.get("categories"), findings)
    statistics.videos = _videos(content.get("videos"), findings)
    rows = content.get("annotations")
    if rows is None or rows == []:
        state = "absent" if "annotations" not in content else "null" if rows is None else "empty"
        findings.add("no-annotations", f"'annotations' is {state}")
    elif not isinstance(rows, list):
        findings.add("track", f"'annotations' must be a list, got {shorten(rows)}")
    else:
        checker = TrackCheck(statistics, findings)
        for index, row in enumerate(tqdm(rows, "annotations", unit="track", disable=None)):
            checker.check(row, index)
    return statistics


def _categories(rows: Any, findings: Findings) -> Dict[int, str]:
    if not isinstance(rows, list) or not rows:
        findings.add("categories", f"expected a list of categories, got {shorten(rows)}")
        return {}
    names: Dict[int, str] = {}
    for row in rows:
        if not isinstance(row, dict) or not is_int(row.get("id")):
            findings.add("categories", f"a category needs an integer id: {shorten(row)}")
        elif row["id"] in names:
            findings.add("categories", f"category id {row['id']} is used more than once")
        elif "name" not in row:
            findings.add("categories", f"category {row['id']} has no name")
            names[row["id"]] = "?"
        else:
            if not isinstance(row["name"], str) or row["name"] in names.values():
                text = f"category {row['id']} is called {shorten(row['name'])}"
                findings.add("category-name", text)
            names[row["id"]] = str(row["name"])
    return names


def _videos(rows: Any, findings: Findings) -> Dict[int, CheckedVideo]:
    if not isinstance(rows, list):
        text = f"expected a list of videos, as in YouTube-VIS format, got {shorten(rows)}"
        findings.add("video", text)
        return {}
    videos: Dict[int, CheckedVideo] = {}
    listed: Dict[str, int] = {}
    for row in rows:
        video = _video(row, findings)
        if video is None:
            continue
        if video.id in videos:
            findings.add("video-id", "this id is used by another video, too", video.id)
            continue
        videos[video.id] = video
        for t, name in enumerate(video.file_names):
            if name in listed:
                text = f"{shorten(name)} is also a frame of video {listed[name]}"
                findings.add("repeated-frame", text, video.id, None, t)
            listed[name] = video.id
    return videos


def _video(row: Any, findings: Findings) -> Optional[CheckedVideo]:
    if not isinstance(row, dict) or not is_int(row.get("id")):
        findings.add("video", f"a video needs an integer id: {shorten(row)}")
        return None
    files, size = row.get("file_names"), (row.get("height"), row.get("width"))
    sound = all(is_int(n) and 0 < n < 2**31 for n in size) and size[0] * size[1] < 2**31
    if not sound:
        text = f"height and width must be positive integers, got {shorten(size)}"
        findings.add("video", text, row["id"])
        return None
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        text = f"file_names must be a list of paths, got {shorten(files)}"
        findings.add("video", text, row["id"])
        return None
    if row.get("length", len(files)) != len(files):
        text = f"length is {shorten(row['length'])}, but there are {len(files)} file_names"
        findings.add("video-length", text, row["id"])
    if not files:
        findings.add("empty-video", "no file_names", row["id"])
    for t, name in enumerate(files):
        if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            findings.add("outside", shorten(name), row["id"], None, t)
    return CheckedVideo(row["id"], *size, files)
