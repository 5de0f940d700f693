"""How two programs are compared: fresh processes in turn, on an idle machine, equal results before any figure.

A comparison is a `Case`: functions that each run in a process of their own and return what they measured. `compare`
runs them in turn, `rows` makes figures of what they measured, and none where the sides disagree.
"""

import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
COMPARISONS = tuple(f"c{number}" for number in range(1, 11))
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
# Ours keeps freed memory in the process (jaxformer/devices/runtime.py): so does the other side.
MALLOC = {
    "MALLOC_ARENA_MAX": str(max(4, os.cpu_count() or 1)),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}
BEFORE, DURING = 0.06, 0.03  # shares of the machine that others may take, before and during a run
REPEATS, PATIENCE = 2, 60.0  # of a run that others disturbed; seconds to wait for an idle machine
TIMEOUT = 300  # seconds that one process may take
UNITS = {
    "ms": 1e3,
    "s": 1.0,
    "M tokens/s": 1e-6,
    "k tokens/s": 1e-3,
    "rows/s": 1.0,
    "times": 1.0,
    "%": 100.0,
    "MB": 1e-6,
}
MEMORY = 1.25  # times the rival's memory that ours may take


class Refused(Exception):
    """Why there are no figures."""


class Failed(Refused):
    """What a process said before it failed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """One row of the table: which of a side's figures it shows, and the floor."""

    key: str = "step"  # in the `figures` that a side returns, a list of numbers in seconds, bytes or per second
    what: str = ""
    unit: str = "ms"
    ratio: float | None = None  # theirs / ours (of rates: ours / theirs) must reach this
    most: float | None = None  # ours, in `unit`, may be no more
    least: float | None = None  # ours, in `unit`, may be no less

    @property
    def rate(self) -> bool:
        return self.unit.endswith("/s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What is compared. `sides` are functions of (folder, round); the others than "ours" are settings of the rival, of
    which the fastest in the first round is the rival. `make` writes what both sides read into a folder."""

    name: str
    what: str
    sides: Mapping[str, Callable[[Path, int], dict[str, Any]]]
    measures: tuple[Measure, ...]
    make: Callable[[Path], None] | None = None
    memory: str = "peak_mb"  # which number of a side is its memory; "": not compared
    tolerance: float = 0.0  # relative, of what `checked` holds; 0: equal
    rounds: int = 2


def cases(comparison: str) -> tuple[Case, ...]:
    """Return the cases of a comparison, "c1" to "c10"."""
    found: tuple[Case, ...] = importlib.import_module(comparison).CASES
    return found


def find(comparison: str, name: str) -> Case:
    return next(case for case in cases(comparison) if case.name == name)


def busy_seconds() -> float:
    """Return the CPU seconds that the whole machine has spent on anything, other guests of its host included."""
    spent = psutil.cpu_times()
    return float(sum(getattr(spent, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal")))


def own_seconds() -> float:
    """Return the CPU seconds of this process and of those that it started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class Watch:
    """Measures which share of the machine others took since it was made."""

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.monotonic(), busy_seconds(), own_seconds()

    def foreign(self) -> float:
        spent = (busy_seconds() - self.busy) - (own_seconds() - self.own)
        return max(spent, 0.0) / (max(time.monotonic() - self.began, 1e-3) * (os.cpu_count() or 1))


def wait_until_idle() -> float:
    """Return the share that others take of the machine, once it is small or patience has ended."""
    until = time.monotonic() + PATIENCE
    while True:
        watch = Watch()
        time.sleep(1.0)
        share = watch.foreign()
        if share < BEFORE or time.monotonic() > until:
            return share


def environment(side: str, folder: Path) -> dict[str, str]:
    """Return the environment of a side's process: ours as a user has it, the rival's with our malloc settings."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "JAX_COMPILATION"))}
    own |= {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    own |= {"JAXFORMER_CACHE": str(folder / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    return own if side == "ours" else own | MALLOC


def in_process(
    comparison: str, case: str, side: str, folder: Path, number: int, python: str = sys.executable
) -> dict[str, Any]:
    """Run one side in a fresh process and return what it measured. Raises Failed, with its last words."""
    command = [python, str(HERE / "run.py"), "--child", comparison, case, side, str(folder), str(number)]
    env = environment(side, folder) | {"BENCHMARK_STARTED": repr(time.time())}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{side} took more than {TIMEOUT} s") from late
    if done.returncode:
        raise Failed(f"{side} failed: {' / '.join(done.stderr.strip().splitlines()[-2:])[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(comparison: str, case: str, side: str, folder: Path, number: int) -> None:
    """Be that process: print what a side measured as the last line. "make" writes what both sides read."""
    one = find(comparison, case)
    if side == "make":
        one.make(folder)
        print("{}")
        return
    found = one.sides[side](folder, number)
    found.setdefault("peak_mb", peak_mb())
    print("\n" + json.dumps(found))


def since_start() -> float:
    """Return the seconds since this process was asked for."""
    return time.time() - float(os.environ["BENCHMARK_STARTED"])


def peak_mb() -> float:
    """Return the most memory that this process held so far, in MB of 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def undisturbed(
    comparison: str, case: str, side: str, folder: Path, number: int, anyway: bool, python: str = sys.executable
) -> dict[str, Any]:
    """Run one side on an idle machine; what others disturbed is thrown away and repeated."""
    for discarded in range(REPEATS + 1):
        before = 0.0 if anyway else wait_until_idle()
        if before >= BEFORE:
            raise Refused(f"the machine is busy: others take {before:.0%} of it (--anyway measures all the same)")
        watch = Watch()
        run = in_process(comparison, case, side, folder, number, python)
        foreign = watch.foreign()
        run |= {"side": side, "round": number, "foreign_share": round(foreign, 3), "discarded": discarded}
        if foreign <= DURING or anyway:
            return run
        print(f"  {case}, {side}: discarded, others took {foreign:.0%} of the machine", file=sys.stderr, flush=True)
    raise Refused(f"others took more than {DURING:.0%} of the machine in all {REPEATS + 1} runs of {side}")


def compare(comparison: str, case: Case, folder: Path, rounds: int = 0, anyway: bool = False) -> list[dict[str, Any]]:
    """Return all runs of a case, sides in turn, and of a setting of the rival that does not run here why ("failed").

    Raises Refused for a machine that is not idle, for a side that fails, and, after the first round, for sides that
    disagree. Cases of one comparison that read the same share a folder, and what was made there.
    """
    if case.make is not None and not any(folder.iterdir()):
        in_process(comparison, case.name, "make", folder, 0)
    runs: list[dict[str, Any]] = []
    sides = list(case.sides)
    for number in range(rounds or case.rounds):
        for side in sides:
            try:
                runs.append(undisturbed(comparison, case.name, side, folder, number, anyway))
            except Failed as why:
                if number or side == "ours" or len(sides) < 3:
                    raise
                runs.append({"side": side, "round": number, "failed": str(why)})
        if number == 0:
            check(case, runs)
            sides = ["ours", *([rival(case, runs)] if len(case.sides) > 1 else [])]
    return runs


def finished(runs: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [run for run in runs if "failed" not in run]


def check(case: Case, runs: Sequence[Mapping[str, Any]]) -> None:
    """Raise Refused unless all runs computed the same: losses within the tolerance, or equal tokens."""
    runs = finished(runs)
    if len(case.sides) == 1:
        return
    if len({run["side"] for run in runs}) < 2 or not all(run.get("checked") for run in runs):
        raise Refused("nothing says that both sides computed the same")
    first = runs[0]["checked"]
    for run in runs[1:]:
        if not case.tolerance and len(run["checked"]) != len(first):
            raise Refused(f"ours and {run['side']} wrote {len(first)} and {len(run['checked'])} tokens")
        for place, (one, other) in enumerate(zip(first, run["checked"], strict=False)):
            same = math.isclose(one, other, rel_tol=case.tolerance) if case.tolerance else one == other
            if not same:
                what = f"{one:.6g} and {other:.6g}" if case.tolerance else "other tokens"
                raise Refused(f"ours and {run['side']} ({run['round']}) differ at {place}: {what}")


def parity(case: Case, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was compared before any figure, and how far the sides were apart: of losses, relative."""
    runs = finished(runs)
    first = runs[0].get("checked", [])
    if len(case.sides) == 1 or not case.tolerance:
        return {"equal": True, "compared": len(first) * (len(case.sides) > 1)}
    pairs = [(one, other) for run in runs[1:] for one, other in zip(first, run["checked"], strict=False)]
    apart = max(abs(one - other) / abs(one) for one, other in pairs)
    losses = {run["side"]: run["checked"] for run in runs if run["round"] == 0}
    return {"equal": True, "compared": len(first), "tolerance": case.tolerance, "apart": apart, "losses": losses}


def rival(case: Case, runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the rival's setting with the best median of the first measure in the first round."""
    first = case.measures[0]
    medians = {
        run["side"]: statistics.median(run["figures"][first.key])
        for run in finished(runs)
        if run["side"] != "ours" and run["round"] == 0
    }
    return (max if first.rate else min)(medians, key=medians.__getitem__)


def rows(case: Case, runs: Sequence[Mapping[str, Any]], peaks: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the rows of the table that a case's runs make. Raises Refused where the sides disagree."""
    check(case, runs)
    other = rival(case, runs) if len(case.sides) > 1 else ""
    ours = [run for run in runs if run["side"] == "ours"]
    theirs = [run for run in runs if run["side"] == other]
    found = []
    for place, measure in enumerate(case.measures):
        row: dict[str, Any] = {"case": case.name, "what": measure.what or case.what, "unit": measure.unit}
        row |= {"rival": other, "floor": _floor(measure)}
        row["ours"] = _median(ours, measure)
        row["theirs"] = _median(theirs, measure)
        if row["theirs"] and row["ours"] > 0:
            row["ratio"] = row["ours"] / row["theirs"] if measure.rate else row["theirs"] / row["ours"]
        row["met"] = _is_met(measure, row)
        if place == 0:
            row["of_physical"] = _of_physical(ours[0], row["ours"] / UNITS[measure.unit], peaks)
            if case.memory and theirs:
                row["ours_mb"], row["theirs_mb"] = (max(run[case.memory] for run in one) for one in (ours, theirs))
                row["memory_met"] = row["ours_mb"] <= MEMORY * row["theirs_mb"]
                row["imported_mb"] = [run.get("imported_mb") for run in (ours[0], theirs[0])]
            row |= {"memory": case.memory} | _starts(ours, theirs)
        found.append(row)
    return found


def _median(runs: Sequence[Mapping[str, Any]], measure: Measure) -> float | None:
    """Return the median of all figures of a side, or None where it has none."""
    values = [value for run in runs for value in run["figures"].get(measure.key, ())]
    return statistics.median(values) * UNITS[measure.unit] if values else None


def _floor(measure: Measure) -> str:
    bounds = {"≥ {} ×": measure.ratio, "≤ {} " + measure.unit: measure.most, "≥ {} " + measure.unit: measure.least}
    return ", ".join(text.format(f"{bound:g}") for text, bound in bounds.items() if bound is not None)


def _is_met(measure: Measure, row: Mapping[str, Any]) -> bool | None:
    """Say whether a row reaches its floors; None where it has none."""
    held = []
    if measure.ratio is not None:
        held.append(row.get("ratio", 0.0) >= measure.ratio)
    if measure.most is not None:
        held.append(row["ours"] <= measure.most)
    if measure.least is not None:
        held.append(row["ours"] >= measure.least)
    return all(held) if held else None


def _of_physical(run: Mapping[str, Any], seconds: float, peaks: Mapping[str, float]) -> float | None:
    """Return the least time that the machine allows, by FLOPs or bytes, as a share of the time taken."""
    for count, peak in (("flops", "flops_per_second"), ("bytes", "bytes_per_second")):
        if run.get(count) and peaks.get(peak):
            return float(run[count] / peaks[peak] / seconds)
    return None


def _starts(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds to the first result: ours with nothing compiled (the first round) and compiled, theirs."""
    kinds = {"first_cold_s": ours[:1], "first_warm_s": ours[1:], "theirs_first_s": theirs}
    return {
        name: statistics.median(run["first_seconds"] for run in runs)
        for name, runs in kinds.items()
        if runs and "first_seconds" in runs[0]
    }


def about() -> dict[str, Any]:
    """Return what is known of the machine, the versions and the settings."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    named = {
        name: value for name, value in os.environ.items() if name.startswith(("XLA_", "JAX_")) and "DIR" not in name
    }
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "--short=10", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "device": f"{model.strip()}, {THREADS} of {os.cpu_count()} cores",
        "threads": THREADS,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "environment": {"XLA_FLAGS": ""} | named | {"theirs": MALLOC},
    }


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
