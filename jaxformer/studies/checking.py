"""A published result put to the test: one of its rows is trained again, and set beside what the file states."""

import math
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scipy import stats

from jaxformer.errors import UserError, suggest
from jaxformer.report import read_result
from jaxformer.runs import Display
from jaxformer.studies.ablations import AblationTable, read_table
from jaxformer.studies.reproducing import reproduce
from jaxformer.studies.reproduction import Reproduction

_ROUNDING = 1e-6  # relative: what two builds of the same libraries may differ by in a number that does not scatter
_CONFIDENCE = 0.975  # two-sided 95 %


def check_result(
    path: Path, *, row: str = "", seed: int | None = None, data: str = "", folder: Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Train one row of a result again with one of its seeds, both drawn where they are not given, in `folder` (None: a
    temporary one), and return what was stated and what was found, with what it means in "lines".

    A number passes that is as near to the stated one of that seed as two runs of one row are: within t x sqrt(2) x the
    standard deviation over seeds, pooled over the rows of the file. Raises UserError for a file that does not agree
    with its table or with itself, for a row or seed that it has not, and for a number that does not pass.
    """
    result = read_result(path)
    table = read_table(result["spec"], result["scale"])
    _agree(path, result, table)
    row, seed = _chosen(path, result, row, seed)
    asked = Reproduction(table=result["spec"], scale=result["scale"], data=data, rows=(row,), seeds=(seed,),
                         shared_seed=result["seeds"][0])  # fmt: skip
    where = "" if not data else f" --data={data}"
    again = f"jaxformer reproduce check {path} --row='{row}' --seed={seed}{where}"
    Display(quiet=quiet).note(f"{result['name']}: '{row}' with seed {seed} is trained again ({again})")
    with tempfile.TemporaryDirectory() as temporary:
        found = reproduce(asked, folder or Path(temporary) / result["name"], quiet=quiet)
    index, compared, outside = result["seeds"].index(seed), {}, []
    for name in [name for name, column in table.columns.items() if "metric" in column]:
        stated, new = result["rows"][row]["values"][name][index], found["rows"][row]["values"][name][0]
        if stated is None:
            continue
        allowed = _allowed(result, name, stated)
        compared[name] = {"stated": stated, "found": new, "allowed": allowed}
        if new is None or not abs(new - stated) <= allowed:
            outside.append(f"{name} is stated as {stated:.6g} and is {'nothing' if new is None else f'{new:.6g}'} "
                           f"(allowed: ± {allowed:.3g})")  # fmt: skip
    if outside:
        raise UserError(
            f"{path}: '{row}' with seed {seed} does not come out as stated: {'; '.join(outside)}; again: {again}"
        )
    if not compared:
        raise UserError(f"{path}: '{row}' states nothing for seed {seed}; choose another --row or --seed")
    same = _same_trials(table, result, found, row, seed)
    lines = [
        f"{name}: stated {one['stated']:.6g}, found {one['found']:.6g} (allowed: ± {one['allowed']:.3g})"
        for name, one in compared.items()
    ]
    lines.append(f"'{row}' with seed {seed} comes out as stated" + (", from the same configs and data" if same else
                 ", although configs or data are not the same"))  # fmt: skip
    return {"row": row, "seed": seed, "columns": compared, "same_trials": same, "lines": lines}


def _agree(path: Path, result: Mapping[str, Any], table: AblationTable) -> None:
    """Raise UserError for a file that says something else than its table, or states what cannot be."""
    if missing := [name for name in result["rows"] if name not in table.rows]:
        raise UserError(f"{path}: the table {table.name} has no row '{missing[0]}'; the file or the table was changed")
    for name, row in table.rows.items():
        stated = result["rows"].get(name)
        if stated is None:
            raise UserError(f"{path}: the row '{name}' of the table {table.name} is not there; a result has all rows")
        for column, number in row.paper.items():
            if stated["paper"].get(column) != number:
                raise UserError(
                    f"{path}: '{name}' states {stated['paper'].get(column)} as the paper's {column}, and the table "
                    f"has {number}; the file or the table was changed"
                )
        for column, values in stated["values"].items():
            if len(values) != len(result["seeds"]):
                raise UserError(
                    f"{path}: '{name}' has {len(values)} values of {column} for {len(result['seeds'])} seeds"
                )
            if not all(value is None or math.isfinite(value) for value in values):
                raise UserError(f"{path}: '{name}' has a value of {column} that is no number")


def _chosen(path: Path, result: Mapping[str, Any], row: str, seed: int | None) -> tuple[str, int]:
    trained = [name for name, one in result["rows"].items()
               if any(value is not None for values in one["values"].values() for value in values)]  # fmt: skip
    if not trained:
        raise UserError(f"{path}: no row of it has a value")
    if row and row not in trained:
        raise UserError(
            f"--row: {path} states nothing of '{row}'{suggest(row, trained)}; there are {', '.join(trained)}"
        )
    if seed is not None and seed not in result["seeds"]:
        raise UserError(f"--seed: {path} has the seeds {', '.join(map(str, result['seeds']))}")
    # Drawn anew at each check, so that nobody knows beforehand what will be looked at.
    draw = random.SystemRandom()
    return row or draw.choice(trained), draw.choice(result["seeds"]) if seed is None else seed


def _allowed(result: Mapping[str, Any], column: str, stated: float) -> float:
    """Return how far two runs of one row may lie apart in a column."""
    squares, freedom = 0.0, 0
    for row in result["rows"].values():
        values = [value for value in row["values"].get(column, ()) if value is not None]
        if len(values) > 1:
            mean = math.fsum(values) / len(values)
            squares += math.fsum((value - mean) ** 2 for value in values)
            freedom += len(values) - 1
    rounding = _ROUNDING * abs(stated)
    if not freedom:
        return rounding
    return max(rounding, float(stats.t.ppf(_CONFIDENCE, freedom)) * math.sqrt(2 * squares / freedom))


def _same_trials(
    table: AblationTable, result: Mapping[str, Any], found: Mapping[str, Any], row: str, seed: int
) -> bool:
    """Whether the row's trainings that start from no other have the identities that the file states, which equal
    configs and data have. What starts from a checkpoint is known by its files, in which times stand."""
    index = result["seeds"].index(seed)
    for stage, rows in found["trials"].items():
        for name, trials in rows.items():
            stated = result["trials"].get(stage, {}).get(name, [])
            if not table.links(row, stage) and trials[0] not in (stated[index : index + 1] if name else stated):
                return False
    return True
