"""What pretraining brought: accuracy by number of labels with and without it, and what that cost and saved.

A *study* is a dict: "family", "task"; "points", each {"labels", "arm" ("pretrained" or "scratch"), "seeds" (accuracy
per seed), "f1", "energy_wh" (per seed), "learning_rate", "steps"}; "pretraining" {"energy_wh", "emissions_g",
"seconds", "tokens"}; "equal_accuracy" and "payback_runs" as computed here.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from rich.console import Console

from jaxformer.report.plots import COLOURS, SHARES, STYLE, Plot, panels_of, save
from jaxformer.tables import (
    DASH,
    count,
    duration,
    energy,
    energy_scale,
    mass,
    percent,
    print_paragraph,
    roomy,
    significant,
    table,
)

Point = Mapping[str, Any]
ARMS = {"pretrained": "From the checkpoint", "scratch": "From scratch"}
_LOOK = {"pretrained": (COLOURS["c1"], "o", "-"), "scratch": (COLOURS["c2"], "s", "--")}
# Energies of equal runs scatter by a few per cent: a saving below this share is none.
ENERGY_SCATTER = 0.05


def equal_accuracy(points: Sequence[Point]) -> dict[str, Any] | None:
    """Compare both arms at the highest mean accuracy that both reach.

    Returns {"accuracy", "labels_scratch", "labels_pretrained", "energy_scratch_wh", "energy_pretrained_wh",
    "at_most"}. Labels are where the line through an arm's means, drawn over the logarithm of the label count, first
    reaches that accuracy; energy is that of one fine-tuning with so many labels, read off the same way (None where none
    was measured). An arm in "at_most" is above it already at its smallest count, so its labels are an upper bound.
    None when an arm has no points, or both exceed the accuracy from their first point on.
    """
    arms = {arm: _arm(points, arm) for arm in ARMS}
    if not all(arms.values()):
        return None
    target = min(max(_mean(point["seeds"]) for point in arm) for arm in arms.values())
    result: dict[str, Any] = {"accuracy": target, "at_most": []}
    for name, arm in arms.items():
        labels = _first_reaching(target, arm)
        result[f"labels_{name}"] = labels
        result[f"energy_{name}_wh"] = _energy_at(labels, arm)
        if _mean(arm[0]["seeds"]) > target:
            result["at_most"].append(name)
    return None if len(result["at_most"]) == len(ARMS) else result


def payback(equal: Mapping[str, Any] | None, pretraining_wh: float | None) -> tuple[float | None, str]:
    """Return after how many fine-tunings pretraining has paid its energy back, and why not if it never does.

    One fine-tuning from the checkpoint is set against one from scratch that reaches the same accuracy. (None, reason)
    when there is no such pair, no energy was measured, or the fine-tuning itself saves none.
    """
    if equal is None:
        return None, "the two arms reach no accuracy in common"
    scratch, pretrained = equal["energy_scratch_wh"], equal["energy_pretrained_wh"]
    if scratch is None or pretrained is None or pretraining_wh is None:
        return None, "energy was not measured"
    saving = scratch - pretrained
    if abs(saving) < ENERGY_SCATTER * scratch:
        return None, "a fine-tuning to equal accuracy takes the same energy with and without pretraining"
    if saving < 0:
        return None, "a fine-tuning to equal accuracy takes more energy from the checkpoint than from scratch"
    return pretraining_wh / saving, ""


def sentences(study: Mapping[str, Any]) -> dict[str, str]:
    """Return what the study says in words: "headline", "equal", "cost" and "payback"."""
    return {
        "headline": _headline(study),
        "equal": _equal(study),
        "cost": _cost(study["pretraining"]),
        "payback": _payback(study),
    }


def _headline(study: Mapping[str, Any]) -> str:
    equal = study["equal_accuracy"]
    if equal is not None and equal["labels_pretrained"] < equal["labels_scratch"]:
        ratio = significant(equal["labels_scratch"] / equal["labels_pretrained"], 2)
        most, at_least = ("At most ", "at least ") if "pretrained" in equal["at_most"] else ("", "")
        return (
            f"{most}{round(equal['labels_pretrained']):,} labels from the checkpoint do the work of "
            f"{round(equal['labels_scratch']):,} from scratch ({at_least}{ratio} times as many), at an accuracy of "
            f"{percent(equal['accuracy'])}."
        )
    gains = _gains(study["points"])
    if not gains:
        return "The two arms have no label count in common, so they cannot be compared."
    labels, gain = max(gains.items(), key=lambda item: item[1])
    if gain <= 0:
        return (
            "Pretraining brought no gain here: no label count is more accurate from the checkpoint than from scratch."
        )
    return (
        f"Pretraining adds {100 * gain:.1f} points of accuracy at best ({labels:,} labels), but saves no labels at the "
        "highest accuracy that both reach."
    )


def _equal(study: Mapping[str, Any]) -> str:
    equal = study["equal_accuracy"]
    if equal is None:
        return (
            "The two arms reach no accuracy in common within the label counts tried, so neither is shown to be cheaper."
        )
    parts = []
    for arm in ("scratch", "pretrained"):
        bound = "at most " if arm in equal["at_most"] else ""
        used = equal[f"energy_{arm}_wh"]
        energy_part = "" if used is None else f" and {energy(used / 1000)} of fine-tuning"
        parts.append(f"{bound}{round(equal[f'labels_{arm}']):,} labels{energy_part} {ARMS[arm].lower()}")
    return f"An accuracy of {percent(equal['accuracy'])} takes {parts[0]}, and {parts[1]}."


def _cost(pretraining: Mapping[str, Any]) -> str:
    kwh = None if pretraining["energy_wh"] is None else pretraining["energy_wh"] / 1000
    kg = None if pretraining["emissions_g"] is None else pretraining["emissions_g"] / 1000
    spent = "an unmeasured amount of energy" if kwh is None else f"{energy(kwh)} ({mass(kg)} CO₂eq)"
    took, tokens = duration(pretraining["seconds"]), count(pretraining["tokens"])
    return f"Pretraining itself took {took} on {tokens} tokens and {spent}."


def _payback(study: Mapping[str, Any]) -> str:
    runs = study["payback_runs"]
    if runs is not None:
        whole = math.ceil(runs)
        return (
            f"In energy, pretraining pays back after {whole:,} fine-tuning{'s' if whole != 1 else ''} that would "
            "otherwise be run from scratch to the same accuracy. Labels that need not be written come on top."
        )
    reason = payback(study["equal_accuracy"], study["pretraining"]["energy_wh"])[1] or "no saving was found"
    return f"In energy alone pretraining does not pay back here: {reason}. What it brings is accuracy per label."


def rows_of(study: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return (headings, rows of cells), one row per label count: a block of columns per arm, and the gain.

    Accuracy and F1 are mean ± standard deviation over seeds.
    """
    factor, unit = _scale(study)
    arm_headings = ["Accuracy", "F1", f"Energy ({unit})", "Learning rate", "Steps"]
    headings = ["Labels", "Seeds", *arm_headings * len(ARMS), "Gain (points)"]
    rows = []
    gains = _gains(study["points"])
    for labels in sorted({point["labels"] for point in study["points"]}):
        pair = [[point for point in _arm(study["points"], arm) if point["labels"] == labels] for arm in ARMS]
        cells = [f"{labels:,}", " / ".join(dict.fromkeys(str(len(found[0]["seeds"])) for found in pair if found))]
        for found in pair:
            cells += _cells(found[0], factor) if found else [DASH] * 5
        rows.append([*cells, f"{100 * gains[labels]:+.1f}" if labels in gains else DASH])
    return headings, rows


def _scale(study: Mapping[str, Any]) -> tuple[float, str]:
    """Return (factor, unit) for the fine-tunings' energies in Wh."""
    factor, unit = energy_scale(used / 1000 for point in study["points"] for used in _known(point["energy_wh"]))
    return factor / 1000, unit


def _cells(point: Point, energy_factor: float) -> list[str]:
    used = _known(point["energy_wh"])
    return [
        _spread(point["seeds"]),
        _spread(_known(point["f1"])),
        significant(_mean(used) * energy_factor) if used else DASH,
        f"{point['learning_rate']:g}",
        f"{point['steps']:,}",
    ]


def print_transfer(study: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the study on the terminal: a table per label count and what it says."""
    console = roomy(console or Console())
    factor, unit = _scale(study)
    title = f"Accuracy and energy of one fine-tuning ({unit}): {study['family']}, {study['task']}"
    shown = table(title)
    gains = _gains(study["points"])
    for heading in ("Labels", *(column for name in ARMS.values() for column in (name, unit)), "Gain (points)"):
        shown.add_column(heading, justify="right")
    for labels in sorted({point["labels"] for point in study["points"]}):
        cells = []
        for arm in ARMS:
            found = [point for point in _arm(study["points"], arm) if point["labels"] == labels]
            used = _known(found[0]["energy_wh"]) if found else []
            cells += [
                _spread(found[0]["seeds"]) if found else DASH,
                significant(_mean(used) * factor) if used else DASH,
            ]
        shown.add_row(f"{labels:,}", *cells, f"{100 * gains[labels]:+.1f}" if labels in gains else DASH)
    console.print(shown)
    words = sentences(study)
    for name in ("headline", "equal", "cost", "payback"):
        print_paragraph(console, words[name], "bold" if name == "headline" else "")


def transfer_plots(study: Mapping[str, Any], folder: Path) -> list[Plot]:
    """Draw accuracy against labels and, where pretraining pays back, energy against the number of fine-tunings."""
    with matplotlib.rc_context(STYLE):
        pays = study["payback_runs"] is not None
        figure, panels = panels_of(2 if pays else 1, height=3.9)
        _draw_accuracy(panels[0], study)
        if pays:
            _draw_payback(panels[1], study)
    caption = "Left: mean" if pays else "Mean"
    caption += " over seeds with a band of one standard deviation; dots are single runs, the label axis is logarithmic."
    if pays:
        caption += " Right: energy of pretraining and all fine-tunings to equal accuracy."
    return [save(figure, folder, f"transfer-{study['family']}", "Accuracy by number of labels", caption)]


def _draw_accuracy(panel: Axes, study: Mapping[str, Any]) -> None:
    for arm, name in ARMS.items():
        colour, marker, line = _LOOK[arm]
        points = _arm(study["points"], arm)
        labels = [point["labels"] for point in points]
        means = [_mean(point["seeds"]) for point in points]
        spreads = [_deviation(point["seeds"]) for point in points]
        low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        panel.fill_between(labels, low, high, color=colour, alpha=0.16, linewidth=0)
        panel.plot(labels, means, color=colour, marker=marker, linestyle=line, label=name, linewidth=2, markersize=6)
        for point in points:
            seeds = point["seeds"]
            panel.plot([point["labels"]] * len(seeds), seeds, ".", color=colour, alpha=0.45, markersize=4)
    panel.set_xscale("log")
    ticks = sorted({point["labels"] for point in study["points"]})
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(SHARES)
    panel.set_xlabel("Labelled examples")
    panel.set_ylabel("Accuracy on held-out examples")
    equal = study["equal_accuracy"]
    if equal is not None and equal["labels_pretrained"] < equal["labels_scratch"]:
        panel.annotate(
            "",
            xy=(equal["labels_pretrained"], equal["accuracy"]),
            xytext=(equal["labels_scratch"], equal["accuracy"]),
            arrowprops={"arrowstyle": "->", "color": COLOURS["ink"], "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0},
        )
    panel.legend(loc="best")


def _draw_payback(panel: Axes, study: Mapping[str, Any]) -> None:
    equal, runs = study["equal_accuracy"], study["payback_runs"]
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
    panel.set_xlabel("Fine-tunings to equal accuracy")
    panel.set_ylabel("Energy in all (Wh)")
    panel.legend(loc="upper left")


def _arm(points: Sequence[Point], arm: str) -> list[Point]:
    """The points of one arm that have a result, by rising label count."""
    return sorted(
        (point for point in points if point["arm"] == arm and point["seeds"]), key=lambda point: point["labels"]
    )


def _first_reaching(target: float, arm: Sequence[Point]) -> float:
    """The label count at which the line through the means first reaches `target`, which some mean does reach."""
    means = [_mean(point["seeds"]) for point in arm]
    if means[0] >= target:
        return float(arm[0]["labels"])
    after = next(index for index, mean in enumerate(means) if mean >= target)
    share = (target - means[after - 1]) / (means[after] - means[after - 1])
    low, high = math.log(arm[after - 1]["labels"]), math.log(arm[after]["labels"])
    return math.exp(low + share * (high - low))


def _energy_at(labels: float, arm: Sequence[Point]) -> float | None:
    """Mean energy (Wh) of one fine-tuning with `labels` labels, interpolated over their logarithm."""
    known = [(math.log(point["labels"]), _mean(used)) for point in arm if (used := _known(point["energy_wh"]))]
    if not known:
        return None
    x = math.log(labels)
    for (x0, y0), (x1, y1) in zip(known, known[1:], strict=False):
        if x <= x1:
            return y0 + (y1 - y0) * max(0.0, (x - x0) / (x1 - x0))
    return known[-1][1]


def _gains(points: Sequence[Point]) -> dict[int, float]:
    """Mean accuracy from the checkpoint less that from scratch, per label count that both arms have."""
    means = {arm: {point["labels"]: _mean(point["seeds"]) for point in _arm(points, arm)} for arm in ARMS}
    both = sorted(means["pretrained"].keys() & means["scratch"].keys())
    return {labels: means["pretrained"][labels] - means["scratch"][labels] for labels in both}


def _known(values: Sequence[float | None] | None) -> list[float]:
    return [value for value in values or () if value is not None]


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of some shares, as percentages."""
    if not values:
        return DASH
    spread = f" ± {100 * _deviation(values):.1f}" if len(values) > 1 else ""
    return f"{100 * _mean(values):.1f}{spread} %"
