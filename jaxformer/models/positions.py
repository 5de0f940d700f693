"""Positions as formulas: sinusoids to add, rotations of queries and keys, and T5's relative buckets.

Shape suffixes: B batch, T length, D d_model, H heads, K head size.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines, each [B, T, K / 2]


def sinusoids(positions_BT: jax.Array, d_model: int, *, reaches_base: bool = False) -> jax.Array:
    """Return float32 [B, T, D]: all sines, then all cosines, of position x 10000^-exponent.

    The exponents are the paper's 2i/d (Transformer, section 3.5), which interleaves sines and cosines: another order of
    the same features. Concatenated is the form of Marian. With `reaches_base` they are i/(d/2 - 1) as in tensor2tensor,
    whose last feature has period 2 pi 10000.
    """
    half = d_model // 2
    last = max(half - 1, 1) if reaches_base else half
    frequencies = jnp.asarray(10_000.0 ** (-np.arange(half) / last), jnp.float32)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies[None, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotations(positions_BT: jax.Array, head_dim: int, base: float = 10_000.0) -> Rotation:
    """Return the cosines and sines of position x base^(-2i / head_dim) (RoFormer, section 3.2.2)."""
    frequencies = jnp.asarray(base ** (-2.0 * np.arange(head_dim // 2) / head_dim), jnp.float32)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotated(x_BTHK: jax.Array, rotation: Rotation | None) -> jax.Array:
    """Turn each pair (k, k + K/2) of features by its angle; None leaves x as it is.

    RoFormer pairs neighbours; halves are the same up to a permutation of the features, and what released weights use.
    """
    if rotation is None:
        return x_BTHK
    cos_BT1K, sin_BT1K = (part[:, :, None].astype(x_BTHK.dtype) for part in rotation)
    first, second = jnp.split(x_BTHK, 2, axis=-1)
    return jnp.concatenate([first * cos_BT1K - second * sin_BT1K, second * cos_BT1K + first * sin_BT1K], axis=-1)


def relative_buckets(
    relative: jax.Array, *, bidirectional: bool, num_buckets: int = 32, max_distance: int = 128
) -> jax.Array:
    """Map key place minus query place to T5's buckets (T5, section 2.1): exact when near, logarithmic when far."""
    offset = jnp.zeros_like(relative)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(relative > 0, num_buckets, 0)
        distance = jnp.abs(relative)
    else:
        distance = jnp.maximum(-relative, 0)
    exact = num_buckets // 2
    # The logarithm of 0 is never used: distances below `exact` take the other branch.
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return offset + jnp.where(distance < exact, distance, far)
