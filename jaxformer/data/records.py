"""What every source has: its documents, and its labelled examples with labels of every kind."""

import collections
import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Collection, Iterator
from typing import Any, ClassVar, Self

from jaxformer.data.fields import Malformed, Record, has, is_list, raw_record, text_of, value_of, words_of
from jaxformer.data.kinds import (
    JOINED,
    UNSAID,
    Counting,
    check_answers,
    check_tags,
    choice_fields,
    counting,
    read_label,
)
from jaxformer.data.labels import Label, Labels, check_labels, in_order, name_of
from jaxformer.data.left_out import LeftOut, count
from jaxformer.data.splits import EVERY, PLACES, Contents, Read, Records, Rows, digest, first_line, hash_of, tried
from jaxformer.errors import UserError, suggest
from jaxformer.objectives import CLASS_KINDS

__all__ = [
    "EVERY",
    "PLACES",
    "Contents",
    "Malformed",
    "NamedSplits",
    "Record",
    "Rows",
    "Source",
    "digest",
    "first_line",
]


RUN_SEED = -1  # as `subset_seed`: that of the run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(Records):
    """What every source has. `max_examples` (0: all) takes that many labelled training examples, classes in turn, in an
    order drawn from `subset_seed` (-1 in a config stands for its `seed`). Up to `skip_malformed` malformed rows, of all
    splits together, are left out."""

    def seeded(self, seed: int) -> Self:
        """Return this source with the `seed` of its run where `subset_seed` stands for that."""
        return dataclasses.replace(self, subset_seed=seed) if self.subset_seed == RUN_SEED else self

    @functools.cached_property
    def _known(self) -> dict[Any, Any]:
        """What the rows of all splits tell of their labels, found once for each kind of label."""
        return {}

    @property
    def labels(self) -> Labels:
        """The classes of the rows of all splits, of which each has one."""
        return self.labels_of("class")

    def labels_of(self, kind: str) -> Labels:
        """Return the classes of the rows of all splits, or their tags. Rows without a label, or malformed, have none.

        Raises UserError for labels of several kinds, for scores, and where all rows are malformed.
        """
        return self._once(kind, lambda: self._find_labels(kind))

    def _once(self, key: Any, find: Callable[[], Read]) -> Read:
        if key not in self._known:
            self._known[key] = find()
        found: Read = self._known[key]
        return found

    def _find_labels(self, kind: str) -> Labels:
        found: list[tuple[str, Label]] = []
        rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        nearest: dict[str, tuple[int, int]] = {}  # of each class, (hash, number) of the row next to be held out
        seen: set[tuple[type, str]] = set()
        for part, number, where, value in self._labelled(functools.partial(self._label, kind=kind)):
            split = "validation" if part == "train" and self.shares and self.held_out(number) else part
            labels = value if isinstance(value, list) else [value]
            for label in labels:
                if (type_and_name := (type(label), str(label))) not in seen:
                    seen.add(type_and_name)
                    found.append((where, label))
            for name in {name_of(label) for label in labels}:
                rows[name][split] += 1
                if part == "train":
                    nearest[name] = min(nearest.get(name, (1 << 64, 0)), (hash_of(number), number))
        check_labels(self.label_field, found)
        added = set()
        for name, counts in rows.items():
            if kind == "class" and self.holds_out and counts["train"] > 1 and not counts["validation"]:
                added.add(nearest[name][1])
                counts["train"], counts["validation"] = counts["train"] - 1, 1
        return Labels({name: dict(rows[name]) for name in in_order(rows)}, frozenset(added))

    def label_names(self, kind: str = "class") -> tuple[str, ...]:
        """Return the names of the classes, or of the tags, of the rows of all splits in order: a label's number is its
        place in them. Other kinds of label have none."""
        return self.labels_of(kind).names if kind in CLASS_KINDS else ()

    def label_notes(self, kind: str = "class") -> list[str]:
        """Return what a person should know of the labels before training, a line each."""
        return self.labels_of(kind).notes() if kind in CLASS_KINDS else []

    def _labelled(self, read: Callable[[Record, str], Read | None]) -> Iterator[tuple[str, int, str, Read]]:
        """Yield (part, number in it, where, what is read) of all rows in which a label is read. Malformed rows are
        refused, or left out, when their split is read; where no row has a label the first one is refused here."""
        refused: Malformed | None = None
        any_label = False
        for part, number, where, record in self.numbered():
            try:
                found = tried(record, read, where)
            except Malformed as error:
                refused = refused or error
                continue
            if found is not None:
                any_label = True
                yield part, number, where, found
        if refused is not None and not any_label:
            raise refused

    def documents(self, split: str, left_out: LeftOut | None = None) -> Iterator[str]:
        """Yield the documents of a split."""

        def text(record: Record, where: str) -> str:
            return text_of(record, self.text_field, where)

        yield from self.each(split, False, text, left_out)

    def texts(
        self, split: str, fields: tuple[str, ...] = (), left_out: LeftOut | None = None, kind: str = ""
    ) -> Iterator[str]:
        """Yield the documents of a split, or, with `fields`, these of each of its records in turn; of a task that
        writes labels of the `kind` "text" its references, too. Rows that are left out are counted in `left_out`. Raises
        UserError, naming the row, for what is malformed."""
        if not fields:
            yield from self.documents(split, left_out)
            return

        def texts(record: Record, where: str) -> list[str]:
            found = list(texts_of(record, fields, kind, where)[0].values())
            return [*found, *(self._label(record, where, kind) or [])] if kind == "text" else found

        for row in self.each(split, True, texts, left_out):
            yield from row

    def examples(
        self, split: str, fields: tuple[str, ...], kind: str = "class", left_out: LeftOut | None = None,
        choices: tuple[str, ...] = (), unlabelled: bool = False,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Yield {field: text, "label": label, "record": {…}} of a split's labelled rows; `kind` says what a label is.

        class: a number in `label_names`; classes, tags: lists of these; number: a float; choice: a number from 0 among
        `choices`, fields (by default the last ones that are named alike but for a number); span: {"text": […],
        "answer_start": […]}; text: a list of references. `record` is what stands there of the fields (for tags the
        words), of the label and of id, idx or index. Rows that are left out are counted in `left_out`; with
        `unlabelled` those without a label are yielded, too, with None. Raises UserError, naming the row, for what is
        malformed.
        """

        named = choices or choice_fields(fields)

        def example(record: Record, where: str) -> dict[str, Any] | None:
            value = None if unlabelled and not has(record, self.label_field) else self._label(record, where, kind)
            # Without tags, a task parts running text into words itself.
            texts, raw = texts_of(record, fields, "text" if kind == "tags" and value is None else kind, where)
            if value is not None and kind == "tags":
                for field in fields:
                    check_tags(value, raw[field], (field, self.label_field), where)
            label = None if value is None else self._numbered_label(split, kind, named, value, texts, where)
            if label is None and not unlabelled:
                return None
            return texts | {"label": label, "record": raw_record(record, raw, self.label_field)}

        def read() -> Iterator[dict[str, Any]]:
            num_rows = num_labelled = 0
            by_class = kind == "class" and self.shares and split in ("train", "validation")
            added = self.labels.added if by_class else None
            for found in self.each(split, True, example, left_out, added):
                num_rows += 1
                if found is not None:
                    num_labelled += 1
                    yield found
            count(left_out, "rows left out: no label", num_rows - num_labelled, num_rows)

        yield from self._chosen(list(read()), kind) if self.max_examples and split == "train" else read()

    def _numbered_label(
        self, split: str, kind: str, choices: tuple[str, ...], value: Any, texts: dict[str, str], where: str
    ) -> Any:
        """Return the label that tasks get for a row's, None where it says that there is none."""
        if kind in CLASS_KINDS:
            numbers = self._classes(kind)
            return numbers[name_of(value)] if kind == "class" else [numbers[name_of(label)] for label in value]
        if kind == "number":
            part = self.part_of(split)
            return None if part in self._unsaid() else value
        if kind == "choice":
            return self._counting(choices).choice(value, texts, self.label_field, where)
        if kind == "span":
            check_answers(value, texts, where)
        return value

    def _classes(self, kind: str) -> dict[str, int]:
        return self._once(("classes", kind), lambda: {name: n for n, name in enumerate(self.label_names(kind))})

    def _unsaid(self) -> frozenset[str]:
        """Return the stored splits whose numbers are all -1, which is to say that they have none."""

        def find() -> frozenset[str]:
            numbers: dict[str, set[float]] = collections.defaultdict(set)
            for part, _, _, number in self._labelled(functools.partial(self._label, kind="number")):
                numbers[part].add(number)
            return frozenset(part for part, found in numbers.items() if found == {UNSAID})

        return self._once("unsaid", find)

    def _counting(self, choices: tuple[str, ...]) -> Counting:
        """Return how the labels of all rows name one of the choices."""

        def read(record: Record, where: str) -> tuple[Label, dict[str, str]] | None:
            label = self._label(record, where, "choice")
            return None if label is None else (label, texts_of(record, choices, "choice", where)[0])

        def find() -> Counting:
            return counting((found for _, _, _, found in self._labelled(read)), choices, self.label_field)

        return self._once(("choice", choices), find)

    def _label(self, record: Record, where: str, kind: str) -> Any:
        """Return a record's label, None where it has none. A record without the field is malformed."""
        return read_label(kind, record, self.label_field, self.label_separator, where)

    def _chosen(self, examples: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
        """Return `max_examples` of the examples in an order drawn from `subset_seed`, of classes each in turn."""
        random.Random(self.subset_seed).shuffle(examples)
        if kind != "class":
            return examples[: self.max_examples]
        by_class = collections.defaultdict(list)
        for example in examples:
            by_class[-1 if example["label"] is None else example["label"]].append(example)
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*(by_class[key] for key in sorted(by_class))))
        return [example for example in in_turn if example is not None][: self.max_examples]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedSplits(Source):
    """A source whose `dataset` has splits with names of its own."""

    dataset: str
    train_split: str = "train"
    validation_split: str = ""  # "": a share of the training split
    test_split: str = ""
    TEST: ClassVar[str] = "test_split"

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test") if self.test_split else ("train", "validation")

    @property
    def shares(self) -> bool:
        return not self.validation_split

    def named_split(self, part: str, there: Collection[str]) -> str:
        """Return what the data set calls a part. Raises UserError for a split that is not `there`."""
        name = {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}[part]
        if name not in there:
            raise UserError(
                f"data: {self.dataset} has no split '{name}'{suggest(name, there)}; it has {', '.join(there)}"
            )
        return name


def texts_of(
    record: Record, fields: tuple[str, ...], kind: str, where: str
) -> tuple[dict[str, str], dict[str, str | list[str]]]:
    """Return the texts of a record's fields, and what stands there: words are joined by single spaces, and so are the
    sentences of a field that holds a list of them, where texts are written."""
    raw: dict[str, str | list[str]] = {}
    for field in fields:
        joined = kind == "tags" or (kind in JOINED and is_list(value_of(record, field, where)))
        raw[field] = words_of(record, field, where) if joined else text_of(record, field, where)
    return {field: " ".join(found) if isinstance(found, list) else found for field, found in raw.items()}, raw
