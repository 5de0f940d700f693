"""Models: counts, information flow, execution, and jit against eager."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIGS, batch_of, model_of, supervision_of

from jaxformer.errors import UserError
from jaxformer.models.attention import attend, visibility_mask
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.model import Model, count_parameters
from jaxformer.models.positions import relative_buckets
from jaxformer.models.presets import PRESETS
from jaxformer.parameters import flatten
from jaxformer.step import group_sums

# Published or recomputed counts: encoder-only with pooler, no vocabulary head.
COUNTS = {
    "gpt": 116_534_784,
    "bert_tiny": 4_385_920,
    "bert_mini": 11_170_560,
    "bert_small": 28_763_648,
    "bert_medium": 41_373_184,
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_papers_parameter_counts(preset: str) -> None:
    config = TransformerConfig(**PRESETS[preset])
    if config.family != "encoder_only":
        assert count_parameters(Model(config)) == COUNTS[preset]
        return
    head = config.d_model * 2 + 2
    assert count_parameters(Model(config, heads=(("label", 2),), predicts_tokens=False)) - head == COUNTS[preset]


def test_rows_beyond_the_vocabulary_are_not_counted_not_predicted_and_get_no_gradient() -> None:
    for name in ("gpt3", "bert"):
        model = model_of(name)
        plain = dataclasses.replace(model, config=dataclasses.replace(model.config, vocab_multiple=1))
        assert model.config.stored_vocab_size == 32 != model.config.vocab_size
        assert count_parameters(model) == count_parameters(plain)
        params, batch = jax.jit(model.init)(jax.random.key(0)), batch_of(name)

        def loss(params: dict, model: Model = model, batch: dict = batch, name: str = name) -> jax.Array:
            losses, _, _ = group_sums(model, supervision_of(name), params, batch, None)
            return losses["tokens"]

        logits = jax.jit(lambda p, m=model, b=batch: m.project(p, m.apply(p, b)["hidden"]))(params)
        assert np.all(jax.nn.softmax(logits)[..., 31:] == 0)
        gradient = jax.jit(jax.grad(loss))(params)
        assert np.all(gradient["embedding"]["tokens"][31:] == 0)
        assert np.any(gradient["embedding"]["tokens"][:31] != 0)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("gpt", "bert", "t5") else pytest.mark.slow) for n in CONFIGS]
)
def test_jitted_gradients_equal_eager_ones(name: str) -> None:
    """Some jax releases compile wrong gradients: this decides which releases stay in pyproject."""
    model, batch = model_of(name), batch_of(name)
    params = jax.jit(model.init)(jax.random.key(0))

    def loss(params: dict) -> jax.Array:
        losses, _, _ = group_sums(model, supervision_of(name), params, batch, None)
        return sum(losses.values(), jnp.zeros(()))

    jitted = flatten(jax.jit(jax.grad(loss))(params))
    with jax.disable_jit():
        eager = flatten(jax.grad(loss)(params))
    total = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in eager.values()))
    for path, leaf in eager.items():
        error = np.linalg.norm(np.asarray(jitted[path] - leaf))
        assert error <= max(1e-4 * np.linalg.norm(np.asarray(leaf)), 1e-6 * total), path


@pytest.mark.parametrize("name", ["gpt3", "bert", "t5"])
@pytest.mark.parametrize("execution", [{"unroll": 1}, {"unroll": 2}, {"unroll": 1, "remat": "full"}, {"remat": "dots"}])
def test_every_execution_computes_the_same(name: str, execution: dict) -> None:
    if CONFIGS[name].num_layers % execution.get("unroll", 1):
        execution = execution | {"unroll": 3}
    batch = batch_of(name)
    model, other = model_of(name), model_of(name, **execution)
    params = jax.jit(model.init)(jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(other.init(jax.random.key(0)))

    def loss(params: dict, model: Model) -> jax.Array:
        losses, _, _ = group_sums(model, supervision_of(name), params, batch, None)
        return sum(losses.values(), jnp.zeros(()))

    ours, theirs = (flatten(jax.jit(jax.grad(loss), static_argnums=1)(params, m)) for m in (model, other))
    scale = max(float(np.abs(leaf).max()) for leaf in ours.values())
    for path in ours:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=0, atol=2e-6 * scale, err_msg=path)


@functools.cache
def _applied(model: Model) -> Callable[..., jax.Array]:
    return jax.jit(lambda params, batch: model.apply(params, batch)["hidden"])


@functools.cache
def _params(model: Model) -> dict:
    return jax.jit(model.init)(jax.random.key(1))


def _changed(name: str, key: str, place: int, length: int = 10) -> np.ndarray:
    """Which positions' hidden states change when the token at `place` of `key` does (row 0)."""
    model, batch = model_of(name), batch_of(name)
    batch.pop("predict_positions", None)
    params = _params(model)
    other = batch | {key: batch[key].at[0, place].set((batch[key][0, place] + 1) % 31)}
    apply = _applied(model)
    before, after = (apply(params, b) for b in (batch, other))
    assert np.array_equal(before[1:], after[1:])
    return np.asarray(jnp.any(before[0] != after[0], axis=-1))


SEGMENTS = np.array([1, 1, 1, 1, 1, 2, 2, 2, 2, 0])
SOURCE_SEGMENTS = np.array([1, 1, 1, 2, 2, 2, 0])


def test_decoder_only_reads_its_own_past_within_its_segment() -> None:
    for name in ("gpt",):
        for place in range(10):
            wanted = (SEGMENTS == SEGMENTS[place]) & (np.arange(10) >= place)
            assert np.array_equal(_changed(name, "inputs", place), wanted), (name, place)


def test_banded_layers_see_their_window_only() -> None:
    config = dataclasses.replace(CONFIGS["gpt3"], attention_pattern="banded", attention_window=2, num_layers=1)
    model = Model(config)
    params = jax.jit(model.init)(jax.random.key(0))
    batch = batch_of("gpt3") | {"segment_ids": jnp.ones((4, 10), jnp.int32)}
    other = batch | {"inputs": batch["inputs"].at[:, 4].set(0)}
    changed = np.any(model.apply(params, batch)["hidden"] != model.apply(params, other)["hidden"], axis=(0, 2))
    assert np.array_equal(np.flatnonzero(changed), [4, 5])
    assert CONFIGS["gpt3"].banded_layers == (False, True, False)


def test_encoder_only_reads_its_whole_segment() -> None:
    for place in range(10):
        assert np.array_equal(_changed("bert", "inputs", place), SEGMENTS == SEGMENTS[place])


@pytest.mark.parametrize("name", ["t5", "transformer"])
def test_encoder_decoder_reads_its_past_and_its_segment_of_the_source(name: str) -> None:
    for place in range(10):
        wanted = (SEGMENTS == SEGMENTS[place]) & (np.arange(10) >= place)
        assert np.array_equal(_changed(name, "inputs", place), wanted)
    for place in range(7):
        assert np.array_equal(_changed(name, "encoder_inputs", place), SEGMENTS == SOURCE_SEGMENTS[place])


def test_prefix_visibility_shows_the_prefix_to_all_and_no_future_beyond() -> None:
    ones = jnp.ones((2, 5), jnp.int32)
    mask = visibility_mask(ones, ones, visibility="prefix", prefix_length_B=jnp.array([0, 3]))[:, 0]
    causal = np.tril(np.ones((5, 5), bool))
    assert np.array_equal(mask[0], causal)
    assert np.array_equal(mask[1], causal | (np.arange(5) < 3)[None])


def test_relative_buckets_have_the_papers_values() -> None:
    past = {7: 7, 8: 8, 11: 8, 12: 9, 16: 10, 23: 11, 32: 12, 46: 13, 64: 14, 91: 15, 500: 15}
    for distance, bucket in past.items():
        assert relative_buckets(jnp.array(-distance), bidirectional=True) == bucket
    for distance, bucket in {1: 17, 8: 24, 91: 31, 500: 31}.items():
        assert relative_buckets(jnp.array(distance), bidirectional=True) == bucket
    for distance, bucket in {15: 15, 16: 16, 18: 16, 19: 17, 21: 18, 24: 19, 113: 31}.items():
        assert relative_buckets(jnp.array(-distance), bidirectional=False) == bucket
    assert relative_buckets(jnp.array(5), bidirectional=False) == 0


@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_implementations_agree(with_bias: bool) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 6, 2, 4)), jnp.float32) for _ in range(3))
    segments = jnp.array([[1, 1, 2, 2, 2, 0]] * 2)
    mask = visibility_mask(segments, segments, visibility="causal")
    bias = jnp.asarray(rng.normal(size=(1, 2, 6, 6)), jnp.float32) if with_bias else None
    ours = attend(q, k, v, mask, bias, scale=0.5)
    theirs = attend(q, k, v, mask, bias, scale=0.5, implementation="xla")
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(ours[real], theirs[real], atol=2e-6)
    # By hand, for one query: softmax over the keys that it sees.
    scores = 0.5 * np.einsum("k,sk->s", q[0, 3, 1], k[0, 2:4, 1]) + (0 if bias is None else bias[0, 1, 3, 2:4])
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(ours[0, 3, 1], weights @ v[0, 2:4, 1], atol=2e-6)


def test_dropout_acts_only_with_a_key_and_follows_it() -> None:
    config = dataclasses.replace(CONFIGS["gpt"], dropout=0.5, attention_dropout=0.5)
    model, batch = Model(config), batch_of("gpt")
    params = jax.jit(model.init)(jax.random.key(0))
    first, again, other = (model.apply(params, batch, {"dropout": jax.random.key(key)})["hidden"] for key in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(model.apply(params, batch)["hidden"], model.apply(params, batch)["hidden"])


def test_hidden_states_of_every_layer_are_collected() -> None:
    batch = batch_of("t5")
    for unroll in (0, 1):
        model = model_of("t5", unroll=unroll)
        outputs = model.apply(jax.jit(model.init)(jax.random.key(0)), batch, collect=("encoder", "decoder"))
        assert outputs["encoder"].shape == (4, 4, 7, 16) and outputs["decoder"].shape == (4, 4, 10, 16)


def test_compute_dtype_leaves_parameters_and_logits_in_float32() -> None:
    model = model_of("bert", dtype="bfloat16")
    params, batch = jax.jit(model.init)(jax.random.key(0)), batch_of("bert")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    hidden = model.apply(params, batch)["hidden"]
    assert hidden.dtype == jnp.bfloat16 and model.project(params, hidden).dtype == jnp.float32
    exact = model_of("bert").apply(params, batch)["hidden"]
    np.testing.assert_allclose(hidden.astype(jnp.float32), exact, atol=0.1)


def test_initialisations_have_their_deviations() -> None:
    sizes = {"d_model": 128, "d_ff": 256, "num_heads": 4, "head_dim": 32, "num_layers": 2, "vocab_size": 500}
    wanted = {
        "gpt3": {"attention/query": 0.02, "feed_forward/output": 0.02 / 2},
        # A normal cut at two deviations has 0.88 of its deviation.
        "bert": {"attention/query": 0.02 * 0.8796, "feed_forward/output": 0.02 * 0.8796},
        "t5": {"attention/query": (128 * 32) ** -0.5, "attention/key": 128**-0.5, "feed_forward/output": 256**-0.5},
        "transformer": {"attention/query": (1 / 128) ** 0.5, "feed_forward/input": (2 / (128 + 256)) ** 0.5},
    }
    for name, deviations in wanted.items():
        config = dataclasses.replace(CONFIGS[name], **sizes)
        params = flatten(Model(config, predicts_tokens=False).init(jax.random.key(0)))
        stack = "encoder" if name == "bert" else "decoder"
        for kernel, deviation in deviations.items():
            assert np.std(params[f"{stack}/layers/{kernel}/kernel"]) == pytest.approx(deviation, rel=0.03), (
                name,
                kernel,
            )


def test_bad_slots_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="model.activation: 'gelo'.*did you mean 'gelu'"):
        dataclasses.replace(CONFIGS["gpt"], activation="gelo")
    with pytest.raises(UserError, match="cannot see what it predicts"):
        dataclasses.replace(CONFIGS["gpt"], visibility="full")
    assert Execution() == Execution(dtype="float32")
