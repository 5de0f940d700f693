"""Logit functions: from a model's logits to those that the next token is chosen by.

Each is a function (logits [B, V], what is written, its own arguments) -> logits [B, V]; what it rules out is -inf. A
`LogitFunction` binds one to what is fixed when a program is compiled (k, n) and to the names of the numbers that may
change from call to call (a temperature), so that the loop has nothing to know about any of them:

    for function in functions:
        logits_BV = function(logits_BV, written, values)

Greedy decoding and sampling give it a model's logits, beam search its log probabilities. The results are those of
transformers' processors of the same names, applied in the same order.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Written(NamedTuple):
    """What stands before the next token of each row: prompt and answer, of an encoder-decoder the answer alone."""

    tokens_BS: jax.Array  # int32; places of padding and those not yet written hold anything
    is_token_BS: jax.Array  # bool: neither padding nor unwritten
    length: jax.Array  # int32 scalar: the place of the next token, the same in all rows (padding is on the left)
    count_B: jax.Array  # int32: tokens of the answer so far


@dataclasses.dataclass(frozen=True)
class LogitFunction:
    """A function with its `sizes`, which shape the program, and the names of the `values` that it reads. Equal ones
    are the same key of a compiled program."""

    function: Callable[..., jax.Array]
    values: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    def __call__(self, logits_BV: jax.Array, written: Written, values: Mapping[str, jax.Array]) -> jax.Array:
        return self.function(logits_BV, written, *self.sizes, *(values[name] for name in self.values))


def logit_functions(
    *,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    min_new_tokens: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> tuple[LogitFunction, ...]:
    """Return the functions that settings ask for, in the order in which they act.

    Their values are called as the settings are, and `end` is the end token. At temperature 0 the likeliest token is
    taken, which no temperature, k or p changes: these are left out.
    """
    samples = temperature > 0
    asked = {
        LogitFunction(penalize_repetition, ("repetition_penalty",)): repetition_penalty != 1,
        LogitFunction(forbid_repeated_ngrams, sizes=(no_repeat_ngram,)): no_repeat_ngram > 0,
        LogitFunction(forbid_early_end, ("min_new_tokens", "end")): min_new_tokens > 0,
        LogitFunction(divide_by_temperature, ("temperature",)): samples and temperature != 1,
        LogitFunction(keep_top_k, sizes=(top_k,)): samples and top_k > 0,
        LogitFunction(keep_top_p, ("top_p",)): samples and top_p < 1,
        LogitFunction(keep_min_p, ("min_p",)): samples and min_p > 0,
    }
    return tuple(function for function, wanted in asked.items() if wanted)


def penalize_repetition(logits_BV: jax.Array, written: Written, penalty: jax.Array) -> jax.Array:
    """Make tokens that are written less likely (Keskar et al. 2019, section 4.1): a positive logit is divided by the
    penalty, a negative one is multiplied with it."""
    penalized_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    is_written_BV = _marked(logits_BV.shape, written.tokens_BS, written.is_token_BS)
    return jnp.where(is_written_BV, penalized_BV, logits_BV)


def forbid_repeated_ngrams(logits_BV: jax.Array, written: Written, n: int) -> jax.Array:
    """Rule out tokens that would end a sequence of n tokens which is written already."""
    windows = written.tokens_BS.shape[1] - n + 1  # places at which n tokens can begin
    if windows < 1:
        return logits_BV
    newest_BN = jax.lax.dynamic_slice_in_dim(written.tokens_BS, written.length - (n - 1), n - 1, axis=1)
    repeats_BW = written.is_token_BS[:, n - 1 :]
    for i in range(n - 1):
        same_BW = written.tokens_BS[:, i : i + windows] == newest_BN[:, i, None]
        repeats_BW &= same_BW & written.is_token_BS[:, i : i + windows]
    return _keep(logits_BV, ~_marked(logits_BV.shape, written.tokens_BS[:, n - 1 :], repeats_BW))


def forbid_early_end(
    logits_BV: jax.Array, written: Written, min_new_tokens: jax.Array, end: jax.Array | int
) -> jax.Array:
    """Rule out the end token in answers of fewer than `min_new_tokens` tokens."""
    is_end_1V = jnp.arange(logits_BV.shape[-1])[None] == end
    return _keep(logits_BV, ~is_end_1V | (written.count_B >= min_new_tokens)[:, None])


def divide_by_temperature(logits_BV: jax.Array, _: Written, temperature: jax.Array | float) -> jax.Array:
    """Sharpen (below 1) or flatten (above 1) the distribution."""
    return logits_BV / temperature


def keep_top_k(logits_BV: jax.Array, _: Written, k: int) -> jax.Array:
    """Keep the k likeliest tokens, and those that are as likely as the last of them."""
    return _keep(logits_BV, logits_BV >= jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:])


def keep_top_p(logits_BV: jax.Array, _: Written, top_p: jax.Array | float) -> jax.Array:
    """Keep the likeliest tokens whose probabilities first add up to `top_p` (nucleus sampling, Holtzman et al. 2020,
    section 3.1), and those that are as likely as the last of them. At least one is kept.

    A token is kept if those likelier than it have less than `top_p` between them. The least such probability is found
    by bisection over the bits of the floats, whose order is theirs: 30 sums instead of a sort of the vocabulary.
    """
    probabilities_BV = jax.nn.softmax(logits_BV, axis=-1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 + high_B1) // 2
        likelier_BV = probabilities_BV > jax.lax.bitcast_convert_type(middle_B1, jnp.float32)
        suffices_B1 = jnp.sum(probabilities_BV, axis=-1, keepdims=True, where=likelier_BV) < top_p
        return jnp.where(suffices_B1, low_B1, middle_B1), jnp.where(suffices_B1, middle_B1, high_B1)

    # At the greatest probability nothing is likelier. Floats between 0 and 1 have less than 2^30 as their bits.
    greatest_B1 = jax.lax.bitcast_convert_type(jnp.max(probabilities_BV, axis=-1, keepdims=True), jnp.int32)
    _, least_B1 = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(greatest_B1), greatest_B1))
    return _keep(logits_BV, probabilities_BV >= jax.lax.bitcast_convert_type(least_B1, jnp.float32))


def keep_min_p(logits_BV: jax.Array, _: Written, min_p: jax.Array | float) -> jax.Array:
    """Keep tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024)."""
    return _keep(logits_BV, logits_BV >= jnp.max(logits_BV, axis=-1, keepdims=True) + jnp.log(min_p))


def _keep(logits_BV: jax.Array, kept_BV: jax.Array) -> jax.Array:
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


def _marked(shape: tuple[int, ...], tokens_BS: jax.Array, marks_BS: jax.Array) -> jax.Array:
    """Return for each row which ids [V] stand at a marked place."""
    rows_B1 = jnp.arange(shape[0])[:, None]
    return jnp.zeros(shape, bool).at[rows_B1, tokens_BS].max(marks_BS)
