"""BART's translation through an encoder in front of it (section 3.4): what it reads, counts, costs, and step by step
trains."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIGS, NO_DROPOUT, SIZES, batch_of

from jaxformer.devices.sharding import placements
from jaxformer.errors import UserError
from jaxformer.interop.configs import find_layout
from jaxformer.models import PRESETS, TransformerConfig
from jaxformer.models.config import Execution
from jaxformer.models.model import Model, count_parameters
from jaxformer.training.flops import flops_per_example
from jaxformer.training.optimizers import freeze
from jaxformer.trees import flatten

BART = TransformerConfig(
    family="encoder_decoder", norm_placement="post", embedding_norm=True, position_offset=2, decoder_start="end",
    source_layers=1, **(SIZES | {"num_layers": 2}), **NO_DROPOUT,
)  # fmt: skip
MODEL = Model(BART, Execution(unroll=1))
# What the first of the paper's two steps trains.
FIRST_STEP = (
    "source_.*", "(encoder|decoder)/inputs/positions", "encoder/layers[0]/attention/(query|key|value)/kernel",
)  # fmt: skip


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(MODEL.init)(jax.random.key(0))


def test_a_source_goes_through_both_encoders_and_the_token_table_knows_nothing_of_it(params: Any) -> None:
    batch = batch_of("t5")
    segments, source_segments = np.array([1] * 5 + [2] * 4 + [0]), np.array([1, 1, 1, 2, 2, 2, 0])

    @jax.jit
    def hidden(params: Any, batch: Any) -> Any:
        found = MODEL.apply(params, batch, collect=("encoder",))
        return found["hidden"], found["encoder"]

    before, read = hidden(params, batch)
    for place in range(7):
        changed = batch["encoder_inputs"].at[0, place].set((batch["encoder_inputs"][0, place] + 1) % 31)
        after, now = hidden(params, batch | {"encoder_inputs": changed})
        told = source_segments == source_segments[place]
        # The first layer already reads what the source encoder made of the whole segment.
        np.testing.assert_array_equal(np.any(read[0, 0] != now[0, 0], axis=-1), told)
        np.testing.assert_array_equal(np.any(before[0] != after[0], axis=-1), segments == source_segments[place])
        assert np.array_equal(before[1:], after[1:])

    other = int(np.setdiff1d(np.arange(31), batch["inputs"])[0])  # of the source alone, if of anything
    for table, tells in (("embedding", False), ("source_embedding", True)):
        tokens = params[table]["tokens"].at[other].set(1.0)
        changed = batch["encoder_inputs"].at[0, 0].set(other)
        one, two = (
            hidden(known, batch | {"encoder_inputs": changed})[0]
            for known in (params, params | {table: {"tokens": tokens}})
        )
        assert bool(np.any(one != two)) is tells, table


def test_the_first_step_trains_the_new_encoder_and_the_way_into_the_old_one() -> None:
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), MODEL.shapes)
    optimizer = freeze(optax.with_extra_args_support(optax.sgd(1.0)), FIRST_STEP, MODEL.shapes)
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    changed = {path: np.asarray(leaf) for path, leaf in flatten(updates).items() if np.any(leaf != 0)}
    way_in = {f"encoder/layers/attention/{name}/kernel" for name in ("query", "key", "value")}
    new = {path for path in flatten(ones) if path.startswith("source_")}
    assert set(changed) == {"encoder/inputs/positions", "decoder/inputs/positions"} | way_in | new
    for path in way_in:
        assert np.all(changed[path][0] != 0) and not changed[path][1:].any(), path


def test_its_parameters_are_counted() -> None:
    base = TransformerConfig(**PRESETS["bart_base"])
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 2 * 2 * 768
    added = 50_265 * 768 + 1026 * 768 + 2 * 768 + 6 * layer
    for multiple in (1, 128):
        config = dataclasses.replace(base, source_layers=6, vocab_multiple=multiple)
        assert count_parameters(Model(config, Execution(unroll=1))) == 139_420_416 + added


def test_its_products_are_counted() -> None:
    def flops(source_layers: int) -> float:
        lengths = {"inputs": 8, "encoder_inputs": 16, "targets": 8}
        return flops_per_example(
            family="encoder_decoder", d_model=4, d_ff=6, num_heads=2, head_dim=2, num_layers=3, vocab_size=10,
            gated=False, transform=False, lengths=lengths, source_layers=source_layers,
        )  # fmt: skip

    # Of each token of a layer twice its weights and its scores, once forward and twice backward.
    layer = 3 * 16 * (2 * (4 * 4 * 4 + 2 * 4 * 6) + 2 * 2 * 16 * 4)
    assert flops(5) - flops(0) == 5 * layer


def test_it_is_placed_as_its_neighbours_are() -> None:
    model = Model(dataclasses.replace(BART, vocab_size=32), Execution(unroll=1))
    placed = placements(model.shapes, {"data": 1, "fsdp": 2, "tensor": 2}, BART.head_dim)
    for path, placement in placed.items():
        if path.startswith("source_"):
            assert placement == placed[path.removeprefix("source_")], path


def test_what_has_no_encoder_to_stand_before_is_refused() -> None:
    for name in ("gpt", "bert"):
        with pytest.raises(UserError, match="model.source_layers: 2, but the model is .*only an encoder_decoder"):
            dataclasses.replace(CONFIGS[name], source_layers=2)
    with pytest.raises(UserError, match="model.source_layers: -1 must be at least 0"):
        dataclasses.replace(BART, source_layers=-1)
    with pytest.raises(UserError, match="the nearest is bart, but model.source_layers is 2, not 0"):
        find_layout(dataclasses.replace(BART, source_layers=2, pooler="dropout_tanh"), ("tokens",))
