"""Local files as sources: plain text, JSON lines, Parquet. What is malformed is named with its file and line."""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

from jaxformer.checks import check_choice
from jaxformer.data.finding import CSV, JSON_LINES, KINDS, OTHERS, PARQUET, Kind, find_files, suffix_of
from jaxformer.data.left_out import LeftOut, count, total
from jaxformer.data.reading import has_read, lines, not_utf8, raw_lines, whole
from jaxformer.data.records import Contents, Malformed, Record, Rows, Source, digest, first_line
from jaxformer.errors import UserError
from jaxformer.storage import content_digest

_FIELDS = {"json_lines": (*JSON_LINES, ".json"), "parquet": PARQUET, "csv": CSV}  # what files of a suffix are read by
_LISTED = 1000  # files; of more there is one digest of all


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Source):
    """Local files: `path` is one, a folder (`finding` says which of its files), or a pattern with `*`.

    `validation_path` and `test_path` hold rows of their own; without the former, a share of `path` is held out.
    """

    path: str
    validation_path: str = ""
    test_path: str = ""
    TEST: ClassVar[str] = "test_path"
    KIND: ClassVar[Kind]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise UserError("data.path: missing; give a file, a folder or a pattern such as 'texts/*.txt'")

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test") if self.test_path else ("train", "validation")

    @property
    def shares(self) -> bool:
        return not self.validation_path

    @property
    def paths(self) -> dict[str, str]:
        """{key: path} of all that is read."""
        paths = {key: getattr(self, key) for key in ("path", "validation_path", "test_path")}
        return {key: path for key, path in paths.items() if path}

    def files(self, split: str = "train") -> list[Path]:
        key = f"{split}_path" if f"{split}_path" in self.paths else "path"
        return find_files(self.paths[key], self.KIND, f"data.{key}").files

    def amount(self, split: str) -> int:
        return sum(file.stat().st_size for file in self.files(split))

    def left_out_files(self) -> LeftOut:
        found = [find_files(path, self.KIND, f"data.{key}") for key, path in self.paths.items()]
        return total(files.left_out for files in found)

    def rows(self, file: Path) -> Iterator[tuple[str, Record | Malformed]]:
        """Yield (where, record) of one file, or what is wrong with a row of it."""
        raise TypeError("a kind of file says how it is read")

    def stored(self, part: str, labelled: bool) -> Rows:
        return itertools.chain.from_iterable(self.rows(file) for file in self.files(part))

    def all_records(self, labelled: bool) -> Rows:
        return itertools.chain.from_iterable(self.stored(part, labelled) for part in self.parts)

    def fingerprint(self, split: str) -> str:
        settings = dataclasses.asdict(self) | {"shares": self.shares}
        return digest(type(self).__name__, _hashed(self.files(split)), settings, split)

    def contents(self) -> Contents:
        found = zip(self.paths.items(), self.parts, strict=True)
        return {key: self._contents(path, self.files(part)) for (key, path), part in found}

    def _contents(self, path: str, files: list[Path]) -> dict[str, str]:
        given = Path(path).expanduser()
        root = given if given.is_dir() else Path(os.path.commonpath([file.parent for file in files]))
        hashes = [found[:16] for found in _hashed(files)]
        if len(files) > _LISTED:
            return {f"{len(files)} files": digest(*hashes)}
        return {file.relative_to(root).as_posix(): found for file, found in zip(files, hashes, strict=True)}


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
        left_out = dict(super().left_out_files())
        suffixes = [suffix_of(file) for part in self.parts for file in self.files(part)]
        for suffix in sorted({suffix for suffix in suffixes if suffix in OTHERS}):
            reader = next((name for name in _FIELDS if suffix in _FIELDS[name]), "")
            advice = f"; data.name={reader} reads their fields" if reader else ""
            count(left_out, f"files read as plain text, {suffix}{advice}", suffixes.count(suffix), len(suffixes))
        return left_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class JSONLines(Files):
    """One JSON object per line. A file called .json may be an array of objects."""

    KIND: ClassVar[Kind] = KINDS["json_lines"]

    def rows(self, file: Path) -> Iterator[tuple[str, Record | Malformed]]:
        if suffix_of(file) == ".json" and _begins(file, b"["):
            for number, record in enumerate(json_of(file)):
                where = f"{file}[{number}]"
                yield where, record if isinstance(record, dict) else _no_object(record, where)
            return
        for number, line in enumerate(raw_lines(file), 1):
            if line.strip():
                yield (where := f"{file}:{number}"), _json_object(line, where)


def _begins(file: Path, sign: bytes) -> bool:
    return next((line for line in raw_lines(file) if line.strip()), b"").lstrip().startswith(sign)


def json_of(file: Path) -> Any:
    """Return what a file holds that is one piece of JSON. Raises UserError for what is none."""
    text = whole(file)
    try:
        return json.loads(text.decode())
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); mend it") from error
    except UnicodeDecodeError as error:
        number = text.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{number}: {not_utf8(text.splitlines()[number - 1], error)}") from error
    except RecursionError as error:
        raise UserError(f"{file}: not JSON (nested too deeply)") from error


def _no_object(value: Any, where: str) -> Malformed:
    return Malformed(f"{where}: {type(value).__name__}, not an object with fields")


def _json_object(line: bytes, where: str) -> Record | Malformed:
    try:
        record = json.loads(line.decode())
    except json.JSONDecodeError as error:
        return Malformed(f"{where}: not JSON ({error.msg} at column {error.colno}); mend or drop the line")
    except UnicodeDecodeError as error:
        return Malformed(f"{where}: {not_utf8(line, error)}")
    except RecursionError:
        return Malformed(f"{where}: not JSON (nested too deeply); mend or drop the line")
    return record if isinstance(record, dict) else _no_object(record, where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(Files):
    """Parquet files, one record per row."""

    KIND: ClassVar[Kind] = KINDS["parquet"]

    def rows(self, file: Path) -> Iterator[tuple[str, Record]]:
        import pyarrow
        import pyarrow.parquet

        number = 0
        try:
            rows = pyarrow.parquet.ParquetFile(file)
            size = file.stat().st_size / max(1, rows.metadata.num_rows)
            for batch in rows.iter_batches():
                has_read(int(batch.num_rows * size))
                for record in batch.to_pylist():
                    yield f"{file} row {number}", record
                    number += 1
        except (PermissionError, FileNotFoundError) as error:
            raise UserError(f"{file}: cannot be read: {error.strerror}") from error
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file}: not a Parquet file, or damaged after row {number}: {first_line(error)}"
            ) from error
