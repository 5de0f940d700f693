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


def product(x: jax.Array, kernel_KN: jax.Array, dtype: Any = None) -> jax.Array:
    """Return x [..., K] times a kernel [K, N], [..., N], added up and returned in `dtype`, or as `x` is.

    Its gradients are those of jnp.matmul, multiplied in the dtype of `x`. The kernel's is multiplied out from
    activations as they lie, where JAX's own rule leaves XLA:CPU to copy the larger of the two the other way round: a
    tenth of a training step.
    """
    return checkpoint_name(_product(x, kernel_KN, dtype), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel_KN: jax.Array, dtype: Any) -> jax.Array:
    return jnp.matmul(x, kernel_KN, preferred_element_type=dtype)


def _forward(x: jax.Array, kernel_KN: jax.Array, dtype: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel_KN, dtype), (x, kernel_KN)


def _backward(dtype: Any, read: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel_KN = read
    # Logits are float32, and so is what comes back from them; their two products, the model's largest, shall not be.
    x_RK, g_RN = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1]).astype(x.dtype)
    multiply = functools.partial(jax.lax.dot_general, preferred_element_type=dtype)
    x_bar_RK = multiply(g_RN, kernel_KN, (((1,), (1,)), ((), ())))
    over_rows = (((0,), (0,)), ((), ()))
    # The first operand is the one that is turned round: the narrower one. The barrier keeps XLA from choosing itself.
    if x_RK.shape[1] <= g_RN.shape[1]:
        kernel_bar_KN = jax.lax.optimization_barrier(multiply(x_RK, g_RN, over_rows))
    else:
        kernel_bar_KN = jax.lax.optimization_barrier(multiply(g_RN, x_RK, over_rows)).T
    return x_bar_RK.reshape(x.shape).astype(x.dtype), kernel_bar_KN.astype(kernel_KN.dtype)


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
