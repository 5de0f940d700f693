"""Token stores: text tokenised once, in parallel, kept on disk with random access.

A store is a folder: `tokens.bin`, `documents.npy` (offsets), `sentences.npy` (sentence starts) and `meta.json`, the
seal of these, which tells what was left out. One of examples has `records.bin` and `records.npy` (offsets) besides, a
line of JSON for each, and where a task asks for them the `characters.bin` of each token. It is renamed into place
whole, so a store that is there is complete.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from jaxformer.data.left_out import LeftOut, count, reasons
from jaxformer.data.reading import counted
from jaxformer.data.records import Source
from jaxformer.data.sealed import Damaged, Note, seal, told, unsealed
from jaxformer.data.sentences import Splitter
from jaxformer.errors import EmptySplit, disk_errors
from jaxformer.objectives import Supervision
from jaxformer.tokenizers import Encoded, Tokenizer

Progress = Callable[[str, int, int], None]
FORMAT = 2  # of the files below; others of before are not opened
UNKNOWN_SHARE = 0.01  # of the tokens, that is not worth a word
# What is tokenised at a time: so many texts, or fewer long ones.
CHUNK = 512
CHUNK_CHARACTERS = 1 << 21
DROPPED = 3  # characters at the beginning of a sentence that the tokenizer may drop

# How text becomes tokens, part of a store's fingerprint: special tokens that a text spells are text.
READING = "text-1"


@dataclasses.dataclass(frozen=True)
class Store:
    """Documents as tokens: document d is `tokens[document_offsets[d]:document_offsets[d + 1]]`."""

    path: Path
    tokens: np.ndarray  # memory-mapped uint16 or uint32
    document_offsets: np.ndarray  # int64 [documents + 1]
    sentence_starts: np.ndarray  # int64: the tokens that begin a sentence, each document's first included
    fingerprint: str
    left_out: LeftOut = dataclasses.field(default_factory=dict)

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
    """Labelled examples as tokens, one document per text field: example i is {field: int32 tokens, "label": value}.

    `detailed` ones have the "record" that they were made of, too, and "offsets", {field: int32 [n, 2]}: where in the
    field's text the characters of each token begin and end.
    """

    store: Store
    fields: tuple[str, ...]
    detailed: bool

    def __len__(self) -> int:
        return (len(self.store.document_offsets) - 1) // len(self.fields)

    @property
    def lengths(self) -> dict[str, np.ndarray]:
        """{field: the tokens of each example, int64 [examples]}."""
        lengths = np.diff(self.store.document_offsets).reshape(-1, len(self.fields))
        return {field: lengths[:, place] for place, field in enumerate(self.fields)}

    @functools.cached_property
    def _places(self) -> np.ndarray:
        return np.load(self.store.path / "records.npy")

    @functools.cached_property
    def _records(self) -> np.ndarray:
        return _mapped(self.store.path / "records.bin", np.uint8)

    @functools.cached_property
    def _characters(self) -> np.ndarray:
        return _mapped(self.store.path / "characters.bin", np.uint32).reshape(-1, 2)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __getitem__(self, number: int) -> dict[str, Any]:
        texts, offsets = {}, {}
        for place, field in enumerate(self.fields):
            document = int(number) * len(self.fields) + place
            start, end = self.store.document_offsets[document : document + 2]
            texts[field] = np.array(self.store.tokens[start:end], np.int32)
            if self.detailed:
                offsets[field] = np.array(self._characters[start:end], np.int32)
        first, last = self._places[int(number) : int(number) + 2]
        example = texts | json.loads(bytes(self._records[first:last]))
        return example | {"offsets": offsets} if self.detailed else example


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def build_store(
    source: Source, split: str, tokenizer: Tokenizer, cache: Path, progress: Progress | None = None,
    note: Note | None = None,
) -> Store:  # fmt: skip
    """Return the token store of a source's split, tokenised unless that was done before, without empty documents.

    `note` is told of a damaged one, which is made again. Raises UserError for malformed sources and full disks.
    """
    key = [source.fingerprint(split), split, tokenizer.fingerprint, READING, source.splitter.name]

    def texts(left_out: LeftOut) -> Iterator[str]:
        return source.documents(split, left_out)

    activity = f"tokenising {split}"
    return _open_or_write(cache, key, texts, tokenizer, source, split, progress, note, activity, True)


def build_examples(
    source: Source, split: str, tokenizer: Tokenizer, task: Supervision, cache: Path,
    progress: Progress | None = None, note: Note | None = None,
) -> ExampleStore:  # fmt: skip
    """Return the labelled examples of a task in a source's split, tokenised per field into the same kind of store."""
    fields, kind = tuple(task.fields), task.label_kind
    detailed = task.answering is not None and task.answering.reads_records
    chosen = [source.max_examples, source.subset_seed] if split == "train" else []
    classes = [source.fingerprint(part) for part in source.splits]  # the rows of all splits number them
    key = [source.fingerprint(split), split, tokenizer.fingerprint, READING, "examples", kind, detailed, *fields]
    records: list[bytes] = []

    def texts(left_out: LeftOut) -> Iterator[str]:
        choices = task.answering.choice_fields if task.answering else ()  # what its labels are counted among
        for example in source.examples(split, fields, kind, left_out, choices):
            kept = {"label": example["label"]} | ({"record": example["record"]} if detailed else {})
            records.append(json.dumps(kept, ensure_ascii=False).encode())
            yield from (example[field] for field in fields)

    activity = f"tokenising {split} examples"
    store = _open_or_write(
        cache, [*key, *chosen, *classes], texts, tokenizer, source, split, progress, note, activity, False, records,
        detailed,
    )  # fmt: skip
    examples = ExampleStore(store, fields, detailed)
    if len(examples) == 0:
        raise EmptySplit(
            f"data: there are no labelled examples in the {split} split{reasons(store.left_out)}", store.left_out
        )
    return examples


def build_pairs(
    source: Source, split: str, tokenizer: Tokenizer, fields: Sequence[str], cache: Path,
    progress: Progress | None = None, note: Note | None = None,
) -> Store:  # fmt: skip
    """Return the fields of a source's split, one document each, as many in turn as there are fields."""
    key = [source.fingerprint(split), split, tokenizer.fingerprint, READING, "pairs", *fields, source.splitter.name]

    def texts(left_out: LeftOut) -> Iterator[str]:
        return source.texts(split, tuple(fields), left_out)

    activity = f"tokenising {split} pairs"
    return _open_or_write(cache, key, texts, tokenizer, source, split, progress, note, activity, False)


def _open_or_write(
    cache: Path, key: list[Any], texts: Callable[[LeftOut], Iterable[str]], tokenizer: Tokenizer,
    source: Source, split: str, progress: Progress | None, note: Note | None, activity: str, drop_empty: bool,
    records: list[bytes] | None = None, detailed: bool = False,
) -> Store:  # fmt: skip
    fingerprint = hashlib.sha256(json.dumps([FORMAT, *key]).encode()).hexdigest()[:16]
    path = cache / "stores" / fingerprint
    try:
        if (store := _open(path, fingerprint)) is not None:
            return store
    except Damaged as error:
        told(error, "the token store", note)
    temporary = path.with_name(f".{fingerprint}.{uuid.uuid4().hex}")
    with disk_errors(path):
        shutil.rmtree(path, ignore_errors=True)  # damaged
        temporary.mkdir(parents=True)
        try:
            left_out: LeftOut = {}
            _write(
                temporary, texts(left_out), tokenizer, source.splitter, progress, activity, source.amount(split),
                drop_empty, left_out, detailed,
            )  # fmt: skip
            if records is not None:
                (temporary / "records.bin").write_bytes(b"".join(records))
                np.save(temporary / "records.npy", np.cumsum([0, *map(len, records)], dtype=np.int64))
            names = [file.name for file in temporary.iterdir()]
            seal(temporary / "meta.json", names, {"dtype": _dtype(tokenizer), "left_out": left_out})
            try:
                temporary.rename(path)
            except OSError:  # another process was quicker
                if not path.exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    opened = _open(path, fingerprint)
    assert opened is not None
    return opened


def _dtype(tokenizer: Tokenizer) -> str:
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def _open(path: Path, fingerprint: str) -> Store | None:
    """Return the store, or None when it is not there. Raises Damaged for one that is not as it was written."""
    facts = unsealed(path / "meta.json")
    if facts is None:
        if path.exists():
            raise Damaged(f"{path / 'meta.json'} is not there")
        return None
    offsets, sentences = np.load(path / "documents.npy"), np.load(path / "sentences.npy")
    dtype = np.dtype(facts["dtype"])
    # An empty file cannot be mapped.
    tokens = np.memmap(path / "tokens.bin", dtype, "r") if offsets[-1] else np.zeros(0, dtype)
    return Store(path, tokens, offsets, sentences, fingerprint, facts["left_out"])


def _write(
    folder: Path, texts: Iterable[str], tokenizer: Tokenizer, splitter: Splitter, progress: Progress | None,
    activity: str, amount: int, drop_empty: bool, left_out: LeftOut, detailed: bool,
) -> None:  # fmt: skip
    lengths: list[np.ndarray] = []
    sentences: list[np.ndarray] = []
    unknown = tokenizer.vocabulary.special.get("unknown", -1)
    encode = tokenizer.encoder()
    done = total = num_empty = num_unknown = 0
    with contextlib.ExitStack() as files:
        read = files.enter_context(counted())
        file = files.enter_context((folder / "tokens.bin").open("wb"))
        characters = files.enter_context((folder / "characters.bin").open("wb")) if detailed else None
        for chunk in _chunks(texts):
            encoded = encode(chunk)
            kept = encoded.counts > 0 if drop_empty else np.ones(len(chunk), bool)
            num_empty += len(chunk) - int(kept.sum())
            lengths.append(encoded.counts[kept])
            sentences.append(_sentences(chunk, encoded, splitter) + total)
            num_unknown += int((encoded.ids == unknown).sum())
            _append(file, encoded.ids.astype(_dtype(tokenizer)))
            if characters is not None:
                _append(characters, encoded.offsets.astype(np.uint32))
            total += len(encoded.ids)
            done += len(chunk)
            if progress:
                progress(activity, done, _expected(done, read.read, amount))
    if progress and done:
        progress(activity, done, done)
    count(left_out, "documents left out: empty", num_empty, done)
    if num_unknown > UNKNOWN_SHARE * total:
        count(left_out, "tokens unknown to the tokenizer, all written as one", num_unknown, total)
    np.save(folder / "documents.npy", np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum())
    np.save(folder / "sentences.npy", np.concatenate(sentences or [np.zeros(0, np.int64)]))


def _expected(done: int, read: int, amount: int) -> int:
    """Return how many texts there may be, by the share of the source that was read; 0: nothing tells."""
    return max(done + 1, round(done * amount / read)) if 0 < read <= amount else 0


def _append(file: BinaryIO, values: np.ndarray) -> None:
    file.write(values.tobytes())


def _sentences(texts: Sequence[str], encoded: Encoded, splitter: Splitter) -> np.ndarray:
    """Return the tokens that begin a sentence, sorted: of each text that has tokens the first, and those at the places
    that the splitter finds. A sentence that begins with characters which the tokenizer drops begins with the next."""
    sizes = np.array([*map(len, texts)], np.int64)
    begin = np.cumsum(sizes) - sizes  # of each text, were they one
    full = np.flatnonzero(encoded.counts)
    found = [splitter.starts(texts[number]) for number in full.tolist()]
    of_start = np.repeat(full, [*map(len, found)])
    starts = begin[of_start] + np.fromiter(itertools.chain.from_iterable(found), np.int64, len(of_start))
    shift = np.repeat(begin, encoded.counts)
    first, last = encoded.offsets[:, 0] + shift, np.maximum.accumulate(encoded.offsets[:, 1] + shift)
    places = starts[:, None] + np.arange(DROPPED + 1)
    token = np.searchsorted(last, places, side="right")  # the first that ends behind the place
    holds = (places < (begin + sizes)[of_start][:, None]) & (np.append(first, np.iinfo(np.int64).max)[token] <= places)
    at_starts = token[np.arange(len(starts)), holds.argmax(axis=1)][holds.any(axis=1)]
    return np.union1d((np.cumsum(encoded.counts) - encoded.counts)[full], at_starts)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if len(chunk) == CHUNK or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
