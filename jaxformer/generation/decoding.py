"""Greedy decoding and sampling: the prompt runs once, then a loop chooses and reads one token of each row a step.

Two programs are compiled for a model and a width: `begin` reads the prompts, and `advance` writes up to a number of
tokens, all of them or, for a text that is shown as it comes, a few at a time.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.devices import gathered
from jaxformer.generation.logits import LogitFunction, Written
from jaxformer.generation.writing import (
    Answer,
    Batch,
    States,
    allowed_logits,
    answer,
    begin_states,
    likelihoods,
    next_states,
    prefilled,
)
from jaxformer.models import Model, Params


class State(NamedTuple):
    """Rows that are being written. The token at `num_written - 1` is chosen and not yet read."""

    cache: Any
    tokens_BS: jax.Array  # the prompts, and behind them what is written
    is_token_BS: jax.Array
    num_written: jax.Array  # tokens written, of rows that have not ended
    ended_B: jax.Array  # bool: nothing more is written
    closed_B: jax.Array  # bool: it ended by itself
    length_B: jax.Array  # tokens written, the end token included
    score_B: jax.Array
    states: States


class Programs(NamedTuple):
    """Compiled: begin(weights, batch, given) -> State; advance(weights, positions_B, state, given, until) -> State."""

    begin: Any
    advance: Any


@functools.lru_cache(maxsize=16)
def programs(model: Model, num_new: int, samples: bool, functions: tuple[LogitFunction, ...]) -> Programs:
    """Return the programs that write up to `num_new` tokens, drawn (`samples`) or the likeliest ones."""

    def chosen(hidden_BD: jax.Array, weights: Params, state: State, given: Mapping[str, Any]) -> State:
        """Write the next token of each row."""
        num_rows, places = state.tokens_BS.shape
        place = places - num_new + state.num_written
        plain_BV = model.project(weights, hidden_BD)
        written = Written(state.tokens_BS, state.is_token_BS, place, jnp.broadcast_to(state.num_written, num_rows))
        logits_BV = allowed_logits(plain_BV, state.states, given)
        for function in functions:
            logits_BV = function(logits_BV, written, given["values"])
        if samples:
            keys_B = jax.vmap(jax.random.fold_in, (0, None))(given["keys_B"], state.num_written)
            token_B = jax.vmap(jax.random.categorical)(keys_B, logits_BV)
        else:
            token_B = jnp.argmax(logits_BV, axis=-1)
        token_B = jnp.where(state.ended_B, jnp.maximum(given["end_id"], 0), token_B).astype(jnp.int32)
        after, closed_B = next_states(state.states, token_B, given)
        goes_on_B = ~state.ended_B
        closed_B = state.closed_B | (goes_on_B & closed_B)
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=1)
        return state._replace(
            tokens_BS=update(state.tokens_BS, token_B[:, None]),
            is_token_BS=update(state.is_token_BS, goes_on_B[:, None]),
            num_written=state.num_written + 1,
            ended_B=state.ended_B | closed_B | (state.num_written + 1 >= given["limit_B"]),
            closed_B=closed_B,
            length_B=state.length_B + goes_on_B,
            score_B=state.score_B + jnp.where(goes_on_B, likelihoods(plain_BV, token_B), 0.0),
            states=after,
        )

    def begin(weights: Params, batch: Batch, given: Mapping[str, Any]) -> State:
        num_rows = len(batch["inputs"])
        hidden_BD, cache = prefilled(model, weights, batch, num_new)
        nothing_B = jnp.zeros(num_rows, jnp.int32)
        state = State(
            cache,
            jnp.pad(batch["inputs"], ((0, 0), (0, num_new))),
            jnp.pad(batch["segment_ids"] > 0, ((0, 0), (0, num_new))),
            jnp.int32(0),
            nothing_B > 0,
            nothing_B > 0,
            nothing_B,
            jnp.zeros(num_rows, jnp.float32),
            begin_states(given, num_rows),
        )
        return chosen(hidden_BD, weights, state, given)

    def advance(
        weights: Params, positions_B: jax.Array, state: State, given: Mapping[str, Any], until: jax.Array
    ) -> State:
        def goes_on(state: State) -> jax.Array:
            return (state.num_written < until) & ~jnp.all(state.ended_B)

        def extend(state: State) -> State:
            place = state.tokens_BS.shape[1] - num_new + state.num_written - 1
            last_B1 = jax.lax.dynamic_slice_in_dim(state.tokens_BS, place, 1, axis=1)
            positions_B1 = (positions_B + state.num_written)[:, None]
            hidden, cache = model.decode(
                weights, state.cache, last_B1, positions_B1, jnp.ones_like(positions_B1), place
            )
            return chosen(hidden[:, -1], weights, state._replace(cache=cache), given)

        return jax.lax.while_loop(goes_on, extend, state)

    return Programs(jax.jit(begin), jax.jit(advance, donate_argnums=2))


def row_keys(seed: int, numbers: np.ndarray, answers: np.ndarray) -> jax.Array:
    """Return a key for each row, that of its prompt's number in the whole input and its answer's: what is drawn for it
    does not depend on what stands beside it."""
    key = jax.random.key(seed)
    return jax.vmap(lambda number, answer: jax.random.fold_in(jax.random.fold_in(key, number), answer))(
        jnp.asarray(numbers, jnp.uint32), jnp.asarray(answers, jnp.uint32)
    )


def answers_of(state: State, num_new: int, end_id: int) -> list[Answer]:
    """Return what each row has written so far."""
    found = (state.tokens_BS[:, -num_new:], state.length_B, state.closed_B, state.score_B)
    return [
        answer(row[:length], float(score), bool(closed), end_id)
        for row, length, closed, score in zip(*(gathered(array) for array in found), strict=True)
    ]
