"""Distillation (DistilBERT, section 2): a student learns from a teacher's distributions and hidden states.

The losses are sums over positions, as all losses here are; the step divides them by counts over the whole batch.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.training.losses import weighted

POSITIONS = ("all", "predicted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """`teacher` is a run directory, trained here or imported. The loss is `hard_weight` x the objective's own +
    `soft_weight` x T^2 KL(teacher || student), both softened by `temperature` T, + `cosine_weight` x (1 - cosine of
    the last hidden states). The last two are means over "all" tokens that are read (of an encoder-decoder: by the
    decoder), or only over those that are "predicted". A fresh student begins with the teacher's `layers`, in this
    order, and its embeddings; without any its parameters are random.

    The paper gives no weights; these are those of the command that its authors published.
    """

    teacher: str
    layers: tuple[int, ...] = ()
    temperature: float = 2.0
    soft_weight: float = 5.0
    hard_weight: float = 2.0
    cosine_weight: float = 1.0
    positions: str = "all"

    def __post_init__(self) -> None:
        if not self.teacher:
            raise UserError("distillation.teacher: give the run directory of the teacher")
        check_range("distillation.temperature", self.temperature, above=0)
        for key in ("soft_weight", "hard_weight", "cosine_weight"):
            check_range(f"distillation.{key}", getattr(self, key), at_least=0)
        if self.soft_weight + self.cosine_weight == 0:
            raise UserError("distillation.soft_weight: with it and cosine_weight 0 the teacher teaches nothing")
        check_choice("distillation.positions", self.positions, POSITIONS)
        if list(self.layers) != sorted({layer for layer in self.layers if layer >= 0}):
            raise UserError(f"distillation.layers: {self.layers} must be numbers of layers from 0 on, in rising order")


def soft_loss(student: jax.Array, teacher: jax.Array, mask: jax.Array, temperature: float) -> jax.Array:
    """Return the sum over positions of `mask` [...] of T^2 KL(teacher || student), of logits [..., V] divided by T.

    T^2 keeps the gradients' size whatever the temperature (Hinton et al. 2015, section 2).
    """
    log_p = jax.nn.log_softmax(teacher / temperature, axis=-1)
    log_q = jax.nn.log_softmax(student / temperature, axis=-1)
    return weighted(temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), mask)


def cosine_loss(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the sum over positions of `mask` [...] of 1 - cos(student, teacher), of hidden states [..., D]."""
    student, teacher = student.astype(jnp.float32), teacher.astype(jnp.float32)
    # The square root of a sum that is never 0: padding may be, and its gradient must stay finite.
    norms = jnp.sqrt(jnp.sum(student**2, axis=-1) + 1e-16) * jnp.sqrt(jnp.sum(teacher**2, axis=-1) + 1e-16)
    return weighted(1.0 - jnp.sum(student * teacher, axis=-1) / norms, mask)
