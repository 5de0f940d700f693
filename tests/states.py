"""Small training states, with an optimizer whose state is a tree of several kinds, and checkpoints of them."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxformer.checkpoint import CheckpointConfig, Checkpoints
from jaxformer.checkpoint.digest import read_digest
from jaxformer.checkpoint.reading import restore_state, verified

OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.scale_by_adam(),
    optax.masked(optax.trace(0.9), {"embedding": {"tokens": False}, "decoder": True, "head": True}),
)


class State(NamedTuple):
    step: jax.Array
    params: dict[str, Any]
    opt_state: Any


def make_params(seed: int = 0, num_layers: int = 4, width: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.normal(size=(num_layers, width, 16)), jnp.float32)
    return {
        "embedding": {"tokens": jnp.asarray(rng.normal(size=(11, width)), jnp.float32)},
        "decoder": {"layers": {"query": {"kernel": kernel}}, "norm": {"scale": jnp.ones(width, jnp.bfloat16)}},
        "head": {"kernel": jnp.asarray(rng.normal(size=(width, 2)), jnp.float32)},
    }


def make_state(step: int, seed: int = 0) -> State:
    params = make_params(seed + step)
    _, opt_state = OPTIMIZER.update(params, OPTIMIZER.init(params), params)
    return State(jnp.int32(step), params, opt_state)


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree)


def assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def save_all(directory: Path, steps: dict[int, float | None], **fields: Any) -> None:
    checkpoints = Checkpoints(directory, CheckpointConfig(**fields))
    for step, loss in steps.items():
        checkpoints.save(step, make_state(step), None if loss is None else {"eval/loss": loss})
    checkpoints.close()


def restore_named(path: Path, target: Any) -> tuple[int, Any]:
    """Return (step, state) of the checkpoint that `path` names, or of a run's newest one."""
    folder = verified(path)
    return read_digest(folder).step, restore_state(folder, target)
