"""The step: exact accumulation and sharding, losses by hand, FLOPs."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sampling import sampled
from tiny import CONFIGS, batch_of, model_of, params_of, supervision_of

from jaxformer.footprint.chips import peak
from jaxformer.models.config import TransformerConfig
from jaxformer.models.model import Model
from jaxformer.models.presets import PRESETS
from jaxformer.training.distillation import DistillationConfig
from jaxformer.training.flops import flops_per_example
from jaxformer.training.losses import cross_entropy, weighted
from jaxformer.training.step import (
    StepParts,
    Teaching,
    accumulated,
    coefficients_of,
    counts_of,
    either,
    gradients_of,
    init_state,
    loss_of,
    make_eval_step,
    make_train_step,
    micro_batches,
    rng_of_step,
)
from jaxformer.trees import flatten

FAMILIES = ["gpt3", "bert", "t5"]


def test_cross_entropy_by_hand() -> None:
    logits, target = jnp.array([[1.0, 2.0, 0.5]]), jnp.array([1])
    log_z = math.log(math.exp(1) + math.exp(2) + math.exp(0.5))
    assert cross_entropy(logits, target, 3)[0] == pytest.approx(log_z - 2)
    smoothed = 0.9 * (log_z - 2) + 0.05 * (log_z - 1) + 0.05 * (log_z - 0.5)
    assert cross_entropy(logits, target, 3, label_smoothing=0.1)[0] == pytest.approx(smoothed)
    assert cross_entropy(logits, target, 3, z_loss=0.1)[0] == pytest.approx(log_z - 2 + 0.1 * log_z**2)
    padded = jnp.concatenate([logits, jnp.full((1, 2), jnp.finfo(jnp.float32).min)], axis=1)
    assert cross_entropy(padded, target, 3, label_smoothing=0.1)[0] == pytest.approx(smoothed)
    assert weighted(jnp.array([1.0, jnp.nan, 3.0]), jnp.array([2.0, 0.0, 1.0])) == 5.0


# tests/test_strategies.py compares with accumulation every day.
@pytest.mark.parametrize("name", sampled(FAMILIES, path=lambda name: "the step"))
def test_accumulated_micro_batches_equal_one_step(name: str) -> None:
    model, supervision = model_of(name), supervision_of(name)
    optimizer = optax.sgd(0.1)
    batch = batch_of(name, rows=16)
    state = init_state(model, optimizer, jax.random.key(0))
    rng = jax.random.key(1)
    whole, metrics = jax.jit(make_train_step(model, supervision, optimizer))(state, batch, rng, 0.1)
    pieces, in_four = jax.jit(make_train_step(model, supervision, optimizer, 4))(state, batch, rng, 0.1)
    for key in metrics:
        assert float(in_four[key]) == pytest.approx(float(metrics[key]), rel=1e-5), key
    for path, leaf in flatten(whole.params).items():
        np.testing.assert_allclose(leaf, flatten(pieces.params)[path], rtol=0, atol=1e-6, err_msg=path)
    assert int(whole.step) == 1
    assert any(np.any(a != b) for a, b in zip(*(jax.tree.leaves(s.params) for s in (state, whole)), strict=True))


def test_steps_lower_the_loss_and_dropout_follows_the_step() -> None:
    config = dataclasses.replace(CONFIGS["gpt3"], dropout=0.2, num_layers=1)
    model, supervision, optimizer = Model(config), supervision_of("gpt3"), optax.adam(1e-2)
    step = jax.jit(make_train_step(model, supervision, optimizer))
    state, batch = jax.jit(functools.partial(init_state, model, optimizer))(jax.random.key(0)), batch_of("gpt3")
    first, losses = state, []
    for _ in range(30):
        state, metrics = step(state, batch, jax.random.key(1), 0.1)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.6 * losses[0]
    two = [step(first._replace(step=jnp.int32(n)), batch, jax.random.key(1), 0.1)[1]["loss"] for n in (0, 0, 1)]
    assert two[0] == two[1] != two[2]


def parts_of(name: str, **parts: Any) -> StepParts:
    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    return StepParts(model_of(name), supervision_of(name), optimizer, **parts)


def test_micro_batches_take_turns() -> None:
    pieces = micro_batches({"inputs": jnp.arange(12).reshape(6, 2)}, 3)
    assert pieces["inputs"][:, :, 0].tolist() == [[0, 6], [2, 8], [4, 10]]


def test_accumulation_sums_over_micro_batches_with_an_rng_each() -> None:
    def function(batch: Any, rng: jax.Array) -> Any:
        return jnp.sum(batch["x"], axis=0), jax.random.uniform(rng)

    batch, rng = {"x": jnp.arange(8.0).reshape(4, 2)}, jax.random.key(5)
    whole, _ = accumulated(function, batch, rng, 1)
    summed, drawn = accumulated(function, batch, rng, 2)
    assert summed.tolist() == whole.tolist() == [12.0, 16.0]
    assert float(drawn) == pytest.approx(sum(float(jax.random.uniform(one)) for one in jax.random.split(rng, 2)))


def test_a_step_draws_from_the_runs_rng_by_its_number() -> None:
    rng = jax.random.key(1)
    first, again, second = (jax.random.key_data(rng_of_step(rng, jnp.int32(n), None)).tolist() for n in (3, 3, 4))
    assert first == again != second


def test_the_loss_is_the_sum_of_coefficient_times_mean() -> None:
    parts, batch = parts_of("bert"), batch_of("bert")
    params, rng = params_of(parts.model), jax.random.key(1)
    counts = counts_of(parts, batch)
    assert {name: float(count) for name, count in counts.items()} == {
        "tokens": float(batch["weights"].sum()), "next_sentence": 4.0,
    }  # fmt: skip

    @jax.jit
    def run(params: Any) -> Any:
        found = [gradients_of(which, counts, None, params, batch, rng) for which in (parts, doubled)]
        return loss_of(parts, counts, None, params, batch, rng), *found

    doubled = dataclasses.replace(parts, shard_gradients=lambda gradients: jax.tree.map(lambda x: 2 * x, gradients))
    (loss, means), ((value, _), gradients), (_, twice) = run(params)
    assert float(loss) == pytest.approx(float(means["tokens"] + means["next_sentence"]), rel=1e-6)
    assert float(value) == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(twice["embedding"]["tokens"], 2 * gradients["embedding"]["tokens"], rtol=1e-5)


def test_a_teacher_adds_its_losses_and_weighs_the_hard_one() -> None:
    config = DistillationConfig(teacher="t", hard_weight=0.5, soft_weight=2.0, cosine_weight=3.0, positions="all")
    parts, batch = parts_of("gpt3", teaching=Teaching(config, model_of("gpt3"))), batch_of("gpt3")
    assert coefficients_of(parts) == {"tokens": 0.5, "soft": 2.0, "cosine": 3.0}
    assert coefficients_of(dataclasses.replace(parts, teaching=None)) == {"tokens": 1.0}
    counts = counts_of(parts, batch)
    assert float(counts["soft"]) == float(counts["cosine"]) == float((batch["segment_ids"] > 0).sum())


def test_either_of_two_trees() -> None:
    first, second = {"a": jnp.array([1.0, 2.0])}, {"a": jnp.array([jnp.nan, 4.0])}
    assert either(jnp.array(True), first, second)["a"].tolist() == [1.0, 2.0]
    assert either(jnp.array(False), second, first)["a"].tolist() == [1.0, 2.0]


def test_evaluation_sums_by_hand() -> None:
    model, supervision, batch = model_of("bert"), supervision_of("bert"), batch_of("bert")
    params = params_of(model)
    sums, predictions = jax.jit(make_eval_step(model, supervision))(params, batch)
    logits = jax.jit(lambda params: model.project(params, model.apply(params, batch)["hidden"]))(params)
    log_p = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(batch["targets"])[..., None], -1)[
        ..., 0
    ]
    weights = np.asarray(batch["weights"])
    loss, correct, count = sums["tokens"]
    assert float(loss) == pytest.approx(-(log_p * weights).sum(), rel=1e-5)
    assert float(count) == weights.sum()
    assert float(correct) == ((np.asarray(logits).argmax(-1) == np.asarray(batch["targets"])) * weights).sum()
    assert predictions["next_sentence"].shape == (4, 2)


def test_flops_have_the_published_values() -> None:
    def flops(sizes: dict, lengths: dict, **more: object) -> float:
        config = TransformerConfig(**sizes, **more)
        return flops_per_example(
            family=config.family, d_model=config.d_model, d_ff=config.d_ff, num_heads=config.num_heads,
            head_dim=config.head_dim, num_layers=config.num_layers, vocab_size=config.vocab_size, gated=config.gated,
            transform=config.output_head == "transform", lengths=lengths,
        )  # fmt: skip

    gpt2 = PRESETS["gpt"] | {"vocab_size": 50_304, "max_length": 1024}
    assert flops(gpt2, {"inputs": 1024, "targets": 1024}) / 1024 == pytest.approx(798e6, rel=2e-3)
    assert flops(PRESETS["bert_base"], {"inputs": 128, "targets": 20}) == pytest.approx(69.9e9, rel=2e-3)
    assert flops(PRESETS["bert_base"], {"inputs": 512, "targets": 77}) == pytest.approx(301e9, rel=2e-3)
    v1_1 = PRESETS["t5_base"] | {"d_ff": 2048, "gated": True}
    assert flops(v1_1, {"encoder_inputs": 512, "inputs": 114, "targets": 114}) == pytest.approx(425e9, rel=3e-3)
    assert peak("NVIDIA H100 80GB HBM3") == 989.4e12 and peak("NVIDIA H100 PCIe") == 756e12 and peak("cpu") is None


def test_flops_agree_with_the_compiler() -> None:
    """Matrix products dominate at this size; the compiler also counts softmax, norms and activations."""
    config = dataclasses.replace(
        CONFIGS["bert"], d_model=256, d_ff=1024, num_heads=4, head_dim=64, num_layers=2, vocab_size=2048,
        vocab_multiple=1, max_length=64,
    )  # fmt: skip
    model = Model(config)
    batch = batch_of("bert", rows=2, length=64)
    params = model.shapes

    def loss(params: dict) -> jax.Array:
        return jnp.sum(model.project(params, model.apply(params, batch)["hidden"]))

    counted = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
    ours = 2 * flops_per_example(
        family=config.family, d_model=256, d_ff=1024, num_heads=4, head_dim=64, num_layers=2, vocab_size=2048,
        gated=False, transform=True, lengths={"inputs": 64, "targets": 3},
    )  # fmt: skip
    assert ours == pytest.approx(counted, rel=0.03)
