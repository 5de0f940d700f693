"""From rows to global batches with Grain: a pure function of (config, step), whatever the number of hosts or workers.

Row j of the batch of step n is example g = n * batch_size + j of an endless, shuffled sequence; what the objective
draws for it comes from an rng of (seed, g). So the data position of a run is its step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from jaxformer.data.left_out import LeftOut

Batch = dict[str, np.ndarray]
Transform = Callable[[Any, np.random.Generator], Mapping[str, np.ndarray]]


class Member(NamedTuple):
    """Where a share of a run's examples comes from: rows, and what makes arrays of one."""

    rows: Any
    transform: Transform
    weight: float = 1.0
    name: str = ""
    left_out: Mapping[str, LeftOut] = {}  # by the store, or the row index, that it was counted for


class _Numbers(grain.MapDataset):
    """(member, number) of each of its rows."""

    def __init__(self, member: int, count: int) -> None:
        super().__init__()
        self._member, self._count = member, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return self._member, index % self._count


class _Batched(grain.MapDataset):
    """The batches of one process: the rows of each global batch that its devices hold. One step for the whole batch:
    Grain's own, one behind the other for each example, would take longer than what they do."""

    def __init__(
        self, members: Sequence[Member], drawn: grain.MapDataset, seed: int, batch_size: int, rows: Sequence[int],
        first_example: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self._members = [(member.rows, member.transform) for member in members]
        self._drawn, self._seed = drawn, seed
        self._size, self._rows, self._first = batch_size, rows, first_example

    def __len__(self) -> int:
        return (len(self._drawn) - self._first) // self._size

    def __getitem__(self, index: Any) -> Any:
        examples = []
        rng = np.random.Generator(np.random.Philox(self._seed))
        state: Any = rng.bit_generator.state
        for row in self._rows:
            number = self._first + index * self._size + row
            member, place = self._drawn[number]
            rows, transform = self._members[member]
            # That of Grain's random map: one generator, whose counter says which example it draws for.
            state["state"]["counter"][:] = 0, 0, 0, number
            rng.bit_generator.state = state
            examples.append(transform(rows[place], rng))
        return _stacked(examples)


def train_batches(
    members: Sequence[Member],
    *,
    seed: int,
    batch_size: int,
    first_example: int = 0,
    rows: Sequence[int] | None = None,
    workers: int = 0,
) -> "Batches":
    """Return an endless iterator over batches from example `first_example` on: of each, the rows (None: all) of this
    process.

    Each member is shuffled anew every epoch; several are mixed by their weights.
    """
    shuffled = [
        _Numbers(number, len(member.rows)).shuffle(seed=seed + number).repeat() for number, member in enumerate(members)
    ]
    weights = [member.weight for member in members]
    drawn = shuffled[0] if len(shuffled) == 1 else grain.MapDataset.mix(shuffled, weights)
    dataset = _Batched(members, drawn, seed, batch_size, range(batch_size) if rows is None else rows, first_example)
    # One thread: batches are made while the device computes, and more would take its cores on a CPU.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's worker processes insist on parsed absl flags
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return Batches(iter(iterable))


def _stacked(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: (_stacked if isinstance(value, Mapping) else np.stack)([example[name] for example in examples])
        for name, value in examples[0].items()
    }


class Batches:
    """An iterator over batches that can be closed: threads and worker processes end with it."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def evaluated(count: int, limit: int, seed: int) -> Sequence[int]:
    """Return the numbers of the rows, or examples, that are evaluated, of `count`: all, or `limit` (0: all) drawn by
    the seed."""
    if not 0 < limit < count:
        return range(count)
    return np.sort(np.random.default_rng([seed, count]).choice(count, limit, replace=False, shuffle=False)).tolist()


def evaluation_batches(
    rows: Any,
    transform: Transform,
    chosen: Sequence[int],
    *,
    seed: int,
    batch_size: int,
    own: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yield batches of the `chosen` rows, by their numbers, in order, the same at every call: of each, the places `own`
    (None: all) of this process.

    The last batch is filled with copies of its last row whose weights are 0; their segments stay, so that no softmax is
    empty. Every process yields the same number of batches.
    """
    count = len(chosen)
    for first in range(0, count, batch_size):
        examples = []
        for place in range(batch_size) if own is None else own:
            number = first + place
            real = int(chosen[min(number, count - 1)])
            example = dict(transform(rows[real], np.random.default_rng([seed, real])))
            if number >= count:
                weights = [name for name in example if name == "weights" or name.endswith("_weights")]
                example |= {name: np.zeros_like(example[name]) for name in weights}
            examples.append(example)
        yield {name: np.stack([example[name] for example in examples]) for name in examples[0]}
