"""Masked language modelling, with or without next-sentence prediction (BERT, section 3.1 and appendix A.2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.errors import UserError
from jaxformer.objectives.arrays import FLOAT, INT, Shapes, bound, check_at_least, check_share, padded
from jaxformer.tokenizers import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Predict masked tokens from both sides; with `next_sentence` also whether the second part follows the first.

    Rows are `[CLS] A [SEP] B [SEP]`, or, without `next_sentence`, windows `[CLS] … [SEP]` of the stream of documents
    with [SEP] after each. `masking_rate` of a row's tokens is predicted, special tokens counted but never chosen, at
    most `max_predictions`: `mask_share` of them become [MASK], `random_share` a token drawn uniformly from the
    vocabulary, the rest stay. Masks are drawn anew at every visit, whereas the paper's code stores `dupe_factor` masked
    copies; here that many passes of its algorithm pair the sentences, `short_sequence_probability` of them to a shorter
    length.
    `whole_word` chooses whole words, as BERT's later code does. Unlike there, [UNK] is never chosen.
    """

    name: ClassVar[str] = "masked_lm"
    families: ClassVar[tuple[str, ...]] = ("encoder_only",)
    predicts_tokens: ClassVar[bool] = True
    head_dropout: ClassVar[float] = 0.0
    label_smoothing: ClassVar[float] = 0.0
    z_loss: ClassVar[float] = 0.0

    sequence_length: int = 512
    masking_rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    max_predictions: int = 77
    next_sentence: bool = True
    short_sequence_probability: float = 0.1
    dupe_factor: int = 10
    whole_word: bool = False
    vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata={"config": False})

    def __post_init__(self) -> None:
        # Two tokens for the shortest pair of sentences, one for the shortest window.
        check_at_least(5 if self.next_sentence else 3, sequence_length=self.sequence_length)
        check_at_least(1, max_predictions=self.max_predictions, dupe_factor=self.dupe_factor)
        check_share(
            masking_rate=self.masking_rate,
            mask_share=self.mask_share,
            random_share=self.random_share,
            short_sequence_probability=self.short_sequence_probability,
        )
        if self.mask_share + self.random_share > 1 + 1e-9:
            total = self.mask_share + self.random_share
            raise UserError(f"objective.random_share: mask_share and random_share sum to {total:g}, more than 1")

    def bind(self, vocabulary: Vocabulary) -> Self:
        """Return a copy that knows the ids. Raises UserError when the tokenizer lacks one of BERT's special tokens."""
        for role in ("pad", "classify", "separator", "mask"):
            vocabulary.id(role)
        return dataclasses.replace(self, vocabulary=vocabulary)

    @property
    def rows(self) -> str:
        return "segment_pairs" if self.next_sentence else "windows"

    @property
    def separator(self) -> int | None:
        return None if self.next_sentence else bound(self.vocabulary).id("separator")

    @property
    def row_length(self) -> int:
        return self.sequence_length - (3 if self.next_sentence else 2)

    @property
    def row_settings(self) -> dict[str, Any]:
        settings = {"rows": self.rows, "row_length": self.row_length, "separator": self.separator}
        if self.next_sentence:
            settings |= {
                "short_sequence_probability": self.short_sequence_probability,
                "dupe_factor": self.dupe_factor,
            }
        return settings

    @property
    def heads(self) -> dict[str, int]:
        return {"next_sentence": 2} if self.next_sentence else {}

    @property
    def coefficients(self) -> dict[str, float]:
        return {"tokens": 1.0} | dict.fromkeys(self.heads, 1.0)

    @property
    def shapes(self) -> Shapes:
        row, predictions = (self.sequence_length,), (self.max_predictions,)
        shapes: Shapes = {name: (row, INT) for name in ("inputs", "segment_ids", "positions", "token_types")}
        shapes |= {"predict_positions": (predictions, INT), "targets": (predictions, INT)}
        shapes |= {"weights": (predictions, FLOAT)}
        if self.next_sentence:
            shapes |= {"next_sentence_targets": ((), INT), "next_sentence_weights": ((), FLOAT)}
        return shapes

    @property
    def num_input_tokens(self) -> int:
        return self.sequence_length

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return one example of `shapes`, with fresh masks. An empty row is all padding, its weights 0."""
        vocabulary = bound(self.vocabulary)
        classify, separator = [vocabulary.id("classify")], [vocabulary.id("separator")]
        raw = np.asarray(row["tokens"])[: self.row_length]
        boundary = min(int(row["boundary"]), len(raw)) if self.next_sentence else len(raw)
        second = np.concatenate([raw[boundary:], separator]) if self.next_sentence else raw[:0]
        tokens = np.concatenate([classify, raw[:boundary], separator, second]) if len(raw) else raw
        places = np.sort(self._choose(tokens, rng))
        inputs = tokens.copy()
        inputs[places] = self._corrupt(tokens[places], rng)
        length, predictions = self.sequence_length, self.max_predictions
        arrays = {
            "inputs": padded(inputs, length, fill=vocabulary.id("pad")),
            "segment_ids": padded(np.ones(len(tokens)), length),
            "positions": padded(np.arange(len(tokens)), length),
            "token_types": padded(np.arange(len(tokens)) >= boundary + 2, length),
            "predict_positions": padded(places, predictions),
            "targets": padded(tokens[places], predictions),
            "weights": padded(np.ones(len(places)), predictions, FLOAT),
        }
        if self.next_sentence:
            arrays |= {
                "next_sentence_targets": np.array(row["label"], INT),
                "next_sentence_weights": np.array(len(raw) > 0, FLOAT),
            }
        return arrays

    def _choose(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the positions [n] to predict, n <= max_predictions, in the order of their drawing."""
        vocabulary = bound(self.vocabulary)
        special = vocabulary.is_special[tokens]
        candidates = np.flatnonzero(~special)
        budget = min(self.max_predictions, max(1, round(self.masking_rate * len(tokens))))
        if not self.whole_word:
            return rng.permutation(candidates)[:budget]
        # A piece that continues a word belongs to the candidate before it, unless a special token stands between.
        starts = vocabulary.word_starts[tokens] | np.concatenate([[True], special[:-1]])[: len(tokens)]
        _, word = np.unique(np.cumsum(starts)[candidates], return_inverse=True)
        sizes = np.bincount(word)
        return candidates[np.isin(word, fitting(rng.permutation(len(sizes)), sizes, budget))]

    def _corrupt(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return what stands in the input instead of the chosen tokens [n], each drawn by itself."""
        vocabulary = bound(self.vocabulary)
        draw, random = rng.random(len(tokens)), rng.integers(vocabulary.size, size=len(tokens))
        replaced = np.where(draw < self.mask_share + self.random_share, random, tokens)
        return np.where(draw < self.mask_share, vocabulary.id("mask"), replaced)


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
