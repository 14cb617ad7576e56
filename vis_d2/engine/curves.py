"""The picture of a training run."""

import json
import os
import shutil
from typing import Any, Dict, List, Tuple

from detectron2.utils.file_io import PathManager

__all__ = ["plot_metrics", "set_metrics_aside"]

Record = Dict[str, Any]


def plot_metrics(output_dir: str) -> str:
    """Draw losses, learning rate and AP over the iterations of a run.

    Args:
        output_dir: folder with the ``metrics.json`` that detectron2's trainers write, one JSON
            object per line.

    Returns:
        Path of ``training_curve.png`` in that folder.

    Raises:
        FileNotFoundError: there is no ``metrics.json``.
        ValueError: it holds no iteration.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = _read_records(os.path.join(output_dir, "metrics.json"))
    figure = Figure(figsize=(8, 9), dpi=100)
    FigureCanvasAgg(figure)  # no display and no global pyplot state
    loss_axis, rate_axis, score_axis = figure.subplots(3, 1, sharex=True)
    names = sorted({name for record in records for name in record})
    losses = [n for n in names if n.startswith("loss_") or n == "total_loss"]
    scores = [n for n in names if n.rpartition("/")[2] in ("AP", "AP50", "AP75")]
    for name in losses:
        width = 2.0 if name == "total_loss" else 1.0
        loss_axis.plot(*_series(records, name), ".-", label=name, linewidth=width, markersize=3)
    rate_axis.plot(*_series(records, "lr"), ".-", color="black", markersize=3)
    for name in scores:
        score_axis.plot(*_series(records, name), marker="o", label=name)
    for axis, title in ((loss_axis, "loss"), (rate_axis, "learning rate"), (score_axis, "AP")):
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0.0)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, loc="lower right" if axis is score_axis else "upper right")
    score_axis.set_xlabel("iteration")
    figure.tight_layout()
    path = os.path.join(output_dir, "training_curve.png")
    figure.savefig(path)
    return path


def set_metrics_aside(output_dir: str) -> None:
    """Empty ``metrics.json`` and keep what it held in ``metrics.previous.json``.

    For a run that starts anew in the folder of another one: two curves in one file would mix. The
    file stays, because a writer may have opened it.
    """
    path = os.path.join(output_dir, "metrics.json")
    if os.path.isfile(path) and os.path.getsize(path):
        shutil.copyfile(path, os.path.join(output_dir, "metrics.previous.json"))
        os.truncate(path, 0)


def _read_records(path: str) -> List[Record]:
    """One record per iteration, in order. A resumed run replaces the iterations it repeats."""
    by_iteration: Dict[int, Record] = {}
    with PathManager.open(path, "r") as f:
        for line in f:
            record = json.loads(line)
            by_iteration.setdefault(record["iteration"], {}).update(record)
    if not by_iteration:
        raise ValueError(f"{path} holds no iteration")
    return [by_iteration[i] for i in sorted(by_iteration)]


def _series(records: List[Record], name: str) -> Tuple[List[int], List[float]]:
    points = [(r["iteration"], r[name]) for r in records if name in r]
    return [i for i, _ in points], [v for _, v in points]
