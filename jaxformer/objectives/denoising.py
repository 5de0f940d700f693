"""BART's denoising: the encoder reads corrupted text, the decoder writes the whole text (BART, section 2.2)."""

import dataclasses
import math
from typing import ClassVar

import numpy as np

from jaxformer.checks import check_choice, check_range
from jaxformer.objectives.arrays import check_word_starts
from jaxformer.objectives.noise import infilling_spans, inserted, permuted_sentences, rotated
from jaxformer.objectives.objective import Row, insert
from jaxformer.objectives.text_to_text import TextToText
from jaxformer.tokenizers import Vocabulary

REPLACES = ("span", "token", "nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising(TextToText):
    """Rebuild a text from which noise has been made, in this order, as fairseq does.

    `permute_share` of the sentences change places. Of the words (`whole_words`) or tokens, `masking_rate` are masked in
    spans whose lengths are drawn from a Poisson distribution of `mean_span_length`, trimmed to that many in all (0:
    each by itself). [MASK] stands for a whole "span", for each "token", or for "nothing" (deletion); `random_share` of
    the masks are tokens drawn uniformly. A span of length 0 is a mask put in between. `insert_rate` further masks are
    put in, and with `rotate_probability` the text begins at a token drawn uniformly. What stands around the text
    (`<s>`, where the vocabulary has one, and `</s>`) never moves.

    The paper's single noises are classes of their own below. Sentences are those of the data's splitter, where fairseq
    looks for full stops. Where insertions make the text longer than `sequence_length`, its end is cut off.
    """

    name: ClassVar[str] = "denoising"
    paper: ClassVar[str] = "BART 2.2, its final recipe"
    needs: ClassVar[tuple[str, ...]] = ("pad", "end", "mask")

    sequence_length: int = 512
    masking_rate: float = 0.3
    mean_span_length: float = 3.0
    whole_words: bool = True
    replace: str = "span"
    random_share: float = 0.0
    permute_share: float = 1.0
    insert_rate: float = 0.0
    rotate_probability: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("objective.sequence_length", self.sequence_length, at_least=3)
        for key in ("masking_rate", "random_share", "permute_share", "insert_rate", "rotate_probability"):
            check_range(f"objective.{key}", getattr(self, key), at_least=0, at_most=1)
        if self.mean_span_length != 0:  # of shorter ones next to all are empty
            check_range("objective.mean_span_length", self.mean_span_length, at_least=0.1)
        check_choice("objective.replace", self.replace, REPLACES)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise UserError when the tokenizer lacks a token that is needed, or words of which whole ones are to be
        masked."""
        if self.whole_words and self.masking_rate > 0:
            check_word_starts(vocabulary, "whole_words")
        super().check_vocabulary(vocabulary)

    @property
    def row_length(self) -> int:
        return self.sequence_length - 2

    @property
    def source_length(self) -> int:
        return self.sequence_length

    @property
    def target_length(self) -> int:
        return self.sequence_length

    def sides(self, row: Row, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return source and target as references, with `<s>`, where there is one, and `</s>` around both."""
        end, start = insert([self.vocabulary.id("end")]), insert([])
        if "start" in self.vocabulary.special:
            start = insert([self.vocabulary.id("start")])
        text = np.arange(min(len(row["tokens"]), self.row_length))
        tokens = np.asarray(row["tokens"])
        noisy = self._corrupt(text, tokens, np.asarray(row["sentence_starts"])[: len(text)], rng)
        noisy = noisy[: self.sequence_length - len(start) - 1]
        return np.concatenate([start, noisy, end]), np.concatenate([start, text, end])

    def _corrupt(
        self, text: np.ndarray, tokens: np.ndarray, sentence_starts: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        if self.permute_share > 0:
            text = permuted_sentences(text, sentence_starts, self.permute_share, rng)
        if self.masking_rate > 0:
            begins = self.vocabulary.word_starts[tokens[text]] if self.whole_words else np.ones(len(text), bool)
            text = self._mask(text, begins, rng)
        if self.insert_rate > 0:
            text = inserted(text, self._masks(math.ceil(self.insert_rate * len(text)), rng), rng)
        return rotated(text, rng) if self.rotate_probability and rng.random() < self.rotate_probability else text

    def _mask(self, text: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        firsts, ends, num_inserted = infilling_spans(starts, self.masking_rate, self.mean_span_length, rng)
        masks = self._masks(len(firsts), rng)
        if self.replace == "token":
            # Each token of a span is what the span's own mask is, drawn anew where that is a random token.
            owner = np.repeat(np.arange(len(firsts)), ends - firsts)
            places = np.arange(len(owner)) - np.repeat(np.cumsum(ends - firsts) - (ends - firsts), ends - firsts)
            mask = insert(self.vocabulary.id("mask"))
            random = (masks != mask)[owner]
            drawn = insert(rng.integers(self.vocabulary.size, size=len(owner)))
            text = text.copy()
            text[firsts[owner] + places] = np.where(random, drawn, mask)
        else:
            # The first token of a span bears its mask, unless another span runs over it.
            begins = np.bincount(firsts + (self.replace == "span"), minlength=len(text) + 1)
            dropped = begins - np.bincount(ends, minlength=len(text) + 1)
            written = text.copy()
            written[firsts] = masks
            text = written[np.cumsum(dropped)[: len(text)] == 0]
        return inserted(text, self._masks(num_inserted, rng), rng)

    def _masks(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` masks, `random_share` of them tokens drawn uniformly."""
        random = rng.random(count) < self.random_share
        return insert(np.where(random, rng.integers(self.vocabulary.size, size=count), self.vocabulary.id("mask")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMasking(Denoising):
    """Mask tokens, each by itself, and write the text."""

    name: ClassVar[str] = "token_masking"
    paper: ClassVar[str] = "BART 2.2"
    masking_rate: float = 0.15  # not published for this noise: BERT's
    mean_span_length: float = 0.0
    whole_words: bool = False
    replace: str = "token"
    permute_share: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenDeletion(TokenMasking):
    """Leave tokens out, without a mark, and write the text."""

    name: ClassVar[str] = "token_deletion"
    replace: str = "nothing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextInfilling(Denoising):
    """Put one mask for each span of words, and for some that are empty, and write the text."""

    name: ClassVar[str] = "text_infilling"
    paper: ClassVar[str] = "BART 2.2"
    permute_share: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePermutation(Denoising):
    """Shuffle the sentences, and write the text."""

    name: ClassVar[str] = "sentence_permutation"
    paper: ClassVar[str] = "BART 2.2"
    masking_rate: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentRotation(Denoising):
    """Begin the text at a token drawn uniformly, and write it as it was."""

    name: ClassVar[str] = "document_rotation"
    paper: ClassVar[str] = "BART 2.2"
    masking_rate: float = 0.0
    permute_share: float = 0.0
    rotate_probability: float = 1.0
