"""A paper's table of ablations, as `experiments/ablations` or a file of one's own gives it, read and checked.

`get_table(scale)` returns a dict (docs/reproducing.md describes it): stages are trainings that follow one another, rows
say how each of them differs, columns what is measured, and every row has what the paper printed. "@pretraining" as a
value is the run of that stage of the same row and seed, "{data}" in one the folder of `--data`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxformer.config import TABLES, Config, experiments, load, load_described
from jaxformer.errors import UserError, suggest

SCALES = ("smoke", "small", "paper")
MEASURES = ("parameters", "seconds")
LINK, DATA = "@", "{data}"
_NEEDED = ("question", "paper", "place", "base", "seeds", "stages", "columns", "rows")
_FIELDS = (*_NEEDED, "runs", "differences", "fits", "notes")
_ROW = ("paper", "set", "not_provided")
_COLUMN = ("stage", "metric", "mode", "scale", "paper", "mean_of", "measure", "missing")

Changes = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of every row and seed, or, if `shared`, one for all of them."""

    config: str
    changes: Changes
    shared: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """How a row differs from the base, stage by stage: None where it has no such stage."""

    paper: Mapping[str, float]
    changes: Mapping[str, Changes | None]
    not_provided: str = ""


@dataclasses.dataclass(frozen=True)
class AblationTable:
    """A table at one scale. `content` is the dict that it was read from."""

    name: str
    scale: str
    content: Mapping[str, Any]
    stages: Mapping[str, Stage]
    rows: Mapping[str, Row]

    @property
    def base(self) -> str:
        return str(self.content["base"])

    @property
    def columns(self) -> Mapping[str, Mapping[str, Any]]:
        columns: Mapping[str, Mapping[str, Any]] = self.content["columns"]
        return columns

    @property
    def seeds(self) -> int:
        return int(self.content["seeds"])

    @property
    def runs(self) -> list[str]:
        """The rows that are trained at this scale."""
        chosen = self.content.get("runs") or list(self.rows)
        return [name for name in self.rows if name in chosen and not self.rows[name].not_provided]

    @property
    def reads_data(self) -> bool:
        """Whether it reads files of the folder that `--data` names."""
        values = [value for stage in self.stages.values() for value in stage.changes.values()]
        values += [
            value for row in self.rows.values() for part in row.changes.values() for value in (part or {}).values()
        ]
        return any(DATA in str(value) for value in values)

    def common(self, stage: str) -> Changes:
        """Return what all runs of a stage change alike."""
        return {key: value for key, value in self.stages[stage].changes.items() if not is_link(value)}

    def own(self, row: str, stage: str) -> Changes | None:
        """Return what a row's run of a stage changes beside: the runs that it reads, and how the row differs; None
        where it has no such run."""
        links = {key: value for key, value in self.stages[stage].changes.items() if is_link(value)}
        differs = self.rows[row].changes.get(stage, {}) if row else {}
        return None if differs is None else links | differs

    def links(self, row: str, stage: str) -> list[str]:
        """Return the stages whose runs a row's run of `stage` starts from or reads."""
        values = (self.own(row, stage) or {}).values()
        return list(dict.fromkeys(value[1:].partition("/")[0] for value in values if is_link(value)))

    def runs_of(self, stage: str) -> list[str]:
        """Return the rows that have a run of a stage; [""] of a shared one."""
        if self.stages[stage].shared:
            return [""]
        return [name for name in self.runs if self.own(name, stage) is not None]

    def same_as(self, row: str, stage: str, rows: Sequence[str]) -> str:
        """Return the first of `rows` whose run of a stage is this row's, too: it changes the same, and starts from the
        same runs."""
        own, earlier = self.own(row, stage), [name for name in self.links(row, stage) if not self.stages[name].shared]
        for other in rows[: rows.index(row)]:
            if self.own(other, stage) == own and all(
                self.same_as(other, name, rows) == self.same_as(row, name, rows) for name in earlier
            ):
                return other
        return row

    def metrics(self, stage: str) -> list[str]:
        """Return what the runs of a stage are asked for: the metrics of its columns."""
        found = [f"{column['metric']}:{column['mode']}" for column in self.columns.values()
                 if column.get("stage") == stage and "metric" in column]  # fmt: skip
        return list(dict.fromkeys(found)) or ["eval/loss:min"]

    def words(self, row: str, stage: str, data: str = "", runs: Mapping[str, str] | None = None) -> list[str]:
        """Return the overrides of a row's run of a stage: `data` is the folder of --data, `runs` say where the runs of
        earlier stages lie (what is not there keeps its "@")."""
        changes = filled(self.common(stage) | (self.own(row, stage) or {}), data, runs or {})
        return [f"{key}={value}" for key, value in changes.items()]

    def config(self, row: str, stage: str, data: str = "") -> Config:
        """Return the resolved config of a row's run of a stage, its links not filled in. Raises UserError where it
        cannot be one."""
        return load(self.stages[stage].config, self.words(row, stage, data))


def is_link(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(LINK)


def filled(value: Any, data: str, runs: Mapping[str, str]) -> Any:
    """Return a value with the folders put in that its "{data}" and "@STAGE" stand for, also inside of lists."""
    if isinstance(value, Mapping):
        return {key: filled(entry, data, runs) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(filled(entry, data, runs) for entry in value)
    if is_link(value):
        stage, slash, rest = value[1:].partition("/")
        return f"{runs[stage]}{slash}{rest}" if stage in runs else value
    return value.replace(DATA, data) if isinstance(value, str) and data else value


def tables() -> list[str]:
    """Return the names of the package's tables."""
    return [name.removeprefix(TABLES) for name in experiments(tables=True)]


def read_table(spec: str, scale: str) -> AblationTable:
    """Read a table by its name in `experiments/ablations`, or of a file. Raises UserError for what is none."""
    if scale not in SCALES:
        raise UserError(f"--scale: '{scale}' is none{suggest(scale, SCALES)}; there are {', '.join(SCALES)}")
    if not spec.endswith(".py") and spec not in (known := tables()):
        raise UserError(f"no table '{spec}'{suggest(spec, known)}; `jaxformer reproduce` lists them, or give FILE.py")
    place = spec if spec.endswith(".py") else f"{TABLES}{spec}"
    content = load_described(f"{place}:{scale}", "get_table", spec)
    if not isinstance(content, Mapping):
        raise UserError(f"{spec}: get_table returns {type(content).__name__}, not a dict")
    _only(spec, "the table", content, _FIELDS)
    for field in _NEEDED:
        if field not in content:
            raise UserError(f"{spec}: the table has no '{field}'")
    stages = {name: _stage(spec, name, given) for name, given in content["stages"].items()}
    rows = {name: _row(spec, name, given, stages) for name, given in content["rows"].items()}
    name = spec.rpartition("/")[2].removesuffix(".py")
    table = AblationTable(name, scale, dict(content), stages, rows)
    _check(spec, table)
    return table


def _only(spec: str, what: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if not isinstance(given, Mapping):
        raise UserError(f"{spec}: {what} is {given!r}, not a dict")
    for field in given:
        if field not in known:
            raise UserError(f"{spec}: {what} has no '{field}'{suggest(field, known)}; there are {', '.join(known)}")


def _stage(spec: str, name: str, given: Mapping[str, Any]) -> Stage:
    _only(spec, f"the stage {name}", given, ("config", "set", "shared"))
    if "config" not in given:
        raise UserError(f"{spec}: the stage {name} has no 'config'")
    return Stage(str(given["config"]), dict(given.get("set") or {}), bool(given.get("shared", False)))


def _row(spec: str, name: str, given: Mapping[str, Any], stages: Mapping[str, Stage]) -> Row:
    _only(spec, f"the row {name}", given, _ROW)
    changes = dict(given.get("set") or {})
    for stage in changes:
        if stage not in stages:
            raise UserError(f"{spec}: the row {name} changes '{stage}'{suggest(stage, stages)}; no stage is called so")
        if stages[stage].shared:
            raise UserError(f"{spec}: the row {name} changes '{stage}', which all rows share")
    return Row(dict(given.get("paper") or {}), changes, str(given.get("not_provided", "")))


def _check(spec: str, table: AblationTable) -> None:
    """Raise UserError for a table whose parts do not fit together."""
    if table.base not in table.runs:
        raise UserError(f"{spec}: the base '{table.base}' is no row that runs{suggest(table.base, table.rows)}")
    for name in table.content.get("runs") or ():
        if name not in table.rows:
            raise UserError(f"{spec}: 'runs' names '{name}'{suggest(name, table.rows)}, which is no row")
    for name, column in table.columns.items():
        _only(spec, f"the column {name}", column, _COLUMN)
        kinds = [kind for kind in ("metric", "mean_of", "measure", "missing") if kind in column]
        if len(kinds) != 1:
            raise UserError(f"{spec}: the column {name} needs one of metric, mean_of, measure and missing")
        if kinds != ["missing"] and column.get("mode") not in ("min", "max"):
            raise UserError(f"{spec}: the column {name} needs a 'mode', min or max: which of two values is the better")
        if kinds[0] in ("metric", "measure") and column.get("stage") not in table.stages:
            raise UserError(f"{spec}: the column {name} names no stage that there is")
        if column.get("measure", MEASURES[0]) not in MEASURES:
            raise UserError(
                f"{spec}: the column {name} measures '{column['measure']}'; there are {', '.join(MEASURES)}"
            )
        for other in column.get("mean_of", ()):
            if "metric" not in table.columns.get(other, {}):
                raise UserError(f"{spec}: the column {name} is a mean over '{other}', which is no metric")
    order = list(table.stages)
    for stage in order:
        for row in table.runs_of(stage):
            for other in table.links(row, stage):
                earlier = order[: order.index(stage)]
                if other not in earlier:
                    raise UserError(
                        f"{spec}: '{LINK}{other}' in {stage}{suggest(other, earlier)}; no earlier stage is called so"
                    )
                if not table.stages[other].shared and (not row or table.own(row, other) is None):
                    raise UserError(f"{spec}: {row or stage} reads '{LINK}{other}', of which it has no run of its own")
