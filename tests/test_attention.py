"""Attention in blocks: equal to the plain form, forward and backward; what it leaves out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIGS, batch_of, params_of, supervision_of

from jaxformer.devices.sharding import ShardingConfig, activations_mesh, make_mesh
from jaxformer.models import blockwise
from jaxformer.models.attention import attend_masked
from jaxformer.models.blockwise import Block, blocks_of
from jaxformer.models.config import Execution
from jaxformer.models.dropout import kept
from jaxformer.models.model import Model
from jaxformer.models.sight import reach_of, visibility_mask
from jaxformer.training.step import group_sums
from jaxformer.trees import flatten

ROWS, HEADS, SIZE = 3, 2, 4


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "SMALL", 8)
    monkeypatch.setattr(blockwise, "LARGE", 8)


def _drawn(*shapes: tuple[int, ...]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def _segments(length: int) -> jax.Array:
    """Rows of up to three segments and four places of padding."""
    segments = np.sort(np.random.default_rng(length).integers(1, 4, (ROWS, length)), axis=-1)
    return jnp.asarray(segments * (np.arange(length) < length - 4))


def _gradients(attention: str, arrays: list[jax.Array], mask: jax.Array, out: jax.Array, **how: Any) -> list[Any]:
    def read(*arrays: jax.Array) -> jax.Array:
        return jnp.vdot(attend_masked(*arrays[:3], mask, *arrays[3:], scale=0.5, implementation=attention, **how), out)

    places = tuple(range(len(arrays)))
    value, gradients = jax.jit(jax.value_and_grad(read, places))(*arrays)
    return [value, *gradients]


@pytest.mark.parametrize(
    ("queries", "keys", "visibility", "window", "with_bias"),
    [
        (20, 20, "causal", 6, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [
            (11, 20, "full", None, False), (20, 20, "causal", None, False), (90, 90, "causal", 11, True),
            (20, 20, "full", None, True), (20, 20, "full", 7, False), (20, 20, "prefix", None, True),
            (5, 5, "causal", None, True),
        ]),
    ],
)  # fmt: skip
def test_blocks_read_what_the_plain_form_reads(
    queries: int, keys: int, visibility: str, window: int | None, with_bias: bool
) -> None:
    shapes = [(ROWS, queries, HEADS, SIZE), (ROWS, keys, HEADS, SIZE), (ROWS, keys, HEADS, SIZE)]
    *arrays, out = _drawn(*shapes, *[(1, HEADS, queries, keys)] * with_bias, shapes[0])
    prefix = jnp.array([0, 3, 9]) if visibility == "prefix" else None
    mask = visibility_mask(
        _segments(queries), _segments(keys), visibility=visibility, window=window, prefix_length_B=prefix
    )
    mask = mask.at[..., 0].set(True) if queries != keys else mask  # some queries' segment has no keys
    expected = _gradients("einsum", arrays, mask, out)
    found = _gradients("blockwise", arrays, mask, out, reach=reach_of(visibility, window))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_dropped_weights_have_the_gradient_of_what_was_dropped() -> None:
    shape, rng, rate = (ROWS, 12, HEADS, SIZE), jax.random.key(3), 0.3
    q, k, v, bias, out = _drawn(shape, shape, shape, (1, HEADS, 12, 12), shape)
    ones = jnp.ones((ROWS, 12), jnp.int32)
    mask = visibility_mask(ones, ones, visibility="causal")

    def plain(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
        keeps = []
        for block in blocks_of(12, 12, (None, 0)):
            key = jax.random.fold_in(rng, block.start)
            keep = kept(key, rate, (ROWS, HEADS, block.end - block.start, block.end_key))
            keeps.append(jnp.pad(keep, ((0, 0), (0, 0), (0, 0), (0, 12 - block.end_key))))
        keep = jnp.concatenate(keeps, axis=2)
        scores = jnp.where(mask, jnp.einsum("BTHK,BSHK->BHTS", q, k) * 0.5 + bias, -1e30)
        weights = jnp.where(keep, jax.nn.softmax(scores) / (1 - rate), 0)
        return jnp.vdot(jnp.einsum("BHTS,BSHK->BTHK", weights, v), out)

    value, gradients = jax.jit(jax.value_and_grad(plain, (0, 1, 2, 3)))(q, k, v, bias)
    how = {"reach": (None, 0), "dropout": rate, "dropout_rng": rng}
    found = _gradients("blockwise", [q, k, v, bias], mask, out, **how)
    for one, other in zip(found, (value, *gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert abs(value - jnp.vdot(attend_masked(q, k, v, mask, bias, scale=0.5), out)) > 0.1


@pytest.mark.slow
def test_bfloat16_keeps_its_softmax_in_float32() -> None:
    shape = (ROWS, 30, HEADS, SIZE)
    arrays = _drawn(shape, shape, shape, shape)
    ones = jnp.ones((ROWS, 30), jnp.int32)
    mask = visibility_mask(ones, ones, visibility="causal")
    exact = _gradients("einsum", arrays[:3], mask, arrays[3])
    half = [array.astype(jnp.bfloat16) for array in arrays]
    errors = [
        [float(jnp.linalg.norm(one - other.astype(jnp.float32))) for one, other in zip(exact, found, strict=True)]
        for found in (
            _gradients(name, half[:3], mask, half[3], **how)
            for name, how in (("einsum", {}), ("blockwise", {"reach": (None, 0)}))
        )
    ]
    assert all(ours <= 1.2 * theirs + 0.05 for ours, theirs in zip(errors[1], errors[0], strict=True))


def test_blocks_leave_out_what_no_query_of_theirs_sees() -> None:
    assert blocks_of(20, 20, reach_of("causal")) == (Block(0, 8, 0, 8), Block(8, 16, 0, 16), Block(16, 20, 0, 20))
    assert blocks_of(20, 20, reach_of("causal", 3)) == (Block(0, 8, 0, 8), Block(8, 16, 6, 16), Block(16, 20, 14, 20))
    assert blocks_of(16, 16, reach_of("full", 3)) == (Block(0, 8, 0, 10), Block(8, 16, 6, 16))
    assert blocks_of(16, 9, reach_of("full")) == (Block(0, 8, 0, 9), Block(8, 16, 0, 9))
    assert blocks_of(16, 16, reach_of("prefix"))[0] == Block(0, 8, 0, 16)
    assert [block.end - block.start for block in blocks_of(800, 800, (None, 0))] == [100] * 8


def test_scores_are_never_whole() -> None:
    shape, length = (1, 64, 2, 4), 64
    mask = jnp.tril(jnp.ones((1, 1, length, length), bool))

    def compiled(name: str) -> Any:
        def read(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(attend_masked(q, k, v, mask, scale=0.5, implementation=name, reach=(None, 0)) ** 2)

        return jax.jit(jax.grad(read, (0, 1, 2))).lower(*_drawn(shape, shape, shape)).compile()

    plain, blocks = compiled("einsum"), compiled("blockwise")
    for whole in ("f32[1,2,64,64]", "f32[2,64,64]"):
        assert whole not in blocks.as_text()
    assert any(whole in plain.as_text() for whole in ("f32[1,2,64,64]", "f32[2,64,64]"))
    assert blocks.memory_analysis().temp_size_in_bytes < 0.6 * plain.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("gpt3", {"unroll": 1}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("gpt3", {}),
                ("t5", {"remat": "full"}),
                ("bert", {"tensor": 2}),
            ]
        ),
    ],
)
def test_a_models_gradients_are_the_same(name: str, how: dict[str, Any]) -> None:
    """Dense and banded layers, in a loop or not, position bias, cross-attention; heads split over devices."""
    how, config, batch = dict(how), CONFIGS[name], batch_of(name, length=12, source=9)
    tensor = how.pop("tensor", 1)
    sharding = ShardingConfig(data=2, tensor=tensor)
    mesh = activations_mesh(sharding, make_mesh(sharding)) if tensor > 1 else None

    def gradients(attention: str, mesh: Any) -> dict[str, jax.Array]:
        heads = (("next_sentence", 2, "row"),) if name == "bert" else ()
        execution = Execution(attention=attention, mesh=mesh, **how)
        model = Model(dataclasses.replace(config), execution, heads=heads)

        def loss(params: dict) -> jax.Array:
            losses, _, _ = group_sums(model, supervision_of(name), params, batch, None)
            return sum(losses.values(), jnp.zeros(()))

        return flatten(jax.jit(jax.grad(loss))(params_of(model)))

    expected, found = gradients("einsum", None), gradients("blockwise", mesh)
    total = np.sqrt(sum(float(np.sum(np.square(leaf))) for leaf in expected.values()))
    for path, leaf in expected.items():
        assert np.linalg.norm(found[path] - leaf) <= max(1e-4 * np.linalg.norm(leaf), 1e-6 * total), path
