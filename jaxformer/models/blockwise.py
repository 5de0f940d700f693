"""Attention in blocks of queries with a gradient of its own: scores [B, H, T, S] never exist as a whole.

Forward, each block keeps what its rows read, their largest scores and the sums of their exponentials; backward it
computes its scores again (FlashAttention's recomputation: Dao et al. 2022, section 3.1). Keys that no query of a block
can see are left out of it: half of the work of long causal rows. Blocks take turns: the scores of one are held.

Shape suffixes: B batch, T queries, S keys, H heads, K head size.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.models.dropout import kept

# Queries per block where blocks leave keys out and where they do not; blocks per row, which a program holds one by one.
SMALL, LARGE, MOST = 128, 512, 8
Reach = tuple[int | None, int | None]  # how far before and behind its own place a query may see; None: to the end


class Block(NamedTuple):
    """Queries `start` to `end` and the keys that they may see."""

    start: int
    end: int
    first_key: int
    end_key: int


def blocks_of(queries: int, keys: int, reach: Reach) -> tuple[Block, ...]:
    """Return the blocks of a row: of `SMALL` queries (`LARGE` where all keys are seen), at most `MOST` of them."""
    (before, behind), found = reach, []
    size = max(LARGE if reach == (None, None) else SMALL, math.ceil(queries / MOST))
    for start in range(0, queries, size):
        end = min(start + size, queries)
        first_key = 0 if before is None else max(start - before, 0)
        found.append(Block(start, end, first_key, keys if behind is None else min(end + behind, keys)))
    return tuple(found)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def read_in_blocks(
    q_BHTK: jax.Array,
    k_BHSK: jax.Array,
    v_BHSK: jax.Array,
    mask_B1TS: jax.Array,
    bias_1HTS: jax.Array | None,
    rng: jax.Array | None,
    blocks: tuple[Block, ...],
    dropout: float,
) -> jax.Array:
    """Return [B, T, H, K]: softmax(q k + bias) v over the keys that the mask shows; softmax in float32 or wider.

    With an `rng` weights are dropped at the rate `dropout`; which, the backward pass draws again.
    """
    return _forward(q_BHTK, k_BHSK, v_BHSK, mask_B1TS, bias_1HTS, rng, blocks, dropout)[0]


def _scores(q_BHTK: jax.Array, k_BHSK: jax.Array, mask: jax.Array, bias: jax.Array | None, block: Block) -> Any:
    """Return the masked scores [B, H, t, s] of a block."""
    queries, keys = slice(block.start, block.end), slice(block.first_key, block.end_key)
    dtype = jnp.promote_types(q_BHTK.dtype, jnp.float32)
    scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK[:, :, queries], k_BHSK[:, :, keys], preferred_element_type=dtype)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias[:, :, queries, keys].astype(dtype)
    return jnp.where(mask[:, :, queries, keys], scores_BHTS, jnp.finfo(dtype).min)


def _dropped(x_BHTS: jax.Array, rng: jax.Array | None, dropout: float, block: Block) -> jax.Array:
    """Return what dropout leaves of a block's entries, not yet scaled up."""
    if rng is None:
        return x_BHTS
    return jnp.where(kept(jax.random.fold_in(rng, block.start), dropout, x_BHTS.shape), x_BHTS, 0.0)


def _forward(
    q_BHTK: jax.Array, k_BHSK: jax.Array, v_BHSK: jax.Array, mask_B1TS: jax.Array, bias_1HTS: jax.Array | None,
    rng: jax.Array | None, blocks: tuple[Block, ...], dropout: float,
) -> tuple[jax.Array, Any]:  # fmt: skip
    read: list[jax.Array] = []
    largest, sums = [], []
    q = q_BHTK
    for block in blocks:
        if read:  # XLA:CPU would otherwise compute all scores first
            q, read[-1] = jax.lax.optimization_barrier((q, read[-1]))
        scores_BHTS = _scores(q, k_BHSK, mask_B1TS, bias_1HTS, block)
        largest.append(jnp.max(scores_BHTS, axis=-1, keepdims=True))
        weights_BHTS = jnp.exp(scores_BHTS - largest[-1])
        sums.append(jnp.sum(weights_BHTS, axis=-1, keepdims=True))
        weights_BHTS = _dropped(weights_BHTS, rng, dropout, block).astype(v_BHSK.dtype)
        values_BHSK = v_BHSK[:, :, block.first_key : block.end_key]
        y_BHTK = jnp.einsum("BHTS,BHSK->BHTK", weights_BHTS, values_BHSK, preferred_element_type=scores_BHTS.dtype)
        read.append((y_BHTK / (sums[-1] * (1.0 - dropout))).astype(v_BHSK.dtype))
    y_BTHK, largest_BHT1, sums_BHT1 = (_row(parts) for parts in (read, largest, sums))
    y_BTHK = y_BTHK.swapaxes(1, 2)
    return y_BTHK, (q_BHTK, k_BHSK, v_BHSK, mask_B1TS, bias_1HTS, rng, y_BTHK, largest_BHT1, sums_BHT1)


def _backward(blocks: tuple[Block, ...], dropout: float, saved: Any, g_BTHK: jax.Array) -> tuple[Any, ...]:
    # Without the barrier XLA would find the forward pass's scores to be the same, and keep them.
    saved, g_BTHK = jax.lax.optimization_barrier((saved, g_BTHK))
    q_BHTK, k_BHSK, v_BHSK, mask_B1TS, bias_1HTS, rng, y_BTHK, largest_BHT1, sums_BHT1 = saved
    dtype, wide = q_BHTK.dtype, sums_BHT1.dtype
    g_BHTK = g_BTHK.swapaxes(1, 2).astype(wide)
    # The derivative of a softmax needs each row's sum of weight times gradient, which is what it read times gradient.
    means_BHT1 = jnp.sum(g_BHTK * y_BTHK.swapaxes(1, 2).astype(wide), axis=-1, keepdims=True) / sums_BHT1
    g_BHTK = (g_BHTK / (sums_BHT1 * (1.0 - dropout))).astype(dtype)
    dq: list[jax.Array] = []
    dbias: list[jax.Array] = []
    # Sums over queries are made transposed: XLA:CPU has a fast product for these forms only.
    dk_BHKS, dv_BHKS = (jnp.zeros(x.swapaxes(2, 3).shape, wide) for x in (k_BHSK, v_BHSK))
    q_BHKT, g_BHKT = q_BHTK.swapaxes(2, 3), g_BHTK.swapaxes(2, 3)
    for block in blocks:
        if dq:
            (q_BHTK, g_BHTK, q_BHKT, g_BHKT), dq[-1], dk_BHKS, dv_BHKS = jax.lax.optimization_barrier(
                ((q_BHTK, g_BHTK, q_BHKT, g_BHKT), dq[-1], dk_BHKS, dv_BHKS)
            )
        queries, keys = slice(block.start, block.end), slice(block.first_key, block.end_key)
        scores_BHTS = _scores(q_BHTK, k_BHSK, mask_B1TS, bias_1HTS, block)
        weights_BHTS = jnp.exp(scores_BHTS - largest_BHT1[:, :, queries])
        dweights_BHTS = jnp.einsum(
            "BHTK,BHSK->BHTS", g_BHTK[:, :, queries], v_BHSK[:, :, keys], preferred_element_type=wide
        )
        dscores_BHTS = weights_BHTS * (_dropped(dweights_BHTS, rng, dropout, block) - means_BHT1[:, :, queries])
        if bias_1HTS is not None:
            places = (block.first_key, k_BHSK.shape[2] - block.end_key, 0)
            dbias_1HTS = jnp.sum(dscores_BHTS, axis=0, keepdims=True)
            dbias.append(jax.lax.pad(dbias_1HTS, jnp.zeros((), wide), ((0, 0, 0),) * 3 + (places,)))
        weights_BHTS = _dropped(weights_BHTS, rng, dropout, block).astype(dtype)
        dscores_BHTS = dscores_BHTS.astype(dtype)
        dq.append(jnp.einsum("BHTS,BHSK->BHTK", dscores_BHTS, k_BHSK[:, :, keys]))
        dk_BHKS = _added(dk_BHKS, jnp.einsum("BHKT,BHTS->BHKS", q_BHKT[..., queries], dscores_BHTS), block)
        dv_BHKS = _added(dv_BHKS, jnp.einsum("BHKT,BHTS->BHKS", g_BHKT[..., queries], weights_BHTS), block)
    dk_BHSK, dv_BHSK = (x.swapaxes(2, 3).astype(dtype) for x in (dk_BHKS, dv_BHKS))
    return _row(dq), dk_BHSK, dv_BHSK, None, (_row(dbias).astype(bias_1HTS.dtype) if dbias else None), None


def _added(total_BHKS: jax.Array, part_BHKS: jax.Array, block: Block) -> jax.Array:
    """Return the sum with a block's part added to the places of its keys."""
    if part_BHKS.shape == total_BHKS.shape:
        return total_BHKS + part_BHKS
    part_BHKS = total_BHKS[..., block.first_key : block.end_key] + part_BHKS
    return jax.lax.dynamic_update_slice_in_dim(total_BHKS, part_BHKS, block.first_key, axis=-1)


def _row(parts: list[jax.Array]) -> jax.Array:
    """Return what the blocks have of a row, put together along its queries."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


read_in_blocks.defvjp(_forward, _backward)
