"""What every source has: records, their fields and labels, and the split that each belongs to."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from jaxformer.checks import check_choice, check_range
from jaxformer.data.labels import Label, Labels, check_labels, in_order, label_of, name_of
from jaxformer.data.left_out import LeftOut, count
from jaxformer.data.sealed import Note
from jaxformer.data.sentences import SPLITTERS, Splitter
from jaxformer.errors import UserError, suggest

Record = Mapping[str, Any]
# What a source reads, by the key that names it: {"path": {file: digest of its content}}, in the order of reading.
Contents = dict[str, dict[str, str]]
Rows = Iterator[tuple[str, "Record | Malformed"]]
EVERY = "every"  # of the splits: all that `data.path`, or the training split, holds, whatever is held out of it
LEAST_SHARE = 1e-4  # a smaller `validation_share` asks for no held-out rows
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
    TEST: ClassVar[str] = ""  # the key that names a test split

    def __post_init__(self) -> None:
        check_range("data.validation_share", self.validation_share, above=0, below=1)
        for key in ("max_examples", "skip_malformed", "workers"):
            check_range(f"data.{key}", getattr(self, key), at_least=0)
        check_choice("data.sentences", self.sentences, SPLITTERS)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that there are."""
        return ("train", "validation")

    @property
    def shares(self) -> bool:
        """Whether validation is a share of what is stored for training."""
        return False

    @property
    def parts(self) -> tuple[str, ...]:
        """The splits that are stored as such."""
        return tuple(split for split in self.splits if not (split == "validation" and self.shares))

    def check_split(self, split: str, where: str = "data") -> None:
        """Raise UserError for a split that there is not: no other is read under its name."""
        if split not in (*self.splits, EVERY):
            there = ", ".join(self.splits)
            advice = f"name one with {where}.{self.TEST}" if self.TEST else "choose one of these"
            raise UserError(f"{where}: there is no {split} split; there are {there}; {advice}")

    def records(self, split: str, labelled: bool) -> Rows:
        """Yield (where it stands, record) of a split, or what is wrong with it. Fields of a record are text or
        labels."""
        return self._split(split, labelled)

    def stored(self, part: str, labelled: bool) -> Rows:
        """Yield the records that are stored for training, for validation (where no share of the former is taken) or to
        test."""
        raise TypeError("a source says where its records are")

    def all_records(self, labelled: bool) -> Rows:
        """Yield the records of all splits that there are."""
        for split in self.splits:
            yield from self.records(split, labelled)

    @property
    def splitter(self) -> Splitter:
        """Where sentences begin."""
        return SPLITTERS[self.sentences]

    @functools.cached_property
    def labels(self) -> Labels:
        """The classes of the rows of all splits. Rows without a label, or malformed, have none.

        Raises UserError for labels of several kinds, for scores, and where all rows are malformed.
        """
        found: list[tuple[str, Label]] = []
        refused: Malformed | None = None
        rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        nearest: dict[str, tuple[int, int]] = {}  # of each class, (hash, number) of the row next to be held out
        seen: set[tuple[type, str]] = set()
        for part, number, where, record in self._numbered():
            try:
                label = _tried(record, self._label, where)
            except Malformed as error:  # it is refused, or left out, when its split is read
                refused = refused or error
                continue
            if label is None:
                continue
            if (kind := (type(label), str(label))) not in seen:
                seen.add(kind)
                found.append((where, label))
            name = name_of(label)
            split = "validation" if part == "train" and self.shares and self._held_out(number) else part
            rows[name][split] += 1
            if part == "train":
                nearest[name] = min(nearest.get(name, (1 << 64, 0)), (_hash(number), number))
        if refused is not None and not found:
            raise refused
        check_labels(self.label_field, found)
        added = set()
        for name, counts in rows.items():
            if self._holds_out and counts["train"] > 1 and not counts["validation"]:
                added.add(nearest[name][1])
                counts["train"], counts["validation"] = counts["train"] - 1, 1
        return Labels({name: dict(rows[name]) for name in in_order(rows)}, frozenset(added))

    def label_names(self, kind: str = "class") -> tuple[str, ...]:
        """Return the label names of the rows of all splits in order; a label's class is its place in them."""
        return self.labels.names if kind == "class" else ()

    def label_notes(self) -> list[str]:
        """Return what a person should know of the labels before training, a line each."""
        return self.labels.notes()

    def _numbered(self) -> Iterator[tuple[str, int, str, "Record | Malformed"]]:
        """Yield (part, number in it, where, record) of all rows, each once."""
        for part in self.parts:
            rows = self.stored(part, True) if self.shares else self.records(part, True)
            for number, (where, record) in enumerate(rows):
                yield part, number, where, record

    @property
    def _holds_out(self) -> bool:
        return self.shares and self.validation_share >= LEAST_SHARE

    def _split(self, split: str, labelled: bool, by_class: bool = False) -> Rows:
        """Yield the records of a split: where it is a share of another, those that are held out of it, or not.

        Of several rows one at least is held out, of a task's (`by_class`) one of each class that has several.
        """
        self.check_split(split)
        if not self.shares or split not in ("train", "validation"):
            yield from self.stored("train" if split == EVERY else split, labelled)
            return
        added = self.labels.added if by_class else self._added(labelled)
        for number, row in enumerate(self.stored("train", labelled)):
            if (self._held_out(number) or number in added) == (split == "validation"):
                yield row

    def _added(self, labelled: bool) -> frozenset[int]:
        """Return the row that is held out although its hash does not say so: one of several, where none would be."""
        nearest, number = (1 << 64, 0), 0
        for number, _ in enumerate(self.stored("train", labelled) if self._holds_out else ()):
            if self._held_out(number):
                return frozenset()
            nearest = min(nearest, (_hash(number), number))
        return frozenset({nearest[1]} if number else ())

    def _held_out(self, number: int) -> bool:
        return _hash(number) < self.validation_share * 2**64

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
        self, split: str, fields: tuple[str, ...], kind: str = "class", left_out: LeftOut | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield {field: text, "label": class} of a split. Rows that are left out are counted in `left_out`. Raises
        UserError, naming the row, for what is malformed."""
        classes = {name: number for number, name in enumerate(self.label_names())}

        def example(record: Record, where: str) -> dict[str, Any] | None:
            label = self._label(record, where)
            texts = {field: _text(record, field, where) for field in fields}
            return None if label is None else texts | {"label": classes[name_of(label)], "record": texts}

        def read() -> Iterator[dict[str, Any]]:
            num_rows = num_labelled = 0
            for found in self._each(split, True, example, left_out, by_class=True):
                num_rows += 1
                if found is not None:
                    num_labelled += 1
                    yield found
            count(left_out, "rows left out: no label", num_rows - num_labelled, num_rows)

        if self.max_examples and split == "train":
            yield from self._balanced(list(read()), len(classes))
        else:
            yield from read()

    def _label(self, record: Record, where: str) -> Label | None:
        """Return a record's label, None where it has none. A record without the field is malformed."""
        field = self.label_field
        if field not in record:
            raise _absent(record, field, where)
        value = record[field]
        try:
            return label_of(_text(record, field, where) if isinstance(value, bytes | str) else value)
        except TypeError as error:
            raise Malformed(f"{where}: field '{field}' is {error}, not a label") from error

    def _each(
        self, split: str, labelled: bool, read: Callable[[Record, str], Read], left_out: LeftOut | None = None,
        by_class: bool = False,
    ) -> Iterator[Read]:  # fmt: skip
        """Yield read(record, where) of every record of a split but those that are malformed and may be left out, which
        are counted. Raises Malformed for others."""
        skipped = self._skipped(labelled, read) if self.skip_malformed else frozenset()
        num_rows = num_skipped = 0
        rows = self._split(split, labelled, by_class) if by_class and self.shares else self.records(split, labelled)
        for where, record in rows:
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


def _hash(number: int) -> int:
    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big")


def _tried(record: Record | Malformed, read: Callable[[Record, str], Read], where: str) -> Read:
    if isinstance(record, Malformed):
        raise record
    return read(record, where)


def _field(record: Record, field: str, where: str) -> Any:
    if field not in record or record[field] is None:
        raise _absent(record, field, where)
    return record[field]


def _absent(record: Record, field: str, where: str) -> Malformed:
    return Malformed(f"{where}: no field '{field}'{suggest(field, record)}; it has {', '.join(record) or 'none'}")


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
