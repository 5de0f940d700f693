"""Positions as formulas: sinusoids to add, rotations of queries and keys, and T5's relative buckets.

Shape suffixes: B batch, T length, D d_model, H heads, K head size.
"""

import bisect
import functools

import jax
import jax.numpy as jnp
import numpy as np

Rotation = tuple[jax.Array, jax.Array]  # cosines and sines, each [B, T, K / 2]


def sinusoids(
    positions_BT: jax.Array, d_model: int, *, reaches_base: bool = False, max_length: int = 8192
) -> jax.Array:
    """Return float32 [B, T, D]: all sines, then all cosines, of position x 10000^-exponent.

    The exponents are the paper's 2i/d (Transformer, section 3.5), which interleaves sines and cosines: another order of
    the same features. Concatenated is the form of Marian. With `reaches_base` they are i/(d/2 - 1) as in tensor2tensor,
    whose last feature has period 2 pi 10000.

    Angles of float32 would be 2e-4 off at place 4096, so they come from tables in float64. Places below `max_length`
    are exact to float32's rounding; later ones, which no table has, to 2e-7.
    """
    length = max(max_length, _STRETCHES)
    near_ND = _sinusoid_table(length, 1, d_model, reaches_base)
    far_ND = _sinusoid_table(_STRETCHES, length, d_model, reaches_base)
    # A stretch is as long as the first table; the first begins at angle 0 and leaves what it turns as it is.
    sin_near, cos_near = jnp.split(jnp.asarray(near_ND)[positions_BT % length], 2, axis=-1)
    sin_far, cos_far = jnp.split(jnp.asarray(far_ND)[positions_BT // length], 2, axis=-1)
    sines, cosines = sin_near * cos_far + cos_near * sin_far, cos_near * cos_far - sin_near * sin_far
    return jnp.concatenate([sines, cosines], axis=-1)


_STRETCHES = 512


@functools.lru_cache(maxsize=8)
def _sinusoid_table(count: int, step: int, d_model: int, reaches_base: bool) -> np.ndarray:
    """Return float32 [count, D]: what `sinusoids` gives for the places 0, step, 2 step, …"""
    half = d_model // 2
    frequencies = 10_000.0 ** (-np.arange(half) / (max(half - 1, 1) if reaches_base else half))
    angles = np.arange(count)[:, None] * step * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


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
    buckets = jnp.asarray(_buckets(num_buckets, max_distance))
    return offset + buckets[jnp.minimum(distance, max_distance)]


@functools.lru_cache(maxsize=8)
def _buckets(num_buckets: int, max_distance: int) -> np.ndarray:
    """Return int32 [max_distance + 1]: the bucket of every distance in one direction; beyond, the last goes on.

    A far distance n is in bucket exact + floor(far log(n / exact) / log(max_distance / exact)). That this is exact + k
    or more is a comparison of whole numbers, so that no rounding of a logarithm decides at exact powers.
    """
    exact = num_buckets // 2
    far = num_buckets - exact
    starts = [
        bisect.bisect_left(range(max_distance), max_distance**k * exact**far, key=lambda n: n**far * exact**k)
        for k in range(1, far)
    ]
    distances = np.arange(max_distance + 1)
    return np.where(distances < exact, distances, exact + np.searchsorted(starts, distances, "right")).astype(np.int32)
