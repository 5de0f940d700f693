"""An exponential moving average of the parameters (Polyak and Juditsky 1992), kept beside the optimizer's state.

After update n (from 1) every number e of it moves towards that of the parameters, p: e + (1 - d) (p - e), with d the
smaller of `training.ema_decay` and (1 + n) / (10 + n). It begins as the parameters do; while few updates are done d is
small, so that what training began with is soon forgotten and no bias need be corrected (as TensorFlow's
ExponentialMovingAverage has it). Training itself never reads it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxformer.models import Params
from jaxformer.training.step import TrainState


class Averaging(NamedTuple):
    """The state of an optimizer beside which the parameters are averaged. Checkpoints have the average by the name of
    its field: see checkpoint/source.py."""

    inner: Any
    ema: Params
    num_updates: jax.Array  # int32 scalar: how many are in it


def with_moving_average(
    optimizer: optax.GradientTransformationExtraArgs, decay: float
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer that averages the parameters, too; without a decay, the same."""
    if not decay:
        return optimizer

    def init(params: Params) -> Averaging:
        return Averaging(optimizer.init(params), _copied(params), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Averaging, params: Params, **extra: Any) -> tuple[Any, Averaging]:
        updates, inner = optimizer.update(updates, state.inner, params, **extra)
        count = state.num_updates + 1
        rest = 1.0 - jnp.minimum(decay, (1.0 + count) / (10.0 + count))
        after = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: e + rest * (p - e), state.ema, after)
        return updates, Averaging(inner, ema, count)

    return optax.GradientTransformationExtraArgs(init, update)


def parameters_of(state: TrainState, kind: str) -> Params:
    """Return the parameters of a state that were trained, or ("ema") their moving average."""
    return state.opt_state.ema if kind == "ema" else state.params


def beginning_with(state: TrainState, params: Params) -> TrainState:
    """Return a fresh state with other parameters, in which their average, if there is one, begins as they do."""
    opt_state = state.opt_state
    if isinstance(opt_state, Averaging):
        opt_state = opt_state._replace(ema=_copied(params))
    return state._replace(params=params, opt_state=opt_state)


def _copied(params: Params) -> Params:
    return jax.tree.map(jnp.copy, params)  # the step donates both
