"""The page and the picture of growth.py: each quantity beside its formula, and what grows faster than that."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from jaxformer.report.plots import COLOURS, STYLE

STEP_AXES = ("depth", "width", "length", "batch", "vocabulary")
MESH_AXES = ("data", "fsdp", "tensor")
LIMIT = 1.3  # times the formula's growth from which on a cost grows faster than its formula
UNITS = {
    "step time": "s", "memory": "B", "compile": "s", "trace and lower": "s", "collectives": "B", "save": "s",
    "restore": "s", "on disk": "B",
}  # fmt: skip
FORMULAS = {
    "step time": "FLOPs over the rate of a large matrix product",
    "memory": "what `plan` says",
    "compile": "linear in depth (through the points at 1 and at the reference); constant along the other axes",
    "trace and lower": "as for compile",
    "collectives": "bytes that each device sends: see `growth.py`",
    "save": "proportional to bytes",
    "restore": "proportional to bytes",
    "on disk": "the state's bytes",
}


class Series(NamedTuple):
    """A quantity along an axis, with its formula at every point."""

    axis: str
    quantity: str
    values: list[int]
    measured: list[float]
    formula: list[float]


class Growth(NamedTuple):
    """How a quantity grows from the reference to the last point, and its formula."""

    start: int
    end: int
    measured: float
    formula: float

    @property
    def ratio(self) -> float:
        return self.measured / self.formula

    @property
    def is_faster(self) -> bool:
        return self.ratio > LIMIT


def growth(series: Series, reference: int) -> Growth:
    """Return the growth of a series from its reference on."""
    first = series.values.index(reference)
    measured, formula = series.measured, series.formula
    return Growth(reference, series.values[-1], measured[-1] / measured[first], formula[-1] / formula[first])


def line(values: Sequence[int], measured: Sequence[float], reference: int) -> list[float]:
    """Return the straight line through the first point and that at the reference."""
    at = values.index(reference)
    slope = (measured[at] - measured[0]) / (values[at] - values[0])
    return [measured[0] + slope * (value - values[0]) for value in values]


def all_series(
    results: Mapping[str, Any], axes: Mapping[str, Sequence[int]], reference: Mapping[str, int]
) -> list[Series]:
    """Return every quantity that was measured, at the points that succeeded."""
    found = []
    for axis, every in axes.items():
        points = {value: point for value in every if "error" not in (point := point_of(results, axis, value))}
        if reference[axis] not in points or len(points) < 2:
            continue
        if axis == "checkpoint":
            quantities = of_checkpoints(points, reference[axis])
        elif axis in MESH_AXES:
            quantities = {name: columns(points, *keys) for name, keys in COUNTED.items()}
        else:
            quantities = of_steps(axis, points, results["points"]["rate"]["gemm"], reference[axis])
        found += [Series(axis, name, list(points), *pair) for name, pair in quantities.items()]
    return found


def point_of(results: Mapping[str, Any], axis: str, value: int) -> dict[str, Any]:
    """Return what was measured at a point, or {"error": …}; all axes share the base."""
    key = "base" if results["base"].get(axis) == value else f"{axis}/{value}"
    point: dict[str, Any] = results["points"].get(key, {"error": "not measured"})
    return point


COUNTED = {"collectives": ("sent_bytes", "formula_bytes"), "memory": ("bytes", "planned_bytes")}
Pair = tuple[list[float], list[float]]  # measured, formula


def columns(points: Mapping[int, Any], *keys: str) -> Any:
    return tuple([float(point[key]) for point in points.values()] for key in keys)


def of_checkpoints(points: Mapping[int, Any], reference: int) -> dict[str, Pair]:
    (sizes,), at = columns(points, "state_bytes"), list(points).index(reference)
    found = {"on disk": columns(points, "disk_bytes", "state_bytes")}
    for name in ("save", "restore"):
        (seconds,) = columns(points, name)
        found[name] = (seconds, [seconds[at] * size / sizes[at] for size in sizes])
    return found


def of_steps(axis: str, points: Mapping[int, Any], rate: float, reference: int) -> dict[str, Pair]:
    values, at = list(points), list(points).index(reference)
    (flops,), (compiling,) = columns(points, "flops"), columns(points, "compile")
    tracing = [point["trace"] + point["lower"] for point in points.values()]
    found = {
        "step time": (*columns(points, "step"), [each / rate for each in flops]),
        "memory": columns(points, *COUNTED["memory"]),
    }
    for name, seconds in (("compile", compiling), ("trace and lower", tracing)):
        straight = line(values, seconds, reference) if axis == "depth" else [seconds[at]] * len(values)
        found[name] = (seconds, straight)
    return found


# The picture.

ROWS = (("step time",), ("memory",), ("compile", "trace and lower"))
LAST = (("data", ("collectives",)), ("fsdp", ("collectives",)), ("tensor", ("collectives",)),
        ("checkpoint", ("save", "restore")), ("checkpoint", ("on disk",)))  # fmt: skip
LABELS = {
    "depth": "layers", "width": "width", "length": "tokens a row", "batch": "rows", "vocabulary": "vocabulary",
    "data": "devices along data", "fsdp": "devices along fsdp", "tensor": "devices along tensor",
    "checkpoint": "MB of state",
}  # fmt: skip
TITLES = {"step time": "Step", "memory": "Memory", "compile": "Compilation", "collectives": "Sent by a device",
          "save": "Checkpoint", "on disk": "Checkpoint on disk"}  # fmt: skip


def short(number: float, unit: str = "") -> str:
    """Return a number as a tick or a table shows it: 1k, 64k, 250 ms, 1.5 GB."""
    if unit == "s":
        return f"{number:.3g} s" if number >= 1 else f"{1e3 * number:.3g} ms"
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit == "B" and number >= factor:
            return f"{number / factor:.3g} {prefix}B"
    if not unit and number >= 1024 and number % 1024 == 0:
        return f"{number / 1024:g}k"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g} {unit}".strip()


def draw(found: Sequence[Series], path: Path) -> None:
    with matplotlib.rc_context({**STYLE, "font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8}):
        figure = Figure(figsize=(14, 10.4), layout="constrained")
        grid = figure.subplots(4, 5, squeeze=False)
        wanted = [(axis, names) for names in ROWS for axis in STEP_AXES] + list(LAST)
        for number, (panel, (axis, names)) in enumerate(zip(grid.flat, wanted, strict=True)):
            shown = [series for name in names for series in found if (series.axis, series.quantity) == (axis, name)]
            draw_panel(panel, shown, axis)
            if number % 5 == 0 or number >= 15:
                panel.set_title(TITLES[names[0]])
        for row in range(3):
            share_y(list(grid[row]))
        share_y(list(grid[3][:3]))
        handles = [
            Line2D([], [], color=COLOURS["c1"], marker="o", label="measured"),
            Line2D([], [], color=COLOURS["c3"], marker="^", label="measured: trace and lower; restore"),
            Line2D([], [], color=COLOURS["muted"], linestyle="--", label="formula"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=3)
        figure.savefig(path, dpi=130)


def draw_panel(panel: Axes, shown: Sequence[Series], axis: str) -> None:
    for series, colour, mark in zip(shown, (COLOURS["c1"], COLOURS["c3"]), ("o", "^"), strict=False):
        panel.plot(series.values, series.formula, color=COLOURS["muted"], linestyle="--", linewidth=1.2)
        panel.plot(series.values, series.measured, color=colour, marker=mark, linewidth=1.4)
    if not shown:
        panel.set_axis_off()
        return
    unit = UNITS[shown[0].quantity]
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(shown[0].values))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda number, _: short(number)))
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda number, _: short(number, unit)))
    for one in (panel.xaxis, panel.yaxis):
        one.set_minor_locator(NullLocator())
    panel.set_xlabel(LABELS[axis])


def share_y(panels: Sequence[Axes]) -> None:
    """Give panels that show one quantity the same limits."""
    limits = [panel.get_ylim() for panel in panels if panel.axison]
    for panel in panels:
        if panel.axison:
            panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


# The page.


def write_page(results: Mapping[str, Any], axes: Mapping[str, Sequence[int]], reference: Mapping[str, int],
               path: Path) -> None:  # fmt: skip
    """Write the page, and the picture beside it, from what was measured so far."""
    found, picture = all_series(results, axes, reference), path.with_suffix(".png")
    draw(found, picture)
    path.write_text(page(results, axes, reference, found, picture.name))


def page(results: Mapping[str, Any], axes: Mapping[str, Sequence[int]], reference: Mapping[str, int],
         found: Sequence[Series], picture: str) -> str:  # fmt: skip
    base = ", ".join(f"{name} {value:,}" for name, value in results["base"].items())
    rate = results["points"]["rate"]["gemm"] / 1e9
    text = f"""# How cost grows

{results["date"]}, `python benchmarks/growth.py`, commit {results["commit"]}: {results["cpu"]}, cores used:
{results["cores"]}; jax {results["jax"]}, Python {results["python"]}. A small GPT-2 (float32, no dropout; {base}),
one axis varied at a time; a fresh process for each point, its step compiled in it, medians of up to nine steps. A large
matrix product runs at {rate:.0f} GFLOP/s. Why something grows faster than its formula:
[growth-explained.md](growth-explained.md).

![Step time, memory, compilation, bytes sent and checkpoints, each beside its formula]({picture})

Formulas:

{chr(10).join(f"- {name}: {what}" for name, what in FORMULAS.items())}

## Growth against the formula

From the reference to the last point; a ratio above {LIMIT} is faster than the formula.

| axis | cost | from, to | times | formula | ratio | |
| --- | --- | --- | ---: | ---: | ---: | --- |
"""
    for series in found:
        grown = growth(series, reference[series.axis])
        text += (
            f"| {series.axis} | {series.quantity} | {short(grown.start)}, {short(grown.end)} | {grown.measured:.2f} | "
            f"{grown.formula:.2f} | {grown.ratio:.2f} | {'**faster**' if grown.is_faster else ''} |\n"
        )
    text += "\n## Points\n\nIn brackets what the formula says.\n"
    for axis, every in axes.items():
        text += table(axis, every, [series for series in found if series.axis == axis], results)
    return text


def table(axis: str, every: Sequence[int], shown: Sequence[Series], results: Mapping[str, Any]) -> str:
    """Return the points of an axis, those that failed with why."""
    extra = ("GFLOP/s", "peak of the process", "page faults a step") if axis in STEP_AXES else ()
    if axis == "checkpoint":
        extra = ("training waits", "added memory")
    heads = [LABELS[axis], *(series.quantity for series in shown), *extra, "others' share of the CPUs"]
    text = f"\n| {' | '.join(heads)} |\n|{' ---: |' * len(heads)}\n"
    for value in every:
        point = point_of(results, axis, value)
        if "error" in point:
            text += f"| {short(value)} | {point['error']} |{' |' * (len(heads) - 2)}\n"
            continue
        cells = []
        for series in shown:
            at, unit = series.values.index(value), UNITS[series.quantity]
            cells.append(f"{short(series.measured[at], unit)} ({short(series.formula[at], unit)})")
        if axis in STEP_AXES:
            cells += [f"{point['flops'] / point['step'] / 1e9:.0f}", short(point["peak_rss"], "B"),
                      f"{sorted(point['faults'])[len(point['faults']) // 2]:,}"]  # fmt: skip
        if axis == "checkpoint":
            cells += [short(point["waits"], "s"), short(point["added_rss"], "B")]
        text += f"| {short(value)} | {' | '.join(cells)} | {100 * point['foreign']:.0f} % |\n"
    return text
