"""Local files as sources: plain text, JSON lines, Parquet. What is malformed is named with its file and line."""

import dataclasses
import glob
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from jaxformer.checks import check_choice
from jaxformer.data.records import Malformed, Record, Source, digest, first_line
from jaxformer.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Source):
    """Local files: `path` is one, a folder (all files in it, sorted), or a pattern with `*`."""

    path: str
    SUFFIX: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError("data.path: missing; give a file, a folder or a pattern such as 'texts/*.txt'")

    def files(self) -> list[Path]:
        path = Path(self.path).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.rglob(f"*{self.SUFFIX}") if file.is_file())
        elif path.is_file():
            found = [path]  # also where its name holds * or [
        else:
            found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            wanted = f"*{self.SUFFIX} in {self.path}" if path.is_dir() else self.path
            raise UserError(f"data.path: no file {wanted}; give a file, a folder or a pattern such as 'texts/*.txt'")
        return found

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
        files = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files()]
        return digest(type(self).__name__, files, dataclasses.asdict(self), split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Files):
    """Plain UTF-8 text, cut into documents at blank lines, at every line, or not at all (`document`: file)."""

    document: str = "blank_line"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("data.document", self.document, ("blank_line", "line", "file"))

    def rows(self, file: Path) -> Iterator[tuple[str, Record]]:
        kept: list[str] = []
        first = 1
        for number, line in enumerate(_lines(file), 1):
            ends = self.document == "line" or (self.document == "blank_line" and not line.strip())
            kept.append(line)
            if ends:
                if text := "".join(kept).strip():
                    yield f"{file}:{first}", {self.text_field: text}
                kept, first = [], number + 1
        if text := "".join(kept).strip():
            yield f"{file}:{first}", {self.text_field: text}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JSONLines(Files):
    """One JSON object per line."""

    SUFFIX: ClassVar[str] = ".jsonl"

    def rows(self, file: Path) -> Iterator[tuple[str, Record | Malformed]]:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                yield (where := f"{file}:{number}"), _json_object(line, where)


def _json_object(line: str, where: str) -> Record | Malformed:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        return Malformed(f"{where}: not JSON ({error.msg} at column {error.colno}); mend or drop the line")
    return (
        record
        if isinstance(record, dict)
        else Malformed(f"{where}: {type(record).__name__}, not an object with fields")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(Files):
    """Parquet files, one record per row."""

    SUFFIX: ClassVar[str] = ".parquet"

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


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as lines:  # without the byte order mark that Windows writes
            yield from lines
    except UnicodeDecodeError as error:
        number = _undecodable(file)
        raise UserError(f"{file}:{number}: not UTF-8 text ({error.reason}); convert the file") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def _undecodable(file: Path) -> int:
    """Return the first line that is not UTF-8. Text is decoded in blocks, so reading lines does not tell."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1
