"""Text from a model: greedy decoding and temperature sampling over a cache with one entry per layer.

The prompt runs once (prefill), then one token a step in a `while_loop` that ends when every row has ended. Prompts are
padded on the left, so that all rows write the same place of the cache.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.checks import check_range
from jaxformer.devices import gathered
from jaxformer.errors import UserError
from jaxformer.models import Model, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """`temperature` 0 takes the likeliest token (greedy); above 0 it divides the logits before sampling."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("generation.max_new_tokens", self.max_new_tokens, at_least=1)
        check_range("generation.temperature", self.temperature, at_least=0)


def generate(
    model: Model,
    params: Params,
    prompts: Sequence[np.ndarray],
    config: GenerationConfig,
    *,
    end_id: int,
    start_id: int = 0,
    min_width: int = 1,
    writable: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Return, per prompt, the generated ids up to and without `end_id`.

    A decoder-only model continues the prompt; an encoder-decoder reads it and starts its answer from `start_id`. Ids
    that are not `writable` (bool [ids of the tokenizer]; None: all are), and those beyond it, are never chosen.
    Prompts are padded to at least `min_width`, so that batches of a set share one compiled program. Raises UserError
    for encoder-only models, empty prompts, and lengths beyond a learned position table.
    """
    family = model.config.family
    require_generator(family)
    if not prompts:
        return []
    if min(len(prompt) for prompt in prompts) == 0:
        raise UserError("the prompt is empty: give at least one token")
    longest = max(len(prompt) for prompt in prompts)
    decoded = config.max_new_tokens + (longest if family == "decoder_only" else 0)
    for name, length in {"prompt": longest, "prompt and new tokens": decoded}.items():
        if model.config.position == "learned" and length > model.config.max_length:
            raise UserError(
                f"{name}: {length} tokens exceed model.max_length {model.config.max_length}; "
                "shorten the prompt or lower generation.max_new_tokens"
            )
    # Rounded up, so that prompts of similar length share a program too.
    width = -(-max(longest, min_width) // 32) * 32
    if family == "decoder_only":
        rows, segments = _pad([np.asarray(prompt) for prompt in prompts], width, left=True)
        batch = {"inputs": rows, "segment_ids": segments}
        batch["positions"] = np.maximum(np.cumsum(segments, axis=1) - 1, 0).astype(np.int32)
        batch["prefix_length"] = np.full(len(rows), width, np.int32)  # read by models that see the whole prompt
    else:
        rows, segments = _pad([np.asarray(prompt) for prompt in prompts], width, left=False)
        starts = np.full((len(prompts), 1), start_id, np.int32)
        batch = {
            "inputs": starts,
            "segment_ids": np.ones_like(starts),
            "positions": np.zeros_like(starts),
            "encoder_inputs": rows,
            "encoder_segment_ids": segments,
            "encoder_positions": np.broadcast_to(np.arange(width, dtype=np.int32), rows.shape).copy(),
        }
    allowed = np.ones(model.config.vocab_size, bool) if writable is None else writable
    run = _compiled(model, config.max_new_tokens, config.temperature > 0.0)
    rng, temperature = jax.random.key(config.seed), max(config.temperature, 1e-6)
    tokens = gathered(run(params, batch, rng, temperature, end_id, allowed))
    ends = [np.flatnonzero(row == end_id) for row in tokens]
    return [row[: end[0]] if end.size else row for row, end in zip(tokens, ends, strict=True)]


def require_generator(family: str) -> None:
    """Raise UserError for a family that cannot write text."""
    if family == "encoder_only":
        raise UserError("an encoder_only model cannot generate text: it predicts masked tokens; use gpt or t5")


def _pad(rows: list[np.ndarray], width: int, left: bool) -> tuple[np.ndarray, np.ndarray]:
    padded, segments = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        padded[i, place], segments[i, place] = row, 1
    return padded, segments


@functools.lru_cache(maxsize=16)
def _compiled(model: Model, max_new_tokens: int, samples: bool) -> Any:
    """Return jitted run(params, batch, rng, temperature, end_id, allowed [V]) -> tokens [B, max_new_tokens]."""

    def run(
        params: Params, batch: dict[str, jax.Array], rng: jax.Array, temperature: float, end_id: int,
        allowed_V: jax.Array,
    ) -> jax.Array:  # fmt: skip
        prompt_BT = batch["inputs"]
        num_rows, width = prompt_BT.shape
        fresh_BN = jnp.ones((num_rows, max_new_tokens), jnp.int32)
        weights = model.unstacked(params)  # once: the loop takes nothing out of a stack
        cache = model.start(weights, batch, jnp.concatenate([batch["segment_ids"], fresh_BN], axis=1))

        def choose(hidden_BD: jax.Array, count: jax.Array | int) -> jax.Array:
            logits_BV = model.project(weights, hidden_BD)
            beyond = logits_BV.shape[-1] - len(allowed_V)  # rows of the table that are no token's
            logits_BV = jnp.where(jnp.pad(allowed_V, (0, beyond)), logits_BV, -jnp.inf)
            if samples:
                return jax.random.categorical(jax.random.fold_in(rng, count), logits_BV / temperature)
            return jnp.argmax(logits_BV, axis=-1)

        hidden, cache = model.decode(weights, cache, prompt_BT, batch["positions"], batch["segment_ids"], 0)
        first_B = choose(hidden[:, -1], 0).astype(jnp.int32)
        tokens_BN = jnp.full((num_rows, max_new_tokens), end_id, jnp.int32).at[:, 0].set(first_B)
        next_position_B = batch["positions"][:, -1] + 1

        def goes_on(loop: Any) -> jax.Array:
            count, last_B, ended_B, _, _ = loop
            return (count < max_new_tokens) & ~jnp.all(ended_B | (last_B == end_id))

        def extend(loop: Any) -> Any:
            count, last_B, ended_B, tokens_BN, cache = loop
            ended_B = ended_B | (last_B == end_id)
            positions_B1 = (next_position_B + count - 1)[:, None]
            hidden, cache = model.decode(
                weights, cache, last_B[:, None], positions_B1, jnp.ones_like(positions_B1), width + count - 1
            )
            last_B = jnp.where(ended_B, end_id, choose(hidden[:, -1], count)).astype(jnp.int32)
            tokens_BN = jax.lax.dynamic_update_slice_in_dim(tokens_BN, last_B[:, None], count, axis=1)
            return count + 1, last_B, ended_B, tokens_BN, cache

        start = (jnp.int32(1), first_B, jnp.zeros(num_rows, bool), tokens_BN, cache)
        return jax.lax.while_loop(goes_on, extend, start)[3]

    return jax.jit(run)
