"""Heads by hand: what each reads of the hidden states, and its loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIGS

from jaxformer.models.config import Execution
from jaxformer.models.model import Model
from jaxformer.training.losses import head_loss


def made(name: str, *heads: tuple[str, int, str]) -> tuple[Model, dict]:
    model = Model(CONFIGS[name], Execution(unroll=1), heads, predicts_tokens=name == "gpt")
    params = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape) * 0.2, model.shapes)
    return model, jax.tree.map(jnp.float32, params)


def texts(count: int, length: int = 6) -> dict[str, jax.Array]:
    """Two examples of so many texts each."""
    rng = np.random.default_rng(0)
    shape = (2, count, length)
    return {
        "inputs": jnp.asarray(rng.integers(0, 31, shape), jnp.int32),
        "segment_ids": jnp.asarray(np.arange(length) < rng.integers(3, length + 1, (2, count, 1)), jnp.int32),
        "positions": jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), shape),
        "token_types": jnp.zeros(shape, jnp.int32),
        "label_positions": jnp.asarray(rng.integers(0, 3, (2, count)), jnp.int32),
    }


def folded(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items()}


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_a_choice_has_the_score_of_its_own_text(name: str) -> None:
    batch = texts(3)
    model, params = made(name, ("label", 1, "choices"))
    scores = jax.jit(model.apply)(params, batch)["label"]
    alone, _ = made(name, ("label", 1, "row"))
    expected = jax.jit(alone.apply)(params, folded(batch))["label"]
    assert scores.shape == (2, 3)
    np.testing.assert_allclose(scores, expected.reshape(2, 3), rtol=1e-5, atol=1e-6)


def test_states_of_both_orders_are_added_before_the_classifier() -> None:
    batch = texts(2)
    model, params = made("gpt", ("label", 4, "sum"))
    outputs = jax.jit(model.apply)(params, batch)
    states = np.take_along_axis(
        np.asarray(outputs["hidden"]), np.asarray(batch["label_positions"]).reshape(4, 1, 1), axis=1
    )[:, 0]
    head = params["row_heads"]["label"]
    expected = states.reshape(2, 2, -1).sum(axis=1) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(outputs["label"], expected, rtol=1e-4, atol=1e-5)


def test_a_head_of_tokens_reads_every_state() -> None:
    batch = {name: array[:, 0] for name, array in texts(1).items()}
    model, params = made("bert", ("label", 3, "tokens"), ("start", 1, "tokens"))
    outputs = jax.jit(model.apply)(params, batch)
    assert "row_heads" not in params  # nothing is pooled
    for name, shape in (("label", (2, 6, 3)), ("start", (2, 6))):
        head = params["token_heads"][name]
        expected = np.asarray(outputs["hidden"]) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
        np.testing.assert_allclose(outputs[name], expected.reshape(shape), rtol=1e-4, atol=1e-5)


def test_losses_by_hand() -> None:
    logits = jnp.log(jnp.array([[1.0, 3.0], [4.0, 1.0]]))
    loss, right = head_loss("softmax", logits, jnp.array([1, 1]), 0.0)
    np.testing.assert_allclose(loss, [-np.log(3 / 4), -np.log(1 / 5)], rtol=1e-6)
    assert right.tolist() == [1.0, 0.0]
    smooth, _ = head_loss("softmax", logits, jnp.array([1, 1]), 0.1)
    np.testing.assert_allclose(smooth[0], -0.9 * np.log(3 / 4) - 0.1 * np.log(1 / 4), rtol=1e-5)

    loss, right = head_loss("places", logits, jnp.array([0, 0]), 0.0)
    np.testing.assert_allclose(loss, [-np.log(1 / 4), -np.log(4 / 5)], rtol=1e-6)
    assert right.tolist() == [0.0, 1.0]

    loss, right = head_loss("squared", jnp.array([[2.5], [0.0]]), jnp.array([4.0, -1.0]), 0.0)
    assert loss.tolist() == [2.25, 1.0] and right.tolist() == [0.0, 0.0]

    loss, right = head_loss("sigmoid", jnp.array([[0.0, 2.0], [-1.0, -3.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]]), 0.0)
    one = [np.log(2) + np.log1p(np.exp(-2)), 1 + np.log1p(np.exp(-1)) + np.log1p(np.exp(-3))]
    np.testing.assert_allclose(loss, np.array(one) / 2, rtol=1e-5)
    assert right.tolist() == [0.5, 0.5]
