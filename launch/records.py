"""What this machine knows of the jobs that it launched: one folder each, with the description, the state and the last
lines of every worker, in $JAXFORMER_CACHE/jobs."""

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError, disk_errors, suggest
from jaxformer.storage import cache_folder

# States of a job. RUNNING is also that of a launcher which died meanwhile: `is_watched` tells.
STARTING, RUNNING, PAUSED, STOPPING = "starting", "running", "waiting to run again", "stopping"
DONE, FAILED, STOPPED = "done", "failed", "stopped"
OVER = (DONE, FAILED, STOPPED)
_TAIL_BYTES = 20_000


@dataclasses.dataclass(frozen=True)
class Status:
    """How a job stands. `message`: why it ended or waits; `code`: the exit code of one that is over; `workers`: the
    last lines of each, by its name."""

    state: str
    attempts: int
    message: str = ""
    code: int | None = None
    workers: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Record:
    """The folder of a job: `job.json` is what was asked for, `state.json` how it goes, `worker-K.txt` what K said."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def asked(self) -> dict[str, Any]:
        """Return {"place", "job", "options"} as it was launched."""
        return _read(self.folder / "job.json")

    def state(self) -> dict[str, Any]:
        """Return the last state: "state", "attempts", "message", and what a place keeps beside them."""
        path = self.folder / "state.json"
        return _read(path) if path.exists() else {"state": STARTING, "attempts": 0, "message": ""}

    def note(self, **values: Any) -> None:
        """Change some of the state's values; a reader sees the old ones or the new ones."""
        _write(self.folder / "state.json", {**self.state(), **values, "updated": round(time.time(), 3)})

    def log(self, worker: str | int) -> Path:
        return self.folder / f"worker-{worker}.txt"

    def tails(self, lines: int) -> dict[str, list[str]]:
        """Return the last lines that each worker's file holds."""
        paths = sorted(self.folder.glob("worker-*.txt"), key=lambda path: (len(path.name), path.name))
        return {path.stem.removeprefix("worker-"): tail(path, lines) for path in paths}

    def is_watched(self) -> bool:
        """Say whether the launcher that looks after this job is alive."""
        pid = self.state().get("launcher")
        if not pid:
            return False
        with contextlib.suppress(OSError):
            return _began(pid) == self.state().get("launcher_began")
        return False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Hold the job as its launcher."""
        self.note(launcher=os.getpid(), launcher_began=_began(os.getpid()))
        try:
            yield
        finally:
            self.note(launcher=None)

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def jobs_folder() -> Path:
    return cache_folder() / "jobs"


def records() -> list[Record]:
    """Return all jobs, the newest last."""
    found = [path.parent for path in jobs_folder().glob("*/job.json")]
    return [Record(folder) for folder in sorted(found, key=lambda folder: (folder / "job.json").stat().st_mtime)]


def find(name: str) -> Record:
    """Return the job of that name. Raises UserError with the nearest one where there is none."""
    known = [record.name for record in records()]
    if name not in known:
        raise UserError(
            f"no job '{name}' was launched from here{suggest(name, known)}; `jaxformer launch status` lists all"
        )
    return Record(jobs_folder() / name)


def open_record(name: str, asked: Mapping[str, Any]) -> Record:
    """Return the record of a job that is launched now: a new one, or that of the same job, which then goes on.

    Raises UserError when the name is another job's that may not be over, or a launcher looks after the job.
    """
    record = Record(jobs_folder() / name)
    asked = json.loads(json.dumps(asked))
    with disk_errors(record.folder):
        record.folder.mkdir(parents=True, exist_ok=True)
        if not (record.folder / "job.json").exists():
            _write(record.folder / "job.json", asked)
            return record
    if record.is_watched():
        raise UserError(f"job {name} runs already; `jaxformer launch logs {name}` shows it, `… stop {name}` stops it")
    before = record.asked()
    if before["place"] != asked["place"] or before["job"]["command"] != asked["job"]["command"]:
        if before["place"] == "local" or record.state()["state"] in OVER:
            record.forget()
            return open_record(name, asked)
        raise UserError(
            f"job {name} is another one ({before['place']}: {' '.join(before['job']['command'])}); choose another "
            f"--name, or `jaxformer launch delete {name}` first"
        )
    _write(record.folder / "job.json", asked)
    return record


def watched_status(record: Record, lines: int) -> Status:
    """Return how a job stands that a launcher looks after; where that has died, nobody will start it again."""
    state = record.state()
    name, message = state["state"], state["message"]
    if name not in OVER and not record.is_watched():
        name, message = "left alone", "its launcher has gone; the same command goes on with it"
    return Status(name, state["attempts"], message, state.get("code"), record.tails(lines))


def follow_files(record: Record, over: Callable[[], bool], put: Callable[[str, str], None]) -> None:
    """Give `put` what workers' files get, as (worker, line), until the job is `over`."""
    read: dict[str, int] = {}
    while True:
        last = over()
        for path in sorted(record.folder.glob("worker-*.txt"), key=lambda path: (len(path.name), path.name)):
            worker = path.stem.removeprefix("worker-")
            with path.open("rb") as file:
                file.seek(read.get(worker, 0))
                text = file.read()
            whole = text if last else text[: text.rfind(b"\n") + 1]  # a line that is still being written comes later
            read[worker] = read.get(worker, 0) + len(whole)
            for line in whole.decode("utf-8", errors="replace").splitlines():
                put(worker, line)
        if last:
            return
        time.sleep(1.0)


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a file that may be large; what a progress bar wrote over itself counts as one."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
        return [line.rpartition("\r")[2] for line in text.rstrip().splitlines()][-lines:] if lines else []
    return []


def last_line(path: Path) -> str:
    return "".join(tail(path, 1))


def _began(pid: int) -> str:
    """Return when a process began (clock ticks since the machine's start), so that a number used again is noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        os.kill(pid, 0)  # no /proc on this system
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete its folder to forget this job") from error


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with disk_errors(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
