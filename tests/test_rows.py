"""The row index: windows, packed rows, segment pairs and pairs of texts, beside slow and plain ways to them."""

import dataclasses
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import store_of

from jaxformer.data import rows as module
from jaxformer.data.rows import Row, Rows, build_rows
from jaxformer.data.store import Store
from jaxformer.errors import EmptySplit, UserError

SEPARATOR = 999


def objective(kind: str, row_length: int, separator: int | None = None, **settings: Any) -> Any:
    return SimpleNamespace(row_settings={"rows": kind, "row_length": row_length, "separator": separator} | settings)


def pairs(row_length: int, short: float = 0.1, dupe_factor: int = 1) -> Any:
    keys = {"short_sequence_probability": short, "dupe_factor": dupe_factor}
    return objective("segment_pairs", row_length, None, **keys)


def texts(source: int, target: int, pack: bool = True) -> Any:
    settings = {"rows": "pairs", "lengths": [source, target], "ends": 1, "pack": pack}
    return SimpleNamespace(row_settings=settings)


def rows_of(store: Store, wanted: Any, seed: int = 0) -> Rows:
    return build_rows(store, wanted, seed, cache=False)


def plain(row: Row) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()}


def read(rows: Rows) -> list[dict[str, Any]]:
    """Return the rows without what only says which they are."""
    found = [plain(rows[number]) for number in range(len(rows))]
    assert [row.pop("number") for row in found] == list(range(len(rows)))
    assert {row.pop("seed") for row in found} <= {rows.seed}
    return found


def random_documents(seed: int, count: int = 12, sentences: int = 6, length: int = 9) -> list[list[list[int]]]:
    """Documents whose tokens count up from 1, so that a token tells its place: token t stands at t - 1."""
    rng, documents, token = random.Random(seed), [], 1
    for _ in range(count):
        document = []
        for _ in range(rng.randint(1, sentences)):
            size = rng.randint(1, length)
            document.append(list(range(token, token + size)))
            token += size
        documents.append(document)
    return documents


TWO = ([[1, 2], [3]], [[4, 5, 6, 7]])


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


# Segment pairs, beside a plain reading of the description of the algorithm.


def slow_truncated(first: list[int], second: list[int], longest: int, rng: random.Random) -> None:
    while len(first) + len(second) > longest:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)


def slow_pairs(
    documents: list[list[list[int]]], longest: int, short: float, rng: random.Random
) -> list[tuple[list[int], list[int], int]]:
    """One pass over all documents: the (A, B, label) of each."""
    found = []
    for number, document in enumerate(documents):
        target = rng.randint(2, longest) if rng.random() < short else longest
        chunk: list[list[int]] = []
        place = 0
        while place < len(document):
            chunk.append(document[place])
            if place == len(document) - 1 or sum(map(len, chunk)) >= target:
                split = rng.randint(1, len(chunk) - 1) if len(chunk) > 1 else 1
                first = [token for sentence in chunk[:split] for token in sentence]
                if len(chunk) == 1 or rng.random() < 0.5:
                    label, wanted, second = 1, target - len(first), []
                    for _ in range(10):
                        other = rng.randrange(len(documents))
                        if other != number:
                            break
                    for sentence in documents[other][rng.randrange(len(documents[other])) :]:
                        second += sentence
                        if len(second) >= wanted:
                            break
                    place -= len(chunk) - split
                else:
                    label, second = 0, [token for sentence in chunk[split:] for token in sentence]
                slow_truncated(first, second, longest, rng)
                found.append((first, second, label))
                chunk = []
            place += 1
    return found


def sides(row: Row) -> tuple[list[int], list[int], int]:
    tokens = row["tokens"].tolist()
    return tokens[: row["boundary"]], tokens[row["boundary"] :], row["label"]


def statistics(found: list[tuple[list[int], list[int], int]]) -> dict[str, tuple[float, float]]:
    """Means over pairs and their standard errors."""
    values = {
        "label": [label for _, _, label in found],
        "length of A": [len(first) for first, _, _ in found],
        "length of B": [len(second) for _, second, _ in found],
        "length of a random B": [len(second) for _, second, label in found if label],
        "length of a true B": [len(second) for _, second, label in found if not label],
        "first token": [first[0] for first, _, _ in found],
        "squared length": [(len(first) + len(second)) ** 2 for first, second, _ in found],
    }
    return {name: (float(np.mean(each)), float(np.std(each) / np.sqrt(len(each)))) for name, each in values.items()}


@pytest.mark.parametrize(("longest", "short"), [(24, 0.0), (24, 0.1), (24, 0.9), (8, 0.3)])
def test_segment_pairs_are_as_many_and_as_long_as_the_plain_way_gives(longest: int, short: float) -> None:
    documents, passes = random_documents(3, count=30, sentences=12), 60
    rng = random.Random(0)
    expected = [pair for _ in range(passes) for pair in slow_pairs(documents, longest, short, rng)]
    rows = rows_of(store_of(*documents), pairs(longest, short, passes))
    found = [sides(rows[number]) for number in range(len(rows))]
    assert len(found) == pytest.approx(len(expected), rel=0.04)
    wanted = statistics(expected)
    for name, (mean, error) in statistics(found).items():
        # Pairs of one document and pass are not independent: their errors are larger than those of so many draws.
        assert abs(mean - wanted[name][0]) < 6 * np.hypot(error, wanted[name][1]), name


@pytest.mark.parametrize("seed", range(3))
def test_invariants_of_segment_pairs(seed: int) -> None:
    documents = random_documents(seed, count=15, sentences=10)
    document_of = {token: n for n, document in enumerate(documents) for sentence in document for token in sentence}
    rows = rows_of(store_of(*documents), pairs(20, dupe_factor=10), seed)
    for number in range(len(rows)):
        first, second, label = sides(rows[number])
        assert first and second and len(first) + len(second) <= 20
        for side in (first, second):  # one run of one document
            assert side == list(range(side[0], side[0] + len(side)))
            assert document_of[side[0]] == document_of[side[-1]]
        assert (document_of[first[0]] == document_of[second[0]]) == (label == 0)
        assert label == 1 or second[0] > first[-1]


def test_a_pair_that_was_not_cut_is_contiguous_sentences() -> None:
    documents = random_documents(5, count=15, sentences=10)
    begins = {sentence[0] for document in documents for sentence in document}
    rows = rows_of(store_of(*documents), pairs(60, short=0.0, dupe_factor=5))
    contiguous = 0
    for number in range(len(rows)):
        first, second, label = sides(rows[number])
        if len(first) + len(second) < 60 and not label:
            contiguous += 1
            assert second[0] == first[-1] + 1
            assert first[0] in begins and second[0] in begins
    assert contiguous > 20


def test_the_sentence_starts_of_a_pair_are_those_of_its_tokens() -> None:
    documents = random_documents(6)
    begins = {sentence[0] for document in documents for sentence in document}
    rows = rows_of(store_of(*documents), pairs(12, dupe_factor=4))
    for row in (rows[number] for number in range(len(rows))):
        assert row["sentence_starts"].tolist() == [token in begins for token in row["tokens"].tolist()]
        assert row["segment_ids"].tolist() == [1] * len(row["tokens"])


def test_a_little_more_than_half_of_the_pairs_are_random() -> None:
    documents = [[[10 * document + sentence] * 5 for sentence in range(40)] for document in range(20)]
    rows = rows_of(store_of(*documents), pairs(30, dupe_factor=20))
    label = rows.index["label"]
    share, error = label.mean(), np.sqrt(0.25 / len(label))
    # What is over comes from the last sentence of a document, which, left alone, is always random.
    assert 0.5 + 2 * error < share < 0.56


def test_a_single_sentence_is_always_followed_by_a_random_one() -> None:
    rows = rows_of(store_of([[1, 2]], [[3, 4]], [[5, 6]]), pairs(4, dupe_factor=50))
    assert rows.index["label"].all()
    followers = {first[0]: set() for first in ([1], [3], [5])}
    for first, second, _ in (sides(rows[number]) for number in range(len(rows))):
        followers[first[0]].add(second[0])
    assert followers == {1: {3, 5}, 3: {1, 5}, 5: {1, 3}}


def test_the_only_document_gives_its_own_random_followers() -> None:
    rows = rows_of(store_of([[1], [2], [3], [4]]), pairs(2, dupe_factor=20))
    assert 0 < rows.index["label"].mean() < 1
    assert {token for number in range(len(rows)) for token in rows[number]["tokens"].tolist()} == {1, 2, 3, 4}


def test_sentences_that_a_random_pair_did_not_use_begin_the_next() -> None:
    documents = [[[10 * document + sentence] for sentence in range(8)] for document in range(1, 4)]
    rows = rows_of(store_of(*documents), pairs(4, short=0.0))
    found = [sides(rows[number]) for number in range(len(rows))]
    for (first, second, label), (following, _, _) in zip(found[:-1], found[1:], strict=True):
        if following[0] // 10 == first[0] // 10:
            assert following[0] == (first if label else second)[-1] + 1


def test_each_pass_pairs_anew_and_each_document_has_its_own_draws() -> None:
    documents = random_documents(7, count=8)

    def of(found: Rows, document: list[list[int]]) -> list[Any]:
        tokens = {token for sentence in document for token in sentence}
        return [row for row in read(found) if row["tokens"][0] in tokens]

    once, twice = (rows_of(store_of(*documents), pairs(12, dupe_factor=count)) for count in (1, 2))
    assert read(twice)[: len(once)] == read(once)
    assert read(twice)[len(once) :] != read(once)
    other = rows_of(store_of(*documents), pairs(12), seed=1)
    assert read(other) != read(once)
    longer = [
        *documents[:-1],
        documents[-1] + [[SEPARATOR]],
    ]  # the last document changes; what begins with others stays
    again = rows_of(store_of(*longer), pairs(12))
    labels = [[row["label"] for row in of(rows, documents[0])] for rows in (once, again)]
    assert labels[0] == labels[1]


def test_documents_of_one_shape_are_not_paired_alike() -> None:
    documents = [[[100 * document + sentence] for sentence in range(20)] for document in range(6)]
    rows = rows_of(store_of(*documents), pairs(5))
    labels: dict[int, list[int]] = {}
    for number in range(len(rows)):
        first, _, label = sides(rows[number])
        labels.setdefault(first[0] // 100, []).append(label)
    assert len(set(map(tuple, labels.values()))) > 3


def test_cutting_takes_from_the_longer_side_and_from_both_ends() -> None:
    cuts = [module._truncated(0, 9, 100, 3, 6, np.random.default_rng(seed)) for seed in range(400)]
    assert {(a_length, b_length) for _, a_length, _, b_length in cuts} == {(3, 3)}
    assert {b_start for _, _, b_start, _ in cuts} == {100}
    front = np.array([a_start for a_start, _, _, _ in cuts])
    assert front.min() == 0 and front.max() == 6 and abs(front.mean() - 3) < 0.3
    odd = [module._truncated(0, 5, 100, 5, 7, np.random.default_rng(seed)) for seed in range(50)]
    assert {(a_length, b_length) for _, a_length, _, b_length in odd} == {(4, 3)}  # B is cut first on a tie


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
    for store, limits in ((store_of(*THREE), (2, 2)), (store_of([[1]], [], [], [[2]]), (9, 9))):
        message = f"no pair of texts in this split has both sides and fits into {limits[0] - 1} and {limits[1] - 1}"
        with pytest.raises(EmptySplit, match=message) as caught:
            rows_of(store, texts(*limits))
        assert len(str(caught.value).splitlines()) == 1


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
    assert len(list(tmp_path.iterdir())) == 1


def test_other_settings_stores_and_seeds_have_their_own_index(tmp_path: Path) -> None:
    store = store_of(*random_documents(8), path=tmp_path)
    for wanted in (*KINDS, objective("windows", 7, SEPARATOR), objective("windows", 6), pairs(6, dupe_factor=2)):
        assert read(build_rows(store, wanted, 0)) == read(rows_of(store, wanted))
    assert read(build_rows(store, KINDS[2], 1)) == read(rows_of(store, KINDS[2], 1)) != read(rows_of(store, KINDS[2]))
    build_rows(store, KINDS[0], 1)  # windows draw nothing: another seed needs no other index
    build_rows(dataclasses.replace(store, fingerprint="another"), KINDS[0], 0)
    assert len(list(tmp_path.iterdir())) == 10


def test_a_damaged_index_is_made_again(kind: Any, tmp_path: Path) -> None:
    store = store_of(*random_documents(8), path=tmp_path)
    expected = read(build_rows(store, kind, 0))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    places = range(0, len(whole), max(1, len(whole) // 60))
    flipped = [whole[:n] + bytes([whole[n] ^ 0xFF]) + whole[n + 1 :] for n in places]
    for damaged in (b"", whole[:-1], whole[: len(whole) // 2], b"PK" + b"\0" * 50, *flipped):
        path.write_bytes(damaged)
        assert read(build_rows(store, kind, 0)) == expected


def test_every_flipped_byte_of_an_index_is_survived(tmp_path: Path) -> None:
    store = store_of(*TWO, path=tmp_path)
    expected = read(build_rows(store, objective("windows", 3), 0))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert read(build_rows(store, objective("windows", 3), 0)) == expected


def test_a_store_without_text_is_refused(kind: Any) -> None:
    with pytest.raises(UserError, match="there is no text in this split") as caught:
        rows_of(store_of([], []), kind)
    assert len(str(caught.value).splitlines()) == 1
