"""BART's denoising: the encoder reads corrupted text, the decoder writes the whole text (BART, section 2.2)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.errors import UserError, suggest
from jaxformer.objectives.arrays import FLOAT, INT, Shapes, bound, check_at_least, check_share, padded, row_arrays
from jaxformer.objectives.noise import (
    infilling_spans,
    inserted,
    permuted_sentences,
    rotated,
    shifted_right,
)
from jaxformer.tokenizers import Vocabulary

REPLACES = ("span", "token", "nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoising:
    """Rebuild a text from which noise has been made, in this order, as fairseq does.

    `permute_share` of the sentences change places. Of the words (`whole_words`) or tokens, `mask_rate` are masked in
    spans whose lengths are drawn from a Poisson distribution of `mean_span_length`, trimmed to that many in all (0:
    each by itself). [MASK] stands for a whole "span", for each "token", or for "nothing" (deletion); `random_share` of
    the masks are tokens drawn uniformly. A span of length 0 is a mask put in between. `insert_rate` further masks are
    put in, and with `rotate_probability` the text begins at a token drawn uniformly. What stands around the text
    (`<s>`, where the vocabulary has one, and `</s>`) never moves.

    The paper's noises: text infilling (the default, without the sentences), token masking (`mask_rate` 0.15,
    `mean_span_length` 0, `whole_words` False, `replace` "token"), token deletion (the same with "nothing"), sentence
    permutation and document rotation (`mask_rate` 0). Sentences are those of the data's splitter, where fairseq looks
    for full stops. Where insertions make the text longer than `sequence_length`, its end is cut off.
    """

    name: ClassVar[str] = "denoising"
    families: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    rows: ClassVar[str] = "windows"
    separator: ClassVar[int | None] = None
    heads: ClassVar[dict[str, int]] = {}
    predicts_tokens: ClassVar[bool] = True
    head_dropout: ClassVar[float] = 0.0
    coefficients: ClassVar[dict[str, float]] = {"tokens": 1.0}

    sequence_length: int = 512
    mask_rate: float = 0.3
    mean_span_length: float = 3.0
    whole_words: bool = True
    replace: str = "span"
    random_share: float = 0.0
    permute_share: float = 1.0
    insert_rate: float = 0.0
    rotate_probability: float = 0.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata={"config": False})

    def __post_init__(self) -> None:
        check_at_least(3, sequence_length=self.sequence_length)
        check_share(
            mask_rate=self.mask_rate,
            random_share=self.random_share,
            permute_share=self.permute_share,
            insert_rate=self.insert_rate,
            rotate_probability=self.rotate_probability,
            label_smoothing=self.label_smoothing,
        )
        check_at_least(0, z_loss=self.z_loss, mean_span_length=self.mean_span_length)
        if self.replace not in REPLACES:
            hint = suggest(self.replace, REPLACES)
            raise UserError(f"objective.replace: '{self.replace}' is not one of {', '.join(REPLACES)}{hint}")

    def bind(self, vocabulary: Vocabulary) -> Self:
        """Return a copy that knows the ids. Raises UserError when padding, the end or the mask is lacking."""
        for role in ("pad", "end", "mask"):
            vocabulary.id(role)
        return dataclasses.replace(self, vocabulary=vocabulary)

    @property
    def row_length(self) -> int:
        return self.sequence_length - 2

    @property
    def row_settings(self) -> dict[str, Any]:
        return {"rows": self.rows, "row_length": self.row_length, "separator": self.separator}

    @property
    def shapes(self) -> Shapes:
        row = (self.sequence_length,)
        names = ("inputs", "segment_ids", "positions")
        shapes: Shapes = {f"{side}{name}": (row, INT) for side in ("", "encoder_") for name in names}
        return shapes | {"targets": (row, INT), "weights": (row, FLOAT)}

    @property
    def num_input_tokens(self) -> int:
        return 2 * self.sequence_length

    def __call__(self, row: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return one example of `shapes`, with fresh noise. An empty row is all padding, its weights 0."""
        vocabulary, length = bound(self.vocabulary), self.sequence_length
        pad, end = vocabulary.id("pad"), [vocabulary.id("end")]
        start = [vocabulary.special["start"]] if "start" in vocabulary.special else []
        text = np.asarray(row["tokens"])[: self.row_length]
        source = target = text
        if len(text):
            noisy = self._corrupt(text, np.asarray(row["sentence_starts"])[: self.row_length], rng)
            source = np.concatenate([start, noisy[: length - len(start) - 1], end])
            target = np.concatenate([start, text, end])
        arrays = {
            "targets": padded(target, length, fill=pad),
            "weights": padded(np.ones(len(target)), length, FLOAT),
        }
        read = shifted_right(target, vocabulary.decoder_start)
        return arrays | row_arrays(source, length, pad, "encoder_") | row_arrays(read, length, pad)

    def _corrupt(self, text: np.ndarray, sentence_starts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        tokens = permuted_sentences(text, sentence_starts, self.permute_share, rng)
        tokens = self._mask(tokens, rng)
        tokens = inserted(tokens, self._masks(math.ceil(self.insert_rate * len(tokens)), rng), rng)
        return rotated(tokens, rng) if rng.random() < self.rotate_probability else tokens

    def _mask(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        vocabulary = bound(self.vocabulary)
        starts = vocabulary.word_starts[tokens] if self.whole_words else np.ones(len(tokens), bool)
        firsts, ends, num_inserted = infilling_spans(starts, self.mask_rate, self.mean_span_length, rng)
        masks = self._masks(len(firsts), rng)
        if self.replace == "token":
            # Each token of a span is what the span's own mask is, drawn anew where that is a random token.
            owner = np.repeat(np.arange(len(firsts)), ends - firsts)
            places = np.arange(len(owner)) - np.repeat(np.cumsum(ends - firsts) - (ends - firsts), ends - firsts)
            random = (masks != vocabulary.id("mask"))[owner]
            tokens = tokens.copy()
            drawn = rng.integers(vocabulary.size, size=len(owner))
            tokens[firsts[owner] + places] = np.where(random, drawn, vocabulary.id("mask"))
        else:
            dropped = np.zeros(len(tokens) + 1, np.int64)
            # The first token of a span bears its mask, unless another span runs over it.
            np.add.at(dropped, firsts + (self.replace == "span"), 1)
            np.add.at(dropped, ends, -1)
            written = tokens.copy()
            written[firsts] = masks
            tokens = written[np.cumsum(dropped)[: len(tokens)] == 0]
        return inserted(tokens, self._masks(num_inserted, rng), rng)

    def _masks(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return `count` masks, `random_share` of them tokens drawn uniformly."""
        vocabulary = bound(self.vocabulary)
        random = rng.random(count) < self.random_share
        return np.where(random, rng.integers(vocabulary.size, size=count), vocabulary.id("mask"))
