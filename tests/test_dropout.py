"""What dropout keeps: as often as it should, and nothing that tells of another entry."""

import jax
import numpy as np
import pytest

from jaxformer.models.dropout import kept

SIZE = 400


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_entries_are_dropped_at_the_rate_in_every_row_and_column(rate: float) -> None:
    dropped = 1.0 - np.asarray(kept(jax.random.key(1), rate, (SIZE, SIZE)), float)
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(dropped.mean() - rate) < 4 * deviation / SIZE
    for axis in (0, 1):  # means of rows scatter as those of independent entries do
        scatter = dropped.mean(axis).std() * SIZE**0.5 / deviation
        assert 0.85 < scatter < 1.15


def test_entries_know_nothing_of_their_neighbours_nor_of_other_rngs() -> None:
    keys = [jax.random.key(0), jax.random.key(1), *jax.random.split(jax.random.key(0))]
    masks = [np.asarray(kept(key, 0.3, (SIZE, SIZE)), float) for key in keys]
    pairs = [(masks[0][:, :-shift], masks[0][:, shift:]) for shift in (1, 2, 64)]
    pairs += [(masks[0][:-1], masks[0][1:])]
    pairs += [(one, other) for number, one in enumerate(masks) for other in masks[:number]]
    for one, other in pairs:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / SIZE


def test_one_rng_keeps_the_same_entries_in_any_program() -> None:
    key = jax.random.key(5)
    eager = kept(key, 0.2, (3, 5, 7))
    assert np.array_equal(eager, jax.jit(lambda key: kept(key, 0.2, (3, 5, 7)))(key))
    assert not np.array_equal(eager, kept(jax.random.key(6), 0.2, (3, 5, 7)))
