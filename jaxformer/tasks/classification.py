"""Tasks that read one state of a row: classes, several classes, numbers, and the choice among several texts, each the
way its family does it (GPT, section 3.3; BERT, 4.1 and 4.4; BART, 3.1).

An example without a label has weights of 0.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from jaxformer.checks import check_choice, check_range, several
from jaxformer.errors import UserError
from jaxformer.objectives import FLOAT, INT, Decode, Encode, Example, Head, Shapes
from jaxformer.tasks.task import RowTask
from jaxformer.tasks.writing import BARE, Format, Written, cut, language_model, row_shapes, rows_of
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:
    from jaxformer.models import TransformerConfig

PLACES = ("auto", "first", "last")
_TARGETS = {"softmax": INT, "sigmoid": FLOAT, "squared": FLOAT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateTask(RowTask):
    """What they share. One text or two are written as the model's family does it (`writing`).

    `read_at` says which state is read: "auto" is the "first" of an encoder ([CLS]) and the "last" of all others; an
    encoder that sees to the left only is read at its last [SEP].

    A decoder-only model also predicts every next token of the row, with weight `language_model_weight` (0: not at all;
    0.5 in the paper): that loss is averaged over each sequence, then over sequences. With `fresh_tokens` the embeddings
    of start, delimiter and extract are random when the run starts from a checkpoint, as in the paper: pretraining has
    seen them only as tokens that never come next. Set it to False to start from a run that was fine-tuned with them.
    Without `special_tokens` the row is the text alone. With `both_orders` a pair is read in both, and the two states
    are added (similarity).
    """

    families: ClassVar[tuple[str, ...]] = ("encoder_only", "decoder_only", "encoder_decoder")

    read_at: str = "auto"
    language_model_weight: float = 0.0
    fresh_tokens: bool = True
    special_tokens: bool = True
    both_orders: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("task.language_model_weight", self.language_model_weight, at_least=0)
        check_choice("task.read_at", self.read_at, PLACES)
        self._check_fields()
        if not self.special_tokens and self.num_texts > 1:
            raise UserError("task.special_tokens: two texts need a delimiter between them; set it to true")
        if self.both_orders and self.num_texts != 2:
            raise UserError("task.both_orders: there is one text, and no other order; name two in task.text_fields")

    def _check_fields(self) -> None:
        if len(self.text_fields) not in (1, 2):
            raise UserError(f"task.text_fields: {len(self.text_fields)} fields, but one text or two can be read")

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return the task for a model. Raises UserError where it cannot carry it, or where the state that is read sees
        nothing of the text."""
        task = super().for_model(model)
        if model.family != "decoder_only":
            for key, off in (("language_model_weight", 0.0), ("special_tokens", True)):
                if getattr(self, key) != off:
                    raise UserError(f"task.{key}: it is for decoder_only models, and the model is {model.family}")
        elif self.read_at == "first":
            raise UserError("task.read_at: the first token of a decoder_only model sees nothing of the text; use last")
        if model.family == "encoder_decoder" and self.read_at == "first":
            raise UserError("task.read_at: the decoder's first state sees nothing of what it reads; use last")
        if model.family == "encoder_only" and self.read_at != "last" and model.visibility == "causal":
            raise UserError(
                "task.read_at: the first token sees nothing of the text under model.visibility=causal; set it to last"
            )
        return task

    @property
    def format(self) -> Format:
        """How a row is written; known once the task is bound."""
        return super().format if self.special_tokens else BARE

    @property
    def new_token_ids(self) -> Sequence[int]:  # type: ignore[override]
        """The tokens that pretraining has not taught. Known once the task is bound."""
        if self.family != "decoder_only" or not self.fresh_tokens or not self.special_tokens:
            return []
        special = self.vocabulary.special
        return [special[role] for role in ("start", "delimiter", "extract") if role in special]

    @property
    def predicts_tokens(self) -> bool:
        return self.language_model_weight > 0

    @property
    def coefficients(self) -> dict[str, float]:
        return ({"tokens": self.language_model_weight} if self.predicts_tokens else {}) | {"label": 1.0}

    @property
    def heads(self) -> dict[str, Head]:
        return {"label": self.head._replace(reads="sum") if self.both_orders else self.head}

    @property
    def head(self) -> Head:
        """What is read of a state, and the loss on that."""
        raise TypeError("a task says what is read")

    @property
    def _texts_a_row(self) -> tuple[int, ...]:
        return (2,) if self.both_orders else ()

    @property
    def _reads_first(self) -> bool:
        return self.family == "encoder_only" and self.read_at != "last"

    @property
    def shapes(self) -> Shapes:
        shapes = row_shapes(self.family, self.sequence_length)
        if self.predicts_tokens:
            shapes |= {"targets": ((self.sequence_length,), INT), "weights": ((self.sequence_length,), FLOAT)}
        if not self._reads_first:
            shapes["label_positions"] = ((), INT)
        shapes = {name: (self._texts_a_row + shape, dtype) for name, (shape, dtype) in shapes.items()}
        head = self.head
        targets = (head.size,) if head.loss == "sigmoid" else ()
        return shapes | {"label_targets": (targets, _TARGETS[head.loss]), "label_weights": ((), FLOAT)}

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`; draws nothing from `rng`."""
        rows = [self._row(texts) for texts in self._texts(example)]
        if self._texts_a_row:
            arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        else:
            (arrays,) = rows
        label = example["label"]
        known = label is not None and not (self.label_kind in ("class", "choice") and label < 0)
        target = np.array(self._target(label) if known else np.zeros(self.shapes["label_targets"][0]))
        weight = self._weight(label) if known else 0.0
        return arrays | {
            "label_targets": target.astype(self.shapes["label_targets"][1]),
            "label_weights": np.array(weight, FLOAT),
        }

    def _texts(self, example: Example) -> list[list[np.ndarray]]:
        """Return the texts of every row that is read of an example."""
        texts = [np.asarray(example[field], INT) for field in self.text_fields]
        return [texts, texts[::-1]] if self.both_orders else [texts]

    def _row(self, texts: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        vocabulary = self.vocabulary
        written = self.format.write(cut(texts, self.room), vocabulary)
        if not len(written.tokens):  # an empty text alone
            written = Written(np.array([vocabulary.id("pad")], INT), np.zeros(1, INT), (0,))
        arrays = rows_of(self.family, written, self.sequence_length, vocabulary)
        if not self._reads_first:
            arrays["label_positions"] = np.array(len(written.tokens) - 1, INT)
        if self.predicts_tokens:
            arrays |= language_model(written.tokens, self.sequence_length, vocabulary)
        return arrays

    def _target(self, label: Any) -> Any:
        return label

    def _weight(self, label: Any) -> float:
        return 1.0


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities float64 [..., C] of logits."""
    powers = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def check_class_weights(weights: Sequence[float], labels: Sequence[str] = ()) -> None:
    """Raise UserError for weights of 0 or below, or, where there are any, not one for each label."""
    for weight in weights:
        check_range("task.class_weights", weight, above=0)
    if weights and labels and len(weights) != len(labels):
        raise UserError(
            f"task.class_weights: {len(weights)} weights, but there are {len(labels)} labels: {', '.join(labels)}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(StateTask):
    """One class for a text or a pair of texts. `class_weights` (one for each label, in their order) weigh the loss of
    their examples."""

    name: ClassVar[str] = "classification"
    label_kind: ClassVar[str] = "class"

    metrics: tuple[str, ...] = ("accuracy", "f1")
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("task.label_smoothing", self.label_smoothing, at_least=0, at_most=1)
        check_class_weights(self.class_weights)

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode, decode: Decode) -> Self:
        check_class_weights(self.class_weights, labels)
        return super().bind(vocabulary, labels, encode, decode)

    @property
    def head(self) -> Head:
        return Head(len(self.labels), label_smoothing=self.label_smoothing)

    def _weight(self, label: int) -> float:
        return self.class_weights[label] if self.class_weights else 1.0

    def answers(self, rows: Sequence[Example], found: Sequence[Any]) -> list[dict[str, Any]]:
        """Return {"label", "probability", "probabilities": {label: …}} of each example."""
        answers = []
        for probabilities in map(softmax, found):
            best = int(np.argmax(probabilities))
            each = dict(zip(self.labels, map(float, probabilities), strict=True))
            answers.append({"label": self.labels[best], "probability": each[self.labels[best]], "probabilities": each})
        return answers

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[int]:
        classes = {label: number for number, label in enumerate(self.labels)}
        return [classes[answer["label"]] for answer in answers]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(StateTask):
    """Any number of classes for a text or a pair of texts: each is said whose probability is `threshold` or more."""

    name: ClassVar[str] = "multi_label"
    label_kind: ClassVar[str] = "classes"

    metrics: tuple[str, ...] = ("micro_f1", "macro_f1", "exact_match")
    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("task.threshold", self.threshold, above=0, below=1)

    @property
    def head(self) -> Head:
        return Head(len(self.labels), loss="sigmoid")

    def _target(self, label: Sequence[int]) -> np.ndarray:
        target = np.zeros(len(self.labels), FLOAT)
        target[list(label)] = 1
        return target

    def answers(self, rows: Sequence[Example], found: Sequence[Any]) -> list[dict[str, Any]]:
        """Return {"labels", "probabilities": {label: …}} of each example."""
        answers = []
        for logits in found:
            probabilities = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
            each = dict(zip(self.labels, map(float, probabilities), strict=True))
            said = [label for label, probability in each.items() if probability >= self.threshold]
            answers.append({"labels": said, "probabilities": each})
        return answers

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        classes = {label: number for number, label in enumerate(self.labels)}
        return [[classes[label] for label in answer["labels"]] for answer in answers]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression(StateTask):
    """A number for a text or a pair of texts, by the mean square of the difference."""

    name: ClassVar[str] = "regression"
    label_kind: ClassVar[str] = "number"

    metrics: tuple[str, ...] = ("pearson", "spearman")

    @property
    def head(self) -> Head:
        return Head(1, loss="squared")

    def answers(self, rows: Sequence[Example], found: Sequence[Any]) -> list[dict[str, Any]]:
        """Return {"number"} of each example."""
        return [{"number": float(logits[0])} for logits in found]

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[float]:
        return [answer["number"] for answer in answers]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoice(StateTask):
    """Which of several texts follows, or answers? The row of a choice is a pair: the context, of all `text_fields`, and
    `stem_fields`, if there are, with one of `choice_fields` behind them.

    SWAG: a sentence, the begin of the next and four ends; RACE: article and question, and four answers (`a[0]` is the
    first text of a list in field `a`). Each row gives one score, and their softmax is over the choices.
    """

    name: ClassVar[str] = "multiple_choice"
    label_kind: ClassVar[str] = "choice"

    choice_fields: tuple[str, ...] = ("ending0", "ending1", "ending2", "ending3")
    stem_fields: tuple[str, ...] = ()
    text_fields: tuple[str, ...] = ("context",)
    metrics: tuple[str, ...] = ("accuracy",)
    label_smoothing: float = 0.0

    def _check_fields(self) -> None:
        for key in ("choice_fields", "stem_fields"):
            object.__setattr__(self, key, several(getattr(self, key)))
        if not self.text_fields:
            raise UserError("task.text_fields: none, but a choice needs a context; name one field or more")
        if len(self.choice_fields) < 2:
            raise UserError(f"task.choice_fields: {len(self.choice_fields)}, but a choice is among two or more")
        if self.both_orders:
            raise UserError("task.both_orders: a context and its continuation have one order; leave it out")
        check_range("task.label_smoothing", self.label_smoothing, at_least=0, at_most=1)

    @property
    def num_texts(self) -> int:
        return 2

    @property
    def fields(self) -> tuple[str, ...]:
        return (*self.text_fields, *self.stem_fields, *self.choice_fields)

    @property
    def head(self) -> Head:
        return Head(1, reads="choices", label_smoothing=self.label_smoothing)

    @property
    def _texts_a_row(self) -> tuple[int, ...]:
        return (len(self.choice_fields),)

    def is_cut(self, lengths: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return bool [N]: whether something of each example is left out beside its longest choice."""
        shared = np.sum([lengths[field] for field in (*self.text_fields, *self.stem_fields)], axis=0)
        return shared + np.max([lengths[field] for field in self.choice_fields], axis=0) > self.room

    def _texts(self, example: Example) -> list[list[np.ndarray]]:
        def joined(*fields: str) -> np.ndarray:
            return np.concatenate([np.asarray(example[field], INT) for field in fields])

        context = joined(*self.text_fields)
        return [[context, joined(*self.stem_fields, choice)] for choice in self.choice_fields]

    def answers(self, rows: Sequence[Example], found: Sequence[Any]) -> list[dict[str, Any]]:
        """Return {"choice": its number from 0, "text": it, of an example with its record, "probability",
        "probabilities": […]} of each example."""
        answers = []
        for row, probabilities in zip(rows, map(softmax, found), strict=True):
            best = int(np.argmax(probabilities))
            each = [float(probability) for probability in probabilities]
            text = {"text": row["record"][self.choice_fields[best]]} if "record" in row else {}
            answers.append({"choice": best, **text, "probability": each[best], "probabilities": each})
        return answers

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[int]:
        return [answer["choice"] for answer in answers]
