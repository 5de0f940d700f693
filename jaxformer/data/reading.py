"""How a file of text is read: decompressed as its name says, decoded as UTF-8. Anything else is named as what it is."""

import bz2
import codecs
import contextlib
import contextvars
import dataclasses
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxformer.errors import UserError

_BLOCK = 1 << 16  # bytes by which a file is recognised
_FORMATS = {
    b"%PDF-": "a PDF document",
    b"PAR1\x15": "a Parquet file; data.name=parquet reads it",
    b"PK\x03\x04": "a zip archive (.docx, .xlsx and .epub are such, too)",
    b"\x1f\x8b": "compressed with gzip; name it ….gz",
    b"BZh91AY&SY": "compressed with bzip2; name it ….bz2",
    b"\xfd7zXZ": "compressed with xz; name it ….xz",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard; name it ….zst",
    b"ARROW1\x00": "an Arrow file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"SQLite format 3": "a SQLite database",
}
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32LE",
    b"\x00\x00\xfe\xff": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
}


def _zstandard(raw: BinaryIO) -> Any:
    import pyarrow

    return pyarrow.input_stream(raw, compression="zstd")


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}


@dataclasses.dataclass
class Count:
    """How much was read: bytes of files, as they lie on the disk before any is decompressed, or rows of data sets that
    are no files of text."""

    closed: int = 0
    opened: list[BinaryIO] = dataclasses.field(default_factory=list)

    @property
    def read(self) -> int:
        return self.closed + sum(file.tell() for file in self.opened)


_COUNT: contextvars.ContextVar[Count | None] = contextvars.ContextVar("count", default=None)


@contextlib.contextmanager
def counted() -> Iterator[Count]:
    """Count what is read inside, by `open_bytes` or as `has_read` is told."""
    count = Count()
    before = _COUNT.set(count)
    try:
        yield count
    finally:
        _COUNT.reset(before)


def has_read(amount: int) -> None:
    if count := _COUNT.get():
        count.closed += amount


@contextlib.contextmanager
def _counting(file: BinaryIO) -> Iterator[None]:
    count = _COUNT.get() or Count()
    count.opened.append(file)
    try:
        yield
    finally:
        count.opened.remove(file)
        count.closed += 0 if file.closed else file.tell()  # a reader that is dropped may close it first


@contextlib.contextmanager
def open_bytes(file: Path) -> Iterator[io.BufferedReader]:
    """Open a file of text to read its bytes, decompressed. Raises UserError for what is no text in UTF-8, for damaged
    archives, and for a file that cannot be read."""
    try:
        opener = _OPENERS.get(file.suffix.lower())
        with (
            file.open("rb") as stored,
            opener(stored) if opener else stored as raw,
            io.BufferedReader(raw, _BLOCK) as stream,
            _counting(stored),
        ):
            _check_text(file, stream.peek(_BLOCK)[:_BLOCK])
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{file}: {_damaged(file, error)}") from error
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.strerror is None:  # the library's own, not the system's
            raise UserError(f"{file}: {_damaged(file, error)}") from error
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def _damaged(file: Path, error: Exception) -> str:
    return f"damaged, cut short or no {file.suffix} archive ({error}); fetch or compress it anew"


def lines(file: Path) -> Iterator[str]:
    """Yield the lines of a file of text. Raises UserError, naming file and line, for what is not UTF-8."""
    with open_bytes(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig")  # without the byte order mark that Windows writes
        try:
            yield from text
        except UnicodeDecodeError as error:
            number, line = _undecodable(file)
            raise UserError(f"{file}:{number}: {not_utf8(line, error)}") from error


def raw_lines(file: Path) -> Iterator[bytes]:
    """Yield the lines of a file of text as bytes, without the byte order mark that Windows writes."""
    with open_bytes(file) as stream:
        for number, line in enumerate(stream):
            yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line


def whole(file: Path) -> bytes:
    """Return the bytes of a file of text, without a byte order mark."""
    with open_bytes(file) as stream:
        return stream.read().removeprefix(codecs.BOM_UTF8)


def _undecodable(file: Path) -> tuple[int, bytes]:
    """Return the first line that is not UTF-8. Text is decoded in blocks, so reading lines does not tell."""
    with open_bytes(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number, line
    return 1, b""


def not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    """Return what is to be said of bytes that are not UTF-8: as what they can be read, and how to convert them."""
    encoding = _single_byte(line)
    if encoding is None:
        return f"not UTF-8 text ({error.reason}); mend the line, or {_convert('ENCODING')}"
    return f"not UTF-8 text but, it seems, {encoding}; {_convert(encoding)}"


def _single_byte(line: bytes) -> str | None:
    """Return the encoding of a line of Western European text: ASCII, and between it some letters above."""
    if any(ord(character) >= 0x80 for character in line.decode(errors="ignore")):
        return None  # UTF-8 elsewhere: damaged
    if any(byte < 0x20 and byte not in b"\t\n\r\f" for byte in line):
        return None
    letters = sum(chr(byte).isalpha() for byte in line if byte < 0x80)
    foreign = sum(byte >= 0xC0 for byte in line)
    if foreign > max(1, 2 * letters):
        return None  # of another alphabet
    with contextlib.suppress(UnicodeDecodeError):
        line.decode("cp1252")
        return "Windows-1252" if any(0x80 <= byte < 0xA0 for byte in line) else "Latin-1"
    return None


def _check_text(file: Path, start: bytes) -> None:
    """Raise UserError for a file whose first bytes are those of another format, or of text in another encoding."""
    for sign, what in _FORMATS.items():
        if start.startswith(sign):
            raise UserError(f"{file}: no plain text but {what}")
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            raise UserError(f"{file}: text in {encoding}, not UTF-8; {_convert(encoding)}")
    if start.count(0):
        if wide := _utf16(start):
            raise UserError(f"{file}: text in {wide}, not UTF-8; {_convert(wide)}")
        damaged = ", or a damaged archive" if file.suffix.lower() in _OPENERS else ""
        raise UserError(f"{file}: no plain text{damaged}: it holds bytes of zero")


def _utf16(start: bytes) -> str | None:
    """Return which UTF-16 the bytes are: that in which they have more spaces and line ends, and no control codes."""

    def blanks(encoding: str) -> int:
        text = start[: len(start) // 2 * 2].decode(encoding, errors="ignore")
        readable = sum(character.isprintable() or character.isspace() for character in text)
        return text.count(" ") + text.count("\n") if readable > 0.95 * len(text) else 0

    found = max(("UTF-16LE", "UTF-16BE"), key=blanks)
    return found if blanks(found) else None


def _convert(encoding: str) -> str:
    name = {"Latin-1": "ISO-8859-1"}.get(encoding, encoding).upper()
    return f"convert it: iconv -f {name} -t UTF-8 OLD > NEW"
