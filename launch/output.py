"""What workers say: shown behind their number, kept in the job's folder, and rid of secrets."""

import sys
import threading
from collections.abc import Callable, Iterable

from jaxformer.launch.records import Record

Printer = Callable[[str, str], None]
_SHORTEST_SECRET = 6  # a shorter value would blot out ordinary words


def say(message: str) -> None:
    """Print a line of the launcher's own."""
    print(f"jaxformer launch: {message}", file=sys.stderr, flush=True)


def printer(record: Record, secrets: Iterable[str] = (), show: bool = True) -> Printer:
    """Return a function that takes (worker, line) and prints it behind the worker's number, from any thread."""
    lock = threading.Lock()
    hidden = [value for value in secrets if len(value) >= _SHORTEST_SECRET]

    def put(worker: str, line: str) -> None:
        for value in hidden:
            line = line.replace(value, "***")
        with lock, record.log(worker).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            if show:
                print(f"[{worker}] {line}", file=sys.stderr, flush=True)

    return put
