"""What all three families are made of: norm, linear map, attention, feed-forward, block, and what enters a stack.

Shape suffixes: B batch, T length of the stack's own row, S length of the row attended to, D d_model, F d_ff, H heads,
K head size. Kernels are 2-D per layer, as in the papers; a stack holds them with a leading layer axis.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.devices import constrain
from jaxformer.models.attention import attend, attend_few, wide
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.dropout import kept
from jaxformer.models.positions import Rotation, rotated, sinusoids
from jaxformer.models.products import product, transposed_product
from jaxformer.models.sight import Sight, Turns

Initializer = Callable[..., jax.Array]
Sublayer = Callable[[jax.Array], jax.Array]
LayerCache = dict[str, jax.Array]  # "key", "value" [B, H, S, K]; of the context, too: "cross_key", "cross_value"

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


def initializer(config: TransformerConfig, kind: str) -> Initializer:
    """Return the initialiser of one kind of kernel or table under the config's scheme (biases 0 and scales 1 always).

    | scheme | rule |
    | --- | --- |
    | gpt | N(0, 0.02) |
    | gpt2 | N(0, 0.02); positions N(0, 0.01); output projections of the residual sublayers x 1/sqrt(2 num_layers) |
    | bert | N(0, 0.02) cut at two standard deviations |
    | transformer | Glorot uniform; embeddings N(0, d_model^-0.5) |
    | t5 | N(0, fan_in^-0.5), queries also x head_dim^-0.5; relative biases N(0, d_model^-0.5); embeddings N(0, 1) |

    T5's code cuts the normals of its feed-forward kernels at two deviations; ours, like Hugging Face's, does not.
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
    """Layer norm, or T5's RMS norm (scale only), computed in float32 at least."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x = x_BTD.astype(wide(x_BTD.dtype))
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


# Up to so many queries XLA:CPU attends faster by sums than by products of matrices.
FEW_QUERIES = 32


class Linear(nn.Module):
    """x W (+ b), W [in, out] float32, cast to the dtype of x."""

    config: TransformerConfig
    features: int
    kind: str
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.has_variable("params", "transposed"):  # it decodes: Model.unstacked
            y = transposed_product(x, self.get_variable("params", "transposed")).astype(x.dtype)
        else:
            kernel = self.param("kernel", initializer(self.config, self.kind), (x.shape[-1], self.features))
            y = product(x, kernel.astype(x.dtype))
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - 1))
        return y


def dropout(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """Drop entries of x when the module was given a dropout rng, that is in training."""
    if rate == 0.0 or not module.has_rng("dropout"):
        return x
    return jnp.where(kept(module.make_rng("dropout"), rate, x.shape), x / (1.0 - rate), jnp.zeros_like(x))


class Attention(nn.Module):
    """Multi-head attention; self or cross is which keys and values it is given, causality is who sees whom."""

    config: TransformerConfig
    execution: Execution

    def setup(self) -> None:
        config, inner = self.config, self.config.num_heads * self.config.head_dim
        bias = config.biases == "all"
        self.query = Linear(config, inner, "query", bias)
        self.key = Linear(config, inner, "key", bias)
        self.value = Linear(config, inner, "value", bias)
        self.output = Linear(config, config.d_model, "attention_output", bias)

    def queries(self, x_BTD: jax.Array, rotation: Rotation | None = None) -> jax.Array:
        """Return the queries of a row, [B, T, H, K]."""
        return rotated(self._heads(self.query(x_BTD)), rotation)

    def keys_values(self, x_BSD: jax.Array, rotation: Rotation | None = None) -> tuple[jax.Array, jax.Array]:
        """Return the keys and values of a row, each [B, S, H, K]."""
        return rotated(self._heads(self.key(x_BSD)), rotation), self._heads(self.value(x_BSD))

    def together(self, x_BTD: jax.Array, rotation: Rotation | None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return queries, keys and values of a row that decodes, from one product (`Model.unstacked`)."""
        kernels: dict[str, jax.Array] = self.get_variable("params", "together")
        y_BTCN = transposed_product(x_BTD, kernels["transposed"]).astype(x_BTD.dtype)
        if "bias" in kernels:
            y_BTCN = y_BTCN + kernels["bias"].astype(x_BTD.dtype)[None, None]
        q_BTHK, k_BTHK, v_BTHK = (self._heads(y_BTCN[:, :, i]) for i in range(3))
        return rotated(q_BTHK, rotation), rotated(k_BTHK, rotation), v_BTHK

    def __call__(
        self,
        q_BTHK: jax.Array,
        k_BSHK: jax.Array,
        v_BSHK: jax.Array,
        sight: Sight | Turns,
        bias_1HTS: jax.Array | None,
    ) -> jax.Array:
        """Return what the queries read, [B, T, D]."""
        trains = self.config.attention_dropout > 0.0 and self.has_rng("dropout")
        y_BTHK = attend(
            q_BTHK,
            k_BSHK,
            v_BSHK,
            sight,
            bias_1HTS,
            scale=self._scale(),
            dropout=self.config.attention_dropout,
            dropout_rng=self.make_rng("dropout") if trains else None,
            mesh=self.execution.mesh,
        )
        return self.output(y_BTHK.reshape(*y_BTHK.shape[:2], -1))

    def cached(
        self,
        q_BTHK: jax.Array,
        k_BHSK: jax.Array,
        v_BHSK: jax.Array,
        sight: Sight,
        bias_1HTS: jax.Array | None,
    ) -> jax.Array:
        """Return what the queries read in a cache, [B, T, D]; the sight has a mask."""
        if q_BTHK.shape[1] > FEW_QUERIES:  # a prompt
            return self(q_BTHK, k_BHSK.swapaxes(1, 2), v_BHSK.swapaxes(1, 2), sight, bias_1HTS)
        y_BHTK = attend_few(q_BTHK.swapaxes(1, 2), k_BHSK, v_BHSK, sight.mask_B1TS, bias_1HTS, scale=self._scale())
        y_BTHK = y_BHTK.swapaxes(1, 2)
        return self.output(y_BTHK.reshape(*y_BTHK.shape[:2], -1))

    def _scale(self) -> float:
        return 1.0 if self.config.attention_scale == "none" else self.config.head_dim**-0.5

    def _heads(self, x: jax.Array) -> jax.Array:
        x = x.reshape(*x.shape[:2], self.config.num_heads, self.config.head_dim)
        return constrain(x, self.execution.mesh, ("batch", "", "heads", ""))


class FeedForward(nn.Module):
    """Position-wise feed-forward: act(x W) V, or act(x W) * (x U) V when gated."""

    config: TransformerConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config = self.config
        bias = config.biases != "none"
        h_BTF = Linear(config, config.d_ff, "feed_forward_input", bias, name="input")(x_BTD)
        h_BTF = ACTIVATIONS[config.activation](h_BTF)
        if config.gated:
            h_BTF = h_BTF * Linear(config, config.d_ff, "feed_forward_input", bias, name="gate")(x_BTD)
        h_BTF = constrain(h_BTF, self.execution.mesh, ("batch", "", "d_ff"))
        h_BTF = dropout(self, h_BTF, config.hidden_dropout)
        return Linear(config, config.d_model, "feed_forward_output", bias, name="output")(h_BTF)


class Reads(NamedTuple):
    """What a layer reads beside its own input, the same for every layer but for the sight; None: there is no such
    thing. S is the length of the row that self-attention reads, or of the context."""

    sight: Any  # a Sight, or Turns where layers of two kinds share a loop
    bias_1HTS: jax.Array | None = None  # T5's position bias
    rotation: Rotation | None = None
    context_BSD: jax.Array | None = None  # what the encoder has made of its row
    context_sight: Sight | None = None


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
        self.feed_forward = FeedForward(self.config, self.execution)
        self.feed_forward_norm = Norm(self.config)

    def __call__(self, x_BTD: jax.Array, reads: Reads) -> jax.Array:
        """Return the layer's output [B, T, D]."""

        def self_attention(h_BTD: jax.Array) -> jax.Array:
            k, v = self.attention.keys_values(h_BTD, reads.rotation)
            q = self.attention.queries(h_BTD, reads.rotation)
            return self.attention(q, k, v, reads.sight, reads.bias_1HTS)

        def cross_attention(h_BTD: jax.Array) -> jax.Array:
            k, v = self.cross_attention.keys_values(reads.context_BSD)
            return self.cross_attention(self.cross_attention.queries(h_BTD), k, v, reads.context_sight, None)

        return self._sublayers(x_BTD, self_attention, cross_attention)

    def decode(
        self, x_BTD: jax.Array, reads: Reads, cache: LayerCache, index: jax.Array | int
    ) -> tuple[jax.Array, LayerCache]:
        """Return the layer's output [B, T, D] and the cache with the row's keys and values put in from `index` on.

        The row reads the keys and values of the cache, also the context's: `reads` needs no context of its own.
        """
        written = dict(cache)

        def self_attention(h_BTD: jax.Array) -> jax.Array:
            q_BTHK, *keys_values = self.attention.together(h_BTD, reads.rotation)
            for name, new_BTHK in zip(("key", "value"), keys_values, strict=True):
                new_BHTK = new_BTHK.astype(cache[name].dtype).swapaxes(1, 2)
                written[name] = jax.lax.dynamic_update_slice_in_dim(cache[name], new_BHTK, index, axis=2)
            return self.attention.cached(q_BTHK, written["key"], written["value"], reads.sight, reads.bias_1HTS)

        def cross_attention(h_BTD: jax.Array) -> jax.Array:
            q_BTHK = self.cross_attention.queries(h_BTD)
            return self.cross_attention.cached(
                q_BTHK, cache["cross_key"], cache["cross_value"], reads.context_sight, None
            )

        return self._sublayers(x_BTD, self_attention, cross_attention), written

    def cross_keys_values(self, context_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the keys and values of the context for this layer, as a cache has them: once per generation."""
        k_BSHK, v_BSHK = self.cross_attention.keys_values(context_BSD)
        return k_BSHK.swapaxes(1, 2), v_BSHK.swapaxes(1, 2)

    def _sublayers(self, x_BTD: jax.Array, self_attention: Sublayer, cross_attention: Sublayer) -> jax.Array:
        rate = self.config.attention_output_dropout
        x_BTD = self._residual(x_BTD, self.attention_norm, self_attention, rate)
        if self.cross:
            x_BTD = self._residual(x_BTD, self.cross_attention_norm, cross_attention, rate)
        return self._residual(x_BTD, self.feed_forward_norm, self.feed_forward)

    def _residual(self, x_BTD: jax.Array, norm: Norm, sublayer: Sublayer, rate: float | None = None) -> jax.Array:
        rate = self.config.dropout if rate is None else rate
        if self.config.norm_placement == "pre":
            x_BTD = x_BTD + dropout(self, sublayer(norm(x_BTD)), rate)
        else:
            x_BTD = norm(x_BTD + dropout(self, sublayer(x_BTD), rate))
        x_BTD = constrain(x_BTD, self.execution.mesh, ("batch", "", ""))
        # Without the barrier XLA:CPU recomputes the residual sums of all layers below in every backward fusion.
        return jax.lax.optimization_barrier(x_BTD)


class Inputs(nn.Module):
    """What enters a stack: token embeddings (given), positions, token types, norm and dropout."""

    config: TransformerConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BTD: jax.Array, positions_BT: jax.Array, token_types_BT: jax.Array | None) -> jax.Array:
        config = self.config
        if config.embedding_scale == "sqrt_d_model":
            x_BTD = x_BTD * math.sqrt(config.d_model)
        if config.position == "learned":
            shape = (config.position_offset + config.max_length, config.d_model)
            table = self.param("positions", initializer(config, "position"), shape)
            table = constrain(table, self.execution.mesh, ("", ""))  # whole rows, as of the token table
            x_BTD = x_BTD + table[config.position_offset + positions_BT].astype(x_BTD.dtype)
        elif config.position.startswith("sinusoidal"):
            last = config.position == "sinusoidal_tensor2tensor"
            added = sinusoids(positions_BT, config.d_model, reaches_base=last, max_length=config.max_length)
            x_BTD = x_BTD + added.astype(x_BTD.dtype)
        if config.token_types:
            table = self.param("token_types", initializer(config, "token_type"), (config.token_types, config.d_model))
            types = jnp.zeros_like(positions_BT) if token_types_BT is None else token_types_BT
            table = constrain(table, self.execution.mesh, ("", ""))
            x_BTD = x_BTD + table[types].astype(x_BTD.dtype)
        if config.embedding_norm:
            x_BTD = Norm(config, name="norm")(x_BTD)
        return dropout(self, x_BTD, config.dropout)
