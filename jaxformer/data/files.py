"""Local files as sources: plain text, JSON lines, Parquet. What is malformed is named with its file and line."""

import codecs
import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from jaxformer.checks import check_choice
from jaxformer.data.finding import JSON_LINES, KINDS, OTHERS, PARQUET, Kind, find_files, suffix_of
from jaxformer.data.left_out import LeftOut, count
from jaxformer.data.reading import lines, not_utf8, open_bytes
from jaxformer.data.records import Contents, Malformed, Record, Source, digest, first_line
from jaxformer.errors import UserError
from jaxformer.storage import content_digest

_LISTED = 1000  # files; of more there is one digest of all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Source):
    """Local files: `path` is one, a folder (`finding` says which of its files), or a pattern with `*`."""

    path: str
    KIND: ClassVar[Kind]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError("data.path: missing; give a file, a folder or a pattern such as 'texts/*.txt'")

    def files(self) -> list[Path]:
        return find_files(self.path, self.KIND).files

    def left_out_files(self) -> LeftOut:
        return find_files(self.path, self.KIND).left_out

    def rows(self, file: Path) -> Iterator[tuple[str, Record | Malformed]]:
        """Yield (where, record) of one file, or what is wrong with a row of it."""
        raise TypeError("a kind of file says how it is read")

    def records(self, split: str, labelled: bool) -> Iterator[tuple[str, Record | Malformed]]:
        for number, row in enumerate(self.all_records(labelled)):
            if self._in_split(number, split):
                yield row

    def all_records(self, labelled: bool) -> Iterator[tuple[str, Record | Malformed]]:
        return itertools.chain.from_iterable(self.rows(file) for file in self.files())

    def fingerprint(self, split: str) -> str:
        return digest(type(self).__name__, _hashed(self.files()), dataclasses.asdict(self), split)

    def contents(self) -> Contents:
        files = self.files()
        given = Path(self.path).expanduser()
        root = given if given.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
        hashes = [found[:16] for found in _hashed(files)]
        if len(files) > _LISTED:
            return {"path": {f"{len(files)} files": digest(*hashes)}}
        return {"path": {file.relative_to(root).as_posix(): found for file, found in zip(files, hashes, strict=True)}}


def _hashed(files: list[Path]) -> list[str]:
    """Return the digest of each file's content, which names it wherever the file lies and however it is called."""
    try:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(content_digest, files))
    except OSError as error:
        raise UserError(f"{error.filename or files[0]}: cannot be read: {error.strerror}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Files):
    """Plain UTF-8 text, cut into documents at blank lines, at every line, or not at all (`document`: file)."""

    document: str = "blank_line"
    KIND: ClassVar[Kind] = KINDS["text"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("data.document", self.document, ("blank_line", "line", "file"))

    def rows(self, file: Path) -> Iterator[tuple[str, Record]]:
        kept: list[str] = []
        first = 1
        for number, line in enumerate(lines(file), 1):
            ends = self.document == "line" or (self.document == "blank_line" and not line.strip())
            kept.append(line)
            if ends:
                if text := "".join(kept).strip():
                    yield f"{file}:{first}", {self.text_field: text}
                kept, first = [], number + 1
        if text := "".join(kept).strip():
            yield f"{file}:{first}", {self.text_field: text}

    def left_out_files(self) -> LeftOut:
        found = find_files(self.path, self.KIND)
        suffixes = [suffix_of(file) for file in found.files]
        left_out = dict(found.left_out)
        for suffix in sorted({suffix for suffix in suffixes if suffix in OTHERS}):
            reader = "json_lines" if suffix in (*JSON_LINES, ".json") else "parquet" if suffix in PARQUET else ""
            advice = f"; data.name={reader} reads their fields" if reader else ""
            count(left_out, f"files read as plain text, {suffix}{advice}", suffixes.count(suffix), len(suffixes))
        return left_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class JSONLines(Files):
    """One JSON object per line."""

    KIND: ClassVar[Kind] = KINDS["json_lines"]

    def rows(self, file: Path) -> Iterator[tuple[str, Record | Malformed]]:
        with open_bytes(file) as lines_of_bytes:
            for number, line in enumerate(lines_of_bytes, 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if line.strip():
                    yield (where := f"{file}:{number}"), _json_object(line, where)


def _json_object(line: bytes, where: str) -> Record | Malformed:
    try:
        record = json.loads(line.decode())
    except json.JSONDecodeError as error:
        return Malformed(f"{where}: not JSON ({error.msg} at column {error.colno}); mend or drop the line")
    except UnicodeDecodeError as error:
        return Malformed(f"{where}: {not_utf8(line, error)}")
    except RecursionError:
        return Malformed(f"{where}: not JSON (nested too deeply); mend or drop the line")
    if not isinstance(record, dict):
        return Malformed(f"{where}: {type(record).__name__}, not an object with fields")
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(Files):
    """Parquet files, one record per row."""

    KIND: ClassVar[Kind] = KINDS["parquet"]

    def rows(self, file: Path) -> Iterator[tuple[str, Record]]:
        import pyarrow
        import pyarrow.parquet

        number = 0
        try:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for record in batch.to_pylist():
                    yield f"{file} row {number}", record
                    number += 1
        except (PermissionError, FileNotFoundError) as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from error
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file}: not a Parquet file, or damaged after row {number}: {first_line(error)}"
            ) from error
