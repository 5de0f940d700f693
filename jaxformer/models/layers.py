"""The body that all three families share: embeddings, attention, feed-forward, block, and a stack of blocks.

Shape suffixes: B batch, T length of the stack's own row, S length of the row attended to, D d_model, F d_ff, H heads,
K head size, L layers. Kernels are 2-D per layer, as in the papers; a stack holds them with a leading layer axis.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.models.attention import attend, relative_buckets, visibility_mask
from jaxformer.models.config import Execution, TransformerConfig

Initializer = Callable[..., jax.Array]
Cache = dict[str, Any]  # {"layers": [per layer {"key", "value", "cross_key", "cross_value"}], "segment_ids": [B, S]}

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "tanh": jnp.tanh,
}

REMAT_POLICIES: dict[str, Any] = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def initializer(config: TransformerConfig, kind: str) -> Initializer:
    """Return the initialiser of one kind of kernel or table under the config's scheme (biases 0 and scales 1 always).

    | scheme | rule |
    | --- | --- |
    | gpt | N(0, 0.02) |
    | gpt2 | N(0, 0.02); positions N(0, 0.01); output projections of the residual sublayers x 1/sqrt(2 num_layers) |
    | bert | N(0, 0.02) cut at two standard deviations |
    | transformer | Glorot uniform; embeddings N(0, d_model^-0.5) |
    | t5 | N(0, fan_in^-0.5), queries also x head_dim^-0.5; embeddings and untied softmax N(0, 1) |
    """
    normal = nn.initializers.normal
    scheme, d_model = config.initialization, config.d_model
    if scheme == "bert":
        return nn.initializers.truncated_normal(0.02)
    if scheme == "transformer":
        embeds = kind in ("embedding", "position", "token_type", "relative_bias")
        return normal(d_model**-0.5) if embeds else nn.initializers.glorot_uniform()
    if scheme == "t5":
        inner = config.num_heads * config.head_dim
        deviations = {
            "embedding": 1.0,
            "softmax": 1.0,
            "query": (d_model * config.head_dim) ** -0.5,
            "attention_output": inner**-0.5,
            "feed_forward_output": config.d_ff**-0.5,
        }
        return normal(deviations[kind] if kind in deviations else d_model**-0.5)
    if scheme == "gpt2" and kind == "position":
        return normal(0.01)
    if scheme == "gpt2" and kind in ("attention_output", "feed_forward_output"):
        return normal(0.02 / math.sqrt(2 * config.num_layers))
    return normal(0.02)


class Norm(nn.Module):
    """Layer norm, or T5's RMS norm (scale only), computed in float32."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x = x_BTD.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        if self.config.norm == "rms_norm":
            normed = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.config.norm_epsilon)
            return _scaled(normed, scale).astype(x_BTD.dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.config.norm_epsilon)
        return (_scaled(normed, scale) + jnp.expand_dims(bias, range(x.ndim - 1))).astype(x_BTD.dtype)


def _scaled(x: jax.Array, scale_D: jax.Array) -> jax.Array:
    return x * jnp.expand_dims(scale_D, range(x.ndim - 1))


class Linear(nn.Module):
    """x W (+ b), W [in, out] float32, cast to the dtype of x."""

    config: TransformerConfig
    features: int
    kind: str
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", initializer(self.config, self.kind), (x.shape[-1], self.features))
        y = x @ kernel.astype(x.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - 1))
        return y


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Drop entries of x when the module was given a dropout rng, that is in training."""
    if rate == 0.0 or not module.has_rng("dropout"):
        return x
    keep = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


class Attention(nn.Module):
    """Multi-head attention; self or cross is which keys and values it is given, causality is the mask."""

    config: TransformerConfig
    execution: Execution

    def setup(self) -> None:
        config, inner = self.config, self.config.num_heads * self.config.head_dim
        bias = config.biases == "all"
        self.query = Linear(config, inner, "query", bias)
        self.key = Linear(config, inner, "key", bias)
        self.value = Linear(config, inner, "value", bias)
        self.output = Linear(config, config.d_model, "attention_output", bias)

    def keys_values(self, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the keys and values of a row, each [B, S, H, K]."""
        return self._heads(self.key(x_BSD)), self._heads(self.value(x_BSD))

    def __call__(
        self,
        x_BTD: jax.Array,
        k_BSHK: jax.Array,
        v_BSHK: jax.Array,
        mask_B1TS: jax.Array,
        bias_1HTS: jax.Array | None,
    ) -> jax.Array:
        config = self.config
        trains = config.attention_dropout > 0.0 and self.has_rng("dropout")
        y_BTHK = attend(
            self._heads(self.query(x_BTD)),
            k_BSHK,
            v_BSHK,
            mask_B1TS,
            bias_1HTS,
            scale=1.0 if config.attention_scale == "none" else config.head_dim**-0.5,
            dropout=config.attention_dropout,
            dropout_rng=self.make_rng("dropout") if trains else None,
            implementation=self.execution.attention,
        )
        return self.output(y_BTHK.reshape(*x_BTD.shape[:2], -1))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)


class FeedForward(nn.Module):
    """Position-wise feed-forward: act(x W) V, or act(x W) * (x U) V when gated."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config = self.config
        bias = config.biases != "none"
        h_BTF = Linear(config, config.d_ff, "feed_forward_input", bias, name="input")(x_BTD)
        h_BTF = ACTIVATIONS[config.activation](h_BTF)
        if config.gated:
            h_BTF = h_BTF * Linear(config, config.d_ff, "feed_forward_input", bias, name="gate")(x_BTD)
        h_BTF = dropout(self, h_BTF, config.hidden_dropout)
        return Linear(config, config.d_model, "feed_forward_output", bias, name="output")(h_BTF)


class Block(nn.Module):
    """One layer: self-attention, cross-attention where there is a context, feed-forward, each with its residual."""

    config: TransformerConfig
    execution: Execution
    cross: bool

    def setup(self) -> None:
        self.attention = Attention(self.config, self.execution)
        self.attention_norm = Norm(self.config)
        if self.cross:
            self.cross_attention = Attention(self.config, self.execution)
            self.cross_attention_norm = Norm(self.config)
        self.feed_forward = FeedForward(self.config)
        self.feed_forward_norm = Norm(self.config)

    def _residual(self, x_BTD: jax.Array, norm: Norm, sublayer: Callable[[jax.Array], jax.Array]) -> jax.Array:
        if self.config.norm_placement == "pre":
            x_BTD = x_BTD + dropout(self, sublayer(norm(x_BTD)), self.config.dropout)
        else:
            x_BTD = norm(x_BTD + dropout(self, sublayer(x_BTD), self.config.dropout))
        # Without the barrier XLA:CPU recomputes the residual sums of all layers below in every backward fusion.
        return jax.lax.optimization_barrier(x_BTD)

    def __call__(
        self,
        x_BTD: jax.Array,
        mask_B1TS: jax.Array,
        bias_1HTS: jax.Array | None = None,
        context_BSD: jax.Array | None = None,
        cross_mask_B1TS: jax.Array | None = None,
        cache: dict[str, jax.Array] | None = None,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, dict[str, jax.Array] | None]:
        """Return the layer's output [B, T, D] and, with a cache, this row's keys and values put in at `index`."""
        written: dict[str, jax.Array] = {}

        def self_attention(h_BTD: jax.Array) -> jax.Array:
            k, v = self.attention.keys_values(h_BTD)
            if cache is not None:
                k = jax.lax.dynamic_update_slice_in_dim(cache["key"], k.astype(cache["key"].dtype), index, axis=1)
                v = jax.lax.dynamic_update_slice_in_dim(cache["value"], v.astype(cache["value"].dtype), index, axis=1)
                written.update(key=k, value=v)
            return self.attention(h_BTD, k, v, mask_B1TS, bias_1HTS)

        def cross_attention(h_BTD: jax.Array) -> jax.Array:
            if cache is None:
                k, v = self.cross_attention.keys_values(context_BSD)
            else:
                k, v = cache["cross_key"], cache["cross_value"]
                written.update(cross_key=k, cross_value=v)
            return self.cross_attention(h_BTD, k, v, cross_mask_B1TS, None)

        x_BTD = self._residual(x_BTD, self.attention_norm, self_attention)
        if self.cross:
            x_BTD = self._residual(x_BTD, self.cross_attention_norm, cross_attention)
        x_BTD = self._residual(x_BTD, self.feed_forward_norm, self.feed_forward)
        return x_BTD, written if cache is not None else None

    def cross_keys_values(self, context_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the keys and values of the context for this layer, computed once per generation."""
        return self.cross_attention.keys_values(context_BSD)


def sinusoids(positions_BT: jax.Array, d_model: int) -> jax.Array:
    """Return [B, T, D]: sines then cosines, exponents 2i/d (Transformer, section 3.5; concatenated as in Marian)."""
    frequencies = 10000.0 ** (-2.0 * jnp.arange(d_model // 2) / d_model)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies[None, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Inputs(nn.Module):
    """What enters a stack: token embeddings (given), positions, token types, norm and dropout."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array, token_types_BT: jax.Array | None) -> jax.Array:
        config = self.config
        if config.embedding_scale == "sqrt_d_model":
            x_BTD = x_BTD * math.sqrt(config.d_model)
        if config.position == "learned":
            table = self.param("positions", initializer(config, "position"), (config.max_length, config.d_model))
            x_BTD = x_BTD + table[positions_BT].astype(x_BTD.dtype)
        elif config.position == "sinusoidal":
            x_BTD = x_BTD + sinusoids(positions_BT, config.d_model).astype(x_BTD.dtype)
        if config.token_types:
            table = self.param("token_types", initializer(config, "token_type"), (config.token_types, config.d_model))
            types = jnp.zeros_like(positions_BT) if token_types_BT is None else token_types_BT
            x_BTD = x_BTD + table[types].astype(x_BTD.dtype)
        if config.embedding_norm:
            x_BTD = Norm(config, name="norm")(x_BTD)
        return dropout(self, x_BTD, config.dropout)


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
        x_BTD = Inputs(config, name="inputs")(x_BTD, positions_BT, token_types_BT)

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

        def init_layers(rng: jax.Array) -> Any:
            keys = jax.random.split(rng, config.num_layers)
            context = jnp.zeros_like(x_BTD) if self.cross else None
            mask = jnp.ones((1, 1, 1, 1), bool)
            return jax.vmap(lambda key: block.init(key, x_BTD, mask, None, context, mask)["params"])(keys)

        layers = self.param("layers", init_layers)
        drops = self.has_rng("dropout")
        rngs = jax.random.split(self.make_rng("dropout"), config.num_layers) if drops else None

        def run(x: jax.Array, layer: Any, mask: jax.Array, rng: jax.Array | None, layer_cache: Any = None) -> Any:
            return block.apply(
                {"params": layer}, x, mask, bias_1HTS, context_BSD, cross_mask, layer_cache, index,
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
            bidirectional=self.visibility == "full",
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
