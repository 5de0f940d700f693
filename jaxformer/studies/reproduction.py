"""What a reproduction will train, and what that costs: a paper's table at a scale, its rows and seeds."""

import dataclasses
import functools
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from jaxformer.config import load
from jaxformer.errors import UserError, suggest
from jaxformer.footprint import chip_named
from jaxformer.planning import Work, num_parameters, work_of
from jaxformer.runs import contents
from jaxformer.studies.ablations import SCALES, AblationTable, read_table, tables
from jaxformer.tables import duration, estimate

# FLOPs a second that two cores reach in training models as small as these, and seconds in which a run starts.
CORES_RATE, START_SECONDS = 6e10, 8.0
CHIP, UTILISATION = "a100", 0.4  # what the cost of the paper's scale is told in

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
    table: AblationTable
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    refused: Mapping[tuple[str, str], str]

    def runs(self) -> Iterator[tuple[str, str, int]]:
        """Yield (stage, row, seed) of all runs, in the order in which they are trained; row "" of a shared one. Rows
        that do not differ so far have one in common."""
        for seed in self.seeds:
            for stage in self.table.stages:
                for row in self.table.runs_of(stage):
                    shared = self.table.stages[stage].shared
                    own = row in self.rows and self.table.same_as(row, stage, self.rows) == row
                    if (own or (shared and seed == self.seeds[0])) and (row, stage) not in self.refused:
                        yield stage, row, self.asked.shared_seed if shared else seed

    def key(self, stage: str, row: str, seed: int) -> Key:
        """Return (stage, row, seed) of the run that a row with a seed has of a stage."""
        return (stage, "", self.asked.shared_seed) if self.table.stages[stage].shared else (stage, row, seed)

    def work(self, stage: str, row: str) -> Work:
        """Return the tokens and FLOPs of a run."""
        return _work_of(self.table.stages[stage].config, tuple(self.table.words(row, stage, self.asked.data)))

    def parameters(self, stage: str, row: str) -> int:
        """Return the parameters of a run's model."""
        return num_parameters(self.table.config(row, stage, self.asked.data))


def planned(asked: Reproduction) -> Plan:
    """Read what is asked. Raises UserError for what is no table, row or seed, for data that is not named, and where no
    row can be trained."""
    table = read_table(asked.table, asked.scale)
    if table.reads_data and not asked.data:
        raise UserError(
            f"--data: {table.name} at {table.scale} reads {', '.join(files_of(table))}; name the folder that holds them"
        )
    if asked.data and not table.reads_data:
        raise UserError(f"--data: {table.name} at {table.scale} reads no folder of yours; leave it out")
    for row in asked.rows:
        if row not in table.runs:
            reason = table.rows[row].not_provided if row in table.rows else ""
            why = f" ({reason})" if reason else "" if row in table.rows else suggest(row, table.runs)
            there = ", ".join(table.runs)
            raise UserError(
                f"--rows: '{row}' is none that {table.name} trains at {table.scale}{why}; there are {there}"
            )
    chosen = asked.rows or tuple(table.runs)
    rows = tuple(name for name in table.runs if name in chosen)
    plan = Plan(asked, table, rows, asked.seeds or tuple(range(table.seeds)), _refused(table, rows, asked.data))
    if not list(plan.runs()):
        raise UserError(f"{table.name}: nothing can be trained: {next(iter(plan.refused.values()))}")
    return plan


def files_of(table: AblationTable) -> list[str]:
    """Return the files and folders of --data that a table reads."""
    found: dict[str, None] = {}
    for stage in table.stages.values():
        for value in stage.changes.values():
            if isinstance(value, str) and value.startswith("{data}/"):
                found[value.removeprefix("{data}/")] = None
    return list(found)


def _refused(table: AblationTable, rows: tuple[str, ...], data: str) -> dict[tuple[str, str], str]:
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


def work_in(plan: Plan) -> Work:
    """Return the tokens and FLOPs of all runs together."""
    each = [plan.work(stage, row) for stage, row, _ in plan.runs()]
    return Work(sum(one.tokens for one in each), sum(one.flops for one in each))


def seconds_on_cores(plan: Plan) -> float:
    """Return about how long all runs take on two cores, the starts and compilations counted."""
    return work_in(plan).flops / CORES_RATE + START_SECONDS * len(list(plan.runs()))


@functools.cache
def _work_of(spec: str, words: tuple[str, ...]) -> Work:
    return work_of(load(spec, words))


def commands(plan: Plan) -> list[str]:
    """Return what each row's run of each stage is, as a command; "@STAGE" stands for the run of an earlier one."""
    found: dict[tuple[str, str], str] = {}
    seeds = " ".join(map(str, plan.seeds))
    for stage, row, _ in plan.runs():
        words = [f"--config.{word}" for word in plan.table.words(row, stage, plan.asked.data)]
        command = shlex.join(["jaxformer", "train", f"--config={plan.table.stages[stage].config}", *words])
        own = str(plan.asked.shared_seed) if plan.table.stages[stage].shared else seeds
        found[stage, row] = f"{command}  # {' of '.join(filter(None, (stage, row)))}, seed {own}"
    return list(found.values())


def listed() -> list[dict[str, Any]]:
    """Return what every table of the package asks, and its runs and cost at every scale."""
    found = []
    for name in tables():
        scales = {}
        for scale in SCALES:
            table = read_table(name, scale)
            plan = Plan(Reproduction(table=name, scale=scale), table, tuple(table.runs), tuple(range(table.seeds)), {})
            work = work_in(plan)
            scales[scale] = {
                "runs": len(list(plan.runs())),
                **work._asdict(),
                "seconds": seconds_on_cores(plan),
                "device_hours": work.flops / (chip_named(CHIP).peak * UTILISATION) / 3600,
            }
        content = table.content
        found.append({"name": name, "question": content["question"], "paper": content["paper"],
                      "place": content["place"], "rows": len(table.rows), "scales": scales})  # fmt: skip
    return found


def told(plan: Plan) -> list[str]:
    """Return what a person should know before a reproduction starts: runs, cost, and what cannot be trained."""
    table, runs = plan.table, list(plan.runs())
    lines = [
        f"{table.name} ({table.content['paper']}, {table.content['place']}) at {table.scale}: {len(plan.rows)} rows, "
        f"{len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)}, {len(runs)} runs, {estimate(work_in(plan).flops)} FLOPs"
        + ("" if table.scale == "paper" else f", about {duration(seconds_on_cores(plan))} on two cores")
    ]
    for why in dict.fromkeys(plan.refused.values()):
        rows = [row or stage for (row, stage), reason in plan.refused.items() if reason == why]
        lines.append(f"not trained: {', '.join(dict.fromkeys(rows))}; {why}")
    return lines
