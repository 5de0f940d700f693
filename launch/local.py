"""This machine: one or several processes, connected by JAX's distributed runtime over loopback.

jaxformer launch local --processes=2 -- train --config=gpt:smoke
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, TextIO

GRACE_SECONDS = 10.0  # between the end of the first process that failed and the kill of the others
PREEMPTED = 75


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


def run(command: Sequence[str], processes: int) -> int:
    """Run `jaxformer COMMAND` in `processes` processes, each line of output behind the number of its process.

    SIGTERM and Ctrl-C go on to all of them; a second Ctrl-C ends them at once. Returns the exit code of `wait`.
    """
    # In sessions of their own the processes hear of a Ctrl-C from here alone, and not twice.
    pipes: dict[str, Any] = {"start_new_session": True}
    if processes > 1:
        pipes |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    started = start(command, processes, **pipes)
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and signal.SIGINT in received
        received.append(number)
        for process in started:
            if process.poll() is None:
                # Of several processes JAX watches for SIGTERM alone, to let all save the same step.
                process.send_signal(signal.SIGKILL if again else signal.SIGTERM if processes > 1 else number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    printing = threading.Lock()

    def echo(index: int, stream: TextIO) -> None:
        for line in stream:
            with printing:
                print(f"[{index}] {line}", end="", file=sys.stderr, flush=True)

    readers = [
        threading.Thread(target=echo, args=(index, process.stdout), daemon=True)
        for index, process in enumerate(started)
        if process.stdout is not None
    ]
    for reader in readers:
        reader.start()
    try:
        last: list[str] = []
        code = wait(started, last.append, stopped=lambda: bool(received))
        for reader in readers:
            reader.join(timeout=5)
        for line in last:
            print(f"jaxformer launch: {line}", file=sys.stderr)
        return code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in started:
            if process.poll() is None:
                process.kill()
