"""Tables, paragraphs and numbers as people read them."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from jaxformer import tables
from jaxformer.tables import brief, count, duration, energy, estimate, gigabytes, mass, metric, model_size, significant


def console(**settings: bool | int) -> Console:
    return Console(file=io.StringIO(), color_system=None, **settings)  # type: ignore[arg-type]


def printed(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_every_table_has_the_one_style() -> None:
    """Nobody else makes a table or chooses lines for one."""
    package, makes = Path(tables.__file__).parent, re.compile(r"\bTable\(|\bbox\b")
    assert [path.name for path in package.rglob("*.py") if makes.search(path.read_text(encoding="utf-8"))] == [
        "tables.py"
    ]


def test_a_table_takes_the_width_that_is_foretold() -> None:
    columns = [["Name", "a", "bcdefg"], ["Size", "1,234", "5"]]
    width = tables.table_width(columns)
    for room in (width, 80):
        screen, shown = console(force_terminal=True, width=room), tables.table()
        for heading, *_ in columns:
            shown.add_column(heading, no_wrap=True)
        for cells in list(zip(*columns, strict=True))[1:]:
            shown.add_row(*cells)
        screen.print(shown)
        assert [line.rstrip() for line in printed(screen).splitlines()] == [
            "Name    Size", "─────────────", "a       1,234", "bcdefg  5",
        ]  # fmt: skip


def test_output_that_is_no_terminal_has_room_and_whole_lines() -> None:
    words = "word " * 30
    piped, screen = console(width=40), console(width=40, force_terminal=True)
    assert (tables.roomy(piped).width, tables.roomy(screen).width) == (tables.FILE_WIDTH, 40)
    assert tables.roomy(console(width=200)).width == 200
    for target in (piped, screen):
        tables.print_paragraph(target, f"[b] 1 {words}", indent=2)
        tables.print_paragraph(target, Text(words))
    assert printed(piped).splitlines() == [f"  [b] 1 {words}", words]
    lines = printed(screen).splitlines()
    assert max(map(len, lines)) <= 40 and lines[0].startswith("  [b] 1 word") and lines[1].startswith("  word")
    assert lines[-1].startswith("word")


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (energy(12.5), "12.5 kWh"),
        (energy(0.0125), "12.5 Wh"),
        (energy(4.5e-5), "45.0 mWh"),
        (energy(None), "–"),
        (mass(2.0), "2.00 kg"),
        (mass(0.00123), "1.23 g"),
        (mass(1.5e-5), "15.0 mg"),
        (count(999), "999"),
        (count(999_800), "1.00 M"),
        (count(124_439_808), "124 M"),
        (duration(3.21), "3.2 s"),
        (duration(59.7), "1 min 00 s"),
        (duration(3725), "1 h 02 min"),
        (duration(90_000), "1 d 01 h"),
        (significant(0.012345), "0.0123"),
        (significant(1239.5), "1,240"),
        (significant(0), "0"),
        (metric(3.14159), "3.142"),
        (metric(0.000123456), "0.0001235"),
        (estimate(1234.5), "1,234"),
        (estimate(6.02214e23), "6.022e+23"),
        (gigabytes(80e9), "80 GB"),
        (gigabytes(1.2345678e12), "1,235 GB"),
        (tables.percent(0.12345), "12.3 %"),
        (tables.metrics_line({"eval/loss": 3.14159, "eval/accuracy": 0.5}), "eval/loss 3.142  eval/accuracy 0.5"),
    ],
)
def test_numbers_are_readable(shown: str, text: str) -> None:
    assert shown == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (3.21456, "3.21"), (0.000123456, "0.000123"), (99.96, "100"), (999.6, "1000"), (9999.0, "9999"),
        (12_345, "12.3k"), (1_250_000, "1.2M"), (3e9, "3.0G"), (-12_345, "-12.3k"), (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_values_beside_a_bar_are_short(value: float, text: str) -> None:
    assert brief(value) == text


def test_models_are_named_by_three_digits() -> None:
    numbers = {4_385_920: "4.39M", 10**7: "10M", 10**8: "100M", 999_600_000: "1B", 1_557_611_200: "1.56B"}
    assert {number: model_size(number) for number in numbers} == numbers
