"""Tokenizers trained on a corpus: byte-level BPE, WordPiece and Unigram."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Set
from typing import Any, ClassVar

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.tokenizers.templates import bart_template, bert_template, t5_template
from jaxformer.tokenizers.tokenizer import SENTINEL, Tokenizer

# The special tokens of byte-level BPE that come first.
BYTE_BPE_SPECIAL = {
    "gpt": ("<|endoftext|>", "<|start|>", "<|delimiter|>", "<|extract|>"),
    "bart": ("<s>", "<pad>", "</s>", "<unk>"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteBPE:
    """Byte-level BPE (GPT-2, section 2.2). GPT's own vocabulary is of lower-case text; GPT-2's is not.

    `special` "gpt" has the special tokens of GPT's task inputs (GPT, section 3.3). "bart" has those of BART's released
    vocabulary by the same ids, `<mask>` being the last, and puts `<s> … </s>` around a text.
    """

    trained: ClassVar[bool] = True  # on the corpus of the run

    vocab_size: int = 8192
    lowercase: bool = False
    special: str = "gpt"

    def __post_init__(self) -> None:
        check_choice("tokenizer.special", self.special, BYTE_BPE_SPECIAL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordPiece:
    """BERT's WordPiece. `strip_accents` takes the marks off letters, as BERT's own uncased vocabularies have it.

    Where a text has more characters than the vocabulary has room for, the rarest become [UNK].
    """

    trained: ClassVar[bool] = True  # on the corpus of the run

    vocab_size: int = 8192
    lowercase: bool = True
    strip_accents: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unigram:
    """SentencePiece's unigram model (T5), with `num_sentinels` sentinels as the last ids, descending.

    As there, white space of any kind and length is one space. T5's own vocabulary has upper and lower case.
    """

    trained: ClassVar[bool] = True  # on the corpus of the run

    vocab_size: int = 8192
    num_sentinels: int = 100
    lowercase: bool = False

    def __post_init__(self) -> None:
        check_range("tokenizer.num_sentinels", self.num_sentinels, at_least=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """A `tokenizer.json`, another released file such as `vocab.txt` or `spiece.model`, or a folder that holds one."""

    trained: ClassVar[bool] = False

    path: str


TOKENIZERS: dict[str, type] = {
    "byte_bpe": ByteBPE,
    "wordpiece": WordPiece,
    "unigram": Unigram,
    "file": TokenizerFile,
}


def train_tokenizer(config: Any, texts: str | Iterable[str]) -> Tokenizer:
    """Train the tokenizer that `config` describes; equal texts give equal tokenizers.

    A small corpus may give fewer tokens than `vocab_size`. Raises UserError when the size leaves no room for the
    special tokens or the characters of the text, or there is no text.
    """
    kinds: dict[type, Any] = {ByteBPE: _byte_bpe, WordPiece: _wordpiece, Unigram: _unigram}
    counted = _Counted((texts,) if isinstance(texts, str) else texts)  # a text is one, not its characters
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
    special = list(BYTE_BPE_SPECIAL[config.special])
    # As in the released vocabulary, the mask takes the space before it: it stands for words with theirs.
    last = [hf.AddedToken("<mask>", lstrip=True, normalized=False, special=True)] if config.special == "bart" else []
    _room(config, 256 + len(special) + len(last))
    tokenizer = hf.Tokenizer(models.BPE())
    if config.lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(last),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(last)
    if config.special == "bart":
        tokenizer.post_processor = bart_template(tokenizer)
    return tokenizer


def _wordpiece(config: WordPiece, texts: Iterable[str]) -> hf.Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _room(config, len(special))
    corpus = list(texts)

    def fresh(vocabulary: dict[str, int] | None = None) -> hf.Tokenizer:
        tokenizer = hf.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=200))
        tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=config.lowercase, strip_accents=config.strip_accents
        )
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    def trained(first: list[str], size: int, alphabet: list[str] | None = None) -> dict[str, int]:
        limits: dict[str, Any] = {}
        if alphabet is not None:
            limits = {"initial_alphabet": alphabet, "limit_alphabet": len(alphabet)}
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=first, show_progress=False, **limits)
        tokenizer = fresh()
        tokenizer.train_from_iterator(corpus, trainer)
        return tokenizer.get_vocab()

    # The trainer numbers the continuing letters ("##e") in the order of a hash map, and ties follow their numbers. A
    # first round finds the letters; in the second they come sorted, so that equal texts give equal tokenizers.
    # They are tokens of more than "##": that of a lone # may be text.
    characters = trained(special, 1).keys() - set(special)
    letters = sorted(token for token in characters if len(token) > 1)
    alphabet = None
    if len(special) + len(characters) > config.vocab_size:
        alphabet = _alphabet(config, fresh().normalizer, corpus, characters, config.vocab_size - len(special))
        letters = [letter for letter in letters if letter[2:] in alphabet]
    vocabulary = trained([*special, *letters], config.vocab_size, alphabet)
    tokenizer = fresh(vocabulary)
    tokenizer.add_special_tokens([hf.AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.post_processor = bert_template(tokenizer)
    return tokenizer


# The share of a text's characters that a vocabulary must have: with less room most words would be [UNK].
_LEAST_COVERED = 0.9


def _alphabet(
    config: WordPiece, normalizer: normalizers.Normalizer, corpus: list[str], characters: Set[str], room: int
) -> list[str]:
    """Return the most frequent characters that fit into `room` tokens, with their forms that continue words.

    Raises UserError when they are too few of the text's."""
    counts: Counter[str] = Counter()
    for text in corpus:
        counts.update(normalizer.normalize_str(text))
    counts = Counter({character: count for character, count in counts.items() if character in characters})
    kept = []
    for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        room -= 1 + (f"##{character}" in characters)
        if room < 0:
            break
        kept.append(character)
    if sum(counts[character] for character in kept) < _LEAST_COVERED * counts.total():
        raise UserError(f"tokenizer.vocab_size: {config.vocab_size} is too small for the characters of this text")
    return kept


def _unigram(config: Unigram, texts: Iterable[str]) -> hf.Tokenizer:
    special = ["<pad>", "</s>", "<unk>"]
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
    tokenizer.post_processor = t5_template(tokenizer)
    return tokenizer
