"""What a run has cost so far: the files in its folder `emissions`, read and added up."""

import contextlib
import csv
import datetime
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

FOLDER = "emissions"
MACHINE, PROCESS, MIXED = "machine", "process", "mixed"
# What energy of each tracking mode is of.
_SCOPES = {
    MACHINE: "the whole machine's, whatever else ran there",
    PROCESS: "this run's share of the machine's",
    MIXED: "in part the whole machine's, in part this run's share of it",
}


class Span(NamedTuple):
    """A stretch of measuring, in seconds since 1970. `machine` is "" in files from before machines were named;
    `hardware` is what then tells them apart."""

    machine: str
    hardware: str
    mode: str
    began: float
    ended: float

    def beside(self, other: "Span") -> float:
        """Return for how many seconds both were measured on one machine."""
        named = bool(self.machine and other.machine)
        is_one = self.machine == other.machine if named else self.hardware == other.hardware
        return max(min(self.ended, other.ended) - max(self.began, other.began), 0.0) if is_one else 0.0


@dataclass(frozen=True)
class Emissions:
    """What a run has cost so far: the sum over its segments (stretches between restarts) and processes.

    `seconds` is wall time: per segment, that of the longest process. `energy_kwh` is the sum of the CPU's, the GPUs'
    and the memory's share. `country` is empty for the world average. `segments` 0 means that nothing was measured;
    `unreadable` counts files that held no whole row. `tracking_mode` is that of the config with which all was measured,
    or "mixed"; what does not say was measured for the whole machine. `spans` says when and where.
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
    tracking_mode: str = MACHINE
    spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)

    @property
    def scope(self) -> str:
        """What the energy is of, in words."""
        return _SCOPES[self.tracking_mode]

    def __str__(self) -> str:
        from jaxformer.tables import energy, mass  # help waits for nothing heavy

        said = f"footprint.tracking_mode={self.tracking_mode}" if self.tracking_mode != MIXED else "two tracking modes"
        return f"{energy(self.energy_kwh)}, {mass(self.emissions_kg)} CO2eq ({said}: {self.scope})"


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
    modes: set[str] = set()
    spans: list[Span] = []
    for segment, _, path in _files(run_dir):
        rows = _rows(path)
        if not rows:
            unreadable += 1
            continue
        for row in rows:
            for name in totals:
                totals[name] += float(row[name])
            country = row["country_name"] or country
            modes.add(PROCESS if row.get("tracking_mode") == PROCESS else MACHINE)
            with contextlib.suppress(ValueError, OverflowError):
                spans.append(_span(row))
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
        tracking_mode=MIXED if len(modes) > 1 else next(iter(modes), MACHINE),
        spans=tuple(spans),
    )


class Overlap(NamedTuple):
    """For how many seconds pairs of runs were measured at once on one machine, and how many runs that were: `shared`
    where each was charged its share, `twice` where one of both was charged what the other was charged, too."""

    shared: float = 0.0
    shared_runs: int = 0
    twice: float = 0.0
    twice_runs: int = 0


def overlap(runs: Sequence[Emissions]) -> Overlap:
    """Return how far the times of runs overlap on the same machines."""
    seconds = {False: 0.0, True: 0.0}
    involved: dict[bool, set[int]] = {False: set(), True: set()}
    for one, other in itertools.combinations(range(len(runs)), 2):
        for span, beside in itertools.product(runs[one].spans, runs[other].spans):
            if (both := span.beside(beside)) > 0:
                is_twice = MACHINE in (span.mode, beside.mode)
                seconds[is_twice] += both
                involved[is_twice] |= {one, other}
    return Overlap(seconds[False], len(involved[False]), seconds[True], len(involved[True]))


def _span(row: Mapping[str, str]) -> Span:
    """Return when and where a row was measured. Raises ValueError where it does not say."""
    ended = row.get("ended") or ""
    # CodeCarbon writes the end by the clock of the wall, without its zone.
    end = float(ended) if ended else datetime.datetime.fromisoformat(row.get("timestamp") or "").timestamp()
    hardware = " ".join(row.get(name) or "" for name in ("cpu_model", "cpu_count", "ram_total_size", "os"))
    mode = PROCESS if row.get("tracking_mode") == PROCESS else MACHINE
    return Span(row.get("machine") or "", hardware, mode, end - float(row["duration"]), end)


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
