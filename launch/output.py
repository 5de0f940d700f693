"""What workers and the launcher say: each worker's lines behind its number, without secrets."""

import sys
import threading
from collections.abc import Callable

from jaxformer.launch.commands import ToolError
from jaxformer.launch.records import Record


def say(message: str) -> None:
    """Print a line of the launcher's own."""
    print(f"jaxformer launch: {message}", file=sys.stderr, flush=True)


def printer(record: Record, keep: bool = True) -> Callable[[str, str], None]:
    """Return a function that takes (worker, line), from any thread, and prints it behind the worker's number; with
    `keep` it is written to the worker's file, too."""
    lock, hide = threading.Lock(), record.hider()

    def put(worker: str, line: str) -> None:
        line = hide(line)
        with lock:
            if keep:
                with record.log(worker).open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            print(f"[{worker}] {line}", file=sys.stderr, flush=True)

    return put


def patiently(look: Callable[[], bool]) -> Callable[[], bool]:
    """Return `look`, but with False for a platform that does not answer; that is said, once until it answers again."""
    silent: list[str] = []

    def asked() -> bool:
        try:
            seen = look()
        except ToolError as error:
            if not silent:
                say(f"{error}; asking again, the job goes on")
            silent[:] = [error.line]
            return False
        silent.clear()
        return seen

    return asked
