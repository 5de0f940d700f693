"""Tokenizers: byte-level BPE, WordPiece and Unigram trained on a corpus, or any saved `tokenizer.json`.

Encoding adds no special token: objectives and tasks place them, by role. `Vocabulary` is what those need of a
tokenizer, as plain numpy.
"""

import dataclasses
import functools
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from jaxformer.errors import UserError, disk_errors

# What special tokens are for, by the spellings of the released vocabularies and of ours.
ROLES: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "classify": ("[CLS]",),
    "separator": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
    "end": ("</s>", "<|endoftext|>"),
    "start": ("<|start|>", "<s>"),
    "delimiter": ("<|delimiter|>",),
    "extract": ("<|extract|>",),
}
SENTINEL = "<extra_id_{}>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteBPE:
    """Byte-level BPE (GPT-2, section 2.2), with the special tokens of GPT's task inputs (GPT, section 3.3).

    GPT's own vocabulary is of lower-case text; GPT-2's is not.
    """

    vocab_size: int = 8192
    lowercase: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordPiece:
    """BERT's WordPiece; `lowercase` also strips accents."""

    vocab_size: int = 8192
    lowercase: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unigram:
    """SentencePiece's unigram model (T5), with `num_sentinels` sentinels as the last ids, descending.

    As there, white space of any kind and length is one space. T5's own vocabulary has upper and lower case.
    """

    vocab_size: int = 8192
    num_sentinels: int = 100
    lowercase: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """A saved `tokenizer.json`."""

    path: str


TOKENIZERS: dict[str, type] = {
    "byte_bpe": ByteBPE,
    "wordpiece": WordPiece,
    "unigram": Unigram,
    "file": TokenizerFile,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer's ids as plain numpy: small, picklable, all that objectives and tasks see of it."""

    size: int
    special: Mapping[str, int]  # role -> id
    sentinels: np.ndarray  # int32: the ids of <extra_id_0>, <extra_id_1>, …
    is_special: np.ndarray  # bool [size]
    word_starts: np.ndarray  # bool [size]: the token begins a word

    def id(self, role: str) -> int:
        """Return the id of a role's token. Raises UserError when the tokenizer has none."""
        if role not in self.special:
            spellings = " or ".join(ROLES[role])
            raise UserError(f"the tokenizer has no '{role}' token ({spellings}), needed here; choose another")
        return self.special[role]


class Tokenizer:
    """A trained tokenizer: text to int32 ids and back."""

    def __init__(self, backend: hf.Tokenizer) -> None:
        backend.no_truncation()  # saved tokenizers may cut or pad what they encode; here the data does that
        backend.no_padding()
        self.backend = backend
        self.vocab_size = 1 + max(backend.get_vocab().values(), default=-1)  # a saved one may leave ids out

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that name exactly this tokenizer."""
        canonical = json.dumps(json.loads(self.backend.to_str()), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        ids = self.backend.get_vocab()
        special = {
            role: ids[spelling] for role, spellings in ROLES.items() for spelling in spellings[::-1] if spelling in ids
        }
        if "pad" not in special and "end" in special:
            special["pad"] = special["end"]  # GPT-2 has no padding token; what stands in padding is never seen
        sentinels: list[int] = []
        while SENTINEL.format(len(sentinels)) in ids:
            sentinels.append(ids[SENTINEL.format(len(sentinels))])
        is_special = np.zeros(self.vocab_size, bool)
        is_special[[number for number, token in self.backend.get_added_tokens_decoder().items() if token.special]] = (
            True
        )
        word_starts = is_special.copy()
        wordpiece = isinstance(self.backend.model, models.WordPiece)
        for token, number in ids.items():
            word_starts[number] |= not token.startswith("##") if wordpiece else token.startswith(("Ġ", "▁"))
        return Vocabulary(self.vocab_size, special, np.array(sentinels, np.int32), is_special, word_starts)

    def encode(self, text: str) -> np.ndarray:
        """Return the int32 ids of a text, without any special token."""
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """Return the text of ids."""
        return self.backend.decode([int(number) for number in ids], skip_special_tokens=skip_special)

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return each id's spelling in the vocabulary."""
        return [self.backend.id_to_token(int(number)) for number in ids]

    def save(self, path: Path | str) -> None:
        """Write a `tokenizer.json`, whole or not at all."""
        path = Path(path)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # several processes may save it at once
            temporary.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
            temporary.replace(path)


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read a `tokenizer.json`. Raises UserError when it is missing or damaged."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"no tokenizer file {path}; give a tokenizer.json") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no tokenizer.json: it is not text ({error.reason})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return Tokenizer(hf.Tokenizer.from_str(text))
    except Exception as error:  # the library raises a bare Exception for whatever it cannot parse
        raise UserError(f"{path} is damaged or no tokenizer.json: {str(error).splitlines()[0]}") from error


def train_tokenizer(config: Any, texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer that `config` describes; equal texts give equal tokenizers.

    A small corpus may give fewer tokens than `vocab_size`. Raises UserError when the size leaves no room for the
    special tokens or the characters of the text, or there is no text.
    """
    kinds: dict[type, Any] = {ByteBPE: _byte_bpe, WordPiece: _wordpiece, Unigram: _unigram}
    counted = _Counted(texts)
    backend = kinds[type(config)](config, counted)
    if counted.characters == 0:
        raise UserError("tokenizer: there is no text to train on; check the data section")
    # As it will be read back: saving rounds the scores of a unigram model.
    return Tokenizer(hf.Tokenizer.from_str(backend.to_str()))


class _Counted:
    """Texts, with a count of what was read: an empty corpus would give a tokenizer of nothing."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts, self.characters = texts, 0

    def __iter__(self) -> Any:
        for text in self.texts:
            self.characters += len(text)
            yield text


def _room(config: Any, needed: int) -> None:
    if config.vocab_size <= needed:
        raise UserError(f"tokenizer.vocab_size: {config.vocab_size} must exceed the {needed} special and base tokens")


def _byte_bpe(config: ByteBPE, texts: Iterable[str]) -> hf.Tokenizer:
    special = ["<|endoftext|>", "<|start|>", "<|delimiter|>", "<|extract|>"]
    _room(config, 256 + len(special))
    tokenizer = hf.Tokenizer(models.BPE())
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wordpiece(config: WordPiece, texts: Iterable[str]) -> hf.Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _room(config, len(special))
    corpus = list(texts)

    def fresh(vocabulary: dict[str, int] | None = None) -> hf.Tokenizer:
        tokenizer = hf.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=config.lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    def trained(first: list[str], size: int) -> dict[str, int]:
        # Rare characters become [UNK] instead of filling a small vocabulary.
        trainer = trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=first, limit_alphabet=1000, show_progress=False
        )
        tokenizer = fresh()
        tokenizer.train_from_iterator(corpus, trainer)
        return tokenizer.get_vocab()

    # The trainer numbers the continuing letters ("##e") in the order of a hash map, and ties follow their numbers. A
    # first round finds the letters; in the second they come sorted, so that equal texts give equal tokenizers.
    letters = sorted(token for token in trained(special, 1) if token.startswith("##"))
    vocabulary = trained([*special, *letters], config.vocab_size)
    if len(vocabulary) > config.vocab_size:
        raise UserError(f"tokenizer.vocab_size: {config.vocab_size} is too small for the characters of this text")
    tokenizer = fresh(vocabulary)
    tokenizer.add_special_tokens([hf.AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _unigram(config: Unigram, texts: Iterable[str]) -> hf.Tokenizer:
    special = ["<pad>", "</s>", "<unk>"]
    if config.num_sentinels < 0:
        raise UserError(f"tokenizer.num_sentinels: {config.num_sentinels} must be 0 or more")
    _room(config, len(special) + config.num_sentinels)
    tokenizer = hf.Tokenizer(models.Unigram())
    steps = [normalizers.NFKC(), normalizers.Replace(hf.Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([*steps, *([normalizers.Lowercase()] if config.lowercase else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size - config.num_sentinels,
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
    )
    try:
        tokenizer.train_from_iterator(texts, trainer)
    except Exception as error:  # the library raises a bare Exception
        if "not large enough" not in str(error):
            raise
        raise UserError(
            f"tokenizer.vocab_size: {config.vocab_size} is too small for the characters of this text"
        ) from error
    # The library sums in the order of a hash map, and in that order gives rare characters scores just above the lowest,
    # 0.0001 apart: rounded, levelled and sorted, equal texts give equal scores and ids.
    state = json.loads(tokenizer.to_str())
    pieces = state["model"]["vocab"]
    found = pieces[len(special) :]
    lowest = min((score for token, score in found if len(token) > 1), default=0.0)
    scores = {token: score if len(token) > 1 or score > lowest + 0.1 else lowest - 1 for token, score in found}
    found = sorted(
        ((token, round(score, 6)) for token, score in scores.items()), key=lambda piece: (-piece[1], piece[0])
    )
    state["model"]["vocab"] = [*pieces[: len(special)], *found]
    tokenizer = hf.Tokenizer.from_str(json.dumps(state))
    # The largest number first, so that <extra_id_0> is the last id, as in T5.
    names = [SENTINEL.format(number) for number in reversed(range(config.num_sentinels))]
    tokenizer.add_special_tokens([hf.AddedToken(name, normalized=False, special=True) for name in names])
    return tokenizer
