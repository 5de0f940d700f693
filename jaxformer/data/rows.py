"""The row index: which tokens of a store make up each row that an objective reads. Built once and kept on disk.

A row is {"tokens": int32 [n], "segment_ids": int32 [n] (1, 2, … per document in the row), "sentence_starts": bool [n]},
n at most the objective's `row_length`; for `segment_pairs` also "boundary" (tokens of A) and "label" (1: B is random),
for `pairs` "is_target" (bool [n]; segments number the pairs). Every row has its "number" and the index's "seed", and,
where the settings ask for it, "rarity" (float [n]): count^-frequency_smoothing of each token in the whole store.
"""

import dataclasses
import functools
import hashlib
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxformer.data.left_out import LeftOut, count, reasons
from jaxformer.data.sealed import Damaged, Note, seal, told, unsealed
from jaxformer.data.store import Progress, Store
from jaxformer.errors import EmptySplit, disk_errors

FORMAT = 2  # of an index on disk; others of before are not opened
Index = dict[str, np.ndarray]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Random access to the rows of one store under one objective's settings."""

    store: Store
    settings: dict[str, Any]
    index: Index
    seed: int = 0
    name: str = ""  # of the index
    left_out: LeftOut = dataclasses.field(default_factory=dict)  # of what the store has, or cut

    def __len__(self) -> int:
        return len(next(iter(self.index.values())))

    @functools.cached_property
    def stream_starts(self) -> np.ndarray:
        """Where each document begins in the stream of all, each with its separator, and where the stream ends."""
        offsets = self.store.document_offsets
        return offsets + np.arange(len(offsets)) if _separators(self.settings) else offsets

    def __getitem__(self, number: int) -> Row:
        row = KINDS[self.settings["rows"]][1](self, int(number)) | {"number": int(number), "seed": self.seed}
        if "rarity" in self.index:
            row["rarity"] = self.index["rarity"][row["tokens"]]
        return row


def build_rows(
    store: Store, objective: Any, seed: int, cache: bool = True, note: Note | None = None,
    progress: Progress | None = None,
) -> Rows:  # fmt: skip
    """Return the rows of a store for an objective, from the index kept beside the store where there is one.

    `note` is told of a damaged one, which is made again. Raises UserError when the store has no text.
    """
    if store.document_offsets[-1] == 0:
        raise EmptySplit(
            f"data: there is no text in this split{reasons(store.left_out)}; "
            "check the data section, or data.validation_share",
            store.left_out,
        )
    settings = dict(objective.row_settings)
    key = json.dumps(
        [FORMAT, store.fingerprint, settings, seed if settings["rows"] == "segment_pairs" else 0], sort_keys=True
    )
    name = f"rows-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    make = KINDS[settings["rows"]][0]
    path, record = (store.path / f"{name}{suffix}" for suffix in (".npz", ".json"))
    try:
        if cache and (facts := unsealed(record)) is not None:
            with path.open("rb") as file, np.load(file) as stored:
                return Rows(store, settings, dict(stored.items()), seed, name, facts["left_out"])
    except Damaged as error:
        told(error, "the row index", note)
    left_out: LeftOut = {}
    index = make(store, settings, seed, left_out, progress or _silent)
    if settings.get("frequency_smoothing"):
        index["rarity"] = _rarity(store, settings)
    if cache:
        with disk_errors(path):
            temporary = path.with_name(f".{uuid.uuid4().hex}.npz")
            np.savez(temporary, allow_pickle=False, **index)
            temporary.replace(path)
            seal(record, [path.name], {"left_out": left_out})
    return Rows(store, settings, index, seed, name, left_out)


def _silent(activity: str, done: int, total: int) -> None:
    pass


def _rarity(store: Store, settings: dict[str, Any]) -> np.ndarray:
    """Return count^-frequency_smoothing of every id, 1 for those that the store does not have."""
    # The separator's id may be larger than any of the text's.
    counts = np.bincount(store.tokens, minlength=1 + (settings["separator"] or 0))
    return np.maximum(counts, 1.0) ** -settings["frequency_smoothing"]


def _windows(store: Store, settings: dict[str, Any], seed: int, left_out: LeftOut, progress: Progress) -> Index:
    """Windows of the stream of all documents, each followed by the separator where there is one.

    The last, shorter window is left out, unless it is the only one.
    """
    total = int(store.document_offsets[-1]) + _separators(settings) * (len(store.document_offsets) - 1)
    length = settings["row_length"]
    starts = np.arange(max(1, total // length), dtype=np.int64) * length
    count(
        left_out,
        f"tokens left out: the last row would be shorter than {length}",
        max(0, total - length) % length,
        total,
    )
    return {"start": np.tile(starts, settings.get("dupe_factor", 1))}


def _window(rows: Rows, number: int) -> Row:
    """Gather stream positions: the stream is never written out, its separators are found by their place."""
    offsets, stream_starts = rows.store.document_offsets, rows.stream_starts
    start = rows.index["start"][number]
    places = np.arange(start, min(start + rows.settings["row_length"], stream_starts[-1]))
    first, last = np.searchsorted(stream_starts, [places[0], places[-1]], side="right") - 1
    document = first + np.searchsorted(stream_starts[first + 1 : last + 1], places, side="right")
    within = places - stream_starts[document]
    ends = within == offsets[document + 1] - offsets[document]
    return _gathered(
        rows, offsets[document] + within, ends if _separators(rows.settings) else None, document - document[0] + 1
    )


def _gathered(rows: Rows, source: np.ndarray, separator: np.ndarray | None, segments: np.ndarray) -> Row:
    """Return the row of store positions `source`, with the separator's id where `separator` says so."""
    store = rows.store
    real = source if separator is None else np.where(separator, 0, source)
    tokens = np.asarray(store.tokens)[real].astype(np.int32)  # a plain array is read faster than a map
    starts = _begins_sentence(store, source)
    if separator is not None:
        tokens, starts = np.where(separator, np.int32(rows.settings["separator"]), tokens), starts & ~separator
    return {"tokens": np.asarray(tokens), "segment_ids": segments.astype(np.int32), "sentence_starts": starts}


def _begins_sentence(store: Store, source: np.ndarray) -> np.ndarray:
    """Return for store positions that stand close together whether each begins a sentence."""
    low, high = np.searchsorted(store.sentence_starts, [source[0], source[-1] + 1])
    near = store.sentence_starts[low:high]
    if not len(near):
        return np.zeros(len(source), bool)
    begins: np.ndarray = near.take(np.searchsorted(near, source), mode="clip") == source
    return begins


def _separators(settings: dict[str, Any]) -> int:
    return int(settings["separator"] is not None)


def _packed(store: Store, settings: dict[str, Any], seed: int, left_out: LeftOut, progress: Progress) -> Index:
    """Whole documents, cut where longer than a row, packed in order: a row ends where the next piece does not fit.

    Pieces keep the documents' order, so packing needs one search per row.
    """
    length = settings["row_length"]
    lengths = np.diff(store.document_offsets) + _separators(settings)
    kept = np.flatnonzero(np.diff(store.document_offsets) > 0)
    counts = -(-lengths[kept] // length)
    document = np.repeat(kept, counts)
    first_piece = np.concatenate([[0], np.cumsum(counts)[:-1]])
    begin = (np.arange(len(document)) - np.repeat(first_piece, counts)) * length
    size = np.minimum(length, lengths[document] - begin)
    # The pieces are stored flat in one column per fact; every row names its range.
    first, last = _in_order(size[:, None], [length])
    return {"first": first, "last": last, "document": document, "begin": begin, "size": size}


def _in_order(sizes: np.ndarray, limits: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first piece of each row and the one after its last, of pieces [n, sides] packed in order: a row ends
    where the next one does not fit into the limit of one of its sides."""
    ends, firsts = np.cumsum(sizes, axis=0), [0]
    while True:
        filled = ends[firsts[-1] - 1] if firsts[-1] else np.zeros(len(limits), np.int64)
        following = min(
            int(np.searchsorted(ends[:, side], filled[side] + limit, side="right")) for side, limit in enumerate(limits)
        )
        if following >= len(ends):
            return np.array(firsts), np.array([*firsts[1:], len(ends)])
        firsts.append(following)


def _packed_row(rows: Rows, number: int) -> Row:
    index, offsets = rows.index, rows.store.document_offsets
    pieces = slice(index["first"][number], index["last"][number])
    document, begin, size = (index[name][pieces] for name in ("document", "begin", "size"))
    piece = np.repeat(np.arange(len(size)), size)
    within = begin[piece] + np.arange(len(piece)) - np.repeat(np.cumsum(size) - size, size)
    source = offsets[document[piece]] + within
    separator = None
    if _separators(rows.settings):
        separator = source == offsets[document[piece] + 1]
    return _gathered(rows, source, separator, piece + 1)


def _segment_pairs(store: Store, settings: dict[str, Any], seed: int, left_out: LeftOut, progress: Progress) -> Index:
    """BERT's sentence pairs (released create_pretraining_data): `dupe_factor` passes, an rng per document."""
    offsets, starts = store.document_offsets, store.sentence_starts
    documents = [
        (starts[low:high], int(end))
        for low, high, end in zip(
            np.searchsorted(starts, offsets[:-1]), np.searchsorted(starts, offsets[1:]), offsets[1:], strict=True
        )
        if high > low
    ]
    # Sentence boundaries of each document, its end included.
    bounds = [np.append(begin, end) for begin, end in documents]
    pairs = []
    total = settings["dupe_factor"] * len(bounds)
    for done in range(total):
        number, document = divmod(done, len(bounds))
        pairs += _pairs(bounds, document, settings, np.random.default_rng([seed, number, document]))
        if total > 1024 and (done % 1024 == 1023 or done == total - 1):  # no word for what takes no time
            progress("pairing sentences", done + 1, total)
    *columns, excess = np.array(pairs, np.int64).reshape(-1, 6).T
    count(left_out, f"segment pairs cut to {settings['row_length']} tokens", int((excess > 0).sum()), len(pairs))
    return dict(zip(("a_start", "a_length", "b_start", "b_length", "label"), columns, strict=True))


def _pairs(
    bounds: list[np.ndarray], document: int, settings: dict[str, Any], rng: np.random.Generator
) -> list[tuple[int, int, int, int, int, int]]:
    """Return (a_start, a_length, b_start, b_length, label, tokens too many, which are cut) of one pass over one
    document.

    Sentences are collected until they reach the target length, drawn once per pass and document; A is a random first
    part of them, B the rest or, half of the time and whenever there is one sentence only, what begins at a random place
    in another document; sentences that B did not use are put back. In a corpus of one document a random B comes from
    that document, as in the code.
    """
    longest, short = settings["row_length"], settings["short_sequence_probability"]
    target = longest if rng.random() >= short else int(rng.integers(2, longest + 1))
    own, pairs = bounds[document], []
    sentence, last = 0, len(bounds[document]) - 1
    while sentence < last:
        # The chunk: sentences [sentence, stop) that first reach the target, or the rest of the document.
        stop = min(int(np.searchsorted(own, own[sentence] + target)), last)
        stop = max(stop, sentence + 1)
        count = stop - sentence
        split = sentence + (int(rng.integers(1, count)) if count >= 2 else 1)
        a_start, a_length = int(own[sentence]), int(own[split] - own[sentence])
        if count == 1 or rng.random() < 0.5:
            label, wanted = 1, target - a_length
            for _ in range(10):
                other = int(rng.integers(0, len(bounds)))
                if other != document:
                    break
            theirs = bounds[other]
            begin = int(rng.integers(0, len(theirs) - 1))
            end = min(int(np.searchsorted(theirs, theirs[begin] + wanted)), len(theirs) - 1)
            b_start, b_length = int(theirs[begin]), int(theirs[max(end, begin + 1)] - theirs[begin])
            following = split
        else:
            label, following = 0, stop
            b_start, b_length = int(own[split]), int(own[stop] - own[split])
        excess = max(0, a_length + b_length - longest)
        pairs.append((*_truncated(a_start, a_length, b_start, b_length, longest, rng), label, excess))
        sentence = following
    return pairs


def _truncated(
    a_start: int, a_length: int, b_start: int, b_length: int, longest: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Cut the longer side token by token, B on a tie, each from its front or its back with equal probability.

    How many tokens each side loses is fixed; how many of them at the front is binomial.
    """
    excess = max(0, a_length + b_length - longest)
    # The longer side first shrinks to the other's length, then both take turns, B first.
    lead = min(excess, abs(a_length - b_length))
    cut_a, cut_b = (lead, 0) if a_length > b_length else (0, lead)
    cut_a, cut_b = cut_a + (excess - lead) // 2, cut_b + (excess - lead + 1) // 2
    front_a, front_b = int(rng.binomial(cut_a, 0.5)), int(rng.binomial(cut_b, 0.5))
    return a_start + front_a, a_length - cut_a, b_start + front_b, b_length - cut_b


def _pair(rows: Rows, number: int) -> Row:
    entry = {name: int(column[number]) for name, column in rows.index.items()}
    sides = [np.arange(entry[f"{side}_start"], entry[f"{side}_start"] + entry[f"{side}_length"]) for side in ("a", "b")]
    source = np.concatenate(sides)
    return {
        "tokens": np.asarray(rows.store.tokens)[source].astype(np.int32),
        "segment_ids": np.ones(len(source), np.int32),
        "sentence_starts": np.concatenate([_begins_sentence(rows.store, side) for side in sides]),
        "boundary": entry["a_length"],
        "label": entry["label"],
    }


def _pairs_of_texts(store: Store, settings: dict[str, Any], seed: int, left_out: LeftOut, progress: Progress) -> Index:
    """Pairs of documents of which both sides have text and fit with their end tokens, packed in order where asked."""
    sizes = np.diff(store.document_offsets).reshape(-1, 2)
    has_text = (sizes > 0).all(axis=1)
    sizes += 1  # with the end token of each side
    fits = (sizes <= settings["lengths"]).all(axis=1)
    limits = " and ".join(map(str, settings["lengths"]))
    count(left_out, "pairs left out: a side is empty", int((~has_text).sum()), len(sizes))
    count(
        left_out, f"pairs left out: longer than {limits} tokens, end tokens counted", int((has_text & ~fits).sum()),
        len(sizes),
    )  # fmt: skip
    kept = np.flatnonzero(has_text & fits)
    if not len(kept):
        raise EmptySplit(
            f"data: no pair of texts in this split has both sides and fits, with an end token each, into {limits} "
            f"tokens{reasons(store.left_out | left_out)}; "
            "check the fields, or lengthen objective.source_length and target_length",
            store.left_out | left_out,
        )
    first = np.arange(len(kept))
    last = first + 1
    if settings["pack"]:
        first, last = _in_order(sizes[kept], settings["lengths"])
    return {"first": first, "last": last, "pair": kept}


def _pairs_row(rows: Rows, number: int) -> Row:
    index, offsets = rows.index, rows.store.document_offsets
    pairs = index["pair"][index["first"][number] : index["last"][number]]
    sides = (2 * pairs[:, None] + np.arange(2)).ravel()
    sizes = offsets[sides + 1] - offsets[sides]
    side = np.repeat(np.arange(len(sides)), sizes)
    source = offsets[sides][side] + np.arange(len(side)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    tokens = np.asarray(rows.store.tokens)[source].astype(np.int32)
    return {
        "tokens": tokens,
        "segment_ids": (side // 2 + 1).astype(np.int32),
        "sentence_starts": _begins_sentence(rows.store, source),
        "is_target": side % 2 == 1,
    }


# How each kind of row is indexed, and how one is read.
KINDS: dict[
    str, tuple[Callable[[Store, dict[str, Any], int, LeftOut, Progress], Index], Callable[[Rows, int], Row]]
] = {
    "windows": (_windows, _window),
    "packed": (_packed, _packed_row),
    "segment_pairs": (_segment_pairs, _pair),
    "pairs": (_pairs_of_texts, _pairs_row),
}
