"""Vectors of texts: the hidden states of a layer, averaged over a text's tokens, or that of its first or last one.

All tokens that a tokenizer puts around a text count as its own, as in sentence-transformers: [CLS] and [SEP] of BERT,
<s> and </s> of BART, </s> of T5. A decoder-only model's tokenizer puts none.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.checks import check_choice
from jaxformer.errors import UserError
from jaxformer.models import Model
from jaxformer.runs.shapes import batches_by_length, rounded_up, windows

if TYPE_CHECKING:
    from jaxformer.runs.loading import LoadedRun

POOLINGS = ("mean", "first", "last")


def layer_number(model: Model, pooling: str, layer: int) -> int:
    """Return the layer that is meant, 0 (the first layer's input) to num_layers; -1 is the last one.

    Raises UserError for one that there is not, and for a first token that sees nothing of the text behind it.
    """
    check_choice("pooling", pooling, POOLINGS)
    config = model.config
    layers = config.num_layers
    if not -layers - 1 <= layer <= layers:
        raise UserError(f"layer: there is no {layer}; there are 0 to {layers}, and -1 to {-layers - 1} from the end")
    if pooling == "first" and config.visibility == "causal" and config.family != "encoder_decoder":
        raise UserError("pooling: the first token of this model sees nothing of the text behind it; use mean or last")
    return layer % (layers + 1)


def vectors(
    run: "LoadedRun", texts: Iterable[str], pooling: str = "mean", layer: int = -1, batch_size: int = 0
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield (float32 [n, D], how many of these texts were cut, how many have no token), of some texts at a time in
    their order. A text without a token has a vector of zeros."""
    number = layer_number(run.model, pooling, layer)
    size, longest = batch_size or run.config.evaluation_rows, run.model.config.max_length
    pooled = _compiled(run.model, number)
    segments = "encoder_segment_ids" if run.model.config.family == "encoder_decoder" else "segment_ids"
    for window in windows(texts, size):
        encodings = run.tokenizer.encode_batch(window, special=True)
        rows = [_cut(encoding, longest) for encoding in encodings]
        found = np.zeros((len(rows), run.model.config.d_model), np.float32)
        there = [place for place, row in enumerate(rows) if len(row)]
        for places in batches_by_length([len(rows[place]) for place in there], size):
            chosen = [there[place] for place in places]
            batch = _batch(run.model, [rows[place] for place in chosen], size, longest)
            pooled_BD = pooled(run.params, batch, _shares(batch[segments], pooling))
            found[chosen] = np.asarray(pooled_BD)[: len(chosen)]
        num_cut = sum(len(encoding.ids) > longest for encoding in encodings)
        yield found, num_cut, len(rows) - len(there)


def _cut(encoding: Any, longest: int) -> np.ndarray:
    """Return the ids of a text, int32 [n], cut at the text's end to `longest` with the tokens around it."""
    ids = np.array(encoding.ids, np.int32)
    of_text = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    return np.delete(ids, of_text[len(of_text) - max(len(ids) - longest, 0) :])


def _batch(model: Model, rows: Sequence[np.ndarray], size: int, longest: int) -> dict[str, np.ndarray]:
    """Return what the stack reads of some texts: rows and tokens rounded up, so that there are few shapes."""
    width, count = rounded_up(max(map(len, rows)), 16, longest), rounded_up(len(rows), 1, size)
    inputs, segments = np.zeros((count, width), np.int32), np.zeros((count, width), np.int32)
    for place in range(count):
        row = rows[min(place, len(rows) - 1)]
        inputs[place, : len(row)], segments[place, : len(row)] = row, 1
    positions = np.maximum(np.cumsum(segments, axis=1, dtype=np.int32) - 1, 0) * segments
    side = "encoder_" if model.config.family == "encoder_decoder" else ""
    batch = {f"{side}inputs": inputs, f"{side}segment_ids": segments, f"{side}positions": positions}
    whole = {"prefix_length": segments.sum(axis=1, dtype=np.int32)}
    return batch | (whole if model.config.visibility == "prefix" else {})


def _shares(segments: np.ndarray, pooling: str) -> np.ndarray:
    """Return float32 [B, S]: the share that each token has in the vector of its text."""
    lengths = segments.sum(axis=1, keepdims=True)
    if pooling == "mean":
        return (segments / lengths).astype(np.float32)
    places = lengths - 1 if pooling == "last" else np.zeros_like(lengths)
    return (np.arange(segments.shape[1]) == places).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _compiled(model: Model, layer: int) -> Any:
    """Return jitted pooled(params, batch, shares [B, S]) -> float32 [B, D]."""

    def pooled(params: Any, batch: dict[str, jax.Array], shares_BS: jax.Array) -> jax.Array:
        return jnp.einsum("BSD,BS->BD", model.states(params, batch, layer).astype(jnp.float32), shares_BS)

    return jax.jit(pooled)
