"""What pretraining brought: a metric by number of labels with and without it, and what that cost and saved.

A transfer is a folder with a `study.json` and two sweeps for each arm: ARM/rates, in which its learning rate was
chosen, and ARM/labels, in which it was trained with every number of labels and every seed. `read_transfer` makes one
dict of it:

    name, pretrained    the config and the run that are compared
    metric, mode        what judges ("eval/accuracy"), and whether "max" or "min" of it is sought; also: another metric
    split               on which it judges
    points              of every arm and number of labels {"arm" ("pretrained" or "scratch"), "labels", "steps",
                        "learning_rate", and for each seed "seeds" (the metric), "also", "energy_wh", "curves" ([step,
                        metric] of every evaluation)}
    tried               {arm: {learning rate: the metric that it gave}}; {} where only one was given
    pretraining         {"energy_wh", "emissions_g", "seconds", "tokens"}, None where nothing tells
    equal, payback_runs as computed here
    unfinished          what is not there yet, or failed, a line each
    runs                {name: folder} of all runs
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.report.study import DONE, STUDY, TRANSFER, Sweep, SweepTrial, read_study_record, read_sweep
from jaxformer.report.sweep import failures, progress_line
from jaxformer.storage import is_run, location, read_metrics

Point = Mapping[str, Any]
ARMS = {"pretrained": "From the checkpoint", "scratch": "From scratch"}
RATES, LABELS = "rates", "labels"  # an arm's two sweeps
RATE, MOST, STEPS = "optimizer.learning_rate", "data.max_examples", "training.num_steps"  # keys that they search
# Energies of equal runs scatter by a few per cent: a saving below this share is none.
ENERGY_SCATTER = 0.05


def read_transfer(folder: Path) -> dict[str, Any]:
    """Read a transfer, while it is made or afterwards. Raises UserError for a folder that is none."""
    record = read_study_record(folder, TRANSFER)
    settings, metric = record["settings"], record["settings"]["metric"]
    sweeps = {
        (arm, name): read_sweep(folder / arm / name)
        for arm in ARMS
        for name in (RATES, LABELS)
        if (folder / arm / name / STUDY).exists()
    }
    names = [name for sweep in sweeps.values() for trial in sweep.trials for name in trial.metrics]
    plain = (metric, "eval/loss", "eval/perplexity")
    also = next((name for name in names if name.startswith("eval/") and name not in plain and _judges(name)), "")
    points = [
        point for arm in ARMS if (arm, LABELS) in sweeps for point in _points(arm, sweeps[arm, LABELS], metric, also)
    ]
    equal = equal_metric(points, settings["mode"])
    return {
        "name": record["name"],
        "pretrained": record["pretrained"],
        **{key: settings[key] for key in ("metric", "mode", "split")},
        "also": also,
        "points": points,
        "tried": {arm: _tried(sweep, metric) for (arm, name), sweep in sweeps.items() if name == RATES},
        "pretraining": record["pretraining"],
        "equal": equal,
        "payback_runs": payback(equal, record["pretraining"]["energy_wh"])[0],
        "unfinished": _unfinished(sweeps),
        "runs": _runs(record["pretrained_folder"], sweeps),
    }


def _judges(name: str) -> bool:
    """Whether a logged number says how good a model is: not how many examples were judged, or for how long."""
    return not name.endswith(("examples", "rows", "tokens", "seconds", "second"))


def _points(arm: str, sweep: Sweep, metric: str, also: str) -> list[dict[str, Any]]:
    found = []
    for point in sweep.points:
        done = [trial for trial in point.trials if trial.state == DONE and _is_finite(trial.metrics.get(metric))]
        found.append(
            {
                "arm": arm,
                "labels": point.values[MOST],
                "steps": point.values[STEPS],
                "learning_rate": sweep.record["config"]["optimizer"]["learning_rate"],
                "seeds": [trial.metrics[metric] for trial in done],
                "also": [trial.metrics.get(also) for trial in done],
                "energy_wh": [_energy_wh(trial) for trial in done],
                "curves": [_curve(trial, metric) for trial in done],
            }
        )
    return sorted(found, key=lambda point: point["labels"])


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _energy_wh(trial: SweepTrial) -> float | None:
    return trial.costs["energy_kwh"] * 1e3 if trial.emissions.segments else None


def _curve(trial: SweepTrial, metric: str) -> list[tuple[int, float]]:
    return [(line["step"], line[metric]) for line in read_metrics(trial.path) if _is_finite(line.get(metric))]


def _tried(sweep: Sweep, metric: str) -> dict[float, float]:
    means = {point.values[RATE]: point.mean(metric) for point in sweep.points}
    return {rate: mean for rate, mean in sorted(means.items()) if mean is not None}


def _unfinished(sweeps: Mapping[tuple[str, str], Sweep]) -> list[str]:
    """A line for each sweep that has runs to go, and for each run that failed."""
    lines = [
        f"{arm}/{name}: {progress_line(sweep)}"
        for (arm, name), sweep in sweeps.items()
        if sum(trial.state == DONE for trial in sweep.trials) < sweep.expected
    ]
    lines += [f"{arm}/{name}: {line}" for (arm, name), sweep in sweeps.items() for line in failures(sweep)]
    return [*lines, *(f"{arm}/{LABELS}: not begun yet" for arm in ARMS if (arm, LABELS) not in sweeps)]


def _runs(pretrained: str, sweeps: Mapping[tuple[str, str], Sweep]) -> dict[str, str]:
    """{name: folder} of the runs that have begun: the pretraining, and then those of each arm in order."""
    found = {"pretraining": location(pretrained)}
    for (arm, name), sweep in sweeps.items():
        for trial in sorted(sweep.trials, key=lambda trial: [trial.values[RATE if name == RATES else MOST]]):
            if name == RATES:
                found[f"{arm}, learning rate {trial.values[RATE]:g}"] = trial.path
            else:
                found[f"{arm}, {trial.values[MOST]:,} labels, seed {trial.record['seed']}"] = trial.path
    return {name: str(path) for name, path in found.items() if is_run(path)}


def equal_metric(points: Sequence[Point], mode: str = "max") -> dict[str, Any] | None:
    """Compare both arms at the best mean of the metric that both reach.

    Returns {"value", "labels_scratch", "labels_pretrained", "energy_scratch_wh", "energy_pretrained_wh", "at_most"}.
    Labels are where the line through an arm's means, drawn over the logarithm of the label count, first reaches that
    value; energy is that of one fine-tuning with so many labels, read off the same way (None where none was measured).
    An arm in "at_most" is better already at its smallest count, so its labels are an upper bound. None when an arm has
    no points, or both are better from their first point on.
    """
    sign = 1 if mode == "max" else -1
    arms = {arm: arm_of(points, arm) for arm in ARMS}
    if not all(arms.values()):
        return None
    means = {name: [sign * mean(point["seeds"]) for point in arm] for name, arm in arms.items()}
    target = min(map(max, means.values()))
    result: dict[str, Any] = {"value": sign * target, "at_most": []}
    for name, arm in arms.items():
        labels = _first_reaching(target, [point["labels"] for point in arm], means[name])
        result[f"labels_{name}"] = labels
        result[f"energy_{name}_wh"] = _energy_at(labels, arm)
        if means[name][0] > target:
            result["at_most"].append(name)
    return None if len(result["at_most"]) == len(ARMS) else result


def payback(equal: Mapping[str, Any] | None, pretraining_wh: float | None) -> tuple[float | None, str]:
    """Return after how many fine-tunings pretraining has paid its energy back, and why not if it never does.

    One fine-tuning from the checkpoint is set against one from scratch that does equally well. (None, reason) when
    there is no such pair, no energy was measured, or the fine-tuning itself saves none.
    """
    if equal is None:
        return None, "no fine-tuning of one arm does as well as one of the other"
    scratch, pretrained = equal["energy_scratch_wh"], equal["energy_pretrained_wh"]
    if scratch is None or pretrained is None or pretraining_wh is None:
        return None, "energy was not measured"
    saving = scratch - pretrained
    if abs(saving) < ENERGY_SCATTER * scratch:
        return None, "a fine-tuning that does equally well takes the same energy with and without pretraining"
    if saving < 0:
        return None, "a fine-tuning that does equally well takes more energy from the checkpoint than from scratch"
    return pretraining_wh / saving, ""


def gains(points: Sequence[Point], mode: str = "max") -> dict[int, float]:
    """By how much the mean from the checkpoint is better than from scratch, per label count that both arms have."""
    means = {arm: {point["labels"]: mean(point["seeds"]) for point in arm_of(points, arm)} for arm in ARMS}
    both = sorted(means["pretrained"].keys() & means["scratch"].keys())
    sign = 1 if mode == "max" else -1
    return {labels: sign * (means["pretrained"][labels] - means["scratch"][labels]) for labels in both}


def arm_of(points: Sequence[Point], arm: str) -> list[Point]:
    """The points of one arm that have a result, by rising label count."""
    return sorted(
        (point for point in points if point["arm"] == arm and point["seeds"]), key=lambda point: point["labels"]
    )


def known(values: Sequence[float | None] | None) -> list[float]:
    return [value for value in values or () if value is not None]


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _first_reaching(target: float, labels: Sequence[int], means: Sequence[float]) -> float:
    """The label count at which the line through the means first reaches `target`, which some mean does reach."""
    if means[0] >= target:
        return float(labels[0])
    after = next(index for index, mean in enumerate(means) if mean >= target)
    share = (target - means[after - 1]) / (means[after] - means[after - 1])
    low, high = math.log(labels[after - 1]), math.log(labels[after])
    return math.exp(low + share * (high - low))


def _energy_at(labels: float, arm: Sequence[Point]) -> float | None:
    """Mean energy (Wh) of one fine-tuning with `labels` labels, interpolated over their logarithm."""
    measured = [(math.log(point["labels"]), mean(used)) for point in arm if (used := known(point["energy_wh"]))]
    if not measured:
        return None
    x = math.log(labels)
    for (x0, y0), (x1, y1) in zip(measured, measured[1:], strict=False):
        if x <= x1:
            return y0 + (y1 - y0) * max(0.0, (x - x0) / (x1 - x0))
    return measured[-1][1]
