"""Tiny models and batches that several test files share."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.model import Model
from jaxformer.objectives import Head
from jaxformer.trees import flatten, unflatten

SIZES = {"d_model": 16, "d_ff": 32, "num_heads": 2, "head_dim": 8, "num_layers": 3, "vocab_size": 31, "max_length": 32}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}

# One of each family, between them every slot value that the eight systems need.
CONFIGS: dict[str, TransformerConfig] = {
    "gpt": TransformerConfig(
        family="decoder_only", norm_placement="post", activation="gelu_tanh", **SIZES, **NO_DROPOUT
    ),
    "gpt3": TransformerConfig(
        family="decoder_only", activation="gelu_tanh", initialization="gpt2", attention_pattern="dense_first",
        attention_window=3, vocab_multiple=8, **SIZES, **NO_DROPOUT,
    ),
    "bert": TransformerConfig(
        family="encoder_only", norm_placement="post", embedding_norm=True, token_types=2, visibility="full",
        output_head="transform", pooler="tanh", initialization="bert", vocab_multiple=8, **SIZES, **NO_DROPOUT,
    ),
    "transformer": TransformerConfig(
        family="encoder_decoder", norm_placement="post", position="sinusoidal", embedding_scale="sqrt_d_model",
        activation="relu", biases="feed_forward", initialization="transformer", **SIZES, **NO_DROPOUT,
    ),
    "t5": TransformerConfig(
        family="encoder_decoder", norm="rms_norm", position="relative", activation="relu", biases="none",
        attention_scale="none", logit_scale="inverse_sqrt_d_model", initialization="t5", **SIZES, **NO_DROPOUT,
    ),
    "t5_1_1": TransformerConfig(
        family="encoder_decoder", norm="rms_norm", position="relative", activation="gelu_tanh", gated=True,
        biases="none",        attention_scale="none", tied_embeddings=False, initialization="t5", **SIZES, **NO_DROPOUT,
    ),
}  # fmt: skip


class Supervision:
    """What the step needs of an objective, as plain attributes."""

    def __init__(self, heads: dict[str, Head] | None = None, predicts_tokens: bool = True) -> None:
        self.heads, self.predicts_tokens = heads or {}, predicts_tokens
        self.head_dropout = self.token_smoothing = self.z_loss = 0.0
        self.coefficients = {"tokens": 1.0} | dict.fromkeys(self.heads, 1.0)


def supervision_of(name: str) -> Supervision:
    return Supervision({"next_sentence": Head(2)} if name == "bert" else {})


def head_shapes(heads: dict[str, Head]) -> tuple[tuple[str, int, str], ...]:
    """Return heads as a model takes them."""
    return tuple((name, head.size, head.reads) for name, head in heads.items())


def model_of(name: str, **execution: Any) -> Model:
    return Model(CONFIGS[name], Execution(**execution), heads=head_shapes(supervision_of(name).heads))


def params_of(model: Model, seed: int = 0) -> dict[str, Any]:
    """Random parameters of a model, scales of norms around 1: no program is compiled to draw them."""
    draw = np.random.default_rng(seed)
    shapes = flatten(model.shapes)
    leaves = {path: draw.normal(path.endswith("/scale"), 0.2, leaf.shape) for path, leaf in shapes.items()}
    return unflatten({path: jnp.asarray(leaf, jnp.float32) for path, leaf in leaves.items()})


def batch_of(name: str, rows: int = 4, length: int = 10, source: int = 7, seed: int = 0) -> dict[str, Any]:
    """A batch for the family of `name`: two segments a row and some padding, unequal weights."""
    rng = np.random.default_rng(seed)
    config = CONFIGS[name]

    def row(size: int) -> dict[str, np.ndarray]:
        segments = np.tile(np.repeat([1, 2, 0], [size // 2, size - size // 2 - 1, 1]), (rows, 1))
        positions = np.tile(np.concatenate([np.arange(size // 2), np.arange(size - size // 2)]), (rows, 1))
        return {
            "inputs": rng.integers(0, config.vocab_size, (rows, size)),
            "segment_ids": segments,
            "positions": positions,
        }

    batch: dict[str, Any] = row(length)
    if config.family == "encoder_decoder":
        batch |= {f"encoder_{key}": value for key, value in row(source).items()}
    predictions = length
    if config.family == "encoder_only":
        predictions = 3
        batch["predict_positions"] = np.sort(rng.permuted(np.tile(np.arange(length - 1), (rows, 1)), axis=1)[:, :3])
        batch["token_types"] = batch["segment_ids"] // 2
        batch |= {"next_sentence_targets": rng.integers(0, 2, rows), "next_sentence_weights": np.ones(rows)}
    batch["targets"] = rng.integers(0, config.vocab_size, (rows, predictions))
    batch["weights"] = rng.integers(0, 3, (rows, predictions)) / 2.0
    return {
        key: jnp.asarray(value, jnp.float32 if key.endswith("weights") else jnp.int32) for key, value in batch.items()
    }
