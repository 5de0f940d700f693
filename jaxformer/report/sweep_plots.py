"""Pictures of a sweep: curves coloured by what differs, what each key does, all keys at once, and what was traded."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from jaxformer.report.plots import (
    COLOURS,
    MARKERS,
    SERIES,
    STEPS,
    STYLE,
    WIDTH,
    Drawn,
    Plot,
    metric_name,
    panels_of,
    save,
)
from jaxformer.report.study import OVER, PRUNED, Sweep, SweepPoint
from jaxformer.report.sweep import number
from jaxformer.storage import read_metrics
from jaxformer.tables import energy_scale

_MOST_LISTED = 8  # values of a key that a legend lists
_WORDS = {"hours": "Hours", "device_hours": "Device-hours", "energy_kwh": "Energy (kWh)", "emissions_kg": "CO₂eq (kg)"}


def sweep_plots(sweep: Sweep, folder: Path) -> list[Plot]:
    """Draw what a sweep found; what needs more finished points than there are is left out."""
    finished = [point for point in sweep.points if point.mean(sweep.metrics[0]) is not None]
    with matplotlib.rc_context(STYLE):
        drawn = [_curves(sweep), _keys(sweep, finished), _parallel(sweep, finished), _importance(sweep), _pareto(sweep)]
        return [save(figure, folder, f"sweep-{name}", title, text) for name, title, text, figure in filter(None, drawn)]


def heading(name: str) -> str:
    """The name of a metric on an axis."""
    return _WORDS.get(name) or metric_name(name.replace("train/", "training "))


def _is_log(sweep: Sweep, key: str, values: Sequence[Any]) -> bool:
    """Whether a key's axis is logarithmic: it was searched so, or its list spans a factor of ten."""
    entry = sweep.dimension.get(key, {})
    positive = all(_is_number(value) and value > 0 for value in values)
    return positive and (bool(entry.get("log")) or ("values" in entry and max(values) >= 10 * min(values)))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _values(sweep: Sweep, points: Sequence[SweepPoint], key: str) -> list[Any]:
    """The different values that a key takes, in order."""
    found = {repr(point.values[key]): point.values[key] for point in points if key in point.values}
    values = list(found.values())
    return sorted(values) if all(map(_is_number, values)) else sorted(values, key=str)


def _colours(sweep: Sweep, key: str, points: Sequence[SweepPoint]) -> Mapping[str, Any]:
    """A colour for each value of a key: along a scale for numbers, from the series for names."""
    values = _values(sweep, points, key)
    if not all(map(_is_number, values)):
        return {repr(value): SERIES[index % len(SERIES)] for index, value in enumerate(values)}
    scaled = [math.log(value) if _is_log(sweep, key, values) else value for value in values]
    low, high = min(scaled), max(scaled)
    scale = colormaps["viridis"]
    return {
        repr(value): matplotlib.colors.to_hex(scale(0.9 * (at - low) / (high - low) if high > low else 0.4))
        for value, at in zip(values, scaled, strict=True)
    }


def _curves(sweep: Sweep) -> Drawn:
    """Every run's own evaluations, once for each key, coloured by its value."""
    metric = sweep.metrics[0]
    series = {}
    for trial in sweep.trials:
        lines = [line for line in read_metrics(trial.path) if isinstance(line.get(metric), (int, float))]
        series[trial.path] = [line["step"] for line in lines], [line[metric] for line in lines]
    keys = [key for key in sweep.axes if len(_values(sweep, sweep.points, key)) > 1] or sweep.axes[:1]
    if not keys or not any(len(steps) > 1 for steps, _ in series.values()):
        return None
    figure, panels = panels_of(len(keys), height=3.4)
    for panel, key in zip(panels, keys, strict=True):
        colours = _colours(sweep, key, sweep.points)
        for point in sweep.points:
            colour = colours.get(repr(point.values.get(key)), COLOURS["muted"])
            for trial in point.trials:
                line = "--" if trial.state == PRUNED else "-"
                panel.plot(*series[trial.path], color=colour, linestyle=line, marker="o", markersize=3, linewidth=1.2)
        shown = _values(sweep, sweep.points, key)
        step = -(-len(shown) // _MOST_LISTED)
        handles = [Line2D([], [], color=colours[repr(value)], label=number(value)) for value in shown[::step]]
        panel.legend(handles=handles, title=key, loc="best", fontsize=7.5, title_fontsize=8)
        panel.set_xlabel("Step")
        panel.set_ylabel(heading(metric))
        panel.xaxis.set_major_formatter(STEPS)
    return "curves", "Learning curves", "Every run, coloured by what differs; dashed or a single dot: pruned.", figure


def _keys(sweep: Sweep, finished: Sequence[SweepPoint]) -> Drawn:
    """The metric against each key."""
    metric = sweep.metrics[0]
    pruned = [point for point in sweep.points if point.state == PRUNED and point.reached(metric)]
    shown = [*finished, *pruned]
    keys = [key for key in sweep.axes if len(_values(sweep, shown, key)) > 1]
    if not keys or not finished:
        return None
    figure, panels = panels_of(len(keys), height=3.0, per_row=3)
    for panel, key in zip(panels, keys, strict=True):
        having = [point for point in finished if key in point.values]
        places = _axis(panel, sweep, key, _values(sweep, shown, key))
        for point in pruned:
            if key in point.values:
                heights = point.reached(metric)
                at = [places[repr(point.values[key])]] * len(heights)
                panel.plot(at, heights, linestyle="none", marker="o", mfc="none", color=COLOURS["muted"], markersize=5)
        xs = [places[repr(point.values[key])] for point in having]
        panel.errorbar(
            xs, [point.mean(metric) or 0.0 for point in having], [point.spread(metric) or 0.0 for point in having],
            linestyle="none", marker="o", color=COLOURS["c1"], elinewidth=1.0, capsize=2,
        )  # fmt: skip
        panel.set_xlabel(key)
        panel.set_ylabel(heading(metric))
    caption = "Means over seeds, with standard deviations."
    caption += " Grey circles: what pruned runs had reached when they were ended." if pruned else ""
    return "keys", "What each key does", caption, figure


def _axis(panel: Axes, sweep: Sweep, key: str, values: Sequence[Any]) -> Mapping[str, float]:
    """Make a panel's horizontal axis that of a key; return where each value stands."""
    if all(map(_is_number, values)):
        if _is_log(sweep, key, values):
            panel.set_xscale("log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 3) if max(values) < 1e4 * min(values) else (1,)))
            panel.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panel.xaxis.set_minor_locator(NullLocator())
        elif len(values) <= _MOST_LISTED:
            panel.set_xticks(values, [number(value) for value in values])
        return {repr(value): float(value) for value in values}
    panel.xaxis.set_major_locator(FixedLocator(list(range(len(values)))))
    panel.set_xticklabels([number(value) for value in values], rotation=20, ha="right")
    return {repr(value): float(index) for index, value in enumerate(values)}


def _parallel(sweep: Sweep, finished: Sequence[SweepPoint]) -> Drawn:
    """All keys at once: a line for every point through its values, coloured by what it gave."""
    keys = [key for key in sweep.axes if len(_values(sweep, finished, key)) > 1]
    if len(keys) < 2 or len(finished) < 3:
        return None
    metric = sweep.metrics[0]
    means = [point.mean(metric) or 0.0 for point in finished]
    low, high = min(means), max(means)
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    panel = figure.subplots()
    for point, mean in reversed(list(zip(finished, means, strict=True))):  # the best on top
        heights = [_height(sweep, finished, key, point) for key in keys]
        heights.append((mean - low) / (high - low) if high > low else 0.5)
        xs = [x for x, y in enumerate(heights) if y is not None]
        share = heights[-1] if sweep.modes[0] == "max" else 1 - (heights[-1] or 0.0)
        colour = matplotlib.colors.to_hex(colormaps["viridis"](0.9 * (share or 0.0)))
        panel.plot(xs, [y for y in heights if y is not None], color=colour, linewidth=1.3, marker="o", markersize=3)
    beside: dict[str, Any] = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 7.5, "va": "bottom"}
    for x, key in enumerate(keys):
        values = _values(sweep, finished, key)
        listed = values if len(values) <= _MOST_LISTED and "values" in sweep.dimension[key] else [values[0], values[-1]]
        for value in listed:
            panel.annotate(number(value), (x, _place(sweep, key, values, value)), **beside)
    for value, at in ((low, 0.0), (high, 1.0)):
        panel.annotate(f"{value:.4g}", (len(keys), at), **beside)
    panel.set_xticks(range(len(keys) + 1), [*keys, heading(metric)])
    panel.set_xlim(-0.1, len(keys) + 0.3)
    panel.set_yticks([])
    panel.grid(axis="x")
    return "parallel", "All keys at once", "One line for each finished point; the brighter, the better.", figure


def _height(sweep: Sweep, points: Sequence[SweepPoint], key: str, point: SweepPoint) -> float | None:
    if key not in point.values:
        return None
    return _place(sweep, key, _values(sweep, points, key), point.values[key])


def _place(sweep: Sweep, key: str, values: Sequence[Any], value: Any) -> float:
    """Return where a value stands between the ends of its key, 0 to 1."""
    if not all(map(_is_number, values)):
        return [repr(each) for each in values].index(repr(value)) / max(len(values) - 1, 1)
    if _is_log(sweep, key, values):
        value, values = math.log(value), [math.log(each) for each in values]
    return (value - min(values)) / (max(values) - min(values)) if max(values) > min(values) else 0.5


def importance(sweep: Sweep) -> dict[str, float]:
    """Return how much of what the points gave each key explains (fANOVA, as Optuna has it); {} where there are too
    few finished points, or all gave the same."""
    metric = sweep.metrics[0]
    finished = [point for point in sweep.points if point.mean(metric) is not None]
    names = [name for name in sweep.axes if all(name in point.values for point in finished)]
    names = [name for name in names if len(_values(sweep, finished, name)) > 1]
    means = {point.mean(metric) for point in finished}
    if len(names) < 2 or len(finished) < 5 or len(means) < 2:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kinds: dict[str, Any] = {}
    for name in names:
        values = _values(sweep, finished, name)
        if "values" in sweep.dimension[name]:
            kinds[name] = optuna.distributions.CategoricalDistribution([repr(value) for value in values])
        else:
            log = _is_log(sweep, name, values)
            kinds[name] = optuna.distributions.FloatDistribution(float(values[0]), float(values[-1]), log=log)
    search = optuna.create_study(direction="minimize" if sweep.modes[0] == "min" else "maximize")
    for point in finished:
        params = {
            name: repr(point.values[name]) if "values" in sweep.dimension[name] else float(point.values[name])
            for name in names
        }
        search.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=point.mean(metric)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(search, evaluator=evaluator))


def _importance(sweep: Sweep) -> Drawn:
    found = importance(sweep)
    if not found or not all(map(math.isfinite, found.values())):
        return None
    names = sorted(found, key=lambda name: found[name])
    figure = Figure(figsize=(0.72 * WIDTH, 0.9 + 0.35 * len(names)), layout="constrained")
    panel = figure.subplots()
    panel.barh(range(len(names)), [found[name] for name in names], color=COLOURS["c1"], height=0.6)
    panel.set_yticks(range(len(names)), names)
    panel.set_xlabel("Share of what the points differ by")
    panel.grid(axis="y", visible=False)
    return "importance", "Importance", "How much each key explains (fANOVA of the finished points).", figure


def _pareto(sweep: Sweep) -> Drawn:
    """What one metric costs in the other: of two metrics themselves, of one against the energy of a point's runs."""
    first = sweep.metrics[0]
    second = sweep.metrics[1] if len(sweep.metrics) > 1 else "energy_kwh"
    pairs = [(point, point.mean(second), point.mean(first)) for point in sweep.points if point.state in OVER]
    known = [(point, x, y) for point, x, y in pairs if x is not None and y is not None]
    if len(known) < 3:
        return None
    figure, (panel,) = panels_of(1, height=3.3)
    best = sweep.pareto if len(sweep.metrics) > 1 else [sweep.best]
    front = [point.values for point in best if point is not None]
    scale, unit = energy_scale(x for _, x, _ in known) if second == "energy_kwh" else (1.0, "")
    for point, x, y in known:
        colour = COLOURS["c2"] if point.values in front else COLOURS["c1"]
        panel.plot([x * scale], [y], marker=MARKERS[0], linestyle="none", color=colour, markersize=6)
    panel.set_xlabel(f"Energy ({unit})" if unit else heading(second))
    panel.set_ylabel(heading(first))
    several = len(sweep.metrics) > 1
    caption = "Orange: the Pareto front, than which no other point is better in both." if several else (
        "What a point's runs gave, against what one of them used on average. Orange: the best."
    )  # fmt: skip
    return "pareto", "What was traded" if several else "What the energy bought", caption, figure
