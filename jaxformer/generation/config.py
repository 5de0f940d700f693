"""`GenerationConfig`: how a model writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError

LENGTH_PENALTIES = ("gnmt", "power")


def with_open_length(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's section with the default of today: the 64 tokens of runs of before did not bind their tasks."""
    found = dict(section)
    if found.keys() == {"max_new_tokens", "temperature", "seed"} and found["max_new_tokens"] == 64:
        del found["max_new_tokens"]
    return found


def option(default: Any, text: str) -> Any:
    """A field of the config with what is said of it, which is the help of its flag, too."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How answers are written. `num_beams` above 1 searches; otherwise `temperature` 0 takes the likeliest token
    (greedy), and above 0 it draws."""

    max_new_tokens: int = option(0, "most tokens of an answer; 0: as many as a task's targets may have, else 64")
    min_new_tokens: int = option(0, "before so many the end token is not written")
    extra_length: int = option(-1, "at most so many tokens more than were read (Transformer: 50); -1: no such limit")
    temperature: float = option(
        0.0, "0: the likeliest token (greedy); above 0 tokens are drawn, by logits divided by it"
    )
    top_k: int = option(0, "draw among the k likeliest tokens; 0: among all")
    top_p: float = option(1.0, "draw among the likeliest tokens whose probabilities reach p together")
    min_p: float = option(0.0, "draw among tokens at least this share of the likeliest one's probability")
    repetition_penalty: float = option(1.0, "above 1, tokens that stand there already become less likely")
    no_repeat_ngram: int = option(0, "no sequence of n tokens is written twice; 0: any may be")
    num_beams: int = option(1, "above 1: beam search, for the likeliest answer as a whole")
    length_penalty: str = option(
        "gnmt", "of beams: gnmt, log P / ((5 + length) / 6)^alpha, or power, log P / length^alpha"
    )
    length_alpha: float = option(0.0, "the alpha of the length penalty")
    early_stopping: bool = option(False, "end with as many whole answers as beams, though a better one may come")
    num_answers: int = option(1, "answers to each prompt: so many are drawn, or the best of the beams")
    stop: tuple[str, ...] = option((), "a text that ends an answer, and is no part of it")
    choices: tuple[str, ...] = option((), "a text that the answer may be; it is one of them")
    seed: int = option(0, "of what is drawn")

    def __post_init__(self) -> None:
        for key in ("max_new_tokens", "min_new_tokens", "temperature", "top_k", "no_repeat_ngram"):
            check_range(f"generation.{key}", getattr(self, key), at_least=0)
        check_range("generation.extra_length", self.extra_length, at_least=-1)
        check_range("generation.top_p", self.top_p, above=0, at_most=1)
        check_range("generation.min_p", self.min_p, at_least=0, at_most=1)
        check_range("generation.repetition_penalty", self.repetition_penalty, above=0)
        for key in ("num_beams", "num_answers"):
            check_range(f"generation.{key}", getattr(self, key), at_least=1)
        check_choice("generation.length_penalty", self.length_penalty, LENGTH_PENALTIES)
        check_range("generation.seed", self.seed, at_least=0, at_most=2**32 - 1)
        if 0 < self.max_new_tokens < self.min_new_tokens:
            raise UserError(
                f"generation.min_new_tokens: {self.min_new_tokens} is more than generation.max_new_tokens, "
                f"{self.max_new_tokens}"
            )
        for key in ("stop", "choices"):
            if "" in getattr(self, key):
                raise UserError(f"generation.{key}: one of its texts is empty; leave it out")
        self._check_answers()

    def check_family(self, family: str) -> None:
        """Raise UserError where a model of this family would be asked to search with beams, and does not write."""
        if self.num_beams > 1 and family == "encoder_only":
            raise UserError(
                "generation.num_beams: beams write text, and an encoder_only model does not write; it fills masks "
                "(`jaxformer fill`)"
            )

    def _check_answers(self) -> None:
        if self.num_beams > 1:
            if self.temperature > 0:
                raise UserError(
                    f"generation.temperature: {self.temperature} draws, and {self.num_beams} beams search; set one of "
                    "temperature=0 and num_beams=1"
                )
            if self.num_answers > self.num_beams:
                raise UserError(
                    f"generation.num_answers: {self.num_answers} are more than the {self.num_beams} beams; raise "
                    "generation.num_beams"
                )
        elif self.num_answers > 1 and self.temperature == 0:
            raise UserError(
                f"generation.num_answers: without drawing there is one answer, not {self.num_answers}; set "
                "generation.temperature above 0, or generation.num_beams"
            )
        for key, neutral in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
            if self.temperature == 0 and getattr(self, key) != neutral:
                raise UserError(
                    f"generation.{key}: it limits what is drawn, and nothing is drawn; set generation.temperature=1"
                )
