"""Rows of any number in, a line of JSON for each out: what every verb that answers a file shares.

The same command goes on behind the last whole line of its output. Of several processes each reads all rows and answers
its part of every batch, and the first one writes.
"""

import contextlib
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from jax.experimental import multihost_utils

from jaxformer.data import IDS, Malformed, Record
from jaxformer.devices import agreed, has_peers, is_first, let_speak
from jaxformer.errors import Interrupted, UserError
from jaxformer.runs.answer_file import answer_file, numbered
from jaxformer.runs.given import Given
from jaxformer.runs.progress import Display
from jaxformer.runs.shapes import windows

Example = dict[str, Any]
Read = Callable[[Record | Malformed, str], Example]
Line = Mapping[str, Any]


class Output(NamedTuple):
    """Where answers go (None: to standard output), whether what is there is replaced, how many malformed rows are
    answered with what is wrong with them, whether the official scorer's files are written beside it, and how a line is
    shown on standard output (None: as JSON)."""

    path: Path | None = None
    overwrite: bool = False
    skip_malformed: int = 0
    official: bool = False
    shown: Callable[[Line], str] | None = None


class Work(NamedTuple):
    """What is done with rows: its name in the progress bar, how a record is read as an example (raising Malformed), and
    how examples are answered, given with the numbers of their rows, `size` in a batch: an answer for each, in their
    order. What there is to say of them is told to the third argument as counts, at any time."""

    activity: str
    read: Read
    answer: Callable[[Sequence[Example], Sequence[int], Callable[..., None]], list[dict[str, Any]]]
    size: int


class Tally(NamedTuple):
    """How many rows there are, how many of them malformed, how many were answered now, what was counted of these, and
    how many seconds it took."""

    total: int
    malformed: int
    answered: int
    counts: Mapping[str, int]
    seconds: float


def answer_rows(rows: Given, work: Work, output: Output, facts: Mapping[str, Any], display: Display) -> Tally:
    """Write the answer to each row as a line of JSON, with the row's number, from 0, and its id if it has one.

    All rows are read before the first is answered: a malformed one is refused at once, with its file and line. A file
    that is begun again, with the same `facts`, goes on behind its last whole line. Raises Interrupted on SIGTERM and
    Ctrl-C where it can go on.
    """
    total, wrong = looked_through(rows, work.read, output.skip_malformed)
    counts: Counter[str] = Counter()
    with contextlib.ExitStack() as held:
        file, begun = _opened(output, {"input": rows.digest, **facts}, held)
        if output.path is not None:
            held.enter_context(_going_on(file, total))
        if begun:
            goes_on = f"going on behind answer {begun:,} of {total:,}"
            display.note(f"{output.path}: {'nothing to do' if begun == total else goes_on}")
        started, done = time.monotonic(), begun

        def count(**found: int) -> None:
            nonlocal done
            counts.update(found)
            before, done = done, min(max(file.count, begun + counts["rows"]), total)
            if output.path is not None and done > before:
                display.progress(work.activity, done, total, speed(counts, time.monotonic() - started))

        for number, lines in enumerate(_answered(rows, work, begun, count), 1):
            file.add(lines)
            count()
            if output.path is not None:
                _stop_together(file, total, number)
        seconds = time.monotonic() - started
    return Tally(total, wrong, total - begun, counts, seconds)


def speed(counts: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Return the tokens per second, where "tokens" are counted, as a progress bar shows it."""
    return {"tok/s": counts["tokens"] / max(seconds, 1e-9)} if counts.get("tokens") else {}


def bracketed(notes: Sequence[str]) -> str:
    """Return what is said behind the number of answers."""
    return f" ({'; '.join(notes)})" if notes else ""


def looked_through(rows: Given, read: Read, skip: int) -> tuple[int, int]:
    """Return how many rows there are, and how many of them are malformed, of which `skip` may be. Raises the first one
    too many."""
    total = wrong = 0
    for where, record in rows.rows():
        total += 1
        try:
            read(record, where)
        except Malformed as error:
            if wrong == skip:
                told = (
                    f" (--skip-malformed={skip} let pass {skip} before it; raise it, or mend the rows)" if skip else ""
                )
                raise UserError(f"{error}{told}") from error
            wrong += 1
    return total, wrong


def _answered(rows: Given, work: Work, begun: int, count: Callable[..., None]) -> Iterator[list[dict[str, Any]]]:
    """Yield lines from number `begun` on, some at a time. Rows are read together as they would be from the beginning:
    answers do not depend on where a file goes on."""
    start = end = 0
    for window in windows(rows.rows(), work.size):
        start, end = end, end + len(window)
        if end <= begun:
            continue
        lines: list[dict[str, Any]] = []
        examples, numbers = [], []
        for number, (where, record) in enumerate(window, start):
            try:
                examples.append(work.read(record, where))
                numbers.append(number)
                known = examples[-1]["record"]
                lines.append(next(({"id": known[key]} for key in IDS if key in known), {}))
            except Malformed as error:
                lines.append({"error": str(error)})
        answers = work.answer(examples, numbers, count)
        for line, answer in zip((line for line in lines if "error" not in line), answers, strict=True):
            line.update(answer)
        yield lines[max(begun - start, 0) :]


class _Standard:
    """Standard output, as a file of answers that is always new; of several processes the first one's."""

    count = 0

    def __init__(self, shown: Callable[[Line], str] | None) -> None:
        self._shown = shown

    def add(self, lines: Sequence[Line]) -> None:
        if is_first():
            for line in numbered(lines, self.count) if self._shown is None else map(self._shown, lines):
                print(line)
            sys.stdout.flush()
        self.count += len(lines)


class _Elsewhere:
    """A file that the first process writes, as the others see it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def add(self, lines: Sequence[Line]) -> None:
        self.count += len(lines)


def _opened(output: Output, facts: Mapping[str, Any], held: contextlib.ExitStack) -> tuple[Any, int]:
    """Return the file of answers, open until `held` is closed, and how many of its lines are there already."""
    if output.path is None:
        return _Standard(output.shown), 0
    if not has_peers():
        file = held.enter_context(answer_file(output.path, facts, output.overwrite))
        return file, file.count
    failure: BaseException | None = None
    count = -1
    if is_first():
        try:
            file = held.enter_context(answer_file(output.path, facts, output.overwrite))
            count = file.count
        except Exception as error:
            failure = error
    begun = agreed(count)
    if begun < 0:
        if failure is None:
            let_speak()
        raise failure or UserError(f"process 0 could not open {output.path}; its own message says why")
    return (file if is_first() else _Elsewhere(begun)), begun


@contextlib.contextmanager
def _going_on(file: Any, total: int) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end what the same command goes on with, and say so. Of several processes JAX watches for
    SIGTERM (see `_stop_together`)."""

    def ended(number: int, frame: FrameType | None = None) -> None:
        raise _interrupted(file, total, number)

    before = None
    if not has_peers():
        with contextlib.suppress(ValueError):  # not the main thread: the program around us owns the signals
            before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    except KeyboardInterrupt:
        ended(signal.SIGINT)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _stop_together(file: Any, total: int, number: int) -> None:
    """Of several processes, end all behind the same rows once one of them was told to. All must ask."""
    if has_peers() and multihost_utils.reached_preemption_sync_point(number):
        raise _interrupted(file, total, signal.SIGTERM)


def _interrupted(file: Any, total: int, number: int) -> Interrupted:
    said = f"stopped by {signal.Signals(number).name}: {file.count:,} of {total:,} are answered"
    return Interrupted(f"{said}; run the same command to go on", code=130 if number == signal.SIGINT else 75)
