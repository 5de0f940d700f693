"""What this machine knows of the jobs that it launched: one folder each, with the description, the state and the last
lines of every worker, in $JAXFORMER_CACHE/jobs."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError, disk_errors, suggest
from jaxformer.storage import cache_folder

# States of a job. RUNNING is also that of one whose launcher died meanwhile: `launcher` tells.
STARTING, RUNNING, PAUSED, STOPPING = "starting", "running", "waiting to run again", "stopping"
DONE, FAILED, STOPPED = "done", "failed", "stopped"
OVER = (DONE, FAILED, STOPPED)
_TAIL_BYTES = 20_000
_SHORTEST_SECRET = 6  # a shorter value would blot out ordinary words


class Busy(UserError):
    """The job runs already, and goes on."""


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
        """Change some of the state's values; a reader sees the old ones or the new ones, and no change is lost."""
        if "message" in values:
            values["message"] = self.hider()(values["message"])
        with (self.folder / "state.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _write(self.folder / "state.json", {**self.state(), **values, "updated": round(time.time(), 3)})

    def hider(self) -> Callable[[str], str]:
        """Return a function that blots out, in a line, the values that the job's secrets have here."""
        values = [os.environ.get(name, "") for name in self.asked()["job"]["secrets"]]
        values = [value for value in values if len(value) >= _SHORTEST_SECRET]

        def hide(line: str) -> str:
            for value in values:
                line = line.replace(value, "***")
            return line

        return hide

    def ask_to_stop(self) -> None:
        """Ask whoever looks after the job not to run it again, whatever it is doing now."""
        (self.folder / "stop").touch()

    def let_run(self) -> None:
        """Take back what `ask_to_stop` said, for a job that is launched anew."""
        (self.folder / "stop").unlink(missing_ok=True)

    def is_asked_to_stop(self) -> bool:
        return (self.folder / "stop").exists()

    def log(self, worker: str | int) -> Path:
        return self.folder / f"worker-{worker}.txt"

    def begin(self, worker: str | int, attempt: int) -> int:
        """Say in a worker's file where an attempt begins, unless it is there, and return how many of its lines are."""
        heading = f"== attempt {attempt}"
        path = self.log(worker)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        before, found, lines = text.rpartition(f"{heading}\n")
        if found and (not before or before.endswith("\n")):
            return lines.count("\n")
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{heading}\n")
        return 0

    def logs(self) -> dict[str, Path]:
        """Return the files of what workers said, by the worker's name."""
        paths = sorted(self.folder.glob("worker-*.txt"), key=lambda path: (len(path.name), path.name))
        return {path.stem.removeprefix("worker-"): path for path in paths}

    def tails(self, lines: int) -> dict[str, list[str]]:
        """Return the last lines that each worker's file holds."""
        return {worker: tail(path, lines) for worker, path in self.logs().items()}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Hold the job as its launcher. Raises UserError where there is one already."""
        with (self.folder / "launcher").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(
                    f"job {self.name} runs already; `jaxformer launch logs {self.name}` shows it, "
                    f"`jaxformer launch stop {self.name}` stops it"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            self.let_run()
            yield

    def launcher(self) -> int | None:
        """Return the process that looks after the job, None where none does."""
        with contextlib.suppress(FileNotFoundError), (self.folder / "launcher").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
        return None

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


def open_record(name: str, asked: Mapping[str, Any], fixed: Sequence[str] = ()) -> Record:
    """Return the record of a job that is launched now: a new one, or that of the same job, which then goes on.

    `fixed` are the options that a job cannot change while it holds something ("holds" in its state). Raises UserError
    when the name is another job's that may not be over, or that holds something.
    """
    record = Record(jobs_folder() / name)
    asked = json.loads(json.dumps(asked))
    with disk_errors(record.folder):
        record.folder.mkdir(parents=True, exist_ok=True)
    if (record.folder / "job.json").exists():
        before, state = record.asked(), record.state()
        same = before["place"] == asked["place"] and before["job"]["command"] == asked["job"]["command"]
        merged = [{**kept["options"], **kept["job"]} for kept in (before, asked)]
        changed = [key for key in fixed if same and state.get("holds") and merged[0].get(key) != merged[1].get(key)]
        if changed:
            raise UserError(
                f"job {name} has {state['holds']} with another --{changed[0]} ({merged[0].get(changed[0])!r}); choose "
                f"another --name, or `jaxformer launch delete {name}` first"
            )
        idle = state["state"] in OVER or (before["place"] == "local" and record.launcher() is None)
        if not same and (not idle or state.get("holds")):
            raise UserError(
                f"job {name} is another one ({before['place']}: {' '.join(before['job']['command'])}); choose another "
                f"--name, or `jaxformer launch delete {name}` first"
            )
        if not same:
            record.forget()
            record.folder.mkdir(parents=True, exist_ok=True)
    _write(record.folder / "job.json", asked)
    return record


def watched_status(record: Record, lines: int) -> Status:
    """Return how a job stands that a launcher looks after; where that has died, nobody will start it again."""
    state = record.state()
    name, message = state["state"], state["message"]
    if name not in OVER and record.launcher() is None:
        name, message = "left alone", "its launcher has gone; the same command goes on with it"
    elif name not in OVER and record.is_asked_to_stop():
        name = STOPPING
    return Status(name, state["attempts"], message, state.get("code"), record.tails(lines))


def follow_files(record: Record, over: Callable[[], bool], put: Callable[[str, str], None]) -> None:
    """Give `put` what workers' files get, as (worker, line), until the job is `over`."""
    read: dict[str, int] = {}
    while True:
        last = over()
        for worker, path in record.logs().items():
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
