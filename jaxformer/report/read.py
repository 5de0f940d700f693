"""A run directory as the report sees it: what ran, its logged values, what it cost."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from jaxformer.checks import several
from jaxformer.errors import UserError
from jaxformer.footprint import Emissions, read_emissions
from jaxformer.storage import (
    absolute,
    files_below,
    is_remote,
    is_run,
    location,
    pure,
    read_metrics,
    read_record,
    store_errors,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run. `name` is how reports call it, `record` its config.json, `metrics` its logged lines in order."""

    path: Path
    name: str
    record: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    emissions: Emissions
    results: Mapping[str, Any]

    @property
    def supervision(self) -> str:
        """The name of the objective or task: runs that share it have comparable losses."""
        sections = self.record["config"]
        section = sections.get("task") or sections.get("objective") or {}
        return str(section.get("name", "training"))

    @property
    def is_supervised(self) -> bool:
        """Whether the run learned a labelled task."""
        return bool(self.record["config"].get("task"))

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Return (steps, values) of a logged key, without what is no finite number."""
        pairs = [(line["step"], line[key]) for line in self.metrics if _is_number(line.get(key)) and "step" in line]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def against(self, key: str, axis: str) -> tuple[list[float], list[float]]:
        """Return (values of `axis`, values of `key`) at the steps of `key`, interpolating `axis` between its own.

        Evaluations log no token count: theirs is read off the training lines around them.
        """
        steps, values = self.series(key)
        known, at = self.series(axis)
        if not known:
            return [], []
        return [_interpolate(step, [0.0, *known], [0.0, *at]) for step in steps], values

    def last(self, key: str) -> float | None:
        """The last logged value of a key, or None."""
        values = self.series(key)[1]
        return values[-1] if values else None

    def keys(self) -> list[str]:
        """Every key that was logged, in order of appearance."""
        return list(dict.fromkeys(key for line in self.metrics for key in line if key != "step"))


@store_errors()
def read_run(folder: Path | str) -> Run:
    """Read a run directory. Raises `UserError` when it is none, or when its config.json cannot be read.

    Of config.json only "config" must be there: what else is missing is not reported.

    A metrics line that a crash tore, and result files that are no JSON, are left out.
    """
    path = location(folder)
    record = read_record(path, needed=("config",))
    files = sorted((path / "results").glob("*.json"))
    results = {file.stem: _parse(file.read_bytes().decode(errors="replace")) for file in files}
    return Run(
        path=path,
        name=absolute(path).name,
        record=record,
        metrics=tuple(read_metrics(path)),
        emissions=read_emissions(path),
        results={name: result for name, result in results.items() if result is not None},
    )


@store_errors()
def find_runs(folders: Path | str | Sequence[Path | str]) -> list[Run]:
    """Read the given runs, and those below a given folder that is none itself, each once, under distinct names in
    natural order.

    Raises `UserError` for a folder without any run.
    """
    paths: dict[PurePath, Path] = {}
    for folder in map(location, several(folders)):
        if not is_run(folder) and folder.is_dir():
            below = list(_below(folder))
            if not below:
                raise UserError(
                    f"{folder} holds no run: no config.json in or below it; give folders that `train` wrote"
                )
        else:
            below = [folder]
        for path in below:
            paths.setdefault(pure(path), path)
    if not paths:
        raise UserError("no runs to report on; give one or more folders that `train` wrote")
    root = os.path.commonpath([path.parent for path in paths])
    runs = [
        dataclasses.replace(read_run(path), name=resolved.relative_to(root).as_posix())
        for resolved, path in paths.items()
    ]
    return sorted(runs, key=lambda run: _natural(run.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which labels-64 comes before labels-128."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _below(folder: Path) -> Iterator[Path]:
    """Every run below a folder, without looking into the runs themselves."""
    if is_remote(folder):
        yield from (folder / name[: -len("/config.json")] for name in files_below(folder) if "/config.json" in name)
        return
    for path, folders, files in os.walk(folder):
        if "config.json" in files:
            folders.clear()
            yield Path(path)


def _parse(text: str) -> Any:
    """The JSON value of `text`, or None if it is torn."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _interpolate(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Piecewise linear, kept flat beyond the ends; `xs` ascending."""
    for x0, x1, y0, y1 in zip(xs, xs[1:], ys, ys[1:], strict=False):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return ys[-1]
