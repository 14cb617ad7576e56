"""Is a result file what a server and the evaluation expect? Writes the zip to submit, too."""

import argparse
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional

from vis_d2.evaluation.results import check_results, read_json, read_results, write_zip
from vis_d2.evaluation.submission import doubts

SHOWN = 20  # faults


def main(argv: Optional[List[str]] = None) -> int:
    """Run the check; see ``vis-d2 check-results --help``. Returns 1 if there are faults."""
    args = _parser().parse_args(argv)
    gt = _read_gt(args.gt)
    entries = read_results(args.results)
    try:
        faults = check_results(entries, gt["videos"], _category_ids(gt))
    except ValueError as error:
        raise ValueError(f"{args.gt}: {error}") from None
    for fault in faults if args.all else faults[:SHOWN]:
        print(f"error: {fault}")
    if len(faults) > SHOWN and not args.all:
        print(f"... and {len(faults) - SHOWN} more (--all)")
    for doubt in () if faults else doubts(entries, gt):
        print(f"warning: {doubt}")
    print(f"{args.results}: {len(entries)} results, {len(faults)} with faults")
    if args.zip == "":
        args.zip = str(Path(args.results).with_suffix(".zip"))
    if args.zip is not None and not faults:
        _write_zip(args.results, args.zip)
    elif args.zip is not None:
        print(f"{args.zip} was not written")
    return int(bool(faults))


def _read_gt(path: str) -> Dict[str, Any]:
    gt = read_json(path)
    if not isinstance(gt, dict) or not isinstance(gt.get("videos"), list):
        raise ValueError(f"{path} has no list 'videos', so it is not in YouTube-VIS format")
    return gt


def _category_ids(gt: Dict[str, Any]) -> List[int]:
    rows = gt.get("categories")
    if not isinstance(rows, list) or not rows:
        raise ValueError("it has no list 'categories'")
    ids = [row.get("id") if isinstance(row, dict) else None for row in rows]
    if not all(isinstance(id_, int) for id_ in ids):
        raise ValueError("each category needs an integer id")
    return ids


def _write_zip(results: str, target: str) -> None:
    if zipfile.is_zipfile(results):
        raise ValueError(f"{results} is a zip already, with results.json at its root")
    if Path(target).exists() and Path(target).samefile(results):
        raise ValueError(f"--zip {target} is the result file itself")
    write_zip(results, target)
    print(f"{target}: results.json at its root, {Path(target).stat().st_size / 2**20:.2f} MB")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vis-d2 check-results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""\
example:
  vis-d2 check-results results.json --gt valid.json --zip submission.zip

checked: known video and category ids (those of the JSON file, not 0-based class numbers), one
mask or null per frame, masks of the video's size that can be decoded, finite scores. Exit code 1
and no zip if anything is wrong.""",
    )
    add = parser.add_argument
    add("results", metavar="RESULTS", help="results.json, or a zip with it")
    add("--gt", required=True, metavar="JSON", help="the data set; needs no annotations")
    add("--zip", metavar="FILE", nargs="?", const="",
        help="write the zip to submit (without FILE: beside the results)")  # fmt: skip
    add("--all", action="store_true", help=f"print every fault, not only {SHOWN}")
    return parser
