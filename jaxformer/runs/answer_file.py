"""A file of answers that is written line by line, and goes on behind its last whole line when it is begun again.

Beside FILE stands FILE.run.json, which says what the answers are of: other input, or another model, does not go on in
the same file.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from jaxformer.errors import UserError, disk_errors
from jaxformer.storage import finite, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

INDEX = "index"  # the key of each line that says of which row of the input it is, counted from 0


class AnswerFile:
    """An open file of answers. `count` lines of it are there already; `add` writes whole lines only."""

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file, self.count = file, count

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the answers to the next rows, each with its number."""
        self._file.write("".join(line + "\n" for line in numbered(lines, self.count)).encode())
        self._file.flush()
        self.count += len(lines)


def numbered(lines: Sequence[Mapping[str, Any]], first: int) -> Iterator[str]:
    """Yield each answer as a line of JSON that begins with the number of its row."""
    for place, line in enumerate(lines):
        text = json.dumps(_rounded(finite({INDEX: first + place, **line})), ensure_ascii=False)
        yield text.encode(errors="backslashreplace").decode()  # half a surrogate pair, which an id may hold


def _rounded(value: Any) -> Any:
    """Return what JSON holds with as many digits as the numbers of a model have."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


@contextlib.contextmanager
def answer_file(path: Path, facts: Mapping[str, Any], overwrite: bool = False) -> Iterator[AnswerFile]:
    """Open the file of answers at `path`, to begin it or to go on with it; `facts` say what its answers are of.

    Half a line, which a kill may leave, is cut. Raises UserError for a file that is something else, or whose answers
    are of something else, unless `overwrite`; and where another process writes to it.
    """
    beside = path.with_name(f"{path.name}.run.json")
    with disk_errors(path):
        if path.is_dir():
            raise UserError(f"--output: {path} is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            _lock(file, path)
            if overwrite:
                file.truncate(0)
            if file.seek(0, os.SEEK_END):
                _check(path, beside, facts)
                count = _whole_lines(file, path)
            else:
                write_json(beside, dict(facts))
                count = 0
            yield AnswerFile(file, count)
            os.fsync(file.fileno())


def _lock(file: BinaryIO, path: Path) -> None:
    """Hold the file until it is closed."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"--output: another process writes to {path}; wait for it, or stop it") from None
    except OSError:  # a file system that has no locks
        pass


def _check(path: Path, beside: Path, facts: Mapping[str, Any]) -> None:
    """Raise UserError unless the answers in a file are of what `facts` say."""
    advice = "choose another --output, or replace it with --overwrite"
    try:
        known = json.loads(beside.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        raise UserError(
            f"--output: {path} is there, and not known to hold answers of this command ({beside.name}, which says what "
            f"they are of, is missing or damaged); {advice}"
        ) from None
    changed = [key for key in facts if key in known and known[key] != facts[key]]
    if changed:
        differing = "; ".join(f"{key}: {known[key]} -> {facts[key]}" for key in changed)
        raise UserError(f"--output: the answers in {path} are of something else ({differing}); {advice}")


def _whole_lines(file: BinaryIO, path: Path) -> int:
    """Return how many whole lines a file has; what stands behind the last one is cut."""
    file.seek(0)
    count, end, last = 0, 0, b""
    for line in file:
        if line.endswith(b"\n"):
            count, end, last = count + 1, end + len(line), line
    try:
        fits = not count or json.loads(last)[INDEX] == count - 1
    except (ValueError, LookupError, TypeError):
        fits = False
    if not fits:
        raise UserError(f"--output: line {count} of {path} is not its answer {count - 1}; replace it with --overwrite")
    file.truncate(end)
    file.seek(0, os.SEEK_END)
    return count
