"""How likely a model finds tokens that are given: those behind a context, those of a masked text, a whole document.

Everything asked of a model is a query: one row, the places whose states predict, and what is predicted there. Queries
of any lengths are computed in batches of few shapes, and none of it changes an answer beyond rounding.

Shape suffixes: B batch, T length of the stack's own row, P predictions of a row, N of a batch, D d_model, V vocabulary.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.models import Model, Params

LOGITS_AT_A_TIME = 1 << 26  # a quarter of a gigabyte of float32, whatever the batch


class Query(NamedTuple):
    """A row, `inputs` int32 [T], whose states at `places` [P] predict `targets` [P].

    `source` int32 [S] is what an encoder reads before, `prefix` how many tokens a prefix model sees whole.
    """

    inputs: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    source: np.ndarray | None = None
    prefix: int = 0


class TokenScores(NamedTuple):
    """What a model says of tokens: their log-probabilities (natural logarithm), float32 [P], and whether each is the
    likeliest there, bool [P]."""

    log_probs: np.ndarray
    likeliest: np.ndarray


def continuation(context: np.ndarray, tokens: np.ndarray, source: np.ndarray | None = None) -> Query:
    """Return the query for tokens [n] behind a context [m], of at least one token, which itself is not predicted. Of an
    encoder-decoder the context is what the decoder starts from, and `source` what the encoder reads."""
    row, first = np.concatenate([context, tokens]), len(context)
    return Query(row[:-1], np.arange(first - 1, len(row) - 1), row[first:], source, first)


def masked(ids: np.ndarray, places: Sequence[int], mask_id: int) -> list[Query]:
    """Return a query for each place of a text [n], whose token alone is masked there (Salazar et al. 2020)."""
    queries = []
    for place in places:
        row = ids.copy()
        row[place] = mask_id
        queries.append(Query(row, np.array([place]), ids[[place]], prefix=len(ids)))
    return queries


def rolling(ids: np.ndarray, length: int, stride: int) -> Iterator[Query]:
    """Yield windows over a document [n] that predict every token but the first exactly once.

    A window reads at most `length` tokens; the first predicts as many, every other one the next `stride` of them, with
    all those before that fit: at least length - stride + 1 are read for each.
    """
    done, last = 0, len(ids) - 1
    while done < last:
        end = min(done + (stride if done else length), last)
        begin = max(end - length, 0)
        yield Query(ids[begin:end], np.arange(done, end) - begin, ids[done + 1 : end + 1], prefix=done + 1 - begin)
        done = end


def token_scores(
    model: Model, params: Params, queries: Sequence[Query], batch_size: int, writable: np.ndarray | None = None
) -> list[TokenScores]:
    """Return what the model says of each query, in their order.

    Probabilities are those of the softmax over the whole vocabulary. The likeliest token is that of the `writable` ones
    (bool [ids of the tokenizer]; None: all), as in generation.
    """
    allowed = np.zeros(model.config.stored_vocab_size, bool)
    known = np.ones(model.config.vocab_size, bool) if writable is None else writable
    allowed[: len(known)] = known
    compute, found = _compiled(model), {}
    lengths = [len(query.inputs) + (0 if query.source is None else len(query.source)) for query in queries]
    order = np.argsort(-np.array(lengths, np.int64), kind="stable").tolist()  # what is too large shows at once
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch, places, targets = _padded(model, [queries[number] for number in chosen], batch_size)
        log_probs, likeliest = map(np.asarray, compute(params, batch, places, targets, allowed))
        for row, number in enumerate(chosen):
            count = len(queries[number].targets)
            found[number] = TokenScores(log_probs[row, :count], likeliest[row, :count])
    return [found[number] for number in range(len(queries))]


def _padded(
    model: Model, queries: Sequence[Query], batch_size: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return (what the model reads of some queries, places [B, P], targets [B, P]). Rows, widths and predictions are
    rounded up, so that there are few shapes; rows are filled up with the last one."""
    count = min(_rounded(len(queries), 1), batch_size)
    filled = [queries[min(row, len(queries) - 1)] for row in range(count)]
    batch = _rows([query.inputs for query in filled], model.config.max_length)
    if filled[0].source is not None:
        sources = [query.source for query in filled if query.source is not None]
        batch |= {f"encoder_{name}": rows for name, rows in _rows(sources, model.config.max_length).items()}
    if model.config.visibility == "prefix":
        batch["prefix_length"] = np.array([query.prefix for query in filled], np.int32)
    most = max(len(query.targets) for query in filled)
    shape = count, min(_rounded(most, 16 if most > 1 else 1), batch["inputs"].shape[1])
    places, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, query in enumerate(filled):
        places[row, : len(query.places)], targets[row, : len(query.targets)] = query.places, query.targets
    return batch, places, targets


def _rows(rows: Sequence[np.ndarray], longest: int) -> dict[str, np.ndarray]:
    """Return what a stack reads of rows: inputs, segment ids of 1, and positions, each int32 [B, T]."""
    most = max(map(len, rows))
    width = max(most, min(_rounded(most, 16), longest))
    inputs, segments = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
    for number, row in enumerate(rows):
        inputs[number, : len(row)], segments[number, : len(row)] = row, 1
    positions = np.arange(width, dtype=np.int32) * segments
    return {"inputs": inputs, "segment_ids": segments, "positions": positions}


def _rounded(number: int, least: int) -> int:
    """Return the next power of two, or `least`."""
    return max(least, 1 << (number - 1).bit_length())


@functools.lru_cache(maxsize=16)
def _compiled(model: Model) -> Any:
    """Return jitted scores(params, batch, places [B, P], targets [B, P], allowed [V]) -> (log-probabilities [B, P],
    whether each is the likeliest [B, P])."""
    at_a_time = max(1, LOGITS_AT_A_TIME // model.config.stored_vocab_size)

    def scores(
        params: Params, batch: dict[str, jax.Array], places_BP: jax.Array, targets_BP: jax.Array, allowed_V: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        hidden_BTD = model.apply(params, batch)["hidden"]
        hidden_BPD = jnp.take_along_axis(hidden_BTD, places_BP[..., None], axis=1)

        def judged(some: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden_ND, targets_N = some
            logits_NV = model.project(params, hidden_ND)
            of_target_N = jnp.take_along_axis(logits_NV, targets_N[:, None], axis=1)[:, 0]
            best_N = jnp.argmax(jnp.where(allowed_V[None], logits_NV, -jnp.inf), axis=1)
            return of_target_N - jax.nn.logsumexp(logits_NV, axis=1), best_N == targets_N

        flat = hidden_BPD.reshape(-1, hidden_BPD.shape[-1]), targets_BP.reshape(-1)
        count = targets_BP.size
        if count <= at_a_time:
            found = judged(flat)
        else:
            pieces = -(-count // at_a_time)
            extra = pieces * at_a_time - count
            cut = [
                jnp.pad(array, [(0, extra)] + [(0, 0)] * (array.ndim - 1)).reshape(pieces, at_a_time, *array.shape[1:])
                for array in flat
            ]
            found = jax.lax.map(judged, tuple(cut))
        log_probs, likeliest = (each.reshape(-1)[:count].reshape(targets_BP.shape) for each in found)
        return log_probs, likeliest

    return jax.jit(scores)
