"""The verbs `predict` and `embed`: files of any length in, an answer or a vector for each row out."""

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from jaxformer import config as configs
from jaxformer.data import IDS, PLACES, Malformed, Record, unlabelled
from jaxformer.errors import Interrupted, UserError, disk_errors
from jaxformer.objectives import Supervision
from jaxformer.runs.answer_file import AnswerFile, answer_file, numbered
from jaxformer.runs.embedding import layer_number, vectors
from jaxformer.runs.given import Given
from jaxformer.runs.loading import LoadedRun
from jaxformer.runs.official import check_official, write_official
from jaxformer.runs.predicting import answers_to
from jaxformer.runs.progress import Display
from jaxformer.runs.shapes import windows
from jaxformer.storage import store_errors

Example = dict[str, Any]
Read = Callable[[Record | Malformed, str], Example]


class Output(NamedTuple):
    """Where answers go (None: to standard output), whether what is there is replaced, how many malformed rows are
    answered with what is wrong with them, and whether the official scorer's files are written beside it."""

    path: Path | None = None
    overwrite: bool = False
    skip_malformed: int = 0
    official: bool = False


@store_errors()
def predict(run: LoadedRun, task: Supervision, rows: Given, output: Output, facts: Mapping[str, Any],
            display: Display) -> None:  # fmt: skip
    """Write the task's answer to each row as a line of JSON, with the row's number, from 0, and its id if it has one.

    All rows are read before the first is answered: a malformed one is refused at once, with its file and line. A file
    that is begun again, with the same `facts`, goes on behind its last whole line. Raises Interrupted on SIGTERM and
    Ctrl-C where it can go on.
    """

    def read(record: Record | Malformed, where: str) -> Example:
        return unlabelled(record, task.fields, task.label_kind, run.config.data, where)

    total, wrong = _looked_through(rows, read, output.skip_malformed)
    if output.official:
        check_official(task, output.path, wrong)
    with contextlib.ExitStack() as held:
        if output.path is None:
            file: Any = _Standard()
        else:
            file = held.enter_context(answer_file(output.path, {"input": rows.digest, **facts}, output.overwrite))
            held.enter_context(_going_on(file, total))
        begun, num_cut = file.count, 0
        if begun:
            goes_on = f"going on behind answer {begun:,} of {total:,}"
            display.note(f"{output.path}: {'nothing to do' if begun == total else goes_on}")
        for lines, cut in _answered(run, task, rows, read, begun):
            file.add(lines)
            num_cut += cut
            if output.path is not None:
                display.progress("predicting", file.count, total)
    notes = [f"{wrong:,} malformed"] if wrong else []
    what = task.answering.what_is_cut if task.answering else ""
    notes += [f"{num_cut:,} of {total - begun:,} {what}"] if num_cut else []
    if output.path is not None or notes:
        display.note(f"{output.path or 'standard output'}: {total:,} answers{_bracketed(notes)}")
    if output.official and output.path is not None:
        for path in write_official(task, output.path):
            display.note(f"{path}: for the official scorer")


def _looked_through(rows: Given, read: Read, skip: int) -> tuple[int, int]:
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


def _answered(
    run: LoadedRun, task: Supervision, rows: Given, read: Read, begun: int
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Yield lines from number `begun` on, some at a time, and how many texts of them were cut. Rows are read together
    as they would be from the beginning, so that answers do not depend on where a file goes on."""
    size = run.config.evaluation_rows
    start = end = 0
    for window in windows(rows.rows(), size):
        start, end = end, end + len(window)
        if end <= begun:
            continue
        lines: list[dict[str, Any]] = []
        examples = []
        for where, record in window:
            try:
                examples.append(read(record, where))
                known = examples[-1]["record"]
                lines.append(next(({"id": known[key]} for key in IDS if key in known), {}))
            except Malformed as error:
                lines.append({"error": str(error)})
        answers, cut = answers_to(run, task, examples, size)
        for line, answer in zip((line for line in lines if "error" not in line), answers, strict=True):
            line.update(answer)
        yield lines[max(begun - start, 0) :], cut


class _Standard:
    """Standard output, as a file of answers that is always new."""

    count = 0

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in numbered(lines, self.count):
            print(line)
        sys.stdout.flush()
        self.count += len(lines)


@contextlib.contextmanager
def _going_on(file: AnswerFile, total: int) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end what the same command goes on with, and say so."""

    def ended(number: int, frame: FrameType | None = None) -> None:
        said = f"stopped by {signal.Signals(number).name}: {file.count:,} of {total:,} are answered"
        raise Interrupted(f"{said}; run the same command to go on", code=130 if number == signal.SIGINT else 75)

    try:
        before = signal.signal(signal.SIGTERM, ended)
    except ValueError:  # not the main thread: the program around us owns the signals
        before = None
    try:
        yield
    except KeyboardInterrupt:
        ended(signal.SIGINT)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def facts_of(run: LoadedRun) -> dict[str, Any]:
    """Return what answers depend on, beside the rows: the parameters, the tokenizer, how it answers and reads."""
    settings = {key: value for key, value in run.config.to_dict().items() if key in ("task", "generation", "data")}
    flat = {key: value for key, value in configs.flat(settings).items() if key not in {f"data.{key}" for key in PLACES}}
    known = {"checkpoint": run.source.content, "tokenizer": run.tokenizer.fingerprint, **flat}
    found: dict[str, Any] = json.loads(json.dumps(known, default=str))  # as it is read back
    return found


def field_of(run: LoadedRun) -> str:
    """Return the field whose text is embedded where none is named: the task's, if it reads one alone, else that of the
    documents of the run's data."""
    fields = run.config.supervision.fields
    return fields[0] if len(fields) == 1 else getattr(run.config.data, "text_field", "") or "text"


@store_errors()
def embed(run: LoadedRun, rows: Given, field: str, pooling: tuple[str, int], output: Output, display: Display) -> None:
    """Write a vector of each row's text (`field`) to a .npy file, float32 [N, D], whole or not at all; `pooling` is its
    kind and the layer. Raises UserError, naming the row, for one without such a text."""
    path = output.path
    assert path is not None
    layer_number(run.model, *pooling)
    if path.exists() and not output.overwrite:
        raise UserError(f"--output: {path} is there; choose another one, or replace it with --overwrite")

    def read(record: Record | Malformed, where: str) -> Example:
        return unlabelled(record, (field,), "", run.config.data, where)

    total, _ = _looked_through(rows, read, 0)
    temporary = path.with_name(f".{path.name}.unfinished")
    counts = np.zeros(2, np.int64)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not all vectors need fit into memory.
            array = np.lib.format.open_memmap(temporary, "w+", np.float32, (total, run.model.config.d_model))
            done = 0
            texts = (read(record, where)[field] for where, record in rows.rows())
            for found, *numbers in vectors(run, texts, *pooling):
                array[done : done + len(found)] = found
                done, counts = done + len(found), counts + numbers
                display.progress("embedding", done, total)
            array.flush()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    cut, empty = counts.tolist()
    notes = [f"{cut:,} cut to {run.model.config.max_length} tokens"] if cut else []
    notes += [f"{empty:,} without a token: their vectors are 0"] if empty else []
    display.note(f"{path}: float32 {list(array.shape)}{_bracketed(notes)}")


def _bracketed(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""
