"""What people read on the terminal: tables in one style, paragraphs, and one way to write each kind of number.

Terminals get lines that fit. Where the output is none, lines are for programs to cut: they are never wrapped, and
tables have room.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

DASH = "–"  # where there is no value
FILE_WIDTH = 120  # characters that a table may take where the output is no terminal


def table(title: str | None = None) -> Table:
    """Return an empty table in the style of all tables; the caller adds columns and rows."""
    return Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False,
        padding=(0, 1, 0, 0), header_style="dim",
    )  # fmt: skip


def table_width(columns: Iterable[Sequence[str]]) -> int:
    """Return the characters that a table of these columns, headings included, takes on one line."""
    widths = [max(map(len, column)) for column in columns]
    return sum(widths) + 2 * (len(widths) - 1)


def roomy(console: Console, least: int = FILE_WIDTH) -> Console:
    """Return the console, at least `least` characters wide where it is no terminal."""
    if not console.is_terminal:
        console.width = max(console.width, least)
    return console


def print_paragraph(console: Console, text: str | Text, style: str = "", indent: int = 0) -> None:
    """Print text as it is, without markup or highlighting: wrapped on a terminal, all lines of it `indent` characters
    in; elsewhere on one line."""
    text = Text(text, style) if isinstance(text, str) else text
    if console.is_terminal:
        console.print(Padding(text, (0, 0, 0, indent), expand=False) if indent else text)
    else:
        console.print(Text(" " * indent) + text, soft_wrap=True)


# Numbers.


def significant(value: float, digits: int = 3) -> str:
    """`value` with three significant digits, never in exponent form: 1,234 · 12.3 · 0.0123."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    value = float(f"{value:.{digits - 1}e}")  # first, so that 0.9998 becomes 1.00
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def count(value: float) -> str:
    """A large number in thousands, millions, …: 8.40 M."""
    for limit, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * limit:
            return significant(value / limit) + suffix
    return f"{value:,.0f}"


def model_size(parameters: float) -> str:
    """A number of parameters as models are named by it, in millions or billions: 4.39M, 124M, 1.56B."""
    factor, letter = (1e9, "B") if parameters >= 0.9995e9 else (1e6, "M")
    return f"{parameters / factor:.3g}{letter}"


def brief(value: float) -> str:
    """A value that changes beside a progress bar, in as few characters as may be: 12.3k, 3.21, 0.00012."""
    if not math.isfinite(value):
        return str(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.1f}{unit}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def metric(value: float) -> str:
    """A measured loss or metric, in four digits: 3.142, 0.0001235; a number of things as it is: 10000."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def metrics_line(metrics: Mapping[str, float]) -> str:
    """Metrics with their names on one line: eval/loss 3.142  eval/accuracy 0.5."""
    return "  ".join(f"{name} {metric(value)}" for name, value in metrics.items())


def estimate(value: float) -> str:
    """A computed quantity, in four digits: 3.142, 1,235, 6.022e+23."""
    return f"{value:,.4g}"


def gigabytes(size: float) -> str:
    """A number of bytes in units of 10^9: 80 GB."""
    return f"{estimate(size / 1e9)} GB"


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


def counted(left_out: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    """Return a line for everything that was left out or cut, given {part of the data: {what: {"count", "of"}}}: the sum
    over the parts, and each part's own where there are several."""
    lines = []
    for what in dict.fromkeys(what for part in left_out.values() for what in part):
        found = {name: part[what] for name, part in left_out.items() if what in part}
        number, of = (sum(counts[key] for counts in found.values()) for key in ("count", "of"))
        each = ", ".join(f"{counts['count']:,} of {counts['of']:,}" for counts in found.values())
        where = f"{' and '.join(found)}: " if any(found) else ""
        lines.append(f"{where}{number:,} of {of:,} {what}" + (f" ({each})" if len(found) > 1 else ""))
    return lines
