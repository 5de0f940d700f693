"""A stack of layers with its inputs: embedded rows go in, final hidden states come out.

Training calls the stack; generation goes through `start` and `decode`, over a cache and with unstacked layers.

Shape suffixes: B batch, T length of the stack's own row, S length of the row attended to, D d_model, H heads, L layers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.devices import constrain
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.implementations import Choice, choose, wanted_by
from jaxformer.models.layers import Block, Inputs, LayerCache, Norm, Reads, dropout, initializer
from jaxformer.models.positions import relative_buckets, rotations
from jaxformer.models.products import PRODUCT
from jaxformer.models.sight import Sight, taking_turns, visibility_mask

REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


class Cache(NamedTuple):
    """What decoding knows of rows of S places: keys and values per layer, and what the masks are made of."""

    layers: list[LayerCache]
    segment_ids_BS: jax.Array  # 0 is padding; places that are not written yet count, too: causality hides them
    prefix_length_B: jax.Array | None = None
    context_segment_ids_BS: jax.Array | None = None


class Beams(NamedTuple):
    """T continuations of each row of a cache, which stand at one place of it: they share what is before they part, and
    each reads its own entries behind that."""

    place: jax.Array  # at which they stand
    places_S: jax.Array  # of the cache's entries, T of them for each place at which they stood
    seen_BTS: jax.Array  # bool: the entries of each one's own past, itself included


def layer_of(layers: Any, number: int | jax.Array) -> Any:
    """Return one layer's part of a tree whose arrays have a leading layer axis."""
    return jax.tree.map(lambda leaf: leaf[number], layers)


def layers_of(layers: Any, count: int) -> list[Any]:
    """Return all layers' parts of such a tree, to be differentiated: their gradients are put together once.

    Those of `layer_of` would be added up, each within a whole stack of zeros: work that grows with the square of depth.
    """
    leaves, structure = jax.tree.flatten(layers)
    parts = zip(*(jax.lax.split(leaf, (1,) * count) for leaf in leaves), strict=True)
    return [jax.tree.unflatten(structure, [jnp.squeeze(leaf, 0) for leaf in part]) for part in parts]


class Stack(nn.Module):
    """Layers stored stacked (one leading layer axis) and executed by scan, partly unrolled, or unrolled.

    Hidden states go in embedded and come out after the final norm (pre-norm models).
    """

    config: TransformerConfig
    execution: Execution
    visibility: str
    cross: bool = False

    def setup(self) -> None:
        config = self.config
        self.inputs = Inputs(config, self.execution)
        if config.position == "relative":
            shape = (config.relative_buckets, config.num_heads)
            self.relative_bias = self.param("relative_bias", initializer(config, "relative_bias"), shape)
        if config.norm_placement == "pre":
            self.final_norm = Norm(config)

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
        collect: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Return the final hidden states [B, T, D]; with `collect` the first layer's input and every layer's output
        [L + 1, B, T, D]."""
        config, execution = self.config, self.execution
        layers = self.param("layers", self._init_layers)
        x_BTD = self._embedded(x_BTD, positions_BT, token_types_BT)
        if self.is_initializing():  # the layers are there; what they would compute, nobody reads
            return self._final(x_BTD), None
        reads = self._reads(
            positions_BT,
            segment_ids_BT,
            segment_ids_BT,
            prefix_length_B=prefix_length_B,
            context_BSD=context_BSD,
            context_segment_ids_BS=context_segment_ids_BS,
        )
        reads = {banded: _written_down(read) for banded, read in reads.items()}
        block = self._block()
        rngs = jax.random.split(self.make_rng("dropout"), config.num_layers) if self.has_rng("dropout") else None

        def body(kind: bool | None, x: jax.Array, scanned: Any) -> tuple[jax.Array, jax.Array | None]:
            layer, rng, banded = scanned
            if kind is None:  # both take turns in one loop
                read = reads[False]._replace(sight=taking_turns(banded, reads[True].sight, reads[False].sight))
            else:
                read = reads[kind]
            y = block.apply({"params": layer}, x, read, rngs=None if rng is None else {"dropout": rng})
            return y, y if collect else None

        def layer_of_kind(kind: bool | None) -> Callable[..., Any]:
            one = functools.partial(body, kind)
            if execution.remat == "none":
                return one
            return jax.checkpoint(one, policy=REMAT_POLICIES[execution.remat], prevent_cse=execution.unroll != 1)

        embedded, scanned = x_BTD, (layers, rngs, jnp.array(config.banded_layers))
        if execution.unroll == 0 or execution.unroll >= config.num_layers:  # a source encoder may be the shallower one
            outputs = []
            for banded, layer in zip(config.banded_layers, layers_of(scanned, config.num_layers), strict=True):
                x_BTD, output = layer_of_kind(banded)(x_BTD, layer)
                outputs.append(output)
            outputs_LBTD = jnp.stack(outputs) if collect else None
        else:
            one = layer_of_kind(next(iter(reads)) if len(reads) == 1 else None)
            x_BTD, outputs_LBTD = jax.lax.scan(one, x_BTD, scanned, unroll=execution.unroll)
        if collect:
            outputs_LBTD = jnp.concatenate([embedded[None], outputs_LBTD])
        return self._final(x_BTD), outputs_LBTD

    def start(
        self,
        segment_ids_BS: jax.Array,
        *,
        prefix_length_B: jax.Array | None = None,
        context_BSD: jax.Array | None = None,
        context_segment_ids_BS: jax.Array | None = None,
    ) -> Cache:
        """Return an empty cache for rows of S places; the layers are unstacked (`Model.unstacked`)."""
        num_rows, places = segment_ids_BS.shape
        shape = (num_rows, self.config.num_heads, places, self.config.head_dim)
        layers: list[Any] = self.get_variable("params", "layers")
        block, entries = self._block(), []
        for layer in layers:
            entry = {name: jnp.zeros(shape, self.execution.dtype) for name in ("key", "value")}
            if self.cross:
                keys, values = block.apply({"params": layer}, context_BSD, method="cross_keys_values")
                entry |= {"cross_key": keys, "cross_value": values}
            entries.append(entry)
        return Cache(entries, segment_ids_BS, prefix_length_B, context_segment_ids_BS)

    def decode(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        cache: Cache,
        index: jax.Array | int,
        beams: Beams | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Return the final hidden states [B, T, D] of a row, or of T beams, whose entries begin at `index` in the
        cache, and the cache with them; the layers are unstacked (`Model.unstacked`)."""
        x_BTD = self._embedded(x_BTD, positions_BT, None)
        reads = self._reads(
            positions_BT,
            segment_ids_BT,
            cache.segment_ids_BS,
            index=index,
            beams=beams,
            decoding=True,
            prefix_length_B=cache.prefix_length_B,
            context_segment_ids_BS=cache.context_segment_ids_BS,
        )
        layers: list[Any] = self.get_variable("params", "layers")
        block, written = self._block(), []
        for layer, entry, banded in zip(layers, cache.layers, self.config.banded_layers, strict=True):
            x_BTD, entry = block.apply({"params": layer}, x_BTD, reads[banded], entry, index, method="decode")
            written.append(entry)
        return self._final(x_BTD), cache._replace(layers=written)

    def _init_layers(self, rng: jax.Array) -> Any:
        keys = jax.random.split(rng, self.config.num_layers)
        x_BTD, ones = jnp.zeros((1, 1, self.config.d_model)), jnp.ones((1, 1), jnp.int32)
        sight = Sight("einsum", ones, ones, mask_B1TS=jnp.ones((1, 1, 1, 1), bool))
        reads = Reads(sight, context_BSD=x_BTD, context_sight=sight)  # the shapes do not matter
        return jax.vmap(lambda key: self._block().init(key, x_BTD, reads)["params"])(keys)

    @nn.nowrap
    def _block(self) -> Any:  # a Block; Flax types what `apply` returns too widely
        """Return a layer as functions of its weights, which stand in the stack's parameters."""
        return Block(self.config, self.execution, self.cross, parent=None)

    def _embedded(self, x_BTD: jax.Array, positions_BT: jax.Array, token_types_BT: jax.Array | None) -> jax.Array:
        x_BTD = self.inputs(x_BTD, positions_BT, token_types_BT)
        return constrain(x_BTD, self.execution.mesh, ("batch", "", ""))

    def _reads(
        self,
        positions_BT: jax.Array,
        segment_ids_BT: jax.Array,
        key_segments_BS: jax.Array,
        *,
        index: jax.Array | int = 0,
        beams: Beams | None = None,
        decoding: bool = False,
        prefix_length_B: jax.Array | None = None,
        context_BSD: jax.Array | None = None,
        context_segment_ids_BS: jax.Array | None = None,
    ) -> dict[bool, Reads]:
        """Return what banded layers (True) and dense ones (False) read, whichever the model has."""
        config = self.config
        places_T, places_S = index + jnp.arange(segment_ids_BT.shape[1]), jnp.arange(key_segments_BS.shape[1])
        if beams is not None:
            places_T, places_S = jnp.full(segment_ids_BT.shape[1], beams.place), beams.places_S
        sights = {
            banded: _sight(
                self._choice(segment_ids_BT, banded=banded, decoding=decoding),
                segment_ids_BT,
                key_segments_BS,
                places_T,
                places_S,
                prefix_length_B,
            )
            for banded in set(config.banded_layers)
        }
        if beams is not None:
            sights = {
                banded: sight._replace(mask_B1TS=sight.mask_B1TS & beams.seen_BTS[:, None])
                for banded, sight in sights.items()
            }
        context_sight, rotation = None, None
        if self.cross:
            choice = self._choice(segment_ids_BT, context_segment_ids_BS, decoding=decoding)
            context_sight = _sight(choice, segment_ids_BT, context_segment_ids_BS)
        bias_1HTS = self._position_bias(places_T, places_S)
        if config.position == "rotary":
            rotation = rotations(positions_BT, config.head_dim, config.rotary_base)
        return {
            banded: Reads(sight, bias_1HTS, rotation, context_BSD, context_sight) for banded, sight in sights.items()
        }

    def _choice(self, segments_BT: jax.Array, context_segments_BS: jax.Array | None = None, **kind: bool) -> Choice:
        """Return the implementation of self-attention or, given a context, of cross-attention."""
        queries, keys = segments_BT.shape[1], None if context_segments_BS is None else context_segments_BS.shape[1]
        wanted = wanted_by(self.config, self.execution, self.visibility, queries, keys, **kind)
        return choose(self.execution.attention, wanted)

    def _position_bias(self, places_T: jax.Array, places_S: jax.Array) -> jax.Array | None:
        """Return T5's position bias [1, H, T, S]: one table per stack, added to the logits of every layer."""
        config = self.config
        if config.position != "relative":
            return None
        relative_TS = places_S[None, :] - places_T[:, None]
        buckets_TS = relative_buckets(
            relative_TS,
            bidirectional=self.visibility != "causal",  # of a prefix, too (T5, section 3.2.1)
            num_buckets=config.relative_buckets,
            max_distance=config.relative_max_distance,
        )
        return jnp.moveaxis(self.relative_bias[buckets_TS], -1, 0)[None]

    def _final(self, x_BTD: jax.Array) -> jax.Array:
        if self.config.norm_placement == "pre":
            x_BTD = self.final_norm(x_BTD)
        return dropout(self, x_BTD, self.config.final_dropout)


def _sight(
    choice: Choice, query_segments_BT: jax.Array, key_segments_BS: jax.Array, places_T: jax.Array | None = None,
    places_S: jax.Array | None = None, prefix_length_B: jax.Array | None = None,
) -> Sight:  # fmt: skip
    """Return who sees whom, with a mask where the implementation reads one."""
    wanted, mask_B1TS = choice.wanted, None
    if choice.reads_mask:
        mask_B1TS = visibility_mask(
            query_segments_BT,
            key_segments_BS,
            visibility=wanted.visibility,
            query_places_T=places_T,
            key_places_S=places_S,
            window=wanted.window,
            prefix_length_B=prefix_length_B,
        )
    # Places of a cache are not those of a row: what of it nobody sees, only the mask knows.
    visibility, window = ("full", None) if wanted.decoding else (wanted.visibility, wanted.window)
    return Sight(choice.name, query_segments_BT, key_segments_BS, visibility, window, mask_B1TS)


def _written_down(reads: Reads) -> Reads:
    """Return what layers read, its masks written down once, or XLA:CPU compares segments and places again in every
    layer's exponentials, one by one."""

    def written(sight: Any) -> Any:
        return sight and sight._replace(mask_B1TS=jax.lax.optimization_barrier(sight.mask_B1TS))

    return reads._replace(sight=written(reads.sight), context_sight=written(reads.context_sight))
