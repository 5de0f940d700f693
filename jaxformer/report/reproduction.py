"""A reproduction of a paper's table: its folder, or the file that was made of it, as one dict.

The folder holds `study.json` and, for every stage and seed, an ordinary study in stages/STAGE/SEED, whose points are
the table's rows (stages/STAGE/shared where all rows share one run). `read_reproduction` makes of it:

    kind                "reproduction"
    name, scale, data   the table, its scale, and the name of the folder that --data gave ("" where it reads none)
    question, paper, place, base, differences, notes, columns, fits
                        as the table has them
    command, created, version, git_revision, packages, device
                        how, when, with what and on what it was made; {} for a device that no run has told yet
    seeds               [0, 1, 2]
    rows                {name: {"paper": {column of the paper: number}, "set", "state" (one of STATES), "reason",
                        "values": {column: [number or None of every seed]}, already times the column's "scale";
                        what is measured on a model stands with the first seed alone,
                        "costs": {name: number, by the names of COSTS}, "size": {"parameters", "tokens", "flops"}}}
    costs               of all runs together, by the names of COSTS; shared runs count once
    trials              {stage: {row ("" of a shared run): [the run's folder or None of every seed]}}
    meaning             [paragraphs] that a person writes into the file
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError
from jaxformer.report.study import (
    COSTS,
    DONE,
    FAILED,
    REPRODUCTION,
    RUNNING,
    STUDY,
    WAITING,
    Sweep,
    SweepTrial,
    read_study_record,
    read_sweep,
)
from jaxformer.storage import is_run, read_record

CANNOT_RUN, OTHER_SCALE, NOT_PROVIDED = "cannot run", "not at this scale", "not provided"
STATES = (DONE, RUNNING, WAITING, FAILED, CANNOT_RUN, OTHER_SCALE, NOT_PROVIDED)
STAGES, SHARED = "stages", "shared"
_RECORD = (
    "name", "spec", "scale", "data", "table", "rows", "seeds", "refused", "sizes", "trials", "lost", "measured",
    "command", "created", "version", "git_revision", "packages",
)  # fmt: skip
_TABLE = ("question", "paper", "place", "base", "stages", "columns", "rows")
_RESULT = (
    "name", "spec", "scale", "data", "question", "paper", "place", "base", "differences", "notes", "columns", "fits",
    "command", "created", "version", "git_revision", "packages", "device", "seeds", "rows", "costs", "trials",
    "meaning",
)  # fmt: skip
_ROW = ("paper", "set", "state", "reason", "values", "costs", "size")

Result = Mapping[str, Any]
Runs = dict[tuple[str, str, int], SweepTrial]  # by stage, row and seed; row "" and the first seed of a shared one


def read_reproduction(folder: Path) -> dict[str, Any]:
    """Read a reproduction's folder, while it is made or afterwards. Raises UserError for a folder that holds none, or a
    damaged one."""
    record = read_study_record(folder, REPRODUCTION)
    _complete(folder / STUDY, record, _RECORD, "restore it, or choose another --study")
    table = record["table"]
    _complete(folder / STUDY, table, _TABLE, "restore it, or choose another --study")
    runs = _runs(folder, record)
    return {
        "kind": REPRODUCTION,
        **{name: record[name] for name in ("name", "spec", "scale")},
        "data": Path(record["data"]).name,
        **{name: table[name] for name in ("question", "paper", "place", "base")},
        "differences": bool(table.get("differences")),
        "notes": list(table.get("notes") or ()),
        "columns": table["columns"],
        "fits": list(table.get("fits") or ()),
        **{name: record[name] for name in ("command", "created", "version", "git_revision", "packages")},
        "device": _device(runs),
        "seeds": list(record["seeds"]),
        "rows": {row: _row(record, row, runs) for row in table["rows"]},
        "costs": _costs(runs.values()),
        "trials": _trials(record, runs),
        "meaning": [],
    }


def read_result(path: Path) -> dict[str, Any]:
    """Read the file of a reproduction (docs/results/NAME.json). Raises UserError for what is none, or damaged."""
    hint = "give one that `jaxformer reproduce` wrote, such as docs/results/NAME.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}; {hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not the file of a reproduction; {hint}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); mend that, or {hint}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or {hint}") from error
    if not isinstance(result, dict) or result.get("kind") != REPRODUCTION:
        raise UserError(f"{path} holds no reproduction of a paper's table; {hint}")
    _complete(path, result, _RESULT, f"restore it, or {hint}")
    for name, row in result["rows"].items():
        _complete(path, row, _ROW, f"restore it, or {hint}", f"the row {name}")
    return result


def _complete(path: Path, content: Any, needed: Iterable[str], advice: str, what: str = "it") -> None:
    """Raise UserError where something that is needed is missing."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is damaged ({what} is no table of names and values); {advice}")
    for name in needed:
        if name not in content:
            raise UserError(f"{path} is damaged ({what} has no '{name}'); {advice}")


def _is_shared(record: Result, stage: str) -> bool:
    return bool(record["table"]["stages"][stage].get("shared"))


def _own_stages(record: Result, row: str) -> list[str]:
    """Return the stages of which a row has runs of its own."""
    changes = record["table"]["rows"][row].get("set") or {}
    return [
        stage
        for stage in record["table"]["stages"]
        if not _is_shared(record, stage) and changes.get(stage, {}) is not None
    ]


def _runs(folder: Path, record: Result) -> Runs:
    """Return the runs that have begun."""
    found: Runs = {}
    first = record["seeds"][0]
    for stage in record["table"]["stages"]:
        shared = _is_shared(record, stage)
        for seed in [first] if shared else record["seeds"]:
            place = folder / STAGES / stage / (SHARED if shared else str(seed))
            if not (place / STUDY).exists():
                continue
            sweep = read_sweep(place)
            rows = [""] if shared else [row for row in record["rows"] if stage in _own_stages(record, row)]
            for row in rows:
                told = record["trials"].get(stage, {}).get(row, {})
                name = next(iter(told.values()), None) if shared else told.get(str(seed))
                trial = _trial(record, sweep, stage, row, seed, name)
                if trial is not None:
                    found[stage, row, seed] = trial
    return found


def _trial(record: Result, sweep: Sweep, stage: str, row: str, seed: int, name: str | None) -> SweepTrial | None:
    """Return a row's run of a stage: by its name, or, while the stage is being trained and nothing names it, by the
    values that its point has."""
    if name is not None:
        return next((trial for trial in sweep.trials if trial.path.name == name), None)
    without = {(lost, number) for at, lost, number, _ in record["lost"] if at == stage}
    without |= {(refused, seed) for refused, at, _ in record["refused"] if at == stage}
    rows = [other for other in record["rows"] if stage in _own_stages(record, other) and (other, seed) not in without]
    points = sweep.record["space"]["points"]
    if len(points) == 1 and row == "":
        return next(iter(sweep.trials), None)
    if row not in rows or len(rows) != len(points):
        return None
    point = points[rows.index(row)]
    return next((trial for trial in sweep.trials if _is_at(trial, point)), None)


def _is_at(trial: SweepTrial, point: Mapping[str, Any]) -> bool:
    """Whether a run is one of a point: its config may hold a value in another type than the point has it."""
    values = trial.values
    return values.keys() == point.keys() and all(
        values[key] == point[key] or str(values[key]) == str(point[key]) for key in point
    )


def _row(record: Result, name: str, runs: Runs) -> dict[str, Any]:
    given = record["table"]["rows"][name]
    state, reason = _state(record, name, runs)
    return {
        "paper": dict(given.get("paper") or {}),
        "set": dict(given.get("set") or {}),
        "state": state,
        "reason": reason,
        "values": _values(record, name, runs),
        "costs": _costs(trial for (_, row, _), trial in runs.items() if row == name),
        "size": dict(record["sizes"].get(name) or {}),
    }


def _state(record: Result, row: str, runs: Runs) -> tuple[str, str]:
    """Return how far a row is, and why it is no further."""
    table = record["table"]
    if table["rows"][row].get("not_provided"):
        return NOT_PROVIDED, str(table["rows"][row]["not_provided"])
    if row not in (table.get("runs") or table["rows"]):
        return OTHER_SCALE, ""
    if row not in record["rows"]:
        return OTHER_SCALE, "left out by --rows"
    refused = {stage: why for refused, stage, why in record["refused"] if refused == row}
    left = [stage for stage in _own_stages(record, row) if stage not in refused]
    judging = {column["stage"] for column in table["columns"].values() if "metric" in column}
    if not left or (refused and judging and not judging & {*left}):
        return CANNOT_RUN, "; ".join(dict.fromkeys(refused.values()))
    keys = [(stage, row, seed) for stage in left for seed in record["seeds"]]
    if failures := _failures(record, row, keys, runs):
        return FAILED, failures
    reason = "; ".join(dict.fromkeys(refused.values()))
    states = [runs[key].state if key in runs else WAITING for key in keys]
    if all(state == DONE for state in states):
        return DONE, reason
    return (WAITING if all(state == WAITING for state in states) else RUNNING), reason


def _failures(record: Result, row: str, keys: Iterable[tuple[str, str, int]], runs: Runs) -> str:
    """Return why runs of a row failed, each reason with its seeds; "" where none did. What failed first in a seed is
    why its later stages are missing."""
    found = {seed: why for _, lost, seed, why in reversed(record["lost"]) if lost == row}
    for key in keys:
        if key in runs and runs[key].state == FAILED:
            found.setdefault(key[2], f"{key[0]}: {runs[key].record['error']}")
    by_reason: dict[str, list[int]] = {}
    for seed in sorted(found):
        by_reason.setdefault(found[seed], []).append(seed)
    return "; ".join(
        f"{why} (seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))})" for why, seeds in by_reason.items()
    )


def _values(record: Result, row: str, runs: Runs) -> dict[str, list[float | None]]:
    """Return what each seed's runs gave for every column, means over columns last."""
    columns, seeds = record["table"]["columns"], record["seeds"]
    found: dict[str, list[float | None]] = {}
    for name, column in columns.items():
        scale = float(column.get("scale", 1))
        if "metric" in column:
            shared = _is_shared(record, column["stage"])
            keys = [(column["stage"], "" if shared else row, seed) for seed in seeds]
            found[name] = [_number(runs.get(key), column["metric"], scale) for key in keys]
        elif "measure" in column:
            value = record["measured"].get(name, {}).get(row)
            found[name] = [None if value is None else value * scale, *[None] * (len(seeds) - 1)]
        else:
            found[name] = [None] * len(seeds)
    for name, column in columns.items():
        for index in range(len(seeds)) if "mean_of" in column else ():
            each = [value for other in column["mean_of"] if (value := found[other][index]) is not None]
            found[name][index] = statistics.fmean(each) if len(each) == len(column["mean_of"]) else None
    return found


def _number(trial: SweepTrial | None, metric: str, scale: float) -> float | None:
    """Return a metric of a run that is done; None where it is not, or gave no finite number."""
    value = trial.metrics.get(metric) if trial is not None and trial.state == DONE else None
    return float(value) * scale if value is not None and math.isfinite(value) else None


def _costs(trials: Iterable[SweepTrial]) -> dict[str, float]:
    """Return what runs cost together; rows that are trained alike may have a run in common, which counts once."""
    each = [trial.costs for trial in {trial.path: trial for trial in trials}.values()]
    return {name: math.fsum(costs[name] for costs in each) for name in COSTS}


def _device(runs: Runs) -> dict[str, Any]:
    """Return the device that the first run was trained on; {} before one has told it."""
    for trial in runs.values():
        if is_run(trial.path):
            return dict(read_record(trial.path, needed=("config",)).get("device") or {})
    return {}


def _trials(record: Result, runs: Runs) -> dict[str, dict[str, list[str | None]]]:
    found: dict[str, dict[str, list[str | None]]] = {}
    for stage, row, _ in runs:
        each = [runs.get((stage, row, seed)) for seed in record["seeds"]]
        found.setdefault(stage, {})[row] = [None if trial is None else trial.path.name for trial in each]
    return found
