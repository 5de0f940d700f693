"""What a run costs in energy and CO2eq: CodeCarbon's offline tracker, kept off the critical path.

`Footprint` measures while a run lives and writes `emissions/SEGMENT-PROCESS.csv` (CodeCarbon's columns, one row).
CodeCarbon measures the machine; what of it this process is charged, `share` says. Starting CodeCarbon takes about two
seconds the first time in a process (it looks the hardware up) and some milliseconds after that, so it starts in a
thread. Where the machine has no energy counters, CodeCarbon models the power of CPU and memory from the processor's
nominal power and its load: such numbers compare runs on one machine well, and machines with each other only roughly.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.footprint.electricity import countries
from jaxformer.footprint.emissions import FOLDER, next_segment
from jaxformer.footprint.share import gpu_share, machine_name, processor_time
from jaxformer.storage import absolute

# Columns that grow with time: the ones to scale for the seconds before the tracker was ready.
_CUMULATIVE = ("emissions", "cpu_energy", "gpu_energy", "ram_energy", "energy_consumed", "water_consumed")
_TRACKING_MODES = ("process", "machine")
_PARTS = ("cpu", "ram", "gpu")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FootprintConfig:
    """How energy and emissions are measured.

    `country_iso_code` is where the electricity comes from (three letters, "FRA"). Empty means the world average of 475
    g CO2eq per kWh, unless CodeCarbon's own settings (`CODECARBON_COUNTRY_ISO_CODE`, `.codecarbon.config`) name one: a
    default country would flatter or blame everyone who runs elsewhere. `region` narrows it down in the USA, Canada
    and China. `pue` is the data centre's power usage effectiveness and multiplies everything. `tracking_mode` is
    "process" (this run's share of what the machine uses, by its part of the load: runs at once on one machine add up to
    no more than the machine) or "machine" (the whole machine, counted once however many processes the run has there,
    and once more by every other run).

    Raises `UserError` for an unknown country or mode, or a number out of range.
    """

    enabled: bool = True
    country_iso_code: str = ""
    region: str = ""
    pue: float = 1.0
    measure_power_secs: float = 15.0
    tracking_mode: str = "process"

    def __post_init__(self) -> None:
        if self.country_iso_code:
            known = countries()
            if known and self.country_iso_code not in known:
                word = self.country_iso_code.lower()
                meant = [
                    code for code, country in known.items() if word in (code.lower(), country["country_name"].lower())
                ]
                raise UserError(
                    f"footprint.country_iso_code: no country '{self.country_iso_code}'; "
                    + (
                        f"did you mean '{meant[0]}'?"
                        if meant
                        else "give three letters such as 'USA', or '' for the world"
                    )
                )
        check_range("footprint.pue", self.pue, at_least=1)  # 1 is no overhead
        check_range("footprint.measure_power_secs", self.measure_power_secs, above=0)
        check_choice("footprint.tracking_mode", self.tracking_mode, _TRACKING_MODES)


class Footprint:
    """Measures one process of a run from `start()` to `stop()`, and charges it from construction on; nothing here ever
    raises into the run.

    Each `Footprint` writes one file of its own, replaced whole at every `flush()`, so a kill loses at most the time
    since the last one. Call `stop()` in a `finally`. Without `config.enabled` it does nothing.
    """

    def __init__(self, run_dir: Path, config: FootprintConfig, process_index: int = 0, run: Path | None = None) -> None:
        self._begun = time.perf_counter()  # when what is charged to the run began
        self._run_dir = run_dir
        self._run = run or run_dir  # what it is called, where its files lie elsewhere
        self._config = config
        self._process_index = process_index
        self._claims: list[socket.socket] = []
        self._tracker: Any = None
        self._loaded = processor_time()  # until when shares are taken
        self._machine = dict.fromkeys(_CUMULATIVE, 0.0)  # what the machine has used until then
        self._own = dict.fromkeys(_CUMULATIVE, 0.0)  # and what of that is this process's
        self._first_shares: dict[str, float] | None = None  # of what was used before the tracker was ready
        self._shares = dict.fromkeys(_CUMULATIVE, 1.0)
        self._written = False
        self._writing = threading.Lock()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Begin to measure, in a thread, and return this object, since whose making the run is charged."""
        config = self._config
        if config.enabled:
            # Not a daemon: the interpreter must not be torn down in the middle of an import.
            self._thread = threading.Thread(target=self._start, name="footprint")
            self._thread.start()
        return self

    def flush(self) -> None:
        """Write what was measured so far. Takes about a millisecond; before the tracker is ready it does nothing."""
        if self._tracker is not None and self._ready.is_set():
            with contextlib.suppress(Exception):
                self._tracker.flush()

    def stop(self) -> None:
        """Write the last numbers and stop measuring. May be called twice.

        A run that ends before the tracker is ready (the first two seconds of a process) waits for it here.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            with contextlib.suppress(Exception):
                tracker.stop()
        for claim in self._claims:
            claim.close()
        self._claims = []

    def _start(self) -> None:
        try:
            settings = self._settings()
            if settings is None:
                return  # another process of this run measures this machine
            folder = self._run_dir / FOLDER
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / f"{next_segment(self._run_dir, self._process_index)}-{self._process_index}.csv"
            self._tracker = _start_tracker(settings, self._write)
            # One row from the first moment on: also shows at once that the tracker works, for it hides its errors.
            self._tracker.flush()
        except Exception:
            _log.debug("CodeCarbon did not start", exc_info=True)
        if self._written:
            self._ready.set()
        else:
            self._tracker = None
            _log.warning(
                "CodeCarbon did not start, so %s records no energy; set footprint.enabled=False to run without it",
                self._run,
            )

    def _settings(self) -> dict[str, Any] | None:
        """CodeCarbon's arguments for this process, or None if its machine is already being measured."""
        config = self._config
        settings: dict[str, Any] = {
            # CodeCarbon's own "process" takes a share of the processor and memory only where it models both.
            "tracking_mode": "machine",
            "measure_power_secs": config.measure_power_secs,
            "pue": config.pue,
        }
        if config.country_iso_code:
            settings["country_iso_code"] = config.country_iso_code
        if config.region:
            settings["region"] = config.region
        if config.tracking_mode == "machine":
            name = str(absolute(self._run))
            gpus = f"{name} gpus={os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}"
            if not self._claim(gpus):
                return None
            if not self._claim(name):
                # Another process measures CPU and memory here, but sees other GPUs than this one does.
                settings |= {"force_cpu_power": 0, "force_ram_power": 0}
        return settings

    def _claim(self, what: str) -> bool:
        """Whether this process is the first on this machine to claim `what`; freed by `stop()` or by its death.

        A name in Linux's abstract socket space: unlike a lock file it leaves nothing behind, whatever happens. Other
        systems have no such space, so there every process measures.
        """
        if not hasattr(socket, "AF_UNIX") or not Path("/proc/net/unix").exists():
            return True
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(b"\0jaxformer-footprint-" + hashlib.sha256(what.encode()).hexdigest()[:32].encode())
        except OSError:
            claim.close()
            return False
        self._claims.append(claim)
        return True

    def _write(self, row: dict[str, Any]) -> None:
        """Replace this segment's file by one with `row`, charging the seconds before the tracker was ready at the mean
        power measured since."""
        # CodeCarbon's own writer overwrites in place: a kill in that moment would lose the whole segment. Its measuring
        # thread calls this too, and would show a traceback for a full disk.
        partial = self._path.with_name(self._path.name + ".partial")
        with self._writing, contextlib.suppress(OSError):
            row = self._charged(row)
            text = io.StringIO()
            writer = csv.DictWriter(text, row.keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerow(row)
            partial.write_text(text.getvalue())
            partial.replace(self._path)
            self._written = True

    def _charged(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return a row of what the machine has used as one of what this process is charged."""
        seconds = time.perf_counter() - self._begun
        before = max(seconds / row["duration"] - 1, 0.0) if row["duration"] > 0 else 0.0
        if self._config.tracking_mode == "process":
            self._take_share(row)
        else:
            self._machine = self._own = {name: row.get(name, 0.0) for name in _CUMULATIVE}
        first = self._first_shares or self._shares
        energies = {
            name: self._own[name] + before * first[name] * self._machine[name] for name in _CUMULATIVE if name in row
        }
        powers = {
            f"{part}_power": row[f"{part}_power"] * self._shares[f"{part}_energy"]
            for part in _PARTS
            if isinstance(row.get(f"{part}_power"), float)
        }
        own = {"tracking_mode": self._config.tracking_mode, "machine": machine_name(), "ended": time.time()}
        return row | energies | powers | {"duration": seconds} | own

    def _take_share(self, row: Mapping[str, Any]) -> None:
        """Charge this process with its share of what the machine has used since the last row."""
        now = processor_time()
        load = now.share_since(self._loaded)
        if load is None:  # so soon that the next row will do
            return
        used = {name: row.get(name, 0.0) - self._machine[name] for name in _CUMULATIVE}
        gpu = gpu_share(load) if used["gpu_energy"] > 0 else load
        parts = {"cpu_energy": load, "ram_energy": load, "gpu_energy": gpu}
        total = sum(used[name] for name in parts)
        mean = sum(used[name] * share for name, share in parts.items()) / total if total > 0 else load
        self._shares = dict.fromkeys(_CUMULATIVE, mean) | parts
        self._first_shares = self._first_shares or self._shares
        self._own = {name: self._own[name] + used[name] * self._shares[name] for name in _CUMULATIVE}
        self._machine = {name: row.get(name, 0.0) for name in _CUMULATIVE}
        self._loaded = now


def _start_tracker(settings: Mapping[str, Any], write: Callable[[dict[str, Any]], None]) -> Any:
    """Start CodeCarbon quietly, with every row going to `write`. Takes seconds the first time in a process."""
    tracker_class, output_class = _codecarbon()
    output = output_class()
    output.out = output.live_out = lambda total, delta: write(dataclasses.asdict(total))
    # Everything that could send or store data elsewhere is named, so that no CodeCarbon setting turns it on.
    tracker = tracker_class(
        **settings,
        project_name="jaxformer",
        log_level="critical",
        output_methods=[],
        output_handlers=[output],
        emissions_endpoint=None,
        electricitymaps_api_token="",
        output_dir=".",
        allow_multiple_runs=True,
    )
    tracker.start()
    return tracker


@functools.cache
def _codecarbon() -> tuple[Any, Any]:
    """CodeCarbon's tracker and output classes, imported so that nothing of theirs reaches the terminal."""
    for module in ("codecarbon", "cpuinfo", "pynvml", "pandas", "requests"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    from codecarbon import OfflineEmissionsTracker
    from codecarbon.output_methods.base_output import BaseOutput

    # Its logger, set to INFO by the import, speaks before the constructor has read `log_level`.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    return OfflineEmissionsTracker, BaseOutput
