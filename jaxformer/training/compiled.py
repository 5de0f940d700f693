"""The compiled functions of a run: its step, its evaluation, and how its state is made, on a mesh of devices."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from jaxformer.devices import options_of_one_run, placed, replicated, split, state_shardings
from jaxformer.models import Model
from jaxformer.training.moving_average import with_moving_average
from jaxformer.training.optimizers import Optimizer, freeze, make_optimizer
from jaxformer.training.step import Losses, Teaching, TrainState, init_state, make_eval_step, make_train_step


class Steps(NamedTuple):
    """The compiled functions of a run, and where the arrays of its state live."""

    make_state: Any  # (rng) -> state, every array made where it lives
    train_step: Any  # (state, batch, rng, learning_rate[, teacher_params]) -> (state, metrics); the state is donated
    eval_step: Any  # (params, batch) -> (sums, predictions)
    shardings: Any  # of the state


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What decides a compiled step beside the model and the mesh. Equal ones share it."""

    losses: Losses
    optimizer: Optimizer  # its learning rate and schedule are not read: see `without_schedule`
    trainable: tuple[str, ...] = (".*",)
    accumulation_steps: int = 1
    strategy: str = "mesh"
    skips: bool = False
    ema_decay: float = 0.0
    teaching: Teaching | None = None


@functools.lru_cache(maxsize=8)
def compiled_steps(model: Model, settings: StepSettings, mesh: Mesh) -> Steps:
    """Return the jitted (or pmapped) functions of a run on a mesh.

    Runs of one shape in one process, as sweeps and fine-tunings have many, share them, and are traced and compiled
    once.
    """
    update = freeze(make_optimizer(settings.optimizer, model.shapes), settings.trainable, model.shapes)
    update = with_moving_average(update, settings.ema_decay)
    everywhere = replicated(mesh)

    def make_state(rng: jax.Array) -> TrainState:
        return init_state(model, update, rng)

    shardings = state_shardings(mesh, jax.eval_shape(make_state, jax.random.key(0)), model.config.head_dim)
    step = functools.partial(
        make_train_step, model, settings.losses, update, settings.accumulation_steps, settings.teaching,
        skips=settings.skips,
    )  # fmt: skip
    if settings.strategy == "pmap":
        train_step = _pmapped(step(axis="data"), mesh)
    else:
        shard = functools.partial(jax.lax.with_sharding_constraint, shardings=shardings.params)
        train_step = jax.jit(
            step(shard_gradients=shard) if mesh.size > 1 else step(),
            donate_argnums=0,
            out_shardings=(shardings, everywhere),
        )
    eval_step = compiled_eval_step(model, settings.losses)
    made = jax.jit(make_state, out_shardings=shardings, compiler_options=options_of_one_run())
    return Steps(made, train_step, eval_step, shardings)


def compiling(
    steps: Steps, mesh: Mesh, batch: Mapping[str, tuple[tuple[int, ...], Any]], rng: jax.Array, *taught: Any
) -> threading.Thread:
    """Start to compile a jitted step, for a global batch of (shape, dtype) by name, in a thread: XLA needs no Python.
    Once that has ended, the first call of the step finds it compiled, or raises what the thread did not tell."""
    state = placed(jax.eval_shape(steps.make_state, rng), steps.shardings)  # here: both threads would trace it
    rows = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=split(mesh)) for name, (shape, dtype) in batch.items()}

    def work() -> None:
        with contextlib.suppress(Exception):
            steps.train_step.lower(state, rows, rng, 1.0, *taught).compile()

    thread = threading.Thread(target=work, name="compiling")
    thread.start()
    return thread


@functools.lru_cache(maxsize=8)
def compiled_eval_step(model: Model, losses: Losses) -> Any:
    """Return the jitted evaluation (params, batch) -> (sums, predictions), which training and `evaluate` share."""
    return jax.jit(make_eval_step(model, losses))


def _pmapped(step: Any, mesh: Mesh) -> Any:
    """Return the step under `jax.pmap`, as a function of the same global arrays as the jitted one."""
    mapped = jax.pmap(
        step, axis_name="data", in_axes=(None, 0, None, None, None), out_axes=None, donate_argnums=0,
        devices=list(mesh.devices.ravel()),
    )  # fmt: skip
    by_device = jax.jit(functools.partial(_by_device, mesh.size), out_shardings=split(mesh))
    return functools.partial(_run_mapped, mapped, by_device, mesh)


def _by_device(count: int, batch: Any) -> Any:
    """Return the arrays [B, …] of a batch as [count, B / count, …]."""
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)


def _run_mapped(
    mapped: Any, by_device: Any, mesh: Mesh, state: TrainState, batch: Any, rng: jax.Array,
    learning_rate: jax.Array | float, teacher_params: Any = None,
) -> Any:  # fmt: skip
    """Return (state, metrics) of a pmapped step, from global arrays."""
    rate, copies = jnp.asarray(learning_rate, float), PartitionSpec()
    if jax.process_count() == 1:
        return mapped(state, by_device(batch), rng, rate, teacher_params)
    # Each process gives pmap its own part of what is global, and gets its own part back.
    state, teacher_params = multihost_utils.global_array_to_host_local_array((state, teacher_params), mesh, copies)
    rows = multihost_utils.global_array_to_host_local_array(by_device(batch), mesh, PartitionSpec("data"))
    results = mapped(state, rows, rng, rate, teacher_params)
    return multihost_utils.host_local_array_to_global_array(results, mesh, copies)


def without_schedule(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer's config without what only its schedule reads: what is left decides the compiled step."""
    return dataclasses.replace(
        optimizer,
        learning_rate=1.0,
        schedule="constant",
        warmup_steps=0,
        warmup_share=0.0,
        decay_steps=0,
        final_fraction=0.0,
    )
