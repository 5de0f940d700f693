"""What all tasks share: an example's texts become arrays, and a model's outputs become answers that metrics judge."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from jaxformer.checks import check_range, several
from jaxformer.errors import UserError
from jaxformer.objectives import Decode, Encode, Example, Head, Part, Shapes
from jaxformer.tasks.metrics import check_metrics
from jaxformer.tasks.writing import Format, format_of
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:
    from jaxformer.models import TransformerConfig

BOUND: Any = {"config": False}  # fields that no config gives


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task gives its fields, `shapes`, `__call__`, `read` and `answers`; all else here is what most of them need.

    `text_fields` name what is read of the data; `sequence_length` counts special tokens, too.
    """

    name: ClassVar[str]
    label_kind: ClassVar[str]
    families: ClassVar[tuple[str, ...]]  # that can carry it
    labelled: ClassVar[bool] = True
    reads_records: ClassVar[bool] = False
    packed: ClassVar[bool] = False
    decodes: ClassVar[bool] = False
    delimited: ClassVar[bool] = False
    fills_masks: ClassVar[bool] = False
    new_token_ids: ClassVar[Sequence[int]] = ()
    choice_fields: ClassVar[tuple[str, ...]] = ()
    target_length: ClassVar[int] = 0
    token_smoothing: ClassVar[float] = 0.0
    z_loss: ClassVar[float] = 0.0

    sequence_length: int = 128
    text_fields: tuple[str, ...] = ("text",)
    metrics: tuple[str, ...] = ()
    _vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata=BOUND)
    labels: tuple[str, ...] = dataclasses.field(default=(), metadata=BOUND)
    family: str = dataclasses.field(default="", metadata=BOUND)  # of the model; "": the task's first

    def __post_init__(self) -> None:
        check_range("task.sequence_length", self.sequence_length, at_least=8)
        for key in ("text_fields", "metrics"):
            object.__setattr__(self, key, several(getattr(self, key)))
        check_metrics(self.metrics, self.label_kind)
        if not self.family:
            object.__setattr__(self, "family", self.families[0])

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return the task for a model. Raises UserError for a model of another family."""
        if model.family not in self.families:
            raise UserError(
                f"task.name: {self.name} needs {' or '.join(self.families)}, but the model is {model.family}; "
                "choose another task or model.preset"
            )
        return dataclasses.replace(self, family=model.family)

    def learnt(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the classes that are learnt of data that has these."""
        return tuple(names)

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode, decode: Decode) -> Self:
        """Return a copy that knows ids and labels. Raises UserError when the tokenizer lacks a token that is needed, or
        a metric does not judge these labels."""
        vocabulary.id("pad")
        check_metrics(self.metrics, self.label_kind, labels)
        return dataclasses.replace(self, _vocabulary=vocabulary, labels=tuple(labels))

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of a bound task."""
        if self._vocabulary is None:
            raise TypeError("this task has no vocabulary yet; call bind first")
        return self._vocabulary

    @property
    def answering(self) -> Self:
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        return self.text_fields

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part(self, 1.0, ()),)

    @property
    def heads(self) -> dict[str, Head]:
        return {}

    @property
    def predicts_tokens(self) -> bool:
        return False

    @property
    def coefficients(self) -> dict[str, float]:
        return ({"tokens": 1.0} if self.predicts_tokens else {}) | dict.fromkeys(self.heads, 1.0)

    @property
    def room(self) -> int:
        """The tokens of text that an example holds."""
        return self.sequence_length

    def said(self, labels: Sequence[str]) -> list[str]:
        """Return what is read or written in examples that is not in the data."""
        return []

    def num_rows(self, lengths: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return how many rows are made of each example: one."""
        return np.ones(len(next(iter(lengths.values()))), np.int64)

    def is_cut(self, lengths: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return bool [N]: whether texts of each example are cut, given {field: tokens of each, [N]}."""
        return sum(lengths.values(), np.zeros((), np.int64)) > self.room

    @property
    def what_is_cut(self) -> str:
        """What the examples of `is_cut` are, in words that follow their number."""
        return f"examples cut to {self.room} tokens of text"

    @property
    def shapes(self) -> Shapes:
        """{array: (shape of one example, dtype)} of everything that is emitted."""
        raise TypeError("a task says what it emits")

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`. Everything random comes from `rng`."""
        raise TypeError("a task writes its examples")

    def read(self, outputs: Mapping[str, Any], rows: Sequence[Example]) -> list[Any]:
        """Return what the model says of each row: of a task with one head its logits."""
        return list(outputs["label"])

    def answers(self, rows: Sequence[Example], found: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the answer to each example, given all of its rows and what was read of them."""
        raise TypeError("a task answers")

    def truths(self, rows: Sequence[Example]) -> list[Any]:
        """Return the label of each example."""
        return [row["label"] for row in rows if not row.get("window")]

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return what each answer says, as the metrics take it."""
        raise TypeError("a task says what its metrics compare")

    def tuned(self, answers: Sequence[Mapping[str, Any]], truths: Sequence[Any]) -> dict[str, float]:
        """Return what is to be told beside the metrics: nothing."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowTask(Task):
    """What tasks share whose heads read a row of one text or two, written as the model's family does it (`writing`).

    `head_dropout` acts before the heads.
    """

    head_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("task.head_dropout", self.head_dropout, at_least=0, below=1)

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode, decode: Decode) -> Self:
        task = super().bind(vocabulary, labels, encode, decode)
        task.format.check(vocabulary, self.num_texts)
        return task

    @property
    def num_texts(self) -> int:
        """How many texts a row consists of."""
        return len(self.text_fields)

    @property
    def format(self) -> Format:
        """How a row is written; known once the task is bound."""
        return format_of(self.family, self.vocabulary)

    @property
    def room(self) -> int:
        return self.sequence_length - self.format.fixed(self.num_texts)
