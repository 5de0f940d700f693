"""How well a run's model predicts long documents: in windows of what it reads, every token once."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxformer.checks import check_range
from jaxformer.data import Malformed
from jaxformer.errors import UserError
from jaxformer.evaluation import rolling, token_scores
from jaxformer.runs.scoring import check_predicts, per_unit, perplexity, reads_both_sides, start_id
from jaxformer.runs.shapes import windows

if TYPE_CHECKING:
    from jaxformer.runs.loading import LoadedRun

Progress = Callable[[int, int], Any]  # how many tokens are scored, of how many


def window_of(run: "LoadedRun", stride: int, length: int) -> tuple[int, int]:
    """Return (tokens that a window reads, tokens that each but the first adds): 0 stands for the model's length, and
    for windows that do not overlap. Raises UserError for a model that predicts no running text, and for other sizes."""
    check_predicts(run)
    config = run.model.config
    if config.family == "encoder_decoder" or reads_both_sides(run):
        other = (
            "a masked model predicts masked tokens, and scores a text that it reads at once"
            if reads_both_sides(run)
            else "an encoder-decoder writes in answer to what it reads: give it a context and a continuation"
        )
        raise UserError(f"a document is scored from left to right, which this model does not read; {other}")
    check_range("length", length or config.max_length, at_least=1, at_most=config.max_length)
    length = length or config.max_length
    check_range("stride", stride or length, at_least=1, at_most=length)
    return length, stride or length


class Document(NamedTuple):
    """A document to be scored: its tokens, what they start from included, and the text that is predicted."""

    ids: np.ndarray
    text: str


def document(run: "LoadedRun", text: str, where: str) -> Document:
    """Return a document, tokenised. Raises Malformed, which names `where`, where nothing of it could be predicted."""
    (encoding,) = run.tokenizer.encode_batch([text])
    ids, start = np.array(encoding.ids, np.int32), start_id(run)
    if start is not None:
        ids = np.concatenate([[start], ids]).astype(np.int32)
    elif len(ids):
        text = text[encoding.offsets[0][1] :]  # what is behind the token that nothing predicts
    if len(ids) < 2:
        raise Malformed(f"{where}: the document is empty, or has no token that could be predicted")
    return Document(ids, text)


def document_answers(
    run: "LoadedRun", documents: Sequence[Document], window: tuple[int, int], batch_size: int = 0,
    progress: Progress = lambda done, total: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return what is said of each document, as plain numbers: docs/scoring.md lists them. `window` is `window_of`'s;
    windows of several documents are computed together."""
    size, done = batch_size or run.config.evaluation_rows, 0
    totals, counts = [0.0] * len(documents), [0] * len(documents)
    tokens = sum(len(each.ids) - 1 for each in documents)
    queries = ((number, query) for number, each in enumerate(documents) for query in rolling(each.ids, *window))
    for some in windows(queries, size):
        found = token_scores(run.model, run.params, [query for _, query in some], size)
        for (number, _), one in zip(some, found, strict=True):
            totals[number] += float(one.log_probs.sum(dtype=np.float64))
            counts[number] += 1
            done += len(one.log_probs)
        progress(done, tokens)
    each = zip(documents, totals, counts, strict=True)
    return [_answer(one, total, num_windows, window) for one, total, num_windows in each]


def _answer(each: Document, total: float, num_windows: int, window: tuple[int, int]) -> dict[str, Any]:
    tokens, text = len(each.ids) - 1, each.text
    size, words, lines = len(text.encode(errors="replace")), len(text.split()), text.count("\n")
    return {
        "log_likelihood": total,
        "tokens": tokens,
        "bytes": size,
        "characters": len(text),
        "words": words,
        "lines": lines,
        "perplexity": perplexity(total, tokens),
        "word_perplexity": perplexity(total, words + lines),  # as in WikiText, where the end of a line is a word, too
        "bits_per_byte": per_unit(total, size) / math.log(2),
        "bits_per_character": per_unit(total, len(text)) / math.log(2),
        "windows": num_windows,
        "length": window[0],
        "stride": window[1],
    }
