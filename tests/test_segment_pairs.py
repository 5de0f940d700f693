"""BERT's segment pairs, beside a plain reading of the description of the algorithm."""

import random
from typing import Any

import numpy as np
import pytest
from cases import store_of
from indexed import SEPARATOR, pairs, random_documents, read, rows_of

from jaxformer.data import rows as module
from jaxformer.data.rows import Row, Rows


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
    # The last document changes; what begins with others stays.
    longer = [*documents[:-1], [*documents[-1], [SEPARATOR]]]
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
