"""Whether the frames of a data set are there, can be decoded, and have the size they should."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Iterable, Iterator, List, NamedTuple, Optional, Tuple

from PIL import Image
from tqdm import tqdm

from vis_d2.structures.rle import shorten

from .dataset_statistics import CheckedVideo
from .findings import Findings

__all__ = ["check_frames"]

_BATCH = 512  # frames handed to the threads at once: a data set has hundreds of thousands
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, the picture is to be turned by 90 degrees


class _Frame(NamedTuple):
    video: CheckedVideo
    t: int
    path: str


def check_frames(
    videos: Iterable[CheckedVideo],
    folder: str,
    findings: Findings,
    *,
    fast: bool = False,
    workers: Optional[int] = None,
) -> int:
    """Read every frame.

    Args:
        videos: which frames.
        folder: what their ``file_names`` are relative to.
        findings: receives what is wrong.
        fast: read the headers only: finds what is missing or of another size, but not a file that
            was cut off.
        workers: threads; None takes one per core, at most 16.

    Returns:
        How many frames were looked at.
    """
    frames = [
        _Frame(video, t, os.path.join(folder, name))
        for video in videos
        for t, name in enumerate(video.file_names)
    ]
    workers = workers or min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on odd metadata; their lines name no file
        checked = _in_batches(pool, frames, fast)
        for frame, fault in tqdm(checked, "frames", len(frames), unit="frame", disable=None):
            if fault is not None:
                findings.add(*fault, frame.video.id, None, frame.t)
    return len(frames)


def _in_batches(
    pool: ThreadPoolExecutor, frames: List[_Frame], fast: bool
) -> Iterator[Tuple[_Frame, Optional[Tuple[str, str]]]]:
    rest = iter(frames)
    for batch in iter(lambda: list(islice(rest, _BATCH)), []):
        yield from zip(batch, pool.map(lambda frame: _fault(frame, fast), batch))


def _fault(frame: _Frame, fast: bool) -> Optional[Tuple[str, str]]:
    """Kind of finding and text, or None for a sound frame."""
    if not os.path.isfile(frame.path):  # opening a pipe or a device could wait forever
        return "missing-frame", shorten(frame.path, 200)
    try:
        with Image.open(frame.path) as image:
            width, height = image.size
            # Asked for its EXIF data, a PNG is decoded: there they may stand at the end.
            exif = {} if fast and image.format == "PNG" else image.getexif()
            if exif.get(_ORIENTATION, 1) in (5, 6, 7, 8):  # as training turns it, too
                width, height = height, width
            if (width, height) == (frame.video.width, frame.video.height) and not fast:
                image.load()
    except Exception as error:  # decoders raise all sorts of errors on broken files
        text = f"{shorten(frame.path, 200)}: {type(error).__name__}: {error}"
        return "unreadable-frame", text
    if (width, height) != (frame.video.width, frame.video.height):
        wanted = f"{frame.video.width}x{frame.video.height}"
        return "frame-size", f"{shorten(frame.path, 200)} is {width}x{height}, not {wanted}"
    return None
