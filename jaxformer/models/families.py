"""The three wirings, side by side: which stacks exist and who reads whom.

The arrays of a batch are the batch contract's (docs/batch.md).

Shape suffixes: B batch, T decoder (or only) row, S encoder row, P positions to predict, D d_model, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.heads import HeadShape, RowHeads, TokenHeads, TokenTable, VocabularyHead
from jaxformer.models.stack import Beams, Cache, Stack

Batch = Mapping[str, Any]


def one_text_a_row(batch: Batch) -> Batch:
    """Return a batch whose rows consist of several texts, [B, C, T], with one text a row, [B x C, T]."""
    if batch["inputs"].ndim < 3:
        return batch
    by_text = {
        name: array.reshape(-1, *array.shape[2:])
        for name, array in batch.items()
        if array.ndim == 3 or (array.ndim == 2 and name.endswith("_positions"))
    }
    return {**batch, **by_text}


class Family(nn.Module):
    """What the families share: the token table, the heads, and what `apply` returns.

    `apply` returns {"hidden": [B, T or P, D], HEAD: logits, …} and, when asked, "encoder" and "decoder":
    [L + 1, B, length, D], the first layer's input and every layer's output. Where rows consist of several texts,
    [B, C, T], these are read as B x C rows; heads that read "choices" or the "sum" bring them together again.
    """

    config: TransformerConfig
    execution: Execution
    heads: tuple[HeadShape, ...]
    head_dropout: float
    predicts_tokens: bool

    def setup(self) -> None:
        self.embedding = TokenTable(self.config, self.execution)
        if self.predicts_tokens:
            self.vocabulary = VocabularyHead(self.config, self.execution)
        for_rows = tuple(head for head in self.heads if head[2] != "tokens")
        for_tokens = tuple(head for head in self.heads if head[2] == "tokens")
        if for_rows:
            self.row_heads = RowHeads(self.config, for_rows, self.head_dropout)
        if for_tokens:
            self.token_heads = TokenHeads(self.config, for_tokens, self.head_dropout)
        self.stacks()

    def stacks(self) -> None:
        raise TypeError("a family defines its stacks")

    def hidden(self, batch: Batch, collect: tuple[str, ...]) -> tuple[jax.Array, dict[str, Any]]:
        raise TypeError("a family says how its stacks read")

    def project(self, hidden: jax.Array) -> jax.Array:
        return self.vocabulary(hidden, self.embedding)

    def encode(self, batch: Batch, collect: bool = False) -> tuple[jax.Array, Any]:
        """Return the final hidden states [B, S, D] of the stack that reads a text, the only one or the encoder, and,
        where asked, `collect`'s."""
        hidden, layers = self.hidden(batch, ("encoder", "decoder") if collect else ())
        return hidden, next(iter(layers.values()))

    def states(self, batch: Batch, layer: int) -> jax.Array:
        final, layers_LBSD = self.encode(batch, layer < self.config.num_layers)
        return final if layers_LBSD is None else layers_LBSD[layer]

    def __call__(self, batch: Batch, collect: tuple[str, ...] = ()) -> dict[str, jax.Array]:
        texts = batch["inputs"].shape[1] if batch["inputs"].ndim == 3 else 1
        batch = one_text_a_row(batch)
        hidden_BTD, collected = self.hidden(batch, collect)
        outputs = {name: layers for name, layers in collected.items() if name in collect}
        outputs["hidden"] = hidden_BTD
        if "predict_positions" in batch:
            outputs["hidden"] = jnp.take_along_axis(hidden_BTD, batch["predict_positions"][..., None], axis=1)
        reads = {head: read for head, _, read in self.heads}
        if any(read != "tokens" for read in reads.values()):
            suffix = "_positions"
            places = {head: batch[head + suffix] for head in reads if head + suffix in batch}
            outputs |= self.row_heads(hidden_BTD, places, texts)
        if "tokens" in reads.values():
            outputs |= self.token_heads(hidden_BTD)
        if self.is_initializing() and self.predicts_tokens:
            self.project(outputs["hidden"][:, :1])
        return outputs


class DecoderOnly(Family):
    """Auto-regressive: every position reads those before it (GPT, GPT-2, GPT-3)."""

    def stacks(self) -> None:
        self.decoder = Stack(self.config, self.execution, self.config.visibility)

    def hidden(self, batch: Batch, collect: tuple[str, ...]) -> tuple[jax.Array, dict[str, Any]]:
        hidden, layers = self.decoder(
            self.embedding(batch["inputs"]),
            batch["positions"],
            batch["segment_ids"],
            token_types_BT=batch.get("token_types"),
            prefix_length_B=batch.get("prefix_length"),
            collect="decoder" in collect,
        )
        return hidden, {"decoder": layers}

    def start(self, batch: Batch, segment_ids_BS: jax.Array) -> Cache:
        return self.decoder.start(segment_ids_BS, prefix_length_B=batch.get("prefix_length"))

    def decode(
        self, cache: Cache, inputs: jax.Array, positions: jax.Array, segment_ids: jax.Array, index: jax.Array | int,
        beams: Beams | None = None,
    ) -> tuple[jax.Array, Cache]:  # fmt: skip
        return self.decoder.decode(self.embedding(inputs), positions, segment_ids, cache, index, beams)


class EncoderOnly(Family):
    """Auto-encoding: every position reads every other (BERT, DistilBERT)."""

    def stacks(self) -> None:
        self.encoder = Stack(self.config, self.execution, self.config.visibility)

    def hidden(self, batch: Batch, collect: tuple[str, ...]) -> tuple[jax.Array, dict[str, Any]]:
        hidden, layers = self.encoder(
            self.embedding(batch["inputs"]),
            batch["positions"],
            batch["segment_ids"],
            token_types_BT=batch.get("token_types"),
            prefix_length_B=batch.get("prefix_length"),
            collect="encoder" in collect,
        )
        return hidden, {"encoder": layers}


class EncoderDecoder(Family):
    """Sequence to sequence: the decoder reads its past and the whole encoder (Transformer, BART, T5).

    With `source_layers` a further encoder, with a token table of its own, reads the source, and the first one reads its
    output in place of embedded tokens: so BART, which knows one language, translates from another (section 3.4).
    """

    def stacks(self) -> None:
        if self.config.source_layers:
            source = dataclasses.replace(self.config, num_layers=self.config.source_layers, source_layers=0)
            self.source_embedding = TokenTable(source, self.execution)
            self.source_encoder = Stack(source, self.execution, "full")
        self.encoder = Stack(self.config, self.execution, "full")
        self.decoder = Stack(self.config, self.execution, "causal", cross=True)

    def hidden(self, batch: Batch, collect: tuple[str, ...]) -> tuple[jax.Array, dict[str, Any]]:
        context, encoder_layers = self.encode(batch, "encoder" in collect)
        hidden, decoder_layers = self.decoder(
            self.embedding(batch["inputs"]),
            batch["positions"],
            batch["segment_ids"],
            context_BSD=context,
            context_segment_ids_BS=batch["encoder_segment_ids"],
            collect="decoder" in collect,
        )
        return hidden, {"encoder": encoder_layers, "decoder": decoder_layers}

    def encode(self, batch: Batch, collect: bool = False) -> tuple[jax.Array, Any]:
        positions, segments = batch["encoder_positions"], batch["encoder_segment_ids"]
        if self.config.source_layers:
            source, _ = self.source_encoder(self.source_embedding(batch["encoder_inputs"]), positions, segments)
        else:
            source = self.embedding(batch["encoder_inputs"])
        context, layers = self.encoder(source, positions, segments, collect=collect)
        return context, layers

    def start(self, batch: Batch, segment_ids_BS: jax.Array) -> Cache:
        context, _ = self.encode(batch)
        return self.decoder.start(
            segment_ids_BS, context_BSD=context, context_segment_ids_BS=batch["encoder_segment_ids"]
        )

    def decode(
        self, cache: Cache, inputs: jax.Array, positions: jax.Array, segment_ids: jax.Array, index: jax.Array | int,
        beams: Beams | None = None,
    ) -> tuple[jax.Array, Cache]:  # fmt: skip
        return self.decoder.decode(self.embedding(inputs), positions, segment_ids, cache, index, beams)


FAMILIES: dict[str, type[Family]] = {
    "decoder_only": DecoderOnly,
    "encoder_only": EncoderOnly,
    "encoder_decoder": EncoderDecoder,
}
