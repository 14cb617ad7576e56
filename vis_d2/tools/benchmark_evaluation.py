"""Time the evaluation against a plain program that compares pair by pair, frame by frame."""

import argparse
import json
import os
import tempfile
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
from tabulate import tabulate

from vis_d2.evaluation.processes import run_fresh, usable_processors

from ._evaluation_stages import ALL, BOTH, IOU, READ, Timed, peak_memory, time_fast, time_plain
from ._synthetic_tracks import make_files

EPILOG = """\
example:
  vis-d2 benchmark-evaluation --repeat 5

The stages: "read masks" checks them and takes their areas; "IoU" goes from masks in memory to the
IoU of all pairs of tracks; "files to numbers" is everything. The plain program decodes the strings
of the masks in both of the first two, for each pair anew; ours does so once, in the first. All
numbers of the two must be equal to the last bit.
"""


class Case(NamedTuple):
    """How much of everything; see :func:`make_files`."""

    name: str
    videos: int
    frames: int
    size: Tuple[int, int]
    truths: int
    results: int
    categories: int


CASES = (
    Case("many videos", 200, 30, (360, 640), 4, 20, 40),
    Case("dense", 1, 60, (720, 1280), 15, 50, 1),
)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the benchmark; see ``vis-d2 benchmark-evaluation --help``."""
    parser = argparse.ArgumentParser(
        prog="vis-d2 benchmark-evaluation",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeat", type=int, default=3, help="runs, the best counts (%(default)s)")
    parser.add_argument("--processes", type=int, default=usable_processors(), help="(%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of videos (%(default)s)")
    args = parser.parse_args(argv)
    if args.repeat < 1 or args.processes < 1 or not 0 < args.scale <= 1:
        raise ValueError("--repeat and --processes must be at least 1, --scale in (0, 1]")
    for case in CASES:
        scaled = case._replace(videos=max(1, round(case.videos * args.scale)))
        with tempfile.TemporaryDirectory() as folder:
            print(_measure(scaled, folder, args.repeat, args.processes), flush=True)
    return 0


def _measure(case: Case, folder: str, repeat: int, processes: int) -> str:
    paths = run_fresh(_write, case, folder)
    plain = run_fresh(time_plain, paths, repeat)
    rows = {stage: [stage, f"{1e3 * plain[stage][0]:.0f} ms"] for stage in (READ, IOU, BOTH, ALL)}
    counts = sorted({1, processes})
    for count in counts:
        timed = run_fresh(time_fast, paths, repeat, count)
        _insist_on_equal(plain, timed, case.name)
        for stage, row in rows.items():
            row.append(_cell(plain[stage][0], timed[stage][0]) if stage in timed else "")
    columns = ("stage", "plain", *(f"{n} process" + "es" * (n > 1) for n in counts))
    table = tabulate(rows.values(), columns, tablefmt="pipe")
    memory = {}
    for videos in sorted({(case.videos + 3) // 4, (case.videos + 1) // 2, case.videos}):
        part = run_fresh(_write, case._replace(videos=videos), folder)
        memory[videos] = run_fresh(peak_memory, part, processes)
    peaks = ", ".join(f"{peak:.0f} MiB with {videos}" for videos, peak in memory.items())
    size = f"{case.size[0]} x {case.size[1]}"
    return (
        f"{case.name}: {case.videos} videos x {case.frames} frames of {size}, {case.truths} truths "
        f"and {case.results} results per video, {case.categories} categories\n\n{table}\n\n"
        f"peak memory by number of videos: {peaks}\n"
    )


def _write(case: Case, folder: str) -> Tuple[str, str]:
    content = make_files(*case[1:])
    paths = tuple(os.path.join(folder, f"{name}_{case.videos}.json") for name in ("gt", "results"))
    for path, value in zip(paths, content):
        with open(path, "w", encoding="utf-8") as file:
            json.dump(value, file)
    return paths


def _insist_on_equal(plain: Timed, timed: Timed, name: str) -> None:
    for stage in (IOU, ALL):
        if not np.array_equal(plain[stage][1], timed[stage][1]):
            raise ValueError(f"{name}: {stage} differs from the plain program")


def _cell(reference: float, seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms, {reference / seconds:.1f}x"
