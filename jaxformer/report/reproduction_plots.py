"""Pictures of a reproduction: our differences beside the paper's, size, speed and quality, and power laws."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from jaxformer.report.plots import COLOURS, STYLE, Drawn, Plot, save
from jaxformer.report.reproduction import Result
from jaxformer.report.reproduction_statistics import (
    Fit,
    better,
    difference,
    fits,
    judged_columns,
    mean,
    paper_column,
    paper_difference,
    values_of,
)
from jaxformer.report.reproduction_tables import has_paper
from jaxformer.tables import significant

# Inches: as wide as a page of docs/results shows it, so that its letters can be read.
NARROW = 6.2
_OURS, _PAPER = COLOURS["c1"], COLOURS["c2"]


def reproduction_plots(result: Result, folder: Path) -> dict[str, Plot]:
    """Draw what there is to draw, and return the plots by the names of their PNG files: the differences to the base row
    beside the paper's, size, speed and quality where models are measured, and power laws where they are asked for. The
    first is NAME.png, the others NAME-triangle.png and NAME-fits.png."""
    plots: dict[str, Plot] = {}
    with matplotlib.rc_context(STYLE):
        laws, differences = _fits(result), _differences(result)
        compares = any(has_paper(result, column) for column in judged_columns(result))
        drawn = [differences, _triangle(result), laws] if compares or laws is None else [laws]
        for kind, heading, caption, figure in filter(None, drawn):
            name = f"{result['name']}-{kind}" if plots else str(result["name"])
            to = f", differences to {result['base']}" if kind == "differences" else ""
            about = f"{_short(result['paper'], 62 - len(heading))}\n{_short(result['place'] + to, 64)}"
            plots[f"{name}.png"] = save(figure, folder, name, heading, caption, about)
    return plots


def _differences(result: Result) -> Drawn:
    columns = [
        column for column in judged_columns(result) if any(difference(result, column, row) for row in result["rows"])
    ]
    if not columns:
        return None
    columns = [column for column in columns if has_paper(result, column)] or columns
    rows = [row for row in result["rows"] if any(difference(result, column, row) for column in columns)]
    across = min(2, len(columns))
    down = -(-len(columns) // across)
    above = 0.3 if any(paper_column(result, column) != column for column in columns) else 0.0
    height = 0.95 + above + 0.27 * len(rows) + 0.08 * sum("\n" in _label(row) for row in rows)
    figure = Figure(figsize=(NARROW, height * down + 0.5), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for spare in grid[len(columns) :]:
        spare.set_axis_off()
    for panel, column in zip(grid, columns, strict=False):
        _draw_differences(panel, result, column, rows)
    _legend(figure, [_handle("o", _OURS, "ours, 95 % interval" if len(result["seeds"]) > 1 else "ours"),
                     _handle("D", _PAPER, "the paper", hollow=True)])  # fmt: skip
    caption = (
        f"By how much each row differs from {result['base']}, the mean over seeds with its 95 % interval, beside the "
        "paper's difference. Left out are rows without a result of ours, and columns without numbers of the "
        "paper where others have them. The longest intervals end at the edge. Where the paper measures something else, "
        "its differences have an axis of their own, above."
    )
    return "differences", "Ours beside the paper", caption, figure


def _draw_differences(panel: Axes, result: Result, column: str, rows: Sequence[str]) -> None:
    ours = {row: found for row in rows if (found := difference(result, column, row)) is not None}
    theirs = {row: number for row in rows if (number := paper_difference(result, column, row)) is not None}
    ratio = _ratio(result, column, [found.mean for found in ours.values()], [*theirs.values()])
    middles = [*(found.mean for found in ours.values()), *(number / ratio for number in theirs.values())]
    edges = [edge for found in ours.values() for edge in (found.low, found.high) if edge is not None]
    panel.set_xlim(*_limits(middles, edges))
    panel.axvline(0, color=COLOURS["muted"], linewidth=1.0, zorder=1)
    for place, row in enumerate(rows):
        if row in ours:
            found = ours[row]
            if found.low is not None and found.high is not None:
                panel.plot([found.low, found.high], [place - 0.15] * 2, color=_OURS, linewidth=1.8, zorder=3)
            panel.plot([found.mean], [place - 0.15], "o", color=_OURS, markersize=5.5, zorder=4)
        if row in theirs:
            panel.plot([theirs[row] / ratio], [place + 0.17], "D", markerfacecolor="none", markeredgecolor=_PAPER,
                       markersize=5, zorder=4)  # fmt: skip
    panel.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=8.5, linespacing=0.95)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.set_title(_short(column))
    panel.set_xlabel("better →" if better(result, column) > 0 else "← better", fontsize=8.5)
    if paper_column(result, column) != column and theirs:  # another quantity, on an axis of its own
        panel.xaxis.label.set_color(_OURS)
        panel.tick_params(axis="x", labelcolor=_OURS)
        above = panel.secondary_xaxis("top", functions=_scales(ratio))
        above.xaxis.set_major_locator(MaxNLocator(4))
        above.tick_params(axis="x", labelcolor=_PAPER)
        above.set_xlabel(f"the paper's {_short(paper_column(result, column))}", fontsize=8.5, color=_PAPER)


def _scales(ratio: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Return what makes the paper's units of ours, and back; of numbers and of arrays."""
    return (lambda x: x * ratio), (lambda x: x / ratio)


def _ratio(result: Result, column: str, ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how many units of the paper's column one of ours is drawn as: 1 where both measure the same; else so that
    the largest differences are equally long."""
    if paper_column(result, column) == column:
        return 1.0
    largest, other = (max(map(abs, values), default=0.0) for values in (ours, theirs))
    return other / largest if largest and other else 1.0


def _limits(middles: Sequence[float], edges: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis: everything lies within, but for intervals that leave the rest no room."""
    most = 3 * max(map(abs, middles), default=0.0) or max(map(abs, edges), default=1.0)
    low = min(0.0, *middles, *(max(edge, -most) for edge in edges))
    high = max(0.0, *middles, *(min(edge, most) for edge in edges))
    margin = 0.07 * (high - low) or 1.0
    return low - margin, high + margin


# Size, speed and quality.


def corners(result: Result) -> dict[str, str]:
    """Return {corner: column} of the triangle: what is measured of models, and how good they are; {} where a corner is
    missing."""
    columns = result["columns"]
    names = {"parameters": "parameters", "seconds": "time"}
    found = {names[column["measure"]]: name for name, column in columns.items() if "measure" in column}
    judged = judged_columns(result)
    means = [name for name in judged if "mean_of" in columns[name]] or judged
    return found | {"quality": means[0]} if len(found) == 2 and means else {}


def reference(result: Result) -> str:
    """Return the row that the triangle is relative to: the largest model, which of a student is its teacher."""
    column = corners(result)["parameters"]
    sizes = {row: values[0] for row in result["rows"] if (values := values_of(result, column, row))}
    base = result["base"]
    return base if not sizes or sizes.get(base) == max(sizes.values()) else max(sizes, key=lambda row: sizes[row])


def shares(result: Result, row: str) -> dict[str, tuple[float | None, float | None]]:
    """Return {corner: (ours, the paper's)} of a row in percent of the reference row; None where there is no number.

    The paper's stand under the names of its columns. Where it prints differences, its quality stands under "quality".
    """
    found, rows = {}, (row, reference(result))
    for corner, column in corners(result).items():
        ours = [values_of(result, column, name) for name in rows]
        name = "quality" if corner == "quality" and result["differences"] else paper_column(result, column)
        paper = [result["rows"][each]["paper"].get(name) for each in rows]
        of_ours = 100 * mean(ours[0]) / mean(ours[1]) if all(ours) and mean(ours[1]) else None
        of_paper = 100 * paper[0] / paper[1] if paper[0] is not None and paper[1] else None
        found[corner] = (of_ours, of_paper)
    return found


def _triangle(result: Result) -> Drawn:
    if not corners(result):
        return None
    whole, base = reference(result), result["base"]
    rows = [row for row in (result["rows"] if whole == base else [base])
            if row != whole and all(ours is not None for ours, _ in shares(result, row).values())]  # fmt: skip
    if not rows:
        return None
    across = min(2, len(rows))
    down = -(-len(rows) // across)
    figure = Figure(figsize=(NARROW, 2.9 * down + 0.5), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in grid:
        panel.set_axis_off()
    for panel, row in zip(grid, rows, strict=False):
        _draw_triangle(panel, shares(result, row))
        panel.set_title(_short(row), loc="center")
    paper = any(theirs is not None for row in rows for _, theirs in shares(result, row).values())
    beside = Line2D([], [], color=_PAPER, marker="D", markerfacecolor="none", linestyle="--", label="the paper")
    _legend(figure, [
        Line2D([], [], color=COLOURS["muted"], linestyle=":", label=f"{_short(whole, 20)}, 100 %"),
        Line2D([], [], color=_OURS, marker="o", label="ours"), *([beside] if paper else []),
    ])  # fmt: skip
    caption = (
        f"Number of parameters, time of a forward pass of one row, and quality ({corners(result)['quality']}), in "
        f"percent of those of {whole}: nearer to the centre is smaller, faster, worse."
    )
    return "triangle", "Size, speed and quality", caption, figure


def _draw_triangle(panel: Axes, found: Mapping[str, tuple[float | None, float | None]]) -> None:
    names = list(found)
    angles = [math.pi / 2 + 2 * math.pi * index / len(names) for index in range(len(names))]
    ways = [(math.cos(angle), math.sin(angle)) for angle in angles]
    largest = max([100.0, *(value for pair in found.values() for value in pair if value is not None)])
    for x, y in ways:
        panel.plot([0, x * largest], [0, y * largest], color=COLOURS["grid"], linewidth=1.0, zorder=1)
    _polygon(panel, ways, [100.0] * len(ways), COLOURS["muted"], ":", "", "none")
    _polygon(panel, ways, [found[name][1] for name in names], _PAPER, "--", "D", "none")
    _polygon(panel, ways, [found[name][0] for name in names], _OURS, "-", "o", _OURS)
    for (x, y), name in zip(ways, names, strict=True):
        ours, theirs = (None if value is None else f"{value:.0f} %" for value in found[name])
        text = "\n".join(filter(None, [name, ours and f"ours {ours}", theirs and f"paper {theirs}"]))
        panel.text(
            1.12 * largest * x, 1.12 * largest * y, text, fontsize=8.5, linespacing=1.25,
            ha="center" if abs(x) < 0.1 else "left" if x > 0 else "right", va="bottom" if y > 0 else "center",
        )  # fmt: skip
    panel.set_xlim(-2.1 * largest, 2.1 * largest)
    panel.set_ylim(-0.8 * largest, 1.75 * largest)
    panel.set_aspect("equal")


def _polygon(
    panel: Axes, ways: Any, values: Sequence[float | None], colour: str, line: str, marker: str, face: str
) -> None:
    points = [(x * value, y * value) for (x, y), value in zip(ways, values, strict=True) if value is not None]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    closed = len(points) == len(ways)
    if closed and face != "none":
        panel.fill(xs, ys, color=colour, alpha=0.12, linewidth=0)
    panel.plot(
        xs + xs[:1] * closed, ys + ys[:1] * closed, color=colour, linestyle=line, marker=marker, markerfacecolor=face,
        markersize=5.5, linewidth=1.6,
    )  # fmt: skip


# Power laws.


def _fits(result: Result) -> Drawn:
    found = fits(result)
    if not found:
        return None
    across = min(2, len(found))
    down = -(-len(found) // across)
    figure = Figure(figsize=(NARROW if across > 1 else 0.72 * NARROW, 2.9 * down + 0.4), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for spare in grid[len(found) :]:
        spare.set_axis_off()
    for panel, fit in zip(grid, found, strict=False):
        _draw_fit(panel, result, fit)
    caption = (
        "Every seed as a dot, means over seeds as large marks, both axes logarithmic. The solid line is the power law "
        "through the means, the dashed one has the paper's exponent and meets it in the middle."
    )
    return "fits", "Power laws", caption, figure


def _draw_fit(panel: Axes, result: Result, fit: Fit) -> None:
    for x, row in zip(fit.xs, fit.rows, strict=True):
        values = values_of(result, fit.column, row)
        panel.plot([x] * len(values), values, ".", color=_OURS, alpha=0.45, markersize=4)
    panel.plot(fit.xs, fit.ys, "o", color=_OURS, markersize=6, zorder=4)
    ends = np.array([min(fit.xs), max(fit.xs)])
    band = "" if fit.low is None or fit.high is None else f" ({significant(fit.low, 2)} to {significant(fit.high, 2)})"
    panel.plot(
        ends,
        fit.factor * ends**fit.slope,
        color=_OURS,
        label=f"ours {significant(fit.slope, 2)}{band}".replace("-", "−"),
    )
    if fit.paper is not None:
        slope, middle = fit.slope_of(fit.paper), math.exp(float(np.log(fit.xs).mean()))
        paper = fit.factor * middle**fit.slope * (ends / middle) ** slope
        panel.plot(ends, paper, color=_PAPER, linestyle="--", label=f"paper {slope:.3g}".replace("-", "−"))
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_title(_short(fit.name))
    panel.set_xlabel({"parameters": "Parameters", "tokens": "Tokens", "flops": "FLOPs"}.get(fit.x, fit.x))
    panel.set_ylabel(_short(fit.column))
    panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter("{x:.3g}")
    _log_ticks(panel, fit.xs)
    low, high = panel.get_ylim()
    panel.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend
    where: Literal["upper right", "upper left"] = "upper right" if fit.slope < 0 else "upper left"
    panel.legend(loc=where, title="exponent", fontsize=8, title_fontsize=8, handlelength=1.4, borderaxespad=0)


def _log_ticks(panel: Axes, xs: Sequence[float]) -> None:
    """Label a logarithmic axis with a few numbers: powers of ten where it spans several, else 1, 2 and 5 of each."""
    wide = max(xs) / min(xs) > 300
    panel.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    if not wide:
        panel.xaxis.set_major_formatter(EngFormatter(sep=" "))
    panel.xaxis.set_minor_formatter(NullFormatter())


def _label(row: str) -> str:
    """A row's name beside an axis, on two lines where one is too short."""
    lines = textwrap.wrap(row, 27)
    return _short("\n".join(lines[:2]) + "…" * (len(lines) > 2), 60)


def _handle(marker: str, colour: str, label: str, hollow: bool = False) -> Line2D:
    face = "none" if hollow else colour
    return Line2D([], [], linestyle="none", marker=marker, markerfacecolor=face, markeredgecolor=colour, label=label)


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))


def _short(name: str, limit: int = 26) -> str:
    """A name as it is drawn literally."""
    return (name if len(name) <= limit else f"{name[: limit - 1]}…").replace("$", r"\$")
