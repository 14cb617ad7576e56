"""Score a result file against ground truth: average precision, per video and category if asked."""

import argparse
import json
import os
from typing import Any, Dict, List, Mapping, Optional

from vis_d2.evaluation.breakdown import (
    CATEGORY_COLUMNS,
    VIDEO_COLUMNS,
    rows_by_category,
    rows_by_video,
    write_csv,
)
from vis_d2.evaluation.processes import usable_processors
from vis_d2.evaluation.report import identity_table, metrics_table
from vis_d2.evaluation.results import check_results, collection_paused, read_json, read_results
from vis_d2.evaluation.video_coco_eval import VideoCOCOeval, missing_annotations

EPILOG = """\
example:
  vis-d2 evaluate --gt val.json --results results.json --out metrics.json --csv tables
  writes metrics.json (fractions, -1 where undefined), tables/videos.csv and
  tables/categories.csv, the worst first.

modes:
  strict    the official numbers for well-formed files, an error that names video, track and
            frame for others
  official  bit for bit the official YouTube-VIS evaluation, also where it flatters broken files
"""
KINDS = ("ap", "hota")


def main(argv: Optional[List[str]] = None) -> int:
    """Run the evaluation; see ``vis-d2 evaluate --help``."""
    parser = argparse.ArgumentParser(
        prog="vis-d2 evaluate",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gt", required=True, metavar="JSON", help="YouTube-VIS annotations")
    parser.add_argument(
        "--results", required=True, metavar="JSON", help="results, also in a zip as servers take it"
    )
    parser.add_argument("--mode", choices=("strict", "official"), default="strict")
    parser.add_argument(
        "--metrics",
        type=_kinds,
        default=("ap",),
        metavar="ap,hota",
        help="ap, hota or both: average precision, identity metrics (%(default)s)",
    )
    parser.add_argument("--out", metavar="JSON", help="where to write the metrics")
    parser.add_argument("--csv", metavar="DIR", help="where to write videos.csv, categories.csv")
    parser.add_argument(
        "--processes", type=int, default=usable_processors(), help="at most this many (%(default)s)"
    )
    args = parser.parse_args(argv)
    with collection_paused():
        return _evaluate(args)


def _evaluate(args: argparse.Namespace) -> int:
    gt, results = read_json(args.gt), read_results(args.results)
    if not isinstance(gt, dict):
        raise ValueError(f"{args.gt}: expected an object with videos and categories")
    missing = missing_annotations(gt)
    if missing:  # said first: what is wrong with the results may end this
        print(f"No ground truth in {args.gt}: {missing}.")
        print("(vis-d2 split makes a validation set with annotations from a training file.)")
    evaluation = VideoCOCOeval(gt, results, mode=args.mode, processes=args.processes)
    metrics: Dict[str, Any] = {}
    if "ap" in args.metrics or args.csv:
        metrics.update(evaluation.run())
    if missing:
        print(_checked(gt, results))
    elif metrics:
        print(metrics_table(metrics, evaluation.categories))
    if "hota" in args.metrics:
        metrics.update(_identity(gt, results, args.mode, missing))
    _write(args, evaluation, metrics, gt)
    return 0


def _checked(gt: Mapping[str, Any], results: List[Any]) -> str:
    """What there is to say of results without ground truth; official mode has not checked them."""
    category_ids = [category["id"] for category in gt.get("categories") or ()]
    faults = check_results(results, gt.get("videos") or (), category_ids)
    if faults:
        return f"Of the {len(results)} results, strict mode would refuse {len(faults)}: {faults[0]}"
    return f"The {len(results)} results are well-formed; there is nothing to score them against."


def _kinds(text: str) -> List[str]:
    kinds = [kind.strip().lower() for kind in text.split(",")]
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return kinds


def _identity(
    gt: Mapping[str, Any], results: List[Any], mode: str, missing: Optional[str]
) -> Dict[str, float]:
    if missing:
        return {}
    from vis_d2.evaluation.identity import identity_metrics

    numbers = identity_metrics(gt, results, mode=mode)
    print(f"\n{identity_table(numbers)}")
    return numbers


def _write(
    args: argparse.Namespace,
    evaluation: VideoCOCOeval,
    metrics: Mapping[str, Any],
    gt: Mapping[str, Any],
) -> None:
    if args.out:
        os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(metrics, file, indent=2)
            file.write("\n")
    if args.csv:
        os.makedirs(args.csv, exist_ok=True)
        for name, columns, rows in (
            ("videos", VIDEO_COLUMNS, rows_by_video(evaluation, gt)),
            ("categories", CATEGORY_COLUMNS, rows_by_category(evaluation, metrics)),
        ):
            write_csv(rows, columns, os.path.join(args.csv, f"{name}.csv"))


if __name__ == "__main__":
    raise SystemExit(main())
