"""Masks filled: the likeliest tokens at masked places of texts, each with its probability.

An encoder-only model predicts a masked place from all that stands around it. An encoder-decoder reads the text twice:
its encoder as it is, its decoder up to the place (BART: section 3.1, the decoder writes the original text), so that a
masked place is predicted as the token that the decoder writes there.

Shape suffixes: B batch, S length, P masked places of a row, V vocabulary, K candidates, N sets of candidates.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.devices import gathered
from jaxformer.models import Model, Params


class Masked(NamedTuple):
    """A text with masks: its ids, int32 [S], the places that are asked for, and for each of them the number of the set
    of tokens that may stand there."""

    ids: np.ndarray
    places: Sequence[int]
    sets: Sequence[int]


class Candidates(NamedTuple):
    """Tokens that may stand at a place, the likeliest first, int32 [K], and the probability of each, float32 [K]."""

    ids: np.ndarray
    probabilities: np.ndarray


def fill(
    model: Model, params: Params, texts: Sequence[Masked], *, top: int, allowed: np.ndarray, start_id: int = 0
) -> list[list[Candidates]]:
    """Return, of each text and each of its places, the `top` likeliest tokens; other places that are masked stay so.

    `allowed` (bool [sets, V]) says which ids each set has; a set with fewer than `top` gives all of its own.
    Probabilities are those among the whole vocabulary. `start_id` is what an encoder-decoder's decoder reads first.
    Rows, tokens, places and `top` are rounded up to powers of two: few programs are compiled. The texts are one batch.
    """
    if not texts:
        return []
    config = model.config
    width = _rounded(max(len(text.ids) for text in texts), 16, config.max_length)
    shape = _rounded(len(texts)), _rounded(max(len(text.places) for text in texts), 4)
    places, sets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    rows, segments = np.zeros((shape[0], width), np.int32), np.zeros((shape[0], width), np.int32)
    for number in range(shape[0]):
        text = texts[min(number, len(texts) - 1)]
        rows[number, : len(text.ids)], segments[number, : len(text.ids)] = text.ids, 1
        places[number, : len(text.places)], sets[number, : len(text.sets)] = text.places, text.sets
    batch = _batch(model, rows, segments, start_id) | {"predict_positions": places}
    real = np.zeros((len(allowed), config.stored_vocab_size), bool)
    real[:, : allowed.shape[1]] = allowed
    find = _compiled(model, _rounded(top, 8, config.vocab_size))
    ids_BPK, probabilities_BPK = (gathered(found) for found in find(params, batch, sets, real))

    def candidates(number: int, place: int, size: int) -> Candidates:
        count = min(top, size)
        return Candidates(ids_BPK[number, place, :count], probabilities_BPK[number, place, :count])

    sizes = allowed.sum(axis=1).tolist()
    return [
        [candidates(number, place, sizes[chosen]) for place, chosen in enumerate(text.sets)]
        for number, text in enumerate(texts)
    ]


def _rounded(count: int, least: int = 1, most: int = 0) -> int:
    size = least
    while size < count:
        size *= 2
    return min(size, most) if most else size


def _batch(model: Model, rows: np.ndarray, segments: np.ndarray, start_id: int) -> dict[str, np.ndarray]:
    """Return what the model reads of rows with padding behind them."""
    positions = np.maximum(np.cumsum(segments, axis=1, dtype=np.int32) - 1, 0) * segments
    batch = {"inputs": rows, "segment_ids": segments, "positions": positions}
    if model.config.visibility == "prefix":
        return batch | {"prefix_length": segments.sum(axis=1, dtype=np.int32)}
    if model.config.family == "encoder_decoder":
        # The token at a place is predicted from those before it: the decoder reads the text one place later.
        behind = np.concatenate([np.full((len(rows), 1), start_id, np.int32), rows[:, :-1]], axis=1)
        return {f"encoder_{name}": array for name, array in batch.items()} | batch | {"inputs": behind}
    return batch


@functools.lru_cache(maxsize=16)
def _compiled(model: Model, top: int) -> Any:
    """Return jitted find(params, batch, sets [B, P], allowed [N, V]) -> (ids, probabilities), [B, P, top] each."""

    def find(
        params: Params, batch: dict[str, jax.Array], sets_BP: jax.Array, allowed_NV: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        hidden_BPD = model.apply(params, batch)["hidden"]
        probabilities_BPV = jax.nn.softmax(model.project(params, hidden_BPD).astype(jnp.float32))
        probabilities_BPK, ids_BPK = jax.lax.top_k(jnp.where(allowed_NV[sets_BP], probabilities_BPV, -1.0), top)
        return ids_BPK.astype(jnp.int32), probabilities_BPK

    return jax.jit(find)
