"""Masked language modelling, with or without next-sentence prediction (BERT, section 3.1 and released code)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.errors import UserError
from jaxformer.objectives.shapes import Shapes, filled
from jaxformer.tokenizers import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Predict tokens that were masked; with `next_sentence` also whether segment B follows segment A.

    With it a row is `[CLS] A [SEP] B [SEP]`, the pairs made by the paper's algorithm (`dupe_factor` passes over the
    corpus, a share `short_sequence_probability` of short targets); without, `[CLS] … [SEP]` around a window of the
    stream, documents divided by [SEP]. Masks are drawn anew at each visit. Of the chosen tokens a share `mask_share`
    becomes [MASK], `random_share` a token drawn uniformly from the whole vocabulary, the rest stays. [CLS] and [SEP] are
    never chosen. `whole_word` chooses words, whose pieces are then drawn one by one; a word that would exceed the number
    of predictions is passed over.
    """

    sequence_length: int = 512
    masking_rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    max_predictions: int = 77
    whole_word: bool = False
    next_sentence: bool = True
    short_sequence_probability: float = 0.1
    dupe_factor: int = 10
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata={"config": False})

    families: ClassVar[tuple[str, ...]] = ("encoder_only",)
    head_dropout: ClassVar[float] = 0.0
    predicts_tokens: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.sequence_length < 5:
            raise UserError(f"objective.sequence_length: {self.sequence_length} must be at least 5")
        for key in ("masking_rate", "mask_share", "random_share", "short_sequence_probability"):
            if not 0.0 <= getattr(self, key) <= 1.0:
                raise UserError(f"objective.{key}: {getattr(self, key)} must lie between 0 and 1")
        if self.mask_share + self.random_share > 1.0:
            raise UserError("objective.mask_share and random_share: together they exceed 1")
        for key in ("max_predictions", "dupe_factor"):
            if getattr(self, key) < 1:
                raise UserError(f"objective.{key}: {getattr(self, key)} must be at least 1")

    def bind(self, vocabulary: Vocabulary) -> Self:
        for role in ("classify", "separator", "mask"):
            vocabulary.id(role)
        return dataclasses.replace(self, vocabulary=vocabulary)

    @property
    def heads(self) -> dict[str, int]:
        return {"next_sentence": 2} if self.next_sentence else {}

    @property
    def coefficients(self) -> dict[str, float]:
        return {"tokens": 1.0} | dict.fromkeys(self.heads, 1.0)

    @property
    def rows(self) -> str:
        return "segment_pairs" if self.next_sentence else "windows"

    @property
    def separator(self) -> int | None:
        return self.vocabulary.id("separator") if self.vocabulary and not self.next_sentence else None

    @property
    def row_length(self) -> int:
        return self.sequence_length - (3 if self.next_sentence else 2)

    @property
    def row_settings(self) -> dict[str, Any]:
        settings = {"rows": self.rows, "row_length": self.row_length, "separator": self.separator}
        if self.next_sentence:
            settings["short_sequence_probability"] = self.short_sequence_probability
            settings["dupe_factor"] = self.dupe_factor
        return settings

    @property
    def shapes(self) -> Shapes:
        row, predictions = (self.sequence_length,), (self.max_predictions,)
        integer, real = np.dtype(np.int32), np.dtype(np.float32)
        shapes = dict.fromkeys(("inputs", "segment_ids", "positions", "token_types"), (row, integer))
        shapes |= {"predict_positions": (predictions, integer), "targets": (predictions, integer)}
        shapes["weights"] = (predictions, real)
        if self.next_sentence:
            shapes |= {"next_sentence_targets": ((), integer), "next_sentence_weights": ((), real)}
        return shapes

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        assert self.vocabulary is not None
        classify, separator = ([self.vocabulary.id(role)] for role in ("classify", "separator"))
        tokens = row["tokens"]
        values: dict[str, Any] = {}
        if self.next_sentence:
            boundary = row["boundary"]
            parts = [classify, tokens[:boundary], separator, tokens[boundary:], separator]
            token_types = np.repeat([0, 1], [boundary + 2, len(tokens) - boundary + 1])
            values = {"next_sentence_targets": row["label"], "next_sentence_weights": 1.0}
        else:
            parts = [classify, tokens, separator]
            token_types = np.zeros(len(tokens) + 2, np.int32)
        original = np.concatenate(parts).astype(np.int32)
        chosen = self._choose(original, rng)
        inputs = original.copy()
        inputs[chosen] = self._corrupt(original[chosen], rng)
        return filled(
            self.shapes,
            inputs=inputs,
            segment_ids=np.ones_like(original),
            positions=np.arange(len(original)),
            token_types=token_types,
            predict_positions=chosen,
            targets=original[chosen],
            weights=np.ones(len(chosen)),
            **values,
        )

    def _choose(self, original: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the sorted positions to predict: round(rate x length), specials counted in the length as in the code."""
        assert self.vocabulary is not None
        candidates = np.flatnonzero(~self.vocabulary.is_special[original])
        wanted = min(self.max_predictions, max(1, round(len(original) * self.masking_rate)), len(candidates))
        if not self.whole_word:
            return np.sort(rng.choice(candidates, wanted, replace=False))
        # A word is a first piece and the pieces that continue it; [CLS] and [SEP] begin words of their own.
        words = np.cumsum(self.vocabulary.word_starts[original])[candidates]
        chosen: list[np.ndarray] = []
        count = 0
        for word in rng.permutation(np.unique(words)):
            pieces = candidates[words == word]
            if count + len(pieces) <= wanted:
                chosen.append(pieces)
                count += len(pieces)
            if count == wanted:
                break
        return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)

    def _corrupt(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        assert self.vocabulary is not None
        draws = rng.random(len(tokens))
        random = rng.integers(0, self.vocabulary.size, len(tokens))
        masked = draws < self.mask_share
        randomised = ~masked & (draws < self.mask_share + self.random_share)
        return np.where(masked, self.vocabulary.id("mask"), np.where(randomised, random, tokens))
