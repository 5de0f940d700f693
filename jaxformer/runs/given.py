"""What a person gives a model to read: texts of the command line, a file, or standard input."""

import contextlib
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data import Malformed, Record, input_records
from jaxformer.errors import UserError, disk_errors
from jaxformer.storage import content_digest, local_path

STDIN = "-"
_SHOWN = "standard input"


class Given(NamedTuple):
    """Rows to be read: `rows` yields (where, record), or what is wrong with one, anew at every call; `digest` is that
    of their content."""

    rows: Callable[[], Iterator[tuple[str, Record | Malformed]]]
    digest: str


@contextlib.contextmanager
def given(texts: Sequence[str], file: str, own: Any, fields: Sequence[str], whole: bool = False) -> Iterator[Given]:
    """Give the rows of `texts`, else those of a file, else ("" or "-") of standard input, for a model that reads
    `fields`; `own` is the run's own source of data. Plain text is a row a line, or, if `whole`, one row.

    Standard input is kept in a temporary file until the end. Raises UserError for a file that cannot be read as rows.
    """
    if texts and file:
        raise UserError(f"--input={file}: texts are given as well; leave one of them out")
    if texts:
        known = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
        yield Given(lambda: (_row(text, fields, f"text {n}") for n, text in enumerate(texts)), known[:16])
        return
    field = fields[0] if len(fields) == 1 else ""
    if file and file != STDIN:
        path = local_path(file, "--input")
        rows = lambda: input_records(path, own, field, whole)  # noqa: E731
        rows()  # refused before anything is computed
        yield Given(rows, content_digest(path)[:16])
        return
    with tempfile.TemporaryDirectory(prefix="jaxformer-") as folder:
        path = Path(folder) / "input"
        with disk_errors(path), path.open("wb") as spooled:
            shutil.copyfileobj(sys.stdin.buffer, spooled)
        rows = lambda: _shown(path, own, field, whole)  # noqa: E731
        yield Given(rows, content_digest(path)[:16])


def _row(text: str, fields: Sequence[str], where: str) -> tuple[str, Record | Malformed]:
    """Return a text as a row: as it is where one field is read, else as the JSON object that it must be."""
    if len(fields) == 1:
        return where, {fields[0]: text}
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(record := json.loads(text), dict):
            return where, record
    example = "{" + ", ".join(f'"{field}": "…"' for field in fields) + "}"
    return where, Malformed(f"{where}: the task reads several fields; give them as JSON, {example}")


def _shown(path: Path, own: Any, field: str, whole: bool) -> Iterator[tuple[str, Record | Malformed]]:
    """Yield the rows of what standard input gave, by its name."""
    try:
        for where, record in input_records(path, own, field, whole):
            wrong = Malformed(str(record).replace(str(path), _SHOWN)) if isinstance(record, Malformed) else record
            yield where.replace(str(path), _SHOWN), wrong
    except UserError as error:
        raise UserError(str(error).replace(str(path), _SHOWN)) from error
