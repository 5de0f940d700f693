"""One row per run: as plain numbers for `--json`, as text for the terminal and the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console

from jaxformer.footprint import overlap
from jaxformer.report.read import Run
from jaxformer.tables import (
    DASH,
    count,
    duration,
    energy_scale,
    mass_scale,
    percent,
    print_paragraph,
    roomy,
    significant,
    table,
    table_width,
)

# Columns that a narrow terminal does without, the least telling first.
EXPENDABLE = ("Experiment", "Model", "Steps", "Parameters", "Tokens", "F1", "Train loss", "Time", "Rows judged")


def summary_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row of plain values per run; None where a run has no such value.

    `train_loss` is the mean of the last tenth of the logged training losses, `eval_loss` the best of all evaluations
    and the other metrics those of the last one; `seconds` is training time, energy (kWh) and CO2eq (kg) are those of
    the whole run with its start-up and evaluations.
    """
    return [_row(run) for run in runs]


def _row(run: Run) -> dict[str, Any]:
    model = run.record["config"].get("model") or {}
    device = run.record.get("device") or {}
    steps, train_losses = run.series("train/loss")
    tail = train_losses[-max(1, len(train_losses) // 10) :]
    eval_losses = run.series("eval/loss")[1]
    measured = run.emissions if run.emissions.segments else None
    seconds = run.last("train/seconds")
    return {
        "run": run.name,
        "experiment": run.record.get("name"),
        "supervision": run.supervision,
        "family": model.get("family"),
        "preset": model.get("preset"),
        "parameters": run.record.get("num_parameters"),
        "tokens": run.last("train/tokens"),
        "steps": int(max(steps)) if steps else None,
        "seconds": seconds if seconds is not None else (measured.seconds if measured else None),
        "train_loss": sum(tail) / len(tail) if tail else None,
        "eval_loss": min(eval_losses, default=None),
        "accuracy": run.last("eval/accuracy"),
        "f1": run.last("eval/f1"),
        "eval_examples": run.last("eval/examples"),
        "energy_kwh": measured.energy_kwh if measured else None,
        "co2eq_kg": measured.emissions_kg if measured else None,
        "tracking_mode": measured.tracking_mode if measured else None,
        "device": " ".join(str(device[key]) for key in ("count", "kind") if key in device) or None,
        "command": run.record.get("command"),
        "path": str(run.path),
    }


@dataclass(frozen=True)
class Column:
    """A column of the table of runs: its heading (with the unit) and its cells as text."""

    heading: str
    cells: tuple[str, ...]
    is_number: bool = True


def columns(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """Return the table of runs as text, one unit per column; columns without any value are left out."""
    energy_factor, energy_unit = energy_scale(row["energy_kwh"] for row in rows)
    mass_factor, mass_unit = mass_scale(row["co2eq_kg"] for row in rows)

    def scaled(key: str, factor: float) -> list[str]:
        return [DASH if row[key] is None else significant(row[key] * factor) for row in rows]

    def text(key: str, show: Any) -> list[str]:
        return [DASH if row[key] is None else show(row[key]) for row in rows]

    models = [" · ".join(str(row[key]) for key in ("family", "preset") if row[key]) or DASH for row in rows]
    shown = [
        ("Run", text("run", str), False),
        ("Experiment", text("experiment", str), False),
        ("Model", models, False),
        ("Parameters", text("parameters", count), True),
        ("Tokens", text("tokens", count), True),
        ("Steps", text("steps", "{:,}".format), True),
        ("Time", text("seconds", duration), True),
        ("Train loss", text("train_loss", "{:.3f}".format), True),
        ("Best eval loss", text("eval_loss", "{:.3f}".format), True),
        ("Accuracy", text("accuracy", percent), True),
        ("F1", text("f1", percent), True),
        ("Rows judged", text("eval_examples", "{:,.0f}".format), True),
        (f"Energy ({energy_unit})", scaled("energy_kwh", energy_factor), True),
        (f"CO₂eq ({mass_unit})", scaled("co2eq_kg", mass_factor), True),
    ]
    return [
        Column(heading, tuple(cells), is_number)
        for heading, cells, is_number in shown
        if heading == "Run" or any(cell != DASH for cell in cells)
    ]


def energy_scopes(runs: Sequence[Run]) -> list[str]:
    """Return, in sentences, what the energy of runs is of, and what their sum counts twice; none where there is none.

    That is known as far as the times in the emission files tell it.
    """
    measured = [run.emissions for run in runs if run.emissions.segments]
    lines = []
    for mode in sorted({emissions.tracking_mode for emissions in measured}):
        of_mode = [emissions for emissions in measured if emissions.tracking_mode == mode]
        who = "" if len(of_mode) == len(measured) else f" of {len(of_mode)} of {len(measured)} runs"
        said = "two tracking modes" if mode == "mixed" else f"footprint.tracking_mode={mode}"
        lines.append(f"Energy{who} is {of_mode[0].scope} ({said}).")
    found = overlap(measured)
    if found.shared:
        lines.append(
            f"{found.shared_runs} runs ran at once on one machine, for {duration(found.shared)}, and shared it: what "
            "they are charged together is no more than the machine used."
        )
    if found.twice:
        lines.append(
            f"{found.twice_runs} runs were measured at once on one machine, for {duration(found.twice)}, at least one "
            "of them for the whole machine: that energy is counted twice in sums over these runs."
        )
    return lines


def print_summary(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print the table of runs. Where a terminal is too narrow for it, the columns that matter least are left out."""
    kept = columns(summary_rows(runs))
    console = roomy(console or Console(), _width(kept))
    left_out: list[str] = []
    for heading in EXPENDABLE:
        if _width(kept) > console.width:
            left_out += [column.heading for column in kept if column.heading == heading]
            kept = [column for column in kept if column.heading != heading]
    shown = table()
    for column in kept:
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        shown.add_column(column.heading, justify=justify, no_wrap=column.heading != "Run")
    for cells in zip(*(column.cells for column in kept), strict=True):
        shown.add_row(*cells)
    console.print(shown)
    for line in energy_scopes(runs):
        print_paragraph(console, line, "dim")
    if left_out:
        text = f"Not shown, because the terminal is too narrow: {', '.join(left_out)}."
        print_paragraph(console, text, "dim")


def _width(shown: Sequence[Column]) -> int:
    return table_width((column.heading, *column.cells) for column in shown)
