"""Rows of many lengths as batches of few shapes: what is read at a time, in which order it is computed, how far it is
padded. None of it changes an answer beyond rounding."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

WINDOW = 8  # batches whose rows are sorted by length together; results leave in the order of the rows
Item = TypeVar("Item")


def windows(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Yield items in their order, as many at a time as are sorted together."""
    iterator = iter(items)
    while window := list(itertools.islice(iterator, WINDOW * batch_size)):
        yield window


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the numbers of rows, of about one length in each batch, the longest first: what is too large for the memory
    shows at once."""
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist()
    yield from (order[first : first + batch_size] for first in range(0, len(order), batch_size))


def rounded_up(length: int, least: int, most: int) -> int:
    """Return `length`, which is no more than `most`, rounded up to `least` times a power of two, or to `most`."""
    size = least
    while size < length:
        size *= 2
    return min(size, most)
