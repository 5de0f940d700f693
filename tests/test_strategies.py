"""Strategies: one step over eight devices, whatever the mesh, is the step of one device; and nothing is held twice."""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from sampling import sampled
from tiny import CONFIGS, batch_of, head_shapes, supervision_of

from jaxformer.devices.sharding import ShardingConfig, make_mesh, place, placements
from jaxformer.models.config import Execution
from jaxformer.models.model import Model
from jaxformer.training.compiled import Steps, StepSettings, compiled_steps
from jaxformer.training.optimizers import Adafactor, AdamW
from jaxformer.training.step import losses_of
from jaxformer.trees import flatten

NUM_STEPS = 20
ROWS = 16
DROPOUT = (("dropout", 0.1), ("attention_dropout", 0.1))
TWO_LAYERS = {"num_layers": 2}  # a dense and a banded one, of GPT-3
ONE_LAYER = ("num_layers", 1)  # where the number of layers is not the point
MESHES = {
    "one": ShardingConfig(data=1),
    "data": ShardingConfig(),
    "fsdp": ShardingConfig(fsdp=8),
    "tensor": ShardingConfig(tensor=2, data=1),
    "data-fsdp-tensor": ShardingConfig(fsdp=2, tensor=2),
    "fsdp-tensor": ShardingConfig(fsdp=2, tensor=4),
    "pmap": ShardingConfig(strategy="pmap"),
}


def steps_on(
    name: str, sharding: ShardingConfig, accumulation: int = 1, optimizer: Any = None, slots: Any = (), **how: Any
) -> tuple[Steps, Mesh]:
    config = dataclasses.replace(CONFIGS[name], **TWO_LAYERS | dict(slots))
    supervision, mesh = supervision_of(name), make_mesh(sharding)
    execution = Execution(mesh=mesh if sharding.strategy == "mesh" else None, **how)
    model = Model(config, execution, heads=head_shapes(supervision.heads))
    update = optimizer or AdamW(weight_decay=0.1)
    settings = StepSettings(losses_of(supervision), update, accumulation_steps=accumulation, strategy=sharding.strategy)
    return compiled_steps(model, settings, mesh), mesh


def losses_on(
    name: str, sharding: ShardingConfig, *args: Any, length: int = 10, **keys: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the losses of twenty steps and the parameters after them. Batches are packed, and devices predict unequal
    numbers of positions."""
    steps, mesh = steps_on(name, sharding, *args, **keys)
    state, losses = steps.make_state(jax.random.key(0)), []
    for step in range(NUM_STEPS):
        batch = batch_of(name, rows=ROWS, length=length, seed=step % 3)
        host = {key: np.asarray(value) for key, value in batch.items()}
        state, metrics = steps.train_step(state, place(mesh, host), jax.random.key(1), 1e-2)
        losses.append(float(metrics["loss"]))
    return np.array(losses), {path: np.asarray(leaf) for path, leaf in flatten(state.params).items()}


@functools.cache
def on_one_device(name: str, accumulation: int = 1, slots: Any = ()) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    return losses_on(name, MESHES["one"], accumulation, slots=slots)


def assert_equal_params(params: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for path, leaf in expected.items():
        if not path.endswith("key/bias"):  # which has no true gradient, and Adam makes steps of the noise
            assert np.linalg.norm(params[path] - leaf) < 1e-2 * np.linalg.norm(leaf), path


def assert_equal_losses(losses: np.ndarray, expected: np.ndarray) -> None:
    assert abs(losses[0] / expected[0] - 1) < 1e-6
    assert np.abs(losses / expected - 1).max() < 1e-4
    assert expected[-1] < 0.98 * expected[0]  # so that twenty steps are twenty different ones


SPLIT = tuple(mesh for mesh in MESHES if mesh not in ("one", "pmap"))
# One model of each family on every mesh, the other systems on the one that splits everything.
COMPARED = dict.fromkeys(CONFIGS, ("data-fsdp-tensor",)) | dict.fromkeys(("gpt3", "bert", "t5"), (*SPLIT, "pmap"))
BOTH = {"fsdp": "fsdp-tensor", "tensor": "fsdp-tensor"}
DROPPING = {"bert": SPLIT, "gpt3": ("data-fsdp-tensor",), "t5": ("fsdp-tensor",)}


def pairs(meshes: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(name, mesh) for name in meshes for mesh in meshes[name]]


@pytest.mark.parametrize(
    ("name", "mesh"),
    # Every mesh once, what splits alone as what splits along both; other families and systems below. Every day a mesh
    # is compared with dropout.
    sampled(
        pairs(COMPARED),
        path=lambda name, mesh: BOTH.get(mesh, mesh),
        daily=[("gpt3", "pmap")],
        ci=[("bert", mesh) for mesh in SPLIT],
    ),
)
def test_every_strategy_has_the_losses_of_one_device(name: str, mesh: str) -> None:
    losses, params = losses_on(name, MESHES[mesh], accumulation=2)
    expected, expected_params = on_one_device(name)
    assert_equal_losses(losses, expected)
    assert_equal_params(params, expected_params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("gpt3", "data-fsdp-tensor"),
        pytest.param("gpt3", "pmap", marks=pytest.mark.full),
        pytest.param("bert", "fsdp-tensor", marks=pytest.mark.full),
        ("t5", "data-fsdp-tensor"),
    ],
)
def test_in_double_precision_only_rounding_is_left(name: str, mesh: str) -> None:
    """Whatever is wrong by a little does not hide behind float32."""

    def losses(sharding: ShardingConfig, accumulation: int) -> np.ndarray:
        steps, devices = steps_on(name, sharding, accumulation, dtype="float64")
        state = steps.make_state(jax.random.key(0))
        state = jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state)
        found = []
        for step in range(NUM_STEPS):
            host = {key: np.asarray(value) for key, value in batch_of(name, rows=ROWS, seed=step % 3).items()}
            host = {key: array.astype(float) if key.endswith("weights") else array for key, array in host.items()}
            state, metrics = steps.train_step(state, place(devices, host), jax.random.key(1), 1e-2)
            found.append(float(metrics["loss"]))
        return np.array(found)

    with jax.enable_x64(True):
        found, expected = losses(MESHES[mesh], 2), losses(MESHES["one"], 1)
    assert np.abs(found / expected - 1).max() < 1e-9


@pytest.mark.parametrize(
    ("name", "mesh"),
    sampled(
        pairs(DROPPING),
        path=lambda name, mesh: CONFIGS[name].family == "encoder_decoder",
        ci=[("gpt3", "data-fsdp-tensor")],
    ),
)
def test_a_mesh_drops_what_one_device_drops(name: str, mesh: str) -> None:
    losses, params = losses_on(name, MESHES[mesh], accumulation=2, slots=DROPOUT)
    expected, expected_params = on_one_device(name, accumulation=2, slots=DROPOUT)
    assert_equal_losses(losses, expected)
    assert_equal_params(params, expected_params)
    assert np.abs(expected / on_one_device(name)[0] - 1).max() > 1e-3  # dropout did something


@pytest.mark.slow
def test_pmapped_devices_drop_different_units() -> None:
    """The same row on every device: with equal draws the gradient would be that of one of them."""
    slots = (*DROPOUT, ONE_LAYER)
    steps, mesh = steps_on("gpt3", MESHES["pmap"], slots=slots)
    one, alone = steps_on("gpt3", MESHES["one"], slots=slots)
    row = {key: np.asarray(value) for key, value in batch_of("gpt3", rows=1).items()}
    eight = {key: np.repeat(value, 8, axis=0) for key, value in row.items()}
    rng = jax.random.key(1)
    _, metrics = steps.train_step(steps.make_state(rng), place(mesh, eight), rng, 0.0)
    _, single = one.train_step(one.make_state(rng), place(alone, row), rng, 0.0)
    assert abs(float(metrics["loss"]) / float(single["loss"]) - 1) > 1e-5


@pytest.mark.parametrize("mesh", ["data-fsdp-tensor", "pmap"])
def test_state_is_made_split_and_stays_where_it_is(mesh: str) -> None:
    """No device ever holds a whole copy of what is split: not when it is made, not in a step, which reuses it."""
    # Steps of the comparisons above, which are compiled already.
    steps, devices = steps_on("gpt3", MESHES[mesh], 2, slots=() if mesh == "pmap" else DROPOUT)
    state = steps.make_state(jax.random.key(0))
    specs = placements(state.params, dict(devices.shape), CONFIGS["gpt3"].head_dim)
    assert {path: leaf.sharding.spec for path, leaf in flatten(state.params).items()} == {
        path: placement.spec for path, placement in specs.items()
    }
    for moment in (state.opt_state[1].mu, state.opt_state[1].nu):
        for path, leaf in flatten(moment).items():
            assert leaf.sharding.spec == specs[path].spec, path
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert own < (0.4 if mesh != "pmap" else 1.01) * whole
    made = steps.make_state.lower(jax.random.key(0)).compile().memory_analysis()
    assert made.output_size_in_bytes < 1.1 * own + 5000  # of one device; a tuple's pointers come on top

    host = {key: np.asarray(value) for key, value in batch_of("gpt3", rows=ROWS).items()}
    before = state
    state, _ = steps.train_step(state, place(devices, host), jax.random.key(1), 1e-3)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))  # donated
    assert [leaf.sharding.spec for leaf in jax.tree.leaves(state)] == [
        leaf.sharding.spec for leaf in jax.tree.leaves(steps.make_state(jax.random.key(0)))
    ]


@pytest.mark.parametrize(
    ("name", "mesh"), [("gpt3", "data-fsdp-tensor"), pytest.param("t5", "fsdp-tensor", marks=pytest.mark.slow)]
)
def test_split_parameters_begin_as_unsplit_ones(name: str, mesh: str) -> None:
    alone, split = (
        steps_on(name, MESHES[on], 2, slots=DROPOUT)[0].make_state(jax.random.key(3)) for on in ("one", mesh)
    )
    for path, leaf in flatten(alone.params).items():
        np.testing.assert_array_equal(leaf, flatten(split.params)[path], err_msg=path)


def test_gradients_are_summed_where_they_stay() -> None:
    """Under fsdp the sum over devices leaves each with its own part: reduce-scatters (or what the CPU makes of them),
    and no gradient whole on any device between micro-batches."""
    steps, mesh = steps_on("gpt3", MESHES["fsdp"], accumulation=2, slots=(ONE_LAYER,))
    host = {key: np.asarray(value) for key, value in batch_of("gpt3", rows=ROWS).items()}
    rng = jax.random.key(0)
    state = jax.eval_shape(steps.make_state, rng)
    text = steps.train_step.lower(state, place(mesh, host), rng, 0.0).compile().as_text()
    loops = [line for line in text.splitlines() if re.search(r"= \(.*\) while\(", line)]
    assert loops
    d_model, d_ff, layers = 16, 32, 1
    whole, part = f"f32[{layers},{d_model},{d_ff}]", f"f32[{layers},{d_model // 8},{d_ff}]"
    assert any(part in line for line in loops) and not any(whole in line for line in loops)


@pytest.mark.slow
def test_adafactor_too_is_the_same_on_a_mesh() -> None:
    optimizer = Adafactor(factor_min_dim=8)
    losses, _ = losses_on("t5", MESHES["fsdp-tensor"], optimizer=optimizer)
    expected, _ = losses_on("t5", MESHES["one"], optimizer=optimizer)
    assert_equal_losses(losses, expected)


@pytest.mark.parametrize("name", ["gpt3", pytest.param("bert", marks=pytest.mark.slow)])
def test_logits_in_chunks_are_the_same_loss_and_are_never_held_whole(name: str) -> None:
    # No chunk divides the row, and no other array has as many columns as the vocabulary.
    length, part, vocabulary = (24, 5, 101) if name == "gpt3" else (10, 2, 101)
    slots = (("vocab_size", vocabulary), ("vocab_multiple", 1), ONE_LAYER)
    chunked, _ = losses_on(name, MESHES["one"], length=length, slots=slots, logits_chunk=part)
    assert_equal_losses(chunked, losses_on(name, MESHES["one"], length=length, slots=slots)[0])

    batch = batch_of(name, rows=ROWS, length=length)
    judged = []
    for chunk in (0, part):
        steps, _ = steps_on(name, MESHES["one"], slots=slots, logits_chunk=chunk)
        judged.append(steps.eval_step(steps.make_state(jax.random.key(0)).params, batch))
    np.testing.assert_array_equal(judged[1][1]["tokens"], judged[0][1]["tokens"])
    np.testing.assert_allclose(judged[1][0]["tokens"], judged[0][0]["tokens"], rtol=1e-6)

    def largest(chunk: int) -> int:
        """The largest array [rows, positions, vocabulary] of a compiled step, in positions."""
        steps, mesh = steps_on(name, MESHES["one"], slots=slots, logits_chunk=chunk)
        host = {key: np.asarray(value) for key, value in batch.items()}
        rng = jax.random.key(0)
        state = jax.eval_shape(steps.make_state, rng)
        text = steps.train_step.lower(state, place(mesh, host), rng, 0.0).compile().as_text()
        shapes = [tuple(map(int, sizes.split(","))) for sizes in re.findall(r"f32\[([\d,]+)\]", text)]
        return max(int(np.prod(shape)) for shape in shapes if shape[-1] == vocabulary) // (ROWS * vocabulary)

    if name == "gpt3":
        assert largest(0) == length and largest(part) == part


def test_a_step_that_is_not_finite_changes_nothing_when_skipped() -> None:
    name, supervision = "gpt3", supervision_of("gpt3")
    model, mesh = Model(dataclasses.replace(CONFIGS[name], num_layers=1)), make_mesh(MESHES["one"])
    steps = compiled_steps(model, StepSettings(losses_of(supervision), AdamW(), skips=True), mesh)
    state = steps.make_state(jax.random.key(0))
    params = jax.tree.map(np.asarray, state.params)
    batch = {key: np.asarray(value) for key, value in batch_of(name).items()}
    bad = batch | {"weights": np.where(batch["weights"] > 0, np.float32(np.inf), 0)}
    state, metrics = steps.train_step(state, place(mesh, bad), jax.random.key(1), 1e-3)
    assert not np.isfinite(metrics["loss"]) and int(state.step) == 1 and int(state.opt_state[1].count) == 0
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.asarray, state.params))
    state, metrics = steps.train_step(state, place(mesh, batch), jax.random.key(1), 1e-3)
    assert np.isfinite(metrics["loss"]) and int(state.step) == 2 and int(state.opt_state[1].count) == 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
