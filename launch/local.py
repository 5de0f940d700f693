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
    grace: float = GRACE_SECONDS,
) -> int:  # fmt: skip
    """Wait for all processes and return their exit code: 0, 75 when all were preempted, else that of the first that
    failed (1 for one that a signal ended).

    Once one has failed the others have `grace` seconds to notice. `say` is told, in the end, which one it was.
    """
    first: tuple[int, int] | None = None
    deadline = float("inf")
    while any(process.poll() is None for process in started):
        for index, process in enumerate(started):
            code = process.poll()
            if first is None and code not in (None, 0, PREEMPTED):
                first, deadline = (index, int(code or 0)), time.monotonic() + grace
        if time.monotonic() > deadline:
            for process in started:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)
    codes = [int(process.returncode) for process in started]
    if first is None:
        first = next(((index, code) for index, code in enumerate(codes) if code not in (0, PREEMPTED)), None)
    if first is None:
        return max(codes)
    index, code = first
    ended = f"ended with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"
    if len(started) > 1:
        say(f"process {index} {ended} first; its own message is above, behind [{index}]")
    return code if code > 0 else 1


def run(command: Sequence[str], processes: int) -> int:
    """Run `jaxformer COMMAND` in `processes` processes, each line of output behind the number of its process.

    SIGTERM and Ctrl-C go on to all of them. Returns the exit code of `wait`.
    """
    if processes == 1:
        pipes: dict[str, Any] = {}
    else:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    started = start(command, processes, **pipes)

    def forward(number: int, frame: FrameType | None) -> None:
        for process in started:
            if process.poll() is None:
                # JAX watches for SIGTERM alone, to let all processes save the same step.
                process.send_signal(signal.SIGTERM if processes > 1 else number)

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
        code = wait(started, last.append)
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
