"""Truths and results are read and compared video by video, by several processes if they help."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from operator import is_
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from vis_d2.structures.rle import RLE
from vis_d2.structures.tube_iou import Group, stacked_tube_ious, tube_iou

from .processes import forked_map
from .tracks import Entry, Reading, Track, Video, read_masks_of

# A further process pays with this many masks to read: the time it takes to start.
_MASKS_PER_PROCESS = 20_000


class Rules(NamedTuple):
    """How tracks are read and compared; see :class:`VideoCOCOeval`."""

    strict: bool
    crowd: str
    max_results: int


class VideoJob(NamedTuple):
    """The entries of one video."""

    video: Video
    truths: List[Entry]
    found: List[Entry]


@dataclass
class Compared:
    """What has been read.

    Attributes:
        truths, found: tracks in the order of their files.
        ious: by video and category (D, G) float64, rows by descending score and not more than
            ``max_results``, columns in the order of the file; only where both sides have tracks.
        faults: one line for each entry that could not be read.
    """

    truths: List[Track] = field(default_factory=list)
    found: List[Track] = field(default_factory=list)
    ious: Dict[Tuple[int, int], np.ndarray] = field(default_factory=dict)
    faults: List[str] = field(default_factory=list)


def compare(jobs: Sequence[VideoJob], rules: Rules, processes: int = 1) -> Compared:
    """Read the masks of all videos and compare truths with results.

    Args:
        jobs: the videos.
        rules: how.
        processes: at most this many, where the system can fork and there is enough to do.
    """
    compared = Compared()
    sides: Tuple[Dict[int, Track], Dict[int, Track]] = ({}, {})
    for job, outcome in zip(jobs, _outcomes(jobs, rules, processes)):
        compared.faults += outcome.faults
        compared.ious.update(outcome.ious)
        stop = 0
        for k, (entry, length) in enumerate(zip([*job.truths, *job.found], outcome.lengths)):
            if length is None:
                continue
            stop += length
            masks = outcome.rewritten.get(k, entry.row["segmentations"])
            side, areas = sides[k >= len(job.truths)], outcome.areas[stop - length : stop]
            side[entry.index] = Track(entry.name, entry.row, masks, areas)
    compared.truths, compared.found = ([side[i] for i in sorted(side)] for side in sides)
    return compared


class _Outcome(NamedTuple):
    """What comes out of a job; small, since it may have to travel between processes."""

    lengths: List[Optional[int]]  # masks of each entry; None if it could not be read
    areas: np.ndarray  # of all these masks; one array travels faster than many
    rewritten: Dict[int, List[Optional[RLE]]]  # masks that are not those of the file
    faults: List[str]
    ious: Dict[Tuple[int, int], np.ndarray]


def _outcomes(jobs: Sequence[VideoJob], rules: Rules, processes: int) -> Iterator[_Outcome]:
    masks = sum(len(e.row["segmentations"]) for job in jobs for e in (*job.truths, *job.found))
    processes = min(processes, 1 + masks // _MASKS_PER_PROCESS)
    return forked_map(partial(_run, rules=rules), jobs, processes)


def _run(job: VideoJob, *, rules: Rules) -> _Outcome:
    entries = [*job.truths, *job.found]
    reading = read_masks_of(entries, job.video, rules.strict)
    rewritten = {
        k: masks
        for k, (masks, entry) in enumerate(zip(reading.masks, entries))
        if masks is not None and not _same(masks, entry.row["segmentations"])
    }
    ious = {} if reading.faults else tube_ious(job, reading, rules)
    known = [areas for areas in reading.areas if areas is not None]
    lengths = [None if areas is None else len(areas) for areas in reading.areas]
    joined = np.concatenate([np.zeros(0, np.int64), *known])
    return _Outcome(lengths, joined, rewritten, reading.faults, ious)


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


def tube_ious(job: VideoJob, reading: Reading, rules: Rules) -> Dict[Tuple[int, int], np.ndarray]:
    """The ``ious`` of one video.

    Args:
        job: the video.
        reading: the masks of its truths, then those of its results.
        rules: how to compare.
    """
    groups = _groups(job, rules.max_results)
    rows = [entry.row for entry in job.truths]
    crowds: List[Optional[List[int]]] = [
        [int(bool(rows[i].get("iscrowd"))) for i in gt] if rules.crowd == "coco" else None
        for _, gt in groups.values()
    ]
    ious: List[Optional[np.ndarray]] = [None] * len(groups)
    lengths = {len(masks) for masks in reading.masks}
    if reading.stack is not None and len(lengths) == 1:
        present = reading.present.reshape(len(reading.masks), lengths.pop())
        ious = stacked_tube_ious(reading.stack, present, list(groups.values()), crowds)
    result = {}
    for (category, (dt, gt)), iou, crowd in zip(groups.items(), ious, crowds):
        if iou is None:
            tubes = ([reading.masks[i] for i in side] for side in (dt, gt))
            iou = tube_iou(*tubes, crowd, strict=rules.strict)
        result[job.video.id, category] = iou
    return result


def _groups(job: VideoJob, max_results: int) -> Dict[int, Group]:
    """By category the entries of both sides; results by descending score, the best ones only."""
    truths, found = defaultdict(list), defaultdict(list)
    for i, entry in enumerate(job.truths):
        truths[entry.row["category_id"]].append(i)
    for i, entry in enumerate(job.found, start=len(job.truths)):
        found[entry.row["category_id"]].append(i)
    groups = {}
    for category in sorted(truths.keys() & found.keys()):
        scores = [-job.found[i - len(job.truths)].row["score"] for i in found[category]]
        order = np.argsort(scores, kind="mergesort")[:max_results]
        groups[category] = ([found[category][i] for i in order], truths[category])
    return groups
