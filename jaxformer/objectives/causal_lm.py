"""Causal language modelling (GPT, section 3.1; GPT-2; GPT-3)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.errors import UserError
from jaxformer.objectives.shapes import Shapes, filled
from jaxformer.tokenizers import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM:
    """Predict each next token.

    `windows` cuts the stream of documents, each followed by the end-of-text token, into rows whose attention does not
    stop at documents (GPT, GPT-2, GPT-3). `documents` packs whole documents into rows whose segments do not see each
    other. The end-of-text token is an ordinary target.
    """

    sequence_length: int = 512
    packing: str = "windows"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata={"config": False})

    families: ClassVar[tuple[str, ...]] = ("decoder_only",)
    heads: ClassVar[dict[str, int]] = {}
    head_dropout: ClassVar[float] = 0.0
    predicts_tokens: ClassVar[bool] = True
    coefficients: ClassVar[dict[str, float]] = {"tokens": 1.0}

    def __post_init__(self) -> None:
        if self.sequence_length < 1:
            raise UserError(f"objective.sequence_length: {self.sequence_length} must be at least 1")
        if self.packing not in ("windows", "documents"):
            raise UserError(f"objective.packing: '{self.packing}' is not one of windows, documents")

    def bind(self, vocabulary: Vocabulary) -> Self:
        vocabulary.id("end")
        return dataclasses.replace(self, vocabulary=vocabulary)

    @property
    def rows(self) -> str:
        return {"windows": "windows", "documents": "packed"}[self.packing]

    @property
    def separator(self) -> int | None:
        return self.vocabulary.id("end") if self.vocabulary else None

    @property
    def row_length(self) -> int:
        return self.sequence_length + 1

    @property
    def row_settings(self) -> dict[str, Any]:
        return {"rows": self.rows, "row_length": self.row_length, "separator": self.separator}

    @property
    def shapes(self) -> Shapes:
        row = (self.sequence_length,)
        integers = dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), (row, np.dtype(np.int32)))
        return integers | {"weights": (row, np.dtype(np.float32))}

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        tokens, segments = row["tokens"], row["segment_ids"]
        if self.packing == "windows":
            segments = np.ones_like(tokens)
        same = segments[1:] == segments[:-1]
        starts = np.concatenate([[True], ~same])[: len(tokens)]
        places = np.arange(len(tokens))
        positions = places - np.maximum.accumulate(np.where(starts, places, 0))
        return filled(
            self.shapes,
            inputs=tokens[:-1],
            targets=tokens[1:],
            weights=same,
            segment_ids=segments[:-1],
            positions=positions[:-1],
        )
