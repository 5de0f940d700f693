"""A transfer in words and tables, for the page and for the terminal (see `transfer` for what it holds)."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from jaxformer.report.plots import is_share, metric_name
from jaxformer.report.transfer import ARMS, Point, arm_of, deviation, gains, known, mean, payback
from jaxformer.tables import (
    DASH,
    count,
    duration,
    energy,
    energy_scale,
    mass,
    metric,
    percent,
    print_paragraph,
    roomy,
    significant,
    table,
)

Study = Mapping[str, Any]


def sentences(study: Study) -> dict[str, str]:
    """Return what the study says in words: "headline", "equal", "cost", "payback" and "how"."""
    return {
        "headline": _headline(study),
        "equal": _equal(study),
        "cost": _cost(study),
        "payback": _payback(study),
        "how": _how(study),
    }


def name_of(study: Study) -> str:
    """The metric within a sentence: accuracy, BLEU."""
    name = metric_name(study["metric"])
    return name[0].lower() + name[1:] if name[1:2].islower() else name


def value(study: Study, number: float) -> str:
    """A value of the metric with its name: 52.9 % accuracy, BLEU 21.6."""
    share = is_share(study["metric"])
    return f"{percent(number)} {name_of(study)}" if share else f"{name_of(study)} {metric(number)}"


def difference(study: Study, number: float) -> str:
    """A difference of two values of the metric, of shares in points."""
    return f"{100 * number:.1f} points" if is_share(study["metric"]) else metric(number)


def _headline(study: Study) -> str:
    equal = study["equal"]
    if equal is not None and equal["labels_pretrained"] < equal["labels_scratch"]:
        ratio = significant(equal["labels_scratch"] / equal["labels_pretrained"], 2)
        most, at_least = ("At most ", "at least ") if "pretrained" in equal["at_most"] else ("", "")
        return (
            f"{most}{round(equal['labels_pretrained']):,} labels from the checkpoint do the work of "
            f"{round(equal['labels_scratch']):,} from scratch ({at_least}{ratio} times as many): "
            f"{value(study, equal['value'])}."
        )
    gained = gains(study["points"], study["mode"])
    if not gained:
        return "The two arms have no number of labels in common, so they cannot be compared."
    labels, gain = max(gained.items(), key=lambda item: item[1])
    if gain <= 0:
        return f"Pretraining brought no gain here: no number of labels gives a better {name_of(study)} with it."
    return (
        f"Pretraining improves {name_of(study)} by {difference(study, gain)} at best ({labels:,} labels), but saves no "
        "labels at the best that both arms reach."
    )


def _equal(study: Study) -> str:
    equal = study["equal"]
    if equal is None:
        return "Within the numbers of labels tried no fine-tuning of one arm does as well as one of the other."
    parts = []
    for arm in ("scratch", "pretrained"):
        bound = "at most " if arm in equal["at_most"] else ""
        used = equal[f"energy_{arm}_wh"]
        energy_part = "" if used is None else f" and {energy(used / 1000)} of fine-tuning"
        parts.append(f"{bound}{round(equal[f'labels_{arm}']):,} labels{energy_part} {ARMS[arm].lower()}")
    return f"To reach {value(study, equal['value'])} takes {parts[0]}, and {parts[1]}."


def _cost(study: Study) -> str:
    spent = study["pretraining"]
    if spent["seconds"] is None and spent["energy_wh"] is None:
        return f"What pretraining took is not known: {study['pretrained']} has no log of it."
    parts = [] if spent["seconds"] is None else [f"{duration(spent['seconds'])} on {count(spent['tokens'])} tokens"]
    if spent["energy_wh"] is None:
        parts.append("an unmeasured amount of energy")
    else:
        parts.append(f"{energy(spent['energy_wh'] / 1000)} ({mass(spent['emissions_g'] / 1000)} CO₂eq)")
    return f"Pretraining itself took {' and '.join(parts)}."


def _payback(study: Study) -> str:
    runs = study["payback_runs"]
    if runs is not None:
        whole = math.ceil(runs)
        return (
            f"In energy, pretraining pays back after {whole:,} fine-tuning{'s' if whole != 1 else ''} that would "
            "otherwise be run from scratch and do equally well. Labels that need not be written come on top."
        )
    reason = payback(study["equal"], study["pretraining"]["energy_wh"])[1] or "no saving was found"
    gained = max(gains(study["points"], study["mode"]).values(), default=0.0) > 0
    brings = f" What it brings is a better {name_of(study)} with the same labels." if gained else ""
    return f"In energy alone pretraining does not pay back here: {reason}.{brings}"


def _how(study: Study) -> str:
    """How both arms were trained and judged."""
    chosen = []
    for arm, tried in study["tried"].items():
        rate = next((point["learning_rate"] for point in study["points"] if point["arm"] == arm), None)
        listed = ", ".join(f"{each:g} ({_number(study, found)})" for each, found in tried.items())
        if rate is not None and listed:
            chosen.append(f"{ARMS[arm].lower()} {rate:g} of {listed}")
    rates = f" Learning rates, chosen on the validation split: {'; '.join(chosen)}." if chosen else ""
    same = " It was judged on that split, too." if chosen and study["split"] == "validation" else ""
    return f"Both arms train on the same labels for the same number of steps.{rates}{same}"


def rows_of(study: Study) -> tuple[list[str], list[list[str]], int]:
    """Return (headings, rows of cells, columns of an arm): one row per number of labels, a block of columns per arm,
    and the gain.

    Metrics are mean ± standard deviation over seeds.
    """
    factor, unit = _scale(study)
    metrics = [metric_name(name) for name in (study["metric"], study["also"]) if name]
    of_arm = [*metrics, f"Energy ({unit})", "Learning rate", "Steps"]
    headings = ["Labels", "Seeds", *of_arm * len(ARMS), _gain_heading(study)]
    rows = []
    for labels, pair in _by_labels(study):
        cells = [f"{labels:,}", " / ".join(dict.fromkeys(str(len(point["seeds"])) for point in pair if point))]
        for point in pair:
            cells += _cells(study, point, factor) if point else [DASH] * len(of_arm)
        rows.append([*cells, _gain(study, labels)])
    return headings, rows, len(of_arm)


def _by_labels(study: Study) -> list[tuple[int, list[Point | None]]]:
    """(labels, [the point of each arm, None where it has none]) of every number of labels."""
    found = {arm: {point["labels"]: point for point in arm_of(study["points"], arm)} for arm in ARMS}
    every = sorted({labels for points in found.values() for labels in points})
    return [(labels, [found[arm].get(labels) for arm in ARMS]) for labels in every]


def _gain_heading(study: Study) -> str:
    return "Gain (points)" if is_share(study["metric"]) else "Gain"


def _gain(study: Study, labels: int) -> str:
    gained = gains(study["points"], study["mode"])
    if labels not in gained:
        return DASH
    return f"{100 * gained[labels]:+.1f}" if is_share(study["metric"]) else f"{gained[labels]:+.3g}"


def _scale(study: Study) -> tuple[float, str]:
    """Return (factor, unit) for the fine-tunings' energies in Wh."""
    factor, unit = energy_scale(used / 1000 for point in study["points"] for used in known(point["energy_wh"]))
    return factor / 1000, unit


def _cells(study: Study, point: Point, energy_factor: float) -> list[str]:
    used = known(point["energy_wh"])
    metrics = [spread(study["metric"], point["seeds"])]
    metrics += [spread(study["also"], known(point["also"]))] if study["also"] else []
    return [
        *metrics,
        significant(mean(used) * energy_factor) if used else DASH,
        f"{point['learning_rate']:g}",
        f"{point['steps']:,}",
    ]


def spread(name: str, values: list[float]) -> str:
    """Mean ± standard deviation of a metric, of shares in percent."""
    if not values:
        return DASH
    if is_share(name):
        beside = f" ± {100 * deviation(values):.1f}" if len(values) > 1 else ""
        return f"{100 * mean(values):.1f}{beside} %"
    return metric(mean(values)) + (f" ± {deviation(values):.2g}" if len(values) > 1 else "")


def _number(study: Study, number: float) -> str:
    return percent(number) if is_share(study["metric"]) else metric(number)


def print_transfer(study: Study, console: Console | None = None) -> None:
    """Print the study on the terminal: a table of a row per number of labels, what it says, and what is not there."""
    console = roomy(console or Console())
    factor, unit = _scale(study)
    shown = table(f"{metric_name(study['metric'])} and energy of one fine-tuning ({unit}): {study['name']}")
    for heading in ("Labels", *(column for name in ARMS.values() for column in (name, unit)), _gain_heading(study)):
        shown.add_column(heading, justify="right")
    for labels, pair in _by_labels(study):
        cells = []
        for point in pair:
            used = known(point["energy_wh"]) if point else []
            cells += [
                spread(study["metric"], point["seeds"]) if point else DASH,
                significant(mean(used) * factor) if used else DASH,
            ]
        shown.add_row(f"{labels:,}", *cells, _gain(study, labels))
    console.print(shown)
    words = sentences(study)
    for name, text in words.items():
        print_paragraph(console, text, "bold" if name == "headline" else "")
    for line in study["unfinished"]:
        print_paragraph(console, line)
