"""Translations: text files whose lines belong together, one file for each language."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from jaxformer.checks import several
from jaxformer.data.files import Files
from jaxformer.data.finding import Kind, find_sets
from jaxformer.data.left_out import LeftOut
from jaxformer.data.reading import not_utf8, raw_lines
from jaxformer.data.records import Malformed, Record, Rows
from jaxformer.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel(Files):
    """Lines of several `languages`: `path` DIR/train and languages en and de are DIR/train.en and DIR/train.de, also
    compressed. A row's fields are called as the languages; `text_field` is the first and `label_field` the second one
    unless they are given."""

    languages: tuple[str, ...]
    text_field: str = ""
    label_field: str = ""
    KIND: ClassVar[Kind] = Kind("", ())

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "languages", several(self.languages))
        if len(set(self.languages)) != len(self.languages) or len(self.languages) < 2:
            raise UserError(f"data.languages: {', '.join(self.languages)}; name two languages or more, such as en, de")
        for key, language in zip(("text_field", "label_field"), self.languages, strict=False):
            object.__setattr__(self, key, getattr(self, key) or language)

    def sets(self, part: str) -> list[tuple[Path, ...]]:
        """Return the files of a split that belong together, one for each language."""
        key = f"{part}_path" if f"{part}_path" in self.paths else "path"
        return find_sets(self.paths[key], self.languages, f"data.{key}")

    def files(self, split: str = "train") -> list[Path]:
        return [file for files in self.sets(split) for file in files]

    def left_out_files(self) -> LeftOut:
        return {}

    def stored(self, part: str, labelled: bool) -> Rows:
        return itertools.chain.from_iterable(self._lines(files) for files in self.sets(part))

    def _lines(self, files: tuple[Path, ...]) -> Iterator[tuple[str, Record | Malformed]]:
        counts = [0] * len(files)
        for number, found in enumerate(itertools.zip_longest(*map(raw_lines, files)), 1):
            counts = [number if line is not None else count for line, count in zip(found, counts, strict=True)]
            if None in found:
                continue
            yield f"{files[0]}:{number}", self._record(files, number, found)
        if len(set(counts)) > 1:
            each = ", ".join(f"{file} has {count} lines" for file, count in zip(files, counts, strict=True))
            raise UserError(f"data: {each}: their lines do not belong together; give files of equally many")

    def _record(self, files: tuple[Path, ...], number: int, found: tuple[bytes, ...]) -> Record | Malformed:
        record = {}
        for file, language, line in zip(files, self.languages, found, strict=True):
            try:
                record[language] = line.decode().strip()
            except UnicodeDecodeError as error:
                return Malformed(f"{file}:{number}: {not_utf8(line, error)}")
        return record
