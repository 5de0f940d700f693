"""A tokenizer over the Rust library, and what objectives and tasks see of one: its vocabulary as plain numpy."""

import dataclasses
import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers as hf
from tokenizers import models

from jaxformer.errors import UserError, disk_errors
from jaxformer.tokenizers.words import Encoded, encoder

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
# Before the spelling of a special token where texts are read: no piece of a text begins with a space and this
# character, which Unicode will never assign, so no model finds the token in one.
_UNREADABLE = " \uffff"


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer's ids as plain numpy: small, picklable, all that objectives and tasks see of it."""

    size: int
    special: Mapping[str, int]  # role -> id
    sentinels: np.ndarray  # int32: the ids of <extra_id_0>, <extra_id_1>, …
    is_special: np.ndarray  # bool [size]
    word_starts: np.ndarray  # bool [size]: the token begins a word wherever it stands; none of GPT's does for certain

    def id(self, role: str) -> int:
        """Return the id of a role's token. Raises UserError when the tokenizer has none."""
        if role not in self.special:
            spellings = " or ".join(ROLES[role])
            raise UserError(f"the tokenizer has no '{role}' token ({spellings}), needed here; choose another")
        return self.special[role]

    @property
    def decoder_start(self) -> int:
        """The id that a decoder reads first: padding, unless `starting` said otherwise."""
        return self.special.get("decoder_start", self.id("pad"))

    def starting(self, role: str) -> "Vocabulary":
        """Return a copy whose decoder starts from the token of this role (`model.decoder_start`)."""
        return dataclasses.replace(self, special={**self.special, "decoder_start": self.id(role)})


class Tokenizer:
    """A tokenizer: text to int32 ids and back. Text is text: special tokens that are spelled out in it are not those
    tokens unless asked, in which it differs from the reference."""

    def __init__(self, backend: hf.Tokenizer) -> None:
        backend.no_truncation()  # saved tokenizers may cut or pad what they encode; here the data does that
        backend.no_padding()
        self.backend = backend
        self.vocab_size = 1 + max(backend.get_vocab().values(), default=-1)  # a saved one may leave ids out

    @functools.cached_property
    def writable(self) -> np.ndarray:
        """Bool [vocab_size]: the ids that a model may write. Padding is none of them, nor are ids without a token."""
        writable = np.zeros(self.vocab_size, bool)
        ids = self.backend.get_vocab()
        writable[list(ids.values())] = True
        writable[[ids[spelling] for spelling in ROLES["pad"] if spelling in ids]] = False
        return writable

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[hf.Tokenizer]]:
        return Tokenizer, (self.backend,)  # copies make readers of their own: the library's lose their settings

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
        # GPT-2 has no padding token and GPT no end token either; what stands in padding is never seen.
        special.setdefault("pad", special.get("end", 0))
        sentinels: list[int] = []
        while SENTINEL.format(len(sentinels)) in ids:
            sentinels.append(ids[SENTINEL.format(len(sentinels))])
        is_special = np.zeros(self.vocab_size, bool)
        is_special[[number for number, token in self.backend.get_added_tokens_decoder().items() if token.special]] = (
            True
        )
        word_starts, model = is_special.copy(), self.backend.model
        for token, number in ids.items():
            word_starts[number] |= _begins_word(model, token)
        return Vocabulary(self.vocab_size, special, np.array(sentinels, np.int32), is_special, word_starts)

    def encode(self, text: str, special: bool = False, reads: str = "") -> np.ndarray:
        """Return the int32 ids of a text; with `special`, also the tokens that its kind puts around one.

        `reads` names what is read of special tokens spelled out in the text: "" none of them, "all" every one, as the
        reference does, and a role, such as "mask", its token alone.
        """
        return np.array(self._reader(reads).encode(text, add_special_tokens=special).ids, np.int32)

    def encode_batch(self, texts: Sequence[str], special: bool = False, reads: str = "") -> list[hf.Encoding]:
        """Return the library's encodings of texts, made on all cores; `special` and `reads` as in `encode`."""
        return self._reader(reads).encode_batch(list(texts), add_special_tokens=special)

    def encoder(self) -> Callable[[Sequence[str]], Encoded]:
        """Return what encodes many texts as `encode` does, faster, with the offsets of `encode_batch`."""
        return encoder(self._reader(""))

    @functools.cached_property
    def _readers(self) -> dict[str, hf.Tokenizer]:
        return {"all": self.backend}

    def _reader(self, reads: str) -> hf.Tokenizer:
        if reads not in self._readers:
            self._readers[reads] = self._reading(ROLES[reads] if reads else ())
        return self._readers[reads]

    def _reading(self, spellings: Sequence[str]) -> hf.Tokenizer:
        """Return the backend as it reads texts in which, of the special tokens, only those of `spellings` are found.

        The library's `encode_special_tokens` alone would not do: a unigram model still finds the pieces that special
        tokens are in its vocabulary, and so do models whose words are cut at white space only.
        """
        state = json.loads(self.backend.to_str())
        hidden: set[str] = set()
        for token in state["added_tokens"]:
            if token["content"] in spellings:
                token["special"] = False
            elif token["special"] or _is_control(token["content"]):
                hidden.add(token["content"])
                token["special"] = True
        _respell(state, hidden)
        reader = hf.Tokenizer.from_str(json.dumps(state))
        reader.encode_special_tokens = True
        return reader

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special: bool = True) -> str:
        """Return the text of ids."""
        return self.backend.decode([int(number) for number in ids], skip_special_tokens=skip_special)

    @functools.cached_property
    def pieces(self) -> list[str]:
        """The text that each id adds to one that it follows, "" of special tokens; half a character is no text."""
        first = next(number for number in range(self.vocab_size) if self.backend.decode([number]).strip().isalpha())
        before = self.backend.decode([first])
        both = self.backend.decode_batch([[first, number] for number in range(self.vocab_size)])
        return [text.removeprefix(before) for text in both]

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return each id's spelling in the vocabulary."""
        return [self.backend.id_to_token(int(number)) for number in ids]

    def without_special_from(self, size: int) -> "Tokenizer":
        """Return a tokenizer without the special tokens of ids from `size` on; without any there, this one."""
        special = self.backend.get_added_tokens_decoder().items()
        dropped = {number: token.content for number, token in special if token.special and number >= size}
        if not dropped:
            return self
        state = json.loads(self.backend.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in dropped]
        vocabulary = state["model"].get("vocab")
        if isinstance(vocabulary, dict):
            state["model"]["vocab"] = {token: n for token, n in vocabulary.items() if n not in dropped}
        return Tokenizer(hf.Tokenizer.from_str(json.dumps(state)))

    def save(self, path: Path | str) -> None:
        """Write a `tokenizer.json`, whole or not at all."""
        path = Path(path)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # several processes may save it at once
            temporary.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
            temporary.replace(path)


def _is_control(spelling: str) -> bool:
    """Say whether a token of a saved tokenizer is one of ours, whether or not it is marked as special there."""
    return spelling.startswith(SENTINEL[:-3]) or any(spelling in spellings for spellings in ROLES.values())


def _respell(state: dict[str, Any], hidden: Set[str]) -> None:
    """Spell hidden tokens in the state of a tokenizer so that no text has them. BPE finds what it merges, and no merge
    makes such a token; there the spellings stay."""
    model = state["model"]
    if model["type"] == "BPE":
        return

    def spelled(token: str) -> str:
        return _UNREADABLE + token if token in hidden else token

    for token in state["added_tokens"]:
        token["content"] = spelled(token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {spelled(token): number for token, number in model["vocab"].items()}
        model["unk_token"] = spelled(model["unk_token"])
    else:
        model["vocab"] = [[spelled(token), score] for token, score in model["vocab"]]


def _begins_word(model: models.Model, token: str) -> bool:
    if isinstance(model, models.WordPiece):
        return not token.startswith("##")
    if isinstance(model, models.Unigram):
        return token.startswith("▁")
    # With a suffix at the ends of words (GPT), the token before says whether one begins here: no token surely does.
    return not getattr(model, "end_of_word_suffix", None) and token.startswith(("Ġ", "▁"))
