"""This machine: one or several processes, connected by JAX's distributed runtime over loopback.

jaxformer launch local --processes=2 -- train --config=gpt:smoke
"""

import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TextIO

from jaxformer.errors import UserError
from jaxformer.launch.job import Job, exports, option
from jaxformer.launch.output import printer, say
from jaxformer.launch.policy import PREEMPTED, Outcome, supervise
from jaxformer.launch.records import STOPPING, Record, Status, follow_files, watched_status

GRACE_SECONDS = 10.0  # between the end of the first process that failed and the kill of the others
TAKES = ()  # of the job's fields that not every place knows


@dataclasses.dataclass(frozen=True)
class Options:
    """What this place has beyond the job."""

    processes: int = option("processes, connected over loopback", 1, "N")

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise UserError(f"--processes: {self.processes} must be at least 1")


def check(job: Job, options: Options) -> None:
    """This machine takes every job."""


def dry_run(job: Job, options: Options) -> str:
    """Return the commands of one attempt."""
    words = shlex.join(["jaxformer", *job.command])
    if options.processes == 1:
        return "\n".join([*exports(job), words]) + "\n"
    connected = f"export JAX_COORDINATOR_ADDRESS=127.0.0.1:8476 JAX_NUM_PROCESSES={options.processes}"
    lines = [f"JAX_PROCESS_ID={index} {words} &" for index in range(options.processes)]
    return "\n".join([*exports(job), connected, *lines, "wait"]) + "\n"


def start(
    command: Sequence[str], processes: int, environment: Mapping[str, str] | None = None, **popen: Any
) -> list["subprocess.Popen[str]"]:
    """Start `jaxformer COMMAND` as `processes` processes that will find each other; `popen` is for each of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for index in range(processes):
        own = {**os.environ, **(environment or {})}
        if processes > 1:
            own |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        words = [sys.executable, "-m", "jaxformer", *command]
        started.append(subprocess.Popen(words, env=own, text=True, errors="replace", **popen))
    return started


def wait(
    started: Sequence["subprocess.Popen[str]"], say: Callable[[str], None] = lambda line: None,
    grace: float = GRACE_SECONDS, stopped: Callable[[], bool] = lambda: False,
) -> int:  # fmt: skip
    """Wait for all processes and return their exit code: 0, 75 when they were preempted, else that of the first that
    failed (1 for one that a signal ended).

    Once one has failed or was preempted the others have `grace` seconds to end as well. `say` is told, in the end,
    which one failed first; `stopped` says whether SIGTERM was sent to all, which ends those that had hardly begun.
    """
    killed: set[int] = set()
    failed: list[tuple[int, int]] = []
    deadline = float("inf")

    def code_of(index: int) -> int | None:
        code = started[index].poll()
        return PREEMPTED if code == -signal.SIGTERM and stopped() else code

    while any(process.poll() is None for process in started):
        for index in range(len(started)):
            code = code_of(index)
            if code not in (None, 0) and deadline == float("inf"):
                deadline = time.monotonic() + grace
            if code not in (None, 0, PREEMPTED) and not failed and index not in killed:
                failed.append((index, int(code or 0)))
        if time.monotonic() > deadline:
            for index, process in enumerate(started):
                if process.poll() is None:
                    killed.add(index)
                    process.kill()
        time.sleep(0.05)
    codes = {index: int(code_of(index) or 0) for index in range(len(started)) if index not in killed}
    failed += [(index, code) for index, code in codes.items() if code not in (0, PREEMPTED)]
    if not failed:
        return max(codes.values(), default=1)
    index, code = failed[0]
    ended = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    if len(started) > 1:
        say(f"process {index} {ended} first; its own message is above, behind [{index}]")
    return code if code > 0 else 1


def launch(job: Job, options: Options, record: Record) -> int:
    """Run the job here and return its exit code; SIGTERM and Ctrl-C go on to all processes, a second Ctrl-C kills."""
    stopped: list[int] = []

    def attempt(number: int) -> Outcome:
        outcome = _attempt(job, options, record, stopped)
        if stopped:
            record.note(state=STOPPING)
        return outcome

    return supervise(job, record, attempt, say)


def _attempt(job: Job, options: Options, record: Record, stopped: list[int]) -> Outcome:
    # In sessions of their own the processes hear of a Ctrl-C from here alone, and not twice.
    pipes: dict[str, Any] = {"start_new_session": True}
    shared = options.processes == 1 and sys.stderr.isatty()  # one process may draw its progress on the terminal
    if not shared:
        pipes |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = start(job.command, options.processes, job.environment, **pipes)

    def forward(number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and signal.SIGINT in stopped
        stopped.append(number)
        for process in started:
            if process.poll() is None:
                # Of several processes JAX watches for SIGTERM alone, to let all save the same step.
                several = options.processes > 1
                process.send_signal(signal.SIGKILL if again else signal.SIGTERM if several else number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    put = printer(record)

    def echo(index: int, stream: TextIO) -> None:
        for line in stream:
            put(str(index), line.rstrip("\n"))

    readers = [
        threading.Thread(target=echo, args=(index, process.stdout), daemon=True)
        for index, process in enumerate(started)
        if process.stdout is not None
    ]
    for reader in readers:
        reader.start()
    try:
        last: list[str] = []
        code = wait(started, last.append, stopped=lambda: bool(stopped))
        for reader in readers:
            reader.join(timeout=5)
        return Outcome(code, *(last or ["preempted" if code == PREEMPTED else ""]))
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in started:
            if process.poll() is None:
                process.kill()


def status(record: Record, lines: int) -> Status:
    """Return how the job stands; one whose launcher has died is none that runs."""
    return watched_status(record, lines)


def stop(record: Record) -> None:
    """Let all processes save and end."""
    if record.is_watched():
        record.note(state=STOPPING)
        os.kill(record.state()["launcher"], signal.SIGTERM)


delete = stop


def follow(record: Record) -> None:
    follow_files(record, lambda: not record.is_watched(), printer(record, keep=False))
