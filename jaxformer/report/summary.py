"""One row per run: as plain numbers for `--json`, as text for the terminal and the page."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jaxformer.report.read import Run

DASH = "–"
# Columns that a narrow terminal does without, the least telling first.
EXPENDABLE = ("Experiment", "Model", "Steps", "Parameters", "Tokens", "F1", "Train loss", "Time")


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
        "energy_kwh": measured.energy_kwh if measured else None,
        "co2eq_kg": measured.emissions_kg if measured else None,
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
    table = [
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
        (f"Energy ({energy_unit})", scaled("energy_kwh", energy_factor), True),
        (f"CO₂eq ({mass_unit})", scaled("co2eq_kg", mass_factor), True),
    ]
    return [
        Column(heading, tuple(cells), is_number)
        for heading, cells, is_number in table
        if heading == "Run" or any(cell != DASH for cell in cells)
    ]


def print_summary(runs: Sequence[Run], console: Console | None = None) -> None:
    """Print the table of runs. Where a terminal is too narrow for it, the columns that matter least are left out."""
    console = console or Console()
    shown = columns(summary_rows(runs))
    left_out: list[str] = []
    if not console.is_terminal:
        console.width = max(console.width, _width(shown))
    else:
        for heading in EXPENDABLE:
            if _width(shown) > console.width:
                left_out += [column.heading for column in shown if column.heading == heading]
                shown = [column for column in shown if column.heading != heading]
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in shown:
        table.add_column(
            column.heading, justify="right" if column.is_number else "left", no_wrap=column.heading != "Run"
        )
    for cells in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*cells)
    console.print(table)
    if left_out:
        console.print(f"Not shown for want of width: {', '.join(left_out)}.", style="dim", highlight=False)


def _width(table: Sequence[Column]) -> int:
    """Characters that a table takes on one line."""
    return sum(max(map(len, (column.heading, *column.cells))) + 3 for column in table)


def energy_scale(values_kwh: Iterable[float | None]) -> tuple[float, str]:
    """Return (factor, unit) that makes the largest of some energies in kWh readable."""
    largest = max((value for value in values_kwh if value is not None), default=0.0)
    return (1.0, "kWh") if largest >= 1.0 else (1e3, "Wh") if largest >= 1e-4 else (1e6, "mWh")


def mass_scale(values_kg: Iterable[float | None]) -> tuple[float, str]:
    """Return (factor, unit) that makes the largest of some masses in kg readable."""
    largest = max((value for value in values_kg if value is not None), default=0.0)
    return (1.0, "kg") if largest >= 1.0 else (1e3, "g") if largest >= 1e-4 else (1e6, "mg")


def energy(kwh: float | None) -> str:
    """An energy with its own unit, such as "12.3 Wh"."""
    factor, unit = energy_scale([kwh])
    return DASH if kwh is None else f"{significant(kwh * factor)} {unit}"


def mass(kg: float | None) -> str:
    """A mass with its own unit, such as "4.56 g"."""
    factor, unit = mass_scale([kg])
    return DASH if kg is None else f"{significant(kg * factor)} {unit}"


def significant(value: float, digits: int = 3) -> str:
    """`value` with three significant digits, never in exponent form: 1,234 · 12.3 · 0.0123."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    value = float(f"{value:.{digits - 1}e}")  # first, so that 0.9998 becomes 1.00
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def count(value: float) -> str:
    """A large number in thousands, millions, …: 8.4 M."""
    for limit, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * limit:
            return significant(value / limit) + suffix
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """A time span in its two largest units: 42 s · 3 min 20 s · 5 h 07 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"
