"""Files of what a model is to answer: JSON lines, columns, or plain text with one text a line, as their names say.

A file of the kind that the run's own data are is read as these are, with their separators, quotes and columns. What is
not named by a suffix, as standard input is not, is JSON lines where its first line is an object, else plain text.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxformer.data.fields import Malformed, Record, is_list, raw_record, value_of
from jaxformer.data.files import Files
from jaxformer.data.finding import KINDS, PLAIN, suffix_of
from jaxformer.data.reading import not_utf8, open_bytes, raw_lines
from jaxformer.data.records import Rows, Source, texts_of
from jaxformer.data.sources import SOURCES
from jaxformer.errors import UserError

_KINDS = ("json_lines", "csv", "conll", "parquet")  # which suffixes tell
_LOOKED_AT = 1 << 16  # bytes


def input_records(file: Path, own: Source, field: str = "", whole: bool = False) -> Rows:
    """Yield (where it stands, record) of each row of a file, or what is wrong with it, given the run's own source; a
    line of plain text, or all of it where `whole` is said, is a record with this one field.

    Raises UserError for a file that cannot be read, and for plain text where there is no one `field` for it.
    """
    if not file.is_file():
        raise UserError(f"--input: {file} is a folder; name a file" if file.is_dir() else f"--input: no file {file}")
    kind = _kind(file)
    if isinstance(own, Files) and kind != "text" and type(own) is SOURCES[kind]:
        return dataclasses.replace(own, path=str(file), validation_path="", test_path="").rows(file)
    if kind != "text":
        named: dict[str, Any] = {"path": str(file)} | ({"text_field": field} if field else {})
        source = SOURCES[kind](**named)
        assert isinstance(source, Files)
        return source.rows(file)
    if not field:
        raise UserError(
            f"--input: {file} is plain text, but several fields are read; write them as JSON lines (.jsonl), an object "
            "a line, or as columns (.csv, .tsv)"
        )
    return _whole(file, field) if whole else _lines(file, field)


def _kind(file: Path) -> str:
    """Return the name of the source that reads a file, "text" for plain text."""
    suffix = suffix_of(file)
    if suffix == ".json" and _looks_like_squad(file):
        return "squad"
    if suffix and suffix not in PLAIN:
        for kind in _KINDS:
            if any(is_kind(suffix) for is_kind in KINDS[kind].suffixes):
                return kind
    return "json_lines" if suffix not in PLAIN and _begins_with_object(file) else "text"


def _looks_like_squad(file: Path) -> bool:
    with open_bytes(file) as stream:
        return b'"paragraphs"' in stream.read(_LOOKED_AT)


def _begins_with_object(file: Path) -> bool:
    first = next((line for line in raw_lines(file) if line.strip()), b"")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _lines(file: Path, field: str) -> Iterator[tuple[str, Record | Malformed]]:
    """Yield each line of a file of text, empty ones too: answers stand on the lines of their texts."""
    for number, line in enumerate(raw_lines(file), 1):
        where = f"{file}:{number}"
        try:
            yield where, {field: line.decode().rstrip("\r\n")}
        except UnicodeDecodeError as error:
            yield where, Malformed(f"{where}: {not_utf8(line, error)}")


def _whole(file: Path, field: str) -> Iterator[tuple[str, Record | Malformed]]:
    """Yield a file of text as one record."""
    pieces = []
    for number, line in enumerate(raw_lines(file), 1):
        try:
            pieces.append(line.decode())
        except UnicodeDecodeError as error:
            yield str(file), Malformed(f"{file}:{number}: {not_utf8(line, error)}")
            return
    yield str(file), {field: "".join(pieces)}


def unlabelled(record: Record | Malformed, fields: Sequence[str], kind: str, own: Source, where: str) -> dict[str, Any]:
    """Return what `Source.examples` makes of a row, {field: text, "label": None, "record": {…}}, whatever it has for a
    label; text whose words are to be tagged may be running text or a list of words. Raises Malformed."""
    if isinstance(record, Malformed):
        raise record
    running = kind == "tags" and not any(is_list(value_of(record, field, where)) for field in fields)
    texts, raw = texts_of(record, tuple(fields), "" if running else kind, where)
    return texts | {"label": None, "record": raw_record(record, raw, own.label_field)}
