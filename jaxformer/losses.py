"""Losses as (sum, count) pairs: divided only once the count over the whole global batch is known, so that sharded,
accumulated, packed and padded batches give the exact mean."""

import jax
import jax.numpy as jnp


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


def weighted(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the float32 sum of values x weights; entries of weight 0 add exactly 0 whatever their value."""
    return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights, dtype=jnp.float32)
