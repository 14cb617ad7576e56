"""Metrics as text for people."""

from typing import Any, Dict, Mapping

_ROWS = (
    ("AP", "mean over IoU 0.50:0.95"),
    ("AP50", "IoU 0.50"),
    ("AP75", "IoU 0.75"),
    ("APs", "mean visible area up to 128 x 128 pixels"),
    ("APm", "128 x 128 to 256 x 256"),
    ("APl", "from 256 x 256"),
    ("AR1", "1 result per video and category"),
    ("AR10", "10 results"),
    ("AR100", "100 results"),
    ("ARs", "100 results, sizes as for APs"),
    ("ARm", "100 results, sizes as for APm"),
    ("ARl", "100 results, sizes as for APl"),
)


def in_percent(fraction: float) -> float:
    """A metric in percent; nan where it is undefined (-1)."""
    return fraction * 100 if fraction >= 0 else float("nan")


def metrics_table(metrics: Mapping[str, Any], categories: Mapping[int, str]) -> str:
    """The metrics of ``VideoCOCOeval.run`` as two tables in percent.

    Args:
        metrics: what ``run`` returned.
        categories: names by category id.
    """
    from tabulate import tabulate

    counts = metrics["counts"]
    rows = [(name, _text(metrics[name]), meaning) for name, meaning in _ROWS]
    right = ("left", "right", "left")
    total = tabulate(rows, ("metric", "%", "what it is"), tablefmt="pipe", colalign=right)
    scored = {c: ap for c, ap in metrics["per_category_AP"].items() if ap >= 0}
    columns: Dict[str, list] = {"category": [categories[c] for c in scored]}
    for name in ("AP", "AP50", "AR100"):
        columns[name] = [in_percent(metrics[f"per_category_{name}"][c]) for c in scored]
    each = tabulate(columns, headers="keys", tablefmt="pipe", floatfmt=".2f")
    return (
        f"{total}\n\nMeans over {counts['categories']} of {len(categories)} categories, those with "
        f"ground truth ({counts['tracks']} tracks in {counts['videos']} videos):\n\n{each}"
    )


def identity_table(metrics: Mapping[str, float]) -> str:
    """Identity metrics as a table: fractions in percent, counts as they are."""
    from tabulate import tabulate

    rows = [
        (name, f"{value:.0f}" if name.startswith("IDSW") else f"{_text(value)} %")
        for name, value in metrics.items()
        if name != "score_threshold"
    ]
    if "score_threshold" in metrics:
        rows.append(("score_threshold", f"{metrics['score_threshold']:.6g}"))
    columns = ("metric", "value")
    alignment = ("left", "right")
    return tabulate(rows, columns, tablefmt="pipe", disable_numparse=True, colalign=alignment)


def _text(fraction: float) -> str:
    """In percent; a dash where it is undefined."""
    return f"{in_percent(fraction):.2f}" if fraction >= 0 else "-"
