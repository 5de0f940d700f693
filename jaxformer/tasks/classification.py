"""Classification of a text, or of a pair of texts, the way each family does it (GPT, section 3.3; BERT, 3.2; T5, 2.4).

Text that is too long is cut at its end, the longer text first; special tokens and T5's words never are. An example
whose label is negative has no label: its weights are 0.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from jaxformer.checks import check_choice, check_range, several
from jaxformer.errors import UserError
from jaxformer.objectives import FLOAT, INT, Encode, Part, Shapes, padded, row_arrays
from jaxformer.tasks.metrics import METRICS
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:
    from jaxformer.models import TransformerConfig

BOUND: Any = {"config": False}
PLACES = ("first", "last")


def cut(texts: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """Return one or two texts cut at their ends to `room` tokens together, always from the longer one (BERT's code)."""
    if len(texts) == 1:
        return [texts[0][:room]]
    first, second = len(texts[0]), len(texts[1])
    if first + second > room:
        if first > second:
            first = max(room - second, room - room // 2)
            second = room - first
        else:
            second = max(room - first, room // 2)
            first = room - second
    return [texts[0][:first], texts[1][:second]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Classification:
    """What all four share. `text_fields`: one or two fields of the data; `sequence_length` counts special tokens."""

    name: ClassVar[str]
    families: ClassVar[tuple[str, ...]]  # that can carry it
    labelled: ClassVar[bool] = True
    decodes: ClassVar[bool] = False
    delimited: ClassVar[bool] = False
    fills_masks: ClassVar[bool] = False
    new_token_ids: ClassVar[tuple[int, ...]] = ()

    sequence_length: int = 128
    text_fields: tuple[str, ...] = ("text",)
    metrics: tuple[str, ...] = ("accuracy", "f1")
    _vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata=BOUND)
    labels: tuple[str, ...] = dataclasses.field(default=(), metadata=BOUND)

    def __post_init__(self) -> None:
        check_range("task.sequence_length", self.sequence_length, at_least=8)
        for key in ("text_fields", "metrics"):
            object.__setattr__(self, key, several(getattr(self, key)))
        if len(self.text_fields) not in (1, 2):
            raise UserError(f"task.text_fields: {len(self.text_fields)} fields, but one text or two can be classified")
        for metric in self.metrics:
            check_choice("task.metrics", metric, METRICS)

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return the task for a model. Raises UserError for a model of another family."""
        if model.family not in self.families:
            families = " or ".join(self.families)
            raise UserError(
                f"task.name: {self.name} needs {families}, but the model is {model.family}; "
                "choose another task or model.preset"
            )
        return self

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of a bound task."""
        if self._vocabulary is None:
            raise TypeError("this task has no vocabulary yet; call bind first")
        return self._vocabulary

    @property
    def fields(self) -> tuple[str, ...]:
        return self.text_fields

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part(self, 1.0, ()),)

    @property
    def heads(self) -> dict[str, int]:
        return {"label": len(self.labels)}

    def _ids(self, *roles: str) -> list[int]:
        return [self.vocabulary.id(role) for role in roles]

    @property
    def room(self) -> int:
        return self.sequence_length - 1 - len(self.text_fields)

    def _texts(self, example: Mapping[str, Any]) -> list[np.ndarray]:
        return cut([np.asarray(example[field], INT) for field in self.text_fields], self.room)

    def _sequence(self, tokens: np.ndarray, side: str = "") -> dict[str, np.ndarray]:
        return row_arrays(tokens, self.sequence_length, self._ids("pad")[0], side)


_LABEL: Shapes = {"label_targets": ((), INT), "label_weights": ((), FLOAT)}


def _label(example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    label = int(example["label"])
    return {"label_targets": np.array(max(label, 0), INT), "label_weights": np.array(label >= 0, FLOAT)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractClassification(_Classification):
    """GPT's: `[start] text [extract]` or `[start] a [delimiter] b [extract]`, classified at the extract token.

    The model also predicts every next token of the sequence, with weight `language_model_weight` (0: not at all); that
    loss is averaged over each sequence, then over sequences. `head_dropout` acts before the classifier. With
    `fresh_tokens` the embeddings of start, delimiter and extract are random when the run starts from a checkpoint, as
    in the paper: pretraining has seen them only as tokens that never come next. Set it to False to start from a run
    that was fine-tuned with them. Without `special_tokens` the row is the text alone, classified at its last token.
    """

    name: ClassVar[str] = "extract_classification"
    families: ClassVar[tuple[str, ...]] = ("decoder_only",)
    label_smoothing: ClassVar[float] = 0.0
    z_loss: ClassVar[float] = 0.0

    language_model_weight: float = 0.5
    head_dropout: float = 0.1
    fresh_tokens: bool = True
    special_tokens: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.special_tokens and len(self.text_fields) > 1:
            raise UserError("task.special_tokens: two texts need a delimiter between them; set it to true")
        check_range("task.language_model_weight", self.language_model_weight, at_least=0)
        check_range("task.head_dropout", self.head_dropout, at_least=0, below=1)

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode) -> Self:
        """Return a copy that knows ids and labels. Raises UserError when the tokenizer lacks GPT's special tokens."""
        task = dataclasses.replace(self, _vocabulary=vocabulary, labels=tuple(labels))
        special = ("start", "extract") if self.special_tokens else ()
        task._ids("pad", *special, *["delimiter"] * (len(self.text_fields) - 1))
        return task

    @property
    def room(self) -> int:
        return super().room if self.special_tokens else self.sequence_length

    @property
    def new_token_ids(self) -> list[int]:  # type: ignore[override]
        """The tokens that pretraining has not taught. Known once the task is bound."""
        special = self.vocabulary.special if self.fresh_tokens and self.special_tokens else {}
        return [special[role] for role in ("start", "delimiter", "extract") if role in special]

    @property
    def predicts_tokens(self) -> bool:
        return self.language_model_weight > 0

    @property
    def coefficients(self) -> dict[str, float]:
        return ({"tokens": self.language_model_weight} if self.predicts_tokens else {}) | {"label": 1.0}

    @property
    def shapes(self) -> Shapes:
        row = (self.sequence_length,)
        shapes: Shapes = {name: (row, INT) for name in ("inputs", "segment_ids", "positions")} | _LABEL
        shapes["label_positions"] = ((), INT)
        if self.predicts_tokens:
            shapes |= {"targets": (row, INT), "weights": (row, FLOAT)}
        return shapes

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`; draws nothing from `rng`."""
        (pad,) = self._ids("pad")
        if self.special_tokens:
            start, extract = self._ids("start", "extract")
            first, *second = self._texts(example)
            parts = [[start], first, *[part for text in second for part in (self._ids("delimiter"), text)], [extract]]
            tokens = np.concatenate(parts)
        else:
            (tokens,) = self._texts(example)
            tokens = tokens if len(tokens) else np.array([pad], INT)
        arrays = self._sequence(tokens) | _label(example)
        arrays["label_positions"] = np.array(len(tokens) - 1, INT)
        if self.predicts_tokens:
            predictions = len(tokens) - 1
            arrays["targets"] = padded(tokens[1:], self.sequence_length, fill=pad)
            arrays["weights"] = padded(np.full(predictions, 1 / max(predictions, 1)), self.sequence_length, FLOAT)
        return arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LabelAlone(_Classification):
    """What tasks share that predict nothing but the label. `head_dropout` acts before the classifier."""

    label_smoothing: ClassVar[float] = 0.0
    z_loss: ClassVar[float] = 0.0
    predicts_tokens: ClassVar[bool] = False
    coefficients: ClassVar[dict[str, float]] = {"label": 1.0}

    head_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("task.head_dropout", self.head_dropout, at_least=0, below=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PooledClassification(_LabelAlone):
    """BERT's: `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` with two token types, classified at the "first" of them.

    `pooled_at` "last" classifies at the last [SEP]: the only one that has seen everything in a left-to-right encoder.
    `head_dropout` acts before the classifier.
    """

    name: ClassVar[str] = "pooled_classification"
    families: ClassVar[tuple[str, ...]] = ("encoder_only",)

    pooled_at: str = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("task.pooled_at", self.pooled_at, PLACES)

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return the task for a model. Raises UserError where the token that is classified sees nothing of the text."""
        task = super().for_model(model)
        if self.pooled_at == "first" and model.visibility == "causal":
            raise UserError(
                "task.pooled_at: the first token sees nothing of the text under model.visibility=causal; set it to last"
            )
        return task

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode) -> Self:
        """Return a copy that knows ids and labels. Raises UserError when the tokenizer lacks [PAD], [CLS] or [SEP]."""
        task = dataclasses.replace(self, _vocabulary=vocabulary, labels=tuple(labels))
        task._ids("pad", "classify", "separator")
        return task

    @property
    def shapes(self) -> Shapes:
        row = (self.sequence_length,)
        shapes: Shapes = {name: (row, INT) for name in ("inputs", "segment_ids", "positions", "token_types")} | _LABEL
        return shapes | ({"label_positions": ((), INT)} if self.pooled_at == "last" else {})

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`; draws nothing from `rng`."""
        classify, separator = self._ids("classify", "separator")
        first, *second = self._texts(example)
        tokens = np.concatenate([[classify], first, [separator], *[np.append(text, separator) for text in second]])
        types = padded(np.arange(len(tokens)) >= len(first) + 2, self.sequence_length)
        arrays = self._sequence(tokens) | {"token_types": types} | _label(example)
        if self.pooled_at == "last":
            arrays["label_positions"] = np.array(len(tokens) - 1, INT)
        return arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderClassification(_LabelAlone):
    """BART's: encoder and decoder read the same text, `<s> a </s>` or `<s> a </s></s> b </s>`, the decoder one place
    later, and its state at the last place is classified (BART, section 3.1). Without <s> in the vocabulary (T5) none.

    `head_dropout` acts before the classifier, and before the pooler where the model's pooler says so.
    """

    name: ClassVar[str] = "decoder_classification"
    families: ClassVar[tuple[str, ...]] = ("encoder_decoder",)

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode) -> Self:
        """Return a copy that knows ids and labels. Raises UserError when the tokenizer lacks padding or EOS."""
        task = dataclasses.replace(self, _vocabulary=vocabulary, labels=tuple(labels))
        task._ids("pad", "end")
        return task

    @property
    def _start(self) -> list[int]:
        return [self.vocabulary.id("start")] if "start" in self.vocabulary.special else []

    @property
    def room(self) -> int:
        between = 1 + len(self._start)
        return self.sequence_length - len(self._start) - 1 - between * (len(self.text_fields) - 1)

    @property
    def shapes(self) -> Shapes:
        names = ("inputs", "segment_ids", "positions")
        rows = {f"{side}{name}": ((self.sequence_length,), INT) for side in ("", "encoder_") for name in names}
        return rows | _LABEL | {"label_positions": ((), INT)}

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`; draws nothing from `rng`."""
        (end,) = self._ids("end")
        start, between = self._start, [end, end] if self._start else [end]
        first, *second = self._texts(example)
        tokens = np.concatenate([start, first, *[part for text in second for part in (between, text)], [end]])
        arrays = self._sequence(np.append(self.vocabulary.decoder_start, tokens[:-1])) | _label(example)
        arrays["label_positions"] = np.array(len(tokens) - 1, INT)
        return arrays | self._sequence(tokens, "encoder_")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToTextClassification(_Classification):
    """T5's: reads `PREFIX FIELD: text`, each field announced by its name, and writes the label's text.

    Targets are the label's tokens and EOS, at most `target_length` together. It is judged by what the model writes;
    text that is no label counts as wrong.
    """

    name: ClassVar[str] = "text_to_text_classification"
    families: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    predicts_tokens: ClassVar[bool] = True
    head_dropout: ClassVar[float] = 0.0
    coefficients: ClassVar[dict[str, float]] = {"tokens": 1.0}
    decodes: ClassVar[bool] = True

    prefix: str = ""
    target_length: int = 8
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    words: tuple[np.ndarray, ...] = dataclasses.field(default=(), compare=False, metadata=BOUND)
    label_ids: tuple[np.ndarray, ...] = dataclasses.field(default=(), compare=False, metadata=BOUND)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("task.target_length", self.target_length, at_least=2)
        check_range("task.label_smoothing", self.label_smoothing, at_least=0, at_most=1)
        check_range("task.z_loss", self.z_loss, at_least=0)

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode) -> Self:
        """Return a copy that knows ids, labels and their tokens.

        Raises UserError when the tokenizer lacks padding or EOS, when it has no tokens for a label's text, or when a
        label or the words before the texts are too long.
        """
        names = [f"{field}:" for field in self.text_fields]
        names[0] = f"{self.prefix} {names[0]}".strip()
        words = tuple(np.asarray(encode(name), INT) for name in names)
        label_ids = tuple(np.asarray(encode(label), INT) for label in labels)
        task = dataclasses.replace(self, _vocabulary=vocabulary, labels=tuple(labels), words=words, label_ids=label_ids)
        task._ids("pad", "end")
        for label, ids in zip(labels, label_ids, strict=True):
            if len(ids) + 1 > self.target_length:
                raise UserError(
                    f"task.target_length: {self.target_length}, but the label '{label}' takes {len(ids) + 1} tokens "
                    "with the end; set it larger"
                )
            if len(ids) == 0 or ("unknown" in vocabulary.special and vocabulary.id("unknown") in ids):
                raise UserError(f"data: the tokenizer cannot write the label '{label}'; rename it or train another")
        if task.room < 1:
            taken = self.sequence_length - task.room
            raise UserError(f"task.sequence_length: {self.sequence_length}, but prefix and field names take {taken}")
        return task

    @property
    def room(self) -> int:
        return self.sequence_length - sum(map(len, self.words)) - 1

    @property
    def heads(self) -> dict[str, int]:
        return {}

    @property
    def shapes(self) -> Shapes:
        source, target = (self.sequence_length,), (self.target_length,)
        names = ("inputs", "segment_ids", "positions")
        shapes: Shapes = {name: (target, INT) for name in (*names, "targets")} | {"weights": (target, FLOAT)}
        return shapes | {f"encoder_{name}": (source, INT) for name in names}

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`; draws nothing from `rng`."""
        pad, end = self._ids("pad", "end")
        texts = self._texts(example)
        parts = [part for pair in zip(self.words, texts, strict=True) for part in pair]
        source = self._sequence(np.concatenate([*parts, [end]]), "encoder_")
        label, length = int(example["label"]), self.target_length
        target = np.append(self.label_ids[label], end) if label >= 0 else np.array([end])
        return (
            source
            | row_arrays(np.append(self.vocabulary.decoder_start, target[:-1]), length, pad)
            | {
                "targets": padded(target, length, fill=pad),
                "weights": padded(np.full(len(target), label >= 0), length, FLOAT),
            }
        )
