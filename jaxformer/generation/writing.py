"""What greedy decoding, sampling and beam search share: what a batch of prompts is, which tokens a row may go on with,
and when it has ended.

Shape suffixes: B rows, W width of the prompts, N most new tokens, S = W + N, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import UserError
from jaxformer.generation.automata import NOT_ALLOWED
from jaxformer.generation.config import GenerationConfig
from jaxformer.models import Model, Params

Batch = dict[str, Any]
DEFAULT_NEW_TOKENS = 64
VALUES = ("repetition_penalty", "min_new_tokens", "temperature", "top_p", "min_p")  # of logit functions


class Answer(NamedTuple):
    """What was written: ids without the end token, the logarithm of their probability (after beams with the penalty of
    their length), and whether it ended by itself; if not, it was cut at the most tokens that it might have."""

    ids: np.ndarray
    score: float
    ended: bool


def answer(ids: np.ndarray, score: float, ended: bool, end_id: int) -> Answer:
    """Return an answer of ids that may end with the end token."""
    return Answer(ids[:-1] if len(ids) and ids[-1] == end_id else ids, score, ended)


class TokenRules(NamedTuple):
    """What a vocabulary says about writing: the token that ends an answer (-1: none does) and the one that a decoder
    starts from, the `writable` ids, bool [ids of the tokenizer] (None: all), and the automata of stops and choices."""

    end_id: int = -1
    start_id: int = 0
    writable: np.ndarray | None = None
    stops: np.ndarray | None = None
    choices: np.ndarray | None = None


def new_tokens(config: GenerationConfig, default: int = DEFAULT_NEW_TOKENS) -> int:
    """Return the most tokens that any answer may have; `default` is for a config that leaves it open."""
    return config.max_new_tokens or max(default, config.min_new_tokens)


def room_for_answers(model: Model, prompts: Sequence[np.ndarray]) -> np.ndarray:
    """Return how many tokens a table of learned positions has room for behind each prompt, int32 [B]: of a prompt that
    fills it one, as nothing is read behind the last token. Without a table it is the largest number."""
    if model.config.position != "learned":
        return np.full(len(prompts), np.iinfo(np.int32).max)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    behind = lengths - 1 if model.config.family == "decoder_only" else np.zeros_like(lengths)
    return model.config.max_length - behind


def longest_answers(
    model: Model, config: GenerationConfig, prompts: Sequence[np.ndarray], default: int = DEFAULT_NEW_TOKENS
) -> np.ndarray:
    """Return the most tokens that the answer to each prompt may have, int32 [B]. Where the config leaves it open, it is
    `default`, or what fits.

    Raises UserError, naming the prompt, for one that has no place in a table of learned positions.
    """
    most = np.full(len(prompts), new_tokens(config, default), np.int32)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    if model.config.position == "learned":
        limit, reads = model.config.max_length, model.config.family == "encoder_decoder"
        room = room_for_answers(model, prompts)
        for number, length in enumerate(lengths.tolist()):
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            if length > limit:
                raise UserError(f"{which}: {length} tokens exceed model.max_length {limit}; shorten it")
            if config.max_new_tokens and most[number] > room[number]:
                asked = f"generation.max_new_tokens {config.max_new_tokens}"
                behind = "" if reads else f" behind {length} of a prompt"
                raise UserError(
                    f"{which}: {asked}, but model.max_length {limit} has room for {room[number]}{behind}; shorten the "
                    "prompt, or lower it (0: as many as fit)"
                )
        most = np.minimum(most, room)
    if config.extra_length >= 0:
        most = np.maximum(np.minimum(most, lengths + config.extra_length), 1)
    return most.astype(np.int32)


def bucket(length: int) -> int:
    """Return the width of the compiled program that a prompt of this length takes: a multiple of 32, or of a quarter of
    the power of two below it."""
    step = max(32, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def prompt_batch(model: Model, prompts: Sequence[np.ndarray], width: int, start_id: int) -> Batch:
    """Return what the model reads of prompts. A decoder-only model reads them padded on the left, so that all rows
    write to the same places of the cache; an encoder on the right, beside a decoder's row of its start token."""
    if model.config.family == "decoder_only":
        rows, segments = _padded(prompts, width, left=True)
        positions = np.maximum(np.cumsum(segments, axis=1, dtype=np.int32) - 1, 0)
        batch = {"inputs": rows, "segment_ids": segments, "positions": positions}
        batch["prefix_length"] = np.full(len(rows), width, np.int32)  # read by models that see the whole prompt
        return batch
    rows, segments = _padded(prompts, width, left=False)
    starts = np.full((len(prompts), 1), start_id, np.int32)
    return {
        "inputs": starts,
        "segment_ids": np.ones_like(starts),
        "positions": np.zeros_like(starts),
        "encoder_inputs": rows,
        "encoder_segment_ids": segments,
        "encoder_positions": np.broadcast_to(np.arange(width, dtype=np.int32), rows.shape).copy(),
    }


def _padded(rows: Sequence[np.ndarray], width: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    padded, segments = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        padded[i, place], segments[i, place] = row, 1
    return padded, segments


def arguments(model: Model, config: GenerationConfig, rules: TokenRules, limit_B: np.ndarray) -> Batch:
    """Return the numbers that a compiled program takes, whose change compiles nothing; `limit_B` are the most tokens of
    each row's answer."""
    allowed = np.ones(model.config.vocab_size, bool) if rules.writable is None else rules.writable
    given = {
        "limit_B": limit_B,
        "end_id": np.int32(rules.end_id),
        "allowed_V": allowed,
        "values": {name: np.float32(getattr(config, name)) for name in VALUES} | {"end": np.int32(rules.end_id)},
        "alpha": np.float32(config.length_alpha),
    }
    tables = {"stops": rules.stops, "choices": rules.choices}
    return given | {"tables": {name: table for name, table in tables.items() if table is not None}}


States = dict[str, jax.Array]  # of each automaton, int32 [B]


def begin_states(given: Mapping[str, Any], num_rows: int) -> States:
    """Return the automata of rows that have written nothing."""
    return {name: jnp.zeros(num_rows, jnp.int32) for name in given["tables"]}


def allowed_logits(logits_BV: jax.Array, states: States, given: Mapping[str, Any]) -> jax.Array:
    """Return logits without the ids that cannot be written: rows of the table that are no token's, and what no choice
    goes on with."""
    allowed_V = given["allowed_V"]
    width = logits_BV.shape[-1]
    logits_BV = jnp.where(jnp.pad(allowed_V, (0, width - len(allowed_V)))[None], logits_BV, -jnp.inf)
    if "choices" in states:
        next_BV = given["tables"]["choices"][states["choices"]]
        padded = ((0, 0), (0, width - next_BV.shape[-1]))
        next_BV = jnp.pad(next_BV, padded, constant_values=NOT_ALLOWED)
        logits_BV = jnp.where(next_BV == NOT_ALLOWED, -jnp.inf, logits_BV)
    return logits_BV


def next_states(states: States, tokens_B: jax.Array, given: Mapping[str, Any]) -> tuple[States, jax.Array]:
    """Return the automata after a token of each row, and which rows have ended, bool [B]: with the end token, with a
    stop, or with a whole choice."""
    ended_B = tokens_B == given["end_id"]
    after: States = {}
    for name, table in given["tables"].items():
        after[name] = table[states[name], jnp.minimum(tokens_B, table.shape[1] - 1)]
        ended_B = ended_B | (after[name] == len(table) - 1)
    return after, ended_B


def likelihoods(logits_BV: jax.Array, tokens_B: jax.Array) -> jax.Array:
    """Return the logarithm of the probability of a token of each row, float32 [B]."""
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=-1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=-1)


def prefilled(model: Model, weights: Params, batch: Batch, num_new: int) -> tuple[jax.Array, Any]:
    """Return the hidden state behind each prompt, [B, D], and the cache, with `num_new` more entries for each row."""
    fresh_BN = jnp.ones((len(batch["inputs"]), num_new), jnp.int32)
    cache = model.start(weights, batch, jnp.concatenate([batch["segment_ids"], fresh_BN], axis=1))
    hidden, cache = model.decode(weights, cache, batch["inputs"], batch["positions"], batch["segment_ids"], 0)
    return hidden[:, -1], cache
