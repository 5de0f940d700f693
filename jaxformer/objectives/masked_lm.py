"""Masked language modelling, with or without next-sentence prediction (BERT, section 3.1 and appendix A.2)."""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.objectives.arrays import FLOAT, INT, Shapes, check_word_starts
from jaxformer.objectives.objective import Objective, Row, Written, insert, one_segment, row_shapes, target_shapes
from jaxformer.objectives.supervision import Head
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:
    from jaxformer.models import TransformerConfig

MASKS = ("dynamic", "static")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(Objective):
    """Predict masked tokens from both sides; with `next_sentence` also whether the second part follows the first.

    Rows are `[CLS] A [SEP] B [SEP]`, or, without `next_sentence`, windows `[CLS] … [SEP]` of the stream of documents
    with [SEP] after each. `masking_rate` of a row's tokens is predicted, special tokens counted but never chosen, at
    most `max_predictions`: `mask_share` of them become [MASK], `random_share` a token drawn uniformly from the
    vocabulary, the rest stay. `whole_word` chooses whole words, as BERT's later code does. Unlike there, [UNK] is never
    chosen. With `frequency_smoothing` s a token is chosen with a probability that goes with count^-s of how often the
    corpus has it (DistilBERT's code: 0.7), so that rare tokens are learnt too.

    `masks` "dynamic" draws them anew at every visit, "static" once for each of `dupe_factor` copies of the corpus, as
    the released code does. With `next_sentence` that many passes of its algorithm pair the sentences either way,
    `short_sequence_probability` of them to a shorter length.
    """

    name: ClassVar[str] = "masked_lm"
    paper: ClassVar[str] = "BERT 3.1, A.2; DistilBERT"
    families: ClassVar[tuple[str, ...]] = ("encoder_only",)
    refusals: ClassVar[dict[str, str]] = {
        "decoder_only": "it predicts a token from both its sides, of which the model sees one",
        "encoder_decoder": "a decoder writes text; bert_style and token_masking let it write what was masked",
    }
    needs: ClassVar[tuple[str, ...]] = ("pad", "classify", "separator", "mask")
    packed: ClassVar[bool] = False

    sequence_length: int = 512
    masking_rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    max_predictions: int = 77
    next_sentence: bool = True
    short_sequence_probability: float = 0.1
    masks: str = "dynamic"
    dupe_factor: int = 10
    whole_word: bool = False
    frequency_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        # Two tokens for the shortest pair of sentences, one for the shortest window.
        check_range("objective.sequence_length", self.sequence_length, at_least=5 if self.next_sentence else 3)
        for key in ("max_predictions", "dupe_factor"):
            check_range(f"objective.{key}", getattr(self, key), at_least=1)
        check_range("objective.frequency_smoothing", self.frequency_smoothing, at_least=0)
        for key in ("masking_rate", "mask_share", "random_share", "short_sequence_probability"):
            check_range(f"objective.{key}", getattr(self, key), at_least=0, at_most=1)
        check_choice("objective.masks", self.masks, MASKS)
        if self.mask_share + self.random_share > 1 + 1e-9:
            total = self.mask_share + self.random_share
            raise UserError(f"objective.random_share: mask_share and random_share sum to {total:g}, more than 1")
        if self.whole_word and self.frequency_smoothing:
            raise UserError("objective.frequency_smoothing: whole words have no frequency of their own; set it to 0")

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return a copy for a model. Raises UserError for a visibility that masks do not have, and where pairs of
        segments have no two token types."""
        carried = super().for_model(model)
        if model.visibility == "prefix":
            raise UserError("objective.name: masked_lm has no prefix; set model.visibility to full or causal")
        if model.visibility == "causal" and self.next_sentence:
            raise UserError(
                "objective.next_sentence: it is read at [CLS], which sees nothing under model.visibility=causal; "
                "set it to false"
            )
        if self.next_sentence and model.token_types < 2:
            raise UserError("objective.next_sentence: segment pairs need model.token_types of 2")
        return carried

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise UserError when the tokenizer lacks one of BERT's special tokens, or words of which whole ones are to be
        chosen."""
        if self.whole_word:
            check_word_starts(vocabulary, "whole_word")
        super().check_vocabulary(vocabulary)

    @property
    def rows(self) -> str:  # type: ignore[override]
        return "segment_pairs" if self.next_sentence else "windows"

    @property
    def separator(self) -> int | None:
        return None if self.next_sentence else self.vocabulary.id("separator")

    @property
    def row_length(self) -> int:
        return self.sequence_length - (3 if self.next_sentence else 2)

    @property
    def row_settings(self) -> dict[str, Any]:
        settings = super().row_settings
        if self.next_sentence:
            settings["short_sequence_probability"] = self.short_sequence_probability
        if self.next_sentence or self.masks == "static":
            settings["dupe_factor"] = self.dupe_factor
        if self.frequency_smoothing:
            settings["frequency_smoothing"] = self.frequency_smoothing
        return settings

    @property
    def heads(self) -> dict[str, Head]:  # type: ignore[override]
        return {"next_sentence": Head(2)} if self.next_sentence else {}

    @property
    def shapes(self) -> Shapes:
        shapes = row_shapes(self.sequence_length) | target_shapes(self.max_predictions)
        shapes |= {"token_types": ((self.sequence_length,), INT), "predict_positions": ((self.max_predictions,), INT)}
        if self.next_sentence:
            shapes |= {"next_sentence_targets": ((), INT), "next_sentence_weights": ((), FLOAT)}
        return shapes

    def write(self, row: Row, rng: np.random.Generator) -> Written:
        """Return one example with fresh masks, or with those of the row where they are static."""
        if self.masks == "static":
            rng = np.random.default_rng([row["seed"], row["number"]])
        vocabulary, count = self.vocabulary, min(len(row["tokens"]), self.row_length)
        boundary = min(int(row["boundary"]), count) if self.next_sentence else count
        clean = np.arange(count)
        if count:
            frame = insert([vocabulary.id("classify"), vocabulary.id("separator")])
            second = [clean[boundary:], frame[1:]] if self.next_sentence else []
            # A window may end where its document does, and has a separator there.
            ended = int(not self.next_sentence and row["tokens"][count - 1] == vocabulary.id("separator"))
            clean = np.concatenate([frame[:1], clean[:boundary], frame[1 + ended :], *second])
        places = np.sort(self._choose(clean, row, rng))
        inputs = clean.copy()
        inputs[places] = self._corrupt(clean[places], rng)
        return one_segment(inputs) | {
            "token_types": np.arange(len(clean)) >= boundary + 2,
            "predict_positions": places,
            "targets": clean[places],
            "weights": np.ones(len(places)),
            "next_sentence_targets": row.get("label", 0),
            "next_sentence_weights": count > 0,
        }

    def _choose(self, clean: np.ndarray, row: Row, rng: np.random.Generator) -> np.ndarray:
        """Return the places [n] to predict, n <= max_predictions, in the order of their drawing."""
        # Of the row's own tokens: what the objective puts around them is never chosen.
        special = np.ones(len(clean), bool)
        own = np.flatnonzero(clean >= 0)
        tokens = np.asarray(row["tokens"])[: self.row_length]
        special[own] = self.vocabulary.is_special[tokens]
        candidates = np.flatnonzero(~special)
        budget = min(self.max_predictions, max(1, round(self.masking_rate * len(clean))))
        if self.frequency_smoothing:
            # The largest of log(p) + Gumbel noise are a draw without replacement.
            keys = np.log(np.asarray(row["rarity"])[clean[candidates]]) + rng.gumbel(size=len(candidates))
            return candidates[np.argsort(-keys)[:budget]]
        if not self.whole_word:
            return rng.permutation(candidates)[:budget]
        # A piece that continues a word belongs to the candidate before it, unless a special token stands between.
        begins = np.ones(len(clean), bool)
        begins[own] = self.vocabulary.word_starts[tokens]
        begins |= np.concatenate([[True], special[:-1]])[: len(clean)]
        _, word = np.unique(np.cumsum(begins)[candidates], return_inverse=True)
        sizes = np.bincount(word)
        return candidates[np.isin(word, fitting(rng.permutation(len(sizes)), sizes, budget))]

    def _corrupt(self, references: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return what stands in the input instead of the chosen tokens [n], each drawn by itself."""
        draw = rng.random(len(references))
        random = insert(rng.integers(self.vocabulary.size, size=len(references)))
        replaced = np.where(draw < self.mask_share + self.random_share, random, references)
        return np.where(draw < self.mask_share, insert(self.vocabulary.id("mask")), replaced)


def fitting(order: np.ndarray, sizes: np.ndarray, budget: int) -> np.ndarray:
    """Return the items taken when they come in `order`, each if its size still fits into what is left of `budget`.

    A round takes all up to the first that does not fit and drops those that never will, so there are few rounds.
    """
    taken = []
    while len(order):
        fits = np.cumsum(sizes[order]) <= budget
        taken.append(order[fits])
        budget -= int(sizes[order[fits]].sum())
        order = order[~fits]
        order = order[sizes[order] <= budget]
    return np.concatenate(taken) if taken else order
