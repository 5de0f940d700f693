"""Models: counts, information flow, execution, and jit against eager."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import AS_USERS
from sampling import sampled
from tiny import CONFIGS, batch_of, model_of, params_of, supervision_of

from jaxformer.errors import UserError
from jaxformer.models.attention import attend_masked
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.layers import Norm
from jaxformer.models.model import Model, count_parameters
from jaxformer.models.positions import _buckets, relative_buckets, rotated, rotations, sinusoids
from jaxformer.models.presets import PRESETS
from jaxformer.models.sight import visibility_mask
from jaxformer.training.step import group_sums
from jaxformer.trees import flatten, unflatten

# What stands on the body, whose counts are in test_catalog.py: (preset, heads, predicts tokens, slots) -> count.
HEADED: dict[str, tuple[str, dict[str, int], bool, dict[str, Any], int]] = {
    "BERT, masked LM and next sentence": ("bert_base", {"next_sentence": 2}, True, {}, 110_106_428),
    "BERT, masked LM": ("bert_base", {}, True, {}, 109_514_298),
    "BERT, two labels": ("bert_base", {"label": 2}, False, {}, 109_483_778),
    "large BERT": ("bert_large", {"next_sentence": 2}, True, {}, 336_226_108),
    "DistilBERT, masked LM": ("distilbert_base", {}, True, {}, 66_985_530),
    "DistilBERT, two labels": ("distilbert_base", {"label": 2}, False, {}, 66_955_010),
    "cased DistilBERT, masked LM": ("distilbert_base_cased", {}, True, {}, 65_812_036),
    "BART, three labels": ("bart_large", {"label": 3}, False, {}, 407_344_131),
    "GPT with its three special tokens": ("gpt", {}, True, {"vocab_size": 40_481}, 116_537_088),
    "BART of CNN/DailyMail": ("bart_large", {}, True, {"vocab_size": 50_264}, 406_290_432),
    "T5 of 6 layers": ("t5_base", {}, True, {"num_layers": 6}, 123_790_080),
    "tensor2tensor's Transformer": ("transformer_base", {}, True, {"biases": "feed_forward"}, 63_045_632),
    "tensor2tensor's big": ("transformer_big", {}, True, {"biases": "feed_forward"}, 214_171_648),
    "GPT-3 XL with the paper's 24 heads": ("gpt3_1.3b", {}, True, {"num_heads": 24}, 1_517_123_584),
}


def counted(config: TransformerConfig, heads: dict[str, int], predicts_tokens: bool) -> int:
    model = Model(
        config,
        Execution(unroll=1),
        heads=tuple((head, size, "row") for head, size in heads.items()),
        predicts_tokens=predicts_tokens,
    )
    return count_parameters(model)


@pytest.mark.parametrize("name", HEADED)
def test_heads_and_variants_have_their_counts(name: str) -> None:
    preset, heads, predicts, slots, count = HEADED[name]
    assert counted(TransformerConfig(**PRESETS[preset] | slots), heads, predicts) == count


# What the systems do otherwise than each other, from the papers and the released code.
HOUSE_STYLE: dict[str, dict[str, Any]] = {
    "transformer_base": {
        "norm": "layer_norm", "norm_placement": "post", "norm_epsilon": 1e-5, "position": "sinusoidal",
        "activation": "relu", "biases": "all", "embedding_scale": "sqrt_d_model", "tied_embeddings": True,
        "attention_scale": "inverse_sqrt_head_dim", "decoder_start": "pad", "dropout": 0.1, "attention_dropout": 0.0,
    },
    "transformer_big": {"dropout": 0.3},
    "gpt": {
        "norm_placement": "post", "norm_epsilon": 1e-5, "position": "learned", "max_length": 512,
        "activation": "gelu_tanh", "embedding_norm": False, "visibility": "causal", "dropout": 0.1,
        "attention_dropout": 0.1, "head_bias": False,
    },
    "bert_base": {
        "norm_placement": "post", "norm_epsilon": 1e-12, "embedding_norm": True, "token_types": 2, "activation": "gelu",
        "output_head": "transform", "pooler": "tanh", "visibility": "full", "dropout": 0.1, "attention_dropout": 0.1,
    },
    "gpt2_124m": {"norm_placement": "pre", "norm_epsilon": 1e-5, "activation": "gelu_tanh", "max_length": 1024},
    "distilbert_base": {
        "token_types": 0, "pooler": "relu", "activation": "gelu", "embedding_norm": True,
        "attention_output_dropout": 0.0, "output_head": "transform",
    },
    "bart_base": {
        "norm_placement": "post", "embedding_norm": True, "position_offset": 2, "activation": "gelu",
        "decoder_start": "end", "pooler": "dropout_tanh", "embedding_scale": "none", "max_length": 1024,
    },
    "t5_base": {
        "norm": "rms_norm", "norm_placement": "pre", "norm_epsilon": 1e-6, "position": "relative", "activation": "relu",
        "biases": "none", "attention_scale": "none", "logit_scale": "inverse_sqrt_d_model", "tied_embeddings": True,
        "relative_buckets": 32, "relative_max_distance": 128, "dropout": 0.1, "hidden_dropout": 0.1,
        "final_dropout": 0.1, "decoder_start": "pad",
    },
    "t5_1_1_base": {
        "activation": "gelu_tanh", "gated": True, "tied_embeddings": False, "logit_scale": "none", "dropout": 0.0,
        "attention_dropout": 0.0, "hidden_dropout": 0.0, "final_dropout": 0.0,
    },
    "gpt3_175b": {
        "norm_placement": "pre", "max_length": 2048, "attention_pattern": "dense_first", "head_dim": 128,
        "num_heads": 96, "vocab_size": 50_257,
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", HOUSE_STYLE)
def test_presets_have_their_papers_house_style(preset: str) -> None:
    config = TransformerConfig(**PRESETS[preset])
    assert {slot: getattr(config, slot) for slot in HOUSE_STYLE[preset]} == HOUSE_STYLE[preset]


def test_rows_beyond_the_vocabulary_are_not_counted_not_predicted_and_get_no_gradient() -> None:
    name = "bert"
    model = model_of(name)
    plain = dataclasses.replace(model, config=dataclasses.replace(model.config, vocab_multiple=1))
    assert model.config.stored_vocab_size == 32 != model.config.vocab_size
    assert count_parameters(model) == count_parameters(plain)
    params, batch = params_of(model), batch_of(name)

    def loss(params: dict) -> jax.Array:
        losses, _, _ = group_sums(model, supervision_of(name), params, batch, None)
        return losses["tokens"]

    def run(params: dict) -> tuple[jax.Array, dict]:
        logits = model.project(params, model.apply(params, batch)["hidden"])
        return jax.nn.softmax(logits), jax.grad(loss)(params)

    likely, gradient = jax.jit(run)(params)
    assert np.all(likely[..., 31:] == 0)
    assert np.all(gradient["embedding"]["tokens"][31:] == 0)
    assert np.any(gradient["embedding"]["tokens"][:31] != 0)


@pytest.mark.parametrize("name", sampled(CONFIGS, path=lambda name: CONFIGS[name].family))
def test_jitted_gradients_equal_eager_ones(name: str) -> None:
    """Some jax releases compile wrong gradients, as users compile: this decides which releases stay in pyproject. Every
    day test_reference.py compares such a gradient of each family with the reference's."""
    model, batch = model_of(name), batch_of(name)
    params = params_of(model)

    def loss(params: dict) -> jax.Array:
        losses, _, _ = group_sums(model, supervision_of(name), params, batch, None)
        return sum(losses.values(), jnp.zeros(()))

    jitted = flatten(jax.jit(jax.grad(loss), compiler_options=AS_USERS)(params))
    with jax.disable_jit():
        eager = flatten(jax.grad(loss)(params))
    total = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in eager.values()))
    for path, leaf in eager.items():
        error = np.linalg.norm(np.asarray(jitted[path] - leaf))
        assert error <= max(1e-4 * np.linalg.norm(np.asarray(leaf)), 1e-6 * total), path


EXECUTIONS: list[dict] = [{"unroll": 1}, {"unroll": 2}, {"unroll": 1, "remat": "full"}, {"remat": "dots"}]


@functools.cache
def _gradient(name: str, **execution: Any) -> dict[str, np.ndarray]:
    model, batch = model_of(name, **execution), batch_of(name)

    def loss(params: dict) -> jax.Array:
        losses, _, _ = group_sums(model, supervision_of(name), params, batch, None)
        return sum(losses.values(), jnp.zeros(()))

    return flatten(jax.jit(jax.grad(loss))(params_of(model)))


@pytest.mark.parametrize(
    ("name", "number"),
    # Every execution, and of two stacks one.
    sampled(
        itertools.product(("gpt3", "bert", "t5"), range(len(EXECUTIONS))),
        path=lambda name, number: name if name == "t5" else number,
        daily=[("gpt3", number) for number in range(len(EXECUTIONS))],
    ),
)
def test_every_execution_computes_the_same(name: str, number: int) -> None:
    execution = EXECUTIONS[number]
    if CONFIGS[name].num_layers % execution.get("unroll", 1):
        execution = execution | {"unroll": 3}
    ours, theirs = _gradient(name), _gradient(name, **execution)
    assert ours.keys() == theirs.keys()
    scale = max(float(np.abs(leaf).max()) for leaf in ours.values())
    for path in ours:
        np.testing.assert_allclose(ours[path], theirs[path], rtol=0, atol=2e-6 * scale, err_msg=path)


@functools.cache
def _applied(model: Model) -> Callable[..., jax.Array]:
    return jax.jit(lambda params, batch, rngs=None: model.apply(params, batch, rngs)["hidden"])


def _changed(name: str, key: str, place: int, length: int = 10) -> np.ndarray:
    """Which positions' hidden states change when the token at `place` of `key` does (row 0)."""
    model, batch = model_of(name), batch_of(name)
    batch.pop("predict_positions", None)
    params = params_of(model)
    other = batch | {key: batch[key].at[0, place].set((batch[key][0, place] + 1) % 31)}
    apply = _applied(model)
    before, after = (np.asarray(apply(params, b)) for b in (batch, other))
    assert np.array_equal(before[1:], after[1:])
    return np.any(before[0] != after[0], axis=-1)


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
    params, apply = params_of(model), _applied(model)
    batch = batch_of("gpt3") | {"segment_ids": jnp.ones((4, 10), jnp.int32)}
    other = batch | {"inputs": batch["inputs"].at[:, 4].set(0)}
    changed = np.any(np.asarray(apply(params, batch)) != np.asarray(apply(params, other)), axis=(0, 2))
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


def test_every_setting_of_relative_buckets_is_the_papers_formula_in_whole_numbers() -> None:
    """exact + floor(far log(n / exact) / log(max / exact)), its floor found by comparing whole numbers; and where both
    roundings of the reference's logarithm agree, the reference."""
    settings = 0
    for num_buckets in (2, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, 127, 128):
        exact = num_buckets // 2
        far = num_buckets - exact
        for most in (3, 7, 9, 16, 25, 32, 50, 64, 81, 100, 125, 128, 144, 200, 250, 256, 343, 512, 625, 1000, 1024):
            if most <= exact:
                continue
            settings += 2
            table = _buckets(num_buckets, most)
            assert table[:exact].tolist() == list(range(exact)) and table[-1] == num_buckets - 1, (num_buckets, most)
            distances = np.arange(exact, most + 1)
            logs = [
                dtype(far) * np.log(distances.astype(dtype) / dtype(exact)) / dtype(math.log(most / exact))
                for dtype in (np.float32, np.float64)
            ]
            near = [np.abs(value - np.round(value)) < 1e-4 for value in logs]
            for n, bucket, sure, value in zip(distances, table[exact:], ~near[0] & ~near[1], logs[1], strict=True):
                k = min(round(value) if not sure else math.floor(value), far - 1)
                if not sure and int(n) ** far * exact**k < most**k * exact**far:
                    k -= 1
                assert bucket == exact + k, (num_buckets, most, n)
    assert settings > 396


@pytest.mark.parametrize(("buckets", "most", "relative", "wanted"), [
    (8, 200, -20, 3), (8, 200, 20, 7), (8, 200, -19, 2), (16, 64, -16, 6), (32, 128, -16, 10), (12, 81, -9, 4),
])  # fmt: skip
def test_exact_powers_fall_into_one_bucket_compiled_or_not(buckets: int, most: int, relative: int, wanted: int) -> None:
    def bucket(relative: jax.Array) -> jax.Array:
        return relative_buckets(relative, bidirectional=True, num_buckets=buckets, max_distance=most)

    places = jnp.arange(-300, 301)
    eager, compiled = np.asarray(bucket(places)), np.asarray(jax.jit(bucket)(places))
    assert np.array_equal(eager, compiled)
    assert eager[300 + relative] == wanted


@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_implementations_agree(with_bias: bool) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 6, 2, 4)), jnp.float32) for _ in range(3))
    segments = jnp.array([[1, 1, 2, 2, 2, 0]] * 2)
    mask = visibility_mask(segments, segments, visibility="causal")
    bias = jnp.asarray(rng.normal(size=(1, 2, 6, 6)), jnp.float32) if with_bias else None
    ours = attend_masked(q, k, v, mask, bias, scale=0.5)
    theirs = attend_masked(q, k, v, mask, bias, scale=0.5, implementation="xla")
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(ours[real], theirs[real], atol=2e-6)
    # By hand, for one query: softmax over the keys that it sees.
    scores = 0.5 * np.einsum("k,sk->s", q[0, 3, 1], k[0, 2:4, 1]) + (0 if bias is None else bias[0, 1, 3, 2:4])
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(ours[0, 3, 1], weights @ v[0, 2:4, 1], atol=2e-6)


def test_dropout_acts_only_with_a_key_and_follows_it() -> None:
    config = dataclasses.replace(CONFIGS["gpt"], dropout=0.5, attention_dropout=0.5)
    model, batch = Model(config), batch_of("gpt")
    params, apply = params_of(model), _applied(model)
    first, again, other = (apply(params, batch, {"dropout": jax.random.key(key)}) for key in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(apply(params, batch), _applied(model_of("gpt"))(params, batch))


def test_attention_outputs_have_a_dropout_of_their_own() -> None:
    """DistilBERT drops nothing there, whatever `dropout` says."""
    batch = batch_of("gpt")
    for rates, falls in (({"attention_output_dropout": 0.5}, True), ({"attention_output_dropout": 0.0}, False)):
        model = Model(dataclasses.replace(CONFIGS["gpt"], **rates), Execution(unroll=1))
        found = [_applied(model)(params_of(model), batch, {"dropout": jax.random.key(key)}) for key in (1, 2)]
        assert np.array_equal(*found) != falls


@pytest.mark.parametrize("pooler", ["tanh", "dropout_tanh", "relu"])
def test_poolers_drop_before_or_only_after_their_activation(pooler: str) -> None:
    """Pooler and classifier are identities, so each logit is one feature: 0 or twice what it was."""
    config = dataclasses.replace(CONFIGS["bert"], pooler=pooler)
    model = Model(config, Execution(unroll=1), heads=(("label", 16, "row"),), head_dropout=0.5, predicts_tokens=False)
    params, batch = params_of(model), batch_of("bert")
    for dense in params["row_heads"].values():
        dense.update(kernel=jnp.eye(16), bias=jnp.zeros(16))
    apply = jax.jit(model.apply, static_argnums=3)
    outputs = apply(params, batch, {"dropout": jax.random.key(1)}, ("encoder",))
    hidden, found = outputs["encoder"][-1][:, 0], np.asarray(outputs["label"])
    once = jax.nn.relu(hidden) if pooler == "relu" else jnp.tanh(hidden * (2 if pooler == "dropout_tanh" else 1))
    kept = np.abs(found) > 1e-6
    assert 0.1 < kept.mean() < 0.9
    np.testing.assert_allclose(found[kept], 2 * np.asarray(once)[kept], rtol=1e-5)


def test_heads_without_bias_have_none() -> None:
    for bias in (True, False):
        model = Model(dataclasses.replace(CONFIGS["gpt"], head_bias=bias), heads=(("label", 2, "row"),))
        assert ("bias" in model.shapes["row_heads"]["label"]) == bias


def test_hidden_states_of_every_layer_are_collected() -> None:
    batch = batch_of("t5")
    for unroll in (0, 1):
        model = model_of("t5", unroll=unroll)
        outputs = jax.jit(functools.partial(model.apply, collect=("encoder", "decoder")))(params_of(model), batch)
        assert outputs["encoder"].shape == (4, 4, 7, 16) and outputs["decoder"].shape == (4, 4, 10, 16)


def test_compute_dtype_leaves_parameters_and_logits_in_float32() -> None:
    model = model_of("bert", dtype="bfloat16")
    params, batch = params_of(model), batch_of("bert")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.shapes)} == {jnp.dtype("float32")}
    hidden = _applied(model)(params, batch)
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(model.project, params, hidden).dtype == jnp.float32
    exact = _applied(model_of("bert"))(params, batch)
    np.testing.assert_allclose(hidden.astype(jnp.float32), exact, atol=0.1)


# A normal cut at two deviations has 0.8796 of its deviation; the uniform one on [-a, a] has a / sqrt(3).
D, F, K, H, L = 128, 256, 16, 4, 2
INITIALISATIONS: dict[str, dict[str, float]] = {
    "gpt": {
        "embedding/tokens": 0.02, "decoder/inputs/positions": 0.02, "decoder/layers/attention/query/kernel": 0.02,
        "decoder/layers/feed_forward/output/kernel": 0.02, "row_heads/label/kernel": 0.02,
    },
    "gpt2_124m": {
        "embedding/tokens": 0.02, "decoder/inputs/positions": 0.01, "decoder/layers/attention/key/kernel": 0.02,
        "decoder/layers/feed_forward/input/kernel": 0.02,
        "decoder/layers/attention/output/kernel": 0.02 / (2 * L) ** 0.5,
        "decoder/layers/feed_forward/output/kernel": 0.02 / (2 * L) ** 0.5,
    },
    "bert_base": {
        "embedding/tokens": 0.02 * 0.8796, "encoder/inputs/token_types": 0.02 * 0.8796,
        "encoder/layers/attention/value/kernel": 0.02 * 0.8796, "vocabulary/transform/kernel": 0.02 * 0.8796,
        "row_heads/pooler/kernel": 0.02 * 0.8796,
    },
    "bart_base": {
        "embedding/tokens": 0.02, "encoder/inputs/positions": 0.02,
        "decoder/layers/cross_attention/output/kernel": 0.02, "decoder/layers/feed_forward/output/kernel": 0.02,
    },
    "transformer_base": {
        "embedding/tokens": D**-0.5, "encoder/layers/attention/query/kernel": (2 / (D + H * K)) ** 0.5,
        "decoder/layers/cross_attention/output/kernel": (2 / (D + H * K)) ** 0.5,
        "decoder/layers/feed_forward/input/kernel": (2 / (D + F)) ** 0.5,
    },
    "t5_base": {
        "embedding/tokens": 1.0, "encoder/layers/attention/query/kernel": (D * K) ** -0.5,
        "decoder/layers/cross_attention/key/kernel": D**-0.5, "decoder/layers/attention/value/kernel": D**-0.5,
        "encoder/layers/attention/output/kernel": (H * K) ** -0.5, "decoder/layers/feed_forward/input/kernel": D**-0.5,
        "decoder/layers/feed_forward/output/kernel": F**-0.5, "encoder/relative_bias": D**-0.5,
    },
    "t5_1_1_base": {"embedding/tokens": 1.0, "vocabulary/kernel": D**-0.5},
}  # fmt: skip
INITIALISATIONS |= {"gpt3_125m": INITIALISATIONS["gpt2_124m"]}
INITIALISATIONS |= {"distilbert_base": {"encoder/layers/attention/key/kernel": 0.02 * 0.8796}}


def _initialisation(preset: str) -> tuple[str, bool]:
    config = TransformerConfig(**PRESETS[preset])
    return config.initialization, config.tied_embeddings


@pytest.mark.parametrize(
    "preset",
    sampled(
        INITIALISATIONS,
        path=_initialisation,
        daily=("gpt2_124m",),
    ),
)
def test_initialisations_have_their_deviations(preset: str) -> None:
    sizes = {"d_model": D, "d_ff": F, "num_heads": H, "head_dim": K, "num_layers": L, "vocab_size": 500}
    config = TransformerConfig(
        **PRESETS[preset] | sizes | {"max_length": 64, "relative_buckets": 256, "relative_max_distance": 512}
    )
    model = Model(config, Execution(unroll=1), heads=(("label", 16, "row"),))
    params = flatten(jax.jit(model.init)(jax.random.key(0)))
    for path, deviation in INITIALISATIONS[preset].items():
        values = np.asarray(params[path])
        sampling = 4 / (2 * values.size) ** 0.5  # four deviations of a sample's deviation
        assert np.std(values) == pytest.approx(deviation, rel=sampling), path
        assert abs(np.mean(values)) < 4 * deviation / values.size**0.5, path
    if config.initialization == "bert":
        assert np.abs(params["embedding/tokens"]).max() <= 2 * 0.02 + 1e-7
    if config.initialization == "transformer":  # uniform: nothing beyond sqrt(3) deviations
        kernel = np.asarray(params["decoder/layers/feed_forward/input/kernel"])
        assert np.abs(kernel).max() <= (6 / (D + F)) ** 0.5
    for path, leaf in params.items():
        if path.endswith("bias") and "relative" not in path:
            assert np.all(leaf == 0), path
        if path.endswith("scale"):
            assert np.all(leaf == 1), path


def test_bad_slots_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="model.activation: 'gelo'.*did you mean 'gelu'"):
        dataclasses.replace(CONFIGS["gpt"], activation="gelo")
    with pytest.raises(UserError, match="cannot see what it predicts"):
        dataclasses.replace(CONFIGS["gpt"], visibility="full")
    assert Execution() == Execution(dtype="float32")


# Positions, norms and placement, by hand


def test_sinusoids_have_the_papers_values() -> None:
    """PE(p, 2i) = sin(p / 10000^(2i/d)); sines first, then cosines."""
    table = np.asarray(sinusoids(jnp.arange(3)[None], 4))[0]
    wanted = [[0, 0, 1, 1], *([math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in (1, 2))]
    np.testing.assert_allclose(table, wanted, atol=1e-7)
    # tensor2tensor: exponents i / (d/2 - 1), so the last one is 1.
    table = np.asarray(sinusoids(jnp.arange(3)[None], 6, reaches_base=True))[0]
    np.testing.assert_allclose(table[2], [math.sin(2), math.sin(0.02), math.sin(2e-4), math.cos(2), math.cos(0.02), 1],
                               atol=1e-7)  # fmt: skip


@pytest.mark.parametrize("reaches_base", [False, True])
@pytest.mark.parametrize(("d_model", "longest", "max_length", "error"), [
    (512, 513, 8192, 1e-7), (64, 4097, 8192, 1e-7), (64, 4096, 4096, 1e-7), (64, 100_000, 512, 3e-7),
])  # fmt: skip
def test_sinusoids_are_those_of_float64_at_every_place(
    reaches_base: bool, d_model: int, longest: int, max_length: int, error: float
) -> None:
    places, half = np.arange(longest - 500, longest), d_model // 2
    exponents = np.arange(half) / (half - 1) if reaches_base else 2 * np.arange(half) / d_model
    angles = places[:, None] / 10_000.0**exponents
    wanted = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    def table(places: jax.Array) -> jax.Array:
        return sinusoids(places, d_model, reaches_base=reaches_base, max_length=max_length)

    for found in (table(jnp.asarray(places)[None]), jax.jit(table)(jnp.asarray(places)[None])):
        assert np.abs(np.asarray(found)[0] - wanted).max() < error


def test_rotary_positions_turn_pairs_and_depend_on_the_distance_alone() -> None:
    x = jnp.array([1.0, 2.0, 3.0, 4.0])[None, None, None]
    cos, sin = rotations(jnp.array([[2]]), 4, base=100.0)  # angles 2 and 0.2
    found = np.asarray(rotated(x, (cos, sin)))[0, 0, 0]
    wanted = [
        1 * math.cos(2) - 3 * math.sin(2), 2 * math.cos(0.2) - 4 * math.sin(0.2),
        3 * math.cos(2) + 1 * math.sin(2), 4 * math.cos(0.2) + 2 * math.sin(0.2),
    ]  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(query: int, key: int) -> float:
        turned = [rotated(x, rotations(jnp.array([[place]]), 8)) for x, place in ((q, query), (k, key))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(5, 3) == pytest.approx(score(105, 103), rel=1e-4)
    assert score(5, 3) != pytest.approx(score(5, 2), rel=1e-2)


def test_a_rotary_model_reads_positions_and_nothing_absolute() -> None:
    model = Model(dataclasses.replace(CONFIGS["gpt"], position="rotary"), Execution(unroll=1))
    # Three times as large, so that attention is far from uniform.
    params, batch, apply = jax.tree.map(lambda x: 3 * x, params_of(model)), batch_of("gpt"), _applied(model)
    assert "inputs" not in params["decoder"]
    batch["segment_ids"] = jnp.ones_like(batch["segment_ids"])
    batch["positions"] = jnp.tile(jnp.arange(10), (4, 1))
    places = batch["positions"]
    hidden = [apply(params, batch | {"positions": p}) for p in (places, places + 7, places * 2)]
    base, moved, stretched = (np.asarray(array) for array in hidden)
    assert np.abs(moved - base).max() < 1e-4 * np.abs(base).max() < np.abs(stretched - base).max()


def test_learned_positions_come_from_the_table_behind_its_offset() -> None:
    for offset in (0, 2):
        config = dataclasses.replace(CONFIGS["gpt"], position_offset=offset, num_layers=1)
        model = Model(config, Execution(unroll=1))
        params, batch = params_of(model), batch_of("gpt")
        table = params["decoder"]["inputs"]["positions"]
        assert table.shape == (config.max_length + offset, config.d_model)
        embedded = jax.jit(functools.partial(model.apply, collect=("decoder",)))(params, batch)["decoder"][0]
        wanted = params["embedding"]["tokens"][batch["inputs"]] + table[offset + np.asarray(batch["positions"])]
        np.testing.assert_array_equal(embedded, wanted)


def test_norms_by_hand() -> None:
    x = jnp.array([[[1.0, 2.0, 4.0, 5.0]]])
    layer = Norm(dataclasses.replace(CONFIGS["gpt"], norm_epsilon=0.5))
    scale, bias = jnp.array([1.0, 2.0, 1.0, 1.0]), jnp.array([0.0, 0.0, 10.0, 0.0])
    found = layer.apply({"params": {"scale": scale, "bias": bias}}, x)
    root = math.sqrt(2.5 + 0.5)  # the variance is (4 + 1 + 1 + 4) / 4
    np.testing.assert_allclose(found[0, 0], [-2 / root, -2 / root, 10 + 1 / root, 2 / root], rtol=1e-6)
    rms = Norm(dataclasses.replace(CONFIGS["t5"], norm_epsilon=0.5))
    found = rms.apply({"params": {"scale": scale}}, x)
    root = math.sqrt((1 + 4 + 16 + 25) / 4 + 0.5)
    np.testing.assert_allclose(found[0, 0], [1 / root, 4 / root, 4 / root, 5 / root], rtol=1e-6)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_norms_stand_before_or_after_the_residual_sum(placement: str) -> None:
    """With sublayers that return nothing, pre-norm leaves x alone and post-norm normalises it."""
    config = dataclasses.replace(CONFIGS["gpt"], norm_placement=placement, num_layers=1)
    model = Model(config, Execution(unroll=1))
    params, batch = params_of(model), batch_of("gpt")
    for path, leaf in (flat := flatten(params)).items():
        flat[path] = jnp.full_like(leaf, path.endswith("scale")) if "norm" in path else leaf
    params = unflatten(flat)
    layers = params["decoder"]["layers"]
    for sublayer in (layers["attention"], layers["feed_forward"]):
        sublayer["output"] = jax.tree.map(jnp.zeros_like, sublayer["output"])
    outputs = jax.jit(functools.partial(model.apply, collect=("decoder",)))(params, batch)
    embedded, output = (np.asarray(layer) for layer in outputs["decoder"])

    def normed(x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_epsilon)

    if placement == "pre":
        np.testing.assert_array_equal(output, embedded)
        np.testing.assert_allclose(outputs["hidden"], normed(embedded), atol=1e-5)
    else:
        np.testing.assert_allclose(output, normed(normed(embedded)), atol=1e-4)
        np.testing.assert_array_equal(outputs["hidden"], output)
    assert ("final_norm" in params["decoder"]) == (placement == "pre")
