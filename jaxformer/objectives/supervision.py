"""The one protocol that objectives and tasks meet: what a run asks of what its model learns from."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np

from jaxformer.objectives.arrays import Shapes
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:  # at run time the models' room would bring JAX along
    from jaxformer.models import TransformerConfig

Encode = Callable[[str], np.ndarray]  # text -> int32 ids
Decode = Callable[[Sequence[int] | np.ndarray], str]  # and back
# What a label is: one class, several, a number, one of several choices, a tag for each word, the answers in a text, or
# a text to write.
LABEL_KINDS = ("class", "classes", "number", "choice", "tags", "span", "text")
CLASS_KINDS = ("class", "classes", "tags")  # whose labels have names that are numbered
# One example of a task: {field: int32 ids, "label": what its kind has, or None, "window": which of the rows that are
# made of it} and, for tasks that ask for them, "record", the row of the data, and "offsets", {field: int32 [n, 2]}, the
# characters of each token.
Example = Mapping[str, Any]


class Head(NamedTuple):
    """A group of predictions beside the tokens: a linear layer on hidden states, and the loss on what it gives.

    `reads` "row" is the state at `HEAD_positions` (or at place 0), and gives [B, size]; "choices" is that of each of C
    texts, [B, C, T], with one score each, [B, C]; "sum" that of several texts added up, [B, size]; "tokens" is every
    state, [B, T, size], or [B, T] of size 1.

    `loss` "softmax" takes classes as `HEAD_targets`, "sigmoid" several of them (0 or 1 for each, float, and the loss is
    the mean over them), "squared" numbers (float), and "places" places of the row, over which its softmax runs.
    """

    size: int
    reads: str = "row"
    loss: str = "softmax"
    label_smoothing: float = 0.0


class Part(NamedTuple):
    """An objective of a run, or its task, its share of the examples, and the corpora (numbers in data.members) that it
    reads. It is called with a row, or a labelled example, and an rng, and returns the arrays of `shapes`."""

    objective: Any
    weight: float
    corpora: tuple[int, ...]  # (): all
    title: str = ""  # its name in results; "": its kind and its number


class Supervision(Protocol):
    """What a model learns from: an objective, which may be a mixture of several, or a task."""

    # Which it is, and for which models.
    @property
    def name(self) -> str: ...
    @property
    def families(self) -> tuple[str, ...]: ...
    def for_model(self, model: "TransformerConfig") -> Self:
        """Return a copy for a model, of whose config `family`, `visibility` and `token_types` are read.

        Raises UserError, with the reason, for a model that cannot learn from it.
        """

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode, decode: Decode) -> Self:
        """Return a copy that knows the ids; a task learns its labels too, and how their texts are written.

        Raises UserError when the tokenizer lacks a token that is needed.
        """

    # What it reads of the data.
    @property
    def labelled(self) -> bool:
        """Whether it reads labelled examples, one by one; else rows of a corpus."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the data that it reads; (): its documents."""

    @property
    def label_kind(self) -> str:
        """What the labels of its examples are: one of LABEL_KINDS; "" for an objective."""

    @property
    def labels(self) -> tuple[Any, ...]:
        """The names of a bound task's classes, in their order; of several tasks, those of each; () for an objective."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """A mixture's members; anything else is its own only part."""

    # What it emits, and the loss on that: the sum over groups of coefficient x mean.
    @property
    def shapes(self) -> Shapes:
        """{array: (shape of one example, dtype)} of everything that is emitted."""

    @property
    def packed(self) -> bool:
        """Whether a row may hold several segments, which see nothing of each other; else it is one, with padding
        behind it, which kernels of attention read faster."""

    @property
    def predicts_tokens(self) -> bool:
        """Whether there is the main group, "tokens"."""

    @property
    def heads(self) -> dict[str, Head]:
        """Every further group, by its name."""

    @property
    def head_dropout(self) -> float: ...
    @property
    def coefficients(self) -> dict[str, float]: ...
    @property
    def token_smoothing(self) -> float:
        """The label smoothing of "tokens"; heads have their own."""

    @property
    def z_loss(self) -> float: ...

    # What is done with a model that has learnt from it.
    @property
    def answering(self) -> "Answering | None":
        """A task, as what answers; None for an objective."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics by which a task's answers are judged; () for an objective."""

    @property
    def decodes(self) -> bool:
        """Whether the answer is the text that the model writes, instead of what a head says."""

    @property
    def delimited(self) -> bool:
        """Whether a token ends the text that is read, where it stands in one row with what is written."""

    @property
    def fills_masks(self) -> bool:
        """Whether it learns to fill masks: then a mask that is spelled out in a prompt is one, and not text."""

    @property
    def new_token_ids(self) -> Sequence[int]:
        """The tokens that pretraining has not taught: their embeddings are fresh when a run starts from another."""


class Answering(Protocol):
    """A task, as what turns a model's outputs into answers, and answers into what metrics compare."""

    @property
    def reads_records(self) -> bool:
        """Whether its examples come with the row of the data that they were made of, and their tokens' characters."""

    def learnt(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the classes that it learns of data whose labels have these names: the same ones, perhaps more."""

    @property
    def choice_fields(self) -> tuple[str, ...]:
        """The fields among whose texts the right one is told; () where nothing is chosen."""

    def num_rows(self, lengths: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return how many rows (windows) are made of each example, int64 [N], given {field: tokens of each, [N]}."""

    @property
    def room(self) -> int:
        """The tokens of text that an example holds."""

    @property
    def target_length(self) -> int:
        """How many tokens are written at most, the end token included; 0 where none is."""

    def said(self, labels: Sequence[str]) -> list[str]:
        """Return what is read or written in examples that is not in the data, given the names of its classes."""

    def is_cut(self, lengths: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return bool [N]: whether texts of each example are cut, given {field: tokens of each, [N]}."""

    @property
    def what_is_cut(self) -> str:
        """What the examples of `is_cut` are, in words that follow their number."""

    def read(self, outputs: Mapping[str, Any], rows: Sequence[Example]) -> list[Any]:
        """Return what the model says of each of B rows, given each head's logits [B, …], or the texts "written"."""

    def answers(self, rows: Sequence[Example], found: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the answer to each example, as JSON holds it, given all of its rows and what was read of them."""

    def truths(self, rows: Sequence[Example]) -> list[Any]:
        """Return what is true of each example, as its metrics take it; None where it has no label."""

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return what each answer says, as the metrics take it."""

    def tuned(self, answers: Sequence[Mapping[str, Any]], truths: Sequence[Any]) -> dict[str, float]:
        """Return what held-out answers tell beside the metrics, by its name: which threshold would be the best one."""
