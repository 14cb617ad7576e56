"""Tracks in the formats of other programs: a table, MOTS text, pictures of ids, COCO."""

import csv
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    TextIO,
    Tuple,
)

import numpy as np
from pycocotools import mask as coco_mask

from vis_d2.structures.label_maps import (
    MOTS_PER_CLASS,
    frame_numbers,
    mots_line,
    paint_numbers,
    save_numbers,
    split_numbers,
)
from vis_d2.structures.rle import RLE

from .video_tracks import LabelledTrack, LabelledVideo, TrackFile, visible

CSV_COLUMNS = (
    "video_id", "frame", "file_name", "track", "category_id", "category", "score",
    "x", "y", "w", "h", "area", "rle",
)  # fmt: skip
LEGEND_COLUMNS = ("video_id", "video", "number", "track", "category_id", "category", "score")
LEGEND_NAME = "legend.csv"
_MOST_COLORS, _MOST_IDS = 255, 2**16 - 1

Progress = Callable[[Sequence[LabelledVideo]], Iterable[LabelledVideo]]


def write_csv(file: TrackFile, folder: Path, progress: Progress = iter) -> int:
    """Write ``tracks.csv``: a row per video, frame and track, with the columns ``CSV_COLUMNS``.

    Frames count from 0; the box is in whole pixels; ``rle`` is a compressed COCO RLE in JSON, which
    ``pycocotools.mask.decode(json.loads(rle))`` takes. Annotations have an empty ``score``.

    Args:
        file: what to write.
        folder: where to write; made if it does not exist.
        progress: wraps the list of videos, as ``tqdm`` does.

    Returns:
        The number of masks written.
    """
    count = 0
    with _open(folder, "tracks.csv") as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for video in progress(file.videos):
            for t, _, track in _cells(video):
                label = _label(track, file)
                where = (video.id, t, video.file_names[t], track.id)
                mask = track.masks[t]
                text = json.dumps(mask, separators=(",", ":"))
                writer.writerow((*where, *label, *_box(mask), int(track.areas[t]), text))
                count += 1
    return count


def write_mots(file: TrackFile, folder: Path, progress: Progress = iter) -> int:
    """Write a text file per video as KITTI MOTS has it, and ``legend.csv``.

    A line is ``frame object class height width rle``; a frame has the number of its image (see
    :func:`.label_maps.frame_numbers`), the class is the category id and the object 1000 times that
    plus the number of the track in its video. The format knows no overlap: a pixel belongs to the
    track with the highest score. Arguments and result are those of :func:`write_csv`.

    Raises:
        ValueError: a video with more than 999 tracks, which the numbers cannot tell apart, or a
            category id below 0.
    """
    _limit(file, MOTS_PER_CLASS - 1, "MOTS")
    below = min(file.categories, default=0)
    if below < 0:
        raise ValueError(f"category {below}: MOTS holds no class below 0")
    count = 0
    with _legend(folder, file) as add_to_legend:
        for video in progress(file.videos):
            add_to_legend(video)
            with _open(folder, f"{video.name}.txt") as target:
                for t, frame in enumerate(frame_numbers(video.file_names)):
                    for number, track, mask in _apart(video, t):
                        target.write(mots_line(frame, track.category_id, number, mask))
                        count += 1
    return count


def write_png(
    file: TrackFile,
    folder: Path,
    progress: Progress = iter,
    palette: Optional[Sequence[Tuple[int, int, int]]] = None,
) -> int:
    """Write a folder per video with a picture per frame, and ``legend.csv``.

    A pixel is the number of its track in the video, 0 for none; where tracks overlap the one with
    the highest score is seen. A video of up to 255 tracks gets 8-bit pictures with a palette, a
    larger one 16-bit pictures. Arguments and result are those of :func:`write_csv`, and:

    Args:
        palette: 256 colours (red, green, blue); None for shades of grey.

    Raises:
        ValueError: a video with more than 65535 tracks.
    """
    _limit(file, _MOST_IDS, "PNG")
    colors = None if palette is None else [channel for color in palette for channel in color]
    count = 0
    with _legend(folder, file) as add_to_legend:
        for video in progress(file.videos):
            add_to_legend(video)
            (folder / video.name).mkdir(parents=True, exist_ok=True)
            for t, name in enumerate(video.frame_names()):
                ids = id_map(video, t)
                count += len(np.unique(ids[ids > 0]))
                small = len(video.tracks) <= _MOST_COLORS
                ids = ids.astype(np.uint8 if small else np.uint16)
                save_numbers(folder / video.name / f"{name}.png", ids, colors)
    return count


def write_coco(file: TrackFile, folder: Path, progress: Progress = iter) -> int:
    """Write frames as images of a COCO data set.

    Annotations become ``instances.json``. Results become ``results.json``, which pycocotools'
    ``loadRes`` takes, and ``images.json`` with the images they are about. Images are numbered from
    1 over all frames of the annotation file; images and objects also tell video, frame and track.
    Arguments and result are those of :func:`write_csv`.
    """
    images = [_image(video, t) for video in file.videos for t in range(len(video.file_names))]
    categories = [{"id": id_, "name": name} for id_, name in file.categories.items()]
    about = json.dumps({"images": images, "categories": categories})
    videos = progress(file.videos)
    objects = (_coco_object(video, t, track) for video in videos for t, _, track in _cells(video))
    if file.is_results:
        with _open(folder, "images.json") as target:
            target.write(about + "\n")
        with _open(folder, "results.json") as target:
            return _dump_list(objects, target)
    with _open(folder, "instances.json") as target:
        target.write(about[:-1] + ', "annotations": ')
        count = _dump_list(({"id": i, **item} for i, item in enumerate(objects, start=1)), target)
        target.write("}\n")
    return count


def id_map(video: LabelledVideo, t: int) -> np.ndarray:
    """The numbers of the tracks of a frame as a picture, (H, W) uint16; the best score on top."""
    # From the back to the front: of equal scores, the first in the file stays on top.
    order = sorted(visible(video, t), key=lambda pair: (pair[1].score or 0.0, -pair[0]))
    masks = ((number, track.masks[t]) for number, track in order)
    return paint_numbers((video.height, video.width), masks)


def _cells(video: LabelledVideo) -> Iterator[Tuple[int, int, LabelledTrack]]:
    """Frame, number and track of every mask, frame by frame."""
    for t in range(len(video.file_names)):
        for number, track in visible(video, t):
            yield t, number, track


def _apart(video: LabelledVideo, t: int) -> Iterator[Tuple[int, LabelledTrack, RLE]]:
    """The tracks of a frame with what is seen of their masks."""
    present = visible(video, t)
    if len(present) < 2:
        yield from ((number, track, track.masks[t]) for number, track in present)
        return
    of_number = dict(present)
    for number, mask in split_numbers(id_map(video, t)).items():
        yield number, of_number[number], mask


def _limit(file: TrackFile, most: int, format_name: str) -> None:
    for video in file.videos:
        if len(video.tracks) > most:
            raise ValueError(
                f"video {video.id} has {len(video.tracks)} tracks, {format_name} can number "
                f"{most}; a --threshold would leave fewer"
            )


def _image(video: LabelledVideo, t: int) -> Dict[str, Any]:
    size = {"height": video.height, "width": video.width}
    origin = {"video_id": video.id, "frame_id": t}
    return {"id": _image_id(video, t), "file_name": video.file_names[t], **size, **origin}


def _image_id(video: LabelledVideo, t: int) -> int:
    return video.first_image + t + 1


def _coco_object(video: LabelledVideo, t: int, track: LabelledTrack) -> Dict[str, Any]:
    mask = track.masks[t]
    item = {"image_id": _image_id(video, t), "category_id": track.category_id}
    item.update(bbox=_box(mask), area=int(track.areas[t]), segmentation=mask)
    if track.score is None:
        item["iscrowd"] = track.iscrowd
    else:
        item["score"] = track.score
    return {**item, "track_id": track.id}


def _box(mask: RLE) -> List[int]:
    return [int(value) for value in coco_mask.toBbox(mask)]


def _label(track: LabelledTrack, file: TrackFile) -> Tuple[int, str, str]:
    score = "" if track.score is None else repr(track.score)
    return track.category_id, file.categories[track.category_id], score


def _dump_list(items: Iterable[Any], target: TextIO) -> int:
    """Write a JSON list item by item: all of them at once would be the peak of the program."""
    count = 0
    target.write("[")
    for item in items:
        target.write(("," if count else "") + "\n" + json.dumps(item, separators=(",", ":")))
        count += 1
    target.write("\n]")
    return count


@contextmanager
def _legend(folder: Path, file: TrackFile) -> Iterator[Callable[[LabelledVideo], None]]:
    """Gives a function that adds a video to ``legend.csv``."""
    with _open(folder, LEGEND_NAME) as target:
        writer = csv.writer(target, lineterminator="\n")
        writer.writerow(LEGEND_COLUMNS)

        def add(video: LabelledVideo) -> None:
            for number, track in enumerate(video.tracks, start=1):
                writer.writerow((video.id, video.name, number, track.id, *_label(track, file)))

        yield add


@contextmanager
def _open(folder: Path, name: str) -> Iterator[TextIO]:
    """A text file that appears in the folder when it is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.part"
    try:
        with open(partial, "w", encoding="utf-8", newline="") as target:
            yield target
        os.replace(partial, folder / name)
    finally:
        partial.unlink(missing_ok=True)
