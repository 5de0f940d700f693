"""A sweep's folder as the report sees it: its runs, its points with mean and spread over seeds, what it cost."""

import dataclasses
import datetime
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError
from jaxformer.footprint import Emissions, read_emissions
from jaxformer.storage import folders_in, location, read_metrics, store_errors

STUDY, TRIAL, TRIALS = "study.json", "trial.json", "trials"
KIND, TRANSFER, REPRODUCTION = "sweep", "transfer", "reproduction"  # kinds of study, as their records say
_VERBS = {KIND: "sweep", TRANSFER: "transfer", REPRODUCTION: "reproduce"}  # which command writes them
# What a run costs, as metrics that a study may go by; and its total of these.
COSTS = ("hours", "device_hours", "energy_kwh", "emissions_kg")
WAITING, RUNNING, STOPPED, DONE, PRUNED, FAILED = "waiting", "running", "stopped", "done", "pruned", "failed"
OVER = (DONE, PRUNED, FAILED)


@dataclasses.dataclass(frozen=True)
class SweepTrial:
    """One run of a study, as its `trial.json` and its log tell it."""

    path: Path
    record: Mapping[str, Any]
    step: int
    emissions: Emissions

    @property
    def state(self) -> str:
        return str(self.record["state"])

    @property
    def values(self) -> dict[str, Any]:
        return dict(self.record["values"])

    @property
    def metrics(self) -> dict[str, float]:
        return dict(self.record.get("metrics") or {})

    @property
    def costs(self) -> dict[str, float]:
        """What all its starts have cost together."""
        return costs_of(self.emissions, int(self.record.get("devices") or 1))


@dataclasses.dataclass(frozen=True)
class SweepPoint:
    """The runs of one point: equal but for their seeds."""

    values: Mapping[str, Any]
    trials: tuple[SweepTrial, ...]
    wanted: int  # seeds

    @property
    def state(self) -> str:
        states = [trial.state for trial in self.trials]
        for state in (FAILED, PRUNED, RUNNING, STOPPED):
            if state in states:
                return state
        return DONE if states.count(DONE) == self.wanted else WAITING

    def found(self, metric: str) -> list[float]:
        """Return what the finished runs gave for a metric."""
        values = [trial.metrics.get(metric) for trial in self.trials if trial.state == DONE]
        return [float(value) for value in values if value is not None and math.isfinite(value)]

    def reached(self, metric: str) -> list[float]:
        """Return what a metric had reached in the runs that the pruner ended, each at its own last step."""
        values = [trial.metrics.get(metric) for trial in self.trials if trial.state == PRUNED]
        return [float(value) for value in values if value is not None and math.isfinite(value)]

    def mean(self, metric: str) -> float | None:
        """Return the mean over all seeds; None before all have given it."""
        values = self.found(metric)
        return statistics.fmean(values) if self.state == DONE and len(values) == self.wanted else None

    def spread(self, metric: str) -> float | None:
        """Return the standard deviation over seeds; None of a single one."""
        values = self.found(metric)
        return statistics.stdev(values) if len(values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A study of the kind "sweep" with all that its folder holds."""

    path: Path
    record: Mapping[str, Any]
    trials: tuple[SweepTrial, ...]

    @property
    def metrics(self) -> list[str]:
        return list(self.record["settings"]["metrics"])

    @property
    def modes(self) -> list[str]:
        return list(self.record["settings"]["modes"])

    @property
    def keys(self) -> list[str]:
        """The keys that are searched."""
        space = self.record["space"]
        if "points" in space:
            return list(dict.fromkeys(key for point in space["points"] for key in point))
        return [key.strip() for name in space if name != "seed" for key in name.split(",")]

    @property
    def axes(self) -> list[str]:
        """The keys that pictures are drawn over: of keys that go together the first stands for all."""
        return [name.split(",")[0].strip() for name in self.record["space"] if name not in ("seed", "points")]

    @property
    def dimension(self) -> dict[str, Mapping[str, Any]]:
        """{key: what the space says of it}."""
        return {key.strip(): entry for name, entry in self.record["space"].items() if name not in ("seed", "points")
                for key in name.split(",")}  # fmt: skip

    @property
    def points(self) -> list[SweepPoint]:
        """The points, the best first, then those without a result in the order in which they began."""
        grouped: dict[str, list[SweepTrial]] = {}
        for trial in self.trials:
            grouped.setdefault(json.dumps(trial.values, sort_keys=True), []).append(trial)
        seeds = self.record["seeds"]
        found = [SweepPoint(group[0].values, tuple(group), len(seeds)) for group in grouped.values()]
        return sorted(found, key=self._rank)

    def _rank(self, point: SweepPoint) -> tuple[int, float]:
        value = point.mean(self.metrics[0])
        if value is None:
            return OVER.index(point.state) + 2 if point.state in OVER else 1, 0.0
        return 0, value if self.modes[0] == "min" else -value

    @property
    def best(self) -> SweepPoint | None:
        """The best point by the first metric, None before one is finished."""
        return next((point for point in self.points if point.mean(self.metrics[0]) is not None), None)

    @property
    def pareto(self) -> list[SweepPoint]:
        """The finished points than which no other is better in one metric and as good in the others."""
        finished = [point for point in self.points if all(point.mean(name) is not None for name in self.metrics)]
        scores = [self._scores(point) for point in finished]
        return [
            point
            for point, own in zip(finished, scores, strict=True)
            if not any(
                other != own and all(one <= two for one, two in zip(other, own, strict=True)) for other in scores
            )
        ]

    def _scores(self, point: SweepPoint) -> list[float]:
        """Return the means, lower being better."""
        means = [point.mean(name) or 0.0 for name in self.metrics]
        return [value if mode == "min" else -value for value, mode in zip(means, self.modes, strict=True)]

    @property
    def expected(self) -> int:
        """How many runs the study has in the end, pruned points counted whole."""
        return int(self.record.get("points") or len(self.points)) * len(self.record["seeds"])

    def costs(self, trials: Iterable[SweepTrial] | None = None) -> dict[str, float]:
        """Return what runs cost together, each counted once: all of the study's, or these."""
        each = [trial.costs for trial in (self.trials if trials is None else trials)]
        return {name: math.fsum(costs[name] for costs in each) for name in COSTS}

    @property
    def wall_seconds(self) -> float:
        """For how long at least one run was training."""
        spans = sorted((span.began, span.ended) for trial in self.trials for span in trial.emissions.spans)
        total, until = 0.0, -math.inf
        for began, ended in spans:
            total += max(ended - max(began, until), 0.0)
            until = max(until, ended)
        return total

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for every run: its values, state and metrics, what it cost, and where it lies."""
        return [
            {"trial": trial.path.name, **trial.values, "seed": trial.record["seed"], "state": trial.state,
             "step": trial.step, **trial.metrics, **trial.costs, "path": str(trial.path)}
            for point in self.points for trial in point.trials
        ]  # fmt: skip


def costs_of(emissions: Emissions, devices: int) -> dict[str, float]:
    """Return what a run on so many devices cost, by the names of COSTS."""
    hours = emissions.seconds / 3600
    return dict(zip(COSTS, (hours, hours * devices, emissions.energy_kwh, emissions.emissions_kg), strict=True))


@store_errors()
def is_sweep(folder: Path) -> bool:
    return (folder / STUDY).exists() and (folder / TRIALS).exists()


def is_transfer(folder: Path) -> bool:
    """Whether a folder says of itself that it holds a transfer; of a damaged one that is not known."""
    return _is_of(folder, TRANSFER)


def is_reproduction(folder: Path) -> bool:
    """Whether a folder says of itself that it holds a reproduction; of a damaged one that is not known."""
    return _is_of(folder, REPRODUCTION)


@store_errors()
def _is_of(folder: Path, kind: str) -> bool:
    try:
        return bool(json.loads((folder / STUDY).read_text(encoding="utf-8"))["kind"] == kind)
    except (OSError, ValueError, TypeError, LookupError):
        return False


@store_errors()
def read_sweep(folder: Path | str) -> Sweep:
    """Read a study's folder, while it is searched or afterwards. Raises UserError for a folder that is none."""
    path = location(folder)
    record, trials = read_study_record(path), []
    for place in folders_in(path / TRIALS):
        found = read_trial_record(place)
        if found is not None and found.get("study") == record["name"]:
            steps = [line["step"] for line in read_metrics(place) if "step" in line]
            trials.append(SweepTrial(place, found, max(steps, default=0), read_emissions(place)))
    return Sweep(path, record, tuple(sorted(trials, key=_age)))


def load_study(folder: Path | str) -> list[dict[str, Any]]:
    """Return the runs of a study as rows of a table: {"trial": …, "optimizer.learning_rate": …, "seed": …, "state": …,
    "eval/loss": …, "energy_kwh": …, "path": …}; `pandas.DataFrame` takes them."""
    return read_sweep(folder).rows()


def seconds_left(sweep: Sweep, at_once: int = 1) -> float | None:
    """Return how long the runs that are left take at the pace of the finished ones; None before one has finished."""
    took = [trial.emissions.seconds or _lasted(trial.record) for trial in sweep.trials if trial.state == DONE]
    if not took:
        return None
    left = sweep.expected - sum(trial.state in OVER for trial in sweep.trials)
    return statistics.fmean(took) * max(left, 0) / at_once


def _lasted(record: Mapping[str, Any]) -> float:
    began, ended = (datetime.datetime.fromisoformat(record[name]) for name in ("began", "ended"))
    return (ended - began).total_seconds()


def _age(trial: SweepTrial) -> tuple[int, Sequence[Any]]:
    return int(trial.record.get("number", 0)), [trial.record["seed"]]


def read_study_record(folder: Path, kind: str = KIND) -> dict[str, Any]:
    """Return the `study.json` of a study of that kind. Raises UserError where there is none, or a damaged one."""
    path = folder / STUDY
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record["kind"] == kind:
            return record
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no study: it has no {STUDY}; give a folder that `jaxformer {_VERBS[kind]}` wrote"
        ) from None
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or choose another --study") from error
    raise UserError(f"{folder} holds another kind of study ({record['kind']}, not {kind}); choose another --study")


def read_trial_record(folder: Path) -> dict[str, Any] | None:
    """Return a run's `trial.json`, or None where there is none that can be read: it is written anew when it starts."""
    try:
        found = json.loads((folder / TRIAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "state" in found else None
