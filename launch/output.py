"""What workers say: shown behind their number, kept in the job's folder, and rid of secrets."""

import os
import sys
import threading
from collections.abc import Callable

from jaxformer.launch.records import Record

_SHORTEST_SECRET = 6  # a shorter value would blot out ordinary words


def say(message: str) -> None:
    """Print a line of the launcher's own."""
    print(f"jaxformer launch: {message}", file=sys.stderr, flush=True)


def hiding(record: Record) -> Callable[[str], str]:
    """Return a function that blots out, in a line, the values that the job's secrets have here."""
    values = [os.environ.get(name, "") for name in record.asked()["job"]["secrets"]]
    hidden = [value for value in values if len(value) >= _SHORTEST_SECRET]

    def hide(line: str) -> str:
        for value in hidden:
            line = line.replace(value, "***")
        return line

    return hide


def printer(record: Record, keep: bool = True) -> Callable[[str, str], None]:
    """Return a function that takes (worker, line), from any thread, and prints it behind the worker's number; with
    `keep` it is written to the worker's file, too."""
    lock, hide = threading.Lock(), hiding(record)

    def put(worker: str, line: str) -> None:
        line = hide(line)
        with lock:
            if keep:
                with record.log(worker).open("a", encoding="utf-8") as file:
                    file.write(f"{line}\n")
            print(f"[{worker}] {line}", file=sys.stderr, flush=True)

    return put
