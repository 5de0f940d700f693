"""Beam search: the likeliest answers, by the logarithm of their probability with a penalty of their length.

The beams of a prompt are several queries of one row of the cache: they share the prompt's entries and the encoder's,
and each reads, of the entries behind, those of its own past. So no cache is ever put in another order.

Shape suffixes: B prompts, K beams, C candidates, N most new tokens, V vocabulary.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.devices import gathered
from jaxformer.generation.decoding import Programs
from jaxformer.generation.logits import LogitFunction, Written
from jaxformer.generation.writing import (
    Answer,
    Batch,
    States,
    allowed_logits,
    answer,
    begin_states,
    next_states,
    prefilled,
)
from jaxformer.models import Beams, Model, Params


class BeamState(NamedTuple):
    """A search. Running beams stand in the order of their scores, and so do the answers that are whole."""

    cache: Any
    prompt_BW: jax.Array
    is_token_BW: jax.Array
    num_written: jax.Array  # tokens that every running beam has written; the last one is not yet read
    tokens_BKN: jax.Array
    slots_BKN: jax.Array  # which of the K entries of each place is of this beam's past
    scores_BK: jax.Array  # -inf: there is no such beam
    states: States  # of the automata, [B x K]
    answers_BKN: jax.Array
    answer_scores_BK: jax.Array  # with the penalty; -inf: there is no such answer
    answer_lengths_BK: jax.Array  # the end token included
    closed_BK: jax.Array  # bool: the answer ended by itself
    done_B: jax.Array


def penalty(kind: str, length: jax.Array, alpha: jax.Array) -> jax.Array:
    """Return what the score of an answer of `length` tokens, the end token included, is divided by: "gnmt"
    ((5 + length) / 6)^alpha (Wu et al., 2016, equation 14), or "power" length^alpha (fairseq)."""
    length = length.astype(jnp.float32)
    return ((5.0 + length) / 6.0 if kind == "gnmt" else length) ** alpha


@functools.lru_cache(maxsize=16)
def programs(
    model: Model, num_new: int, num_beams: int, penalized: str, early: bool, functions: tuple[LogitFunction, ...]
) -> Programs:
    """Return the programs that search with `num_beams` beams for answers of up to `num_new` tokens.

    Of each prompt's continuations the 2 K likeliest are looked at: those that end, among the first K, become answers,
    and the first K of the others go on. A search is done when there are K answers and no running beam can still beat
    the worst of them, or at once, where `early`. Whether one can is seen, as where the penalties come from, by its
    score at the length at which the penalty helps most (gnmt: tensor2tensor), or at its own (power: transformers).
    """

    def chosen(hidden_BTD: jax.Array, weights: Params, state: BeamState, given: Mapping[str, Any]) -> BeamState:
        """Let every beam go on by a token; T is K, or 1 where all are still one."""
        rows = (len(state.done_B), num_beams)
        logits_BTV = model.project(weights, hidden_BTD)
        num_tokens = logits_BTV.shape[-1]
        logits_BV = jnp.broadcast_to(logits_BTV, (*rows, num_tokens)).reshape(-1, num_tokens)
        logits_BV = allowed_logits(jax.nn.log_softmax(logits_BV), state.states, given)
        written = _written(state, num_new)
        for function in functions:
            logits_BV = function(logits_BV, written, given["values"])
        scores_BKV = logits_BV.reshape(*rows, num_tokens) + state.scores_BK[..., None]
        scores_BC, flat_BC = largest(scores_BKV.reshape(rows[0], -1), 2 * num_beams)
        beam_BC, token_BC = flat_BC // num_tokens, (flat_BC % num_tokens).astype(jnp.int32)
        states = {name: _picked(each.reshape(rows), beam_BC).reshape(-1) for name, each in state.states.items()}
        states, closed = next_states(states, token_BC.reshape(-1), given)
        closed_BC = closed.reshape(token_BC.shape)
        count = state.num_written + 1
        cut_B1 = (count >= given["limit_B"])[:, None]
        tokens_BCN = _put(_picked(state.tokens_BKN, beam_BC), token_BC, state.num_written)
        state = with_answers(state, tokens_BCN, scores_BC, closed_BC, cut_B1, given)
        running_BC = jnp.where(closed_BC, -jnp.inf, scores_BC)
        scores_BK, best_BK = jax.lax.top_k(running_BC, num_beams)
        beam_BK = jnp.take_along_axis(beam_BC, best_BK, axis=1)
        # What a beam reads next goes to the slot of its rank, at the place of this token.
        own_BK = jnp.broadcast_to(jnp.arange(num_beams, dtype=jnp.int32)[None], rows)
        state = state._replace(
            num_written=count,
            tokens_BKN=_picked(tokens_BCN, best_BK),
            slots_BKN=_put(_picked(state.slots_BKN, beam_BK), own_BK, state.num_written),
            scores_BK=scores_BK,
            states={name: _picked(each.reshape(token_BC.shape), best_BK).reshape(-1) for name, each in states.items()},
        )
        return state._replace(done_B=state.done_B | cut_B1[:, 0] | finds_no_better(state, given))

    def with_answers(
        state: BeamState, tokens_BCN: jax.Array, scores_BC: jax.Array, closed_BC: jax.Array, cut_B1: jax.Array,
        given: Mapping[str, Any],
    ) -> BeamState:  # fmt: skip
        """Put the candidates that end among the best answers, of prompts that are not done."""
        count = state.num_written + 1
        first_1C = (jnp.arange(2 * num_beams) < num_beams)[None]
        ends_BC = (closed_BC | cut_B1) & first_1C & ~state.done_B[:, None]
        ended_BC = jnp.where(ends_BC, scores_BC / penalty(penalized, count, given["alpha"]), -jnp.inf)
        all_scores = jnp.concatenate([state.answer_scores_BK, ended_BC], axis=1)
        scores_BK, best_BK = jax.lax.top_k(all_scores, num_beams)

        def best(old: jax.Array, new: jax.Array) -> jax.Array:
            return _picked(jnp.concatenate([old, new], axis=1), best_BK)

        answers, closed = best(state.answers_BKN, tokens_BCN), best(state.closed_BK, closed_BC)
        lengths = best(state.answer_lengths_BK, jnp.full(scores_BC.shape, count))
        return state._replace(
            answers_BKN=answers, answer_scores_BK=scores_BK, answer_lengths_BK=lengths, closed_BK=closed
        )

    def finds_no_better(state: BeamState, given: Mapping[str, Any]) -> jax.Array:
        """Say of which prompts no running beam can become one of the best answers, bool [B]."""
        worst_B = state.answer_scores_BK[:, -1]
        # As an answer grows, a positive alpha makes its score better; so much better it becomes at most.
        bounds = (given["alpha"] > 0) & (penalized == "gnmt")
        longest_B = jnp.where(bounds, given["limit_B"], state.num_written)
        best_B = state.scores_BK[:, 0] / penalty(penalized, longest_B, given["alpha"])
        found_B = worst_B > -jnp.inf
        return (best_B <= worst_B) | (found_B if early else jnp.zeros_like(found_B))

    def begin(weights: Params, batch: Batch, given: Mapping[str, Any]) -> BeamState:
        num_rows, width = batch["inputs"].shape
        hidden_BD, cache = prefilled(model, weights, batch, num_new * num_beams)
        shape = (num_rows, num_beams)
        none_BKN, none_BK = jnp.zeros((*shape, num_new), jnp.int32), jnp.zeros(shape, jnp.int32)
        # All beams are the same prompt: one of them is enough.
        scores_BK = jnp.where(none_BK + jnp.arange(num_beams)[None] == 0, 0.0, -jnp.inf)
        state = BeamState(
            cache,
            batch["inputs"],
            batch["segment_ids"] > 0,
            jnp.int32(0),
            none_BKN,
            none_BKN,
            scores_BK,
            begin_states(given, num_rows * num_beams),
            none_BKN,
            jnp.full(shape, -jnp.inf),
            none_BK,
            none_BK > 0,
            jnp.zeros(num_rows, bool),
        )
        return chosen(hidden_BD[:, None], weights, state, given)

    def advance(
        weights: Params, positions_B: jax.Array, state: BeamState, given: Mapping[str, Any], until: jax.Array
    ) -> BeamState:
        width = state.prompt_BW.shape[1]
        places_S = jnp.concatenate([jnp.arange(width), width + jnp.arange(num_new * num_beams) // num_beams])

        def goes_on(state: BeamState) -> jax.Array:
            return (state.num_written < until) & ~jnp.all(state.done_B)

        def extend(state: BeamState) -> BeamState:
            last = state.num_written - 1
            own_BKNK = state.slots_BKN[..., None] == jnp.arange(num_beams)[None, None, None]
            own_BKS = own_BKNK.reshape(*state.scores_BK.shape, -1)
            seen_BKS = jnp.pad(own_BKS, ((0, 0), (0, 0), (width, 0)), constant_values=True)
            token_BK = jax.lax.dynamic_index_in_dim(state.tokens_BKN, last, axis=2, keepdims=False)
            positions_BK = jnp.broadcast_to((positions_B + state.num_written)[:, None], token_BK.shape)
            hidden_BKD, cache = model.decode(
                weights, state.cache, token_BK, positions_BK, jnp.ones_like(token_BK), width + last * num_beams,
                Beams(width + last, places_S, seen_BKS),
            )  # fmt: skip
            return chosen(hidden_BKD, weights, state._replace(cache=cache), given)

        return jax.lax.while_loop(goes_on, extend, state)

    return Programs(jax.jit(begin), jax.jit(advance, donate_argnums=2))


def largest(values_BN: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Return what `jax.lax.top_k` does, for many values: the largest ones and their places [B, count].

    They stand in the `count` stretches of 64 with the largest maxima; of equal ones, too, the first are taken. To find
    maxima takes a tenth of the time that top_k takes for all values.
    """
    num_rows, num_values = values_BN.shape
    values_BGS = jnp.pad(values_BN, ((0, 0), (0, -num_values % 64)), constant_values=-jnp.inf).reshape(num_rows, -1, 64)
    if values_BGS.shape[1] <= count:
        return jax.lax.top_k(values_BN, count)
    _, stretches_BC = jax.lax.top_k(jnp.max(values_BGS, axis=-1), count)
    stretches_BC = jnp.sort(stretches_BC, axis=-1)
    found_BC, places_BC = jax.lax.top_k(_picked(values_BGS, stretches_BC).reshape(num_rows, -1), count)
    return found_BC, jnp.take_along_axis(stretches_BC, places_BC // 64, axis=1) * 64 + places_BC % 64


def _picked(values: jax.Array, places: jax.Array) -> jax.Array:
    """Return of values [B, K, …] those at places [B, C] of the second axis."""
    return jax.vmap(lambda of_row, at: of_row[at])(values, places)


def _put(rows_BCN: jax.Array, values_BC: jax.Array, place: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(rows_BCN, values_BC[..., None].astype(rows_BCN.dtype), place, axis=2)


def _written(state: BeamState, num_new: int) -> Written:
    """Return what every beam has behind it, [B x K, S]."""
    rows = state.tokens_BKN.shape[:2]

    def whole(prompt_BW: jax.Array, new_BKN: jax.Array) -> jax.Array:
        prompt_BKW = jnp.broadcast_to(prompt_BW[:, None], (*rows, prompt_BW.shape[1]))
        return jnp.concatenate([prompt_BKW, new_BKN], axis=2).reshape(rows[0] * rows[1], -1)

    new_BKN = jnp.broadcast_to((jnp.arange(num_new) < state.num_written)[None, None], state.tokens_BKN.shape)
    count = jnp.broadcast_to(state.num_written, rows[0] * rows[1])
    place = state.prompt_BW.shape[1] + state.num_written
    return Written(whole(state.prompt_BW, state.tokens_BKN), whole(state.is_token_BW, new_BKN), place, count)


def answers_of(state: BeamState, num_answers: int, end_id: int) -> list[list[Answer]]:
    """Return the best answers to each prompt, the best one first; fewer, where there are no more."""
    arrays = (state.answers_BKN, state.answer_lengths_BK, state.closed_BK, state.answer_scores_BK)
    rows = zip(*(gathered(array)[:, :num_answers] for array in arrays), strict=True)
    return [
        [
            answer(ids[:length], float(score), bool(closed), end_id)
            for ids, length, closed, score in zip(*row, strict=True)
            if score > -float("inf")
        ]
        for row in rows
    ]
