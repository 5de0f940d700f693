"""Bytes per device: those of real arrays, and activations beside those of compiled programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import AS_USERS
from jax.sharding import Mesh

from jaxformer.config import Config, load
from jaxformer.devices.sharding import AXES, make_mesh, placed, split
from jaxformer.planning.activations import held
from jaxformer.planning.plan import make_plan
from jaxformer.runs.learner import step_settings
from jaxformer.runs.loading import build_model
from jaxformer.training.compiled import compiled_steps
from jaxformer.trees import flatten


def steps_of(config: Config, mesh: Mesh) -> Any:
    """Return the compiled functions of a run of this config."""
    settings = step_settings(config, config.supervision, config.phases[-1])
    return compiled_steps(build_model(config, config.supervision), settings, mesh)


def shapes_of_batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    rows = config.training.batch_size
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), jnp.dtype(dtype))
        for name, (shape, dtype) in config.supervision.shapes.items()
    }


# Bytes.

SPREAD = {
    "adam": ("gpt:smoke", ["sharding.data=2", "sharding.fsdp=2", "sharding.tensor=2"]),
    "adafactor": ("t5:smoke", ["sharding.fsdp=4", "sharding.tensor=2", "model.vocab_size=4097"]),
    "frozen": ("bert:smoke", ["sharding.fsdp=8", "training.trainable=encoder/layers[1:]/.*,vocabulary/.*"]),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("adam", marks=(pytest.mark.slow, pytest.mark.full)),
        pytest.param("adafactor", marks=pytest.mark.slow),
        "frozen",
    ],
)
def test_bytes_are_those_of_real_arrays(name: str) -> None:
    spec, overrides = SPREAD[name]
    config = load(spec, [*overrides, "training.unroll_layers=1"])
    plan = make_plan(config, num_devices=8)
    state = steps_of(config, make_mesh(config.sharding, config.batch_sizes)).make_state(jax.random.key(0))

    def on_each(tree: Any) -> set[int]:
        """Return the bytes that each device holds of the arrays of a tree."""
        sizes = dict.fromkeys(jax.devices(), 0)
        for leaf in jax.tree.leaves(tree):
            for shard in leaf.addressable_shards:
                sizes[shard.device] += shard.data.nbytes
        return set(sizes.values())

    found = plan["bytes_per_device"]
    assert on_each(state.params) == {found["parameters"]} == {found["gradients"]}
    assert on_each((state.step, state.opt_state)) == {found["optimizer"]}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    by_path = {entry["path"]: entry for entry in plan["parameters"]}
    for path, leaf in flatten(state.params).items():
        assert by_path[path]["bytes_per_device"] == leaf.addressable_shards[0].data.nbytes, path
        assert by_path[path]["spec"] == list(leaf.sharding.spec), path


def test_pmap_copies_everything() -> None:
    alone = make_plan(load("gpt:smoke"))["bytes_per_device"]
    copied = make_plan(load("gpt:smoke", ["sharding.strategy=pmap"]), num_devices=8)
    for what in ("parameters", "optimizer", "gradients"):
        assert copied["bytes_per_device"][what] == alone[what], what
    assert copied["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1} and copied["devices"] == 8
    assert copied["bytes_per_device"]["activations"] < alone["activations"]


# Activations.

SIZES = ["model.d_model=256", "model.d_ff=1024", "model.num_heads=4", "model.head_dim=64"]
# Of each family and lever one, at ratios of widths, lengths and vocabulary as in the papers' models.
COMPILED = {
    "gpt, dropout": ("gpt", [
        *SIZES, "model.num_layers=2", "model.vocab_size=8192", "objective.sequence_length=256", "training.batch_size=8",
    ]),
    "bert, predicted positions": ("bert", [
        *SIZES, "model.num_layers=4", "objective.sequence_length=128", "objective.max_predictions=20",
        "training.batch_size=16", "training.phases=()",
    ]),
    "t5, encoder and decoder": ("t5", [*SIZES, "model.num_layers=4", "model.vocab_size=8192", "training.batch_size=4"]),
    "gpt3, scan and full rematerialisation": ("gpt3:125m", [
        *SIZES, "model.num_layers=6", "model.vocab_size=16384", "objective.sequence_length=512",
        "training.batch_size=4", "training.phases=()", "training.remat=full", "training.unroll_layers=1",
    ]),
    "gpt2, chunks of logits": ("gpt2:124m", [
        "model.d_model=192", "model.d_ff=768", "model.num_heads=6", "model.head_dim=32", "model.num_layers=6",
        "model.vocab_size=30000", "objective.sequence_length=256", "training.batch_size=8", "training.phases=()",
        "training.logits_chunk=64",
    ]),
}  # fmt: skip
QUICK = ("gpt3, scan and full rematerialisation",)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in COMPILED])
def test_activations_are_within_a_quarter_of_the_compiled_programs(name: str) -> None:
    spec, overrides = COMPILED[name]
    config = load(spec, [*overrides, "training.compute_dtype=float32"])
    found = make_plan(config)["bytes_per_device"]
    steps = steps_of(config, Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES))
    state = jax.eval_shape(steps.make_state, jax.random.key(0))
    lowered = steps.train_step.lower(state, shapes_of_batch(config), jax.random.key(0), jnp.float32(1))
    compiled = lowered.compile(AS_USERS).memory_analysis().temp_size_in_bytes - found["gradients"]
    print(f"{name}: planned {found['activations'] / 1e6:.1f} MB, compiled {compiled / 1e6:.1f} MB")
    assert found["activations"] == pytest.approx(compiled, rel=0.25)


SPREAD_OUT = {
    "fsdp 8, scan": ["sharding.fsdp=8", "training.unroll_layers=1"],
    "2 x 2 x 2": ["sharding.data=2", "sharding.fsdp=2", "sharding.tensor=2"],
    "accumulation": ["sharding.data=1", "training.accumulation_steps=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name == "2 x 2 x 2" else name for name in SPREAD_OUT]
)
def test_activations_of_a_mesh_and_of_accumulation(name: str) -> None:
    """Half of the model's width in every layer, so that gathered parameters and gradients are no small part."""
    config = load("gpt2:124m", [
        "model.d_model=512", "model.d_ff=2048", "model.num_heads=8", "model.head_dim=64", "model.num_layers=4",
        "model.vocab_size=8192", "objective.sequence_length=128", "training.batch_size=16", "training.phases=()",
        "training.compute_dtype=float32", *SPREAD_OUT[name],
    ])  # fmt: skip
    mesh = make_mesh(config.sharding, config.batch_sizes)
    found = make_plan(config, num_devices=mesh.size)["bytes_per_device"]
    settings = step_settings(config, config.supervision, config.phases[-1])
    steps = compiled_steps(build_model(config, config.supervision, mesh), settings, mesh)
    state = placed(jax.eval_shape(steps.make_state, jax.random.key(0)), steps.shardings)
    batch = shapes_of_batch(config)
    batch = placed(batch, dict.fromkeys(batch, split(mesh)))
    compiled = steps.train_step.lower(state, batch, jax.random.key(0), jnp.float32(1)).compile(AS_USERS)
    measured = compiled.memory_analysis().temp_size_in_bytes - found["gradients"]
    print(f"{name}: planned {found['activations'] / 1e6:.1f} MB, compiled {measured / 1e6:.1f} MB")
    assert found["activations"] == pytest.approx(measured, rel=0.25)


def test_what_accumulation_and_fsdp_add() -> None:
    base = ["training.unroll_layers=1", "training.phases=()", "objective.sequence_length=128", "model.num_layers=4"]

    def plan(*overrides: str) -> dict[str, int]:
        return make_plan(load("gpt2:124m", [*base, *overrides]))["bytes_per_device"]

    whole, twice = plan("training.batch_size=8"), plan("training.batch_size=16", "training.accumulation_steps=2")
    assert twice["activations"] == whole["activations"] + whole["gradients"]
    # Scanned layers' gradients are there from the start: nothing of them hides behind activations. The table is there
    # whole, and so are its gradient from the logits and that from the look-up, until each device keeps its share.
    shared = plan("training.batch_size=16", "sharding.fsdp=2")
    layer, table = 4 * 12 * 768**2, 4 * 50_304 * 768
    assert layer + 2 * table <= shared["activations"] - whole["activations"] <= layer + 3 * table


def test_with_few_examples_the_gradients_are_the_most() -> None:
    """No clipped copies of them: beside them stands the second gradient of the table, that of the look-up."""
    few = ["training.batch_size=1", "training.phases=()", "objective.sequence_length=16", "evaluation.batch_size=1"]
    found = make_plan(load("gpt2:124m", few))["bytes_per_device"]
    assert found["activations"] == pytest.approx(4 * 50_257 * 768, rel=0.05)


def test_what_is_held_by_hand() -> None:
    """Arrays of 8 x 16 float32 (512 bytes), 8 x 4 (128), of which the first has two readers."""
    x, w, v = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 8), (8, 16), (16, 4)))

    def of(function: Any, *arguments: Any) -> float:
        return sum(held(jax.make_jaxpr(function)(*arguments))[:2])

    assert of(lambda x, w: x @ w, x, w) == 512
    assert of(lambda x, w, v: jnp.tanh(x @ w) @ v, x, w, v) == 512 + 128  # tanh takes the place of the product
    # Without a name for it the sum of rows needs nothing more than its operand.
    assert of(lambda x, w: jnp.sum(jnp.tanh(x @ w) + 1.0), x, w) == 512 + 4
    assert of(lambda key: jax.random.bits(key, (8, 16)), jax.eval_shape(lambda: jax.random.key(0))) == 2 * 512
    assert of(lambda x, w: jnp.exp(x @ w) * jnp.sum(jnp.exp(x @ w)), x, w) >= 2 * 512


@pytest.mark.slow
def test_levers_lower_the_activations() -> None:
    def activations(*overrides: str) -> int:
        base = ["model.dropout=0.1", "model.attention_dropout=0.1", "training.unroll_layers=1"]
        base += ["training.attention=einsum"]  # whatever auto is on the device at hand
        return make_plan(load("gpt2:124m", [*base, *overrides]))["bytes_per_device"]["activations"]

    whole = activations()
    for lever in (
        "training.remat=dots", "training.remat=full", "training.logits_chunk=128", "training.batch_size=256",
        "model.dropout=0", "sharding.tensor=2", "sharding.fsdp=2", "objective.sequence_length=512",
    ):  # fmt: skip
        assert activations(lever, *(["training.phases=()"] if "batch" in lever else [])) < whole, lever
    # Whole logits take more room than either leaves of the layers.
    chunks = "training.logits_chunk=128"
    assert activations("training.remat=full", chunks) < activations("training.remat=dots", chunks)
    assert activations("training.compute_dtype=float32") > whole
    assert activations("sharding.tensor=2") < 0.7 * whole  # most of it is scores, which go by heads
    # A fused kernel holds no scores.
    fused = activations("model.attention_dropout=0", "training.attention=cudnn")
    assert fused < 0.6 * activations("model.attention_dropout=0")


@pytest.mark.slow
def test_unrolled_layers_beyond_the_fourth_add_as_much_as_those() -> None:
    def activations(layers: int) -> int:
        return make_plan(load("gpt", [f"model.num_layers={layers}"]))["bytes_per_device"]["activations"]

    assert activations(8) - activations(6) == pytest.approx(activations(6) - activations(4), rel=1e-3)
