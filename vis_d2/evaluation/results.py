"""Result files: the entries of a video, ``results.json``, and the zip that servers take."""

import gc
import json
import os
import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence

from vis_d2.structures import rle

from .tracks import read_tracks, read_videos

if TYPE_CHECKING:
    from vis_d2.structures import VideoInstances

RESULTS_NAME = "results.json"  # the name that servers look for at the root of the zip
# Where a zip stops being results: 100 tracks in each of 10,000 videos of 40 frames come to about
# 4 GB of JSON, and results with masks in them shrink three to ten times.
MOST_UNZIPPED = 8 * 2**30  # bytes
_MOST_SHRUNK, _SHRUNK_FROM = 100, 2**28  # times, for what is larger than so many bytes


def to_results(
    video_id: int, instances: "VideoInstances", dataset_ids: Mapping[int, int]
) -> List[Dict[str, Any]]:
    """The result entries of a video, in the order of its tracklets.

    Args:
        video_id: id of the video in the data set's JSON file.
        instances: N tracklets; one that is absent from every frame is left out.
        dataset_ids: contiguous class id -> category id of the JSON file.

    Returns:
        One dict per tracklet: ``video_id``, ``score``, ``category_id`` and ``segmentations`` (T
        compressed RLEs, None where absent).

    Raises:
        ValueError: a class without a category id.
    """
    entries = []
    rows = zip(instances.scores.tolist(), instances.pred_classes.tolist(), instances.segmentations)
    for score, label, segmentations in rows:
        if label not in dataset_ids:
            raise ValueError(
                f"video {video_id}: class {label} is none of the {len(dataset_ids)} classes of the "
                "data set; is MODEL.VIS.NUM_CLASSES that of another one?"
            )
        if any(mask is not None for mask in segmentations):
            category = dataset_ids[label]
            entry = {"video_id": video_id, "score": score, "category_id": category}
            entries.append({**entry, "segmentations": list(segmentations)})
    return entries


def write_results(entries: Sequence[Mapping[str, Any]], path: str) -> None:
    """Write entries as JSON. The file appears whole or not at all."""
    partial = f"{path}.part"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(entries, file, separators=(",", ":"))
    os.replace(partial, path)


def write_zip(results_path: str, zip_path: str) -> None:
    """Zip a result file as servers expect it: named ``results.json``, at the root.

    The same results give the same bytes: the entry carries a fixed date.
    """
    entry = zipfile.ZipInfo(RESULTS_NAME, date_time=(2000, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(zip_path, "w") as archive, archive.open(entry, "w") as target:
        with open(results_path, "rb") as source:
            for block in iter(lambda: source.read(1 << 20), b""):
                target.write(block)


def read_results(path: str) -> List[Dict[str, Any]]:
    """Read a result file, or a zip with ``results.json`` at its root.

    Raises:
        ValueError: not a list of results in JSON, or a zip that is damaged, encrypted, without
            them, or far larger unpacked than results are; names the file.
    """
    entries = _parse(_unzipped(path), path) if zipfile.is_zipfile(path) else read_json(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of results, got {type(entries).__name__}")
    return entries


def read_json(path: str) -> Any:
    """Read a JSON file of annotations or results.

    Masks given as lists of runs are compressed while the file is parsed; as Python lists, those of
    a large data set would take gigabytes.

    Raises:
        ValueError: the file is not JSON; names it.
    """
    with open(path, "rb") as file:
        return _parse(file.read(), path)


def check_results(
    entries: Iterable[Any],
    gt_videos: Sequence[Mapping[str, Any]],
    category_ids: Optional[Sequence[int]] = None,
) -> List[str]:
    """What a server or the strict evaluation would refuse in a result file.

    Args:
        entries: the entries of a result file.
        gt_videos: the ``videos`` of the data set's JSON file.
        category_ids: the category ids of that file; None does not check them.

    Returns:
        One line per fault, naming video, entry and frame; empty if there is none. An entry gets
        one line, that of its first fault.
    """
    videos = read_videos(gt_videos, strict=True)
    return read_tracks(entries, videos, category_ids, kind="result", strict=True)[1]


@contextmanager
def collection_paused() -> Iterator[None]:
    """While millions of objects without cycles are made, looking for cycles only takes time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unzipped(path: str) -> bytes:
    """The result file in a zip, as far as the zip says, which :func:`_member` checks."""
    try:
        with zipfile.ZipFile(path) as archive:
            member = _member(archive, path)
            with archive.open(member) as file:
                return file.read(member.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        # RuntimeError is an encrypted member, NotImplementedError an unknown compression.
        raise ValueError(f"{path}: the zip cannot be read: {error}") from None


def _member(archive: zipfile.ZipFile, path: str) -> zipfile.ZipInfo:
    found = [info for info in archive.infolist() if info.filename == RESULTS_NAME]
    if len(found) != 1:
        names = ", ".join(ascii(name)[1:-1][:80] for name in archive.namelist()[:5]) or "nothing"
        number = "no" if not found else str(len(found))
        raise ValueError(f"{path}: {number} {RESULTS_NAME} at the root of the zip, found {names}")
    size, packed = found[0].file_size, max(found[0].compress_size, 1)
    if size > MOST_UNZIPPED or (size > _SHRUNK_FROM and size > _MOST_SHRUNK * packed):
        raise ValueError(
            f"{path}: {RESULTS_NAME} would unpack from {packed / 2**20:.1f} MB to "
            f"{size / 2**20:.1f} MB, as no results do; if it is meant, unpack it and name the file"
        )
    return found[0]


def _parse(content: bytes, path: str) -> Any:
    try:
        with collection_paused():
            return json.loads(content, object_hook=_compress)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from None


def _compress(value: Dict[str, Any]) -> Any:
    if len(value) == 2 and isinstance(value.get("counts"), list):
        try:
            return rle.from_segmentations([value], (0, 0), any_size=True)[0]
        except ValueError:
            return value  # left for the check that knows where it is
    return value
