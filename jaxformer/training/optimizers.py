"""Optimizers and learning-rate schedules of the eight papers, built on optax.

Every optimizer acts on one layer's array in the paper's shape: what is elementwise needs nothing for that, and what is
defined per tensor (Adafactor's factoring, update clipping and parameter scale) is mapped over the layer axis of stacks.

Schedules take the number of updates already done (0 before the first) and return the learning rate of the next update.
`learning_rate` is the peak of every schedule. The rate is computed outside the compiled step and given to every update,
so that runs which differ in nothing but rates and lengths share one compiled program.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxformer.checks import check_choice, check_range, several
from jaxformer.errors import UserError
from jaxformer.models import hashed, places
from jaxformer.trees import flatten, mask, num_layers, unflatten

BIASES_AND_NORMS = ("(.*/)?bias", ".*norm/.*")

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Optimizer:
    """What all optimizers share.

    `schedule`, with n updates done, w = warmup_steps (0: `warmup_share` of N), N = decay_steps (0: the run length), f =
    final_fraction and a decay that goes from the peak to f times the peak at N and stays there; all but the last two
    warm up as n / w:

    - "linear": BERT's code: 1 - n/N, counted from step 0, so the rate drops by w/N where the warm-up ends.
    - "linear_product": GPT's fine-tuning code: (n/w while n <= w) times (1 - n/N).
    - "linear_from_peak": from the end of the warm-up, 1 - (n-w)/(N-w) (DistilBERT, BART).
    - "cosine": from the end of the warm-up, half a cosine (GPT, GPT-3).
    - "constant": the peak after the warm-up.
    - "inverse_sqrt": the Transformer's, min(m/w, sqrt(w/m)) with m = n+1; its peak is d_model^-0.5 * w^-0.5.
    - "inverse_sqrt_flat": T5's, sqrt(w / max(n, w)), no warm-up; its peak is w^-0.5 (0.01 for w = 10^4).
    """

    learning_rate: float = 1e-4
    schedule: str = "linear"
    warmup_steps: int = 0
    warmup_share: float = 0.0  # where warmup_steps is 0: a share of the steps, however many they are
    decay_steps: int = 0
    final_fraction: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        check_choice("optimizer.schedule", self.schedule, SCHEDULES)
        for key in ("learning_rate", "warmup_steps", "decay_steps", "clip_norm"):
            check_range(f"optimizer.{key}", getattr(self, key), at_least=0)
        check_range("optimizer.final_fraction", self.final_fraction, at_least=0, at_most=1)
        check_range("optimizer.warmup_share", self.warmup_share, at_least=0, below=1)


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay: lr * (m / (sqrt(v) + epsilon) + weight_decay * parameter).

    `bias_correction=False` with epsilon 1e-6 is BERT's released optimizer; the defaults are GPT's. Decay leaves out
    what `decay_exclude` names: by name, never by rank.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    decay_exclude: tuple[str, ...] = BIASES_AND_NORMS
    bias_correction: bool = True
    moment_dtype: str = "float32"  # bfloat16: half the memory of the optimizer, rounded at random

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("beta1", "beta2"):
            check_range(f"optimizer.{key}", getattr(self, key), at_least=0, below=1)
        for key in ("epsilon", "weight_decay"):
            check_range(f"optimizer.{key}", getattr(self, key), at_least=0)
        check_choice("optimizer.moment_dtype", self.moment_dtype, _MOMENTS)


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor as T5 uses it (section 3.1.2): second moments factored into rows and columns, no first moment.

    The second moment of update t decays by 1 - t^-decay_exponent; a layer's update is divided by
    max(1, RMS(update) / clip_threshold) and multiplied by max(RMS(parameter), epsilon2); arrays are factored when both
    dimensions reach `factor_min_dim`. `beta1` above 0 adds a first moment of the finished update.
    """

    learning_rate: float = 0.01
    schedule: str = "inverse_sqrt_flat"
    warmup_steps: int = 10_000
    clip_norm: float = 0.0
    decay_exponent: float = 0.8
    clip_threshold: float = 1.0
    epsilon1: float = 1e-30
    epsilon2: float = 1e-3
    factor_min_dim: int = 128
    parameter_scale: bool = True
    beta1: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("optimizer.beta1", self.beta1, at_least=0, below=1)
        for key in ("decay_exponent", "clip_threshold", "epsilon1", "epsilon2", "factor_min_dim"):
            check_range(f"optimizer.{key}", getattr(self, key), above=0)


OPTIMIZERS = {"adamw": AdamW, "adafactor": Adafactor}


def schedule(config: Optimizer, num_steps: int) -> Schedule:
    """Return the learning rate as a function of the number of updates done, for a run of `num_steps` updates.

    Raises:
      UserError: the decay would end before the warm-up does.
    """
    end = config.decay_steps or num_steps
    warmup = config.warmup_steps or round(config.warmup_share * end)
    if config.schedule in _DECAYING and warmup >= end > 0:
        key = "optimizer.decay_steps" if config.decay_steps else "training.num_steps"
        raise UserError(f"optimizer.warmup_steps: {warmup} leaves no step to decay in; it must be below {key} ({end})")
    shape = SCHEDULES[config.schedule]
    return lambda done: config.learning_rate * shape(done, warmup, end, config.final_fraction)


def make_optimizer(config: Optimizer, params: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer of `config`; its `update` takes `learning_rate`, which `schedule` gives.

    `params` is the tree of parameters or of their shapes. The state's trees keep each parameter's path as the end of
    their own; Adafactor keeps one entry per number of layers ("layers_12/v_row/decoder/layers/…").

    Raises:
      UserError: a pattern of `decay_exclude` other than the default ones selects nothing.
    """
    clip = [clip_by_norm(config.clip_norm)] if config.clip_norm else []
    if isinstance(config, AdamW):
        adam = optax.scale_by_adam if config.bias_correction else scale_by_uncorrected_adam
        decay = [decay_weights(config.weight_decay, config.decay_exclude, params)] if config.weight_decay else []
        moments = adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)
        if config.moment_dtype == "bfloat16":
            moments = in_bfloat16(moments)
        return optax.chain(*clip, moments, *decay, scale_by_given_rate())
    if isinstance(config, Adafactor):
        factored = optax.scale_by_factored_rms(
            decay_rate=config.decay_exponent,
            epsilon=config.epsilon1,
            min_dim_size_to_factor=config.factor_min_dim,
        )
        scale = [optax.scale_by_param_block_rms(config.epsilon2)] if config.parameter_scale else []
        layer = optax.chain(factored, optax.clip_by_block_rms(config.clip_threshold), *scale)
        momentum = [optax.ema(config.beta1, debias=False)] if config.beta1 else []
        return optax.chain(*clip, per_layer(layer), scale_by_given_rate(), *momentum)
    raise TypeError(f"no optimizer for {type(config).__name__}")


def clip_by_norm(most: float) -> optax.GradientTransformation:
    """Scale gradients down to the norm `most`, taken over all of them, where theirs is larger.

    By one factor, as PyTorch does: optax's own clip divides every entry, which XLA:CPU writes out as a second set of
    gradients and reads again.
    """

    def clip(gradients: Any, params: Any = None) -> Any:
        norm = optax.tree.norm(gradients)
        factor = jnp.where(norm < most, 1.0, most / norm)
        return jax.tree.map(lambda gradient: gradient * factor.astype(gradient.dtype), gradients)

    return optax.stateless(clip)


def freeze(
    optimizer: optax.GradientTransformationExtraArgs,
    trainable: tuple[str, ...],
    params: dict[str, Any],
    where: str = "training.trainable",
) -> optax.GradientTransformationExtraArgs:
    """Train only what the patterns in `trainable` select.

    Frozen arrays, and frozen layers of a stack, get updates of exactly zero, decay included, and their gradients do not
    count in the clip norm. Arrays that are frozen whole have no optimizer state. `params` may be shapes.

    Raises:
      UserError: a pattern selects nothing, or there is none; `where` names the key in the message.
    """
    if not trainable:
        raise UserError(f"{where}: no pattern is given, so nothing would train; '.*' trains everything")
    selection = flatten(mask(params, trainable, where))
    if all(keep is True for keep in selection.values()):
        return optimizer
    chosen = {path: keep for path, keep in selection.items() if keep is not False}

    def select(path: str, leaf: Any) -> Any:
        return leaf if chosen[path] is True else jnp.where(chosen[path], leaf, 0)

    def prune(tree: dict[str, Any]) -> dict[str, Any]:
        return unflatten({path: leaf for path, leaf in flatten(tree).items() if path in chosen})

    def init(params: dict[str, Any]) -> Any:
        return optimizer.init(prune(params))

    def update(
        gradients: dict[str, Any], state: Any, params: dict[str, Any] | None = None, **given: Any
    ) -> tuple[Any, Any]:
        selected = {path: select(path, leaf) for path, leaf in flatten(prune(gradients)).items()}
        updates, state = optimizer.update(
            unflatten(selected), state, None if params is None else prune(params), **given
        )
        flat = flatten(updates)
        return unflatten(
            {
                path: select(path, flat[path]) if path in chosen else jnp.zeros_like(gradient)
                for path, gradient in flatten(gradients).items()
            }
        ), state

    return optax.GradientTransformationExtraArgs(init, update)


def per_layer(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply a transformation that is defined per tensor to every layer of a stacked array on its own.

    The transformation must treat arrays independently of each other (a global norm would see one layer at a time).
    """

    def split(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = {}
        for path, leaf in flatten(tree).items():
            layers = num_layers(path, leaf.shape)
            groups.setdefault(f"layers_{layers}" if layers else "single", {})[path] = leaf
        return {name: unflatten(leaves) for name, leaves in groups.items()}

    def mapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return function if name == "single" else jax.vmap(function)

    def init(params: dict[str, Any]) -> dict[str, Any]:
        return {name: mapped(name, transformation.init)(group) for name, group in split(params).items()}

    def update(updates: dict[str, Any], state: dict[str, Any], params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        groups, flat, new_state = split(params), {}, {}
        for name, group in split(updates).items():
            done, new_state[name] = mapped(name, transformation.update)(group, state[name], groups[name])
            flat.update(flatten(done))
        return unflatten({path: flat[path] for path in flatten(updates)}), new_state

    return optax.GradientTransformation(init, update)


def scale_by_given_rate() -> optax.GradientTransformationExtraArgs:
    """Multiply by -learning_rate, an argument of every update."""

    def update(updates: Any, state: Any, params: Any = None, *, learning_rate: Any, **given: Any) -> tuple[Any, Any]:
        return jax.tree.map(lambda update: -learning_rate * update, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def scale_by_uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam's m / (sqrt(v) + eps) with the moments as they are, starting from zero (BERT's released optimizer)."""

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(count=jnp.zeros([], jnp.int32), mu=zeros, nu=optax.tree.zeros_like(params))

    def update(updates: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        updates = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=optax.safe_increment(state.count), mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def in_bfloat16(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keep both moments of an Adam in bfloat16; the update itself is computed in float32.

    They are rounded up or down at random, in proportion, by the number of the update. Rounded to the nearest, a second
    moment that changes by a thousandth a step (beta2 0.999) would never move: bfloat16 is two decimal digits.
    """

    def stored(tree: Any, count: jax.Array, which: int) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        seeds = (count.astype(jnp.uint32) * 2 + which) * len(leaves) + jnp.arange(len(leaves), dtype=jnp.uint32)
        rounded = [_rounded(leaf, seed) for leaf, seed in zip(leaves, seeds, strict=True)]
        return jax.tree.unflatten(structure, rounded)

    def init(params: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, adam.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        exact = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, state)
        updates, new = adam.update(updates, exact, params)
        return updates, new._replace(mu=stored(new.mu, new.count, 0), nu=stored(new.nu, new.count, 1))

    return optax.GradientTransformation(init, update)


def _rounded(x: jax.Array, seed: jax.Array) -> jax.Array:
    """Return x in bfloat16, up or down at random, so that its mean is x: a bfloat16 is the upper half of a float32.

    The noise is a hash of each entry's place (MurmurHash3's finaliser, twice), not `jax.random`: that would be an array
    of its own, larger than what is saved, where this is a few integer operations within the update.
    """
    noise = hashed(hashed(places(x.shape)) + seed) >> 16
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) + noise) & jnp.uint32(0xFFFF0000)
    return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(bits, jnp.float32), x).astype(jnp.bfloat16)


def decay_weights(
    weight_decay: float, exclude: tuple[str, ...], params: dict[str, Any]
) -> optax.GradientTransformation:
    """Add weight_decay * parameter to the update of whatever `exclude` does not select; it may select layers."""
    # The default names may be absent (T5 has no biases); anything else that selects nothing is a misspelling.
    mask(
        params, [pattern for pattern in several(exclude) if pattern not in BIASES_AND_NORMS], "optimizer.decay_exclude"
    )
    excluded = flatten(mask(params, exclude, strict=False))

    def decay(path: str, update: Any, param: Any) -> Any:
        if excluded[path] is True:
            return update
        return update + weight_decay * (param if excluded[path] is False else jnp.where(excluded[path], 0, param))

    def add(updates: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        flat = flatten(params)
        return unflatten({path: decay(path, update, flat[path]) for path, update in flatten(updates).items()})

    return optax.stateless(add)


def _linear(n: int, warmup: int, end: int, final: float) -> float:
    return n / warmup if n < warmup else _down_to(final, 1 - _progress(n, 0, end))


def _linear_product(n: int, warmup: int, end: int, final: float) -> float:
    return _constant(n, warmup, end, final) * _down_to(final, 1 - _progress(n, 0, end))


def _linear_from_peak(n: int, warmup: int, end: int, final: float) -> float:
    return n / warmup if n < warmup else _down_to(final, 1 - _progress(n, warmup, end))


def _cosine(n: int, warmup: int, end: int, final: float) -> float:
    wave = 0.5 * (1 + math.cos(math.pi * _progress(n, warmup, end)))
    return n / warmup if n < warmup else _down_to(final, wave)


def _constant(n: int, warmup: int, end: int, final: float) -> float:
    return n / warmup if n < warmup else 1.0


def _inverse_sqrt(n: int, warmup: int, end: int, final: float) -> float:
    # The paper counts updates from 1.
    return min((n + 1) / max(warmup, 1), math.sqrt(max(warmup, 1) / (n + 1)))


def _inverse_sqrt_flat(n: int, warmup: int, end: int, final: float) -> float:
    return math.sqrt(max(warmup, 1) / max(n, warmup, 1))


def _progress(n: int, start: int, end: int) -> float:
    """How far n has come from `start` to `end`, within 0 and 1."""
    return min(max((n - start) / max(end - start, 1), 0.0), 1.0)


def _down_to(final: float, left: float) -> float:
    return final + (1 - final) * left


SCHEDULES = {
    "linear": _linear,
    "linear_product": _linear_product,
    "linear_from_peak": _linear_from_peak,
    "cosine": _cosine,
    "constant": _constant,
    "inverse_sqrt": _inverse_sqrt,
    "inverse_sqrt_flat": _inverse_sqrt_flat,
}
_MOMENTS = ("float32", "bfloat16")
_DECAYING = ("linear", "linear_product", "linear_from_peak", "cosine")
