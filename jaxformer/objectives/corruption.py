"""T5's unsupervised objectives (section 3.3): a noise mask x how inputs are written x how targets are written.

Each objective of the paper is one choice of the three, and a name for it.
"""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.objectives.noise import (
    bernoulli_noise_mask,
    first_runs,
    noise_counts,
    random_spans_noise_mask,
    random_suffix_noise_mask,
    spans_to_sentinels,
)
from jaxformer.objectives.objective import Row, insert
from jaxformer.objectives.text_to_text import TextToText
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:
    from jaxformer.models import TransformerConfig

NOISES = ("spans", "iid", "suffix", "all")
INPUTS = ("sentinels", "mask", "mask_or_random", "drop", "permute")
TARGETS = ("sentinels", "noise", "text")
# Lengths of targets in T5's configurations for sources of 512 and an i.i.d. mask: (inputs, targets, density) -> tokens.
RELEASED_TARGET_LENGTHS = {
    ("sentinels", "sentinels", 0.10): 103,
    ("sentinels", "sentinels", 0.15): 192,
    ("sentinels", "sentinels", 0.25): 256,
    ("sentinels", "sentinels", 0.50): 512,
    ("drop", "noise", 0.15): 104,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corruption(TextToText):
    """What T5's objectives share. A row has as many raw tokens as fill `sequence_length`, which the source has.

    `noise` chooses the noise: "spans" of `mean_span_length` on average, `noise_density` of all tokens; "iid", each
    token by itself with that probability; "suffix", all from a place drawn uniformly; "all".

    `inputs` writes the source: each span as a sentinel ("sentinels"); each token as one mask ("mask"), `random_share`
    of them as a random token instead ("mask_or_random"); not at all ("drop"); or the whole text shuffled ("permute").
    The mask is the tokenizer's, or as in T5 the first sentinel.

    `targets` writes the target: the noise with a sentinel for what lies between ("sentinels"), the "noise" alone, or
    the whole "text". `max_target_length` 0 makes room for all that can come of spans; of an i.i.d. mask what T5's
    configurations have, else four standard deviations more than the mean. As in T5's code there is no sentinel after a
    last span, documents are joined without a separator, both sides end in EOS, and the loss carries `z_loss` x
    log(Z)^2. An i.i.d. mask makes no more spans than there are sentinels (T5's code goes on with ordinary tokens).
    """

    sequence_length: int = 512
    noise: str = "spans"
    inputs: str = "sentinels"
    targets: str = "sentinels"
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    random_share: float = 0.1
    max_target_length: int = 0
    z_loss: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("objective.sequence_length", self.sequence_length, at_least=3)  # one token, one sentinel, EOS
        check_range("objective.mean_span_length", self.mean_span_length, at_least=1)
        check_range("objective.max_target_length", self.max_target_length, at_least=0)
        check_range("objective.random_share", self.random_share, at_least=0, at_most=1)
        check_range("objective.noise_density", self.noise_density, above=0, at_most=0.9)
        for key, choices in {"noise": NOISES, "inputs": INPUTS, "targets": TARGETS}.items():
            check_choice(f"objective.{key}", getattr(self, key), choices)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise UserError when EOS, padding or enough sentinels are lacking."""
        spans = self._most_spans
        if len(vocabulary.sentinels) < spans:
            raise UserError(
                f"objective.sequence_length: {self.sequence_length} tokens need {spans} sentinels, but the tokenizer "
                f"has {len(vocabulary.sentinels)}; choose one with more, a lower objective.noise_density or a shorter "
                "objective.sequence_length"
            )
        if self.inputs.startswith("mask") and not len(vocabulary.sentinels):
            vocabulary.id("mask")
        super().check_vocabulary(vocabulary)

    @property
    def row_length(self) -> int:
        return _row_length(self.noise, self.inputs, self.noise_density, self.mean_span_length, self.sequence_length)

    @property
    def source_length(self) -> int:
        return 1 if (self.noise, self.inputs) == ("all", "drop") else self.sequence_length

    @property
    def target_length(self) -> int:
        return self.max_target_length or self._room_for_targets()

    def _room_for_targets(self) -> int:
        length = self.row_length
        if self.targets == "text" or self.noise in ("suffix", "all"):
            return length + 1
        noise, spans = noise_counts(length, self.noise_density, self.mean_span_length)
        if self.noise == "iid":
            if self.sequence_length == 512:
                released = RELEASED_TARGET_LENGTHS.get((self.inputs, self.targets, self.noise_density))
                if released:
                    return released
            noise, spans = (math.ceil(mean + 4 * deviation) for mean, deviation in self._counts())
        return min(noise + spans * (self.targets == "sentinels"), length) + 1

    def _counts(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return mean and standard deviation of the numbers of tokens and of runs of i.i.d. noise."""
        length, density = self.row_length, self.noise_density
        one = density * (1 - density)
        # A run ends where noise is followed by none; neighbours' ends exclude each other, hence the smaller variance.
        runs = length * one + density, math.sqrt(length * one * (1 - 3 * one))
        return (length * density, math.sqrt(length * one)), runs

    @property
    def _most_spans(self) -> int:
        """Sentinels that are needed, to be sure or nearly so."""
        if "sentinels" not in (self.inputs, self.targets):
            return 0
        if self.noise == "iid":
            mean, deviation = self._counts()[1]
            return min(math.ceil(mean + 4 * deviation), self.row_length // 2 + 1)
        if self.noise != "spans":
            return 1
        return noise_counts(self.row_length, self.noise_density, self.mean_span_length)[1]

    def sides(self, row: Row, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return source and target as references, each with EOS."""
        text = np.arange(min(len(row["tokens"]), self.row_length))
        noise = self._noise(len(text), rng)
        end = insert([self.vocabulary.id("end")] if self.delimited else [])
        source = np.concatenate([self._inputs(text, noise, rng), end])
        return source, np.concatenate([self._targets(text, noise), end])

    def _noise(self, length: int, rng: np.random.Generator) -> np.ndarray:
        if self.noise == "spans":
            return random_spans_noise_mask(length, self.noise_density, self.mean_span_length, rng)
        if self.noise == "suffix":
            return random_suffix_noise_mask(length, rng)
        if self.noise == "all":
            return np.ones(length, bool)
        mask = bernoulli_noise_mask(length, self.noise_density, rng)
        if "sentinels" in (self.inputs, self.targets):
            # Of kept runs there may be one more than of noise.
            mask = first_runs(mask, len(self.vocabulary.sentinels) - 1)
        return mask

    def _inputs(self, text: np.ndarray, noise: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.inputs == "sentinels":
            return spans_to_sentinels(text, noise, insert(self.vocabulary.sentinels))
        if self.inputs == "drop":
            return text[~noise]
        if self.inputs == "permute":
            return rng.permutation(text)
        mask = self.vocabulary.special["mask"] if "mask" in self.vocabulary.special else self.vocabulary.sentinels[0]
        written = np.where(noise, insert(mask), text)
        if self.inputs == "mask_or_random":
            random = noise & (rng.random(len(text)) < self.random_share)
            # From 3 on, as in T5's code: past padding, EOS and the unknown token.
            written = np.where(random, insert(rng.integers(3, self.vocabulary.size, size=len(text))), written)
        return written

    def _targets(self, text: np.ndarray, noise: np.ndarray) -> np.ndarray:
        if self.targets == "sentinels":
            return spans_to_sentinels(text, ~noise, insert(self.vocabulary.sentinels))
        return text[noise] if self.targets == "noise" else text


@functools.cache
def _row_length(noise: str, inputs: str, density: float, mean_span_length: float, source_length: int) -> int:
    """Return how many raw tokens fill a source of `source_length` with EOS."""
    if noise != "spans" or inputs not in ("sentinels", "drop"):
        return source_length - 1

    def written(length: int) -> int:
        tokens, spans = noise_counts(length, density, mean_span_length)
        return length - tokens + spans * (inputs == "sentinels") + 1

    # No side shrinks when a raw token is added, so shorter rows fit too.
    length = 2
    while written(length + 1) <= source_length:
        length += 1
    return length


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanCorruption(Corruption):
    """Replace random spans by sentinels and write them: `S0 span0 S1 span1 … </s>`. T5's own objective."""

    name: ClassVar[str] = "span_corruption"
    paper: ClassVar[str] = "T5 3.3.4"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplaceSpans(Corruption):
    """As span corruption, but each token is noise by itself; neighbours share a sentinel."""

    name: ClassVar[str] = "replace_spans"
    paper: ClassVar[str] = "T5 3.3.2"
    noise: str = "iid"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertStyle(Corruption):
    """Mask tokens, a tenth of them by random ones, and write the whole text."""

    name: ClassVar[str] = "bert_style"
    paper: ClassVar[str] = "T5 3.3.1"
    noise: str = "iid"
    inputs: str = "mask_or_random"
    targets: str = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MassStyle(Corruption):
    """Mask tokens and write the whole text."""

    name: ClassVar[str] = "mass_style"
    paper: ClassVar[str] = "T5 3.3.2"
    noise: str = "iid"
    inputs: str = "mask"
    targets: str = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropTokens(Corruption):
    """Leave tokens out, and write them."""

    name: ClassVar[str] = "drop_tokens"
    paper: ClassVar[str] = "T5 3.3.2"
    noise: str = "iid"
    inputs: str = "drop"
    targets: str = "noise"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deshuffling(Corruption):
    """Read all tokens in random order and write the text."""

    name: ClassVar[str] = "deshuffling"
    paper: ClassVar[str] = "T5 3.3.1"
    noise: str = "all"
    inputs: str = "permute"
    targets: str = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainLM(Corruption):
    """Write the whole text; the encoder reads nothing but EOS."""

    name: ClassVar[str] = "plain_lm"
    paper: ClassVar[str] = "T5 3.2.3"
    families: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    refusals: ClassVar[dict[str, str]] = Corruption.refusals | {"decoder_only": "it has no encoder; that is causal_lm"}
    noise: str = "all"
    inputs: str = "drop"
    targets: str = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(Corruption):
    """Read the text up to a place drawn uniformly, and write the rest.

    A decoder-only model with visibility "prefix" reads a window of `sequence_length` tokens, cut from the stream of
    documents as for causal_lm, with no token where the prefix ends.
    """

    name: ClassVar[str] = "prefix_lm"
    paper: ClassVar[str] = "T5 3.2.3"
    families: ClassVar[tuple[str, ...]] = ("decoder_only", "encoder_decoder")
    noise: str = "suffix"
    inputs: str = "drop"
    targets: str = "noise"

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return a copy for a model. Raises UserError when a single stack does not see the prefix."""
        if model.family == "decoder_only" and model.visibility == "causal":
            raise UserError("objective.name: prefix_lm needs a model that sees the prefix; set model.visibility=prefix")
        return super().for_model(model)

    @property
    def delimited(self) -> bool:  # type: ignore[override]
        return self.family != "decoder_only"

    @property
    def separator(self) -> int | None:
        return None if self.delimited else self.vocabulary.special.get("end")

    @property
    def row_length(self) -> int:
        return self.sequence_length - 1 if self.delimited else self.sequence_length + 1

    @property
    def _row(self) -> int:
        return self.sequence_length
