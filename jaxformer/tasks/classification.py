"""Classification of one or two texts, as each family's paper does it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.errors import UserError
from jaxformer.objectives.shapes import Shapes, filled
from jaxformer.tokenizers import Vocabulary

_INTEGER, _REAL = np.dtype(np.int32), np.dtype(np.float32)
Encode = Callable[[str], np.ndarray]


def _bound(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"config": False})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
    """What the three share. `text_fields` names one field, or two for pairs; too long texts lose their ends, the longer
    one first, special tokens never."""

    sequence_length: int = 128
    text_fields: tuple[str, ...] = ("text",)
    metrics: tuple[str, ...] = ("accuracy", "f1")
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    vocabulary: Vocabulary | None = _bound(None)
    labels: tuple[str, ...] = _bound(())

    roles: ClassVar[tuple[str, ...]] = ()
    decodes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(self.text_fields) not in (1, 2):
            raise UserError(f"task.text_fields: {len(self.text_fields)} fields; name one, or two for pairs")
        if self.sequence_length < 8:
            raise UserError(f"task.sequence_length: {self.sequence_length} must be at least 8")

    def bind(self, vocabulary: Vocabulary, labels: tuple[str, ...], encode: Encode) -> Self:
        """Return the task with a tokenizer's ids and the names of the classes."""
        for role in self.roles:
            vocabulary.id(role)
        return dataclasses.replace(self, vocabulary=vocabulary, labels=labels)

    @property
    def fields(self) -> tuple[str, ...]:
        return self.text_fields

    @property
    def heads(self) -> dict[str, int]:
        return {"label": len(self.labels)}

    def texts(self, example: Mapping[str, Any], specials: int) -> list[np.ndarray]:
        """Return the example's texts, cut so that they and so many special tokens fit the row."""
        texts = [example[field] for field in self.text_fields]
        room = self.sequence_length - specials
        lengths = np.array([len(text) for text in texts])
        while lengths.sum() > room:
            longest = int(lengths.argmax())
            others = lengths.sum() - lengths[longest]
            # Down to the other's length, or to what fits, whichever is longer.
            lengths[longest] = max(room - others, min(others, lengths[longest] - 1) if len(lengths) > 1 else 0)
        return [text[:length] for text, length in zip(texts, lengths, strict=True)]


def _label(example: Mapping[str, Any]) -> dict[str, Any]:
    return {"label_targets": example["label"], "label_weights": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractClassification(Classification):
    """GPT: `[start] text [extract]` or `[start] a [delimiter] b [extract]`, the label read at the extract token, with an
    auxiliary language-modelling loss, averaged over the tokens of a sequence, then over sequences (GPT, section 3.2)."""

    language_model_weight: float = 0.5
    head_dropout: float = 0.1

    families: ClassVar[tuple[str, ...]] = ("decoder_only",)
    roles: ClassVar[tuple[str, ...]] = ("start", "delimiter", "extract")
    predicts_tokens: ClassVar[bool] = True

    @property
    def coefficients(self) -> dict[str, float]:
        return {"tokens": self.language_model_weight, "label": 1.0}

    @property
    def shapes(self) -> Shapes:
        row = (self.sequence_length,)
        shapes = dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), (row, _INTEGER))
        shapes |= {"weights": (row, _REAL), "label_positions": ((), _INTEGER)}
        return shapes | {"label_targets": ((), _INTEGER), "label_weights": ((), _REAL)}

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        assert self.vocabulary is not None
        start, delimiter, extract = ([self.vocabulary.id(role)] for role in self.roles)
        texts = self.texts(example, 2 + (len(self.fields) - 1))
        joined = texts[0] if len(texts) == 1 else np.concatenate([texts[0], delimiter, texts[1]])
        inputs = np.concatenate([start, joined, extract]).astype(np.int32)
        targets = np.append(inputs[1:], 0)
        weights = np.full(len(inputs), 1.0 / (len(inputs) - 1))
        weights[-1] = 0.0
        return filled(
            self.shapes,
            inputs=inputs,
            targets=targets,
            weights=weights,
            segment_ids=np.ones_like(inputs),
            positions=np.arange(len(inputs)),
            label_positions=len(inputs) - 1,
            **_label(example),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PooledClassification(Classification):
    """BERT: `[CLS] text [SEP]` or `[CLS] a [SEP] b [SEP]`, the label read from the pooled [CLS] (BERT, section 4.1)."""

    head_dropout: float = 0.1

    families: ClassVar[tuple[str, ...]] = ("encoder_only",)
    roles: ClassVar[tuple[str, ...]] = ("classify", "separator")
    predicts_tokens: ClassVar[bool] = False
    coefficients: ClassVar[dict[str, float]] = {"label": 1.0}

    @property
    def shapes(self) -> Shapes:
        row = (self.sequence_length,)
        shapes = dict.fromkeys(("inputs", "segment_ids", "positions", "token_types"), (row, _INTEGER))
        return shapes | {"label_targets": ((), _INTEGER), "label_weights": ((), _REAL)}

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        assert self.vocabulary is not None
        classify, separator = ([self.vocabulary.id(role)] for role in self.roles)
        texts = self.texts(example, 1 + len(self.fields))
        parts = [np.concatenate([text, separator]) for text in texts]
        inputs = np.concatenate([classify, *parts]).astype(np.int32)
        token_types = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return filled(
            self.shapes,
            inputs=inputs,
            segment_ids=np.ones_like(inputs),
            positions=np.arange(len(inputs)),
            token_types=np.append(0, token_types),
            **_label(example),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToTextClassification(Classification):
    """T5: the encoder reads `PREFIX FIELD: text …`, the decoder writes the label's name (T5, section 2.4 and appendix D).

    An answer that is no label's name is wrong. `prefix` names the task.
    """

    prefix: str = ""
    target_length: int = 8
    openings: tuple[np.ndarray, ...] = _bound(())  # what stands before each field's text
    label_ids: tuple[np.ndarray, ...] = _bound(())

    families: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    roles: ClassVar[tuple[str, ...]] = ("pad", "end")
    predicts_tokens: ClassVar[bool] = True
    coefficients: ClassVar[dict[str, float]] = {"tokens": 1.0}
    head_dropout: ClassVar[float] = 0.0
    decodes: ClassVar[bool] = True

    def bind(self, vocabulary: Vocabulary, labels: tuple[str, ...], encode: Encode) -> Self:
        bound = super().bind(vocabulary, labels, encode)
        names = [f"{field}:" for field in self.text_fields]
        names[0] = f"{self.prefix} {names[0]}".strip()
        label_ids = tuple(encode(label) for label in labels)
        longest = max((len(ids) for ids in label_ids), default=0) + 1
        if longest > self.target_length:
            raise UserError(
                f"task.target_length: {self.target_length}, but a label's text has {longest} tokens with its end"
            )
        return dataclasses.replace(bound, openings=tuple(encode(name) for name in names), label_ids=label_ids)

    @property
    def heads(self) -> dict[str, int]:
        return {}

    @property
    def shapes(self) -> Shapes:
        row, target = (self.sequence_length,), (self.target_length,)
        shapes = dict.fromkeys(("encoder_inputs", "encoder_segment_ids", "encoder_positions"), (row, _INTEGER))
        shapes |= dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), (target, _INTEGER))
        return shapes | {"weights": (target, _REAL)}

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        assert self.vocabulary is not None
        end, pad = self.vocabulary.id("end"), self.vocabulary.id("pad")
        texts = self.texts(example, sum(len(opening) for opening in self.openings) + 1)
        parts: Sequence[np.ndarray] = [part for pair in zip(self.openings, texts, strict=True) for part in pair]
        encoder_inputs = np.concatenate([*parts, [end]]).astype(np.int32)
        targets = np.append(self.label_ids[example["label"]], end)
        return filled(
            self.shapes,
            encoder_inputs=encoder_inputs,
            encoder_segment_ids=np.ones_like(encoder_inputs),
            encoder_positions=np.arange(len(encoder_inputs)),
            inputs=np.append(pad, targets[:-1]),
            targets=targets,
            weights=np.ones(len(targets)),
            segment_ids=np.ones_like(targets),
            positions=np.arange(len(targets)),
        )
