"""Released tokenizer files as they lie on the disk: vocabularies, merges, and what Hugging Face writes beside them."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers as hf

from jaxformer.errors import UserError

# The names that special tokens have in special_tokens_map.json and tokenizer_config.json, in the reference's order.
_SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_SEVERAL = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def read_bytes(path: Path) -> bytes:
    """Return a file's content. Raises UserError when it cannot be read."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(
            f"no tokenizer file {path}; give a tokenizer.json, a released vocabulary or its folder"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def read_text(path: Path) -> str:
    """Return a file's text with `\\n` at the ends of lines. Raises UserError when it cannot be read or is not UTF-8."""
    try:
        text = read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged or no tokenizer file: it is not text ({error.reason})") from error
    return text.replace("\r\n", "\n")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; only `\\n` ends one, for tokens may hold Unicode's other ends of lines."""
    lines = read_text(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file. Raises UserError when it holds anything else."""
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; get it anew") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object; get it anew")
    return value


def read_ids(path: Path) -> dict[str, int]:
    """Return the ids of a JSON vocabulary. Raises UserError for ids that are no numbers or stand twice."""
    ids = read_object(path)
    if not all(type(number) is int and number >= 0 for number in ids.values()):
        raise UserError(f"{path} is damaged: it does not give every token a number of 0 or more; get it anew")
    if len(set(ids.values())) < len(ids):
        raise UserError(f"{path} is damaged: two of its tokens have the same id; get it anew")
    return ids


def read_merges(path: Path, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges of a BPE file in order. Raises UserError for a line that does not fit the vocabulary."""
    merges = []
    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith("#version") and number == 1:
            continue
        left, *rest = line.split(" ")
        if not left or len(rest) != 1 or not rest[0]:
            raise UserError(f"{path}, line {number}: {line!r} is not two tokens to merge; get the file anew")
        for token in (left, rest[0], left + rest[0]):
            if token not in vocabulary:
                raise UserError(f"{path}, line {number}: {token!r} is not in the vocabulary; are both of one release?")
        merges.append((left, rest[0]))
    return merges


@dataclasses.dataclass(frozen=True)
class Companions:
    """What the files beside a vocabulary say: settings, ids of tokens that were added to it, and special tokens."""

    folder: Path
    settings: Mapping[str, Any]  # tokenizer_config.json
    ids: Mapping[str, int]  # token -> id
    special: Mapping[str, hf.AddedToken | None]  # spelling -> token, None where nothing but the spelling is said
    added: Mapping[str, hf.AddedToken]  # tokens that are not special

    def setting(self, name: str, kind: type, default: Any) -> Any:
        """Return a setting, `default` where there is none or it is null. Raises UserError for another type."""
        value = self.settings.get(name)
        if value is not None and type(value) is not kind:
            where = self.folder / "tokenizer_config.json"
            raise UserError(f"{where}: {name} must be of type {kind.__name__}, not {value!r}; correct it")
        return default if value is None else value

    def place(self, vocabulary: Mapping[str, int], where: Path) -> dict[str, int]:
        """Return the vocabulary with the added tokens. Raises UserError when an id is taken or a token has another."""
        ids = dict(vocabulary)
        taken = {number: token for token, number in ids.items()}
        for token, number in self.ids.items():
            if ids.get(token, number) != number or taken.get(number, token) != token:
                raise UserError(
                    f"{where}: the files beside it give {token!r} the id {number}, but it has "
                    f"{ids[token] if token in ids else repr(taken[number]) + ' there'}; are they of one release?"
                )
            ids[token], taken[number] = number, token
        for token in self.special:
            ids.setdefault(token, 1 + max(ids.values(), default=-1))
        return ids

    def finish(
        self, backend: hf.Tokenizer, tokens: Mapping[str, hf.AddedToken], ids: Mapping[str, int]
    ) -> hf.Tokenizer:
        """Make the kind's own tokens and those beside it tokens of their own in a text, by `ids`; return `backend`."""
        tokens = {**self.added, **tokens}
        for spelling, token in self.special.items():
            if token is not None or spelling not in tokens:
                tokens[spelling] = token or special_token(spelling)
        for spelling in sorted(tokens, key=ids.__getitem__):  # the library numbers new ones as they come
            add = backend.add_special_tokens if tokens[spelling].special else backend.add_tokens
            add([tokens[spelling]])
        return backend


def special_token(spelling: str, **flags: bool) -> hf.AddedToken:
    """Return a special token, found in a text as it was before normalisation."""
    return hf.AddedToken(spelling, **{"normalized": False, **flags}, special=True)


def companions(folder: Path) -> Companions:
    """Read tokenizer_config.json, added_tokens.json and special_tokens_map.json of a folder, as far as it has them."""
    settings, ids, names = {}, {}, {}
    if (path := folder / "tokenizer_config.json").exists():
        settings = read_object(path)
    if (path := folder / "added_tokens.json").exists():
        ids = read_ids(path)
    if (path := folder / "special_tokens_map.json").exists():
        names = read_object(path)
    special = {spelling: token for source in (settings, names) for spelling, token in _special(source, folder)}
    added = {spelling: hf.AddedToken(spelling, normalized=True) for spelling in ids}  # as the reference finds them
    described = settings.get("added_tokens_decoder") or {}
    if not isinstance(described, dict) or not all(number.isdecimal() for number in described):
        raise UserError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder does not name ids; get it anew")
    for number, entry in described.items():
        spelling = _spelling(entry, folder)
        ids[spelling] = int(number)
        flags = entry if isinstance(entry, dict) else {}
        if flags.get("special"):
            special[spelling] = special.get(spelling) or _token(flags)
        else:
            added[spelling] = hf.AddedToken(spelling, **{flag: bool(flags.get(flag)) for flag in _FLAGS})
    added = {spelling: token for spelling, token in added.items() if spelling not in special}
    return Companions(folder, settings, ids, special, added)


def _special(source: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, hf.AddedToken | None]]:
    entries = [source.get(f"{name}_token") for name in _SPECIAL]
    for name in _SEVERAL:
        several = source.get(name)
        entries += (
            several.values() if isinstance(several, dict) else several if isinstance(several, list) else [several]
        )
    for entry in entries:
        if entry is not None:
            yield _spelling(entry, folder), _token(entry) if isinstance(entry, dict) else None


def _spelling(entry: Any, folder: Path) -> str:
    spelling = entry.get("content") if isinstance(entry, dict) else entry
    if not isinstance(spelling, str):
        raise UserError(
            f"{folder}: its tokenizer_config.json or special_tokens_map.json names a token {entry!r}; mend it"
        )
    return spelling


def _token(entry: Mapping[str, Any]) -> hf.AddedToken:
    return special_token(entry["content"], **{flag: bool(entry[flag]) for flag in _FLAGS if flag in entry})
