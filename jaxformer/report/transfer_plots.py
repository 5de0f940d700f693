"""Pictures of a transfer: its metric against labels, energy and steps, and when pretraining has paid back."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from jaxformer.report.plots import COLOURS, SHARES, STEPS, STYLE, Drawn, Plot, is_share, metric_name, panels_of, save
from jaxformer.report.transfer import ARMS, arm_of, deviation, known, mean
from jaxformer.tables import energy_scale

Study = Mapping[str, Any]
_LOOK = {"pretrained": (COLOURS["c1"], "o", "-"), "scratch": (COLOURS["c2"], "s", "--")}


def transfer_plots(study: Study, folder: Path) -> list[Plot]:
    """Draw the metric against labels and energy, the learning curves where runs were judged on their way, and, where
    pretraining pays back, energy against the number of fine-tunings."""
    with matplotlib.rc_context(STYLE):
        drawn = [_labels_and_energy(study), _steps(study), _payback(study)]
        return [
            save(figure, folder, f"transfer-{name}", title, text) for name, title, text, figure in filter(None, drawn)
        ]


def _labels_and_energy(study: Study) -> Drawn:
    measured = any(known(point["energy_wh"]) for point in study["points"])
    figure, panels = panels_of(2 if measured else 1, height=3.9)
    _draw_labels(panels[0], study)
    caption = (
        f"{'Left: mean' if measured else 'Mean'} over seeds with a band of one standard deviation; dots are single "
        "runs, the label axis is logarithmic."
    )
    if measured:
        _draw_energy(panels[1], study)
        caption += " Right: the same means against the energy of one fine-tuning; beside each, its number of labels."
        caption += " A run that compiles its steps first pays for that, too."
    title = f"{metric_name(study['metric'])} by number of labels{' and by energy' if measured else ''}"
    return "labels", title, caption, figure


def _draw_labels(panel: Axes, study: Study) -> None:
    for arm in ARMS:
        points = arm_of(study["points"], arm)
        _line(panel, arm, [point["labels"] for point in points], [point["seeds"] for point in points])
        for point in points:
            colour = _LOOK[arm][0]
            seeds = point["seeds"]
            panel.plot([point["labels"]] * len(seeds), seeds, ".", color=colour, alpha=0.45, markersize=4)
    panel.set_xscale("log")
    ticks = sorted({point["labels"] for point in study["points"]})
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("Labelled examples")
    _metric_axis(panel, study)
    equal = study["equal"]
    if equal is not None and equal["labels_pretrained"] < equal["labels_scratch"]:
        panel.annotate(
            "",
            xy=(equal["labels_pretrained"], equal["value"]),
            xytext=(equal["labels_scratch"], equal["value"]),
            arrowprops={"arrowstyle": "->", "color": COLOURS["ink"], "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0},
        )
    panel.legend(loc="best")


def _draw_energy(panel: Axes, study: Study) -> None:
    scale, unit = energy_scale(used / 1e3 for point in study["points"] for used in known(point["energy_wh"]))
    for arm, name in ARMS.items():
        points = [point for point in arm_of(study["points"], arm) if known(point["energy_wh"])]
        xs = [mean(known(point["energy_wh"])) / 1e3 * scale for point in points]
        ys, spreads = [mean(point["seeds"]) for point in points], [deviation(point["seeds"]) for point in points]
        colour, marker, line = _LOOK[arm]
        panel.errorbar(
            xs, ys, spreads, color=colour, marker=marker, linestyle=line, linewidth=2, markersize=6, label=name,
            elinewidth=1.0, capsize=2,
        )  # fmt: skip
        for x, y, point in zip(xs, ys, points, strict=True):
            panel.annotate(f"{point['labels']:,}", (x, y), (6, -10), textcoords="offset points", fontsize=7.5)
    panel.set_xlim(left=0)
    panel.set_xlabel(f"Energy of one fine-tuning ({unit})")
    _metric_axis(panel, study)
    panel.legend(loc="best")


def _line(panel: Axes, arm: str, xs: Sequence[float], values: Sequence[Sequence[float]]) -> None:
    """Draw an arm's means over seeds as a line with a band of one standard deviation."""
    colour, marker, line = _LOOK[arm]
    means, spreads = [mean(each) for each in values], [deviation(each) for each in values]
    low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    panel.fill_between(xs, low, high, color=colour, alpha=0.16, linewidth=0)
    panel.plot(xs, means, color=colour, marker=marker, linestyle=line, label=ARMS[arm], linewidth=2, markersize=6)


def _metric_axis(panel: Axes, study: Study) -> None:
    if is_share(study["metric"]):
        panel.yaxis.set_major_formatter(SHARES)
    panel.set_ylabel(f"{metric_name(study['metric'])} ({study['split']})")


def _steps(study: Study) -> Drawn:
    """The learning curves of both arms, a panel for each number of labels."""
    curves: dict[int, dict[str, list[Any]]] = {}
    for point in study["points"]:
        curves.setdefault(point["labels"], {})[point["arm"]] = point["curves"]
    curves = {
        labels: arms
        for labels, arms in sorted(curves.items())
        if any(len(curve) > 1 for every in arms.values() for curve in every)
    }
    if not curves:
        return None
    figure, panels = panels_of(len(curves), height=3.0, per_row=3)
    for panel, (labels, arms) in zip(panels, curves.items(), strict=True):
        for arm in ARMS:
            at: dict[int, list[float]] = {}
            for step, found in (pair for curve in arms.get(arm, ()) for pair in curve):
                at.setdefault(step, []).append(found)
            steps = sorted(at)
            _line(panel, arm, steps, [at[step] for step in steps])
        panel.set_title(f"{labels:,} labels")
        panel.set_xlabel("Step")
        panel.xaxis.set_major_formatter(STEPS)
        _metric_axis(panel, study)
    panels[0].legend(loc="best")
    caption = "Means over seeds of what the runs were judged by on their way, with a band of one standard deviation."
    return "steps", f"{metric_name(study['metric'])} by step", caption, figure


def _payback(study: Study) -> Drawn:
    equal, runs = study["equal"], study["payback_runs"]
    if runs is None:
        return None
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    panel = figure.subplots()
    ends = [0.0, 2.0 * runs]
    spent = study["pretraining"]["energy_wh"]
    for arm, name in ARMS.items():
        start, extra = (spent, ", pretraining included") if arm == "pretrained" else (0.0, "")
        colour, _, line = _LOOK[arm]
        energies = [start + number * equal[f"energy_{arm}_wh"] for number in ends]
        panel.plot(ends, energies, color=colour, linestyle=line, linewidth=2, label=f"{name}{extra}")
    panel.plot([runs], [runs * equal["energy_scratch_wh"]], "o", color=COLOURS["ink"], markersize=6, zorder=5)
    panel.annotate(
        f"paid back after {math.ceil(runs):,}",
        xy=(runs, runs * equal["energy_scratch_wh"]),
        xytext=(8, -12),
        textcoords="offset points",
    )
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("Fine-tunings that do equally well")
    panel.set_ylabel("Energy in all (Wh)")
    panel.legend(loc="upper left")
    return "payback", "When pretraining has paid back", "Pretraining and all fine-tunings together.", figure
