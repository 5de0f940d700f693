"""The plan: exact bytes, activations beside compiled programs, the estimate by hand, and the rules of placement."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from runs import make_run, tokenizer_of

from jaxformer.activations import held
from jaxformer.build import build_model, compiled_steps, run_mesh, timeless
from jaxformer.cli import main
from jaxformer.config import Config, load
from jaxformer.errors import UserError
from jaxformer.flops import CHIPS, PEAKS, peak
from jaxformer.footprint import WORLD_AVERAGE, carbon_intensity
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.model import Model
from jaxformer.models.presets import PRESETS
from jaxformer.parameters import LAYERS, count, flatten
from jaxformer.plan import formulas, make_plan, print_plan
from jaxformer.sharding import AXES, RULES, SPLITS, placements, split
from jaxformer.start import placed
from jaxformer.step import losses_of


def steps_of(config: Config, mesh: Mesh) -> Any:
    """Return the compiled functions of a run of this config."""
    training = config.training
    return compiled_steps(
        build_model(config, config.supervision), losses_of(config.supervision), timeless(config.optimizer),
        training.trainable, training.accumulation_steps, mesh,
    )  # fmt: skip


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


@pytest.mark.parametrize("name", SPREAD)
def test_bytes_are_those_of_real_arrays(name: str) -> None:
    spec, overrides = SPREAD[name]
    config = load(spec, [*overrides, "training.unroll_layers=1"])
    plan = make_plan(config, num_devices=8)
    state = steps_of(config, run_mesh(config)).make_state(jax.random.key(0))

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


def test_gpt3_175b_in_seconds(run_cli: Callable[..., Any]) -> None:
    began = time.monotonic()
    done = run_cli(
        "plan", "--config=gpt3:175b", "--devices=128", "--chip=h100", "--config.sharding.fsdp=16",
        "--config.sharding.tensor=8", "--json",
    )  # fmt: skip
    assert time.monotonic() - began < 20
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["num_parameters"] == 174_604_259_328
    d, layers = 12_288, 96
    kernels = layers * 12 * d * d // 128  # query, key, value, output; two of d_ff = 4 d
    # By heads and d_ff: the biases of query, key, value and of the first feed-forward product; whole: the rest.
    small = layers * ((3 * d + 4 * d) // 8 + 2 * d + 4 * d) + 2 * d
    tables = (50_257 + 2048) * d // 16  # the vocabulary does not divide by 8
    assert plan["bytes_per_device"]["parameters"] == 4 * (kernels + small + tables)
    assert plan["bytes_per_device"]["gradients"] == 4 * (kernels + small + tables)
    # Two moments, and the numbers of the step and of Adam's updates.
    assert plan["bytes_per_device"]["optimizer"] == 2 * 4 * (kernels + small + tables) + 2 * 4
    per_token = 6 * (layers * 12 * d * d + 50_257 * d) + 6 * layers * d * 2048
    assert plan["flops_per_token"] == pytest.approx(per_token)
    assert plan["fits"] is False  # unrolled layers without rematerialisation
    (table,) = (entry for entry in plan["parameters"] if entry["path"] == "embedding/tokens")
    assert table["spec"] == [None, "fsdp"] and "50257 does not divide by tensor 8" in table["notes"][0]


# Activations.

SIZES = ["model.d_model=256", "model.d_ff=1024", "model.num_heads=4", "model.head_dim=64"]
# Of each family and lever one, at ratios of widths, lengths and vocabulary as in the papers' models.
COMPILED = {
    "gpt, dropout": ("gpt", [
        *SIZES, "model.num_layers=4", "model.vocab_size=8192", "objective.sequence_length=256", "training.batch_size=8",
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
QUICK = ("gpt, dropout", "gpt3, scan and full rematerialisation")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in COMPILED])
def test_activations_are_within_a_quarter_of_the_compiled_programs(name: str) -> None:
    spec, overrides = COMPILED[name]
    config = load(spec, [*overrides, "training.compute_dtype=float32"])
    found = make_plan(config)["bytes_per_device"]
    steps = steps_of(config, Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES))
    state = jax.eval_shape(steps.make_state, jax.random.key(0))
    lowered = steps.train_step.lower(state, shapes_of_batch(config), jax.random.key(0), jnp.float32(1))
    compiled = lowered.compile().memory_analysis().temp_size_in_bytes - found["gradients"]
    print(f"{name}: planned {found['activations'] / 1e6:.1f} MB, compiled {compiled / 1e6:.1f} MB")
    assert found["activations"] == pytest.approx(compiled, rel=0.25)


SPREAD_OUT = {
    "fsdp 8, scan": ["sharding.fsdp=8", "training.unroll_layers=1"],
    "2 x 2 x 2": ["sharding.data=2", "sharding.fsdp=2", "sharding.tensor=2"],
    "accumulation": ["sharding.data=1", "training.accumulation_steps=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREAD_OUT)
def test_activations_of_a_mesh_and_of_accumulation(name: str) -> None:
    """Half of the model's width in every layer, so that gathered parameters and gradients are no small part."""
    config = load("gpt2:124m", [
        "model.d_model=512", "model.d_ff=2048", "model.num_heads=8", "model.head_dim=64", "model.num_layers=4",
        "model.vocab_size=8192", "objective.sequence_length=128", "training.batch_size=16", "training.phases=()",
        "training.compute_dtype=float32", *SPREAD_OUT[name],
    ])  # fmt: skip
    mesh = run_mesh(config)
    found = make_plan(config, num_devices=mesh.size)["bytes_per_device"]
    steps = compiled_steps(
        build_model(config, config.supervision, mesh), losses_of(config.supervision), timeless(config.optimizer),
        config.training.trainable, config.training.accumulation_steps, mesh,
    )  # fmt: skip
    state = placed(jax.eval_shape(steps.make_state, jax.random.key(0)), steps.shardings)
    batch = shapes_of_batch(config)
    batch = placed(batch, dict.fromkeys(batch, split(mesh)))
    compiled = steps.train_step.lower(state, batch, jax.random.key(0), jnp.float32(1)).compile()
    measured = compiled.memory_analysis().temp_size_in_bytes - found["gradients"]
    print(f"{name}: planned {found['activations'] / 1e6:.1f} MB, compiled {measured / 1e6:.1f} MB")
    assert found["activations"] == pytest.approx(measured, rel=0.25)


def test_what_accumulation_and_fsdp_add() -> None:
    base = ["training.unroll_layers=1", "training.phases=()", "objective.sequence_length=128", "model.num_layers=4"]

    def plan(*overrides: str) -> dict[str, int]:
        return make_plan(load("gpt2:124m", [*base, *overrides]))["bytes_per_device"]

    whole, twice = plan("training.batch_size=8"), plan("training.batch_size=16", "training.accumulation_steps=2")
    assert twice["activations"] == whole["activations"] + whole["gradients"]
    # Scanned layers' gradients are there from the start: nothing of them hides behind activations.
    shared = plan("training.batch_size=16", "sharding.fsdp=2")
    layer, table = 4 * 12 * 768**2, 4 * 50_257 * 768
    assert layer + 2 * table <= shared["activations"] - whole["activations"] <= 1.1 * (layer + 2 * table)


def test_with_few_examples_the_clipped_gradients_are_the_most() -> None:
    few = ["training.batch_size=1", "training.phases=()", "objective.sequence_length=16", "evaluation.batch_size=1"]
    found = make_plan(load("gpt2:124m", few))["bytes_per_device"]
    assert found["activations"] == pytest.approx(found["gradients"], rel=0.05)


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
        return make_plan(load("gpt2:124m", [*base, *overrides]))["bytes_per_device"]["activations"]

    whole = activations()
    for lever in (
        "training.remat=dots", "training.remat=full", "training.logits_chunk=128", "training.batch_size=256",
        "model.dropout=0", "sharding.tensor=2", "sharding.fsdp=2", "objective.sequence_length=512",
    ):  # fmt: skip
        assert activations(lever, *(["training.phases=()"] if "batch" in lever else [])) < whole, lever
    assert activations("training.remat=full") < activations("training.remat=dots")
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


# The estimate.


def test_the_estimate_by_hand() -> None:
    phases = "[{'steps': 100, 'batch_size': 8}]"
    config = load("gpt:smoke", [
        f"training.phases={phases}", "training.num_steps=300", "training.batch_size=16", "footprint.pue=1.2",
        "footprint.country_iso_code=FRA",
    ])  # fmt: skip
    plan = make_plan(config, num_devices=2, chip="A100", utilisation=0.25)
    model, length = config.model, config.objective.sequence_length
    layer = 4 * model.d_model**2 + 2 * model.d_model * model.d_ff
    row = 6 * length * (model.num_layers * layer + model.vocab_size * model.d_model)
    row += 6 * model.num_layers * model.d_model * length**2
    assert plan["tokens"] == (100 * 8 + 200 * 16) * length
    assert plan["flops"] == pytest.approx((100 * 8 + 200 * 16) * row)
    assert plan["flops_per_token"] == pytest.approx(row / length)
    hours = plan["flops"] / (2 * 312e12 * 0.25) / 3600
    assert plan["hours"] == pytest.approx(hours)
    kwh = hours * 2 * 0.400 * 1.1 * 1.2
    assert plan["kwh"] == pytest.approx(kwh)
    grams, where = carbon_intensity("FRA")
    assert 10 < grams < 150 and "France" in where
    assert plan["kg_co2eq"] == pytest.approx(kwh * grams / 1000)
    text = formulas(plan)
    assert "2 devices x 3.12e+14 FLOP/s x 0.25" in text["hours"] and "400 W x 1.1" in text["kWh"]
    assert "France" in text["kgCO2eq"] and f"{grams:g} g/kWh" in text["kgCO2eq"]


def test_without_a_country_it_is_the_world() -> None:
    plan = make_plan(load("gpt:smoke"), chip="l4")
    assert plan["grams_per_kwh"] == WORLD_AVERAGE == 475 and "world" in plan["electricity"]
    assert carbon_intensity("") == carbon_intensity("XYZ") == (plan["grams_per_kwh"], plan["electricity"])


def test_gpt3_costs_what_is_published() -> None:
    """Patterson et al. 2021, table 4: 3.14e23 FLOPs, 10,000 V100 at 24.6 TFLOP/s, 14.8 days, 1287 MWh, 552 t."""
    batch = ["training.batch_size=20000", "training.phases=()", "training.num_steps=7324", "footprint.pue=1.1",
             "optimizer.warmup_steps=10", "training.unroll_layers=1"]  # fmt: skip
    plan = make_plan(load("gpt3:175b", batch), num_devices=10_000, chip="v100", utilisation=24.6 / 125)
    assert plan["tokens"] == pytest.approx(300e9, rel=1e-3)
    assert plan["flops"] == pytest.approx(3.14e23, rel=0.02)
    assert plan["hours"] / 24 == pytest.approx(14.8, rel=0.03)
    assert plan["kwh"] == pytest.approx(1_287_000, rel=0.03)
    assert plan["kwh"] * 429 / 1e6 == pytest.approx(552, rel=0.03)


def test_chips_are_data() -> None:
    for name, chip in CHIPS.items():
        assert peak(f"NVIDIA {chip.kind} x") == chip.peak == PEAKS[chip.kind], name
        assert 8e9 <= chip.memory <= 200e9 and (chip.watts is None or 50 < chip.watts <= 1000) and chip.source, name
    assert peak("NVIDIA A100-SXM4-80GB") == 312e12 and peak("TPU v5 lite") == 197e12 and peak("TPU v5") == 459e12


def test_a_chip_of_unknown_power_asks_for_it() -> None:
    config = load("gpt:smoke")
    plan = make_plan(config, chip="v5p")
    assert plan["kwh"] is plan["kg_co2eq"] is None and plan["hours"] > 0 and "--watts" in formulas(plan)["kWh"]
    assert make_plan(config, chip="v5p", watts=300.0)["kwh"] > 0


# The command line.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chip=h10"], "did you mean 'h100'"),
        (["--devices=2", "--config.sharding.fsdp=4"], "do not divide 2 devices"),
        (["--devices=2", "--config.sharding.data=4"], "4 devices wanted"),
        (["--devices=3"], "do not divide among 3 devices"),
        (["--devices=0"], "--devices=0"),
        (["--utilisation=1.5"], "--utilisation=1.5"),
        (["--chip=l4", "--watts=0"], "--watts=0"),
        (["--config.sharding.fdsp=2"], "did you mean 'fsdp'"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config=gpt:smoke", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config=gpt:smoke", "--config.sharding.tensor=8", "--config.model.num_heads=4"]) == 0
    text = capsys.readouterr().out
    assert "937,216" in text and "--chip=NAME" in text and "hours" not in text.replace("how long", "")
    assert re.search(r"decoder/layers/feed_forward/input/kernel +2 x 128 x 512 +-, -, tensor +65,536", text)
    assert "heads 4 does not divide by tensor 8" in text
    assert main(["plan", "--config=gpt:smoke", "--chip=h100"]) == 0
    text = capsys.readouterr().out
    assert "fits" in text and "kgCO2eq" in text and "NVIDIA H100 data sheet" in text


def test_a_teacher_that_is_not_there_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan(load("distilbert:smoke"))
    assert "teacher" not in plan["bytes_per_device"] and any("teacher" in note for note in plan["notes"])
    print_plan(plan)
    assert "teacher" in capsys.readouterr().out


def test_a_teacher_takes_part(tmp_path: Path) -> None:
    taught = [
        f"model.vocab_size={tokenizer_of('wordpiece').vocab_size}",
        "distillation.cosine_weight=0",
        f"distillation.teacher={make_run('bert', tmp_path / 'teacher')}",
    ]
    with_one, without = make_plan(load("distilbert:smoke", taught)), make_plan(load("distilbert:smoke", taught[:2]))
    stored = json.loads((tmp_path / "teacher" / "config.json").read_text())["config"]["model"]
    stored.pop("preset")
    model = Model(TransformerConfig(**stored), Execution(unroll=1))
    assert with_one["bytes_per_device"]["teacher"] == 4 * count(model.shapes)
    assert with_one["bytes_per_device"]["activations"] > without["bytes_per_device"]["activations"]
    with pytest.raises(UserError, match="another vocab_size, d_model"):
        make_plan(load("distilbert:smoke", taught[2:]))
    assert with_one["flops"] > without["flops"] and not any("teacher" in note for note in with_one["notes"])


def test_labels_are_those_of_the_data(tmp_path: Path) -> None:
    def classes(config: Config) -> int:
        (kernel,) = (e for e in make_plan(config)["parameters"] if e["path"] == "row_heads/label/kernel")
        return kernel["shape"][1]

    assert classes(load("finetune_area:bert,smoke")) == 10
    missing = load("finetune_area:bert,smoke", ["data.name=json_lines", f"data.path={tmp_path}/none.jsonl"])
    assert classes(missing) == 2 and any("labels" in note for note in make_plan(missing)["notes"])


# The rules.


@pytest.fixture(scope="module")
def presets() -> dict[str, tuple[TransformerConfig, dict[str, Any]]]:
    """Every preset with its parameters' shapes; scanned layers are traced once."""
    heads = (("next_sentence", 2), ("label", 3))
    models = {name: Model(TransformerConfig(**sizes), Execution(unroll=1), heads) for name, sizes in PRESETS.items()}
    return {name: (model.config, model.shapes) for name, model in models.items()}


def test_every_parameter_of_every_preset_has_a_rule_and_every_rule_a_parameter(presets: dict) -> None:
    used = set()
    for name, (config, shapes) in presets.items():
        stored = config.stored_vocab_size
        for path, leaf in flatten(shapes).items():
            first = next((n for n, (pattern, _) in enumerate(RULES) if re.fullmatch(pattern, path)), None)
            assert first is not None, f"{name}: {path}"
            used.add(first)
            kinds = RULES[first][1]
            dimensions = leaf.shape[1:] if LAYERS in path.split("/")[:-1] else leaf.shape
            assert len(kinds) <= len(dimensions), f"{name}: {path}"
            lengths = {
                "vocab": {stored}, "d_model": {config.d_model}, "d_ff": {config.d_ff},
                "heads": {config.num_heads, config.num_heads * config.head_dim},
            }  # fmt: skip
            for kind, length in zip(kinds, dimensions, strict=False):
                assert not kind or length in lengths[kind], f"{name}: {path} {kind}"
    assert used == set(range(len(RULES)))


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_a_dimension_is_split_or_says_why_not(presets: dict, tensor: int) -> None:
    sizes = {"data": 1, "fsdp": 8, "tensor": tensor}
    for name, (config, shapes) in presets.items():
        placements_ = placements(shapes, sizes, config.head_dim)
        for path, leaf in flatten(shapes).items():
            spec, notes = placements_[path]
            assert len(spec) <= len(leaf.shape), f"{name}: {path}"
            kinds = next(kinds for pattern, kinds in RULES if re.fullmatch(pattern, path))
            stacked = LAYERS in path.split("/")[:-1]
            axes = [*spec, *[None] * len(leaf.shape)]
            assert not stacked or axes[0] is None, f"{name}: {path}"
            for place, kind in enumerate(kinds, start=int(stacked)):
                if not kind:
                    assert axes[place] is None, f"{name}: {path}"
                elif axes[place] is None:
                    assert any(note.startswith(f"{kind} ") for note in notes), f"{name}: {path} {kind}"
                else:
                    assert axes[place] == SPLITS[kind], f"{name}: {path} {kind}"
                    units = config.num_heads if kind == "heads" else leaf.shape[place]
                    assert units % sizes[axes[place]] == 0, f"{name}: {path} {kind}"
