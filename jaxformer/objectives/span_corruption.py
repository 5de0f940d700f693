"""Span corruption: write the spans that were replaced by sentinels (T5, section 3.3.4)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.errors import UserError
from jaxformer.objectives.arrays import FLOAT, INT, Shapes, bound, check_at_least, check_share, padded, row_arrays
from jaxformer.objectives.noise import noise_counts, random_spans_noise_mask, shifted_right, spans_to_sentinels
from jaxformer.tokenizers import Vocabulary


@functools.cache
def row_and_target_length(input_length: int, density: float, mean_span_length: float) -> tuple[int, int]:
    """Return how many raw tokens fill `input_length` once corrupted, and the length of their targets, both with EOS."""

    def inputs(length: int) -> int:
        noise, spans = noise_counts(length, density, mean_span_length)
        return length - noise + spans + 1

    # Neither side shrinks when a raw token is added, so shorter rows fit too.
    length = 2
    while inputs(length + 1) <= input_length:
        length += 1
    noise, spans = noise_counts(length, density, mean_span_length)
    return length, noise + spans + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Replace random spans by sentinels and let the decoder write them: `S0 span0 S1 span1 … </s>`.

    `noise_density` of the tokens is noise, in spans of `mean_span_length` on average. A row has as many raw tokens as
    fill `input_length` once corrupted. As in T5's code there is no sentinel after the last span, documents are joined
    without a separator, and the loss carries `z_loss` x log(Z)^2.
    """

    name: ClassVar[str] = "span_corruption"
    families: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    rows: ClassVar[str] = "windows"
    separator: ClassVar[int | None] = None
    heads: ClassVar[dict[str, int]] = {}
    predicts_tokens: ClassVar[bool] = True
    head_dropout: ClassVar[float] = 0.0
    coefficients: ClassVar[dict[str, float]] = {"tokens": 1.0}

    input_length: int = 512
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    z_loss: float = 1e-4
    label_smoothing: float = 0.0
    vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata={"config": False})

    def __post_init__(self) -> None:
        check_at_least(3, input_length=self.input_length)  # one token, one sentinel, EOS
        check_share(label_smoothing=self.label_smoothing)
        check_at_least(0, z_loss=self.z_loss)
        check_at_least(1, mean_span_length=self.mean_span_length)
        if not 0 < self.noise_density <= 0.9:
            raise UserError(f"objective.noise_density: {self.noise_density} must be above 0 and at most 0.9")

    def bind(self, vocabulary: Vocabulary) -> Self:
        """Return a copy that knows the ids. Raises UserError when EOS, padding or enough sentinels are lacking."""
        for role in ("pad", "end"):
            vocabulary.id(role)
        _, spans = noise_counts(self.row_length, self.noise_density, self.mean_span_length)
        if len(vocabulary.sentinels) < spans:
            raise UserError(
                f"objective.input_length: {self.input_length} tokens need {spans} sentinels, but the tokenizer has "
                f"{len(vocabulary.sentinels)}; choose one with more, or set a larger objective.mean_span_length"
            )
        return dataclasses.replace(self, vocabulary=vocabulary)

    @property
    def row_length(self) -> int:
        return row_and_target_length(self.input_length, self.noise_density, self.mean_span_length)[0]

    @property
    def target_length(self) -> int:
        return row_and_target_length(self.input_length, self.noise_density, self.mean_span_length)[1]

    @property
    def row_settings(self) -> dict[str, Any]:
        return {"rows": self.rows, "row_length": self.row_length, "separator": self.separator}

    @property
    def shapes(self) -> Shapes:
        source, target = (self.input_length,), (self.target_length,)
        names = ("inputs", "segment_ids", "positions")
        shapes: Shapes = {name: (target, INT) for name in (*names, "targets")} | {"weights": (target, FLOAT)}
        return shapes | {f"encoder_{name}": (source, INT) for name in names}

    @property
    def num_input_tokens(self) -> int:
        return self.input_length + self.target_length

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return one example of `shapes`. An empty row is all padding, its weights 0."""
        vocabulary = bound(self.vocabulary)
        pad, end = vocabulary.id("pad"), [vocabulary.id("end")]
        tokens = np.asarray(row["tokens"])[: self.row_length]
        source = target = tokens
        if len(tokens):
            noise = random_spans_noise_mask(len(tokens), self.noise_density, self.mean_span_length, rng)
            source = np.concatenate([spans_to_sentinels(tokens, noise, vocabulary.sentinels), end])
            target = np.concatenate([spans_to_sentinels(tokens, ~noise, vocabulary.sentinels), end])
        arrays = {
            "targets": padded(target, self.target_length, fill=pad),
            "weights": padded(np.ones(len(target)), self.target_length, FLOAT),
        }
        read = shifted_right(target, vocabulary.decoder_start)
        return (
            arrays | row_arrays(source, self.input_length, pad, "encoder_") | row_arrays(read, self.target_length, pad)
        )
