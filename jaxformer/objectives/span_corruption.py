"""Span corruption (T5, section 3.3.4 and released code): the encoder reads text with holes, the decoder writes the holes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.errors import UserError
from jaxformer.objectives.noise import random_spans_mask, spans_to_sentinels
from jaxformer.objectives.shapes import Shapes, filled
from jaxformer.tokenizers import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Replace random spans by sentinels; predict the sentinels with what they replaced, and the end of text.

    `input_length` is what the encoder reads; rows are as long as then fits, and the targets as long as they get (512 at
    the paper's settings: rows of 568, targets of 114). `z_loss` is the released code's.
    """

    input_length: int = 512
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    label_smoothing: float = 0.0
    z_loss: float = 1e-4
    vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata={"config": False})

    families: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    heads: ClassVar[dict[str, int]] = {}
    head_dropout: ClassVar[float] = 0.0
    predicts_tokens: ClassVar[bool] = True
    coefficients: ClassVar[dict[str, float]] = {"tokens": 1.0}
    rows: ClassVar[str] = "windows"
    separator: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        if self.input_length < 4:
            raise UserError(f"objective.input_length: {self.input_length} must be at least 4")
        if not 0.0 < self.noise_density < 1.0:
            raise UserError(f"objective.noise_density: {self.noise_density} must lie between 0 and 1")
        if self.mean_span_length < 1.0:
            raise UserError(f"objective.mean_span_length: {self.mean_span_length} must be at least 1")

    def bind(self, vocabulary: Vocabulary) -> Self:
        vocabulary.id("pad"), vocabulary.id("end")
        spans = _spans(self.row_length, self.noise_density, self.mean_span_length)[1]
        if len(vocabulary.sentinels) < spans:
            raise UserError(
                f"the tokenizer has {len(vocabulary.sentinels)} sentinels (<extra_id_0> …), span_corruption needs {spans}; "
                "raise tokenizer.num_sentinels or objective.mean_span_length"
            )
        return dataclasses.replace(self, vocabulary=vocabulary)

    @property
    def row_length(self) -> int:
        return _lengths(self.input_length, self.noise_density, self.mean_span_length)[0]

    @property
    def row_settings(self) -> dict[str, Any]:
        return {"rows": self.rows, "row_length": self.row_length, "separator": self.separator}

    @property
    def shapes(self) -> Shapes:
        row = (self.input_length,)
        target = (_lengths(self.input_length, self.noise_density, self.mean_span_length)[1],)
        integer = np.dtype(np.int32)
        shapes = dict.fromkeys(("encoder_inputs", "encoder_segment_ids", "encoder_positions"), (row, integer))
        shapes |= dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), (target, integer))
        return shapes | {"weights": (target, np.dtype(np.float32))}

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        assert self.vocabulary is not None
        tokens, sentinels, end = row["tokens"], self.vocabulary.sentinels, self.vocabulary.id("end")
        mask = random_spans_mask(len(tokens), self.noise_density, self.mean_span_length, rng)
        encoder_inputs = np.append(spans_to_sentinels(tokens, mask, sentinels), end)
        targets = np.append(spans_to_sentinels(tokens, ~mask, sentinels), end)
        return filled(
            self.shapes,
            encoder_inputs=encoder_inputs,
            encoder_segment_ids=np.ones_like(encoder_inputs),
            encoder_positions=np.arange(len(encoder_inputs)),
            inputs=np.append(self.vocabulary.id("pad"), targets[:-1]),
            targets=targets,
            weights=np.ones(len(targets)),
            segment_ids=np.ones_like(targets),
            positions=np.arange(len(targets)),
        )


def _spans(length: int, density: float, mean_span_length: float) -> tuple[int, int]:
    """Return (noise tokens, noise spans) of a row."""
    noise = int(np.clip(round(length * density), 1, length - 1))
    return noise, max(1, round(noise / mean_span_length))


@functools.cache
def _lengths(input_length: int, density: float, mean_span_length: float) -> tuple[int, int]:
    """Return (row length, target length): the longest row whose inputs, sentinels and end of text fit `input_length`."""

    def written(length: int) -> tuple[int, int]:
        noise, spans = _spans(length, density, mean_span_length)
        return length - noise + spans + 1, noise + spans + 1

    length = input_length
    while written(length)[0] > input_length:
        length -= 1
    while written(length + 1)[0] <= input_length:
        length += 1
    return length, written(length)[1]
