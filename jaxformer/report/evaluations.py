"""What `evaluate` found of a run, as the files in its results say: a row for each evaluation, of a mixture for each of
its members, and a column for each metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from jaxformer.report.plots import metric_name
from jaxformer.report.read import Run
from jaxformer.tables import DASH, metric


@dataclass(frozen=True)
class Cell:
    """A metric and its 95 % interval, as text; "" where there is none."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run. Each row names what was judged, and of which parameters."""

    run: str
    headings: tuple[str, ...]  # of the metrics
    rows: tuple[tuple[str, str, tuple[Cell, ...]], ...]


def evaluations_of(run: Run) -> Evaluations | None:
    """Return the table of a run's evaluations, the oldest step first; None where it has none."""
    found = [(name, result) for name, result in run.results.items() if _is_evaluation(result)]
    if not found:
        return None
    rows = []
    for _, result in sorted(found, key=lambda entry: (entry[1].get("step") or 0, entry[0])):
        metrics, intervals = result["metrics"], result.get("intervals") or {}
        # "NAME/metric" is that of a member; what stands alone is of all.
        members = dict.fromkeys(key.rpartition("/")[0] for key in metrics)
        for member in members:
            own = {key.rpartition("/")[2]: key for key in metrics if key.rpartition("/")[0] == member}
            cells = {name: _cell(metrics[key], intervals.get(key)) for name, key in own.items()}
            rows.append((_judged(result, member), _parameters(result), cells))
    names = list(dict.fromkeys(name for _, _, cells in rows for name in cells))
    shown = tuple((what, which, tuple(cells.get(name, Cell(DASH)) for name in names)) for what, which, cells in rows)
    return Evaluations(run.name, tuple(map(metric_name, names)), shown)


def _is_evaluation(result: Any) -> bool:
    return isinstance(result, Mapping) and isinstance(result.get("metrics"), Mapping) and "split" in result


def _judged(result: Mapping[str, Any], member: str) -> str:
    """Return which rows were judged: a split, or all of a file of one's own; and of which member."""
    facts = [fact for fact in result.get("data") or () if isinstance(fact, Mapping)]
    files = [PurePath(str(fact.get("data"))).name for fact in facts if fact.get("whole")]
    rows = f"all of {', '.join(files)}" if files else str(result["split"])
    return f"{rows}: {member}" if member else rows


def _parameters(result: Mapping[str, Any]) -> str:
    """Return which parameters were judged."""
    steps = result.get("average")
    several = isinstance(steps, Sequence) and len(steps) > 1
    step = result.get("step")
    of = f"mean of steps {', '.join(map(str, steps or ()))}" if several else "" if step is None else f"step {step}"
    return of + (", moving average" if result.get("parameters") == "ema" else "")


def _cell(value: Any, interval: Any) -> Cell:
    if not isinstance(value, int | float):
        return Cell(DASH)  # one that was not finite is null in the file
    bounds = [bound for bound in interval or () if isinstance(bound, int | float)]
    return Cell(metric(value), f"{metric(bounds[0])} to {metric(bounds[1])}" if len(bounds) == 2 else "")
