"""Logit functions on arrays written by hand. tests/test_live_generation.py compares them with transformers'."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generation import logits as library
from jaxformer.generation.logits import Written, logit_functions

X = -np.inf
LOGITS = [[2.0, -1.0, 0.5, 3.0, -4.0], [0.0, 1.0, 2.0, -2.0, -3.0]]

# Row 0 has one place of padding and has written 0 3 0 3 0, row 1 no padding and 1 1 2 1 1 1; the last two places are
# not yet written.
TOKENS = [[4, 0, 3, 0, 3, 0, 2, 1], [1, 1, 2, 1, 1, 1, 3, 4]]
IS_TOKEN = [[False, True, True, True, True, True, False, False], [True] * 6 + [False] * 2]


def written(tokens: Any = TOKENS, is_token: Any = IS_TOKEN, length: int = 6, count: Sequence[int] = (2, 1)) -> Written:
    return Written(jnp.array(tokens), jnp.array(is_token), jnp.int32(length), jnp.array(count))


def of_probabilities(*rows: list[float]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array(rows, np.float32)) + np.array([[1.5], [-7.0]], np.float32)


@functools.cache
def compiled(function: Callable[..., jax.Array], *sizes: int) -> Any:
    return jax.jit(lambda logits, state, *values: function(logits, state, *sizes, *values))


def kept(function: Callable[..., jax.Array], logits: Any, *values: Any, sizes: tuple[int, ...] = ()) -> list[list[int]]:
    """Return which ids of each row are left; these keep their logits."""
    logits = np.asarray(logits, np.float32)
    found = np.asarray(compiled(function, *sizes)(logits, written(), *values))
    assert found.dtype == np.float32
    assert (np.where(np.isfinite(found), found, logits) == logits).all()
    return [np.flatnonzero(row).tolist() for row in np.isfinite(found)]


def test_written_tokens_are_penalized() -> None:
    penalize = compiled(library.penalize_repetition)
    found = penalize(jnp.array(LOGITS), written(), 2.0)
    assert found.tolist() == [[1.0, -1.0, 0.5, 1.5, -4.0], [0.0, 0.5, 1.0, -2.0, -3.0]]
    # A negative logit is multiplied, and what is ruled out stays so.
    logits = jnp.array([[X, -1.0, 0.5, -3.0, -4.0], [0.0, -1.0, X, -2.0, -3.0]])
    found = penalize(logits, written(), 2.0)
    assert found.tolist() == [[X, -1.0, 0.5, -6.0, -4.0], [0.0, -2.0, X, -2.0, -3.0]]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [[1, 2, 4], [0, 3, 4]]),  # what is written, whatever precedes it
        (2, [[0, 1, 2, 4], [0, 3, 4]]),  # 0 was followed by 3, 1 by 1 and by 2
        (3, [[0, 1, 2, 4], [0, 3, 4]]),  # 3 0 by 3, 1 1 by 2 and by 1
        (4, [[0, 1, 2, 4], [0, 1, 2, 3, 4]]),  # 0 3 0 by 3, 1 1 1 by nothing
        (5, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),
        (9, [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]),  # more than there are places
    ],
)
def test_ngrams_do_not_come_twice(n: int, expected: list[list[int]]) -> None:
    assert kept(library.forbid_repeated_ngrams, LOGITS, sizes=(n,)) == expected


def test_neither_padding_nor_the_unwritten_is_part_of_an_ngram() -> None:
    """Of the same tokens, all of padding or of the future would be ruled out: 3 follows 4, 2 follows 4 4."""
    tokens = [[4, 3, 4, 4, 2, 4, 4, 1], [4, 3, 1, 4, 4, 4, 4, 0]]
    is_token = [[False, True, True, True, True, True, False, False], [False] * 5 + [True, False, False]]
    state = written(tokens, is_token)

    def ruled_out(n: int) -> list[list[int]]:
        found = np.asarray(compiled(library.forbid_repeated_ngrams, n)(jnp.array(LOGITS), state))
        return [np.flatnonzero(row).tolist() for row in ~np.isfinite(found)]

    assert ruled_out(1) == [[2, 3, 4], [4]]
    assert ruled_out(2) == [[2, 4], []]
    assert ruled_out(3) == [[], []]


def test_an_answer_shorter_than_an_ngram_repeats_nothing() -> None:
    state = written([[0] * 8] * 2, [[True] + [False] * 7] * 2, length=1)
    assert compiled(library.forbid_repeated_ngrams, 3)(jnp.array(LOGITS), state).tolist() == LOGITS


def test_an_answer_does_not_end_too_early() -> None:
    function, everything = library.forbid_early_end, [0, 1, 2, 3, 4]
    assert kept(function, LOGITS, 1, 3) == [everything, everything]
    assert kept(function, LOGITS, 2, 3) == [everything, [0, 1, 2, 4]]
    assert kept(function, LOGITS, 3, 0) == [[1, 2, 3, 4]] * 2
    assert kept(function, LOGITS, 3, 1000) == [everything, everything]  # an end that the table does not have


def test_temperature_divides() -> None:
    found = library.divide_by_temperature(jnp.array(LOGITS), written(), jnp.float32(0.5))
    assert found.tolist() == [[4.0, -2.0, 1.0, 6.0, -8.0], [0.0, 2.0, 4.0, -4.0, -6.0]]


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [[3], [2]]), (3, [[0, 2, 3], [0, 1, 2]]), (5, [[0, 1, 2, 3, 4]] * 2), (50, [[0, 1, 2, 3, 4]] * 2)],
)
def test_the_likeliest_k(k: int, expected: list[list[int]]) -> None:
    assert kept(library.keep_top_k, LOGITS, sizes=(k,)) == expected


def test_top_k_leaves_out_what_is_ruled_out() -> None:
    assert kept(library.keep_top_k, [[X, 1.0, X, X, X], [0.0, X, X, X, -1.0]], sizes=(3,)) == [[1], [0, 4]]


PROBABILITIES = of_probabilities([0.1, 0.4, 0.0, 0.3, 0.2], [0.01, 0.01, 0.95, 0.01, 0.02])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.0, [[1], [2]]),
        (0.39, [[1], [2]]),
        (0.41, [[1, 3], [2]]),
        (0.71, [[1, 3, 4], [2]]),
        (0.89, [[1, 3, 4], [2]]),
        (0.96, [[0, 1, 3, 4], [2, 4]]),
        (0.98, [[0, 1, 3, 4], [0, 1, 2, 3, 4]]),  # equally likely ones stay together
        (1.0, [[0, 1, 3, 4], [0, 1, 2, 3, 4]]),
    ],
)
def test_the_likeliest_that_make_up_p(p: float, expected: list[list[int]]) -> None:
    assert kept(library.keep_top_p, PROBABILITIES, p) == expected


def test_top_p_tells_very_small_probabilities_apart() -> None:
    """Of e^-80 and less beside one of 1, and of 50,000 equal ones."""
    logits = [[0.0, -80.0, -81.0, -90.0, -200.0], [-30.0, -60.0, -31.0, X, 50.0]]
    assert kept(library.keep_top_p, logits, 1 - 1e-7) == [[0], [4]]
    many = np.zeros((2, 50_000), np.float32)
    many[1, 7] = 1e-3
    assert [len(row) for row in kept(library.keep_top_p, many, 0.5)] == [50_000, 50_000]
    many[1, 7] = 20.0
    assert [len(row) for row in kept(library.keep_top_p, many, 0.5)] == [50_000, 1]


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (1.0, [[1], [2]]),
        (0.74, [[1, 3], [2]]),
        (0.49, [[1, 3, 4], [2]]),
        (0.015, [[0, 1, 3, 4], [2, 4]]),
        (0.001, [[0, 1, 3, 4], [0, 1, 2, 3, 4]]),
    ],
)
def test_those_at_least_p_times_as_likely_as_the_likeliest(p: float, expected: list[list[int]]) -> None:
    assert kept(library.keep_min_p, PROBABILITIES, p) == expected


def test_what_settings_ask_for_in_their_order() -> None:
    def names(**settings: Any) -> list[str]:
        return [function.function.__name__ for function in logit_functions(**settings)]

    sampling = {"min_p": 0.1, "top_p": 0.9, "top_k": 3}
    assert names() == names(**sampling) == names(temperature=1.0) == []
    assert names(temperature=0.7) == ["divide_by_temperature"]
    assert names(temperature=1.0, **sampling) == ["keep_top_k", "keep_top_p", "keep_min_p"]
    assert names(temperature=0.7, min_new_tokens=2, no_repeat_ngram=3, repetition_penalty=0.9, **sampling) == [
        "penalize_repetition", "forbid_repeated_ngrams", "forbid_early_end",
        "divide_by_temperature", "keep_top_k", "keep_top_p", "keep_min_p",
    ]  # fmt: skip


def test_a_value_changes_no_program_and_a_size_does() -> None:
    traces = []

    @jax.jit(static_argnums=0)
    def run(functions: tuple[library.LogitFunction, ...], values: dict[str, float]) -> jax.Array:
        traces.append(functions)
        logits = jnp.array(LOGITS)
        for function in functions:
            logits = function(logits, written(), values)
        return logits

    settings: dict[str, Any] = {"temperature": 0.5, "repetition_penalty": 2.0, "min_new_tokens": 2, "end": 3}

    def found(top_k: int = 3, **changes: Any) -> list[list[float]]:
        values = settings | changes
        wanted = {name: value for name, value in values.items() if name != "end"}
        result: list[list[float]] = run(logit_functions(top_k=top_k, **wanted), values).tolist()
        return result

    assert found() == [[2.0, X, 1.0, 3.0, X], [0.0, 1.0, 2.0, X, X]]
    assert found(temperature=0.25, repetition_penalty=4.0, min_new_tokens=3) == [
        [2.0, -4.0, 2.0, X, X],
        [0.0, 1.0, 2.0, X, X],
    ]
    assert len(traces) == 1
    assert found(top_k=1) == [[X, X, X, 3.0, X], [X, X, 2.0, X, X]]
    assert len(traces) == 2
