"""The papers' tables, as data: every row at every scale resolves, and what it resolves to is a golden text."""

import difflib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from jaxformer.config import Config, flat, load
from jaxformer.studies.ablations import SCALES, AblationTable, read_table, tables
from jaxformer.studies.reproduction import files_of

GOLDEN = Path(__file__).parent / "golden" / "ablations"
UPDATE = "JAXFORMER_UPDATE_GOLDEN=1 python -m pytest tests/test_ablations.py"
UPDATES = bool(os.environ.get("JAXFORMER_UPDATE_GOLDEN"))
CASES = [(name, scale) for name in tables() for scale in SCALES]
DATA = "DATA"  # what --data names

each_table = pytest.mark.parametrize(("name", "scale"), CASES, ids=["-".join(case) for case in CASES])
_loaded: dict[tuple[str, ...], Mapping[str, object]] = {}


def values_of(spec: str, *words: str) -> Mapping[str, object]:
    """Return {key: value} of a resolved config."""
    if (spec, *words) not in _loaded:
        _loaded[spec, *words] = known(load(spec, words))
    return _loaded[spec, *words]


def known(config: Config) -> Mapping[str, object]:
    return flat(config.to_dict())


def differing(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return a line for each key that has another value now. Keys that are gone follow from a section's name."""
    return [f"{key} = {value!r}" for key, value in now.items() if key not in before or before[key] != value]


def text_of(table: AblationTable) -> str:
    """Return of each stage the digest of the config that it gives all rows, and how that differs from its experiment;
    then, row by row, how its runs differ from that. Stages in which a row differs alike stand together."""
    lines, bases = [], {}
    for stage, made in table.stages.items():
        words = [f"{key}={value}".replace("{data}", DATA) for key, value in made.changes.items()]
        bases[stage] = values_of(made.config, *words)
        text = "".join(f"{key} = {value!r}\n" for key, value in bases[stage].items())
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        lines.append(f"{stage}: {made.config}{', which all rows share' if made.shared else ''} ({digest})")
        lines += [f"    {line}" for line in differing(values_of(made.config), bases[stage])]
    for row, described in table.rows.items():
        lines.append(f"{row}:{f' not provided: {described.not_provided}' if described.not_provided else ''}")
        alike: dict[tuple[str, ...], list[str]] = {}
        for stage in table.stages if not described.not_provided else ():
            if table.stages[stage].shared:
                continue
            there = table.own(row, stage) is not None
            found = differing(bases[stage], known(table.config(row, stage, DATA))) if there else ["no such run"]
            alike.setdefault(tuple(found), []).append(stage)
        for found, stages in alike.items():
            lines += [f"  {', '.join(stages)}:", *(f"    {line}" for line in found)] if found else []
    return "\n".join(lines) + "\n"


@each_table
def test_every_row_resolves_to_the_golden_text(name: str, scale: str) -> None:
    text, path = text_of(read_table(name, scale)), GOLDEN / f"{name}-{scale}.txt"
    if UPDATES:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    golden = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = difflib.unified_diff(golden.splitlines(), text.splitlines(), "golden", "now", lineterm="", n=0)
    assert text == golden, "\n".join([f"{name} at {scale} is another; if that is meant: {UPDATE}", *lines])


def test_no_golden_text_is_left_of_a_table_that_has_gone() -> None:
    stale = {path.name for path in GOLDEN.glob("*.txt")} - {f"{name}-{scale}.txt" for name, scale in CASES}
    for name in stale if UPDATES else ():
        (GOLDEN / name).unlink()
    assert UPDATES or not stale


@each_table
def test_a_shared_stage_resolves_as_well(name: str, scale: str) -> None:
    table = read_table(name, scale)
    for stage, made in table.stages.items():
        if made.shared:
            assert table.config("", stage, DATA).training.num_steps > 0


@each_table
def test_a_table_asks_for_what_its_scale_has(name: str, scale: str) -> None:
    """The files of --data are read at `small` alone; a question is one sentence."""
    table = read_table(name, scale)
    assert table.reads_data == (scale == "small")
    assert table.content["question"].endswith("?") and table.content["question"].count("?") == 1
    assert table.seeds == {"smoke": 2, "small": 3}.get(scale, table.seeds)


@each_table
def test_a_column_that_names_the_papers_stands_beside_its_number(name: str, scale: str) -> None:
    table = read_table(name, scale)
    printed = {column for row in table.rows.values() for column in row.paper}
    for column, described in table.columns.items():
        assert described.get("paper", column) in printed or "paper" not in described, column


@each_table
def test_the_runs_of_a_row_log_what_their_columns_ask_for(name: str, scale: str) -> None:
    """A metric that a task does not give would be missed after all of the training."""
    table = read_table(name, scale)
    for column, described in table.columns.items():
        if not described.get("metric", "").startswith("eval/"):
            continue
        row = table.runs_of(described["stage"])[0]
        parts = table.config(row, described["stage"], DATA).supervision.parts
        title, _, metric = described["metric"].removeprefix("eval/").rpartition("/")
        given = [
            metric for part in parts if part.title == title or len(parts) == 1 for metric in part.objective.metrics
        ]
        assert metric in ("loss", "perplexity", "token_accuracy", *given), column


def test_the_page_names_every_file_that_small_reads() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reproducing.md").read_text(encoding="utf-8")
    for name in tables():
        for file in files_of(read_table(name, "small")):
            assert f"`{file}`" in page, f"{name} reads {file}"
