"""Where text comes from: TFDS datasets, local text, JSON lines, Parquet, the built-in corpus, and mixtures of these.

A source gives documents (text to pretrain on) and, where it has labels, examples. Without a held-out split of its own,
each document or example goes to validation by a hash of its number.
"""

import contextlib
import dataclasses
import glob
import hashlib
import io
import itertools
import json
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from jaxformer.errors import UserError, suggest

SPLITS = ("train", "validation", "test")
Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What every source has. `max_examples` (0: all) takes that many labelled training examples, classes in turn, in an
    order drawn from `subset_seed`."""

    validation_share: float = 0.05
    max_examples: int = 0
    subset_seed: int = 0
    workers: int = 0  # processes that make batches; 0 makes them in this one
    text_field: str = "text"
    label_field: str = "label"

    def __post_init__(self) -> None:
        if not 0.0 < self.validation_share < 1.0:
            raise UserError(f"data.validation_share: {self.validation_share} must lie between 0 and 1")
        for key in ("max_examples", "workers"):
            if getattr(self, key) < 0:
                raise UserError(f"data.{key}: {getattr(self, key)} must be 0 or more")

    def records(self, split: str, labelled: bool) -> Iterator[tuple[str, Record]]:
        """Yield (where it stands, record) of a split. Fields of a record are text or labels."""
        raise TypeError("a source says where its records are")

    def label_names(self) -> tuple[str, ...]:
        """Return the label names, sorted; a label's class is its place in them."""
        labels = {str(_field(record, self.label_field, where)) for where, record in self.records("train", True)}
        return tuple(sorted(labels))

    def fingerprint(self, split: str) -> str:
        """Return what names the text of this source: it changes when the text may have changed."""
        raise TypeError("a source has a fingerprint")

    def documents(self, split: str) -> Iterator[str]:
        """Yield the documents of a split."""
        for where, record in self.records(split, False):
            yield _text(record, self.text_field, where)

    def examples(self, split: str, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Yield {field: text, "label": class} of a split. Raises UserError, naming the row, for what is malformed."""
        classes = {name: number for number, name in enumerate(self.label_names())}

        def read() -> Iterator[dict[str, Any]]:
            for where, record in self.records(split, True):
                label = str(_field(record, self.label_field, where))
                if label not in classes:
                    raise UserError(
                        f"{where}: label '{label}' is not among those of the training split: {', '.join(classes)}"
                    )
                yield {field: _text(record, field, where) for field in fields} | {"label": classes[label]}

        if self.max_examples and split == "train":
            yield from self._balanced(list(read()), len(classes))
        else:
            yield from read()

    def _balanced(self, examples: list[dict[str, Any]], num_classes: int) -> list[dict[str, Any]]:
        random.Random(self.subset_seed).shuffle(examples)
        by_class = [[example for example in examples if example["label"] == number] for number in range(num_classes)]
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_class))
        return [example for example in in_turn if example is not None][: self.max_examples]

    def _in_split(self, number: int, split: str) -> bool:
        digest = hashlib.sha256(str(number).encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") < self.validation_share * 2**64
        return held_out == (split != "train")


def _field(record: Record, field: str, where: str) -> Any:
    if field not in record or record[field] is None:
        raise UserError(f"{where}: no field '{field}'{suggest(field, record)}; it has {', '.join(record) or 'none'}")
    return record[field]


def _text(record: Record, field: str, where: str) -> str:
    value = _field(record, field, where)
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{field}' is {type(value).__name__}, not text")
    return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(Source):
    """A TFDS dataset already prepared as ArrayRecord (`dataset`: NAME[/CONFIG][:VERSION]), read without TensorFlow."""

    dataset: str
    data_dir: str = ""
    train_split: str = "train"
    validation_split: str = ""  # "": a share of the training split
    test_split: str = ""

    def records(self, split: str, labelled: bool) -> Iterator[tuple[str, Record]]:
        own = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}[split]
        builder = self._builder()
        name = own or self.validation_split or self.train_split
        if name not in builder.info.splits:
            raise UserError(f"data: {self.dataset} has no split '{name}'; it has {', '.join(builder.info.splits)}")
        for number, record in enumerate(_rows(builder, name)):
            shares = not self.validation_split and name == self.train_split
            if not shares or self._in_split(number, split):
                yield f"{self.dataset} {name}[{number}]", _named(builder, record)

    def fingerprint(self, split: str) -> str:
        info = self._builder().info
        sizes = {name: (part.num_examples, part.num_bytes) for name, part in sorted(info.splits.items())}
        return _digest(type(self).__name__, info.full_name, sizes, dataclasses.asdict(self), split)

    def _builder(self) -> Any:
        with _quiet():
            import tensorflow_datasets as tfds

            try:
                builder = tfds.builder(self.dataset, data_dir=self.data_dir or None)
                builder.as_data_source(split=self.train_split)
            except Exception as error:  # whichever of TFDS's own errors says that it is not there or not readable
                folder = self.data_dir or "~/tensorflow_datasets"
                raise UserError(
                    f"data.dataset: {self.dataset} is not prepared as ArrayRecord in {folder}; with TensorFlow "
                    f"run `tfds build {self.dataset} --file_format=array_record` and copy the folder there "
                    f"({str(error).strip().splitlines()[0]})"
                ) from error
        return builder


@dataclasses.dataclass(frozen=True, kw_only=True)
class StdlibDocs(Source):
    """The built-in corpus: documentation of the Python that runs. Labels: the area of the library."""

    label_field: str = "area"

    def records(self, split: str, labelled: bool) -> Iterator[tuple[str, Record]]:
        builder = self._builder("docstrings" if labelled else "documents")
        for number, record in enumerate(_rows(builder, split)):
            yield f"stdlib_docs {split}[{number}]", _named(builder, record)

    def label_names(self) -> tuple[str, ...]:
        from jaxformer.data.stdlib_docs import AREAS

        return tuple(sorted(AREAS))

    def fingerprint(self, split: str) -> str:
        info = self._builder("documents").info
        sizes = {name: (part.num_examples, part.num_bytes) for name, part in sorted(info.splits.items())}
        return _digest(info.full_name, sizes, dataclasses.asdict(self), split)

    def _builder(self, kind: str) -> Any:
        with _quiet():
            from jaxformer.data import stdlib_docs

            cache = os.environ.get("JAXFORMER_CACHE") or Path.home() / ".cache" / "jaxformer"
            builder = stdlib_docs.StdlibDocs(data_dir=Path(cache) / "tfds", config=f"{kind}_{stdlib_docs.PYTHON}")
            builder.download_and_prepare(file_format="array_record")
        return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS's progress bars and announcements off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        yield


def _rows(builder: Any, split: str) -> Iterator[Record]:
    source = builder.as_data_source(split=split)
    for number in range(len(source)):
        yield source[number]


def _named(builder: Any, record: Record) -> Record:
    """Replace classes by their names, so that labels look alike in all sources."""
    features = builder.info.features
    return {
        key: features[key].int2str(int(value)) if hasattr(features[key], "int2str") else value
        for key, value in record.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files(Source):
    """Local files: `path` is one, a folder (all files in it, sorted), or a pattern with `*`."""

    path: str
    SUFFIX: ClassVar[str] = ""

    def files(self) -> list[Path]:
        path = Path(self.path).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.rglob(f"*{self.SUFFIX}") if file.is_file())
        else:
            found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise UserError(f"data.path: no file {self.path}; give a file, a folder or a pattern such as 'texts/*.txt'")
        return found

    def rows(self, file: Path) -> Iterator[tuple[str, Record]]:
        """Yield (where, record) of one file."""
        raise TypeError("a kind of file says how it is read")

    def records(self, split: str, labelled: bool) -> Iterator[tuple[str, Record]]:
        numbered = enumerate(itertools.chain.from_iterable(self.rows(file) for file in self.files()))
        for number, (where, record) in numbered:
            if self._in_split(number, split):
                yield where, record

    def fingerprint(self, split: str) -> str:
        files = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files()]
        return _digest(type(self).__name__, files, dataclasses.asdict(self), split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text(Files):
    """Plain UTF-8 text, cut into documents at blank lines, at every line, or not at all (`document`: file)."""

    document: str = "blank_line"

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = ("blank_line", "line", "file")
        if self.document not in choices:
            raise UserError(f"data.document: '{self.document}' is not one of {', '.join(choices)}")

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

    def rows(self, file: Path) -> Iterator[tuple[str, Record]]:
        for number, line in enumerate(_lines(file), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{file}:{number}: not JSON ({error.msg} at column {error.colno}); mend or drop the line"
                ) from error
            if not isinstance(record, dict):
                raise UserError(f"{file}:{number}: {type(record).__name__}, not an object with fields")
            yield f"{file}:{number}", record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(Files):
    """Parquet files, one record per row."""

    SUFFIX: ClassVar[str] = ".parquet"

    def rows(self, file: Path) -> Iterator[tuple[str, Record]]:
        import pyarrow
        import pyarrow.parquet

        try:
            number = 0
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
                for record in batch.to_pylist():
                    yield f"{file} row {number}", record
                    number += 1
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{file}: not a Parquet file, or damaged: {str(error).splitlines()[0]}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(Source):
    """Several sources at once, drawn by weight: `members` are {"name": …, "weight": …, the source's own keys}."""

    members: tuple[dict, ...]

    def sources(self) -> list[tuple[Source, float]]:
        """Return the members and their weights. Raises UserError for a bad member."""
        if not self.members:
            raise UserError("data.members: a mixture needs at least one member")
        return [self._member(number, dict(member)) for number, member in enumerate(self.members)]

    def _member(self, number: int, keys: dict[str, Any]) -> tuple[Source, float]:
        where, name, weight = f"data.members[{number}]", keys.pop("name", None), keys.pop("weight", 1.0)
        choices = {key: source for key, source in SOURCES.items() if source is not Mixture}
        if name not in choices:
            raise UserError(f"{where}.name: no '{name}'{suggest(str(name), choices)}; there are {', '.join(choices)}")
        if not isinstance(weight, (int, float)) or weight <= 0:
            raise UserError(f"{where}.weight: {weight!r} must be a number above 0")
        fields = {field.name for field in dataclasses.fields(choices[name])}
        for key in keys:
            if key not in fields:
                raise UserError(
                    f"{where}.{key}: no such key{suggest(key, fields)}; {name} has {', '.join(sorted(fields))}"
                )
        try:
            return choices[name](**keys), float(weight)
        except TypeError as error:
            raise UserError(f"{where}: {error}") from error


SOURCES: dict[str, type[Source]] = {
    "stdlib_docs": StdlibDocs,
    "tfds": TFDS,
    "text": Text,
    "json_lines": JSONLines,
    "parquet": Parquet,
    "mixture": Mixture,
}


def _lines(file: Path) -> Iterator[str]:
    number = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                yield line
    except UnicodeDecodeError as error:
        raise UserError(f"{file}:{number + 1}: not UTF-8 text ({error.reason}); convert the file") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def _digest(*parts: Any) -> str:
    # What does not change the text or its split does not change the name.
    unread = ("workers", "max_examples", "subset_seed")
    kept = [{key: part[key] for key in part if key not in unread} if isinstance(part, dict) else part for part in parts]
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]
