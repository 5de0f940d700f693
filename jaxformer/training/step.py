"""The training step: pure functions from (state, batch, rng) to (state, metrics), whatever the family or objective.

Objectives and tasks are seen through what they emit: a main group ("tokens": `targets`, `weights`) where they predict
tokens, and one group per further head (`HEAD_targets`, `HEAD_weights`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.models import ATTENTIONS, REMAT_POLICIES, Model, Params
from jaxformer.objectives import Head, Supervision
from jaxformer.training.distillation import DistillationConfig, cosine_loss, soft_loss
from jaxformer.training.losses import cross_entropy, head_loss, in_chunks, weighted

COUNT = "count/"  # before a group's name in a step's metrics: how many predictions it has, by their weights
Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how much at a time, in which precision, and what is reported when."""

    num_steps: int
    batch_size: int  # examples per step, over all devices and micro-batches
    accumulation_steps: int = 1  # micro-batches per step; the result is that of the whole batch
    compute_dtype: str = "auto"  # auto: bfloat16 on accelerators, float32 on CPU; parameters are float32 always
    # 0: no scan over layers, fastest steps; 1: scan, fastest compilation; k: between; None: see execution.py
    unroll_layers: int | None = None
    remat: str = "auto"  # auto: by platform and size, see execution.py
    attention: str = "auto"  # auto: the first that can do what the model asks; the table is models/implementations.py
    logits_chunk: int = 0  # positions of a row whose logits are held at a time; 0: all; small: less memory, slower
    trainable: tuple[str, ...] = (".*",)  # patterns of parameter paths, which may select layers: decoder/layers[0:3]/.*
    log_every: int = 10
    eval_every: int = 100  # 0: at the end only
    patience: int = 0  # evaluations in a row without a better checkpoint.best_metric after which the run ends; 0: none
    phases: tuple[dict, ...] = ()  # what the first steps do otherwise: see phases.py
    ema_decay: float = 0.0  # of a moving average of the parameters, kept beside them: 0.999, say; 0: none
    skip_non_finite: int = 0  # steps in a row without a finite loss and gradient that change nothing; one more stops
    stuck_seconds: float = 600.0  # a step that takes longer is reported with every thread's stack; 0: never

    def __post_init__(self) -> None:
        for key in ("num_steps", "batch_size", "accumulation_steps", "log_every"):
            check_range(f"training.{key}", getattr(self, key), at_least=1)
        if self.unroll_layers is not None:
            check_range("training.unroll_layers", self.unroll_layers, at_least=0)
        for key in ("logits_chunk", "eval_every", "patience", "skip_non_finite", "stuck_seconds"):
            check_range(f"training.{key}", getattr(self, key), at_least=0)
        check_range("training.ema_decay", self.ema_decay, at_least=0, below=1)
        if self.batch_size % self.accumulation_steps:
            raise UserError(
                f"training.batch_size: {self.batch_size} is no multiple of accumulation_steps {self.accumulation_steps}"
            )
        check_choice("training.compute_dtype", self.compute_dtype, ("auto", "float32", "bfloat16"))
        check_choice("training.remat", self.remat, ("auto", "none", *REMAT_POLICIES))
        check_choice("training.attention", self.attention, ATTENTIONS)


@dataclasses.dataclass(frozen=True)
class Losses:
    """What the step reads of an objective or a task, and nothing else: equal ones make equal steps."""

    groups: tuple[tuple[str, Head], ...]
    weights: tuple[tuple[str, float], ...]
    head_dropout: float
    predicts_tokens: bool
    token_smoothing: float
    z_loss: float

    @property
    def heads(self) -> dict[str, Head]:
        return dict(self.groups)

    @property
    def coefficients(self) -> dict[str, float]:
        return dict(self.weights)


def losses_of(supervision: Supervision) -> Losses:
    """Return what the step reads of an objective or a task."""
    return Losses(
        groups=tuple(supervision.heads.items()),
        weights=tuple(supervision.coefficients.items()),
        head_dropout=supervision.head_dropout,
        predicts_tokens=supervision.predicts_tokens,
        token_smoothing=supervision.token_smoothing,
        z_loss=supervision.z_loss,
    )


class TrainState(NamedTuple):
    """Everything that a step changes. Its place in the data and its random numbers follow from `step` alone."""

    step: jax.Array  # int32 scalar: updates done
    params: Params
    opt_state: Any


def init_state(model: Model, optimizer: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """Return a fresh state; parameters depend on `rng` alone."""
    params = model.init(rng)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def groups(losses: Losses, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return (targets, weights) of every group of predictions in the batch; tokens with one text a row."""
    found = {}
    if losses.predicts_tokens:
        width = batch["targets"].shape[-1]
        found["tokens"] = (batch["targets"].reshape(-1, width), batch["weights"].reshape(-1, width))
    return found | {head: (batch[f"{head}_targets"], batch[f"{head}_weights"]) for head in losses.heads}


class GroupSums(NamedTuple):
    """What is found about each group of predictions, by its name."""

    losses: dict[str, jax.Array]  # scalars: the weighted sums of the loss
    correct: dict[str, jax.Array]  # scalars: the weighted sums of correct predictions
    predictions: dict[str, jax.Array]  # logits, float32; of tokens the arg-max alone, int32


def group_sums(
    model: Model, losses: Losses, params: Params, batch: Batch, rngs: Mapping[str, jax.Array] | None
) -> GroupSums:
    """Return the sums and predictions of every group in the batch.

    Without `rngs` (evaluation) the loss is plain cross-entropy: no dropout, no label smoothing, no z-loss.
    """
    return _score(model, losses, params, batch, model.apply(params, batch, rngs), rngs is not None)


def _score(
    model: Model, losses: Losses, params: Params, batch: Batch, outputs: Mapping[str, jax.Array], trains: bool
) -> GroupSums:
    found = GroupSums({}, {}, {})
    for name, (targets, weights) in groups(losses, batch).items():
        if name == "tokens":
            smoothing, z_loss = (losses.token_smoothing, losses.z_loss) if trains else (0.0, 0.0)
            score = functools.partial(_token_sums, model, params, smoothing, z_loss)
            sums, predictions = in_chunks(score, (outputs["hidden"], targets, weights), model.execution.logits_chunk)
        else:
            head, predictions = losses.heads[name], outputs[name]
            loss, right = head_loss(head.loss, predictions, targets, head.label_smoothing if trains else 0.0)
            sums = weighted(loss, weights), weighted(right, weights)
        found.losses[name], found.correct[name] = sums
        found.predictions[name] = predictions
    return found


def _token_sums(
    model: Model, params: Params, smoothing: float, z_loss: float, hidden: jax.Array, targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:  # fmt: skip
    return _sums(model.project(params, hidden), targets, weights, model.config.vocab_size, smoothing, z_loss)


def _sums(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, size: int, smoothing: float, z_loss: float
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Return (weighted sums of the loss and of correct predictions), arg-max predictions."""
    loss = cross_entropy(logits, targets, size, label_smoothing=smoothing, z_loss=z_loss)
    predictions = jnp.argmax(logits, axis=-1)
    correct = weighted((predictions == targets).astype(jnp.float32), weights)
    return (weighted(loss, weights), correct), predictions


class Teaching(NamedTuple):
    """How a student is taught, and the model that teaches; its parameters go into every step."""

    config: DistillationConfig
    model: Model


def taught_positions(teaching: Teaching, batch: Batch) -> jax.Array:
    """Return float32 [B, T] or [B, P]: 1 where teacher and student are compared."""
    of_all = teaching.config.positions == "all"
    return (batch["segment_ids" if of_all else "weights"] > 0).astype(jnp.float32)


def taught_sums(
    model: Model, losses: Losses, params: Params, batch: Batch, rngs: Mapping[str, jax.Array],
    teaching: Teaching, teacher_params: Params,
) -> dict[str, jax.Array]:  # fmt: skip
    """Return the weighted sum of every group's loss, and of "soft" and "cosine", the losses against the teacher."""
    config, read = teaching.config, dict(batch)
    if config.positions == "all":
        read.pop("predict_positions", None)
    outputs = model.apply(params, read, rngs)
    student, mask = outputs["hidden"], taught_positions(teaching, batch)
    if "predict_positions" in batch and "predict_positions" not in read:
        own = jnp.take_along_axis(student, batch["predict_positions"][..., None], axis=1)
        outputs = {**outputs, "hidden": own}
    sums = _score(model, losses, params, batch, outputs, True).losses
    teacher = teaching.model.apply(teacher_params, read)["hidden"]
    if config.soft_weight:
        compare = functools.partial(_soft_sum, model, params, teaching, teacher_params)
        sums["soft"], _ = in_chunks(compare, (student, teacher, mask), model.execution.logits_chunk)
    if config.cosine_weight:
        sums["cosine"] = cosine_loss(student, teacher, mask)
    return sums


def _soft_sum(
    model: Model, params: Params, teaching: Teaching, teacher_params: Params, student: jax.Array, teacher: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, tuple[()]]:  # fmt: skip
    """Return the sum over positions of the distance between what both predict from their hidden states [B, T, D]."""
    real = slice(model.config.vocab_size)  # of each table: they may be stored with padding of their own
    logits = model.project(params, student)[..., real]
    taught = teaching.model.project(teacher_params, teacher)[..., real]
    return soft_loss(logits, taught, mask, teaching.config.temperature), ()


def num_tokens(batch: Batch) -> jax.Array:
    """Return how many input tokens of the batch are not padding."""
    names = [name for name in ("segment_ids", "encoder_segment_ids") if name in batch]
    return sum((jnp.sum(batch[name] > 0, dtype=jnp.float32) for name in names), jnp.zeros((), jnp.float32))


def _as_they_are(gradients: Params) -> Params:
    return gradients


@dataclasses.dataclass(frozen=True)
class StepParts:
    """What a training step is made of: the same for every step of a phase."""

    model: Model
    losses: Losses
    optimizer: optax.GradientTransformationExtraArgs
    accumulation_steps: int = 1
    teaching: Teaching | None = None
    skips: bool = False
    axis: str | None = None
    shard_gradients: Callable[[Params], Params] = _as_they_are


def make_train_step(
    model: Model, losses: Losses, optimizer: optax.GradientTransformation, accumulation_steps: int = 1,
    teaching: Teaching | None = None, *, skips: bool = False, axis: str | None = None,
    shard_gradients: Callable[[Params], Params] = _as_they_are,
) -> Callable[..., tuple[TrainState, Metrics]]:  # fmt: skip
    """Return train_step(state, batch, rng, learning_rate, teacher_params=None) -> (state, metrics).

    The loss is the sum over groups of coefficient x sum / count, every count taken over the whole batch before the
    backward pass, so micro-batches and shards add up to the exact gradient. `rng` is the run's; dropout draws from it
    by step and micro-batch. `learning_rate` goes to the optimizer's update (optax's own optimizers, which have one of
    theirs, do not read it). With `teaching` the loss is that of distillation, and `teacher_params` are constants.

    With `skips` a step whose loss or gradient is not finite changes nothing but its number. Under `jax.pmap`, `axis` is
    the axis of devices: each has its own rows, copies of all else, and what they count and differentiate is added up.
    `shard_gradients` says where gradients stay, so that the sum over micro-batches is split over devices like the
    parameters.
    """
    extended = optax.with_extra_args_support(optimizer)
    parts = StepParts(model, losses, extended, accumulation_steps, teaching, skips, axis, shard_gradients)
    return functools.partial(train_step, parts)


def train_step(
    parts: StepParts, state: TrainState, batch: Batch, rng: jax.Array, learning_rate: jax.Array | float,
    teacher_params: Any = None,
) -> tuple[TrainState, Metrics]:  # fmt: skip
    """Return the state after one update, and what was found on the way."""
    counts = over_devices(counts_of(parts, batch), parts.axis)
    gradients_of_rows = functools.partial(gradients_of, parts, counts, teacher_params, state.params)
    step_rng = rng_of_step(rng, state.step, parts.axis)
    (loss, means), gradients = accumulated(gradients_of_rows, batch, step_rng, parts.accumulation_steps)
    loss, means, gradients, tokens = over_devices((loss, means, gradients, num_tokens(batch)), parts.axis)
    params, opt_state = apply_update(parts.optimizer, state, gradients, learning_rate)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients), "tokens": tokens}
    metrics |= {f"{COUNT}{name}": count for name, count in counts.items()}
    if len(means) > 1:
        metrics |= {f"{name}_loss": mean for name, mean in means.items()}
    if parts.skips:
        finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
        params, opt_state = either(finite, (params, opt_state), (state.params, state.opt_state))
    return TrainState(state.step + 1, params, opt_state), metrics


def over_devices(tree: Any, axis: str | None) -> Any:
    """Return the sums of arrays over the devices of a pmapped axis; without one, the arrays."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def rng_of_step(rng: jax.Array, step: jax.Array, axis: str | None) -> jax.Array:
    """Return the random numbers of one step of the run, on a pmapped axis those of one device."""
    step_rng = jax.random.fold_in(rng, step)
    if axis is not None:  # devices drop different units
        step_rng = jax.random.fold_in(step_rng, jax.lax.axis_index(axis))
    return step_rng


def counts_of(parts: StepParts, batch: Batch) -> dict[str, jax.Array]:
    """Return the sum of weights of every loss: what its sum is divided by."""
    counts = {name: jnp.sum(weights) for name, (_, weights) in groups(parts.losses, batch).items()}
    if parts.teaching is not None:
        counts |= dict.fromkeys(("soft", "cosine"), jnp.sum(taught_positions(parts.teaching, batch)))
    return counts


def coefficients_of(parts: StepParts) -> dict[str, float]:
    """Return the coefficient of every loss, those against a teacher included."""
    if parts.teaching is None:
        return parts.losses.coefficients
    config = parts.teaching.config
    hard = {name: config.hard_weight * factor for name, factor in parts.losses.coefficients.items()}
    return hard | {"soft": config.soft_weight, "cosine": config.cosine_weight}


def loss_of(
    parts: StepParts, counts: Mapping[str, jax.Array], teacher_params: Any, params: Params, batch: Batch,
    rng: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    """Return (loss, the mean of every group's loss) of some rows, as shares of the batch that was counted."""
    rngs = {"dropout": rng}
    if parts.teaching is None:
        sums = group_sums(parts.model, parts.losses, params, batch, rngs).losses
    else:
        sums = taught_sums(parts.model, parts.losses, params, batch, rngs, parts.teaching, teacher_params)
    means = {name: sums[name] / jnp.maximum(counts[name], 1e-9) for name in sums}
    coefficients = coefficients_of(parts)
    return sum((coefficients[name] * mean for name, mean in means.items()), jnp.zeros(())), means


def gradients_of(
    parts: StepParts, counts: Mapping[str, jax.Array], teacher_params: Any, params: Params, batch: Batch,
    rng: jax.Array,
) -> tuple[tuple[jax.Array, dict[str, jax.Array]], Params]:  # fmt: skip
    """Return (`loss_of` some rows, its gradient by the parameters, placed like them)."""
    loss = functools.partial(loss_of, parts, counts, teacher_params)
    values, gradients = jax.value_and_grad(loss, has_aux=True)(params, batch, rng)
    return values, parts.shard_gradients(gradients)


def accumulated(function: Callable[[Batch, jax.Array], Any], batch: Batch, rng: jax.Array, count: int) -> Any:
    """Return the sum of function(rows, rng) over `count` micro-batches, one after the other."""
    if count == 1:
        return function(batch, rng)
    pieces, rngs = micro_batches(batch, count), jax.random.split(rng, count)
    first = jax.eval_shape(function, jax.tree.map(lambda array: array[0], pieces), rngs[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    return jax.lax.scan(functools.partial(_added, function), zeros, (pieces, rngs))[0]


def micro_batches(batch: Batch, count: int) -> dict[str, jax.Array]:
    """Return the arrays [B, …] of a batch as [count, B / count, …]: micro-batch a takes every count-th example, so each
    device keeps its own examples."""
    return {name: jnp.swapaxes(array.reshape(-1, count, *array.shape[1:]), 0, 1) for name, array in batch.items()}


def _added(function: Callable[..., Any], total: Any, piece: tuple[Batch, jax.Array]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, function(*piece)), None


def apply_update(
    optimizer: optax.GradientTransformationExtraArgs, state: TrainState, gradients: Params,
    learning_rate: jax.Array | float,
) -> tuple[Params, Any]:  # fmt: skip
    """Return parameters and the optimizer's state after an update."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, learning_rate=learning_rate)
    return optax.apply_updates(state.params, updates), opt_state


def either(condition: jax.Array, first: Any, second: Any) -> Any:
    """Return the first tree of arrays where the scalar `condition` holds, else the second."""
    return jax.tree.map(lambda one, other: jnp.where(condition, one, other), first, second)


def make_eval_step(
    model: Model, losses: Losses
) -> Callable[[Params, Batch], tuple[dict[str, tuple[jax.Array, ...]], dict[str, jax.Array]]]:
    """Return eval_step(params, batch) -> (sums, predictions): (loss, correct, count) per group, and logits per head."""
    return functools.partial(eval_step, model, losses)


def eval_step(
    model: Model, losses: Losses, params: Params, batch: Batch
) -> tuple[dict[str, tuple[jax.Array, ...]], dict[str, jax.Array]]:
    """Return (sums, predictions) of a batch: see `make_eval_step`."""
    found = group_sums(model, losses, params, batch, None)
    counts = {name: jnp.sum(weights) for name, (_, weights) in groups(losses, batch).items()}
    return {name: (found.losses[name], found.correct[name], counts[name]) for name in counts}, found.predictions
