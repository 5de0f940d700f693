"""One worker of a job, on a machine that is reached by SSH: starts the command, keeps what it says, tells how it ended.

The command outlives the connection that started it. Whoever connects again, or twice, follows the same attempt from the
line that he has seen last. This file is sent to the machine and runs under its own Python (3.8 or newer), alone.

    python3 worker.py follow ATTEMPT LINE -- COMMAND…   start it if need be, then print its lines from LINE on
    python3 worker.py stop                              let the newest attempt save and end
    python3 worker.py end                               end it at once

`follow` reads variables of the command, NAME=VALUE, one a line, from its standard input. It prints every line behind
its number and a tab; the last one is "exit", a tab, and the command's exit code.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PREEMPTED = 75
GRACE_SECONDS = 60.0


def follow(attempt: str, line: int, command: list[str]) -> int:
    folder = FOLDER / f"attempt-{attempt}"
    variables = dict(text.split("=", 1) for text in sys.stdin.read().splitlines() if "=" in text)
    try:
        folder.mkdir()
    except FileExistsError:
        pass
    else:
        # What an earlier attempt has left would hold the accelerators. It may be saving.
        end(signal.SIGTERM, besides=folder, wait=GRACE_SECONDS)
        end(signal.SIGKILL, besides=folder, wait=GRACE_SECONDS)
        with (folder / "output.txt").open("wb") as output:
            subprocess.Popen(
                [sys.executable, __file__, "keep", attempt, *command],
                cwd=FOLDER / "code",
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    return show(folder, line)


def show(folder: Path, line: int) -> int:
    """Print lines until the command has ended and the last is printed."""
    number = 0
    for _ in range(600):  # whoever starts it needs a moment
        if (folder / "output.txt").exists() and (folder / "pid").exists():
            break
        time.sleep(0.1)
    else:  # the machine went down just then
        print(f"exit\t{PREEMPTED}", flush=True)
        return PREEMPTED
    with (folder / "output.txt").open("rb") as output:
        rest = b""
        while True:
            over = ended(folder)  # asked before reading: what is read then is all
            rest += output.read()
            whole, rest = (
                (rest, b"") if over is not None else (rest[: rest.rfind(b"\n") + 1], rest[rest.rfind(b"\n") + 1 :])
            )
            for text in whole.splitlines():
                number += 1
                if number >= line:
                    sys.stdout.buffer.write(b"%d\t%s\n" % (number, text))
            if over is not None:
                sys.stdout.buffer.write(b"exit\t%d\n" % over)
            sys.stdout.buffer.flush()
            if over is not None:
                return over
            time.sleep(0.2)


def keep(attempt: str, command: list[str]) -> int:
    """Run the command, as the process that waits for it, and write down how it ended."""
    folder = FOLDER / f"attempt-{attempt}"
    with (folder / "kept").open("w") as kept:
        fcntl.flock(kept, fcntl.LOCK_EX)  # held as long as this process lives, whatever ends it
        try:
            process = subprocess.Popen(command)
        except OSError as error:
            print(f"cannot start {command[0]}: {error}")
            code = 2
        else:
            write(folder / "pid", process.pid)
            code = process.wait()
        write(folder / "exit", 128 - code if code < 0 else code)
        if not (folder / "pid").exists():
            write(folder / "pid", 0)
    return 0


def ended(folder: Path) -> int | None:
    """Return the command's exit code, None while it runs. A machine that started anew has no process, and no code."""
    if (folder / "exit").exists():
        return int((folder / "exit").read_text())
    with (folder / "kept").open() as kept:
        try:
            fcntl.flock(kept, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
    return int((folder / "exit").read_text()) if (folder / "exit").exists() else PREEMPTED


def end(number: signal.Signals, besides: Path | None = None, wait: float = 0.0) -> int:
    """Send a signal to the command of every attempt that still runs, and wait so many seconds for it to end."""
    for folder in FOLDER.glob("attempt-*"):
        if folder == besides or not (folder / "pid").exists() or ended(folder) is not None:
            continue
        try:
            os.kill(int((folder / "pid").read_text()), number)
            until = time.monotonic() + wait
            while ended(folder) is None and time.monotonic() < until:
                time.sleep(0.1)
        except ProcessLookupError:
            pass
    return 0


def write(path: Path, number: int) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(f"{number}\n")
    temporary.replace(path)


def main(words: list[str]) -> int:
    what = words[0] if words else ""
    if what == "follow":
        return follow(words[1], int(words[2]), words[4:])
    if what == "keep":
        return keep(words[1], words[2:])
    if what in ("stop", "end"):
        return end(signal.SIGTERM) if what == "stop" else end(signal.SIGKILL, wait=GRACE_SECONDS)
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
