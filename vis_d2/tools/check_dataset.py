"""Find everything that is wrong with a data set before a training is lost to it."""

import argparse
import json
import os
from glob import escape as glob_escape
from glob import glob
from typing import List, Optional

from vis_d2.data.annotation_file import read_annotations
from vis_d2.data.dataset_check import check_annotations
from vis_d2.data.dataset_statistics import Statistics
from vis_d2.data.findings import ERROR, WARNING, Findings
from vis_d2.data.frame_check import check_frames
from vis_d2.data.layouts import (
    FOLDERS,
    datasets_root,
    documented,
    find_frames,
    identify,
    link_commands,
    locate,
    survey,
)

SHOWN = 5  # findings of each kind


def main(argv: Optional[List[str]] = None) -> int:
    """Run the check; see ``vis-d2 check-dataset --help``. Returns 1 if there are errors."""
    args = _parser().parse_args(argv)
    if os.path.isdir(args.json):
        return _check_layout(args.json)
    if not os.path.exists(args.json):
        near = sorted(glob(os.path.join(glob_escape(os.path.dirname(args.json)), "*.json")))[:5]
        hint = f"; beside it: {', '.join(near)}" if near else ""
        raise FileNotFoundError(f"there is no file {args.json}{hint}")
    findings = Findings()
    statistics = check_annotations(read_annotations(args.json), findings)
    if args.images is not None:
        if not os.path.isdir(args.images):
            raise FileNotFoundError(f"--images {args.images}: there is no such folder")
        videos = statistics.videos.values()
        check_frames(videos, args.images, findings, fast=args.fast, workers=args.workers)
    if args.report is not None:
        report = {"counts": findings.counts, "findings": findings.rows()}
        with open(args.report, "w", encoding="utf-8") as file:
            json.dump({"file": args.json, **report, "statistics": statistics.to_json()}, file)
    print("\n".join(statistics.lines()))
    for line in findings.lines(None if args.all else SHOWN):
        print(line)
    _advise(args, statistics, findings)
    errors, warnings = findings.number_of(ERROR), findings.number_of(WARNING)
    looked_at = "" if args.images is not None else "; frames were not looked at (--images)"
    print(f"{args.json}: {errors} errors, {warnings} warnings{looked_at}")
    return int(errors > 0)


def _advise(args: argparse.Namespace, statistics: Statistics, findings: Findings) -> None:
    """Say where the frames are if not here, and how a known data set is found by its name."""
    frames = args.images
    names = [video.file_names[0] for video in statistics.videos.values() if video.file_names]
    if frames is not None and names and findings.counts.get("missing-frame"):
        around = [args.images, os.path.dirname(os.path.abspath(args.images))]
        frames = find_frames([*around, os.path.dirname(args.json) or "."], names[:3])
        if frames is not None and not os.path.samefile(frames, args.images):
            print(f"The frames are in another folder: --images {frames}")
    known = identify(args.json, list(statistics.names.values()))
    if frames is None or known is None:
        return
    try:
        if os.path.samefile(locate(*known)[0], args.json):
            return
    except FileNotFoundError:
        pass
    folder = os.path.join(datasets_root(), FOLDERS[known[0]][0])
    print(f"To use it by the name {'_'.join(known)}:")
    print("\n".join(f"    {line}" for line in link_commands(folder, known[1], args.json, frames)))


def _check_layout(folder: str) -> int:
    """What is expected in a data set's folder, what was found, and the commands in between."""
    parts = survey(folder)
    commands = [command for part in parts for command in part.commands]
    for part in parts:
        for found, expected in zip((part.json_file, part.frames), documented(folder, part.split)):
            print(f"{part.split:5s}  {found or f'- (expected {expected})'}")
    if commands:
        print("To bring it into the documented layout (datasets/README.md):")
        print("\n".join(f"    {command}" for command in commands))
    for part in parts:
        if part.json_file and part.frames:
            print(f"Next: vis-d2 check-dataset {part.json_file} --images {part.frames}")
    found = [part for part in parts if part.json_file]
    if not found:
        print(f"{folder}: no annotation file of a split train, valid or test")
    return int(not found or bool(commands) or any(part.frames is None for part in found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vis-d2 check-dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
examples:
  vis-d2 check-dataset train.json --images train/JPEGImages
  vis-d2 check-dataset datasets/ytvis_2019        is everything where it is looked for?

exit code: 1 if there are errors (training or strict evaluation would refuse the file, or a frame
cannot be used), 0 otherwise; warnings are what they repair or ignore.""",
    )
    add = parser.add_argument
    add("json", metavar="JSON", help="annotations in YouTube-VIS format, or a data set's folder")
    add("--images", metavar="DIR", help="folder of the frames; without it, they are not looked at")
    add("--fast", action="store_true", help="read only the headers of the frames")
    add("--all", action="store_true", help=f"print every finding, not only {SHOWN} of each kind")
    add("--json", dest="report", metavar="FILE", help="write all findings and counts as JSON")
    add("--workers", type=int, metavar="N", help="threads that read frames (one per core)")
    return parser
