"""Attention: one function that attends, by whichever implementation was chosen.

Shape suffixes: B batch, T queries, S keys, H heads, K head size.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.models.blockwise import Reach, blocks_of, read_in_blocks
from jaxformer.models.dropout import kept
from jaxformer.models.kernels import KERNELS
from jaxformer.models.sight import Sight, Turns


def wide(dtype: Any) -> Any:
    """Return the type in which softmax, norms and logits of an activation's dtype are computed: float32 at least."""
    return jnp.promote_types(dtype, jnp.float32)


def attend(
    q_BTHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    sight: Sight | Turns,
    bias_1HTS: jax.Array | None = None,
    *,
    scale: float,
    dropout: float = 0.0,
    dropout_rng: jax.Array | None = None,
    mesh: Any = None,
) -> jax.Array:
    """Return [B, T, H, K]: softmax(scale q k + bias) v over the keys that each query sees, by the implementation that
    the sight names; softmax in float32 or wider. Activations are split over the mesh, where one is given."""
    if isinstance(sight, Turns):
        read = functools.partial(attend, q_BTHK, k_BSHK, v_BSHK, scale=scale, dropout=dropout, dropout_rng=dropout_rng)
        return jax.lax.cond(
            sight.is_banded,
            lambda: read(sight.banded, bias_1HTS, mesh=mesh),
            lambda: read(sight.dense, bias_1HTS, mesh=mesh),
        )
    if sight.implementation in KERNELS:
        return KERNELS[sight.implementation](q_BTHK, k_BSHK, v_BSHK, bias_1HTS, sight, scale=scale, mesh=mesh)
    if sight.mask_B1TS is None:
        raise ValueError(f"attention implementation '{sight.implementation}' reads a mask")
    return attend_masked(
        q_BTHK, k_BSHK, v_BSHK, sight.mask_B1TS, bias_1HTS, scale=scale, dropout=dropout, dropout_rng=dropout_rng,
        implementation=sight.implementation, reach=sight.reach,
    )  # fmt: skip


def attend_masked(
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
    """Return what `attend` does over the keys that a mask shows, by `einsum`, `blockwise` or `xla`.

    `blockwise` leaves out keys beyond `reach`, which the mask must not show. `xla` is `jax.nn.dot_product_attention`
    and knows no dropout: with a dropout rng and a rate above 0 it raises ValueError (the config refuses that before).
    """
    if implementation == "blockwise":
        blocks = blocks_of(q_BTHK.shape[1], k_BSHK.shape[1], reach)
        rng = dropout_rng if dropout > 0.0 else None
        q_BHTK, k_BHSK, v_BHSK = (x.swapaxes(1, 2) for x in (q_BTHK * scale, k_BSHK, v_BSHK))
        return read_in_blocks(q_BHTK, k_BHSK, v_BHSK, mask_B1TS, bias_1HTS, rng, blocks, dropout)
    if implementation == "xla":
        if dropout_rng is not None and dropout > 0.0:
            raise ValueError(f"attention implementation '{implementation}' has no attention dropout")
        bias = None if bias_1HTS is None else bias_1HTS.astype(q_BTHK.dtype)
        mask = jnp.broadcast_to(mask_B1TS, (*mask_B1TS.shape[:2], q_BTHK.shape[1], k_BSHK.shape[1]))
        product: Any = jax.nn.dot_product_attention  # its types ask for literal names of implementations
        return product(q_BTHK, k_BSHK, v_BSHK, bias=bias, mask=mask, scale=scale, implementation="xla")
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
