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


class _Numbered:
    """Rows that say which member they belong to."""

    def __init__(self, rows: Any, member: int) -> None:
        self.rows, self.member = rows, member

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[int, Any]:
        return self.member, self.rows[number]


class _Draw(grain.transforms.RandomMap):
    """Applies the objective or task of the row's member, with the rng of the example's number."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = transforms

    def random_map(self, element: tuple[int, Any], rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        member, row = element
        return self.transforms[member](row, rng)


class _Own(grain.MapDataset):
    """The examples of one process: the rows of each global batch that its devices hold."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: Sequence[int], first_example: int) -> None:
        super().__init__(parent)
        self._size, self._rows, self._first = batch_size, rows, first_example

    def __len__(self) -> int:
        return (len(self._parent) - self._first) // self._size * len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        batch, place = divmod(index, len(self._rows))
        return self._parent[self._first + batch * self._size + self._rows[place]]


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
        grain.MapDataset.source(_Numbered(member.rows, number)).shuffle(seed=seed + number).repeat()
        for number, member in enumerate(members)
    ]
    weights = [member.weight for member in members]
    dataset = shuffled[0] if len(shuffled) == 1 else grain.MapDataset.mix(shuffled, weights)
    dataset = dataset.random_map(_Draw([member.transform for member in members]), seed=seed)
    # Sliced after the random map: slicing before would change the draws.
    rows = range(batch_size) if rows is None else rows
    dataset = _Own(dataset, batch_size, rows, first_example)
    # Grain cannot count the batches of one of an endless dataset.
    dataset = dataset.batch(len(rows)) if len(rows) > 1 else dataset.map(_alone)
    # One thread: batches are made while the device computes, and more would take its cores on a CPU.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    iterable = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's worker processes insist on parsed absl flags
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return Batches(iter(iterable))


def _alone(example: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _alone(value) if isinstance(value, Mapping) else np.asarray(value)[None]
        for name, value in example.items()
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
