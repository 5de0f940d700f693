"""The one protocol that objectives and tasks meet: what a run asks of what its model learns from."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np

from jaxformer.objectives.arrays import Shapes
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:  # at run time the models' room would bring JAX along
    from jaxformer.models import TransformerConfig

Encode = Callable[[str], np.ndarray]  # text -> int32 ids


class Part(NamedTuple):
    """An objective of a run, or its task, its share of the examples, and the corpora (numbers in data.members) that it
    reads. It is called with a row, or a labelled example, and an rng, and returns the arrays of `shapes`."""

    objective: Any
    weight: float
    corpora: tuple[int, ...]  # (): all


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

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode) -> Self:
        """Return a copy that knows the ids; a task learns its labels too, and the ids of their texts.

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
    def labels(self) -> tuple[str, ...]:
        """The names of a bound task's classes, in their order; () for an objective."""

    @property
    def room(self) -> int:
        """The tokens of text that an example of a bound task holds; longer texts are cut. An objective's rows tell."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """A mixture's members; anything else is its own only part."""

    # What it emits, and the loss on that: the sum over groups of coefficient x mean.
    @property
    def shapes(self) -> Shapes:
        """{array: (shape of one example, dtype)} of everything that is emitted."""

    @property
    def predicts_tokens(self) -> bool:
        """Whether there is the main group, "tokens"."""

    @property
    def heads(self) -> dict[str, int]:
        """{head: number of its classes} of every further group."""

    @property
    def head_dropout(self) -> float: ...
    @property
    def coefficients(self) -> dict[str, float]: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def z_loss(self) -> float: ...

    # What is done with a model that has learnt from it.
    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics by which predicted classes are judged; (): there are no such classes."""

    @property
    def decodes(self) -> bool:
        """Whether the text that the model writes is judged, instead of a head's classes."""

    @property
    def delimited(self) -> bool:
        """Whether a token ends the text that is read, where it stands in one row with what is written."""

    @property
    def fills_masks(self) -> bool:
        """Whether it learns to fill masks: then a mask that is spelled out in a prompt is one, and not text."""

    @property
    def new_token_ids(self) -> Sequence[int]:
        """The tokens that pretraining has not taught: their embeddings are fresh when a run starts from another."""
