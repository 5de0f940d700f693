"""What stands on the hidden states: the vocabulary projection, heads per row (next sentence, label) and per token.

Hidden states and projection are apart, so that a loss can project a few positions or a chunk at a time.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.devices import constrain
from jaxformer.models.attention import wide
from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.layers import ACTIVATIONS, Linear, Norm, dropout, initializer
from jaxformer.models.products import product, transposed_product

HeadShape = tuple[str, int, str]  # (name, size, what it reads: "row", "choices", "sum" or "tokens")


class TokenTable(nn.Module):
    """The token embeddings [stored_vocab_size, d_model], shared by every stack and by a tied softmax."""

    config: TransformerConfig
    execution: Execution

    def setup(self) -> None:
        shape = (self.config.stored_vocab_size, self.config.d_model)
        tokens = self.param("tokens", initializer(self.config, "embedding"), shape)
        # Whole rows, as both uses read them: a batch that is split over the same devices cannot look up parts of rows.
        self.tokens = constrain(tokens, self.execution.mesh, ("vocab", ""))

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        return constrain(self.tokens[ids_BT].astype(self.execution.dtype), self.execution.mesh, ("batch", "", ""))

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Return hidden [..., D] times the table, [..., stored_vocab_size], in float32."""
        return product(hidden, self.tokens.astype(hidden.dtype), wide(hidden.dtype), transposed=True)


class VocabularyHead(nn.Module):
    """Float32 logits [..., stored_vocab_size] over the vocabulary; rows beyond `vocab_size` can never be predicted."""

    config: TransformerConfig
    execution: Execution

    @nn.compact
    def __call__(self, hidden: jax.Array, table: TokenTable) -> jax.Array:
        config = self.config
        if config.output_head == "transform":
            hidden = Linear(config, config.d_model, "transform", name="transform")(hidden)
            hidden = Norm(config, name="norm")(ACTIVATIONS[config.activation](hidden))
        if config.logit_scale == "inverse_sqrt_d_model":
            hidden = hidden * config.d_model**-0.5
        if self.has_variable("params", "transposed"):  # it decodes: Model.unstacked
            kernel_VD = constrain(self.get_variable("params", "transposed"), self.execution.mesh, ("vocab", ""))
            logits = transposed_product(hidden, kernel_VD, in_rows=True)
        elif config.tied_embeddings:
            logits = table.logits(hidden)
        else:
            kernel = self.param("kernel", initializer(config, "softmax"), (config.d_model, config.stored_vocab_size))
            logits = product(hidden, kernel.astype(hidden.dtype), wide(hidden.dtype))
        logits = constrain(logits, self.execution.mesh, ("batch", *[""] * (logits.ndim - 2), "vocab"))
        if config.output_head in ("transform", "biased"):
            bias = self.param("bias", nn.initializers.zeros, (config.stored_vocab_size,))
            logits = logits + jnp.expand_dims(bias, range(logits.ndim - 1))
        if config.stored_vocab_size > config.vocab_size:
            real = jnp.arange(config.stored_vocab_size) < config.vocab_size
            # The lowest finite number, not -inf: its exponential is 0 and its gradient is not NaN.
            logits = jnp.where(jnp.expand_dims(real, range(logits.ndim - 1)), logits, jnp.finfo(logits.dtype).min)
        return logits


class RowHeads(nn.Module):
    """One linear classifier per named head on the hidden state at one position of each row, pooled first where the
    model has a pooler (BERT: tanh at [CLS])."""

    config: TransformerConfig
    heads: tuple[HeadShape, ...]
    dropout_rate: float

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array, positions: dict[str, jax.Array], texts: int) -> dict[str, jax.Array]:
        """Return float32 logits per head: [B, size], and of a head that reads "choices" [B / texts, texts].

        `positions` gives [B] per head, position 0 where absent. `texts` of the rows belong together, one behind the
        other: a head that reads their "sum" adds their states (GPT, section 3.3: similarity).
        """
        config = self.config
        logits = {}
        pooler = Linear(config, config.d_model, "pooler", name="pooler") if config.pooler != "none" else None
        for head, size, reads in self.heads:
            if head in positions:
                pooled_BD = jnp.take_along_axis(hidden_BTD, positions[head][:, None, None], axis=1)[:, 0]
            else:
                pooled_BD = hidden_BTD[:, 0]
            if reads == "sum":
                pooled_BD = jnp.sum(pooled_BD.reshape(-1, texts, pooled_BD.shape[-1]), axis=1)
            if pooler is not None:
                before, _, activation = config.pooler.rpartition("_")
                pooled_BD = dropout(self, pooled_BD, self.dropout_rate if before else 0.0)
                pooled_BD = ACTIVATIONS[activation](pooler(pooled_BD))
            pooled_BD = dropout(self, pooled_BD, self.dropout_rate)
            classifier = Linear(config, size, "classifier", config.head_bias, name=head)
            scores = classifier(pooled_BD)
            scores = scores.astype(wide(scores.dtype))
            logits[head] = scores.reshape(-1, texts) if reads == "choices" else scores
        return logits


class TokenHeads(nn.Module):
    """One linear classifier per named head on every hidden state: tags, starts and ends of answers."""

    config: TransformerConfig
    heads: tuple[HeadShape, ...]
    dropout_rate: float

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> dict[str, jax.Array]:
        """Return float32 logits per head: [B, T, size], and [B, T] of a head of size 1."""
        logits = {}
        hidden_BTD = dropout(self, hidden_BTD, self.dropout_rate)
        for head, size, _ in self.heads:
            scores = Linear(self.config, size, "classifier", name=head)(hidden_BTD)
            scores = scores.astype(wide(scores.dtype))
            logits[head] = scores[..., 0] if size == 1 else scores
        return logits
