"""A reproduction: every row of a paper's table, trained stage by stage with every seed, as sweeps of the same kind.

Its folder holds `study.json`, and for each stage and seed an ordinary study, `stages/STAGE/SEED`, whose points are the
table's rows (of a stage that all rows share one study, `stages/STAGE/shared`). Seeds come one after the other, so that
the first complete table is there after a share of the work.
"""

import dataclasses
import datetime
import functools
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxformer import __version__, report
from jaxformer.config import load
from jaxformer.devices import has_peers, is_first
from jaxformer.errors import UserError, suggest
from jaxformer.planning import Size, size_of
from jaxformer.report import DONE, REPRODUCTION, STUDY, read_study_record, read_sweep
from jaxformer.runs import Display, contents, git_revision, package_versions
from jaxformer.storage import write_json
from jaxformer.studies.ablations import SCALES, Table, filled, read_table
from jaxformer.studies.measuring import forward_seconds
from jaxformer.studies.space import POINTS, SEED
from jaxformer.studies.study import Experiment, Settings, Study, Trial, check_folder, differences, open_study
from jaxformer.studies.sweeping import absolute_spec, train_study
from jaxformer.studies.working import END, follow, tell
from jaxformer.tables import duration, estimate

STAGES, SHARED = "stages", "shared"
# FLOPs a second of training that two cores of a laptop reach with models as small as these (docs/reproducing.md).
CORES_RATE = 2.5e10

Key = tuple[str, str, int]  # stage, row ("" of what all rows share), seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What is reproduced: a table by its name or file, at a scale; `rows` () are those of the scale, `seeds` () as many
    as it asks for, from 0 on. Stages that all rows share take `shared_seed`."""

    table: str
    scale: str = SCALES[0]
    data: str = ""
    rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    shared_seed: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A reproduction whose table is read: its rows and seeds, and why some runs (row, stage) cannot be."""

    asked: Reproduction
    table: Table
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    refused: Mapping[tuple[str, str], str]

    def runs(self) -> Iterator[tuple[str, str, int]]:
        """Yield (stage, row, seed) of all runs, in the order in which they are trained; row "" of a shared one."""
        for seed in self.seeds:
            for stage in self.table.stages:
                for row in self.table.runs_of(stage):
                    shared = self.table.stages[stage].shared
                    if (shared and seed == self.seeds[0]) or self.trains(row, stage):
                        if (row, stage) not in self.refused:
                            yield stage, row, self.asked.shared_seed if shared else seed

    def trains(self, row: str, stage: str) -> bool:
        """Whether a row has a run of a stage that is not another row's, too."""
        return row in self.rows and self.table.same_as(row, stage, self.rows) == row

    def key(self, stage: str, row: str, seed: int) -> Key:
        """Return (stage, row, seed) of the run that a row with a seed has of a stage."""
        if self.table.stages[stage].shared:
            return stage, "", self.asked.shared_seed
        return stage, self.table.same_as(row, stage, self.rows), seed

    def keys(self) -> Iterator[tuple[Key, Key]]:
        """Yield of every row, stage and seed the (stage, row, seed), and that of the run that it has there."""
        for seed in self.seeds:
            for stage in self.table.stages:
                for row in self.table.runs_of(stage):
                    if not row or row in self.rows:
                        yield (stage, row, seed if row else self.asked.shared_seed), self.key(stage, row, seed)


def planned(asked: Reproduction) -> Plan:
    """Read what is asked. Raises UserError for what is no table, row or seed, for data that is not named, and where no
    row can be trained."""
    table = read_table(asked.table, asked.scale)
    if table.reads_data and not asked.data:
        raise UserError(
            f"--data: {table.name} at {table.scale} reads {', '.join(_files(table))}; name the folder that holds them"
        )
    if asked.data and not table.reads_data:
        raise UserError(f"--data: {table.name} at {table.scale} reads no folder of yours; leave it out")
    for row in asked.rows:
        if row not in table.runs:
            reason = table.rows[row].not_provided if row in table.rows else ""
            why = f" ({reason})" if reason else "" if row in table.rows else suggest(row, table.runs)
            raise UserError(f"--rows: '{row}' is none that {table.name} trains at {table.scale}{why}; there are {', '.join(table.runs)}")
    chosen = asked.rows or tuple(table.runs)
    rows = tuple(name for name in table.runs if name in chosen or name == table.base)
    plan = Plan(asked, table, rows, asked.seeds or tuple(range(table.seeds)), _refused(table, rows, asked.data))
    if not list(plan.runs()):
        raise UserError(f"{table.name}: nothing can be trained: {next(iter(plan.refused.values()))}")
    return plan


def _files(table: Table) -> list[str]:
    """Return the files and folders of --data that a table reads."""
    found = {}
    for stage in table.stages.values():
        for value in stage.changes.values():
            if isinstance(value, str) and value.startswith("{data}/"):
                found[value.removeprefix("{data}/")] = None
    return list(found)


def _refused(table: Table, rows: tuple[str, ...], data: str) -> dict[tuple[str, str], str]:
    """Return {(row, stage): why} of the runs that cannot be, for their config, their data, or an earlier stage."""
    refused: dict[tuple[str, str], str] = {}
    for stage in table.stages:
        for row in table.runs_of(stage):
            if row and row not in rows:
                continue
            earlier = [other for other in table.links(row, stage)
                       if (row if not table.stages[other].shared else "", other) in refused]  # fmt: skip
            if earlier:
                key = ("" if table.stages[earlier[0]].shared else row, earlier[0])
                refused[row, stage] = refused[key]
                continue
            try:
                contents(table.config(row, stage, data))
            except (UserError, OSError) as error:
                refused[row, stage] = f"{stage}: {error}"
    return refused


def size_in(plan: Plan) -> Size:
    """Return the parameters of the largest model, and the tokens and FLOPs of all runs together."""
    each = [_size(plan, stage, row) for stage, row, _ in plan.runs()]
    return Size(max(one.parameters for one in each), sum(one.tokens for one in each), sum(one.flops for one in each))


@functools.lru_cache(maxsize=None)
def _size_of(spec: str, words: tuple[str, ...]) -> Size:
    return size_of(load(spec, words))


def _size(plan: Plan, stage: str, row: str) -> Size:
    table = plan.table
    return _size_of(table.stages[stage].config, tuple(table.words(row, stage, plan.asked.data)))


def told(plan: Plan) -> list[str]:
    """Return what a person should know before a reproduction starts: runs, cost, and what cannot be trained."""
    table, runs = plan.table, list(plan.runs())
    work = size_in(plan)
    lines = [
        f"{table.name} ({table.content['paper']}, {table.content['place']}) at {table.scale}: {len(plan.rows)} rows, "
        f"{len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)}, {len(runs)} runs, {estimate(work.flops)} FLOPs"
        + ("" if table.scale == "paper" else f", about {duration(work.flops / CORES_RATE)} on two cores")
    ]
    for why in dict.fromkeys(plan.refused.values()):
        rows = [row or stage for (row, stage), reason in plan.refused.items() if reason == why]
        lines.append(f"not trained: {', '.join(dict.fromkeys(rows))}; {why}")
    return lines


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
            study, rows = made
            number = len(rows)
            display.note(f"seed {seed}, {stage}: {number} run{'s' * (number > 1)}, {', '.join(filter(None, rows)) or 'which all rows share'}")
            _train(study, parallel, processes, quiet)
            _gather(plan, stage, seed, study, rows, runs, lost)
            if first:
                gone = [[*key, lost[run]] for key, run in plan.keys() if run in lost]
                _note(folder, trials=_trials(plan, runs), lost=gone)
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
    plan: Plan, folder: Path, stage: str, seed: int, runs: Mapping[Key, Trial],
    lost: dict[Key, str],
) -> tuple[Study, list[str]] | None:  # fmt: skip
    """Open the study of a stage with one seed; return it with its rows, in the order of its points. None where there is
    nothing to train."""
    table, shared = plan.table, plan.table.stages[stage].shared
    if shared and seed != plan.seeds[0]:
        return None
    points: dict[str, dict[str, Any]] = {}
    for row in table.runs_of(stage):
        if (row and not plan.trains(row, stage)) or (row, stage) in plan.refused:
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
    space = {POINTS: list(points.values()), SEED: [plan.key(stage, next(iter(points)), seed)[2]]}
    # The checkpoints of runs that others start from stay.
    read = any(stage in table.links(row, other) for other in table.stages for row in table.runs_of(other))
    settings = Settings(metrics=tuple(table.metrics(stage)), keep="all" if read else "none")
    place = folder / STAGES / stage / (SHARED if shared else str(seed))
    # Whether the table may change was asked before.
    return open_study(place, experiment, space, settings, allow_change=True), list(points)


def _gather(plan: Plan, stage: str, seed: int, study: Study, rows: list[str], runs: dict[Key, Trial], lost: dict[Key, str]) -> None:
    """Note where the runs of a stage lie, and why those that failed did."""
    found = {trial.path.name: trial for trial in read_sweep(study.folder).trials}
    for row, point in zip(rows, study.space.points, strict=True):
        (trial,) = study.trials(point)
        key = plan.key(stage, row, seed)
        runs[key] = trial
        record = found[trial.folder.name].record if trial.folder.name in found else {}
        if record.get("state") != DONE:
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
    kept = {} if differing else {name: before[name] for name in ("created", "command", "trials", "measured")}
    write_json(folder / STUDY, record | kept)


def _record(plan: Plan) -> dict[str, Any]:
    table = plan.table
    return {
        "kind": REPRODUCTION,
        "name": table.name,
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
        "config": {"stages": table.content["stages"], "rows": {name: dict(row.changes) for name, row in table.rows.items()}},
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
        own = [stage for stage in plan.table.stages if row in plan.table.runs_of(stage) and (row, stage) not in plan.refused]
        if own:
            sizes[row] = _size(plan, own[0], row)._asdict()
    return sizes


def _trials(plan: Plan, runs: Mapping[Key, Trial]) -> dict[str, dict[str, dict[str, str]]]:
    """Return {stage: {row: {seed: the folder's name}}}; rows that differ later have one run in common."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for (stage, row, seed), run in plan.keys():
        if run in runs:
            found.setdefault(stage, {}).setdefault(row, {})[str(seed)] = runs[run].folder.name
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
        having = [row for row in plan.rows if row in plan.table.runs_of(stage) or plan.table.stages[stage].shared]
        there = {row: runs[key] for row in having if (key := plan.key(stage, row, plan.seeds[0])) in runs}
        if column["measure"] == "parameters":
            found[name] = {row: float(_size(plan, stage, row).parameters) for row in there}
        else:
            found[name] = forward_seconds({row: trial.config for row, trial in there.items()})
    return found
