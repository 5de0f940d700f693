"""Attention: who sees whom (`visibility_mask`), and one function that attends.

Shape suffixes: B batch, T queries, S keys, H heads, K head size.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.models.blockwise import Reach, blocks_of, read_in_blocks
from jaxformer.models.dropout import kept

IMPLEMENTATIONS = ("auto", "einsum", "blockwise", "xla", "cudnn")
WITHOUT_DROPOUT = ("xla", "cudnn")  # `jax.nn.dot_product_attention`, which knows none
# What `auto` is on a device: the implementation from so many queries on. See benchmarks/results/attention-cpu.md.
AUTO: dict[str, dict[int, str]] = {"cpu": {1: "einsum", 256: "blockwise"}, "gpu": {1: "einsum"}, "tpu": {1: "einsum"}}


def implementation_for(name: str, queries: int, device: str | None = None) -> str:
    """Return the implementation that `name` is for rows of so many queries on a device (None: the one at hand)."""
    if name != "auto":
        return name
    choices = AUTO.get(device or jax.default_backend(), {1: "einsum"})
    return choices[max(least for least in choices if least <= max(queries, 1))]


def wide(dtype: Any) -> Any:
    """Return the type in which softmax, norms and logits of an activation's dtype are computed: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def visibility_mask(
    query_segments_BT: jax.Array,
    key_segments_BS: jax.Array,
    *,
    visibility: str,
    query_places_T: jax.Array | None = None,
    key_places_S: jax.Array | None = None,
    window: int | None = None,
    prefix_length_B: jax.Array | None = None,
) -> jax.Array:
    """Return bool [B, 1, T, S]: True where query t may see key s.

    Attention stays inside a segment. `causal` sees keys at or before the query's own place in the row, `prefix` also
    every key before `prefix_length`, `full` everything. `window` keeps the nearest `window` keys on each visible side.
    Padding (segment 0) sees padding, so that no softmax is empty; the loss gives it no weight. Queries and keys stand
    at the places 0, 1, … of one row unless their places are given (generation over a cache).
    """
    mask_BTS = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    query_T1 = _places(query_places_T, query_segments_BT)[:, None]
    key_1S = _places(key_places_S, key_segments_BS)[None, :]
    if visibility != "full":
        past_BTS = (key_1S <= query_T1)[None]
        if visibility == "prefix" and prefix_length_B is not None:
            past_BTS = past_BTS | (key_1S[None] < prefix_length_B[:, None, None])
        mask_BTS = mask_BTS & past_BTS
    if window is not None:
        mask_BTS = mask_BTS & (jnp.abs(query_T1 - key_1S) < window)[None]
    return mask_BTS[:, None]


def _places(places_N: jax.Array | None, segments_BN: jax.Array) -> jax.Array:
    return jnp.arange(segments_BN.shape[1]) if places_N is None else places_N


def reach_of(visibility: str, window: int | None = None) -> Reach:
    """Return how far before and behind its own place a query may see at most, whatever the segments."""
    side = None if window is None else window - 1
    return side, 0 if visibility == "causal" else side


def attend(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask_B1TS: jax.Array,
    bias_1HTS: jax.Array | None = None,
    *,
    scale: float,
    dropout: float = 0.0,
    dropout_rng: jax.Array | None = None,
    implementation: str = "einsum",
    reach: Reach = (None, None),
) -> jax.Array:
    """Return [B, T, H, K]: softmax(scale q k + bias) v over the keys that the mask shows; softmax in float32 or wider.

    `auto` chooses by length (`implementation_for`). `blockwise` leaves out keys beyond `reach`, which the mask must not
    show. `xla` and `cudnn` go through `jax.nn.dot_product_attention` and know no dropout: with a dropout rng and a rate
    above 0 they raise ValueError (the config refuses the combination before).
    """
    implementation = implementation_for(implementation, q_BTHK.shape[1])
    if implementation == "blockwise":
        blocks = blocks_of(q_BTHK.shape[1], k_BSHK.shape[1], reach)
        rng = dropout_rng if dropout > 0.0 else None
        q_BHTK, k_BHSK, v_BHSK = (x.swapaxes(1, 2) for x in (q_BTHK * scale, k_BSHK, v_BSHK))
        return read_in_blocks(q_BHTK, k_BHSK, v_BHSK, mask_B1TS, bias_1HTS, rng, blocks, dropout)
    if implementation != "einsum":
        if dropout_rng is not None and dropout > 0.0:
            raise ValueError(f"attention implementation '{implementation}' has no attention dropout")
        bias = None if bias_1HTS is None else bias_1HTS.astype(q_BTHK.dtype)
        mask = jnp.broadcast_to(mask_B1TS, (*mask_B1TS.shape[:2], q_BTHK.shape[1], k_BSHK.shape[1]))
        product: Any = jax.nn.dot_product_attention  # its types ask for literal names of implementations
        return product(q_BTHK, k_BSHK, v_BSHK, bias=bias, mask=mask, scale=scale, implementation=implementation)
    scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK * scale, k_BSHK, preferred_element_type=wide(q_BTHK.dtype))
    if bias_1HTS is not None:
        scores_BHTS = scores_BHTS + bias_1HTS.astype(scores_BHTS.dtype)
    scores_BHTS = jnp.where(mask_B1TS, scores_BHTS, jnp.finfo(scores_BHTS.dtype).min)
    weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1).astype(v_BSHK.dtype)
    if dropout_rng is not None and dropout > 0.0:
        keep_BHTS = kept(dropout_rng, dropout, weights_BHTS.shape)
        weights_BHTS = jnp.where(keep_BHTS, weights_BHTS / (1.0 - dropout), 0.0)
    return jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK)


def attend_few(
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    v_BHSK: jax.Array,
    mask_B1TS: jax.Array,
    bias_1HTS: jax.Array | None = None,
    *,
    scale: float,
) -> jax.Array:
    """Return [B, H, T, K] as `attend` does, for a few queries over a cache.

    A product of matrices this thin costs XLA:CPU a copy of the cache or a slow kernel; plain sums read it once.
    """
    dtype = wide(q_BHTK.dtype)
    scores_BHTS = jnp.sum((q_BHTK * scale).astype(dtype)[:, :, :, None] * k_BHSK[:, :, None], axis=-1)
    if bias_1HTS is not None:
        scores_BHTS = scores_BHTS + bias_1HTS.astype(dtype)
    scores_BHTS = jnp.where(mask_B1TS, scores_BHTS, jnp.finfo(dtype).min)
    weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1).astype(v_BHSK.dtype)
    return jnp.sum(weights_BHTS.astype(dtype)[..., None] * v_BHSK[:, :, None], axis=3).astype(v_BHSK.dtype)
