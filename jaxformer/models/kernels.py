"""Attention by kernels that others wrote for GPUs and TPUs. None holds scores [B, H, T, S]; none knows dropout.

What each can do, and so when it is called, is the table's to say (models/implementations.py).

Shape suffixes: B batch, T queries, S keys, H heads, K head size.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.devices import partition
from jaxformer.models.sight import Sight

LANES = 128  # what the rows that a TPU's kernels read must be a multiple of
BLOCKS = (512, 384, 256, 128)  # queries and keys that they read at a time: the largest that divides a row
NOBODY = -1  # the segment of what a row is filled up with


def cudnn(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, bias_1HTS: jax.Array | None, sight: Sight,
    *, scale: float, mesh: Any = None,
) -> jax.Array:  # fmt: skip
    """Return [B, T, H, K] by cuDNN, which JAX splits over devices by itself.

    Causal rows need nothing but the flag: what stands behind them as padding, nobody before it sees. Otherwise lengths
    say where a row ends; a row of padding alone counts as one token, so that no softmax is empty. Queries that are
    padding read zeros. Packed rows, prefixes and windows to both sides come as a mask [B, 1, T, S], which becomes a
    bias without a gradient.
    """
    more: dict[str, Any] = {"is_causal": sight.visibility == "causal"}
    if sight.mask_B1TS is not None:
        more["mask"] = sight.mask_B1TS
    elif sight.visibility == "full":
        more["query_seq_lengths"] = _lengths(sight.query_segments_BT)
        more["key_value_seq_lengths"] = _lengths(sight.key_segments_BS)
    elif sight.window is not None:  # what is seen before one's own place, which JAX counts apart
        more["local_window_size"] = (sight.window - 1, 0)
    if bias_1HTS is not None:
        more["bias"] = bias_1HTS.astype(q_BTHK.dtype)
    product: Any = jax.nn.dot_product_attention  # its types ask for literal names of implementations
    return product(q_BTHK, k_BSHK, v_BSHK, scale=scale, implementation="cudnn", **more)


def _lengths(segments_BT: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.sum(segments_BT > 0, axis=1, dtype=jnp.int32), 1)


def splash(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, bias_1HTS: None, sight: Sight,
    *, scale: float, mesh: Any = None,
) -> jax.Array:  # fmt: skip
    """Return [B, T, H, K] by Pallas' splash attention: segments, and causality or a window, of which it leaves out
    blocks that nobody sees."""
    from jax.experimental.pallas.ops.tpu import splash_attention as pallas

    def read(q_BHTK: jax.Array, k_BHSK: jax.Array, v_BHSK: jax.Array, query_BT: jax.Array, key_BS: jax.Array) -> Any:
        heads, shape = q_BHTK.shape[1], (q_BHTK.shape[2], k_BHSK.shape[2])
        seen = pallas.LocalMask(shape, sight.reach, 0) if sight.reach != (None, None) else pallas.FullMask(shape)
        queries, keys = map(_block, shape)
        blocks = pallas.BlockSizes(
            block_q=queries, block_kv=keys, block_q_dkv=queries, block_kv_dkv=keys, block_q_dq=queries, block_kv_dq=keys
        )
        masks = pallas.MultiHeadMask([seen] * heads)
        kernel = pallas.make_splash_mha(masks, head_shards=1, q_seq_shards=1, block_sizes=blocks)
        return jax.vmap(kernel)(q_BHTK, k_BHSK, v_BHSK, pallas.SegmentIds(query_BT, key_BS))

    return _on_each_device(read, q_BTHK * scale, k_BSHK, v_BSHK, None, sight, mesh)


def flash(
    q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array, bias_1HTS: jax.Array | None, sight: Sight,
    *, scale: float, mesh: Any = None,
) -> jax.Array:  # fmt: skip
    """Return [B, T, H, K] by Pallas' flash attention: segments, causality, and a position bias.

    Of a bias it wants a copy for every row, [B, H, T, S], and returns as many gradients; so rows that share one take
    turns. A TPU's core computes the blocks of a kernel one after the other in any case.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    def read(
        q_BHTK: jax.Array, k_BHSK: jax.Array, v_BHSK: jax.Array, query_BT: jax.Array, key_BS: jax.Array,
        bias_1HTS: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        queries, keys = _block(q_BHTK.shape[2]), _block(k_BHSK.shape[2])
        blocks = pallas.BlockSizes(
            block_q=queries, block_k_major=keys, block_k=keys, block_b=1, block_q_major_dkv=queries,
            block_k_major_dkv=keys, block_k_dkv=keys, block_q_dkv=queries, block_k_major_dq=keys, block_k_dq=keys,
            block_q_dq=queries,
        )  # fmt: skip
        attend = functools.partial(
            pallas.flash_attention, causal=sight.visibility == "causal", sm_scale=1.0, block_sizes=blocks
        )
        if bias_1HTS is None:
            return attend(q_BHTK, k_BHSK, v_BHSK, None, pallas.SegmentIds(query_BT, key_BS))

        def row(arrays: tuple[jax.Array, ...]) -> jax.Array:
            q_1HTK, k_1HSK, v_1HSK, query_1T, key_1S = (array[None] for array in arrays)
            return attend(q_1HTK, k_1HSK, v_1HSK, bias_1HTS, pallas.SegmentIds(query_1T, key_1S))[0]

        return jax.lax.map(row, (q_BHTK, k_BHSK, v_BHSK, query_BT, key_BS))

    return _on_each_device(read, q_BTHK * scale, k_BSHK, v_BSHK, bias_1HTS, sight, mesh)


KERNELS: dict[str, Callable[..., jax.Array]] = {"cudnn": cudnn, "splash": splash, "flash": flash}


def _block(length: int) -> int:
    return next(size for size in BLOCKS if length % size == 0)


def _on_each_device(
    read: Callable[..., jax.Array], q_BTHK: jax.Array, k_BSHK: jax.Array, v_BSHK: jax.Array,
    bias_1HTS: jax.Array | None, sight: Sight, mesh: Any,
) -> jax.Array:  # fmt: skip
    """Return [B, T, H, K] of a kernel of Pallas, which reads rows by head and of multiples of 128.

    XLA cannot split such a kernel: of a mesh each device calls it on its own rows and heads.
    """
    rows, keys = q_BTHK.shape[1], k_BSHK.shape[1]
    more_rows, more_keys = -rows % LANES, -keys % LANES

    def by_head(x_BTHK: jax.Array, more: int) -> jax.Array:
        return jnp.pad(x_BTHK.swapaxes(1, 2), ((0, 0), (0, 0), (0, more), (0, 0)))

    q_BHTK, k_BHSK, v_BHSK = by_head(q_BTHK, more_rows), by_head(k_BSHK, more_keys), by_head(v_BSHK, more_keys)
    segments = [
        jnp.pad(ids, ((0, 0), (0, more)), constant_values=NOBODY)
        for ids, more in ((sight.query_segments_BT, more_rows), (sight.key_segments_BS, more_keys))
    ]
    arrays = [q_BHTK, k_BHSK, v_BHSK, *segments]
    kinds = [("batch", "heads", "", "")] * 3 + [("batch", "")] * 2
    if bias_1HTS is not None:  # in float32, in which the gradients of all rows are added up
        arrays.append(jnp.pad(bias_1HTS, ((0, 0), (0, 0), (0, more_rows), (0, more_keys))))
        kinds.append(("", "heads", "", ""))
    if mesh is not None and mesh.size > 1:
        specs = tuple(partition(mesh, kind, array.shape) for kind, array in zip(kinds, arrays, strict=True))
        read = jax.shard_map(read, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    return read(*arrays)[:, :, :rows].swapaxes(1, 2)
