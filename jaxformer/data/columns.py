"""Files of columns as sources: comma- or tab-separated rows, and CoNLL's words with tags."""

import csv
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from jaxformer.checks import check_choice
from jaxformer.data.files import Files
from jaxformer.data.finding import KINDS, Kind, suffix_of
from jaxformer.data.reading import lines, not_utf8, raw_lines
from jaxformer.data.records import Malformed, Record, Rows
from jaxformer.errors import UserError

QUOTING = ("minimal", "none")
_TAB = ("\t", "\\t", "tab")


class Columns(dict[str, str]):
    """A row by the names of its columns, and by their numbers, which count from 1."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and self._place(key) is not None)

    def __missing__(self, key: str) -> str:
        place = self._place(key)
        if place is None:
            raise KeyError(key)
        return list(self.values())[place]

    def _place(self, key: str) -> int | None:
        number = int(key) if key.isascii() and key.isdigit() else 0
        return number - 1 if 1 <= number <= len(self) else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CSV(Files):
    """Rows of columns. With a `header` its names are the fields, and without one the columns' numbers, from 1, which
    always name them, too. `delimiter` "": tabs in .tsv files, commas in others. `quoting` "minimal": quotes around a
    column may hold delimiters and line ends, and two of them are one; "none": they are text, as in GLUE's files."""

    delimiter: str = ""
    header: bool = True
    quoting: str = "minimal"
    KIND: ClassVar[Kind] = KINDS["csv"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("data.quoting", self.quoting, QUOTING)
        if self.delimiter not in ("", *_TAB) and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise UserError(f"data.delimiter: {self.delimiter!r} is not one character, such as ',' or ';', or 'tab'")

    def rows(self, file: Path) -> Iterator[tuple[str, Record | Malformed]]:
        names: list[str] = []
        for where, cells in self._cells(file):
            if not names:
                if isinstance(cells, Malformed):
                    raise cells  # what the others are compared with
                names = _names(cells, self.header, where)
                if self.header:
                    continue
            if isinstance(cells, Malformed):
                yield where, cells
            elif len(cells) != len(names):
                told = "the header has" if self.header else "the first row has"
                yield where, Malformed(f"{where}: {len(cells)} columns, but {told} {len(names)}{self._advice()}")
            else:
                yield where, Columns(zip(names, cells, strict=True))

    def _cells(self, file: Path) -> Iterator[tuple[str, list[str] | Malformed]]:
        """Yield (where, columns) of every line that is not blank, or of several that a quote holds together."""
        delimiter = self.delimiter or ("," if suffix_of(file) not in (".tsv", ".tab") else "\t")
        csv.field_size_limit(sys.maxsize)  # a document may be long
        reader = csv.reader(
            (line.decode(errors="surrogateescape") for line in raw_lines(file)),
            delimiter="\t" if delimiter in _TAB else delimiter,
            quoting=csv.QUOTE_MINIMAL if self.quoting == "minimal" else csv.QUOTE_NONE,
            strict=True,
        )
        while True:
            first = reader.line_num + 1
            where = f"{file}:{first}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if reader.line_num > first or "unexpected end" in str(error):  # what it took with it is not one row
                    raise UserError(f"{where}: a quote is opened, and not closed as one{self._advice()}") from error
                yield where, Malformed(f"{where}: {error}{self._advice()}")
                continue
            if cells:
                yield where, _decoded(cells, where)

    def _advice(self) -> str:
        return "; mend it, or set data.quoting=none if quotes are text" if self.quoting == "minimal" else "; mend it"


def _decoded(cells: list[str], where: str) -> list[str] | Malformed:
    found = " ".join(cells).encode(errors="surrogateescape")
    try:
        found.decode()
    except UnicodeDecodeError as error:
        return Malformed(f"{where}: {not_utf8(found, error)}")
    return cells


def _names(cells: list[str], header: bool, where: str) -> list[str]:
    numbers = [str(number) for number in range(1, len(cells) + 1)]
    if not header:
        return numbers
    names = [cell.strip() or number for cell, number in zip(cells, numbers, strict=True)]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise UserError(
            f"{where}: two columns are called '{twice[0]}'; give them names of their own, or set "
            "data.header=false if this is no header"
        )
    return names


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoNLL(Files):
    """A word a line, in columns, which tabs or spaces part; a blank line ends a sentence, and -DOCSTART- is none.

    `word_column` and `tag_column` count from 1, and -1 is the last column. A sentence's words are its field
    `text_field`, their tags `label_field`; a file of a single column has no tags.
    """

    text_field: str = "words"
    label_field: str = "tags"
    word_column: int = 1
    tag_column: int = -1
    KIND: ClassVar[Kind] = KINDS["conll"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("word_column", "tag_column"):
            if (column := getattr(self, key)) < 1 and column != -1:
                raise UserError(f"data.{key}: {column}; columns are counted from 1, and -1 is the last one")

    def stored(self, part: str, labelled: bool) -> Rows:
        for where, record in super().stored(part, labelled):
            if labelled or isinstance(record, Malformed):
                yield where, record
            else:
                yield where, {self.text_field: " ".join(record[self.text_field])}

    def rows(self, file: Path) -> Iterator[tuple[str, Record | Malformed]]:
        tabs = any("\t" in line for line in lines(file))
        sentence: list[tuple[int, list[str]]] = []
        width = 0
        for number, line in enumerate([*lines(file), ""], 1):
            cells = line.strip("\r\n").split("\t") if tabs else line.split()
            if not line.strip() or cells[0].startswith("-DOCSTART-"):
                if sentence:
                    yield self._sentence(file, sentence, width)
                sentence = []
            elif not (tabs and line.startswith("#") and len(cells) == 1):  # a comment of CoNLL-U
                width = width or len(cells)
                sentence.append((number, cells))

    def _sentence(
        self, file: Path, sentence: list[tuple[int, list[str]]], width: int
    ) -> tuple[str, Record | Malformed]:
        where = f"{file}:{sentence[0][0]}"
        for number, cells in sentence:
            if len(cells) != width:
                has = f"{len(cells)} column{'s' * (len(cells) != 1)}"
                return where, Malformed(
                    f"{file}:{number}: {has}, but the first line has {width}: words and tags of unequal number; mend it"
                )
        for key in ("word_column", "tag_column"):
            if getattr(self, key) > max(width, 1) and not (key == "tag_column" and width == 1):
                raise UserError(f"data.{key}: {getattr(self, key)}, but {file} has {width} columns")
        words = [self._cell(cells, self.word_column) for _, cells in sentence]
        tags: Any = [self._cell(cells, self.tag_column) for _, cells in sentence] if width > 1 else None
        return where, {self.text_field: words, self.label_field: tags}

    def _cell(self, cells: list[str], column: int) -> str:
        return cells[column - 1 if column > 0 else -1].strip()
