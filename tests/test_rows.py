"""The row index: windows, packed rows and pairs of texts beside slow and plain ways to them, and the index on disk."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import store_of
from indexed import SEPARATOR, TWO, objective, pairs, random_documents, read, rows_of, texts

from jaxformer.data import rows as module
from jaxformer.data.rows import build_rows
from jaxformer.errors import EmptySplit, UserError

# Windows.


def test_windows_by_hand() -> None:
    first, second = read(rows_of(store_of(*TWO), objective("windows", 3)))
    assert first == {"tokens": [1, 2, 3], "segment_ids": [1, 1, 1], "sentence_starts": [True, False, True]}
    assert second == {"tokens": [4, 5, 6], "segment_ids": [1, 1, 1], "sentence_starts": [True, False, False]}


def test_windows_with_separators_by_hand() -> None:
    first, second = read(rows_of(store_of(*TWO), objective("windows", 4, SEPARATOR)))
    assert first == {
        "tokens": [1, 2, 3, SEPARATOR],
        "segment_ids": [1, 1, 1, 1],
        "sentence_starts": [True, False, True, False],
    }
    assert second["tokens"] == [4, 5, 6, 7]
    (only,) = read(rows_of(store_of(*TWO), objective("windows", 6, SEPARATOR)))
    assert only["tokens"] == [1, 2, 3, SEPARATOR, 4, 5] and only["segment_ids"] == [1, 1, 1, 1, 2, 2]


def test_a_store_shorter_than_a_window_is_one_short_row() -> None:
    assert [row["tokens"] for row in read(rows_of(store_of([[1], [2]]), objective("windows", 5)))] == [[1, 2]]
    (row,) = read(rows_of(store_of([[1], [2]]), objective("windows", 5, SEPARATOR)))
    assert row["tokens"] == [1, 2, SEPARATOR]


def slow_stream(documents: list[list[list[int]]], separator: int | None) -> list[tuple[int, int, bool]]:
    """All (token, document, begins a sentence), one after the other."""
    stream = []
    for number, document in enumerate(documents):
        for sentence in document:
            stream += [(token, number, place == 0) for place, token in enumerate(sentence)]
        if separator is not None:
            stream.append((separator, number, False))
    return stream


def slow_row(pieces: list[tuple[int, int, bool]]) -> dict[str, Any]:
    first = pieces[0][1]
    return {
        "tokens": [token for token, _, _ in pieces],
        "segment_ids": [document - first + 1 for _, document, _ in pieces],
        "sentence_starts": [start for _, _, start in pieces],
    }


@pytest.mark.parametrize("separator", [None, SEPARATOR])
@pytest.mark.parametrize("length", [1, 2, 7, 20, 64])
@pytest.mark.parametrize("seed", range(3))
def test_windows_are_those_of_the_plain_stream(seed: int, length: int, separator: int | None) -> None:
    documents = random_documents(seed)
    stream = slow_stream(documents, separator)
    expected = [slow_row(stream[start : start + length]) for start in range(0, len(stream), length)]
    if len(stream) % length and len(expected) > 1:
        expected.pop()  # the last, shorter window
    assert read(rows_of(store_of(*documents), objective("windows", length, separator))) == expected


def test_windows_are_there_once_for_each_copy_of_the_corpus() -> None:
    once, thrice = (rows_of(store_of(*TWO), objective("windows", 3, **keys)) for keys in ({}, {"dupe_factor": 3}))
    assert read(thrice) == read(once) * 3
    assert [thrice[number]["number"] for number in range(6)] == list(range(6))


# Packed.


def test_packed_rows_by_hand() -> None:
    store = store_of([[1, 2]], [[3]], [[4, 5], [6]], [[7, 8, 9, 10, 11, 12, 13]], [[14]])
    found = read(rows_of(store, objective("packed", 5)))
    assert [row["tokens"] for row in found] == [[1, 2, 3], [4, 5, 6], [7, 8, 9, 10, 11], [12, 13, 14]]
    assert [row["segment_ids"] for row in found] == [[1, 1, 2], [1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 2]]
    assert found[1]["sentence_starts"] == [True, False, True]
    assert found[3]["sentence_starts"] == [False, False, True]


def test_packed_rows_with_separators_by_hand() -> None:
    store = store_of([[1, 2]], [[3]], [[4, 5, 6, 7, 8]])
    found = read(rows_of(store, objective("packed", 5, SEPARATOR)))
    assert [row["tokens"] for row in found] == [[1, 2, SEPARATOR, 3, SEPARATOR], [4, 5, 6, 7, 8], [SEPARATOR]]
    assert found[0]["segment_ids"] == [1, 1, 1, 2, 2]
    assert found[0]["sentence_starts"] == [True, False, False, True, False]


def test_an_empty_document_is_in_no_packed_row() -> None:
    for separator in (None, SEPARATOR):
        (row,) = read(rows_of(store_of([[1]], [], [[2]], []), objective("packed", 9, separator)))
        assert [token for token in row["tokens"] if token != SEPARATOR] == [1, 2]
        assert max(row["segment_ids"]) == 2


def slow_packed(documents: list[list[list[int]]], length: int, separator: int | None) -> list[dict[str, Any]]:
    """Cut each document into pieces of at most a row; begin a row whenever the next piece does not fit."""
    rows: list[list[tuple[int, int, bool]]] = [[]]
    piece_number = 0
    for document in documents:
        stream = slow_stream([document], separator)
        for start in range(0, len(stream), length):
            piece = [(token, piece_number, begins) for token, _, begins in stream[start : start + length]]
            piece_number += 1
            if len(rows[-1]) + len(piece) > length:
                rows.append([])
            rows[-1] += piece
    return [slow_row(row) for row in rows]


@pytest.mark.parametrize("separator", [None, SEPARATOR])
@pytest.mark.parametrize("length", [1, 2, 7, 20, 64, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_packed_rows_are_those_of_the_plain_way(seed: int, length: int, separator: int | None) -> None:
    documents = random_documents(seed, count=20)
    found = read(rows_of(store_of(*documents), objective("packed", length, separator)))
    assert found == slow_packed(documents, length, separator)


# Pairs of texts.

# Three pairs: of 2 and 1 tokens, of 1 and 3, of 3 and 2.
THREE = ([[1, 2]], [[11]], [[3]], [[13, 14], [15]], [[4], [5, 6]], [[16, 17]])


def test_pairs_of_texts_by_hand() -> None:
    first, second, third = read(rows_of(store_of(*THREE), texts(5, 5, pack=False)))
    assert first == {
        "tokens": [1, 2, 11],
        "segment_ids": [1, 1, 1],
        "sentence_starts": [True, False, True],
        "is_target": [False, False, True],
    }
    assert second["tokens"] == [3, 13, 14, 15] and second["is_target"] == [False, True, True, True]
    assert second["sentence_starts"] == [True, True, False, True] and second["segment_ids"] == [1, 1, 1, 1]
    assert third["tokens"] == [4, 5, 6, 16, 17] and third["sentence_starts"] == [True, True, False, True, False]


def test_packed_pairs_of_texts_by_hand() -> None:
    # With their ends the sources have 3, 2 and 4 tokens, the targets 2, 4 and 3.
    found = read(rows_of(store_of(*THREE), texts(5, 6)))
    assert [row["tokens"] for row in found] == [[1, 2, 11, 3, 13, 14, 15], [4, 5, 6, 16, 17]]
    assert found[0]["segment_ids"] == [1, 1, 1, 2, 2, 2, 2] and found[1]["segment_ids"] == [1] * 5
    assert found[0]["is_target"] == [False, False, True, False, True, True, True]
    for full, rows in (((9, 9), 1), ((8, 9), 2), ((9, 8), 2), ((5, 5), 3), ((4, 6), 3)):
        assert len(rows_of(store_of(*THREE), texts(*full))) == rows, full


@pytest.mark.parametrize("pack", [False, True])
def test_pairs_that_do_not_fit_or_lack_a_side_are_left_out(pack: bool) -> None:
    long = [[20, 21, 22, 23, 24]]
    store = store_of(*THREE[:2], [], [[30]], [[31]], [], [], [], long, [[32]], [[33]], long, *THREE[2:4])
    found = rows_of(store, texts(5, 5, pack))
    assert [token for row in read(found) for token in row["tokens"]] == [1, 2, 11, 3, 13, 14, 15]
    # With room for five tokens and their end the long ones are in.
    assert sum(len(row["tokens"]) for row in read(rows_of(store, texts(6, 6, pack)))) == 7 + 2 * 6


@pytest.mark.parametrize("lengths", [(12, 15), (40, 25), (30, 200)])
@pytest.mark.parametrize("seed", range(3))
def test_packed_pairs_are_those_of_the_plain_way(seed: int, lengths: tuple[int, int]) -> None:
    documents = random_documents(seed, count=60, sentences=3)
    expected: list[list[int]] = []
    used = lengths  # as if a row were full
    for source, target in zip(documents[::2], documents[1::2], strict=True):
        sizes = [sum(map(len, side)) + 1 for side in (source, target)]
        if any(size > length for size, length in zip(sizes, lengths, strict=True)):
            continue
        together = (used[0] + sizes[0], used[1] + sizes[1])
        if together[0] > lengths[0] or together[1] > lengths[1]:
            expected.append([])
            together = (sizes[0], sizes[1])
        used = together
        expected[-1] += [token for side in (source, target) for sentence in side for token in sentence]
    assert [row["tokens"] for row in read(rows_of(store_of(*documents), texts(*lengths)))] == expected


def test_pairs_of_which_none_fits_are_refused() -> None:
    for store, limits, count, why in (
        (store_of(*THREE), (2, 2), 3, LONGER.format(2, 2)),
        (store_of([[1]], [], [], [[2]]), (9, 9), 2, EMPTY_SIDE),
    ):
        message = f"has both sides and fits, with an end token each, into {limits[0]} and {limits[1]} tokens"
        with pytest.raises(EmptySplit, match=message) as caught:
            rows_of(store, texts(*limits))
        assert len(str(caught.value).splitlines()) == 1
        assert f"({count} of {count} {why})" in str(caught.value)
        assert caught.value.left_out == {why: {"count": count, "of": count}}


# What is left out or cut.

EMPTY_SIDE = "pairs left out: a side is empty"
LONGER = "pairs left out: longer than {} and {} tokens, end tokens counted"
REMAINDER = "tokens left out: the last row would be shorter than 3"


def test_pairs_that_do_not_fit_are_counted() -> None:
    sizes = [(3, 4), (0, 5), (9, 2), (3, 19), (11, 9), (1, 0), (0, 30)]
    documents = [[list(range(1, size + 1))] if size else [] for pair in sizes for size in pair]
    rows = rows_of(store_of(*documents), texts(10, 10))
    assert len(rows.index["pair"]) == 2
    assert rows.left_out == {EMPTY_SIDE: {"count": 3, "of": 7}, LONGER.format(10, 10): {"count": 2, "of": 7}}
    assert rows_of(store_of([[1]], [[2]]), texts(2, 2)).left_out == {}


@pytest.mark.parametrize(
    ("length", "separator", "left", "of"),
    [(3, None, 1, 7), (2, None, 1, 7), (7, None, 0, 7), (4, None, 3, 7), (9, None, 0, 7), (4, SEPARATOR, 1, 9)],
)
def test_the_remainder_of_the_windows_is_counted(length: int, separator: int | None, left: int, of: int) -> None:
    rows = rows_of(store_of(*TWO), objective("windows", length, separator, dupe_factor=2))
    assert sum(len(row["tokens"]) for row in read(rows)) == 2 * (of - left)
    what = REMAINDER.replace("3", str(length))
    assert rows.left_out == ({what: {"count": left, "of": of}} if left else {})


def test_pairing_sentences_tells_how_far_it_is() -> None:
    calls: list[tuple[str, int, int]] = []
    store = store_of(*[TWO[0]] * 700)
    build_rows(store, pairs(6, dupe_factor=2), 0, cache=False, progress=lambda *call: calls.append(call))
    assert calls == [("pairing sentences", done, 1400) for done in (1024, 1400)]


def test_segment_pairs_that_are_cut_are_counted() -> None:
    store = store_of(*random_documents(3, count=40))
    long, short = (rows_of(store, pairs(length, 0.0)) for length in (6, 10**4))
    ((what, counts),) = long.left_out.items()
    assert what == "segment pairs cut to 6 tokens"
    # A pair that was cut fills its row; others may do so by chance.
    assert 0 < counts["count"] <= sum(len(row["tokens"]) == 6 for row in read(long)) < counts["of"] == len(long)
    assert short.left_out == {}


def test_packed_documents_are_cut_into_pieces_and_nothing_is_left_out() -> None:
    rows = rows_of(store_of(*TWO), objective("packed", 3))
    assert sum(len(row["tokens"]) for row in read(rows)) == 7 and rows.left_out == {}


# Rarity.


def test_rarity_is_the_smoothed_frequency_in_the_whole_store() -> None:
    store = store_of([[1, 2, 2, 3]], [[2, 3, 2]])  # 1 once, 2 four times, 3 twice
    first, second = (rows_of(store, objective("windows", 4, SEPARATOR, frequency_smoothing=0.5))[n] for n in (0, 1))
    np.testing.assert_allclose(first["rarity"], [1, 4**-0.5, 4**-0.5, 2**-0.5])
    # The separator is not of the store, and the largest of all ids.
    assert second["tokens"].tolist() == [SEPARATOR, 2, 3, 2]
    np.testing.assert_allclose(second["rarity"], [1, 4**-0.5, 2**-0.5, 4**-0.5])
    assert "rarity" not in rows_of(store, objective("windows", 4, SEPARATOR, frequency_smoothing=0.0))[0]


def test_rarity_is_kept_with_the_index(tmp_path: Path) -> None:
    store, wanted = store_of(*random_documents(8), path=tmp_path), objective("windows", 6, frequency_smoothing=0.7)
    made, kept = (build_rows(store, wanted, 0) for _ in range(2))
    assert kept.index.keys() == made.index.keys() and read(kept) == read(made)
    assert len(kept) == len(made) == len(rows_of(store, objective("windows", 6)))


# The index on disk, and what all kinds share.

KINDS = [
    objective("windows", 6, SEPARATOR),
    objective("packed", 6, SEPARATOR),
    pairs(6),
    texts(40, 50),
    objective("windows", 6, SEPARATOR, dupe_factor=2, frequency_smoothing=0.7),
]
# What a row has beside tokens, segments and starts of sentences.
MORE = {"segment_pairs": {"boundary": int, "label": int}, "pairs": {"is_target": bool}}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.row_settings["rows"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_all_kinds_are_tested() -> None:
    assert {kind.row_settings["rows"] for kind in KINDS} == set(module.KINDS)


def test_a_row_has_the_types_that_objectives_read(kind: Any) -> None:
    settings = kind.row_settings
    row = rows_of(store_of(*random_documents(8)), kind, seed=3)[1]
    types = {name: value.dtype if isinstance(value, np.ndarray) else type(value) for name, value in row.items()}
    expected = {"tokens": np.int32, "segment_ids": np.int32, "sentence_starts": bool, "number": int, "seed": int}
    rarity = {"rarity": np.float64} if "frequency_smoothing" in settings else {}
    assert types == expected | MORE.get(settings["rows"], {}) | rarity
    assert (row["number"], row["seed"]) == (1, 3)
    assert {len(value) for value in row.values() if isinstance(value, np.ndarray)} == {len(row["tokens"])}


def test_the_index_is_made_once_and_read_again(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(*random_documents(8), path=tmp_path)
    first = read(build_rows(store, kind, 0))
    assert first == read(rows_of(store, kind))
    name = kind.row_settings["rows"]
    monkeypatch.setitem(module.KINDS, name, (lambda *_: pytest.fail("made again"), *module.KINDS[name][1:]))
    assert read(build_rows(store, kind, 0)) == first
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npz"]


def test_other_settings_stores_and_seeds_have_their_own_index(tmp_path: Path) -> None:
    store = store_of(*random_documents(8), path=tmp_path)
    for wanted in (*KINDS, objective("windows", 7, SEPARATOR), objective("windows", 6), pairs(6, dupe_factor=2)):
        assert read(build_rows(store, wanted, 0)) == read(rows_of(store, wanted))
    assert read(build_rows(store, KINDS[2], 1)) == read(rows_of(store, KINDS[2], 1)) != read(rows_of(store, KINDS[2]))
    build_rows(store, KINDS[0], 1)  # windows draw nothing: another seed needs no other index
    build_rows(dataclasses.replace(store, fingerprint="another"), KINDS[0], 0)
    assert len(list(tmp_path.glob("*.npz"))) == 10


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_a_damaged_index_is_made_again_and_that_is_said(suffix: str, kind: Any, tmp_path: Path) -> None:
    store, notes = store_of(*random_documents(8), path=tmp_path), []
    expected = read(build_rows(store, kind, 0))
    (path,) = tmp_path.glob(f"*{suffix}")
    whole = path.read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 15))
    flipped = [whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1 :] for n in places]
    for damaged in (b"", whole[:-2], whole[: len(whole) // 2], b"PK" + b"\0" * 50, *flipped):
        path.write_bytes(damaged)
        assert read(build_rows(store, kind, 0, note=notes.append)) == expected
        assert len(notes) == 1 and str(path) in notes.pop() and path.read_bytes() == whole


@pytest.mark.parametrize("suffix", [".npz", ".json"])
def test_every_flipped_byte_of_an_index_is_noticed(suffix: str, tmp_path: Path) -> None:
    store, notes = store_of(*TWO, path=tmp_path), []
    expected = read(build_rows(store, objective("windows", 3), 0))
    (path,) = tmp_path.glob(f"*{suffix}")
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        rows = build_rows(store, objective("windows", 3), 0, note=notes.append)
        assert read(rows) == expected and rows.left_out == {REMAINDER: {"count": 1, "of": 7}}
        assert len(notes) == 1 and notes.pop().startswith(str(path))


def test_a_store_without_text_is_refused(kind: Any) -> None:
    with pytest.raises(UserError, match="there is no text in this split") as caught:
        rows_of(store_of([], []), kind)
    assert len(str(caught.value).splitlines()) == 1
