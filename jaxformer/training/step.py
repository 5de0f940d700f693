"""The training step: pure functions from (state, batch, rng) to (state, metrics), whatever the family or objective.

Objectives and tasks are seen through what they emit: a main group ("tokens": `targets`, `weights`) where they predict
tokens, and one group per further head (`HEAD_targets`, `HEAD_weights`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.models import IMPLEMENTATIONS, REMAT_POLICIES, Execution, Model, Params
from jaxformer.training.distillation import DistillationConfig, cosine_loss, soft_loss
from jaxformer.training.losses import cross_entropy, in_chunks, weighted

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How long, how much at a time, in which precision, and what is reported when."""

    num_steps: int
    batch_size: int  # examples per step, over all devices and micro-batches
    accumulation_steps: int = 1  # micro-batches per step; the result is that of the whole batch
    compute_dtype: str = "auto"  # auto: bfloat16 on accelerators, float32 on CPU; parameters are float32 always
    unroll_layers: int = 0  # 0: no scan over layers, fastest steps; 1: scan, fastest compilation; k: between
    remat: str = "none"
    attention: str = "einsum"
    logits_chunk: int = 0  # positions of a row whose logits are held at a time; 0: all; small: less memory, slower
    trainable: tuple[str, ...] = (".*",)  # patterns of parameter paths, which may select layers: decoder/layers[0:3]/.*
    log_every: int = 10
    eval_every: int = 100  # 0: at the end only
    phases: tuple[dict, ...] = ()  # what the first steps do otherwise: see phases.py
    skip_non_finite: int = 0  # steps in a row without a finite loss and gradient that change nothing; one more stops
    stuck_seconds: float = 600.0  # a step that takes longer is reported with every thread's stack; 0: never

    def __post_init__(self) -> None:
        for key in ("num_steps", "batch_size", "accumulation_steps", "log_every"):
            check_range(f"training.{key}", getattr(self, key), at_least=1)
        for key in ("unroll_layers", "logits_chunk", "eval_every", "skip_non_finite", "stuck_seconds"):
            check_range(f"training.{key}", getattr(self, key), at_least=0)
        if self.batch_size % self.accumulation_steps:
            raise UserError(
                f"training.batch_size: {self.batch_size} is no multiple of accumulation_steps {self.accumulation_steps}"
            )
        check_choice("training.compute_dtype", self.compute_dtype, ("auto", "float32", "bfloat16"))
        check_choice("training.remat", self.remat, ("none", *REMAT_POLICIES))
        check_choice("training.attention", self.attention, IMPLEMENTATIONS)


class Supervision(Protocol):
    """What the step needs of an objective or a task."""

    @property
    def heads(self) -> dict[str, int]: ...
    @property
    def coefficients(self) -> dict[str, float]: ...
    @property
    def head_dropout(self) -> float: ...
    @property
    def predicts_tokens(self) -> bool: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def z_loss(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Losses:
    """A `Supervision` and nothing else of an objective or task: equal ones make equal steps."""

    sizes: tuple[tuple[str, int], ...]
    weights: tuple[tuple[str, float], ...]
    head_dropout: float
    predicts_tokens: bool
    label_smoothing: float
    z_loss: float

    @property
    def heads(self) -> dict[str, int]:
        return dict(self.sizes)

    @property
    def coefficients(self) -> dict[str, float]:
        return dict(self.weights)


def losses_of(supervision: Supervision) -> Losses:
    """Return what the step reads of an objective or a task."""
    kept = ("head_dropout", "predicts_tokens", "label_smoothing", "z_loss")
    return Losses(
        tuple(supervision.heads.items()),
        tuple(supervision.coefficients.items()),
        **{name: getattr(supervision, name) for name in kept},
    )


class TrainState(NamedTuple):
    """Everything that a step changes. Its place in the data and its random numbers follow from `step` alone."""

    step: jax.Array  # int32 scalar: updates done
    params: Params
    opt_state: Any


def execution(config: TrainingConfig, mesh: Any = None) -> Execution:
    """Return how the model runs on the devices at hand, split over a mesh where one is given."""
    dtype = config.compute_dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return Execution(
        dtype=dtype, unroll=config.unroll_layers, remat=config.remat, attention=config.attention,
        logits_chunk=config.logits_chunk, mesh=mesh,
    )  # fmt: skip


def init_state(model: Model, optimizer: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """Return a fresh state; parameters depend on `rng` alone."""
    params = model.init(rng)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def groups(supervision: Supervision, batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return (targets, weights) of every group of predictions in the batch."""
    found = {"tokens": (batch["targets"], batch["weights"])} if supervision.predicts_tokens else {}
    return found | {head: (batch[f"{head}_targets"], batch[f"{head}_weights"]) for head in supervision.heads}


def group_sums(
    model: Model, supervision: Supervision, params: Params, batch: Batch, rngs: Mapping[str, jax.Array] | None
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
    """Return, per group, the weighted sum of the loss, of correct predictions, and the arg-max predictions.

    Without `rngs` (evaluation) the loss is plain cross-entropy: no dropout, no label smoothing, no z-loss.
    """
    return _judged(model, supervision, params, batch, model.apply(params, batch, rngs), rngs is not None)


def _judged(
    model: Model, supervision: Supervision, params: Params, batch: Batch, outputs: Mapping[str, jax.Array], trains: bool
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, jax.Array]]:
    losses, correct, predictions = {}, {}, {}
    for name, (targets, weights) in groups(supervision, batch).items():
        if name == "tokens":
            smoothing, z_loss = (supervision.label_smoothing, supervision.z_loss) if trains else (0.0, 0.0)
            judge = functools.partial(_token_sums, model, params, smoothing, z_loss)
            (losses[name], correct[name]), predictions[name] = in_chunks(
                judge, (outputs["hidden"], targets, weights), model.execution.logits_chunk
            )
        else:
            (losses[name], correct[name]), predictions[name] = _sums(
                outputs[name], targets, weights, supervision.heads[name]
            )
    return losses, correct, predictions


def _token_sums(
    model: Model, params: Params, smoothing: float, z_loss: float, hidden: jax.Array, targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:  # fmt: skip
    return _sums(model.project(params, hidden), targets, weights, model.config.vocab_size, smoothing, z_loss)


def _sums(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, size: int, smoothing: float = 0.0, z_loss: float = 0.0
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
    model: Model, supervision: Supervision, params: Params, batch: Batch, rngs: Mapping[str, jax.Array],
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
    sums, _, _ = _judged(model, supervision, params, batch, outputs, True)
    teacher = teaching.model.apply(teacher_params, read)["hidden"]
    if config.soft_weight:
        real = slice(model.config.vocab_size)  # of each table: they may be stored with padding of their own

        def compare(student: jax.Array, teacher: jax.Array, mask: jax.Array) -> tuple[jax.Array, tuple[()]]:
            logits = model.project(params, student)[..., real]
            taught = teaching.model.project(teacher_params, teacher)[..., real]
            return soft_loss(logits, taught, mask, config.temperature), ()

        sums["soft"], _ = in_chunks(compare, (student, teacher, mask), model.execution.logits_chunk)
    if config.cosine_weight:
        sums["cosine"] = cosine_loss(student, teacher, mask)
    return sums


def num_tokens(batch: Batch) -> jax.Array:
    """Return how many input tokens of the batch are not padding."""
    names = [name for name in ("segment_ids", "encoder_segment_ids") if name in batch]
    return sum((jnp.sum(batch[name] > 0, dtype=jnp.float32) for name in names), jnp.zeros((), jnp.float32))


def make_train_step(
    model: Model, supervision: Supervision, optimizer: optax.GradientTransformation, accumulation_steps: int = 1,
    teaching: Teaching | None = None, *, skips: bool = False, axis: str | None = None,
    keep: Callable[[Params], Params] = lambda gradients: gradients,
) -> Callable[..., tuple[TrainState, Metrics]]:  # fmt: skip
    """Return train_step(state, batch, rng, learning_rate, teacher_params=None) -> (state, metrics).

    The loss is the sum over groups of coefficient x sum / count, every count taken over the whole batch before the
    backward pass, so micro-batches and shards add up to the exact gradient. `rng` is the run's; dropout draws from it
    by step and micro-batch. `learning_rate` goes to the optimizer's update (optax's own optimizers, which have one of
    theirs, do not read it). With `teaching` the loss is that of distillation, and `teacher_params` are constants.

    With `skips` a step whose loss or gradient is not finite changes nothing but its number. Under `jax.pmap`, `axis` is
    the axis of devices: each has its own rows, copies of all else, and what they count and differentiate is added up.
    `keep` says where gradients stay, so that the sum over micro-batches is split over devices like the parameters.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def total(tree: Any) -> Any:
        return tree if axis is None else jax.lax.psum(tree, axis)

    def train_step(
        state: TrainState, batch: Batch, rng: jax.Array, learning_rate: jax.Array | float, teacher_params: Any = None
    ) -> tuple[TrainState, Metrics]:
        counts = {name: jnp.sum(weights) for name, (_, weights) in groups(supervision, batch).items()}
        coefficients = dict(supervision.coefficients)
        if teaching is not None:
            config = teaching.config
            counts |= dict.fromkeys(("soft", "cosine"), jnp.sum(taught_positions(teaching, batch)))
            coefficients = {name: config.hard_weight * factor for name, factor in coefficients.items()}
            coefficients |= {"soft": config.soft_weight, "cosine": config.cosine_weight}
        counts = total(counts)
        step_rng = jax.random.fold_in(rng, state.step)
        if axis is not None:  # devices drop different units
            step_rng = jax.random.fold_in(step_rng, jax.lax.axis_index(axis))

        def loss_of(params: Params, micro: Batch, micro_rng: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
            rngs = {"dropout": micro_rng}
            if teaching is None:
                losses, _, _ = group_sums(model, supervision, params, micro, rngs)
            else:
                losses = taught_sums(model, supervision, params, micro, rngs, teaching, teacher_params)
            means = {name: losses[name] / jnp.maximum(counts[name], 1e-9) for name in losses}
            return sum((coefficients[name] * mean for name, mean in means.items()), jnp.zeros(())), means

        def grad_of(params: Params, micro: Batch, micro_rng: jax.Array) -> Any:
            values, gradients = jax.value_and_grad(loss_of, has_aux=True)(params, micro, micro_rng)
            return values, keep(gradients)

        if accumulation_steps == 1:
            (loss, means), grads = grad_of(state.params, batch, step_rng)
        else:
            # Micro-batch a takes every accumulation_steps-th example, so each device keeps its own examples.
            micros = {
                name: jnp.swapaxes(array.reshape(-1, accumulation_steps, *array.shape[1:]), 0, 1)
                for name, array in batch.items()
            }
            rngs = jax.random.split(step_rng, accumulation_steps)

            def add(total: Any, micro: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, grad_of(state.params, *micro)), None

            first = jax.eval_shape(grad_of, state.params, jax.tree.map(lambda x: x[0], micros), rngs[0])
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
            ((loss, means), grads), _ = jax.lax.scan(add, zeros, (micros, rngs))

        loss, means, grads, tokens = total((loss, means, grads, num_tokens(batch)))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, learning_rate=learning_rate)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), "tokens": tokens}
        if len(means) > 1:
            metrics |= {f"{name}_loss": mean for name, mean in means.items()}
        if skips:
            finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state)
            )
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(
    model: Model, supervision: Supervision
) -> Callable[[Params, Batch], tuple[dict[str, tuple[jax.Array, ...]], dict[str, jax.Array]]]:
    """Return eval_step(params, batch) -> (sums, predictions): (loss, correct, count) and arg-max classes per group."""

    def eval_step(params: Params, batch: Batch) -> tuple[dict[str, tuple[jax.Array, ...]], dict[str, jax.Array]]:
        losses, correct, predictions = group_sums(model, supervision, params, batch, None)
        counts = {name: jnp.sum(weights) for name, (_, weights) in groups(supervision, batch).items()}
        return {name: (losses[name], correct[name], counts[name]) for name in losses}, predictions

    return eval_step
