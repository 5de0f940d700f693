"""Causal language modelling: predict the next token (GPT, section 3.1; GPT-2; GPT-3; BERT, section 5.1)."""

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.objectives.arrays import INT, Shapes, positions
from jaxformer.objectives.objective import Objective, Row, Written, insert, row_shapes, target_shapes
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:
    from jaxformer.models import TransformerConfig

PACKINGS = {"windows": "windows", "documents": "packed"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """Predict every next token of `sequence_length` tokens.

    `packing` "windows" cuts the stream of documents into contiguous rows, as GPT, GPT-2 and GPT-3 do. "documents"
    packs whole documents into a row as long as they fit. Attention crosses documents (GPT-3, section 2.4: no special
    mask) unless `document_mask`: then none sees another, positions restart, and the last token of a document predicts
    nothing. End-of-text stands after every document, if the tokenizer has one (GPT's does not), and is an ordinary
    target.

    An encoder-only model reads `[CLS] …`, with [SEP] after every document (BERT's left-to-right model, "LTR & No NSP").
    """

    name: ClassVar[str] = "causal_lm"
    paper: ClassVar[str] = "GPT 3.1, GPT-2, GPT-3; BERT 5.1 (LTR)"
    families: ClassVar[tuple[str, ...]] = ("decoder_only", "encoder_only")
    refusals: ClassVar[dict[str, str]] = {"encoder_decoder": "its encoder would read nothing; that is plain_lm"}

    sequence_length: int = 512
    packing: str = "windows"
    document_mask: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("objective.sequence_length", self.sequence_length, at_least=1)
        check_choice("objective.packing", self.packing, PACKINGS)

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return a copy for a model. Raises UserError when the model sees what it predicts."""
        if model.family in self.families and model.visibility == "full":
            raise UserError(
                "objective.name: causal_lm cannot train a model that sees what it predicts; set model.visibility=causal"
            )
        return super().for_model(model)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise UserError when a token is lacking that is needed, or documents are packed and nothing can end them."""
        if self.family == "encoder_only":
            vocabulary.id("classify")
        if self.packing == "documents":
            vocabulary.id(self._end)
        super().check_vocabulary(vocabulary)

    @property
    def rows(self) -> str:  # type: ignore[override]
        return PACKINGS[self.packing]

    @property
    def packed(self) -> bool:  # type: ignore[override]
        return self.document_mask

    @property
    def _end(self) -> str:
        return "separator" if self.family == "encoder_only" else "end"

    @property
    def separator(self) -> int | None:
        return self.vocabulary.special.get(self._end)

    @property
    def row_length(self) -> int:
        return self.sequence_length + (self.family != "encoder_only")

    @property
    def shapes(self) -> Shapes:
        shapes = row_shapes(self.sequence_length) | target_shapes(self.sequence_length)
        types: Shapes = {"token_types": ((self.sequence_length,), INT)} if self.family == "encoder_only" else {}
        return shapes | types

    def write(self, row: Row, rng: np.random.Generator) -> Written:
        """Return one example; draws nothing. A row of n tokens gives n - 1 predictions, n after [CLS]."""
        segments = np.asarray(row["segment_ids"])[: self.row_length]
        if not self.document_mask:
            segments = np.ones_like(segments)
        text = np.arange(len(segments))
        if self.family == "encoder_only" and len(text):
            text = np.concatenate([insert([self.vocabulary.id("classify")]), text])
            segments = np.concatenate([segments[:1], segments])
        written = {
            "inputs": text[:-1],
            "targets": text[1:],
            "segment_ids": segments[:-1],
            "positions": positions(segments[:-1]),
            "weights": segments[1:] == segments[:-1],
        }
        return written | ({"token_types": np.zeros(len(text[:-1]))} if self.family == "encoder_only" else {})
