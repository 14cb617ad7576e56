"""Bar charts of evaluation results as PNG files, drawn without a screen."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, List, Optional, Sequence, Union

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PathLike = Union[str, "os.PathLike[str]"]

# Told apart in print, on a projector, and with red-green blindness.
DARK, LIGHT, ACCENT, GRAY = "#1f5a8c", "#a9c8e3", "#d1601f", "#666666"
_MOST_BARS = 60
_LONGEST_NAME = 28


@dataclass
class Series:
    """Values in percent that are drawn side by side with those of other series; None: no bar."""

    name: str
    values: Sequence[Optional[float]]


@dataclass
class Panel:
    """One of several charts in a row: groups of columns.

    Attributes:
        title: above the panel.
        labels: one per group, below it; a line break is kept.
        series: one or two, with a value per label.
    """

    title: str
    labels: Sequence[str]
    series: Sequence[Series]


def save_bars(
    path: PathLike,
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    *,
    axis: str,
    notes: Optional[Sequence[str]] = None,
    highlight: Optional[int] = None,
    limit: Optional[float] = None,
) -> None:
    """Horizontal bars, one row per label, the first label on top.

    Args:
        path: the PNG file to write.
        title, axis: text above the chart and below its horizontal axis.
        labels: names of the rows. Of more than 60, the last ones are left out, and the title says
            so.
        series: one or two, with a value per label.
        notes: small text behind the value of each row.
        highlight: row to be drawn in another colour.
        limit: end of the axis; None takes what the values need.
    """
    if len(labels) > _MOST_BARS:
        title += f"\n(the first {_MOST_BARS} of {len(labels)})"
        labels = labels[:_MOST_BARS]
    rows = len(labels)
    row_height = min(0.16 + 0.2 * len(series), max(0.16 * len(series), 12.0 / max(rows, 1)))
    font = 8 if row_height > 0.2 * len(series) else 6.5
    figure, (axes,) = _figure(8.0, 1.5 + row_height * rows, 1)
    most = max((v for s in series for v in s.values[:rows] if v is not None), default=0.0)
    end = limit or max(1.12 * most, 1e-3)
    height = 0.76 / len(series)
    for k, (one, color) in enumerate(zip(series, (DARK, LIGHT))):
        places = [row + (k - (len(series) - 1) / 2) * height for row in range(rows)]
        values = [0.0 if v is None else v for v in one.values[:rows]]
        colors = [ACCENT if row == highlight and k == 0 else color for row in range(rows)]
        axes.barh(places, values, height=0.92 * height, color=colors, label=one.name)
        for row, (place, value) in enumerate(zip(places, one.values)):
            text = "" if value is None else f"{value:.1f}"
            if notes and k == 0:
                text += f"   {notes[row]}"
            x = 0.0 if value is None else value
            axes.annotate(
                text,
                (x, place),
                (4, 0),
                textcoords="offset points",
                va="center",
                fontsize=font,
                color="#333333",
                annotation_clip=False,
            )
    axes.set_yticks(range(rows), [_plain(label) for label in labels], fontsize=font + 1.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_xlim(0, end)
    axes.set_xticks([x for x in axes.get_xticks() if 0 <= x <= min(end, 100)])  # percent
    axes.set_xlabel(axis)
    axes.set_title(
        title, loc="left", fontsize=11, fontweight="bold", pad=24 if _named(series) else 10
    )
    _finish(axes, "x")
    _legend(axes, series)
    figure.savefig(path, format="png", dpi=130)


def save_panels(path: PathLike, title: str, panels: Sequence[Panel], *, axis: str) -> None:
    """Several charts of columns in a row, on one scale from 0 to 100.

    Args:
        path: the PNG file to write.
        title, axis: text above all and beside the vertical axis.
        panels: at least one, from left to right.
    """
    figure, all_axes = _figure(4.2 * len(panels), 4.0, len(panels))
    for axes, panel in zip(all_axes, panels):
        width = 0.8 / len(panel.series)
        for k, (one, color) in enumerate(zip(panel.series, (DARK, LIGHT))):
            places = [i + (k - (len(panel.series) - 1) / 2) * width for i in range(len(one.values))]
            values = [0.0 if v is None else v for v in one.values]
            axes.bar(places, values, width=0.94 * width, color=color, label=one.name)
            for place, value in zip(places, one.values):
                text = "–" if value is None else f"{value:.0f}"
                axes.annotate(
                    text,
                    (place, value or 0.0),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color="#333333",
                )
        axes.set_xticks(range(len(panel.labels)), panel.labels, fontsize=8)
        axes.set_xlim(-0.6, len(panel.labels) - 0.4)
        axes.set_ylim(0, 108)
        axes.set_yticks(range(0, 101, 20))
        axes.set_xlabel(panel.title)
        _finish(axes, "y")
    all_axes[0].set_ylabel(axis)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    _legend(all_axes[0], panels[0].series)
    figure.savefig(path, format="png", dpi=130)


def _figure(width: float, height: float, columns: int) -> "tuple[Figure, List[Axes]]":
    # Without pyplot: no state shared with the caller's figures, and no display is looked for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _finish(axes: "Axes", grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y" if grid == "x" else "x", length=0)


def _named(series: Sequence[Series]) -> bool:
    return len(series) > 1


def _legend(axes: "Axes", series: Sequence[Series]) -> None:
    if _named(series):
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncol=len(series),
            fontsize=8,
            frameon=False,
            borderaxespad=0.1,
        )


def _plain(name: str) -> str:
    """A name on one line, not too long, and without matplotlib's formulas."""
    name = " ".join(str(name).split())
    if len(name) > _LONGEST_NAME:
        name = name[: _LONGEST_NAME - 1] + "…"
    return name.replace("$", r"\$")
