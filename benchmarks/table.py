"""The table of the comparisons, made of their records alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = ("comparison", "ours", "theirs", "ratio", "floor", "of the physical floor", "MB, ours", "theirs")
MARKERS = ("<!-- benchmarks: begin -->", "<!-- benchmarks: end -->")
MISSED = " **missed**"


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of all records as Markdown; a floor that is missed is marked, and so is what has no figures."""
    head = [f"| {' | '.join(HEAD)} |", "| --- |" + " ---: |" * (len(HEAD) - 1)]
    return "\n".join([*head, *(line for record in records for line in lines(record))])


def lines(record: Mapping[str, Any]) -> list[str]:
    """Return the rows of one record."""
    name = record["name"].upper()
    if "refused" in record:
        return [f"| {name} {record['what']} | no figures: {record['refused']} |" + " |" * (len(HEAD) - 2)]
    busy = "" if record["idle"] else " (machine not idle)"
    return [f"| {name} {row['what']}{busy} | {' | '.join(_cells(row))} |" for row in record["rows"]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    ratio = f"{row['ratio']:.2f}" if row.get("ratio") else ""
    physical = f"{row['of_physical']:.0%}" if row.get("of_physical") else ""
    memory = ["", ""]
    if row.get("theirs_mb") is not None:
        memory = [f"{row[side]:,.0f}" for side in ("ours_mb", "theirs_mb")]
        memory[0] += MISSED if not row["memory_met"] else ""
        memory[1] += " (after step 1)" if row["memory"] == "growth_mb" else ""
    theirs = _number(row["theirs"], row["unit"])
    theirs += f" ({row['rival']})" if theirs and row["rival"] not in ("", "theirs") else ""
    floor = row["floor"] + (MISSED if row["met"] is False else "")
    return [_number(row["ours"], row["unit"]), theirs, ratio, floor, physical, *memory]


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the table with what it was measured on, as a Markdown page."""
    if not records:
        return "# Comparisons on a CPU\n\nNothing was measured.\n"
    first, peaks = records[0], records[0]["peaks"]
    gflops, gigabytes = (peaks.get(name, 0.0) / 1e9 for name in ("flops_per_second", "bytes_per_second"))
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    starts = "\n".join(
        f"| {record['name'].upper()} | {' | '.join(_seconds(row, kind) for kind in STARTS)} |"
        for record in records
        for row in record["rows"][:1]
        if "first_cold_s" in row
    )
    imported = next(
        (row["imported_mb"] for record in records for row in record["rows"][:1] if row.get("imported_mb")), 0
    )
    memory = "Memory is the highest resident set"
    if imported and all(imported):
        memory += f"; imports alone hold {imported[0]:,.0f} MB of ours and {imported[1]:,.0f} MB of theirs"
    return f"""# Comparisons on a CPU

{first["date"]}, commit {first["commit"]}, `make bench`: {first["device"]}; {versions};
float32, the same weights and batches, losses or tokens equal. Medians of fresh processes in turn; the ratio is theirs /
ours (above 1 we are faster), and a floor is what it, or ours alone, must reach. The physical floor is the FLOPs at the
fastest matrix product measured here ({gflops:,.0f} GFLOP/s), or the bytes at the fastest reading
({gigabytes:.1f} GB/s). {memory}.

{table(records)}

Seconds from the start of the process to the first result:

| | ours, nothing compiled | ours, compiled before | theirs |
| --- | ---: | ---: | ---: |
{starts}
"""


STARTS = ("first_cold_s", "first_warm_s", "theirs_first_s")


def _seconds(row: Mapping[str, Any], kind: str) -> str:
    return f"{row[kind]:.1f}" if kind in row else ""


def put(readme: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Put the table between the markers of a file."""
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(MARKERS[0], 1)
    after = rest.split(MARKERS[1], 1)[1]
    first = records[0]
    said = f"{first['date']}, commit {first['commit']}, {first['device']}:"
    middle = f"{MARKERS[0]}\n{said}\n\n{table(records)}\n{MARKERS[1]}"
    readme.write_text(before + middle + after, encoding="utf-8")
