"""A stack of layers with its inputs: embedded rows go in, final hidden states come out.

Shape suffixes: B batch, T length of the stack's own row, S length of the row attended to, D d_model, H heads, L layers.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.devices import constrain
from jaxformer.models.attention import visibility_mask
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.layers import Block, Inputs, Norm, dropout, initializer
from jaxformer.models.positions import relative_buckets, rotations

Cache = dict[str, Any]  # {"layers": [per layer {"key", "value", "cross_key", "cross_value"}], "segment_ids": [B, S]}

REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Stack(nn.Module):
    """Layers stored stacked (one leading layer axis) and executed by scan, partly unrolled, or unrolled.

    Hidden states go in embedded and come out after the final norm (pre-norm models).
    """

    config: TransformerConfig
    execution: Execution
    visibility: str
    cross: bool = False

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        *,
        token_types_BT: jax.Array | None = None,
        prefix_length_B: jax.Array | None = None,
        context_BSD: jax.Array | None = None,
        context_segment_ids_BS: jax.Array | None = None,
        cache: Cache | None = None,
        index: jax.Array | int = 0,
        collect: bool = False,
    ) -> tuple[jax.Array, jax.Array | None, Cache | None]:
        """Return the final hidden states [B, T, D]; with `collect` the first layer's input and every layer's output
        [L + 1, B, T, D]; and the cache.

        With a cache (generation) the keys are the cache's row and `index` is where this row starts in it.
        """
        config, execution = self.config, self.execution
        block = Block(config, execution, self.cross, parent=None)
        x_BTD = Inputs(config, execution, name="inputs")(x_BTD, positions_BT, token_types_BT)
        x_BTD = constrain(x_BTD, execution.mesh, ("batch", "", ""))

        key_segments_BS = segment_ids_BT if cache is None else cache["segment_ids"]
        masks = {
            banded: visibility_mask(
                segment_ids_BT,
                key_segments_BS,
                visibility=self.visibility,
                first_query=index,
                window=config.attention_window if banded else None,
                prefix_length_B=prefix_length_B,
            )
            for banded in set(config.banded_layers)
        }
        cross_mask = None
        if self.cross:
            cross_mask = visibility_mask(segment_ids_BT, context_segment_ids_BS, visibility="full")
        bias_1HTS = self._relative_bias(x_BTD.shape[1], key_segments_BS.shape[1], index)
        rotary = config.position == "rotary"
        rotation = rotations(positions_BT, config.head_dim, config.rotary_base) if rotary else None

        def init_layers(rng: jax.Array) -> Any:
            keys = jax.random.split(rng, config.num_layers)
            context = jnp.zeros_like(x_BTD) if self.cross else None
            mask = jnp.ones((1, 1, 1, 1), bool)
            return jax.vmap(lambda key: block.init(key, x_BTD, mask, None, None, context, mask)["params"])(keys)

        layers = self.param("layers", init_layers)
        drops = self.has_rng("dropout")
        rngs = jax.random.split(self.make_rng("dropout"), config.num_layers) if drops else None

        def run(x: jax.Array, layer: Any, mask: jax.Array, rng: jax.Array | None, layer_cache: Any = None) -> Any:
            return block.apply(
                {"params": layer}, x, mask, bias_1HTS, rotation, context_BSD, cross_mask, layer_cache, index,
                rngs=None if rng is None else {"dropout": rng},
            )  # fmt: skip

        if cache is not None:
            written = []
            for i in range(config.num_layers):
                layer = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
                x_BTD, layer_cache = run(x_BTD, layer, masks[config.banded_layers[i]], None, cache["layers"][i])
                written.append(layer_cache)
            return self._final(x_BTD), None, {**cache, "layers": written}

        def body(x: jax.Array, scanned: Any) -> tuple[jax.Array, jax.Array | None]:
            layer, rng, banded = scanned
            both = len(masks) == 2
            mask = jnp.where(banded, masks[True], masks[False]) if both else next(iter(masks.values()))
            y, _ = run(x, layer, mask, rng)
            return y, y if collect else None

        if execution.remat != "none":
            body = jax.checkpoint(body, policy=REMAT_POLICIES[execution.remat], prevent_cse=execution.unroll != 1)
        embedded, scanned = x_BTD, (layers, rngs, jnp.array(config.banded_layers))
        if execution.unroll in (0, config.num_layers):
            outputs = []
            for i in range(config.num_layers):
                x_BTD, output = body(x_BTD, jax.tree.map(lambda leaf, i=i: leaf[i], scanned))
                outputs.append(output)
            outputs_LBTD = jnp.stack(outputs) if collect else None
        else:
            x_BTD, outputs_LBTD = jax.lax.scan(body, x_BTD, scanned, unroll=execution.unroll)
        if collect:
            outputs_LBTD = jnp.concatenate([embedded[None], outputs_LBTD])
        return self._final(x_BTD), outputs_LBTD, None

    def _relative_bias(self, num_queries: int, num_keys: int, index: jax.Array | int) -> jax.Array | None:
        """Return T5's position bias [1, H, T, S]: one table per stack, added to the logits of every layer."""
        config = self.config
        if config.position != "relative":
            return None
        table_NH = self.param(
            "relative_bias", initializer(config, "relative_bias"), (config.relative_buckets, config.num_heads)
        )
        relative_TS = jnp.arange(num_keys)[None, :] - (index + jnp.arange(num_queries)[:, None])
        buckets_TS = relative_buckets(
            relative_TS,
            bidirectional=self.visibility != "causal",  # of a prefix, too (T5, section 3.2.1)
            num_buckets=config.relative_buckets,
            max_distance=config.relative_max_distance,
        )
        return jnp.moveaxis(table_NH[buckets_TS], -1, 0)[None]

    def _final(self, x_BTD: jax.Array) -> jax.Array:
        if self.config.norm_placement == "pre":
            x_BTD = Norm(self.config, name="final_norm")(x_BTD)
        return dropout(self, x_BTD, self.config.final_dropout)

    @nn.nowrap
    def start_cache(
        self, layers: Any, segment_ids_BS: jax.Array, dtype: Any, context_BSD: jax.Array | None = None
    ) -> Cache:
        """Return an empty cache, one entry per layer, for rows of S places of which segment 0 is padding."""
        config = self.config
        shape = (*segment_ids_BS.shape, config.num_heads, config.head_dim)
        block = Block(config, self.execution, self.cross, parent=None)
        entries = []
        for i in range(config.num_layers):
            entry: dict[str, Any] = {"key": jnp.zeros(shape, dtype), "value": jnp.zeros(shape, dtype)}
            if self.cross:
                layer = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
                keys, values = block.apply({"params": layer}, context_BSD, method="cross_keys_values")
                entry.update(cross_key=keys, cross_value=values)
            entries.append(entry)
        return {"layers": entries, "segment_ids": segment_ids_BS}
