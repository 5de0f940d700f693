"""A reproduction in tables: our values beside the paper's, for the terminal, the page and docs/results."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from jaxformer.report.reproduction import OTHER_SCALE, Result
from jaxformer.report.reproduction_statistics import (
    Difference,
    deviation,
    difference,
    judged_columns,
    mean,
    paper_column,
    paper_difference,
    paper_number,
    shown_columns,
    values_of,
)
from jaxformer.report.reproduction_words import cost_line, departures, headline, orders_of, sentences, share, title
from jaxformer.report.study import DONE
from jaxformer.tables import DASH, count, energy_scale, print_paragraph, roomy, significant, table, table_width

Table = tuple[list[str], list[list[str]]]  # headings, rows of cells
WORDS = ("Row", "State", "Column", "Agreement")  # headings of columns that hold words
DIFFERENCES = (
    "Means of the differences between runs of the same seed, with 95 % intervals by Student's t. A difference shows if "
    "its interval leaves out zero. Beside one that does not stands how many seeds would show it in four of five cases, "
    "if it is as large as it seems."
)
COSTS = (
    "Size, tokens and FLOPs are those of a single run of a row's first training; hours and energy those of all its "
    "runs together, without what all rows share."
)
_SIZES = {"parameters": "Parameters", "tokens": "Tokens", "flops": "FLOPs"}
ORDERS = (
    "How well our order of the rows agrees with the paper's: Spearman's and Kendall's rank correlations are 1 for the "
    "same order and -1 for the reverse. Chance is what all orders of the rows give: between which values 95 % of their "
    "Spearman's lie, and how many are at least as high as ours. An agreement is shown if these are 5 % or fewer, which "
    "takes at least four rows."
)

# Numbers.


def _decimals(result: Result, column: str) -> int:
    """Return with how many decimals the values of a column are told: three digits, more where seeds differ by less."""
    every = [values_of(result, column, row) for row in result["rows"]]
    largest = max((abs(value) for values in every for value in values), default=0.0)
    digits = 2 - math.floor(math.log10(largest)) if largest else 2
    spreads = sorted(spread for values in every if (spread := deviation(values)))
    if spreads:
        digits = max(digits, -math.floor(math.log10(spreads[len(spreads) // 2])))
    return min(max(digits, 0), 5)


def number(result: Result, column: str, value: float, sign: str = "") -> str:
    """A value of a column; with `sign` "+" a difference of two."""
    if result["columns"][column].get("measure") == "parameters" and abs(value) >= 1e4:
        return f"{'+' * (sign == '+' and value >= 0)}{count(value)}"
    return f"{value:{sign},.{_decimals(result, column)}f}"


def paper_text(result: Result, column: str, value: float | None, sign: str = "") -> str:
    """A number of the paper, or a difference of two, with as many decimals as its column has there."""
    if value is None:
        return DASH
    printed = [paper_number(result, column, row) for row in result["rows"]]
    decimals = max((len(f"{each:.10g}".partition(".")[2]) for each in printed if each is not None), default=0)
    return f"{value:{sign},.{decimals}f}"


def with_spread(result: Result, column: str, row: str) -> str:
    """The mean over seeds and their standard deviation; in parentheses how many seeds there are where some lack."""
    values = values_of(result, column, row)
    if not values:
        return DASH
    spread = deviation(values)
    text = number(result, column, mean(values)) + ("" if spread is None else f" ± {number(result, column, spread)}")
    every = "measure" in result["columns"][column] or len(values) == len(result["seeds"])
    return text if every else f"{text} ({len(values)} of {len(result['seeds'])} seeds)"


def interval(result: Result, column: str, found: Difference | None) -> str:
    """A difference to the base with its 95 % interval: -1.2 (-2.0 to -0.4)."""
    if found is None:
        return DASH
    text = number(result, column, found.mean, "+")
    if found.low is None or found.high is None:
        return text
    return f"{text} ({number(result, column, found.low, '+')} to {number(result, column, found.high, '+')})"


# Tables.


def _beside(result: Result, column: str) -> str:
    """The heading of the paper's column beside one of ours."""
    name = paper_column(result, column)
    return "paper" if name == column else f"paper: {name}"


def has_paper(result: Result, column: str) -> bool:
    return any(paper_number(result, column, row) is not None for row in result["rows"])


def values_table(result: Result, columns: Sequence[str] | None = None, *, why: bool = True) -> Table:
    """Return our values beside the paper's, a row for every row of the paper's table; those without values say why."""
    columns = shown_columns(result) if columns is None else columns
    headings = ["Row"]
    for column in columns:
        headings += [column, *([_beside(result, column)] if has_paper(result, column) else [])]
    reasons = {name: reason_of(row) for name, row in result["rows"].items()}
    rows = []
    for name in result["rows"]:
        cells = [f"{name} (base)" if name == result["base"] else name]
        for column in columns:
            cells.append(with_spread(result, column, name))
            if has_paper(result, column):
                printed = paper_number(result, column, name)
                signed = result["differences"] and printed and column in judged_columns(result)
                cells.append(paper_text(result, column, printed, "+" if signed else ""))
        rows.append([*cells, *([reasons[name]] if why and any(reasons.values()) else [])])
    return [*headings, *(["State"] if why and any(reasons.values()) else [])], rows


def reason_of(row: Mapping[str, Any]) -> str:
    """Return why a row has no values, or not all; "" of one that is done."""
    if row["state"] == DONE:
        return str(row["reason"])
    return f"{row['state']}: {row['reason']}" if row["reason"] else str(row["state"])


def reasons(result: Result) -> list[str]:
    """Return a line for every reason why rows have no values, or not all."""
    rows: dict[str, list[str]] = {}
    for name, row in result["rows"].items():
        rows.setdefault(reason_of(row), []).append(name)
    return [f"{', '.join(names)}: {reason}" for reason, names in rows.items() if reason]


def differences_table(result: Result, columns: Sequence[str] | None = None) -> Table:
    """Return the rows' differences to the base row with their 95 % intervals, whether and with how many seeds they
    show, beside the paper's."""
    columns = [column for column in judged_columns(result) if columns is None or column in columns]
    headings = ["Row"]
    for column in columns:
        headings += [column, "shows?", *([_beside(result, column)] if has_paper(result, column) else [])]
    rows = []
    for name in result["rows"]:
        if not any(difference(result, column, name) for column in columns):
            continue
        cells = [name]
        for column in columns:
            found = difference(result, column, name)
            cells += [interval(result, column, found), _shows(found)]
            if has_paper(result, column):
                cells.append(paper_text(result, column, paper_difference(result, column, name), "+"))
        rows.append(cells)
    return headings, rows


def orders_table(result: Result) -> Table:
    """Return how well our order of the rows agrees with the paper's, column by column, beside what chance gives."""
    rows = []
    for column, found in orders_of(result).items():
        verdict = "shown" if found.agrees else "contrary" if found.contradicts else "not shown"
        verdict = verdict if verdict != "not shown" or found.can_show else "too few rows to show one"
        rows.append([
            column, f"{len(found.rows)}", f"{found.spearman:.2f}", f"{found.kendall:.2f}",
            f"{found.low:.2f} to {found.high:.2f}", share(found.chance), verdict,
        ])  # fmt: skip
    return ["Column", "Rows", "Spearman's", "Kendall's", "95 % of chance", "Chance as high", "Agreement"], rows


def costs_table(result: Result) -> Table:
    """Return how large the rows' models are, what they were trained on, and what all runs of each took."""
    rows = {name: row for name, row in result["rows"].items() if row["size"] or any(row["costs"].values())}
    factor, unit = energy_scale(row["costs"]["energy_kwh"] for row in rows.values())
    headings = ["Row", *_SIZES.values(), "Hours", f"Energy ({unit})"]
    return headings, [
        [
            name,
            *(count(row["size"][size]) if size in row["size"] else DASH for size in _SIZES),
            f"{row['costs']['hours']:.3g}",
            significant(row["costs"]["energy_kwh"] * factor) if row["costs"]["energy_kwh"] else DASH,
        ]
        for name, row in rows.items()
    ]


def explained(result: Result) -> str:
    """Return what a reader of the table of values must know."""
    words = "Means over seeds ± their standard deviation." if len(result["seeds"]) > 1 else "A single seed."
    if not any(has_paper(result, column) for column in shown_columns(result)):
        return words
    kind = "differences to its base row" if result["differences"] else "what it printed"
    return f"{words} The paper's numbers are {kind}, with its own models and data: ours are not meant to meet them."


def _shows(found: Difference | None) -> str:
    if found is None or found.shows is None:
        return DASH
    return "yes" if found.shows else f"no; {found.needed:,} seeds" if found.needed else "no"


# The terminal.


def print_reproduction(result: Result, console: Console | None = None) -> None:
    """Print our table beside the paper's on the terminal, what it says, what is not there, and what it cost."""
    console = roomy(console or Console())
    print_paragraph(console, f"{title(result)}: {result['question']}", "bold")
    rows = result["rows"]
    shown = [name for name, row in rows.items() if row["state"] != OTHER_SCALE or row["paper"]]
    for columns in _fitting(result, console.width):
        headings, cells = values_table(result, columns, why=False)
        _print_table(console, headings, [row for name, row in zip(rows, cells, strict=True) if name in shown])
    print_paragraph(console, headline(result), "bold")
    headings, cells = orders_table(result)
    if cells:
        _print_table(console, headings, cells)
    for text in sentences(result):
        print_paragraph(console, text)
    for line in reasons(result):
        print_paragraph(console, line, "dim")
    for text in departures(result):
        print_paragraph(console, text, "dim")
    print_paragraph(console, cost_line(result))


def _fitting(result: Result, width: int) -> Iterator[list[str]]:
    """Yield groups of columns whose tables are no wider than that, or have a single column."""
    group: list[str] = []
    for column in shown_columns(result):
        headings, rows = values_table(result, [*group, column], why=False)
        if group and table_width(list(zip(headings, *rows, strict=True))) > width:
            yield group
            group = []
        group.append(column)
    if group:
        yield group


def _print_table(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    made = table()
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="left" if heading in WORDS else "right", no_wrap=bool(index))
    for row in rows:
        made.add_row(*row)
    console.print(made)
