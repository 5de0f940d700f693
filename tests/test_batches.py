"""Batches: the global batch of a step is one function of (seed, step), however many processes and workers make it."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from jaxformer.data.batches import Batch, Batches, Member, evaluated, evaluation_batches, train_batches


class Numbers:
    """Rows that are numbers from `first` on, and a count of how often each was read."""

    def __init__(self, count: int, first: int = 0) -> None:
        self.count, self.first, self.reads = count, first, [0] * count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> int:
        self.reads[number] += 1
        return self.first + int(number)


def drawn(row: int, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """An objective: the row beside what its rng draws, in the arrays that evaluation knows."""
    return {
        "inputs": np.array([row, row], np.int32),
        "segment_ids": np.ones(2, np.int32),
        "weights": np.ones(2, np.float32),
        "draw": rng.integers(2**30, size=2),
        "label_weights": np.array(1, np.float32),
    }


def taken(batches: Batches, count: int) -> list[Batch]:
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def train(count: int, number: int = 100, batch_size: int = 8, seed: int = 5, **keys: Any) -> list[Batch]:
    return taken(train_batches([Member(Numbers(number), drawn)], seed=seed, batch_size=batch_size, **keys), count)


def share(index: int, processes: int, batch_size: int = 8) -> range:
    """The rows of each global batch that a process holds."""
    size = batch_size // processes
    return range(index * size, (index + 1) * size)


def joined(parts: list[list[Batch]]) -> list[Batch]:
    """Put the parts of several processes together, batch by batch."""
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def flat(batches: list[Batch], name: str = "inputs") -> list[int]:
    """Return the first number of each example, in order."""
    return [int(value) for batch in batches for value in batch[name].reshape(len(batch[name]), -1)[:, 0]]


# Training.


def test_a_batch_stacks_the_arrays_of_its_examples() -> None:
    (batch,) = train(1)
    shapes = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert shapes["inputs"] == ((8, 2), np.int32) and shapes["label_weights"] == ((8,), np.float32)


def test_a_batch_may_be_of_one_example() -> None:
    one, four = train(8, batch_size=1), train(2, batch_size=4)
    assert one[0]["inputs"].shape == (1, 2) and one[0]["label_weights"].shape == (1,)
    assert flat(one) == flat(four) and flat(one, "draw") == flat(four, "draw")
    parts = [train(3, batch_size=2, rows=share(index, 2, 2)) for index in range(2)]
    assert_equal(joined(parts), train(3, batch_size=2))
    assert_equal(train(2, batch_size=1, first_example=3), train(5, batch_size=1)[3:])


def test_the_same_seed_gives_the_same_batches_and_another_does_not() -> None:
    first = train(9)
    assert_equal(train(9), first)
    other = train(9, seed=6)
    assert flat(other) != flat(first) and flat(other, "draw") != flat(first, "draw")


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_processes(processes: int) -> None:
    parts = [train(7, rows=share(index, processes)) for index in range(processes)]
    assert {len(batch["inputs"]) for part in parts for batch in part} == {8 // processes}
    assert_equal(joined(parts), train(7))


def test_a_process_reads_only_its_own_rows() -> None:
    rows = Numbers(64)
    batches = train_batches([Member(rows, drawn)], seed=0, batch_size=8, rows=share(1, 4))
    assert set(flat(taken(batches, 5))) <= {number for number, reads in enumerate(rows.reads) if reads}
    assert sum(rows.reads) <= 2 * (5 + 4)  # a few batches are made ahead


@pytest.mark.parametrize("start", [1, 3, 11])
@pytest.mark.parametrize("processes", [1, 2])
def test_starting_at_a_step_gives_what_an_unbroken_run_has_there(start: int, processes: int) -> None:
    own = share(processes - 1, processes)
    assert_equal(train(4, first_example=8 * start, rows=own), train(start + 4, rows=own)[start:])


@pytest.mark.slow
@pytest.mark.parametrize("start", [pytest.param(0, marks=pytest.mark.full), 3])
def test_worker_processes_make_the_same_batches(start: int) -> None:
    assert_equal(train(8, first_example=8 * start, workers=2), train(8, first_example=8 * start))


def test_each_epoch_is_another_permutation_of_all_rows() -> None:
    numbers = flat(train(45, number=72))
    epochs = [numbers[start : start + 72] for start in range(0, len(numbers), 72)]
    assert len(epochs) == len(set(map(tuple, epochs))) == 5
    for epoch in epochs:
        assert sorted(epoch) == list(range(72)) != epoch


def test_an_epoch_may_end_inside_a_batch() -> None:
    numbers = flat(train(26, number=51))
    for start in range(0, 204, 51):
        assert sorted(numbers[start : start + 51]) == list(range(51))


def test_draws_are_new_for_every_example_of_every_epoch() -> None:
    draws = flat(train(40, number=50), "draw")
    assert len(set(draws)) == len(draws) == 320


def test_draws_belong_to_the_place_of_an_example_and_not_to_its_row() -> None:
    few, many = train(5, number=60), train(5, number=1000)
    assert flat(few) != flat(many)
    assert flat(few, "draw") == flat(many, "draw")


def mixed(count: int, weights: list[float], sizes: list[int], **keys: Any) -> list[Batch]:
    firsts = range(0, 1000 * len(sizes), 1000)
    members = [
        Member(Numbers(*each), drawn, weight)
        for each, weight in zip(zip(sizes, firsts, strict=True), weights, strict=True)
    ]
    return taken(train_batches(members, seed=1, batch_size=8, **keys), count)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 1.0], [0.2, 0.5, 0.3]])
def test_a_mixture_follows_its_weights_from_the_start(weights: list[float]) -> None:
    numbers = np.array(flat(mixed(25, weights, [100, 400, 200][: len(weights)]))) // 1000
    for count in (20, 100, 200):
        shares = np.bincount(numbers[:count], minlength=len(weights)) / count
        np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=2 / count)


def test_each_member_of_a_mixture_goes_through_its_own_epochs() -> None:
    numbers = flat(mixed(30, [1.0, 3.0], [25, 75]))
    first, second = ([number for number in numbers if number // 1000 == member] for member in (0, 1))
    assert sorted(first[:25]) == sorted(first[25:50]) == list(range(25))
    assert sorted(second[:75]) == sorted(second[75:150]) == list(range(1000, 1075))
    assert first[:25] != first[25:50]


def test_members_of_one_size_are_not_shuffled_alike() -> None:
    numbers = flat(mixed(20, [1.0, 1.0], [30, 30]))
    first, second = ([number % 1000 for number in numbers if number // 1000 == member] for member in (0, 1))
    assert first[:30] != second[:30]


def test_a_mixture_too_is_the_same_for_any_number_of_processes() -> None:
    sizes, weights = [100, 40], [2.0, 1.0]
    parts = [mixed(6, weights, sizes, rows=share(index, 2), first_example=16) for index in range(2)]
    assert_equal(joined(parts), mixed(8, weights, sizes)[2:])


def test_rows_need_not_stand_side_by_side() -> None:
    """A mesh may put devices of one host anywhere."""
    whole = train(3)
    (part,) = [train(3, rows=[1, 6])]
    assert_equal(part, [{name: array[[1, 6]] for name, array in batch.items()} for batch in whole])


def test_batches_of_another_size_go_on_with_the_next_examples() -> None:
    """As a batch-size ramp does: the examples are those of one sequence."""
    assert flat(train(3, batch_size=4)) + flat(train(2, batch_size=8, first_example=12)) == flat(train(7, batch_size=4))


# Evaluation.


def evaluate(rows: Numbers, batch_size: int = 8, limit: int = 0, **keys: Any) -> list[Batch]:
    chosen = evaluated(len(rows), limit, seed=5)
    return list(evaluation_batches(rows, drawn, chosen, seed=5, batch_size=batch_size, **keys))


def counted(batches: list[Batch], name: str = "inputs") -> list[int]:
    """Return the first number of each example that counts."""
    kept = [int(weight) for batch in batches for weight in batch["label_weights"]]
    return [value for value, weight in zip(flat(batches, name), kept, strict=True) if weight]


@pytest.mark.parametrize(
    ("count", "limit", "real", "steps"), [(20, 0, 20, 3), (16, 0, 16, 2), (3, 0, 3, 1), (20, 9, 9, 2), (20, 99, 20, 3)]
)
def test_evaluation_reads_each_row_once_and_in_order(count: int, limit: int, real: int, steps: int) -> None:
    batches = evaluate(Numbers(count), limit=limit)
    assert counted(batches) == list(evaluated(count, limit, seed=5)) and len(counted(batches)) == real
    assert [len(batch["inputs"]) for batch in batches] == [8] * steps


def test_what_fills_the_last_batch_has_no_weight_but_segments() -> None:
    last = evaluate(Numbers(11))[-1]
    np.testing.assert_array_equal(last["weights"], [[1, 1]] * 3 + [[0, 0]] * 5)
    np.testing.assert_array_equal(last["label_weights"], [1] * 3 + [0] * 5)
    assert last["segment_ids"].all()
    assert last["inputs"][3:].tolist() == [[10, 10]] * 5
    assert (last["draw"][3:] == last["draw"][2]).all()  # copies, with the same draws


def test_evaluation_is_the_same_at_every_call_and_in_every_batch_size() -> None:
    rows = Numbers(20)
    assert_equal(evaluate(rows), evaluate(rows))
    assert counted(evaluate(rows), "draw") == counted(evaluate(rows, batch_size=4), "draw")
    assert len(set(counted(evaluate(rows), "draw"))) == 20


@pytest.mark.parametrize("count", [1, 7, 16, 19])
@pytest.mark.parametrize("processes", [2, 4])
def test_every_process_evaluates_as_many_batches(count: int, processes: int) -> None:
    parts = [evaluate(Numbers(count), own=share(index, processes)) for index in range(processes)]
    assert len({len(part) for part in parts}) == 1
    assert_equal(joined(parts), evaluate(Numbers(count)))


def test_no_rows_give_no_batches() -> None:
    assert evaluate(Numbers(0)) == []
