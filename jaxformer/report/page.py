"""The page: one HTML file with everything in it, and the PNG of every figure beside it."""

import contextlib
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jaxformer.errors import UserError, disk_errors
from jaxformer.footprint import overlap
from jaxformer.report.evaluations import evaluations_of
from jaxformer.report.plots import Plot, metric_name, plots_of
from jaxformer.report.read import Run, find_runs, read_run
from jaxformer.report.reproduction import read_result
from jaxformer.report.reproduction_markdown import DIFFERENCES, again, explained, result_markdown
from jaxformer.report.reproduction_plots import reproduction_plots
from jaxformer.report.reproduction_tables import differences_table, values_table
from jaxformer.report.reproduction_words import (
    check_command,
    command,
    cost_line,
    facts,
    headline,
    title,
)
from jaxformer.report.reproduction_words import sentences as sentences_of
from jaxformer.report.study import DONE, TRIALS, Sweep
from jaxformer.report.summary import columns, energy_scopes, summary_rows
from jaxformer.report.sweep import cost_line as sweep_cost_line
from jaxformer.report.sweep import failures, headings_and_rows, number, progress_line, with_spread
from jaxformer.report.sweep_plots import sweep_plots
from jaxformer.report.transfer import ARMS
from jaxformer.report.transfer_plots import transfer_plots
from jaxformer.report.transfer_words import rows_of, sentences
from jaxformer.storage import write_json, write_lines
from jaxformer.tables import DASH, count, counted, duration, energy, mass, metric, significant

PAGE = "report.html"


def write_report(folders: Path | str | Sequence[Path | str], out: Path) -> Path:
    """Write `out`/report.html on the runs in (or below) `folders`, with PNG plots beside it; return the page's path.

    Raises `UserError` for a folder that holds no run, or when `out` cannot be written.
    """
    runs = find_runs(folders)
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} training runs"
    return _write(runs, out, title, study=None)


def write_transfer_report(study: Mapping[str, Any], out: Path) -> Path:
    """Write `out`/report.html on a transfer (see `jaxformer.report.transfer`) and the runs it was made of.

    Raises `UserError` where nothing of it has begun.
    """
    runs = [dataclasses.replace(read_run(path), name=name) for name, path in study["runs"].items()]
    if not study["points"]:
        raise UserError(f"no fine-tuning of the transfer has begun: {'; '.join(study['unfinished'])}")
    return _write(runs, out, f"What pretraining brings: {study['name']}", study)


def write_sweep_report(sweep: Sweep, out: Path, command: str = "") -> Path:
    """Write `out`/report.html on a sweep and its runs; `command` trains the best point again.

    Raises `UserError` for a sweep none of whose runs has begun.
    """
    runs = find_runs([sweep.path / TRIALS])
    return _write(runs, out, f"Sweep: {sweep.path.name}", None, _of_sweep(sweep, out, command))


def write_reproduction_report(result: Mapping[str, Any], out: Path) -> Path:
    """Write `out`/report.html on a reproduction (see `jaxformer.report.reproduction`) and return its path; beside it
    what docs/results takes: NAME.json, the result itself, NAME.md, and NAME.png where there is something to draw.

    Paragraphs of "meaning" that a person wrote into a NAME.json that is there stay.
    """
    name = result["name"]
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    result = {**result, "meaning": result["meaning"] or _meaning(out / f"{name}.json")}
    plots = reproduction_plots(result, out)
    picture = f"{name}.png" if differences_table(result)[1] else ""
    write_json(out / f"{name}.json", result)
    write_lines(out / f"{name}.md", [result_markdown(result, picture).rstrip("\n")])
    headings, rows = differences_table(result)
    about = {
        "lead": headline(result),
        "question": result["question"],
        "meaning": result["meaning"],
        "tables": [
            ("Our values beside the paper's", *values_table(result), explained(result)),
            *([(f"Differences to {result['base']}", headings, rows, DIFFERENCES)] if rows else []),
        ],
        "sentences": sentences_of(result),
        "notes": result["notes"],
        "commands": [command(result), check_command(result)],
        "again": again(result),
        "facts": f"Made on {facts(result)}.",
        "packages": ", ".join(f"{package} {version}" for package, version in result["packages"].items()),
        "cost": cost_line(result),
        "tiles": _tiles_of(result),
        "plots": plots,
    }
    return _write([], out, title(result), None, reproduction=about)


def _meaning(path: Path) -> list[str]:
    """Return the paragraphs of an earlier file of the same reproduction, [] where there is none that can be read."""
    with contextlib.suppress(UserError):
        return list(read_result(path)["meaning"])
    return []


def _tiles_of(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    costs, rows = result["costs"], [row for row in result["rows"].values()]
    tiles = [(f"{sum(row['state'] == DONE for row in rows)} of {len(rows)}", "rows of the paper's table done")]
    tiles.append((str(len(result["seeds"])), "seed" if len(result["seeds"]) == 1 else "seeds"))
    if costs["hours"]:
        tiles += [(duration(costs["hours"] * 3600), "time of all runs"), (energy(costs["energy_kwh"]), "energy")]
        tiles.append((mass(costs["emissions_kg"]), "CO₂eq"))
    return tiles


def _of_sweep(sweep: Sweep, out: Path, command: str) -> dict[str, Any]:
    """What the page says of a sweep, before it comes to its runs."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    headings, rows = headings_and_rows(sweep)
    best = sweep.best
    lead = "No point is finished yet."
    if best is not None:
        values = ", ".join(f"{key} {number(value)}" for key, value in best.values.items()) or "the config as it is"
        lead = f"Best: {values}, with {', '.join(f'{name} {with_spread(best, name)}' for name in sweep.metrics)}."
    return {
        "lead": lead,
        "words": [
            f"{progress_line(sweep)[:1].upper()}{progress_line(sweep)[1:]}.",
            sweep_cost_line(sweep),
            *failures(sweep),
        ],
        "command": command,
        "headings": headings,
        "rows": rows,
        "plots": sweep_plots(sweep, out),
    }


def _write(
    runs: Sequence[Run], out: Path, title: str, study: Mapping[str, Any] | None,
    sweep: Mapping[str, Any] | None = None, reproduction: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        page = out / PAGE
        page.write_text(_render(runs, out, title, study, sweep, reproduction), encoding="utf-8")
    return page


def _render(
    runs: Sequence[Run], out: Path, title: str, study: Mapping[str, Any] | None, sweep: Mapping[str, Any] | None,
    reproduction: Mapping[str, Any] | None,
) -> str:  # fmt: skip
    # Everything from a run's files is escaped; only our own SVG goes in as it is.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda plot: Markup(plot.svg)
    now = datetime.datetime.now()
    rows = summary_rows(runs)
    transfer = None
    if study is not None:
        headings, cells, width = rows_of(study)
        transfer = {
            "words": sentences(study),
            "arms": list(ARMS.values()),
            "headings": headings,
            "width": width,
            "edges": [2, 2 + width, 2 + 2 * width],  # columns that begin a block: one per arm, and the gain
            "rows": cells,
            "split": study["split"],
            "unfinished": study["unfinished"],
            "plots": transfer_plots(study, out),
        }
    return environment.get_template("page.html").render(
        title=title,
        written=f"{now.day} {now:%B %Y, %H:%M}",
        tiles=_tiles(runs, rows) if reproduction is None else reproduction["tiles"],
        columns=[column for column in columns(rows) if column.heading not in ("Experiment", "Model")],
        origins=[" · ".join(str(row[key]) for key in ("experiment", "family", "preset") if row[key]) for row in rows],
        evaluations=[found for found in map(evaluations_of, runs) if found is not None],
        groups=_groups(runs, out),
        details=[_detail(run, row) for run, row in zip(runs, rows, strict=True)],
        measured=_how_measured(runs),
        transfer=transfer,
        sweep=sweep,
        reproduction=reproduction,
    )


def _tiles(runs: Sequence[Run], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The sums over all runs that stand at the top of the page: (value, what it is)."""

    def total(key: str) -> float | None:
        known = [row[key] for row in rows if row[key] is not None]
        return sum(known) if known else None

    counted_twice = bool(overlap([run.emissions for run in runs]).twice)
    tiles = [(str(len(runs)), "run" if len(runs) == 1 else "runs")]
    for key, show, label in (
        ("tokens", count, "tokens trained on"),
        ("seconds", duration, "training time"),
        ("energy_kwh", energy, "energy, some counted twice" if counted_twice else "energy"),
        ("co2eq_kg", mass, "CO₂eq"),
    ):
        value = total(key)
        if value is not None:
            tiles.append((show(value), label))
    return tiles


def _groups(runs: Sequence[Run], out: Path) -> list[tuple[str, list[Plot]]]:
    """(heading, plots) per objective or task: only runs that share it have comparable losses."""
    groups: dict[tuple[bool, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.is_supervised, run.supervision), []).append(run)
    return [
        (f"{'Fine-tuning' if is_supervised else 'Pretraining'}: {name.replace('_', ' ')}", plots_of(members, out, name))
        for (is_supervised, name), members in groups.items()
    ]


def _detail(run: Run, row: Mapping[str, Any]) -> dict[str, Any]:
    """What is folded away under a run's name: command, versions, stored results."""
    record = run.record
    packages = record.get("packages") or {}
    facts = [
        ("Folder", row["path"]),
        ("Started", record.get("created")),
        ("Device", row["device"]),
        ("Revision", record.get("git_revision")),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
        ("Left out or cut", "; ".join(counted(record.get("left_out") or {}))),
        ("Starts", str(run.emissions.segments) if run.emissions.segments > 1 else ""),
    ]
    results = [(name, _scalars(result)) for name, result in run.results.items()]
    return {
        "name": run.name,
        "command": row["command"] or DASH,
        "facts": [(name, value) for name, value in facts if value],
        "results": [(name, scalars) for name, scalars in results if scalars],
    }


def _scalars(result: Any) -> list[tuple[str, str]]:
    """The numbers at the top of a result file and its metrics, behind what was judged; lists such as predictions are
    left to the file."""
    if not isinstance(result, Mapping):
        return []
    metrics = result.get("metrics")
    every = {**result, **metrics} if isinstance(metrics, Mapping) else result
    numbers = {name: value for name, value in every.items() if isinstance(value, int | float)}
    judged = [fact for fact in result.get("data") or () if isinstance(fact, Mapping)]
    return [
        ("Data", f"{fact.get('data')} ({fact.get('rows', DASH)} rows, fingerprint {fact.get('fingerprint')})")
        for fact in judged
    ] + [
        (metric_name(name), str(value) if isinstance(value, int) else metric(value)) for name, value in numbers.items()
    ]


def _how_measured(runs: Sequence[Run]) -> list[str]:
    """Where the energy figures come from, in sentences; what a reader must know before comparing them."""
    measured = [run.emissions for run in runs if run.emissions.segments]
    if not measured:
        return ["No energy was measured for these runs."]
    total = sum(emissions.energy_kwh for emissions in measured)
    parts = {
        "CPU": sum(emissions.cpu_kwh for emissions in measured),
        "GPU": sum(emissions.gpu_kwh for emissions in measured),
        "memory": sum(emissions.ram_kwh for emissions in measured),
    }
    seconds = sum(emissions.seconds for emissions in measured)
    grams = 1000 * sum(emissions.emissions_kg for emissions in measured) / total if total else 0.0
    shares = ", ".join(f"{name} {100 * part / total:.0f} %" for name, part in parts.items() if total and part)
    countries = sorted({emissions.country or "the world average" for emissions in measured})
    lines = [
        f"Energy is what CodeCarbon recorded, start-up and evaluation included: {energy(total)} over "
        f"{duration(seconds)}, {significant(total * 3.6e6 / seconds if seconds else 0.0)} W on average ({shares}).",
        *energy_scopes(runs),
        f"CO₂eq assumes {significant(grams)} g per kWh ({', '.join(countries)}).",
        "Where a machine has no energy counters, CodeCarbon models the power of CPU and memory from nominal values and "
        "load: such figures compare runs on one machine, not machines with each other.",
    ]
    missing = len(runs) - len(measured)
    unreadable = sum(run.emissions.unreadable for run in runs)
    if missing:
        lines.append(f"{missing} of {len(runs)} runs recorded no energy and are not in the sums.")
    if unreadable:
        lines.append(
            f"{unreadable} emission file{'s' if unreadable > 1 else ''} could not be read and is not in the sums."
        )
    return lines
