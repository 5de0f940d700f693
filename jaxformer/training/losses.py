"""Losses as (sum, count) pairs: divided only once the count over the whole global batch is known, so that sharded,
accumulated, packed and padded batches give the exact mean."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, targets: jax.Array, vocab_size: int, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> jax.Array:
    """Return the cross-entropy [...] in nats of float32 logits [..., V'] with int32 targets [...].

    `label_smoothing` e puts 1 - e on the target and e / (vocab_size - 1) on every other entry (Transformer, section
    5.4). `z_loss` adds z_loss * log(Z)^2 (T5's code), which keeps the logits' normaliser near 1. Entries from
    `vocab_size` on are padding of the table and take no part.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    loss = log_z - target_logits
    if label_smoothing > 0.0:
        share = label_smoothing / (vocab_size - 1)
        total = jnp.sum(logits[..., :vocab_size], axis=-1) - target_logits
        others = (vocab_size - 1) * log_z - total
        loss = (1.0 - label_smoothing) * loss + share * others
    if z_loss > 0.0:
        loss = loss + z_loss * log_z**2
    return loss


def head_loss(kind: str, logits: jax.Array, targets: jax.Array, label_smoothing: float) -> tuple[jax.Array, jax.Array]:
    """Return (loss, whether the prediction is right) of every prediction of a head, float32 of the weights' shape.

    Logits [..., C] with int32 targets [...] ("softmax", of classes, choices or "places" of the row); [..., C] with
    float 0 or 1 for each class ("sigmoid"): the mean over classes; [..., 1] with float targets [...] ("squared"): the
    square of the difference, and nothing is right or wrong.
    """
    if kind == "squared":
        difference = logits[..., 0] - targets
        return difference**2, jnp.zeros_like(difference)
    if kind == "sigmoid":
        right = (logits > 0) == (targets > 0.5)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1), jnp.mean(right, axis=-1)
    loss = cross_entropy(logits, targets, logits.shape[-1], label_smoothing=label_smoothing)
    return loss, (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)


def weighted(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the sum of values x weights; entries of weight 0 add exactly 0 whatever their value."""
    return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights)


def in_chunks(score: Callable[..., Any], arrays: tuple[jax.Array, ...], chunk: int) -> tuple[Any, Any]:
    """Return score(*arrays) -> (tree of sums, tree of arrays [B, T]) of arrays [B, T, …] while no more than `chunk`
    positions of each row are scored at a time, in the backward pass too; 0 scores all at once.

    So logits over a large vocabulary are never held whole: they are computed again in the backward pass, one matrix
    product more than the three of the head. Rows stay where they are: devices that share a batch exchange nothing.
    """
    rows, length = arrays[0].shape[:2]
    if not chunk or chunk >= length:
        return score(*arrays)
    count = -(-length // chunk)

    def cut(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, 0), (0, count * chunk - length), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(padded.reshape(rows, count, chunk, *x.shape[2:]), 1, 0)

    def add(total: Any, piece: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        sums, found = jax.checkpoint(score)(*piece)
        return jax.tree.map(jnp.add, total, sums), found

    shapes = jax.eval_shape(score, *(x[:, :chunk] for x in arrays))[0]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, found = jax.lax.scan(add, zeros, tuple(cut(x) for x in arrays))
    return total, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(rows, -1)[:, :length], found)
