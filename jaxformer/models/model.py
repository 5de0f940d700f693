"""`Model`: a family as a handful of pure functions. The rest of the house sees nothing else of flax."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.families import FAMILIES, Batch, Family
from jaxformer.models.heads import HeadShape
from jaxformer.models.stack import Beams, Cache, layer_of

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model as pure functions of its parameters, a plain nested dict of float32 arrays.

    `heads` are (name, size, what it reads): "row", the state at one position; "choices", one score for each of several
    texts; "sum", the added states of several texts; "tokens", every state. `predicts_tokens` says whether the model has
    a vocabulary projection.
    """

    config: TransformerConfig
    execution: Execution = Execution()
    heads: tuple[HeadShape, ...] = ()
    head_dropout: float = 0.0
    predicts_tokens: bool = True

    @functools.cached_property
    def module(self) -> Any:  # a Family; Flax types what `apply` returns too widely
        family: type[Family] = FAMILIES[self.config.family]
        return family(self.config, self.execution, self.heads, self.head_dropout, self.predicts_tokens)

    @functools.cached_property
    def shapes(self) -> Params:
        """The parameters' shapes and dtypes; allocates nothing."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def init(self, rng: jax.Array, batch: Batch | None = None) -> Params:
        """Return fresh parameters. Their values do not depend on the batch; its shapes are only needed for tracing."""
        return self.module.init(rng, example_batch(self) if batch is None else batch)["params"]

    def apply(
        self, params: Params, batch: Batch, rngs: Mapping[str, jax.Array] | None = None, collect: tuple[str, ...] = ()
    ) -> dict[str, jax.Array]:
        """Return the hidden states at the positions to predict ("hidden"), each head's logits by its name, and what
        `collect` names ("encoder", "decoder": every layer's hidden states). Dropout acts when `rngs` has "dropout"."""
        return self.module.apply({"params": params}, batch, collect, rngs=rngs)

    def states(self, params: Params, batch: Batch, layer: int) -> jax.Array:
        """Return the hidden states [B, S, D] of a layer of the stack that reads a text: the only one, or the encoder,
        for which a batch need hold nothing else. 0 is the first layer's input, num_layers the last layer's output,
        after the final norm where there is one."""
        return self.module.apply({"params": params}, batch, layer, method="states")

    def project(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Return float32 logits [..., stored_vocab_size] of hidden states [..., D]."""
        return self.module.apply({"params": params}, hidden, method="project")

    def unstacked(self, params: Params) -> Params:
        """Return the parameters as `start`, `decode` and `project` take them when the model decodes: the decoder's
        layers are a list, weights by layer; the kernels of these and of the vocabulary are "transposed", in the dtype
        of activations, those of queries, keys and values stacked.

        To be done once, before the first token: a loop that takes the weights out of their stack copies all of them at
        every token. They are copies: the decoder's layers are in memory twice.
        """
        decoder, dtype = params["decoder"], self.execution.dtype
        layers = [_decoding_layer(decoder["layers"], number, dtype) for number in range(self.config.num_layers)]
        vocabulary = _transposed(params.get("vocabulary", {}), dtype)
        if self.config.tied_embeddings:
            vocabulary["transposed"] = params["embedding"]["tokens"].astype(dtype)
        return {**params, "decoder": {**decoder, "layers": layers}, "vocabulary": vocabulary}

    def start(self, unstacked: Params, batch: Batch, segment_ids_BS: jax.Array) -> Cache:
        """Return an empty decoding cache for rows of S places, after running the encoder where there is one."""
        return self.module.apply({"params": unstacked}, batch, segment_ids_BS, method="start")

    def decode(
        self,
        unstacked: Params,
        cache: Cache,
        inputs: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        index: jax.Array | int,
        beams: Beams | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Return the hidden states [B, T, D] of `inputs` [B, T], whose entries in the cache are those from `index` on,
        and the cache with them. They are T tokens of each row, or one token of each of T `beams`."""
        return self.module.apply(
            {"params": unstacked}, cache, inputs, positions, segment_ids, index, beams, method="decode"
        )


def cache_bytes(model: Model, rows: int, places: int, context: int = 0) -> int:
    """Return the size of the keys and values of a decoding cache: 2 x layers x d_model of heads, for each place of each
    row, and for each place of an encoder's row of length `context`. Beams need `places` for the prompt once, and for
    every new token of each of them."""
    config = model.config
    read = places + (context if config.family == "encoder_decoder" else 0)
    size = jnp.dtype(model.execution.dtype).itemsize
    return 2 * config.num_layers * config.num_heads * config.head_dim * rows * read * size


@functools.partial(jax.jit, static_argnums=2)
def _decoding_layer(layers: Params, number: jax.Array | int, dtype: Any) -> Params:
    """Return one layer's weights as decoding reads them. A program for each layer in turn: one for all of them takes
    XLA:CPU 2 s to compile at GPT-2's size."""
    layer = _transposed(layer_of(layers, number), dtype)
    attention = layer["attention"]
    parts = [attention.pop(name) for name in ("query", "key", "value")]
    attention["together"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    return layer


def _transposed(params: Mapping[str, Any], dtype: Any) -> Params:
    """Return a tree whose kernels [in, out] are [out, in], by the name "transposed"."""
    swapped: Params = {
        name: _transposed(leaf, dtype) if isinstance(leaf, Mapping) else leaf for name, leaf in params.items()
    }
    if "kernel" in swapped:
        swapped["transposed"] = swapped.pop("kernel").T.astype(dtype)
    return swapped


def example_batch(model: Model) -> dict[str, jax.Array]:
    """Return the smallest batch that the model accepts, all zeros: enough to initialise or to count."""
    zeros = jnp.zeros((1, 1), jnp.int32)
    names = ["inputs", "positions", "segment_ids"]
    if model.config.family == "encoder_decoder":
        names += ["encoder_inputs", "encoder_positions", "encoder_segment_ids"]
    return dict.fromkeys(names, zeros)


def count_parameters(model: Model) -> int:
    """Return the model's exact number of parameters, rows beyond `vocab_size` left out; allocates nothing."""
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.shapes))
    extra = model.config.stored_vocab_size - model.config.vocab_size
    vocabulary = model.shapes.get("vocabulary", {})
    tables = 1 + ("kernel" in vocabulary) + (model.config.source_layers > 0)
    columns = model.config.d_model * tables + ("bias" in vocabulary)
    return total - extra * columns
