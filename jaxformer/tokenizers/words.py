"""Many texts as tokens, quickly: cut before spaces where no tokenizer of the kinds below looks across, so that each
piece, a word with what stands around it, goes through the library once, however often it comes back.

The tokens and their offsets are exactly those of whole texts, or the tokenizer is not `cuttable`.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers as hf

# Characters that make a place safe to cut at: no normaliser below makes spaces or nothing of them, or joins them with a
# character across a space. Printable ASCII, letters of Latin, Greek, Cyrillic, Hebrew, Arabic and Devanagari, quotes
# and dashes of print, kana, Han and Hangul.
_PLAIN = (
    "!-~\u00c0-\u02af\u0388-\u03ff\u0400-\u0481\u048a-\u052f\u05d0-\u05ea\u0621-\u063f\u0641-\u064a\u0904-\u0939"
    "\u2013\u2014\u2018-\u201f\u2026\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"
)
_CUT = re.compile(rf"(?<=[{_PLAIN}])[ \n](?=[{_PLAIN}])")
_PIECE = re.compile(rf"(?s:.)\S*(?:(?!(?<=[{_PLAIN}])[ \n][{_PLAIN}])\s\S*)*")  # as far as the first cut
_OTHER = re.compile(rf"[^{_PLAIN} \n]")
_TWO_SPACES = ("  ", " \n", "\n ", "\n\n")
_BEFORE = "a"  # what pieces that do not begin a text stand behind when they are read

# Not SentencePiece's map of a released T5: behind some marks the library's offsets are those of the character before.
_NORMALIZERS = {"", "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Strip"}
_PART_AT_SPACE = {"BertPreTokenizer", "ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit"}

_SLICE = 1 << 20  # characters that are cut at a time: pieces take many times their room
_JOINED = 500  # pieces that the library gets as one text
_KEPT = 1 << 20  # tokens of remembered pieces; with more, all are forgotten


class Encoded(NamedTuple):
    """Texts as tokens, one behind the other."""

    ids: np.ndarray  # int32 [tokens]
    offsets: np.ndarray  # int32 [tokens, 2]: where in its text the characters of each token begin and end
    counts: np.ndarray  # int64 [texts]: how many tokens each text has

    @classmethod
    def joined(cls, found: Sequence[tuple[np.ndarray, np.ndarray]], counts: np.ndarray) -> "Encoded":
        """Return these ids and offsets, one behind the other."""
        none = np.zeros(0, np.int32)
        ids, offsets = zip((none, none.reshape(0, 2)), *found, strict=True)
        return cls(np.concatenate(ids), np.concatenate(offsets), counts)


def encoder(backend: hf.Tokenizer) -> Callable[[Sequence[str]], Encoded]:
    """Return what encodes many texts, without special tokens: by their pieces where that gives the same. It remembers
    these, so use one for texts that belong together, and drop it."""
    return Words(backend).encode if cuttable(backend) else functools.partial(_whole, backend)


def _whole(backend: hf.Tokenizer, texts: Sequence[str]) -> Encoded:
    encodings = backend.encode_batch(list(texts), add_special_tokens=False)
    found = [(np.array(one.ids, np.int32), np.array(one.offsets, np.int32).reshape(-1, 2)) for one in encodings]
    return Encoded.joined(found, np.array([len(ids) for ids, _ in found], np.int64))


def cuttable(backend: hf.Tokenizer) -> bool:
    """Say whether a tokenizer makes of every text what it makes of its pieces, as far as its settings tell."""
    parts = _state(backend.pre_tokenizer)
    first = parts["pretokenizers"][0] if parts["type"] == "Sequence" else parts
    return bool(
        all(map(_is_local, _steps(_state(backend.normalizer))))
        and first["type"] in _PART_AT_SPACE
        and first.get("use_regex", True)  # of ByteLevel
        and first.get("split", True)  # of Metaspace
        and not getattr(backend.model, "dropout", None)
        # Others are found in texts, and may have spaces in them, or take those around them.
        and backend.encode_special_tokens
        and all(token.special for token in backend.get_added_tokens_decoder().values())
    )


def _state(part: Any) -> Any:
    return {"type": ""} if part is None else json.loads(part.__getstate__())


def _steps(normalizer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if normalizer["type"] != "Sequence":
        yield normalizer
        return
    for step in normalizer["normalizers"]:
        yield from _steps(step)


def _is_local(normalizer: Mapping[str, Any]) -> bool:
    if normalizer["type"] == "Replace":  # what reaches over a space may reach over a cut
        return bool(normalizer["pattern"].get("Regex") == r"\s+" and normalizer["content"] == " ")
    return normalizer["type"] in _NORMALIZERS


# A tuple begins its text; before any other piece stands a space, unless it begins with the end of a line.
Piece = str | tuple[str]
Span = tuple[int, int, int]  # the number of a text, where in it a part begins and where it ends


class _Numbers(dict[Piece, int]):
    """The number of each piece; one that was not seen gets the next."""

    def __init__(self) -> None:
        self.new: list[Piece] = []

    def __missing__(self, piece: Piece) -> int:
        self.new.append(piece)
        number = self[piece] = len(self)
        return number


class Words:
    """Encodes texts with a tokenizer that is `cuttable`, and remembers their pieces."""

    def __init__(self, backend: hf.Tokenizer) -> None:
        self._backend = backend
        self._forget()

    def _forget(self) -> None:
        self._numbers = _Numbers()
        self._ids, self._offsets = np.zeros(0, np.int32), np.zeros((0, 2), np.int32)  # of the tokens of all pieces
        # Of each piece: its first token among these, how many it has, and its characters with the space before it.
        self._first, self._counts, self._lengths = (np.zeros(0, np.int64) for _ in range(3))

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Return what the library makes of texts."""
        counts = np.zeros(len(texts), np.int64)
        found = []
        for spans in _blocks(texts):
            ids, offsets, num_tokens = self._encode(texts, spans)
            found.append((ids, offsets))
            np.add.at(counts, [number for number, _, _ in spans], num_tokens)
        return Encoded.joined(found, counts)

    def _encode(self, texts: Sequence[str], spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the ids of parts of texts, their offsets, and how many each part has."""
        if len(self._ids) > _KEPT:
            self._forget()
        pieces: list[Piece] = []
        num_pieces = []
        for number, start, end in spans:
            found = _pieces(texts[number][start:end], start == 0)
            num_pieces.append(len(found))
            pieces += found
        numbers = np.fromiter(map(self._numbers.__getitem__, pieces), np.int64, len(pieces))
        self._learn()
        num_tokens = self._counts[numbers]
        tokens = np.repeat(self._first[numbers] - _before(num_tokens), num_tokens) + np.arange(num_tokens.sum())
        first, before = _before(num_pieces), _before(self._lengths[numbers])
        begins = before + np.repeat([start for _, start, _ in spans] - before[first], num_pieces)  # in the texts
        offsets = self._offsets[tokens] + np.repeat(begins.astype(np.int32), num_tokens)[:, None]
        return self._ids[tokens], offsets, np.add.reduceat(num_tokens, first)

    def _learn(self) -> None:
        """Let the library encode the pieces that are new: behind one another, as it reads a long text faster than many
        short ones, but for those that begin a text."""
        new, self._numbers.new = self._numbers.new, []
        if not new:
            return
        texts, bounds, places, lengths = _joined(new)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        counts = []
        for encoding in self._backend.encode_batch(texts, add_special_tokens=False):
            ids += encoding.ids
            offsets += encoding.offsets
            counts.append(len(encoding))
        sizes = np.array([*map(len, texts)])
        shift, end = (np.repeat(each, counts) for each in (_before(sizes), np.cumsum(sizes)))
        spread = np.array(offsets, np.int64).reshape(-1, 2) + shift[:, None]
        # A token of spaces at the end of a text may begin at its end, where offsets leave spaces out.
        piece = np.searchsorted(bounds, np.minimum(spread[:, 0], end - 1), side="right") - 1
        num_tokens = np.bincount(piece, minlength=len(bounds))
        first = len(self._ids) + _before(num_tokens)
        self._ids = np.concatenate([self._ids, np.array(ids, np.int32)])
        self._offsets = np.concatenate([self._offsets, (spread - bounds[piece][:, None]).astype(np.int32)])
        self._first = np.concatenate([self._first, first[places]])
        self._counts = np.concatenate([self._counts, num_tokens[places]])
        self._lengths = np.concatenate([self._lengths, lengths])


def _before(sizes: Any) -> np.ndarray:
    """Return the sum of all sizes that stand before each one."""
    before: np.ndarray = np.cumsum(sizes) - sizes
    return before


def _blocks(texts: Sequence[str]) -> Iterator[list[Span]]:
    """Yield parts of texts, in order and together all of them, about `_SLICE` characters at a time: a longer text is
    cut."""
    block: list[Span] = []
    room = _SLICE
    for number, text in enumerate(texts):
        start = 0
        while start < len(text):
            cut = _CUT.search(text, start + room) if start + room < len(text) else None
            end = cut.start() if cut else len(text)
            block.append((number, start, end))
            start, room = end, room - (end - start)
            if room <= 0:
                yield block
                block, room = [], _SLICE
    if block:
        yield block


def _pieces(text: str, begins: bool) -> list[Piece]:
    """Return the pieces of a text (`begins`), or of a part of one, which begins with the space that it was cut at."""
    spaces = " \n"
    if (
        _OTHER.search(text)
        or any(two in text for two in _TWO_SPACES)
        or (begins and text[0] in spaces)
        or text[-1] in spaces
    ):
        first, *rest = _PIECE.findall(text) if begins else ["", *_PIECE.findall(text)]
        rest = [piece[1:] if piece[0] == " " else piece for piece in rest]
    else:  # every space is a cut
        first, *rest = text.replace("\n", " \n").split(" ")
    return [(first,), *rest] if begins else [*rest]


def _joined(pieces: Sequence[Piece]) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Return texts made of pieces; where in them, one behind the other, pieces and what stands before these begin; the
    place of each piece among those; and how many characters each has."""
    whole = [piece[0] if isinstance(piece, tuple) else piece if piece[0] == "\n" else " " + piece for piece in pieces]
    inner = [number for number, piece in enumerate(pieces) if isinstance(piece, str)]
    places = np.zeros(len(pieces), np.int64)
    texts: list[str] = []
    sizes: list[int] = []
    joined: list[str] = []
    for number in inner:
        joined = joined or [_BEFORE]
        places[number] = len(sizes) + len(joined)
        joined.append(whole[number])
        last = whole[number][-1]
        if len(joined) > _JOINED or number == inner[-1] or last in " \n" or _OTHER.match(last):  # no cut may follow
            texts.append("".join(joined))
            sizes += map(len, joined)
            joined = []
    outer = [number for number, piece in enumerate(pieces) if isinstance(piece, tuple)]
    places[outer] = len(sizes) + np.arange(len(outer))
    texts += (whole[number] for number in outer)
    sizes += (len(whole[number]) for number in outer)
    return texts, _before(np.array(sizes, np.int64)), places, np.array([*map(len, whole)], np.int64)
