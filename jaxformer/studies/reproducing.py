"""A reproduction: every row of a paper's table, trained stage by stage with every seed, as sweeps of the same kind.

Its folder holds `study.json`, and for each stage and seed an ordinary study, `stages/STAGE/SEED`, whose points are the
table's rows (of a stage that all rows share one study, `stages/STAGE/shared`). Seeds come one after the other, so that
the first complete table is there after a share of the work.
"""

import datetime
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer import __version__, report
from jaxformer.devices import has_peers, is_first
from jaxformer.errors import UserError
from jaxformer.report import DONE, REPRODUCTION, SHARED, STAGES, STUDY, read_study_record, read_sweep
from jaxformer.runs import Display, git_revision, package_versions
from jaxformer.storage import write_json
from jaxformer.studies.ablations import filled
from jaxformer.studies.measuring import forward_seconds
from jaxformer.studies.reproduction import Key, Plan, Reproduction, planned, told
from jaxformer.studies.space import POINTS, SEED, Point
from jaxformer.studies.study import Experiment, Settings, Study, Trial, check_folder, differences, open_study
from jaxformer.studies.sweeping import absolute_spec, train_study
from jaxformer.studies.working import END, follow, tell

_OF_THE_FIRST_START = ("created", "command", "version", "git_revision", "packages", "trials", "measured")


def reproduce(
    asked: Reproduction, folder: Path, *, parallel: int = 1, processes: int = 1, quiet: bool = False,
    allow_change: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train what is left of a reproduction, write its page into `folder`, and return what was found (see
    `report.read_reproduction`).

    Where this process has peers, all of them call it. Raises UserError, before anything is trained, for what
    `planned` refuses and for a folder that holds anything else.
    """
    plan = planned(asked)
    display = Display(quiet=quiet)
    first = not has_peers() or is_first()
    if first:
        _open(plan, folder, allow_change)
        for line in told(plan):
            display.note(line)
    runs: dict[Key, Trial] = {}
    lost: dict[Key, str] = {}
    for seed in plan.seeds:
        for stage in plan.table.stages:
            made = _stage_study(plan, folder, stage, seed, runs, lost)
            if made is None:
                continue
            study, points = made
            rows = ", ".join(filter(None, points)) or "for all rows"
            number = len(study.space.points)
            display.note(f"seed {seed}, {stage}: {number} run{'s' * (number > 1)}, {rows}")
            _train(study, parallel, processes, quiet)
            _gather(plan, stage, seed, study, points, runs, lost)
            if first:
                _note(folder, trials=_trials(runs), lost=[[*key, why] for key, why in lost.items()])
    if first:
        _note(folder, measured=_measured(plan, runs))
    found = report.read_reproduction(folder)
    if first:
        report.write_reproduction_report(found, folder / "report")
    return found


def _train(study: Study, parallel: int, processes: int, quiet: bool) -> None:
    if has_peers() and not is_first():
        follow(study)
        return
    train_study(study, parallel, processes, quiet=quiet)
    tell(END)


def _stage_study(
    plan: Plan, folder: Path, stage: str, seed: int, runs: Mapping[Key, Trial], lost: dict[Key, str]
) -> tuple[Study, dict[str, Point]] | None:
    """Open the study of a stage with one seed; return it with the point of each row, which equal rows share. None where
    there is nothing to train."""
    table, shared = plan.table, plan.table.stages[stage].shared
    if shared and seed != plan.seeds[0]:
        return None
    points: dict[str, Point] = {}
    for row in table.runs_of(stage):
        if (row and row not in plan.rows) or (row, stage) in plan.refused:
            continue
        keys = {other: plan.key(other, row, seed) for other in table.links(row, stage)}
        if gone := [lost[key] for key in keys.values() if key in lost]:
            lost[plan.key(stage, row, seed)] = gone[0]
            continue
        places = {other: str(runs[key].folder) for other, key in keys.items()}
        points[row] = filled(table.own(row, stage) or {}, plan.asked.data, places)
    if not points:
        return None
    overrides = [f"{key}={value}" for key, value in filled(table.common(stage), plan.asked.data, {}).items()]
    experiment = Experiment(absolute_spec(table.stages[stage].config), tuple(overrides))
    distinct = {repr(sorted(point.items())): point for point in points.values()}
    space = {POINTS: list(distinct.values()), SEED: [plan.key(stage, next(iter(points)), seed)[2]]}
    # The checkpoints of runs that others start from stay.
    read = any(stage in table.links(row, other) for other in table.stages for row in table.runs_of(other))
    settings = Settings(metrics=tuple(table.metrics(stage)), keep="all" if read else "none")
    place = folder / STAGES / stage / (SHARED if shared else str(seed))
    # Whether the table may change was asked before.
    return open_study(place, experiment, space, settings, allow_change=True), points


def _gather(
    plan: Plan, stage: str, seed: int, study: Study, points: Mapping[str, Point], runs: dict[Key, Trial],
    lost: dict[Key, str],
) -> None:  # fmt: skip
    """Note where the runs of a stage lie, and why those that failed did."""
    records = {trial.path.name: trial.record for trial in read_sweep(study.folder).trials}
    for row, point in points.items():
        (trial,) = study.trials(point)
        key = plan.key(stage, row, seed)
        runs[key] = trial
        record = records[trial.folder.name]
        if record["state"] != DONE:
            lost[key] = f"{stage}: {record.get('error') or 'it did not end'}"


def _open(plan: Plan, folder: Path, allow_change: bool) -> None:
    """Write what is asked into the folder. Raises UserError for one that holds another table, or anything else."""
    record = _record(plan)
    if not (folder / STUDY).exists():
        check_folder(folder)
        write_json(folder / STUDY, record)
        return
    before = read_study_record(folder, REPRODUCTION)
    differing = differences(before, record)
    if differing and before["trials"] and not allow_change:
        raise UserError(
            f"{folder} holds another table ({'; '.join(differing)}); choose another --study, or go on with "
            "--allow-config-change: equal runs are kept, and the others trained anew"
        )
    kept = {} if differing else {name: before[name] for name in _OF_THE_FIRST_START}
    write_json(folder / STUDY, record | kept)


def _record(plan: Plan) -> dict[str, Any]:
    table = plan.table
    return {
        "kind": REPRODUCTION,
        "name": table.name,
        "spec": plan.asked.table,
        "scale": table.scale,
        "data": plan.asked.data,
        "table": dict(table.content),
        "rows": list(plan.rows),
        "seeds": list(plan.seeds),
        "refused": [[row, stage, why] for (row, stage), why in plan.refused.items()],
        "sizes": _sizes(plan),
        "trials": {},
        "lost": [],
        "measured": {},
        # What makes it another reproduction when it changes.
        "config": {
            "stages": table.content["stages"],
            "rows": {name: dict(row.changes) for name, row in table.rows.items()},
        },
        "settings": {"table": table.name, "scale": table.scale, "data": plan.asked.data},
        "space": {},
        "version": __version__,
        "git_revision": git_revision(),
        "packages": package_versions(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["jaxformer", *sys.argv[1:]]),
    }


def _sizes(plan: Plan) -> dict[str, dict[str, float]]:
    """Return of each row the parameters, tokens and FLOPs of its own first training."""
    sizes = {}
    for row in plan.rows:
        own = [
            stage
            for stage in plan.table.stages
            if row in plan.table.runs_of(stage) and (row, stage) not in plan.refused
        ]
        if own:
            sizes[row] = {"parameters": plan.parameters(own[0], row), **plan.work(own[0], row)._asdict()}
    return sizes


def _trials(runs: Mapping[Key, Trial]) -> dict[str, dict[str, dict[str, str]]]:
    """Return {stage: {row: {seed: the folder's name}}}."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for (stage, row, seed), trial in runs.items():
        found.setdefault(stage, {}).setdefault(row, {})[str(seed)] = trial.folder.name
    return found


def _note(folder: Path, **entries: Any) -> None:
    """Put entries into the reproduction's record."""
    write_json(folder / STUDY, read_study_record(folder, REPRODUCTION) | entries)


def _measured(plan: Plan, runs: Mapping[Key, Trial]) -> dict[str, dict[str, float]]:
    """Return {column: {row: value}} of the columns that are measured on the rows' models."""
    found: dict[str, dict[str, float]] = {}
    for name, column in plan.table.columns.items():
        if "measure" not in column:
            continue
        stage = column["stage"]
        there = {row: runs[key] for row in plan.rows if (key := plan.key(stage, row, plan.seeds[0])) in runs}
        if column["measure"] == "parameters":
            found[name] = {row: float(plan.parameters(stage, row)) for row in there}
        else:
            found[name] = forward_seconds({row: trial.config for row, trial in there.items()})
    return found
