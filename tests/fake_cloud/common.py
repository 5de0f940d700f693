"""What the fakes of gcloud, kubectl and sky share: the state of one make-believe cloud, its processes, their failures.

Nothing but the standard library is imported here, because each call of a fake is a program that has to start quickly.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

TICK = 0.02  # seconds between two looks at what others may have changed
# A process of a node, pod or job carries this mark in its environment, and so do all that it starts, in other sessions
# too: that is how they are found and killed when their machine is taken away.
MARK = "FAKE_CLOUD_MACHINE"


class Refusal(Exception):
    """The tool says this on stderr and exits with that code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Store:
    """All that the cloud knows: one JSON file, read and written by one process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """The state, to be changed in place; it is kept unless the block raises."""
        with open(self.folder / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read()
            yield state
            written = self.folder / "state.json.new"
            written.write_text(json.dumps(state))
            written.replace(self.folder / "state.json")

    def read(self) -> dict[str, Any]:
        """The state as it last was: files are replaced whole, so reading needs no lock."""
        try:
            return json.loads((self.folder / "state.json").read_text())
        except FileNotFoundError:
            return {}

    def setting(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())


def start(tool: str, arguments: list[str]) -> Store:
    """Record the call."""
    store = Store(Path(os.environ["FAKE_CLOUD"]))
    append(store.folder / "calls.jsonl", {"tool": tool, "argv": arguments})
    return store


def append(path: Path, line: dict[str, Any]) -> None:
    """Write a line at once, so that it is never mixed with another process's."""
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(line).encode() + b"\n")


def planned_failure(store: Store, tool: str, arguments: list[str]) -> str | None:
    """The kind of failure that a test planned for this call, which uses one of them up."""
    with store.change() as state:
        for plan in state.get("failures", []):
            if plan["tool"] == tool and plan["times"] > 0 and set(plan["words"]) <= set(arguments):
                plan["times"] -= 1
                return str(plan["kind"])
    return None


class Parser(argparse.ArgumentParser):
    """Strict parsing with the tool's own words and exit codes; `flags` are 'name' (a switch), 'name=' or 'name=*'."""

    def __init__(self, title: str, code: int, form: str) -> None:
        super().__init__(prog=title, add_help=False, allow_abbrev=False)
        self.code = code
        self.form = form

    def flags(self, *names: str) -> "Parser":
        for name in names:
            words, value, repeated = name.partition("=")
            options = [("-" if len(word) == 1 else "--") + word for word in words.split("|")]
            if value:
                self.add_argument(*options, action="append" if repeated else "store")
            else:
                self.add_argument(*options, action="store_true")
        return self

    def error(self, message: str) -> NoReturn:
        raise Refusal(self.form.format(title=self.prog, message=message), self.code)


def environment(store: Store, machine: str, **more: str) -> dict[str, str]:
    """What a program on a machine of the cloud gets: nothing of the launcher's environment, as on a real machine."""
    own = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    return {**own, **store.setting("worker_environment"), **more, MARK: f"{store.folder}/{machine}"}


def processes(mark: str) -> list[int]:
    """The living processes whose environment has this entry (all of it, or up to a final '*')."""
    exact, found = mark.encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                entries = (entry / "environ").read_bytes().split(b"\0")  # empty for one that has ended
                if any(e == exact or (exact.endswith(b"*") and e.startswith(exact[:-1])) for e in entries):
                    found.append(int(entry.name))
    return found


def kill(mark: str, wait: float = 30) -> None:
    """Kill all that `processes` finds and wait until none is left, those included that start just now."""
    end = time.monotonic() + wait
    while found := processes(mark):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            raise TimeoutError(f"still alive: {found}")
        time.sleep(TICK)


def machine(store: Store, name: str) -> str:
    """The mark of a node, pod or job's machine; with '*' at its end, of all machines whose names start so."""
    return f"{MARK}={store.folder}/{name}"


def detach(store: Store, tool: str, *arguments: str) -> None:
    """Start a controller, which outlives this call as a cloud outlives its clients."""
    import subprocess

    with open(store.folder / "controllers.log", "ab") as log:
        subprocess.Popen(
            [store.folder / "bin" / tool, "CONTROLLER", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def exit_code(returned: int) -> int:
    """What a shell calls the code of a process that a signal ended."""
    return returned if returned >= 0 else 128 - returned


def run(main: Any, arguments: list[str]) -> int:
    """The tool's exit code, its refusal printed."""
    try:
        return int(main(arguments) or 0)
    except Refusal as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
