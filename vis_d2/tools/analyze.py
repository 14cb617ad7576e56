"""Why AP is lost: the cost of each kind of error, as a table, JSON, CSV and charts."""

import argparse
import csv
import json
from pathlib import Path
from typing import List, Mapping, Optional

from vis_d2.evaluation.error_groups import Group
from vis_d2.evaluation.error_kinds import KINDS, MEANING
from vis_d2.evaluation.errors import ErrorAnalysis, Problem, analyze_errors
from vis_d2.evaluation.results import read_json, read_results
from vis_d2.visualization.charts import Panel, Series, save_bars, save_panels

_EXAMPLE = """example:
  vis-d2 analyze --gt val.json --results results.json --output analysis

Each kind of error costs what AP would gain if that kind alone were repaired. Written to the folder:
  analysis.json   all numbers, AP and gains as fractions
  errors.csv      every wrong result and missed object at IoU 0.5; "result" and "annotation"
                  count from 0 in the order of the two files
  errors.png      AP gained by repairing each kind
  categories.png  AP of each category, lowest first
  objects.png     AP and recall against length, size and motion of the objects
"""
_AXES = {
    "length": "length: frames in which it is visible",
    "size": "size: square root of its mean area, pixels",
    "motion": "motion: way per frame in % of its size",
}


def main(argv: Optional[List[str]] = None) -> int:
    """Run the analysis; see ``vis-d2 analyze --help``."""
    args = _parser().parse_args(argv)
    gt, results = read_json(args.gt), read_results(args.results)
    if not isinstance(gt, dict):
        raise ValueError(f"{args.gt}: expected a data set (an object), got {type(gt).__name__}")
    analysis = analyze_errors(gt, results)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "analysis.json", "w", encoding="utf8") as file:
        json.dump(analysis.to_json(), file, indent=1)
    write_problems(folder / "errors.csv", analysis.problems, analysis.categories)
    draw(folder, analysis)
    print(f"{table(analysis)}\n\nTables and charts are in {folder}")
    return 0


def table(analysis: ErrorAnalysis) -> str:
    """The costs for reading, in percent, the greatest first."""
    from tabulate import tabulate

    share, gain = analysis.share, analysis.gain
    rows = [
        (k, 100 * gain[k], 100 * analysis.gain50[k], 100 * share[k], analysis.number[k], MEANING[k])
        for k in sorted(KINDS, key=lambda kind: -gain[kind])
    ]
    names = ("kind", "AP gained", "AP50 gained", "share %", "at IoU .5", "what it is")
    costs = tabulate(rows, names, tablefmt="pipe", floatfmt=(None, *[".2f"] * 2, ".1f", "d", None))
    cause = analysis.main_cause
    verdict = f"Main cause: {cause} ({MEANING[cause]})" if cause else "Nothing is lost"
    head = f"AP {100 * analysis.ap:.2f}, AP50 {100 * analysis.ap50:.2f}. {verdict}."
    return f"{head}\n\nWhat repairing one kind alone would gain:\n\n{costs}"


def write_problems(path: Path, problems: List[Problem], categories: Mapping[int, str]) -> None:
    """One row per wrong result or missed object."""
    with open(path, "w", encoding="utf8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*Problem._fields, "category"])
        for problem in problems:
            values = ["" if value is None else value for value in problem]
            writer.writerow([*values, categories[problem.category_id]])


def draw(folder: Path, analysis: ErrorAnalysis) -> None:
    """The three charts."""
    ap = f"AP {100 * analysis.ap:.1f}, AP50 {100 * analysis.ap50:.1f}"
    order = sorted(KINDS, key=lambda kind: -analysis.gain[kind])
    save_bars(
        folder / "errors.png",
        f"Where AP is lost ({ap})",
        order,
        [Series("AP gained", [100 * analysis.gain[k] for k in order])],
        axis="AP points gained by repairing this kind alone (behind them: share; what it is)",
        notes=[f"{analysis.share[k]:.0%}   {MEANING[k]}" for k in order],
        highlight=0 if analysis.main_cause else None,
        limit=2.1 * max(0.5, *(100 * analysis.gain[k] for k in KINDS)),
    )
    ids = sorted(analysis.category_ap, key=lambda c: analysis.category_ap[c])
    columns = (("AP", analysis.category_ap), ("AP50", analysis.category_ap50))
    save_bars(
        folder / "categories.png",
        f"AP of each category ({ap})",
        [analysis.categories[c] for c in ids],
        [Series(name, [100 * values[c] for c in ids]) for name, values in columns],
        axis="percent",
        limit=108,
    )
    panels = [_panel(_AXES[name], groups) for name, groups in analysis.groups.items()]
    save_panels(
        folder / "objects.png",
        f"AP by length, size and motion of the objects ({ap})",
        panels,
        axis="percent",
    )


def _panel(title: str, groups: List[Group]) -> Panel:
    series = [
        Series("AP", [100 * g.ap if g.ap >= 0 else None for g in groups]),
        Series("recall at IoU 0.5", [100 * g.recall50 for g in groups]),
    ]
    return Panel(title, [f"{_span(g)}\nn = {g.objects}" for g in groups], series)


def _span(group: Group) -> str:
    low, high = f"{group.low:.3g}", f"{group.high:.3g}"
    return low if low == high else f"{low}–{high}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vis-d2 analyze",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--gt", required=True, metavar="JSON", help="ground truth, YouTube-VIS format")
    add("--results", required=True, metavar="JSON", help="results.json, or a zip that holds it")
    add("--output", default="analysis", metavar="DIR", help="folder to write to (%(default)s)")
    return parser
