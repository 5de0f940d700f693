"""The rows of a source and their splits: which are held out, which are malformed and may be left out."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

from jaxformer.checks import check_choice, check_range
from jaxformer.data.fields import Malformed, Record
from jaxformer.data.left_out import LeftOut, count
from jaxformer.data.sealed import Note
from jaxformer.data.sentences import SPLITTERS, Splitter
from jaxformer.errors import UserError

# What a source reads, by the key that names it: {"path": {file: digest of its content}}, in the order of reading.
Contents = dict[str, dict[str, str]]
Rows = Iterator[tuple[str, "Record | Malformed"]]
EVERY = "every"  # of the splits: all that `data.path`, or the training split, holds, whatever is held out of it
LEAST_SHARE = 1e-4  # a smaller `validation_share` asks for no held-out rows
SEPARATOR = ","
Read = TypeVar("Read")  # what a reader makes of a record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """The rows of a source, in its splits, and what every config of one says (see `Source`)."""

    validation_share: float = 0.05
    max_examples: int = 0
    subset_seed: int = 0
    skip_malformed: int = 0
    workers: int = 0  # processes that make batches; 0 makes them in this one
    text_field: str = "text"
    label_field: str = "label"
    label_separator: str = SEPARATOR  # between the classes of a text that names several; "": it names one
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

    def part_of(self, split: str) -> str:
        """Return the part in which a split is stored."""
        return "train" if split == EVERY or (split == "validation" and self.shares) else split

    def amount(self, split: str) -> int:
        """Return how much `reading` will count when a split is read; 0: nothing tells."""
        return 0

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
        return self.split(split, labelled)

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

    def numbered(self) -> Iterator[tuple[str, int, str, "Record | Malformed"]]:
        """Yield (part, number in it, where, record) of all rows, each once."""
        for part in self.parts:
            rows = self.stored(part, True) if self.shares else self.records(part, True)
            for number, (where, record) in enumerate(rows):
                yield part, number, where, record

    @property
    def holds_out(self) -> bool:
        """Whether rows of the training split are held out at all."""
        return self.shares and self.validation_share >= LEAST_SHARE

    def split(self, split: str, labelled: bool, added: frozenset[int] | None = None) -> Rows:
        """Yield the records of a split: where it is a share of another, those that are held out of it, or not.

        Of several rows one at least is held out, by its hash, or those that are `added` to what the hashes say.
        """
        self.check_split(split)
        if not self.shares or split not in ("train", "validation"):
            yield from self.stored("train" if split == EVERY else split, labelled)
            return
        added = self._added(labelled) if added is None else added
        for number, row in enumerate(self.stored("train", labelled)):
            if (self.held_out(number) or number in added) == (split == "validation"):
                yield row

    def _added(self, labelled: bool) -> frozenset[int]:
        """Return the row that is held out although its hash does not say so: one of several, where none would be."""
        nearest, number = (1 << 64, 0), 0
        for number, _ in enumerate(self.stored("train", labelled) if self.holds_out else ()):
            if self.held_out(number):
                return frozenset()
            nearest = min(nearest, (hash_of(number), number))
        return frozenset({nearest[1]} if number else ())

    def held_out(self, number: int) -> bool:
        """Whether the hash of a row's number holds it out."""
        return hash_of(number) < self.validation_share * 2**64

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

    def each(
        self, split: str, labelled: bool, read: Callable[[Record, str], Read], left_out: LeftOut | None = None,
        added: frozenset[int] | None = None,
    ) -> Iterator[Read]:  # fmt: skip
        """Yield read(record, where) of every record of a split but those that are malformed and may be left out, which
        are counted. Raises Malformed for others."""
        skipped = self._skipped(labelled, read) if self.skip_malformed else frozenset()
        num_rows = num_skipped = 0
        rows = self.records(split, labelled) if added is None else self.split(split, labelled, added)
        for where, record in rows:
            num_rows += 1
            if where in skipped:
                num_skipped += 1
            else:
                yield tried(record, read, where)
        count(left_out, "rows left out: malformed", num_skipped, num_rows)

    def _skipped(self, labelled: bool, read: Callable[[Record, str], Any]) -> frozenset[str]:
        """Return where the malformed rows stand, in all splits: which are left out, and whether there are too many,
        does not depend on the split that is read."""
        skipped: set[str] = set()
        for where, record in self.all_records(labelled):
            try:
                tried(record, read, where)
            except Malformed as error:
                if len(skipped) == self.skip_malformed:
                    raise Malformed(
                        f"{error} (data.skip_malformed={self.skip_malformed} left out "
                        f"{len(skipped)} before it; raise it, or mend the rows)"
                    ) from error
                skipped.add(where)
        return frozenset(skipped)


def hash_of(number: int) -> int:
    """Return what stands for a row's number when rows are held out: 64 bits, evenly spread."""
    return int.from_bytes(hashlib.sha256(str(number).encode()).digest()[:8], "big")


def tried(record: Record | Malformed, read: Callable[[Record, str], Read], where: str) -> Read:
    """Return what is read of a record. Raises Malformed where it is none."""
    if isinstance(record, Malformed):
        raise record
    return read(record, where)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# Where the text lies: what it is, `contents` says.
PLACES = ("path", "validation_path", "test_path", "dataset", "data_dir")


def digest(*parts: Any) -> str:
    """Return 16 hexadecimal digits of the parts, of which a source's settings are dicts."""
    # What does not change the text or its split does not change the name.
    unread = ("workers", "max_examples", "subset_seed", "sentences", *PLACES)
    kept = [
        # Older runs know no separator, and their data by what has none.
        {key: part[key] for key in part if key not in unread and (key, part[key]) != ("label_separator", SEPARATOR)}
        if isinstance(part, dict)
        else part
        for part in parts
    ]
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]
