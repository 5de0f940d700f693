"""Products of linear maps and of the vocabulary: their gradients, and what a compiled step copies for them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.models.products import product

# Rows, in, out: few and many rows, for a result that is wide, tall or square.
SHAPES = [(2, 8, 96), (2, 96, 8), (200, 8, 96), (200, 96, 8), (5, 16, 16)]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_a_product(shape: tuple[int, int, int], transposed: bool) -> None:
    rows, width, out = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, rows, width)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(out, width) if transposed else (width, out)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(2, rows, out)), jnp.float32)

    def ours(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(product(x, kernel, transposed=transposed) * weights)

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.matmul(x, kernel.T if transposed else kernel) * weights)

    found, expected = (jax.grad(function, argnums=(0, 1))(x, kernel) for function in (ours, plain))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "turned"), [(4, False), (512, True)])
def test_the_gradient_of_a_table_is_turned_round_only_where_rows_are_many(rows: int, turned: bool) -> None:
    """Of few rows the logits' gradient is turned, of many the table's: whichever is less to copy."""
    x, table = jax.ShapeDtypeStruct((rows, 16), jnp.float32), jax.ShapeDtypeStruct((640, 16), jnp.float32)

    def gradient(x: jax.Array, table: jax.Array) -> jax.Array:
        return jax.grad(lambda table: jnp.sum(product(x, table, transposed=True) ** 2))(table)

    text = jax.jit(gradient).lower(x, table).as_text()
    shapes = re.findall(r"dot_general.*-> tensor<(\d+x\d+)xf32>", text)
    assert shapes[-1] == ("16x640" if turned else "640x16")
