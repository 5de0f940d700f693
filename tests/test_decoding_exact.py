"""Decoding over a cache against the full forward pass: the logits of every step, for every preset that can decode.

Sizes are tiny and dropout does not act, so presets that differ in nothing else are one case, named after the first of
them; a new preset is a case by itself.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sampled

from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.model import Model, Params
from jaxformer.models.presets import PRESETS

TINY: dict[str, Any] = {
    "vocab_size": 31, "d_model": 16, "d_ff": 24, "num_heads": 3, "head_dim": 4, "num_layers": 2, "max_length": 24,
    "attention_window": 3, "relative_buckets": 8, "relative_max_distance": 16,
}  # fmt: skip
# Slots that no preset has, or not together, and that work with the cache in a way of their own.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tensor2tensor": ("transformer_base", {
        "biases": "feed_forward", "norm_epsilon": 1e-6, "position": "sinusoidal_tensor2tensor",
    }),
    "rotary": ("gpt2_124m", {"position": "rotary", "gated": True, "activation": "silu", "norm": "rms_norm"}),
    "no positions": ("gpt2_124m", {"position": "none"}),
    "banded throughout": ("gpt", {"attention_pattern": "banded"}),
    "prefix": ("gpt2_124m", {"visibility": "prefix"}),
    "prefix, banded": ("gpt3_125m", {"visibility": "prefix", "attention_pattern": "banded_first"}),
    "prefix, relative": ("gpt2_124m", {"visibility": "prefix", "position": "relative"}),
    "relative, rounded vocabulary": ("gpt", {"position": "relative", "vocab_multiple": 8}),
    "source encoder": ("bart_base", {"source_layers": 1}),
}  # fmt: skip


def shrunk(preset: str, **changes: Any) -> TransformerConfig:
    rates = {field.name: 0.0 for field in dataclasses.fields(TransformerConfig) if field.name.endswith("dropout")}
    return TransformerConfig(**PRESETS[preset] | rates | TINY | changes)


def _cases() -> dict[str, TransformerConfig]:
    """{name: config}, of equal ones the first."""
    named = {name: shrunk(name) for name in PRESETS if PRESETS[name]["family"] != "encoder_only"}
    named |= {name: shrunk(preset, **changes) for name, (preset, changes) in VARIANTS.items()}
    first: dict[TransformerConfig, str] = {}
    for name, config in named.items():
        first.setdefault(config, name)
    return {name: config for config, name in first.items()}


CASES = _cases()

# Rows of a decoder: prompts of unequal lengths, then STEPS tokens one by one. The first two prompts differ in their
# first token alone, the first and the last in nothing: there only what an encoder reads differs.
PROMPTS = [[3, 9, 4, 25, 7], [28, 9, 4, 25, 7], [11], [5, 30, 2], [3, 9, 4, 25, 7]]
STEPS = 4
WIDTH, ROWS = 6, len(PROMPTS)  # a place more than the longest prompt
WRITTEN = np.random.default_rng(1).integers(1, 31, (ROWS, STEPS)).astype(np.int32)
WRITTEN[[1, 4]] = WRITTEN[0]
SOURCES = [[2, 8, 17], [2, 8, 17], [6], [20, 13, 1, 9], [14, 8, 17]]


def drawn(model: Model) -> Params:
    """Parameters with which every token that is read tells in the logits, drawn by numpy, which compiles nothing."""
    rng = np.random.default_rng(0)
    sizes = {"bias": 0.1, "scale": 0.1, "relative_bias": 1.0}

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        kind = path[-1].key
        size = 1.5 / np.sqrt(leaf.shape[-2]) if kind == "kernel" else sizes.get(kind, 0.5)
        return jnp.asarray((kind == "scale") + size * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, model.shapes)


def padded(rows: list[list[int]], width: int, left: bool = False) -> dict[str, np.ndarray]:
    """Return the arrays of rows, with padding in front of them or behind."""
    inputs, segments = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        inputs[number, place], segments[number, place] = row, 1
    positions = np.maximum(np.cumsum(segments, axis=1) - 1, 0).astype(np.int32)
    return {"inputs": inputs, "segment_ids": segments, "positions": positions}


def encoder_arrays(config: TransformerConfig) -> dict[str, np.ndarray]:
    if config.family != "encoder_decoder":
        return {}
    return {f"encoder_{name}": array for name, array in padded(SOURCES, 5).items()}


@functools.cache
def both(name: str, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Return the logits [B, WIDTH + STEPS, V] of a case at each place, of decoding, in which prompts end together, and
    of the full pass, whose rows begin together: where there is no token they are 0."""
    model = Model(CASES[name], Execution(dtype=dtype, unroll=1))
    whole = padded([prompt + written.tolist() for prompt, written in zip(PROMPTS, WRITTEN, strict=True)], WIDTH + STEPS)
    whole |= {"prefix_length": np.array([len(prompt) for prompt in PROMPTS], np.int32)}
    prompts = padded(PROMPTS, WIDTH, left=True) | {"prefix_length": np.full(ROWS, WIDTH, np.int32)}
    encoded = encoder_arrays(CASES[name])

    @jax.jit
    def run(params: Params, whole: dict[str, Any], prompts: dict[str, Any], encoded: dict[str, Any]) -> Any:
        full = model.project(params, model.apply(params, whole | encoded)["hidden"])
        weights = model.unstacked(params)
        segments = jnp.concatenate([prompts["segment_ids"], jnp.ones((ROWS, STEPS), jnp.int32)], axis=1)
        cache = model.start(weights, prompts | encoded, segments)
        hidden, cache = model.decode(
            weights, cache, prompts["inputs"], prompts["positions"], prompts["segment_ids"], jnp.int32(0)
        )
        first = model.project(weights, hidden)

        def step(cache: Any, number: jax.Array) -> tuple[Any, jax.Array]:
            inputs, ones = jnp.asarray(WRITTEN)[:, number][:, None], jnp.ones((ROWS, 1), jnp.int32)
            positions = prompts["positions"][:, -1:] + 1 + number
            hidden, cache = model.decode(weights, cache, inputs, positions, ones, WIDTH + number)
            return cache, model.project(weights, hidden)[:, 0]

        _, others = jax.lax.scan(step, cache, jnp.arange(STEPS))
        return full, jnp.concatenate([first, jnp.moveaxis(others, 0, 1)], axis=1)

    full, cached = (np.array(logits) for logits in run(drawn(model), whole, prompts, encoded))
    for number, prompt in enumerate(PROMPTS):
        full[number] = np.roll(full[number], WIDTH - len(prompt), axis=0)
        full[number, : WIDTH - len(prompt)] = cached[number, : WIDTH - len(prompt)] = 0.0
    size = CASES[name].vocab_size
    return full[..., :size], cached[..., :size]


def worst(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference, in the largest of the logits where these are above 1."""
    return float(np.abs(one - other).max() / max(1.0, float(np.abs(other).max())))


@pytest.mark.parametrize(
    "name",
    # All presets in CI, new ones too; every day one of each family, and what no other test of the day decodes with.
    sampled(CASES, path=lambda name: name, daily=["gpt2_124m", "bart_base", "t5_small", "rotary", "prefix, banded"]),
)
def test_decoding_gives_the_logits_of_the_full_pass(name: str) -> None:
    full, cached = both(name)
    assert worst(cached, full) <= 1e-5
    # The comparison sees something: logits differ from place to place, and the last ones with the first token of the
    # prompt and with the encoder's. (Through two layers that see three places, nothing comes that far.)
    assert np.abs(np.diff(full[0, 1:], axis=0)).max(axis=-1).min() > 0.05
    if CASES[name].attention_pattern != "banded":
        assert worst(full[0, -1], full[1, -1]) > 1e-3
    assert (worst(full[0, -1], full[4, -1]) > 1e-3) == (CASES[name].family == "encoder_decoder")


@pytest.mark.parametrize("name", sampled(["gpt2_124m", "t5_small"], path=lambda name: name))
def test_decoding_in_bfloat16_gives_the_full_pass_to_its_rounding(name: str) -> None:
    full, cached = both(name, "bfloat16")
    exact, _ = both(name)
    assert worst(cached, full) <= 0.03 and worst(cached, exact) <= 0.06
    assert worst(full, exact) > 1e-4  # it was not computed in float32


def test_every_system_that_can_decode_is_here() -> None:
    presets = {name for name in PRESETS if PRESETS[name]["family"] != "encoder_only"}
    assert {shrunk(name) for name in presets} <= set(CASES.values())
    assert {"transformer_base", "gpt", "gpt2_124m", "t5_small", "t5_1_1_small", "bart_base", "gpt3_125m"} <= set(CASES)
    assert set(VARIANTS) <= set(CASES)
