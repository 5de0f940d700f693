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
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, TextIO

from jaxformer.checks import check_range
from jaxformer.launch.job import COORDINATOR_PORT, Job, exports, option
from jaxformer.launch.output import printer, say
from jaxformer.launch.policy import Outcome, outcome_of, supervise
from jaxformer.launch.records import RUNNING, Record, follow_files, last_line, watched_status

GRACE_SECONDS = 10.0  # between the end of the first process that failed and the kill of the others
TAKES = ()  # of the job's fields that not every place knows


@dataclasses.dataclass(frozen=True)
class Options:
    """What this place has beyond the job."""

    processes: int = option("processes, connected over loopback", 1, "N")

    def __post_init__(self) -> None:
        check_range("--processes", self.processes, at_least=1)


def check(job: Job, options: Options) -> None:
    """This machine takes every job."""


def dry_run(job: Job, options: Options) -> str:
    """Return the commands of one attempt."""
    words = shlex.join(["jaxformer", *job.command])
    if options.processes == 1:
        return "\n".join([*exports(job), words]) + "\n"
    connected = f"export JAX_COORDINATOR_ADDRESS=127.0.0.1:{COORDINATOR_PORT} JAX_NUM_PROCESSES={options.processes}"
    lines = [f"JAX_PROCESS_ID={index} {words} &" for index in range(options.processes)]
    return "\n".join([*exports(job), connected, *lines, "wait"]) + "\n"


def start(
    command: Sequence[str], processes: int, environment: Mapping[str, str] | None = None,
    shares: Sequence[Mapping[str, str]] = (), **popen: Any,
) -> list["subprocess.Popen[str]"]:  # fmt: skip
    """Start `jaxformer COMMAND` as `processes` processes that will find each other, with an environment that they share
    and, in `shares`, what each has of its own; `popen` is for each of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for index in range(processes):
        own = {**os.environ, **(environment or {}), **(shares[index] if shares else {})}
        if processes > 1:
            own |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        words = [sys.executable, "-m", "jaxformer", *command]
        started.append(subprocess.Popen(words, env=own, text=True, errors="replace", **popen))
    return started


def ends(started: Sequence["subprocess.Popen[str]"], grace: float = GRACE_SECONDS) -> list[tuple[str, int]]:
    """Wait for all processes; return (number, exit code as a shell's) of each, in the order in which they ended.

    Once one has failed or was preempted the others have `grace` seconds to end as well, and are killed then; those are
    not among what is returned.
    """
    codes: dict[int, int] = {}
    deadline = float("inf")
    while len(codes) < len(started):
        for index, process in enumerate(started):
            code = process.poll()
            if code is None or index in codes:
                continue
            codes[index] = 128 - code if code < 0 else code
            if code != 0:
                deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            for process in started:
                if process.poll() is None:
                    process.kill()
                    process.wait()
            break
        time.sleep(0.05)
    return [(str(index), code) for index, code in codes.items()]


def wait(started: Sequence["subprocess.Popen[str]"], grace: float = GRACE_SECONDS) -> int:
    """Wait for all processes and return the exit code that they stand for together."""
    return outcome_of(ends(started, grace), lambda worker: "").code


def launch(job: Job, options: Options, record: Record) -> int:
    """Run the job here and return its exit code; SIGTERM and Ctrl-C go on to all processes, a second Ctrl-C kills."""
    started: list[subprocess.Popen[str]] = []
    received: list[int] = []

    def forward(number: int, frame: FrameType | None = None) -> None:
        again = number == signal.SIGINT and signal.SIGINT in received
        received.append(number)
        record.ask_to_stop()
        for process in started:
            if process.poll() is None:
                # Of several processes JAX watches for SIGTERM alone, to let all save the same step.
                several = options.processes > 1
                process.send_signal(signal.SIGKILL if again else signal.SIGTERM if several else number)

    def attempt(number: int) -> Outcome:
        # One process may draw its progress on the terminal. In sessions of their own they hear of a Ctrl-C from here
        # alone, and not twice.
        shares = options.processes == 1 and sys.stderr.isatty()
        pipes: dict[str, Any] = {} if shares else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started[:] = start(job.command, options.processes, job.environment, start_new_session=True, **pipes)
        record.note(state=RUNNING)
        if received:  # while they were being started
            forward(received[-1])
        for index in range(0 if shares else len(started)):
            record.begin(index, number)
        outcome = _attend(started, record)
        return Outcome(130, "interrupted") if outcome.code and signal.SIGINT in received else outcome

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return supervise(job, record, attempt, say)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in started:
            if process.poll() is None:
                process.kill()


def _attend(started: Sequence["subprocess.Popen[str]"], record: Record) -> Outcome:
    """Show what processes say until they have ended."""
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
    codes = ends(started)
    for reader in readers:
        reader.join(timeout=5)
    return outcome_of(codes, lambda worker: last_line(record.log(worker)) if readers else "")


status = watched_status


def stop(record: Record) -> None:
    """Let all processes save and end."""
    record.ask_to_stop()
    if launcher := record.launcher():
        os.kill(launcher, signal.SIGTERM)


def delete(record: Record) -> None:
    """Nothing is held here but the processes, which end with their launcher."""


def follow(record: Record) -> None:
    follow_files(record, lambda: record.launcher() is None, printer(record, keep=False))
