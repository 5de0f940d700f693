"""Bytes per device of a run: parameters, optimizer state and gradients exactly, activations by tracing its step.

Parameters, optimizer state and gradients are the shapes of the run's own state, each divided by the mesh axes that its
rule splits it over (devices/sharding.py). Activations are the step's, traced as one device runs it and walked as
activations.py says: `batch_size / accumulation_steps / (data x fsdp)` rows of the objective's lengths, and with
`tensor` only a share of the heads, of d_ff and of the vocabulary. Added to them are

- with accumulation, the sum of the gradients of the micro-batches done;
- with fsdp, what is gathered: the token table and its gradient, and the parameters of the largest layer; of all layers
  when they are unrolled without rematerialisation, for then XLA keeps what it gathered until the backward pass.

They are what the step holds at its fullest beyond the three others, so that the sum is what it holds in all. Of
unrolled layers four are traced: each further one adds as much as those.

Checked against XLA's CPU backend in float32 (tests/test_plan.py). Known to differ there: rematerialisation of unrolled
layers is undone; what the collectives of gradients copy is not counted.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from jaxformer.config import Config
from jaxformer.devices import Placement, specs_like
from jaxformer.models import FUSED_ATTENTION, Execution, Model, TransformerConfig, chosen_attentions
from jaxformer.objectives import Supervision
from jaxformer.planning.activations import GRADIENT, Held, held
from jaxformer.training import (
    Losses,
    Phase,
    Teaching,
    TrainState,
    freeze,
    init_state,
    losses_of,
    make_optimizer,
    make_train_step,
)
from jaxformer.trees import flatten, num_layers

_TRACED = 4  # unrolled layers that are traced; the others are as the last two of them


def _share(spec: PartitionSpec, sizes: Mapping[str, int]) -> int:
    """Return over how many devices a spec splits an array."""
    axes = [axis for entry in spec for axis in (entry if isinstance(entry, tuple) else (entry,)) if axis]
    return math.prod(sizes[axis] for axis in axes)


def parameter_bytes(shapes: Any, placed: Mapping[str, Placement], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return every parameter's path, shape, partition spec, bytes per device, and notes."""
    return [
        {
            "path": path,
            "shape": list(leaf.shape),
            "spec": list(placed[path].spec),
            "bytes_per_device": leaf.size * leaf.dtype.itemsize // _share(placed[path].spec, sizes),
            "notes": list(placed[path].notes),
        }
        for path, leaf in flatten(shapes).items()
    ]


def optimizer_bytes(
    config: Config, model: Model, shapes: Any, placed: Mapping[str, Placement], sizes: Mapping[str, int]
) -> int:
    """Return the bytes per device of the optimizer's state and of the step's number."""
    update = freeze(make_optimizer(config.optimizer, shapes), config.training.trainable, shapes)
    traced = dataclasses.replace(model, execution=Execution(unroll=1))
    state = jax.eval_shape(lambda rng: init_state(traced, update, rng), jax.random.key(0))
    rest = (state.step, state.opt_state)
    specs = jax.tree.leaves(specs_like(rest, placed, shapes), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))
    leaves = jax.tree.leaves(rest)
    return sum(leaf.size * leaf.dtype.itemsize // _share(spec, sizes) for leaf, spec in zip(leaves, specs, strict=True))


def activation_bytes(
    config: Config, model: Model, supervision: Supervision, phase: Phase, sizes: Mapping[str, int],
    teacher: Model | None = None,
) -> int:  # fmt: skip
    """Return the bytes that a step of this phase holds on one device beyond parameters, optimizer and gradients."""
    fsdp, tensor = sizes["fsdp"], sizes["tensor"]
    rows = phase.batch_size // phase.accumulation_steps // (sizes["data"] * fsdp)
    local = _local(model, tensor)
    taught = None if teacher is None or config.distillation is None else _local(teacher, tensor)
    teaching = None if taught is None or config.distillation is None else Teaching(config.distillation, taught)

    def traced(num_layers: int) -> Held:
        fewer = dataclasses.replace(local, config=dataclasses.replace(local.config, num_layers=num_layers))
        return _held(config, fewer, losses_of(supervision), supervision.shapes, rows, teaching, fsdp)

    layers = local.config.num_layers
    if local.execution.unroll in (0, layers) and layers > _TRACED:
        fewest = _TRACED // 2  # dense and banded layers alternate
        found = traced(fewest).at(traced(_TRACED), (layers - fewest) / (_TRACED - fewest))
    else:
        found = traced(layers)
    shapes = flatten(dataclasses.replace(local, execution=Execution(unroll=1)).shapes)
    gradients = sum(leaf.size * 4 for leaf in shapes.values()) / fsdp
    total = found.beyond(gradients)
    if phase.accumulation_steps > 1:
        total += gradients
    if fsdp > 1:
        keeps = local.execution.unroll == 0 and local.execution.remat == "none"
        total += _gathered(shapes, keeps)
    return round(total)


def _local(model: Model, tensor: int) -> Model:
    """Return the model as one device of a tensor axis runs it; what does not divide is whole on every device."""
    config = model.config

    def share(size: int) -> int:
        return size if size % tensor else size // tensor

    execution = model.execution
    if execution.unroll == config.num_layers:
        execution = dataclasses.replace(execution, unroll=0)
    local: TransformerConfig = dataclasses.replace(config, num_heads=share(config.num_heads), d_ff=share(config.d_ff))
    if tensor > 1:
        local = dataclasses.replace(local, vocab_size=share(config.stored_vocab_size), vocab_multiple=1)
    return dataclasses.replace(model, config=local, execution=execution)


def _gathered(shapes: Mapping[str, Any], keeps: bool) -> float:
    """Return the bytes of what fsdp gathers: the largest layer's parameters (of all, where they are kept for the
    backward pass) and the token table, with its gradient before it is shared out."""
    sizes = {path: leaf.size * 4.0 for path, leaf in shapes.items()}
    table = sum(size for path, size in sizes.items() if path.endswith("embedding/tokens"))
    if keeps:
        return sum(sizes.values()) + table
    stacks: dict[str, float] = {}
    for path, size in sizes.items():
        stack, layer, _ = path.partition("/layers/")
        if layer:
            stacks[stack] = stacks.get(stack, 0.0) + size / num_layers(path, shapes[path].shape)
    return max(stacks.values()) + 2 * table


def _held(
    config: Config, model: Model, losses: Losses, arrays: Mapping[str, Any], rows: int, teaching: Teaching | None,
    shards: int,
) -> Held:  # fmt: skip
    """Return what a step on one micro-batch of `rows` examples needs."""
    # The attention of a fused kernel cannot be traced without its device: it is einsum's without the scores.
    chosen = chosen_attentions(model.config, model.execution, arrays).values()
    kernels = [choice.wanted for choice in chosen if choice.name in FUSED_ATTENTION]
    texts = math.prod(arrays["inputs"][0][:-1])  # of a row
    fused = {(rows * texts, model.config.num_heads, wanted.queries, wanted.keys) for wanted in kernels}
    if fused:
        execution = dataclasses.replace(model.execution, attention="einsum")
        model = dataclasses.replace(model, execution=execution)
        if teaching is not None:
            teaching = teaching._replace(model=dataclasses.replace(teaching.model, execution=execution))

    def named(gradients: Any) -> Any:
        return jax.tree.map(lambda leaf: checkpoint_name(leaf, GRADIENT), gradients)

    shapes = dataclasses.replace(model, execution=Execution(unroll=1)).shapes
    update = freeze(make_optimizer(config.optimizer, shapes), config.training.trainable, shapes)
    skips = config.training.skip_non_finite > 0
    step = make_train_step(model, losses, update, teaching=teaching, shard_gradients=named, skips=skips)
    state = jax.eval_shape(lambda: TrainState(jnp.zeros((), jnp.int32), _zeros(shapes), update.init(_zeros(shapes))))
    batch = {name: jax.ShapeDtypeStruct((rows, *shape), dtype) for name, (shape, dtype) in arrays.items()}
    theirs = None if teaching is None else dataclasses.replace(teaching.model, execution=Execution(unroll=1)).shapes
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    jaxpr = jax.make_jaxpr(step)(state, batch, jax.eval_shape(lambda: jax.random.key(0)), rate, theirs)
    count = len(jax.tree.leaves(shapes))  # behind the step's number
    return held(jaxpr, range(1, 1 + count), range(len(jax.tree.leaves(state))), shards, fused)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
