"""The stages of the plain and of the fast evaluation, each as something to be timed."""

import gc
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from vis_d2.evaluation.comparison import Ious, Rules, VideoJob, batched, compare, tube_ious
from vis_d2.evaluation.processes import forked_map
from vis_d2.evaluation.results import collection_paused, read_json, read_results
from vis_d2.evaluation.tracks import Reading, entries_by_video, read_masks_of, read_videos
from vis_d2.evaluation.video_coco_eval import METRICS, VideoCOCOeval
from vis_d2.utils.memory import peak_resident_mb

from ._plain_evaluation import PlainEvaluation, plain_evaluation

Row = Dict[str, Any]
Timed = Dict[str, Tuple[float, Optional[np.ndarray]]]  # by stage: seconds, numbers
RULES = Rules(strict=True, crowd="official", max_results=100)
READ, IOU, BOTH, ALL = "read masks", "IoU", "read masks and IoU", "files to numbers"


def time_plain(paths: Sequence[str], repeat: int) -> Timed:
    """Time the plain program.

    Returns:
        For each stage the shortest of its times in seconds and, for ``IOU`` and ``ALL``, its
        numbers.
    """
    timed = _best_of({ALL: lambda: plain_evaluation(*paths).stats}, repeat)
    gt, results = map(read_json, paths)
    evaluation = PlainEvaluation(gt, results)
    evaluation.prepare()
    stages = {READ: lambda: PlainEvaluation(gt, results), IOU: evaluation.all_ious}
    timed.update(_best_of(stages, repeat))
    timed[BOTH] = (timed[READ][0] + timed[IOU][0], None)
    return timed


def time_fast(paths: Sequence[str], repeat: int, processes: int) -> Timed:
    """The same for ours. What is read in other processes is not sent back, so ``READ`` is timed in
    one process only; ``BOTH`` is what happens in an evaluation."""
    timed = _best_of({ALL: lambda: _numbers(paths, processes)}, repeat)
    with collection_paused():
        jobs = _jobs(*map(read_json, paths))
    timed.update(_best_of({BOTH: lambda: len(compare(jobs, RULES, processes).found)}, repeat))
    if processes == 1:
        timed.update(_best_of({READ: lambda: len([_read(job) for job in jobs])}, repeat))
    batches = [[(job, _read(job)) for job in batch] for batch in batched(jobs)]
    timed.update(_best_of({IOU: lambda: _flat(forked_map(_ious, batches, processes))}, repeat))
    return timed


def peak_memory(paths: Sequence[str], processes: int) -> float:
    """MiB that files to numbers takes at most, forked processes not counted."""
    _numbers(paths, processes)
    return peak_resident_mb()


def _best_of(stages: Dict[str, Callable[[], Any]], repeat: int) -> Timed:
    timed = {}
    for name, stage in stages.items():
        seconds = []
        for _ in range(repeat):
            gc.collect()
            start = time.perf_counter()
            value = stage()
            seconds.append(time.perf_counter() - start)
        timed[name] = (min(seconds), value if isinstance(value, np.ndarray) else None)
    return timed


def _numbers(paths: Sequence[str], processes: int) -> np.ndarray:
    with collection_paused():
        gt, results = read_json(paths[0]), read_results(paths[1])
        metrics = VideoCOCOeval(gt, results, processes=processes).run()
    return np.array([metrics[name] for name in METRICS])


def _jobs(gt: Row, results: List[Row]) -> List[VideoJob]:
    videos = read_videos(gt["videos"], strict=True)
    truths, found = (
        entries_by_video(rows, videos, None, kind=kind, strict=True)[0]
        for rows, kind in ((gt["annotations"], "annotation"), (results, "result"))
    )
    return [VideoJob(videos[v], truths.get(v, []), found.get(v, [])) for v in sorted(videos)]


def _read(job: VideoJob) -> Reading:
    return read_masks_of([*job.truths, *job.found], job.video, RULES.strict)


def _ious(videos: Sequence[Tuple[VideoJob, Reading]]) -> Ious:
    return tube_ious(videos, RULES)


def _flat(parts: Any) -> np.ndarray:
    ious: Ious = {}
    for part in parts:
        ious.update(part)
    return np.concatenate([ious[cell].ravel() for cell in sorted(ious)])
