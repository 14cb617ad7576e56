"""Truths and results are read and compared video by video, by several processes if they help."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from operator import is_
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from vis_d2.structures.rle import RLE
from vis_d2.structures.tube_iou import Group, StackedTubes, stacked_tube_ious, tube_iou

from .processes import forked_map
from .tracks import Entry, Reading, Track, Video, read_masks_of

# A further process pays with this many masks to read: the time it takes to start.
_MASKS_PER_PROCESS = 20_000
# Videos are taken together until they have as many: enough to spread the cost of calls of numpy
# over them, few enough for the processor's cache.
_MASKS_PER_BATCH = 2_500
# Fewer are sorted faster without numpy.
_FEW_SCORES = 100

Ious = Dict[Tuple[int, int], np.ndarray]  # by video and category


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
    ious: Ious = field(default_factory=dict)
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
    batches = batched(jobs)
    outcomes: List[_Outcome] = []
    for found, ious in forked_map(partial(_run, rules=rules), batches, _useful(jobs, processes)):
        outcomes += found
        compared.ious.update(ious)
    for job, outcome in zip(jobs, outcomes):
        compared.faults += outcome.faults
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


def batched(jobs: Sequence[VideoJob]) -> List[List[VideoJob]]:
    """The videos in groups that are compared together, in their order."""
    batches: List[List[VideoJob]] = []
    room = 0
    for job in jobs:
        if room <= 0:
            batches.append([])
            room = _MASKS_PER_BATCH
        batches[-1].append(job)
        room -= _num_masks(job)
    return batches


class _Outcome(NamedTuple):
    """What comes out of a job; small, since it may have to travel between processes."""

    lengths: List[Optional[int]]  # masks of each entry; None if it could not be read
    areas: np.ndarray  # of all these masks; one array travels faster than many
    rewritten: Dict[int, List[Optional[RLE]]]  # masks that are not those of the file
    faults: List[str]


def _useful(jobs: Sequence[VideoJob], processes: int) -> int:
    return min(processes, 1 + sum(map(_num_masks, jobs)) // _MASKS_PER_PROCESS)


def _num_masks(job: VideoJob) -> int:
    return sum(len(entry.row["segmentations"]) for entry in (*job.truths, *job.found))


def _run(jobs: Sequence[VideoJob], *, rules: Rules) -> Tuple[List[_Outcome], Ious]:
    outcomes, readings = [], []
    for job in jobs:
        reading = read_masks_of([*job.truths, *job.found], job.video, rules.strict)
        outcomes.append(_outcome(job, reading))
        if not reading.faults:
            readings.append((job, reading))
    return outcomes, tube_ious(readings, rules)


def _outcome(job: VideoJob, reading: Reading) -> _Outcome:
    rewritten = {
        k: masks
        for k, (masks, entry) in enumerate(zip(reading.masks, (*job.truths, *job.found)))
        if masks is not None and not _same(masks, entry.row["segmentations"])
    }
    known = [areas for areas in reading.areas if areas is not None]
    lengths = [None if areas is None else len(areas) for areas in reading.areas]
    joined = np.concatenate([np.zeros(0, np.int64), *known])
    return _Outcome(lengths, joined, rewritten, reading.faults)


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(map(is_, one, other))


def tube_ious(videos: Sequence[Tuple[VideoJob, Reading]], rules: Rules) -> Ious:
    """The ``ious`` of some videos.

    Args:
        videos: each with the masks of its truths, then those of its results, all readable.
        rules: how to compare.
    """
    grouped = [_groups(job, rules.max_results) for job, _ in videos]
    crowds = [_crowds(job, groups, rules) for (job, _), groups in zip(videos, grouped)]
    stacked: Dict[int, StackedTubes] = {}
    for n, (groups, (_, reading)) in enumerate(zip(grouped, videos)):
        lengths = {len(masks) for masks in reading.masks}
        if reading.stack is not None and len(lengths) == 1:
            present = reading.present.reshape(len(reading.masks), lengths.pop())
            stacked[n] = StackedTubes(reading.stack, present, list(groups.values()), crowds[n])
    found = dict(zip(stacked, stacked_tube_ious(list(stacked.values()))))
    result: Ious = {}
    for n, (job, reading) in enumerate(videos):
        ious = found.get(n, [None] * len(grouped[n]))
        for (category, (dt, gt)), iou, crowd in zip(grouped[n].items(), ious, crowds[n]):
            if iou is None:
                tubes = ([reading.masks[i] for i in side] for side in (dt, gt))
                iou = tube_iou(*tubes, crowd, strict=rules.strict)
            result[job.video.id, category] = iou
    return result


def _crowds(job: VideoJob, groups: Dict[int, Group], rules: Rules) -> List[Optional[List[int]]]:
    """For each group the flags of its truths, if they matter."""
    if rules.crowd != "coco":
        return [None] * len(groups)
    flags = [int(bool(entry.row.get("iscrowd"))) for entry in job.truths]
    return [[flags[i] for i in gt] for _, gt in groups.values()]


def _groups(job: VideoJob, max_results: int) -> Dict[int, Group]:
    """By category the entries of both sides; results by descending score, the best ones only."""
    truths, found = defaultdict(list), defaultdict(list)
    for i, entry in enumerate(job.truths):
        truths[entry.row["category_id"]].append(i)
    for i, entry in enumerate(job.found, start=len(job.truths)):
        found[entry.row["category_id"]].append(i)
    groups = {}
    for category in sorted(truths.keys() & found.keys()):
        scores = [job.found[i - len(job.truths)].row["score"] for i in found[category]]
        order = _descending(scores)[:max_results]
        groups[category] = ([found[category][i] for i in order], truths[category])
    return groups


def _descending(scores: List[float]) -> List[int]:
    """Their places, equal ones in order, nan last, integers as large as floats hold them."""
    if (
        len(scores) < _FEW_SCORES
        and set(map(type, scores)) == {float}
        and all(map(isfinite, scores))
    ):
        return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    return np.argsort([-score for score in scores], kind="mergesort").tolist()
