"""Stops and choices as automata: every table against reading the texts themselves."""

import itertools

import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.generation.automata import NOT_ALLOWED, choice_table, stop_table

PIECES = ["a", "b", "ab", "ba", "aab", "", "é", "\n", " a", "b\n\n", "xyz"]


def run(table: np.ndarray, ids: tuple[int, ...]) -> int:
    state = 0
    for number in ids:
        state = int(table[state, number])
    return state


@pytest.mark.parametrize(
    "stops", [("ab",), ("aa", "ba"), ("aabab",), ("\n\n",), ("b", "abab"), ("é",), ("a a", "ab\n"), ("zz", "never")]
)
def test_a_stop_is_seen_as_soon_as_it_is_written(stops: tuple[str, ...]) -> None:
    """Of all sequences of four pieces: whatever the tokens in which it begins and ends."""
    table = stop_table(stops, PIECES)
    seen = 0
    for ids in itertools.product(range(len(PIECES)), repeat=4):
        text = "".join(PIECES[number] for number in ids)
        found = any(stop in text for stop in stops)
        assert (run(table, ids) == len(table) - 1) == found, (stops, text)
        seen += found
    assert stops == ("zz", "never") or seen


def test_a_choice_is_written_and_nothing_else() -> None:
    choices = [np.array(ids, np.int32) for ids in ([3], [3, 4], [5, 4, 4], [5, 4, 4], [6])]
    table = choice_table(choices, 8, end_id=1)
    whole = {(3, 1), (3, 4), (5, 4, 4), (6,)}  # where one begins another one, the end token tells them apart
    for length in (1, 2, 3):
        for ids in itertools.product(range(8), repeat=length):
            state = 0
            for number in ids:
                state = int(table[state, number]) if state != NOT_ALLOWED else NOT_ALLOWED
            assert (state == len(table) - 1) == (ids in whole)
            begins = any(each[:length] == ids for each in whole)
            assert (state != NOT_ALLOWED) == begins


def test_without_an_end_token_no_choice_begins_another() -> None:
    assert len(choice_table([np.array([3, 4]), np.array([5])], 8, end_id=-1)) == 3
    with pytest.raises(UserError, match="one of them begins another one, and this model has no end token"):
        choice_table([np.array([3, 4]), np.array([3])], 8, end_id=-1)
