"""What a run has cost so far: the files in its folder `emissions`, read and added up."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

FOLDER = "emissions"


@dataclass(frozen=True)
class Emissions:
    """What a run has cost so far: the sum over its segments (stretches between restarts) and processes.

    `seconds` is wall time: per segment, that of the longest process. `energy_kwh` is the sum of the CPU's, the GPUs'
    and the memory's share. `country` is empty for the world average. `segments` 0 means that nothing was measured;
    `unreadable` counts files that held no whole row.
    """

    energy_kwh: float = 0.0
    emissions_kg: float = 0.0
    seconds: float = 0.0
    segments: int = 0
    cpu_kwh: float = 0.0
    gpu_kwh: float = 0.0
    ram_kwh: float = 0.0
    country: str = ""
    unreadable: int = 0


def next_segment(run_dir: Path, process_index: int) -> int:
    """The number of the next `emissions/SEGMENT-PROCESS.csv` of this process, from 1."""
    numbers = [segment for segment, process, _ in _files(run_dir) if process == process_index]
    return max(numbers, default=0) + 1


def read_emissions(run_dir: Path) -> Emissions:
    """Add up all segments and processes of a run, reading columns by name. A torn or foreign file is counted, not read.

    Where a file holds several rows of one CodeCarbon run (they are cumulative), the last one counts.
    """
    totals = dict.fromkeys(("energy_consumed", "emissions", "cpu_energy", "gpu_energy", "ram_energy"), 0.0)
    seconds: dict[int, float] = {}
    country, unreadable = "", 0
    for segment, _, path in _files(run_dir):
        rows = _rows(path)
        if not rows:
            unreadable += 1
            continue
        for row in rows:
            for name in totals:
                totals[name] += float(row[name])
            country = row["country_name"] or country
        seconds[segment] = max(seconds.get(segment, 0.0), sum(float(row["duration"]) for row in rows))
    return Emissions(
        energy_kwh=totals["energy_consumed"],
        emissions_kg=totals["emissions"],
        seconds=sum(seconds.values()),
        segments=len(seconds),
        cpu_kwh=totals["cpu_energy"],
        gpu_kwh=totals["gpu_energy"],
        ram_kwh=totals["ram_energy"],
        country=country,
        unreadable=unreadable,
    )


def _files(run_dir: Path) -> list[tuple[int, int, Path]]:
    """(segment, process, path) of every emission file of a run, in order."""
    folder = run_dir / FOLDER
    found = []
    for path in folder.glob("*.csv") if folder.exists() else ():
        segment, _, process = path.stem.partition("-")
        if segment.isdecimal() and process.isdecimal():
            found.append((int(segment), int(process), path))
    return sorted(found, key=lambda file: file[:2])


def _rows(path: Path) -> list[dict[str, str]]:
    """The last whole row of every CodeCarbon run in a file."""
    needed = ("duration", "energy_consumed", "emissions", "cpu_energy", "gpu_energy", "ram_energy", "country_name")
    rows: dict[str, dict[str, str]] = {}
    try:
        lines = list(csv.DictReader(io.StringIO(path.read_text())))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    for row in lines:
        # A cut row lacks its last columns, which DictReader fills with None.
        if None in row.values() or any(name not in row for name in needed):
            continue
        if all(_is_finite(row[name]) for name in needed[:-1]):
            rows[row.get("run_id") or ""] = row
    return list(rows.values())


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
