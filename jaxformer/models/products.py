"""Products of activations with kernels, as XLA:CPU multiplies them fastest; on accelerators nothing was measured.

Shape suffixes: R rows of all leading axes, K in, N out, C kernels side by side.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxformer.models.attention import wide

# Up to so many rows XLA:CPU multiplies faster as columns.
FEW_ROWS = 64
# Before, XLA:CPU's sums took twice the time of its products, which inside of loops were on all cores, too.
SUMS_ARE_FAST = jax.__version_info__ >= (0, 11)


PRODUCT = "product"  # how rematerialisation knows what a product returned


def product(x: jax.Array, kernel: jax.Array, dtype: Any = None, *, transposed: bool = False) -> jax.Array:
    """Return x [..., K] times a kernel [K, N] (`transposed`: [N, K]), [..., N], added up and returned in `dtype`, or as
    `x` is.

    Its gradients are those of jnp.matmul, multiplied in the dtype of `x`. The kernel's is multiplied out from
    activations as they lie, where JAX's own rule leaves XLA:CPU to copy the larger of the two the other way round: a
    tenth of a training step.
    """
    return checkpoint_name(_product(x, kernel, dtype, transposed), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool) -> jax.Array:
    return jnp.matmul(x, kernel.T if transposed else kernel, preferred_element_type=dtype)


def _forward(
    x: jax.Array, kernel: jax.Array, dtype: Any, transposed: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel, dtype, transposed), (x, kernel)


def _backward(
    dtype: Any, transposed: bool, read: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = read
    # Logits are float32, and so is what comes back from them; their two products, the model's largest, shall not be.
    x_RK, g_RN = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]).astype(x.dtype)
    multiply = functools.partial(jax.lax.dot_general, preferred_element_type=dtype)
    x_bar_RK = multiply(g_RN, kernel, (((1,), (0 if transposed else 1,)), ((), ())))
    first, second = (g_RN, x_RK) if transposed else (x_RK, g_RN)
    over_rows = (((0,), (0,)), ((), ()))
    # XLA:CPU turns the first operand round. Of many rows that is to be the narrower one, and the result is turned
    # instead. The barrier keeps XLA from choosing itself.
    if len(first) * (first.shape[1] - second.shape[1]) <= kernel.size:
        kernel_bar = jax.lax.optimization_barrier(multiply(first, second, over_rows))
    else:
        kernel_bar = jax.lax.optimization_barrier(multiply(second, first, over_rows)).T
    return x_bar_RK.reshape(x.shape).astype(x.dtype), kernel_bar.astype(kernel.dtype)


_product.defvjp(_forward, _backward)


def transposed_product(x: jax.Array, kernel: jax.Array, *, in_rows: bool = False) -> jax.Array:
    """Return x [..., K] times transposed kernels [N, K], or several of them [C, N, K], side by side [..., C, N], added
    up in float32 at least.

    Decoding reads all weights for a few rows, so what counts is how fast XLA:CPU reads them. It multiplies a few rows
    in two thirds of the time when they are columns; the barrier keeps it from turning the product round. A single row
    it multiplies on one core, but sums it splits, best of all along a first axis of two. Logits are wanted `in_rows`:
    of columns, the maxima and sums that follow take three times as long.
    """
    rows, kernel, dtype = x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype), wide(x.dtype)
    if len(rows) == 1 and SUMS_ARE_FAST:
        halves = kernel.reshape(2, -1, x.shape[-1]) if kernel.size // x.shape[-1] % 2 == 0 else kernel
        row = jax.lax.optimization_barrier(rows.astype(dtype).reshape([1] * (halves.ndim - 1) + [-1]))
        y = jnp.sum(halves.astype(dtype) * row, axis=-1)
    elif 1 < len(rows) <= FEW_ROWS and not in_rows:
        columns = jnp.einsum("...NK,RK->...NR", kernel, rows, preferred_element_type=dtype)
        y = jnp.moveaxis(jax.lax.optimization_barrier(columns), -1, 0)
    else:
        y = jnp.einsum("RK,...NK->R...N", rows, kernel, preferred_element_type=dtype)
        y = jax.lax.optimization_barrier(y) if in_rows else y
    return y.reshape(*x.shape[:-1], *kernel.shape[:-1])
