"""Token stores: text tokenised once, in parallel, kept on disk with random access.

A store is a folder: `tokens.bin`, `documents.npy` (offsets), `sentences.npy` (sentence starts) and `meta.json`, written
last and renamed into place whole, so a store that is there is complete.
"""

import dataclasses
import hashlib
import itertools
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxformer.data.records import Source
from jaxformer.errors import EmptySplit, disk_errors
from jaxformer.tokenizers import Tokenizer

Progress = Callable[[str, int, int], None]
CHUNK = 512  # texts that the tokenizer gets at a time: it spreads them over all cores

# Sentences end at . ! or ? (with closing quotes or brackets) before a capital, a digit or an opening; at blank lines.
# The name is part of a store's fingerprint: another rule is another name.
SPLITTER = "punctuation-1"
_BOUNDARY = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])|\n\s*\n\s*")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|cf|vs|Mr|Mrs|Ms|Dr|Prof|St|No|Fig|approx|[A-Z]))\.$")


def sentence_starts(text: str) -> list[int]:
    """Return the character at which each sentence of a text begins, the first included."""
    starts = [len(text) - len(text.lstrip())]
    for match in _BOUNDARY.finditer(text):
        if match[0].count("\n") < 2 and _ABBREVIATION.search(text[max(0, match.start() - 8) : match.start()]):
            continue
        if starts[-1] < match.end() < len(text):
            starts.append(match.end())
    return starts


@dataclasses.dataclass(frozen=True)
class Store:
    """Documents as tokens: document d is `tokens[document_offsets[d]:document_offsets[d + 1]]`."""

    path: Path
    tokens: np.ndarray  # memory-mapped uint16 or uint32
    document_offsets: np.ndarray  # int64 [documents + 1]
    sentence_starts: np.ndarray  # int64: the tokens that begin a sentence, each document's first included
    fingerprint: str

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes map the file themselves; pickling a map would send each a copy of the whole corpus.
        mapped = isinstance(self.tokens, np.memmap)
        return vars(self) | ({"tokens": self.tokens.dtype} if mapped else {})

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["tokens"], np.dtype):
            state = state | {"tokens": np.memmap(state["path"] / "tokens.bin", state["tokens"], "r")}
        vars(self).update(state)


@dataclasses.dataclass(frozen=True)
class ExampleStore:
    """Labelled examples as tokens, one document per text field: example i is {field: int32 tokens, "label": class}."""

    store: Store
    fields: tuple[str, ...]
    labels: np.ndarray  # int32 [examples]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Any]:
        texts = {}
        for place, field in enumerate(self.fields):
            document = int(number) * len(self.fields) + place
            start, end = self.store.document_offsets[document : document + 2]
            texts[field] = np.array(self.store.tokens[start:end], np.int32)
        return texts | {"label": int(self.labels[number])}


def build_store(
    source: Source, split: str, tokenizer: Tokenizer, cache: Path, progress: Progress | None = None
) -> Store:
    """Return the token store of a source's split, tokenised unless that was done before, without empty documents.

    Raises UserError for malformed sources and full disks.
    """
    key = [source.fingerprint(split), split, tokenizer.fingerprint, SPLITTER]
    return _open_or_write(cache, key, lambda: source.documents(split), tokenizer, progress, f"tokenising {split}", True)


def build_examples(
    source: Source,
    split: str,
    tokenizer: Tokenizer,
    fields: Sequence[str],
    cache: Path,
    progress: Progress | None = None,
) -> ExampleStore:
    """Return the labelled examples of a source's split, tokenised per field into the same kind of store."""
    chosen = [source.max_examples, source.subset_seed] if split == "train" else []
    key = [source.fingerprint(split), split, tokenizer.fingerprint, "examples", *fields, *chosen]
    labels: list[int] = []

    def texts() -> Iterator[str]:
        for example in source.examples(split, tuple(fields)):
            labels.append(example["label"])
            yield from (example[field] for field in fields)

    store = _open_or_write(cache, key, texts, tokenizer, progress, f"tokenising {split} examples", False, labels)
    loaded = np.load(store.path / "labels.npy")
    if len(loaded) == 0:
        raise EmptySplit(f"data: there are no labelled examples in the {split} split")
    return ExampleStore(store, tuple(fields), loaded)


def build_pairs(
    source: Source, split: str, tokenizer: Tokenizer, fields: Sequence[str], cache: Path,
    progress: Progress | None = None,
) -> Store:  # fmt: skip
    """Return the fields of a source's split, one document each, as many in turn as there are fields."""
    key = [source.fingerprint(split), split, tokenizer.fingerprint, "pairs", *fields, SPLITTER]
    return _open_or_write(
        cache, key, lambda: source.texts(split, tuple(fields)), tokenizer, progress, f"tokenising {split} pairs", False
    )


def _open_or_write(
    cache: Path, key: list[Any], texts: Callable[[], Iterable[str]], tokenizer: Tokenizer, progress: Progress | None,
    activity: str, drop_empty: bool, labels: list[int] | None = None,
) -> Store:  # fmt: skip
    fingerprint = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    path = cache / "stores" / fingerprint
    store = _open(path, fingerprint)
    if store is not None:
        return store
    temporary = path.with_name(f".{fingerprint}.{uuid.uuid4().hex}")
    with disk_errors(path):
        shutil.rmtree(path, ignore_errors=True)  # damaged
        temporary.mkdir(parents=True)
        try:
            _write(temporary, texts(), tokenizer, progress, activity, drop_empty)
            if labels is not None:
                np.save(temporary / "labels.npy", np.array(labels, np.int32))
            sizes = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
            (temporary / "meta.json").write_text(
                json.dumps({"dtype": _dtype(tokenizer), "sizes": sizes, "splitter": SPLITTER})
            )
            try:
                temporary.rename(path)
            except OSError:  # another process was quicker
                if _open(path, fingerprint) is None:
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    opened = _open(path, fingerprint)
    assert opened is not None
    return opened


def _dtype(tokenizer: Tokenizer) -> str:
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def _open(path: Path, fingerprint: str) -> Store | None:
    """Return the store, or None when it is not there, incomplete or of other sizes than were written."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        if any((path / name).stat().st_size != size for name, size in meta["sizes"].items()):
            return None
        offsets, sentences = np.load(path / "documents.npy"), np.load(path / "sentences.npy")
        dtype = np.dtype(meta["dtype"])
        if offsets[-1] * dtype.itemsize != meta["sizes"]["tokens.bin"]:
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    # An empty file cannot be mapped.
    tokens = np.memmap(path / "tokens.bin", dtype, "r") if offsets[-1] else np.zeros(0, dtype)
    return Store(path, tokens, offsets, sentences, fingerprint)


def _write(
    folder: Path, texts: Iterable[str], tokenizer: Tokenizer, progress: Progress | None, activity: str, drop_empty: bool
) -> None:
    lengths: list[np.ndarray] = []
    sentences: list[np.ndarray] = []
    done = total = 0
    with (folder / "tokens.bin").open("wb") as file:
        for chunk in _chunks(texts):
            encodings = tokenizer.backend.encode_batch(chunk, add_special_tokens=False)
            for text, encoding in zip(chunk, encodings, strict=True):
                count = len(encoding.ids)
                if count == 0 and drop_empty:
                    continue
                starts = {0} if count else set()
                # A sentence that begins with characters the tokenizer drops begins with its first kept one.
                starts |= {
                    token for start in sentence_starts(text) if (token := _token_at(encoding, start, text)) is not None
                }
                sentences.append(np.array(sorted(starts), np.int64) + total)
                lengths.append(np.array([count], np.int64))
                total += _append(file, encoding.ids, _dtype(tokenizer))
            done += len(chunk)
            if progress:
                progress(activity, done, 0)
    if progress and done:
        progress(activity, done, done)
    np.save(folder / "documents.npy", np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum())
    np.save(folder / "sentences.npy", np.concatenate(sentences or [np.zeros(0, np.int64)]))


def _append(file: BinaryIO, ids: list[int], dtype: str) -> int:
    file.write(np.array(ids, dtype).tobytes())
    return len(ids)


def _token_at(encoding: Any, character: int, text: str) -> int | None:
    for place in range(character, min(character + 4, len(text))):
        token = encoding.char_to_token(place)
        if token is not None:
            return token
    return None


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk
