"""Learning a handful of a task's examples by heart, in one compiled loop."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxformer.models.model import Model
from jaxformer.training import TrainState, init_state, losses_of, make_train_step

Rows = list[dict[str, Any]]


def batch(task: Any, rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return the arrays of a task's examples, one row each."""
    arrays = [task(row, np.random.default_rng(0)) for row in rows]
    return {name: np.stack([one[name] for one in arrays]) for name in arrays[0]}


def mixed_up(rows: Rows, rng: np.random.Generator) -> Rows:
    """Return examples with each other's labels."""
    return [row | {"label": rows[other]["label"]} for row, other in zip(rows, rng.permutation(len(rows)), strict=True)]


def trainer(
    task: Any, model: Model, optimizer: optax.GradientTransformation, steps: int
) -> Callable[[dict[str, np.ndarray]], Any]:
    """Return a function from a batch to the parameters that have learnt it for so many steps, from the same start."""
    step = make_train_step(model, losses_of(task), optimizer)

    @jax.jit
    def trained(arrays: dict[str, jax.Array]) -> Any:
        def update(_: Any, state: TrainState) -> TrainState:
            return step(state, arrays, jax.random.key(1), 0.0)[0]  # optax's optimizers have a rate of their own

        return jax.lax.fori_loop(0, steps, update, init_state(model, optimizer, jax.random.key(0))).params

    return trained
