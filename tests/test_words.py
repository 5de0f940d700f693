"""Texts encoded by their pieces: the tokens and offsets of whole texts, whatever stands in them, or no pieces."""

import random
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
from tokenizers import models, normalizers, pre_tokenizers

from jaxformer.tokenizers import ByteBPE, Tokenizer, Unigram, WordPiece, train_tokenizer, words

# What tokenizers treat in ways of their own: marks, controls, wide and strange spaces, spelled special tokens.
PARTS = [
    *(
        "a",
        "The",
        "x,y.",
        "don't",
        "'s",
        "é",
        "e\u0301",
        "\u0301",
        "日本",
        "▁",
        "▁b",
        "\u200b",
        "ͺ",
        "¨",
        "…",
        "“Q”",
        "ﬁ",
        "İ",
    ),
    *(
        "ß",
        "Σ",
        "\x01",
        "\x1c",
        "[MASK]",
        "</s>",
        "<|endoftext|>",
        "<extra_id_0>",
        "\uffff",
        "😀",
        "👩‍👧",
        "ऄि",
        "\u0e33",
    ),
    *("a\u0600", "\u200d", "12", "3.14", "http://x.y", "¼", "\ufeff", "\u1e9b\u0323", "가", "ᄀ", "ᅡ", "##", "Ġ"),
]
SPACES = [*" " * 4, *"\n\n\t\x85\u00a0\u3000\u2028", "  ", " \n", "\n\n", "\r\n", "", ""]
RANDOM = random.Random(0)
TEXTS = ["".join(RANDOM.choice(PARTS) + RANDOM.choice(SPACES) for _ in range(RANDOM.randrange(30))) for _ in range(200)]
PROSE = [
    'The fox jumps over a dog.\nIt sleeps on, and "why not?" says the fox.',
    "The fox",
    "",
    " The dog",
    "jumps ",
] * 9
KINDS: dict[str, Any] = {
    "byte_bpe": ByteBPE(vocab_size=400),
    "bart": ByteBPE(vocab_size=400, lowercase=True, special="bart"),
    "wordpiece": WordPiece(vocab_size=300),
    "wordpiece without accents": WordPiece(vocab_size=300, strip_accents=True),
    "unigram": Unigram(vocab_size=300, num_sentinels=4),
    "unigram of lower case": Unigram(vocab_size=300, num_sentinels=4, lowercase=True),
}


def assert_same(tokenizer: Tokenizer, texts: list[str]) -> None:
    found, expected = tokenizer.encoder()(texts), tokenizer.encode_batch(texts)
    assert found.counts.tolist() == [len(one) for one in expected]
    ends = found.counts.cumsum()
    for one, start, end, text in zip(expected, ends - found.counts, ends, texts, strict=True):
        assert found.ids[start:end].tolist() == one.ids, repr(text)
        assert list(map(tuple, found.offsets[start:end])) == one.offsets, repr(text)


@pytest.mark.parametrize("name", KINDS)
def test_pieces_give_the_tokens_of_whole_texts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(KINDS[name], [*TEXTS, *PROSE])
    assert words.cuttable(tokenizer._reader(""))
    for key, value in {"_SLICE": 100, "_JOINED": 5, "_KEPT": 2000}.items():  # cut, joined and forgotten within the test
        monkeypatch.setattr(words, key, value)
    assert_same(tokenizer, [*TEXTS, *PROSE, "".join(TEXTS)])


def test_a_piece_goes_through_the_library_once() -> None:
    read: list[str] = []

    class Watched:
        def encode_batch(self, texts: list[str], **settings: Any) -> list[hf.Encoding]:
            read.extend(texts)
            return backend.encode_batch(texts, **settings)

    backend = train_tokenizer(KINDS["byte_bpe"], PROSE).backend
    encode = words.Words(Watched()).encode  # type: ignore[arg-type]
    first = encode(PROSE)
    assert sum(text.count("fox") for text in read) == 2  # "fox" and "fox."
    assert np.array_equal(encode(PROSE).ids, first.ids) and len(read) == len(set(read))


def over_spaces(**parts: Any) -> hf.Tokenizer:
    """A tokenizer with parts in the place of those of a plain one."""
    pieces = {chr(number): number - 32 for number in range(32, 127)}
    backend = hf.Tokenizer(parts.pop("model", models.BPE(pieces, [])))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


@pytest.mark.parametrize(
    "parts",
    [
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.Metaspace(split=False)},
        {"pre_tokenizer": pre_tokenizers.Punctuation()},
        {"pre_tokenizer": None},
        {"normalizer": normalizers.Replace("o d", "x")},
        {"normalizer": normalizers.Replace(hf.Regex(r"\s+"), "")},
        {"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("_")])},
        {"model": models.BPE({"a": 0}, [], dropout=0.1)},
    ],
)
def test_what_looks_over_spaces_is_not_cut(parts: dict[str, Any]) -> None:
    backend = over_spaces(**parts)
    backend.encode_special_tokens = True
    assert not words.cuttable(backend)


def test_a_token_with_a_space_in_it_is_found() -> None:
    backend = over_spaces()
    backend.encode_special_tokens = True
    assert words.cuttable(backend)
    backend.add_tokens(["fox jumps"])
    tokenizer = Tokenizer(backend)
    assert not words.cuttable(tokenizer._reader(""))
    assert_same(tokenizer, ["The fox jumps over", "", "a dog"])
