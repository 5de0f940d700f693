"""What every source has: records, their fields and labels, and the split that each belongs to."""

import dataclasses
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from jaxformer.checks import check_choice, check_range
from jaxformer.data.left_out import LeftOut, count
from jaxformer.data.sealed import Note
from jaxformer.data.sentences import SPLITTERS, Splitter
from jaxformer.errors import UserError, suggest

Record = Mapping[str, Any]
# What a source reads, by the key that names it: {"path": {file: digest of its content}}, in the order of reading.
Contents = dict[str, dict[str, str]]
Read = TypeVar("Read")  # what a reader makes of a record


class Malformed(UserError):
    """A row that cannot be read as the config says. `data.skip_malformed` leaves some out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What every source has. `max_examples` (0: all) takes that many labelled training examples, classes in turn, in an
    order drawn from `subset_seed`. Up to `skip_malformed` malformed rows, of all splits together, are left out."""

    validation_share: float = 0.05
    max_examples: int = 0
    subset_seed: int = 0
    skip_malformed: int = 0
    workers: int = 0  # processes that make batches; 0 makes them in this one
    text_field: str = "text"
    label_field: str = "label"
    sentences: str = "unicode"  # where they end: by Unicode's rules, or with "lines"

    def __post_init__(self) -> None:
        check_range("data.validation_share", self.validation_share, above=0, below=1)
        for key in ("max_examples", "skip_malformed", "workers"):
            check_range(f"data.{key}", getattr(self, key), at_least=0)
        check_choice("data.sentences", self.sentences, SPLITTERS)

    def records(self, split: str, labelled: bool) -> Iterator[tuple[str, Record | Malformed]]:
        """Yield (where it stands, record) of a split, or what is wrong with it. Fields of a record are text or
        labels."""
        raise TypeError("a source says where its records are")

    def all_records(self, labelled: bool) -> Iterator[tuple[str, Record | Malformed]]:
        """Yield the records of all splits that a run reads."""
        for split in ("train", "validation"):
            yield from self.records(split, labelled)

    @property
    def splitter(self) -> Splitter:
        """Where sentences begin."""
        return SPLITTERS[self.sentences]

    def label_names(self) -> tuple[str, ...]:
        """Return the label names, sorted; a label's class is its place in them."""

        def label(record: Record, where: str) -> str:
            return _label(record, self.label_field, where)

        return tuple(sorted(set(self._each("train", True, label))))

    def fingerprint(self, split: str) -> str:
        """Return what names the text of this source: it changes when the text may have changed, and not with the
        place where it lies."""
        raise TypeError("a source has a fingerprint")

    def contents(self) -> Contents:
        """Return what a run keeps of what it has read, so that a change can be named."""
        raise TypeError("a source says what it reads")

    def mend(self, note: Note | None) -> None:
        """Remove what is damaged of the source and is made again when it is read; `note` is told of it."""

    def left_out_files(self) -> LeftOut:
        """Return how many files are no data of this source, though they lie where it reads."""
        return {}

    def documents(self, split: str, left_out: LeftOut | None = None) -> Iterator[str]:
        """Yield the documents of a split."""

        def text(record: Record, where: str) -> str:
            return _text(record, self.text_field, where)

        yield from self._each(split, False, text, left_out)

    def texts(self, split: str, fields: tuple[str, ...] = (), left_out: LeftOut | None = None) -> Iterator[str]:
        """Yield the documents of a split, or, with `fields`, these of each of its records in turn. Rows that are left
        out are counted in `left_out`. Raises UserError, naming the row, for what is malformed."""
        if not fields:
            yield from self.documents(split, left_out)
            return

        def texts(record: Record, where: str) -> list[str]:
            return [_text(record, field, where) for field in fields]

        for row in self._each(split, True, texts, left_out):
            yield from row

    def examples(
        self, split: str, fields: tuple[str, ...], left_out: LeftOut | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield {field: text, "label": class} of a split. Rows that are left out are counted in `left_out`. Raises
        UserError, naming the row, for what is malformed."""
        classes = {name: number for number, name in enumerate(self.label_names())}

        def example(record: Record, where: str) -> tuple[str, str, dict[str, str]]:
            label = _label(record, self.label_field, where)
            return where, label, {field: _text(record, field, where) for field in fields}

        def read() -> Iterator[dict[str, Any]]:
            for where, label, texts in self._each(split, True, example, left_out):
                if label not in classes:
                    raise UserError(
                        f"{where}: label '{label}' is not among those of the training split: {', '.join(classes)}"
                    )
                yield texts | {"label": classes[label]}

        if self.max_examples and split == "train":
            yield from self._balanced(list(read()), len(classes))
        else:
            yield from read()

    def _each(
        self, split: str, labelled: bool, read: Callable[[Record, str], Read], left_out: LeftOut | None = None
    ) -> Iterator[Read]:
        """Yield read(record, where) of every record of a split but those that are malformed and may be left out, which
        are counted. Raises Malformed for others."""
        skipped = self._skipped(labelled, read) if self.skip_malformed else frozenset()
        num_rows = num_skipped = 0
        for where, record in self.records(split, labelled):
            num_rows += 1
            if where in skipped:
                num_skipped += 1
            else:
                yield _tried(record, read, where)
        count(left_out, "rows left out: malformed", num_skipped, num_rows)

    def _skipped(self, labelled: bool, read: Callable[[Record, str], Any]) -> frozenset[str]:
        """Return where the malformed rows stand, in all splits: which are left out, and whether there are too many,
        does not depend on the split that is read."""
        skipped: set[str] = set()
        for where, record in self.all_records(labelled):
            try:
                _tried(record, read, where)
            except Malformed as error:
                if len(skipped) == self.skip_malformed:
                    raise Malformed(
                        f"{error} (data.skip_malformed={self.skip_malformed} left out "
                        f"{len(skipped)} before it; raise it, or mend the rows)"
                    ) from error
                skipped.add(where)
        return frozenset(skipped)

    def _balanced(self, examples: list[dict[str, Any]], num_classes: int) -> list[dict[str, Any]]:
        random.Random(self.subset_seed).shuffle(examples)
        by_class = [[example for example in examples if example["label"] == number] for number in range(num_classes)]
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_class))
        return [example for example in in_turn if example is not None][: self.max_examples]

    def _in_split(self, number: int, split: str) -> bool:
        hashed = hashlib.sha256(str(number).encode()).digest()
        held_out = int.from_bytes(hashed[:8], "big") < self.validation_share * 2**64
        return held_out == (split != "train")


def _tried(record: Record | Malformed, read: Callable[[Record, str], Read], where: str) -> Read:
    if isinstance(record, Malformed):
        raise record
    return read(record, where)


def _field(record: Record, field: str, where: str) -> Any:
    if field not in record or record[field] is None:
        raise Malformed(f"{where}: no field '{field}'{suggest(field, record)}; it has {', '.join(record) or 'none'}")
    return record[field]


def _text(record: Record, field: str, where: str) -> str:
    value = _field(record, field, where)
    try:
        if isinstance(value, bytes):
            value = value.decode()
        if isinstance(value, str):
            value.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
            return value
    except UnicodeError as error:
        raise Malformed(f"{where}: field '{field}' is not UTF-8 text ({error}); mend or drop it") from error
    raise Malformed(f"{where}: field '{field}' is {type(value).__name__}, not text")


def _label(record: Record, field: str, where: str) -> str:
    value = _field(record, field, where)
    if isinstance(value, (list, dict)) or getattr(value, "shape", None):
        raise Malformed(f"{where}: field '{field}' is {type(value).__name__}, not a label")
    return _text(record, field, where) if isinstance(value, (bytes, str)) else str(value)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# Where the text lies: what it is, `contents` says.
PLACES = ("path", "validation_path", "test_path", "dataset", "data_dir")


def digest(*parts: Any) -> str:
    """Return 16 hexadecimal digits of the parts, of which a source's settings are dicts."""
    # What does not change the text or its split does not change the name.
    unread = ("workers", "max_examples", "subset_seed", "sentences", *PLACES)
    kept = [{key: part[key] for key in part if key not in unread} if isinstance(part, dict) else part for part in parts]
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]
