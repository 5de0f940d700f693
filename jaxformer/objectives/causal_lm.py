"""Causal language modelling: predict the next token (GPT, section 3.1; GPT-2; GPT-3)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.errors import UserError, suggest
from jaxformer.objectives.arrays import FLOAT, INT, Shapes, bound, check_at_least, check_share, padded, positions
from jaxformer.tokenizers import Vocabulary

PACKINGS = {"windows": "windows", "documents": "packed"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM:
    """Predict every next token of `sequence_length` tokens.

    `packing` "windows" cuts the stream of documents into contiguous rows in which attention crosses documents, as GPT,
    GPT-2 and GPT-3 do. "documents" packs documents into rows in which none sees another: positions restart, and the
    last token of a document predicts nothing. End-of-text stands after every document, if the tokenizer has
    one (GPT's does not), and is an ordinary target.
    """

    name: ClassVar[str] = "causal_lm"
    families: ClassVar[tuple[str, ...]] = ("decoder_only",)
    heads: ClassVar[dict[str, int]] = {}
    predicts_tokens: ClassVar[bool] = True
    head_dropout: ClassVar[float] = 0.0
    coefficients: ClassVar[dict[str, float]] = {"tokens": 1.0}

    sequence_length: int = 512
    packing: str = "windows"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata={"config": False})

    def __post_init__(self) -> None:
        check_at_least(1, sequence_length=self.sequence_length)
        check_share(label_smoothing=self.label_smoothing)
        check_at_least(0, z_loss=self.z_loss)
        if self.packing not in PACKINGS:
            choices = " or ".join(PACKINGS)
            raise UserError(f"objective.packing: '{self.packing}' is not {choices}{suggest(self.packing, PACKINGS)}")

    def bind(self, vocabulary: Vocabulary) -> Self:
        """Return a copy that knows the ids. Raises UserError when documents are packed and there is no end-of-text."""
        for role in ("pad", *(["end"] if self.packing == "documents" else [])):
            vocabulary.id(role)
        return dataclasses.replace(self, vocabulary=vocabulary)

    @property
    def rows(self) -> str:
        return PACKINGS[self.packing]

    @property
    def separator(self) -> int | None:
        return bound(self.vocabulary).special.get("end")

    @property
    def row_length(self) -> int:
        return self.sequence_length + 1

    @property
    def row_settings(self) -> dict[str, Any]:
        return {"rows": self.rows, "row_length": self.row_length, "separator": self.separator}

    @property
    def shapes(self) -> Shapes:
        shape = (self.sequence_length,)
        return {name: (shape, INT) for name in ("inputs", "segment_ids", "positions", "targets")} | {
            "weights": (shape, FLOAT)
        }

    @property
    def num_input_tokens(self) -> int:
        return self.sequence_length

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return one example of `shapes`; draws nothing from `rng`. A row of n tokens gives n - 1 predictions."""
        pad, length = bound(self.vocabulary).id("pad"), self.sequence_length
        tokens = np.asarray(row["tokens"])[: self.row_length]
        segments = np.asarray(row["segment_ids"])[: self.row_length]
        if self.packing == "windows":
            segments = np.ones_like(segments)
        same = segments[1:] == segments[:-1]
        return {
            "inputs": padded(tokens[:-1], length, fill=pad),
            "segment_ids": padded(segments[:-1], length),
            "positions": padded(positions(segments[:-1]), length),
            "targets": padded(tokens[1:], length, fill=pad),
            "weights": padded(same, length, FLOAT),
        }
