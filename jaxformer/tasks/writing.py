"""How each family writes one text or two as a row (GPT, section 3.3; BERT, 3.2; BART, 3.1), as data: the special tokens
before, between and behind the texts.

Text that is too long is cut at its end, the longer text first; special tokens never are.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.objectives import FLOAT, INT, Shapes, padded, row_arrays
from jaxformer.tokenizers import Vocabulary


class Written(NamedTuple):
    """A row of n tokens: int32 [n], the number of the text that each belongs to (with the special tokens around it,
    int32 [n]), and the places where the texts begin."""

    tokens: np.ndarray
    token_types: np.ndarray
    starts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Format:
    """The roles of the special tokens around texts. `between` belongs to the text before it."""

    before: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def fixed(self, texts: int) -> int:
        """Return how many special tokens stand around so many texts."""
        return len(self.before) + (texts - 1) * len(self.between) + len(self.after)

    def check(self, vocabulary: Vocabulary, texts: int) -> None:
        """Raise UserError when the tokenizer lacks a token that is needed."""
        for role in ("pad", *self.before, *self.after, *(self.between if texts > 1 else ())):
            vocabulary.id(role)

    def write(self, texts: Sequence[np.ndarray], vocabulary: Vocabulary) -> Written:
        """Return one text or two, int32 [n] each, as a row."""
        before, between, after = (
            np.array([vocabulary.id(role) for role in roles], INT) for roles in (self.before, self.between, self.after)
        )
        pieces, types, starts = [before], [0] * len(before), []
        for number, text in enumerate(texts):
            starts.append(len(types))
            closing = between if number + 1 < len(texts) else after
            pieces += [np.asarray(text, INT), closing]
            types += [number] * (len(text) + len(closing))
        return Written(np.concatenate(pieces), np.array(types, INT), tuple(starts))


BARE = Format()
GPT = Format(("start",), ("delimiter",), ("extract",))
BERT = Format(("classify",), ("separator",), ("separator",))
BART = Format(("start",), ("end", "end"), ("end",))
T5 = Format((), ("end",), ("end",))  # whose vocabulary has no <s>


def format_of(family: str, vocabulary: Vocabulary) -> Format:
    """Return how a family writes texts that it classifies, with the tokens that its vocabulary has."""
    if family == "encoder_decoder":
        return BART if "start" in vocabulary.special else T5
    return {"decoder_only": GPT, "encoder_only": BERT}[family]


def tokens_format_of(family: str, vocabulary: Vocabulary) -> Format:
    """Return how a family writes texts whose tokens are read: as it does where a state is read, but that a decoder-only
    model, where its vocabulary has none of GPT's tokens, reads the texts alone, one behind the other."""
    bare = family == "decoder_only" and "extract" not in vocabulary.special
    return BARE if bare else format_of(family, vocabulary)


def cut(texts: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """Return texts cut at their ends to `room` tokens together, always the longest of them (BERT's code for two)."""
    lengths = [len(text) for text in texts]
    left, limit, longer = room, max(lengths), 0  # what exceeds `limit` is cut to it, the first `longer` to one more
    for done, length in enumerate(sorted(lengths)):
        share, rest = divmod(max(left, 0), len(lengths) - done)
        if length > share:
            limit, longer = share, rest
            break
        left -= length
    kept = []
    for text, length in zip(texts, lengths, strict=True):
        extra = length > limit and longer > 0
        longer -= extra
        kept.append(text[: limit + extra])
    return kept


def row_shapes(family: str, length: int) -> Shapes:
    """Return the shapes of the arrays of `rows_of`."""
    names = ("inputs", "segment_ids", "positions", *(("token_types",) if family == "encoder_only" else ()))
    sides = ("", "encoder_") if family == "encoder_decoder" else ("",)
    return {f"{side}{name}": ((length,), INT) for side in sides for name in names}


def rows_of(family: str, written: Written, length: int, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Return the arrays [length] of a row as a family reads it.

    An encoder-decoder reads it twice: the encoder as it is, and the decoder one place later, so that its state at a
    place has read the token of that place (BART, section 3.1).
    """
    pad = vocabulary.id("pad")
    if family == "encoder_decoder":
        shifted = np.append(vocabulary.decoder_start, written.tokens[:-1])
        return row_arrays(shifted, length, pad) | row_arrays(written.tokens, length, pad, "encoder_")
    arrays = row_arrays(written.tokens, length, pad)
    if family == "encoder_only":
        arrays["token_types"] = padded(np.minimum(written.token_types, 1), length)
    return arrays


def language_model(tokens: np.ndarray, length: int, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Return `targets` and `weights` [length] that predict every next token of a row; the weights of a row sum to 1
    (GPT's code: the loss is averaged over each sequence, then over sequences)."""
    predictions = max(len(tokens) - 1, 0)
    return {
        "targets": padded(tokens[1:], length, fill=vocabulary.id("pad")),
        "weights": padded(np.full(predictions, 1 / max(predictions, 1)), length, FLOAT),
    }
