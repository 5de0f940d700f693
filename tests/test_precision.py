"""bfloat16: what stays in float32, how far losses are apart, and activations that float16 could not hold."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import batch_of, model_of, params_of, supervision_of

from jaxformer.training.optimizers import OPTIMIZERS, make_optimizer
from jaxformer.training.step import TrainState, make_train_step
from jaxformer.trees import flatten, unflatten

FAMILIES = ("gpt", "bert", "t5")


@functools.cache
def training(name: str, dtype: str) -> tuple[Any, TrainState]:
    """Return the jitted step of a tiny model of a family, and a fresh state."""
    model = model_of(name, dtype=dtype, unroll=1)
    update = make_optimizer(OPTIMIZERS["adamw"](learning_rate=1e-3), model.shapes)
    params = jax.tree.map(lambda leaf: leaf * 0.3, params_of(model))
    step = jax.jit(make_train_step(model, supervision_of(name), update))
    return step, TrainState(jnp.zeros((), jnp.int32), params, update.init(params))


def lowered(name: str) -> str:
    step, state = training(name, "bfloat16")
    return str(step.lower(state, batch_of(name), jax.random.key(0), 1.0).as_text())


def results(operation: str, text: str) -> set[str]:
    """Return the types of all results of an operation in a lowered program: 4x10x16xf32."""
    return set(re.findall(rf"stablehlo\.{operation} .*tensor<(\S+)>", text))


@pytest.mark.parametrize("name", FAMILIES)
def test_products_are_in_bfloat16_and_all_that_needs_it_in_float32(name: str) -> None:
    """Only the plain form of attention multiplies in float32: the gradient of its scores, which kernels never write."""
    text, batch = lowered(name), batch_of(name)
    lengths = {array.shape[1] for key, array in batch.items() if key.endswith("inputs")}
    products = re.findall(r"stablehlo\.dot_general.*: \(tensor<(\S+)>, tensor<(\S+)>\) -> tensor<(\S+)>", text)
    assert len(products) > 20
    scores = {f"4x2x{queries}x{keys}xf32" for queries in lengths for keys in lengths}
    in_float32 = [product for product in products if "f32" in product[0] or "f32" in product[1]]
    assert [product for product in in_float32 if product[0] not in scores] == []
    assert all(left.endswith("bf16") for left, _, _ in products if left not in scores)
    for operation in ("rsqrt", "log", "exponential"):  # norms, the loss, softmax
        found = results(operation, text)
        assert any(shape.endswith("f32") for shape in found)
        # The derivative of BERT's exact GELU has an exponential of its own, as wide as feed-forward or the model.
        allowed = ("x32xbf16", "x16xbf16") if (name, operation) == ("bert", "exponential") else ()
        assert [shape for shape in found if not shape.endswith(("f32", *allowed))] == [], operation
    step, state = training(name, "bfloat16")
    made, metrics = jax.eval_shape(step, state, batch, jax.random.key(0), 1.0)
    kept = {leaf.dtype.name for leaf in jax.tree.leaves((made.params, made.opt_state, metrics))}
    assert kept <= {"float32", "int32"}


@pytest.mark.parametrize("name", ["gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "t5"))])
def test_two_hundred_steps_lose_no_more_than_in_float32(name: str) -> None:
    """The others of the families are slow: they guard the norms and the position bias, which gpt does not have."""
    batches = [batch_of(name, seed=seed) for seed in range(4)]

    def losses(dtype: str) -> np.ndarray:
        step, state = training(name, dtype)
        found = []
        for number in range(200):
            state, metrics = step(state, batches[number % len(batches)], jax.random.key(0), 3e-3)
            found.append(metrics["loss"])
        return np.array(found).reshape(-1, 20).mean(axis=1)

    exact, rounded = losses("float32"), losses("bfloat16")
    assert exact[-1] < 0.8 * exact[0]  # it learns
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


def test_t5_in_bfloat16_does_not_overflow() -> None:
    """T5's residual stream outgrows float16 (65,504); bfloat16 has float32's range."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(dtype: str, params: Any) -> Any:
        model = model_of("t5", dtype=dtype, unroll=1)

        def loss(params: Any) -> tuple[jax.Array, Any]:
            outputs = model.apply(params, batch, collect=("encoder", "decoder"))
            logits = model.project(params, outputs["hidden"])
            return -jnp.mean(jax.nn.log_softmax(logits)[..., 0]), outputs

        (value, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return value, jnp.max(jnp.abs(outputs["encoder"].astype(jnp.float32))), gradients

    batch = batch_of("t5")
    large = {
        path: leaf * (3e5 if path.endswith("feed_forward/output/kernel") else 1e3 if "embedding" in path else 1.0)
        for path, leaf in flatten(params_of(model_of("t5"))).items()
    }
    loss, most, gradients = run("bfloat16", unflatten(large))
    assert most > 10 * 65_504.0
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((loss, most, gradients)))
    assert not all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(run("float16", unflatten(large))))
