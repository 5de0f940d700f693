"""How likely a run's model finds texts: alone, behind a context, or as one of several candidates.

What is counted, in all of it: the tokens of the text that is scored, and never those of its context. A text without a
context is predicted from the token that stands between documents (end of text, [CLS]); where the vocabulary has none,
its first token is not predicted, and is in no count. Logarithms are natural ones, but for bits.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxformer.checks import check_choice, several
from jaxformer.data import Malformed
from jaxformer.errors import UserError
from jaxformer.evaluation import Query, TokenScores, continuation, masked, token_scores
from jaxformer.runs.shapes import windows

if TYPE_CHECKING:
    from jaxformer.runs.loading import LoadedRun

# What the log-likelihoods of candidates are divided by; of "unconditional" that without the context is subtracted.
NORMALIZATIONS = ("none", "tokens", "bytes", "characters", "unconditional")
Pair = tuple[str | None, str]  # a context, or None, and the text behind it


class Item(NamedTuple):
    """A text to be scored: what is asked of the model for it, and the text that its predictions are of."""

    queries: tuple[Query, ...]
    text: str


class Asking(NamedTuple):
    """How scores are asked for: whether the end token behind a text is scored, too, whether those of the tokens are
    told one by one, how candidates are compared, and the context that stands for none."""

    end: bool = False
    per_token: bool = False
    normalization: str = "tokens"
    unconditional: str = "Answer: "


def reads_both_sides(run: "LoadedRun") -> bool:
    """Whether the run's model is a masked one, whose tokens see those behind them."""
    return run.model.config.family == "encoder_only" and run.model.config.visibility == "full"


def paired(texts: str | Sequence[str], continuations: str | Sequence[str] | None) -> list[Pair]:
    """Return each text with what is scored behind it, or by itself. Raises UserError for lists of two lengths."""
    if continuations is None:
        return [(None, text) for text in several(texts)]
    contexts, behind = several(texts), several(continuations)
    if isinstance(texts, str):
        contexts *= len(behind)
    if isinstance(continuations, str):
        behind *= len(contexts)
    if len(contexts) != len(behind):
        raise UserError(f"score: {len(contexts)} contexts and {len(behind)} continuations; give one of each for a pair")
    return list(zip(contexts, behind, strict=True))


def check_predicts(run: "LoadedRun") -> None:
    """Raise UserError for a run whose model has no vocabulary to predict from."""
    if not run.model.predicts_tokens:
        raise UserError(
            f"this run has learnt a task, {run.supervision.name}, and predicts no tokens, so it scores no text; "
            "`jaxformer predict` gives its answers"
        )


def item(run: "LoadedRun", given: Pair, where: str, end: bool = False) -> Item:
    """Return what is asked of the model for a text behind a context.

    A decoder-only model reads both as one text: tokens are those of the whole, and one that covers the seam is scored
    where it holds nothing of the context but white space ("The cat " and "sat" are "The cat" and " sat"). Where it
    would hold letters of both, the two are tokenised apart, as they are for a model that learnt to read one text and
    write another, whose context an end token ends. An encoder reads the context as it was trained to. Raises Malformed,
    which names `where`, for a text that is empty or too long, and UserError for a model that cannot tell.
    """
    context, text = given
    check_predicts(run)
    if not text:
        raise Malformed(f"{where}: the {'text' if context is None else 'continuation'} is empty: nothing can be scored")
    if reads_both_sides(run):
        return _masked_item(run, given, where, end)
    if run.model.config.family == "encoder_decoder":
        return _written_item(run, given, where, end)
    return _continued_item(run, given, where, end)


def _masked_item(run: "LoadedRun", given: Pair, where: str, end: bool) -> Item:
    """Return what is asked for a pseudo-log-likelihood: each token of the text masked in turn, those around it not."""
    context, text = given
    if context is not None or end:
        raise UserError(
            f"{where}: a masked model sees what stands behind a token, so it has no log-likelihood of "
            f"{'a continuation' if context is not None else 'an end'}; give the whole text, for its "
            "pseudo-log-likelihood"
        )
    (encoding,) = run.tokenizer.encode_batch([text], special=True)
    ids = np.array(encoding.ids, np.int32)
    own = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
    _check_size(run, where, "text", len(ids), len(own))
    return Item(tuple(masked(ids, own.tolist(), run.tokenizer.vocabulary.id("mask"))), text)


def _written_item(run: "LoadedRun", given: Pair, where: str, end: bool) -> Item:
    """Return what is asked of a decoder, after the encoder has read the context."""
    context, text = given
    if context is None:
        raise UserError(
            f"{where}: an encoder-decoder writes in answer to what it reads; give the two, a context and a continuation"
        )
    vocabulary, learnt = run.tokenizer.vocabulary, run.config.supervision
    source = run.prompt_ids(context)
    starts = [vocabulary.id(run.model.config.decoder_start)]
    # BART's texts, and what it writes, begin with <s>; its decoder starts from another token.
    if "start" in vocabulary.special and (
        learnt.fills_masks or (learnt.decodes and run.model.config.decoder_start == "end")
    ):
        starts.append(vocabulary.id("start"))
    ids = _ended(run, run.tokenizer.encode(text), end)
    _check_size(run, where, "context", len(source), len(source))
    _check_size(run, where, "continuation", len(starts) + len(ids) - 1, len(ids))
    return Item((continuation(np.array(starts, np.int32), ids, source),), text)


def _continued_item(run: "LoadedRun", given: Pair, where: str, end: bool) -> Item:
    """Return what is asked of a model that reads from left to right."""
    context, text = given[0] or "", given[1]
    apart = run.config.supervision.delimited
    before, ids, behind_first = _split(run, context, text, apart)
    start = start_id(run)
    if not apart and start is not None and (not len(before) or run.model.config.family == "encoder_only"):
        before = np.concatenate([[start], before]).astype(np.int32)
    if not len(before):
        before, ids, text = ids[:1], ids[1:], text[behind_first:]
        if not len(ids) and not end:
            raise Malformed(
                f"{where}: at most one token, and this vocabulary has none that a text starts from: "
                "nothing predicts it; give a context"
            )
    ids = _ended(run, ids, end)
    _check_size(run, where, "text", len(before) + len(ids) - 1, len(ids))
    return Item((continuation(before, ids),), text)


def _split(run: "LoadedRun", context: str, text: str, apart: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the ids of a context and of the text behind it, tokenised as one where that can be, and how many
    characters of the text its first token holds."""
    (encoding,) = run.tokenizer.encode_batch([text if apart else context + text])
    ids, offsets = np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)
    seam = 0 if apart else len(context)
    first = int(np.count_nonzero(np.cumsum(offsets[:, 1] > seam) == 0))
    own = offsets[first:]
    if not apart and len(own) and context[own[0, 0] :].strip():
        return _split(run, context, text, apart=True)
    before = run.prompt_ids(context) if apart else ids[:first]
    return before, ids[first:], int(own[0, 1]) - seam if len(own) else 0


def start_id(run: "LoadedRun") -> int | None:
    """Return the token that a text without a context is predicted from, if there is one."""
    roles = ("classify",) if run.model.config.family == "encoder_only" else ("end", "start")
    special = run.tokenizer.vocabulary.special
    return next((special[role] for role in roles if role in special), None)


def _ended(run: "LoadedRun", ids: np.ndarray, end: bool) -> np.ndarray:
    role = "separator" if run.model.config.family == "encoder_only" else "end"
    return np.append(ids, run.tokenizer.vocabulary.id(role)).astype(np.int32) if end else ids


def _check_size(run: "LoadedRun", where: str, what: str, read: int, own: int) -> None:
    """Raise Malformed unless the model can read so many tokens, of which there must be some of the text's own."""
    if not own:
        raise Malformed(f"{where}: the {what} has no token: nothing can be scored")
    longest = run.model.config.max_length
    if read > longest:
        advice = "shorten it"
        if run.model.config.family != "encoder_decoder" and not reads_both_sides(run):
            advice += ", or score it as a document, in windows (--document; run.score_document)"
        raise Malformed(f"{where}: {read:,} tokens, but the model reads {longest:,} (model.max_length); {advice}")


def scores_of(run: "LoadedRun", items: Sequence[Item], batch_size: int = 0) -> Iterator[list[TokenScores]]:
    """Yield what the model says of each item's queries; those of many items are computed together."""
    size = batch_size or run.config.evaluation_rows
    for some in windows(items, size):
        queries = [query for each in some for query in each.queries]
        found = iter(token_scores(run.model, run.params, queries, size, run.tokenizer.writable))
        yield from ([next(found) for _ in each.queries] for each in some)


def answer(run: "LoadedRun", each: Item, found: Sequence[TokenScores], per_token: bool = False) -> dict[str, Any]:
    """Return what is said of a text, as plain numbers: docs/scoring.md lists them."""
    log_probs = np.concatenate([one.log_probs for one in found]).astype(np.float64)
    total, size = float(log_probs.sum()), len(each.text.encode(errors="replace"))
    pseudo = "pseudo_" if reads_both_sides(run) else ""
    numbers: dict[str, Any] = {f"{pseudo}log_likelihood": total, "tokens": len(log_probs), "bytes": size}
    numbers[f"{pseudo}perplexity"] = perplexity(total, len(log_probs))
    if not pseudo:
        numbers["bits_per_byte"] = per_unit(total, size) / math.log(2)
        numbers["greedy"] = all(bool(one.likeliest.all()) for one in found)
    if per_token:
        spelled = run.tokenizer.tokens(np.concatenate([query.targets for query in each.queries]))
        numbers["per_token"] = [
            {"token": token, "log_likelihood": float(value)} for token, value in zip(spelled, log_probs, strict=True)
        ]
    return numbers


def per_unit(log_likelihood: float, count: int) -> float:
    """Return the negative log-likelihood of each of so many units; NaN of none."""
    return -log_likelihood / count if count else math.nan


def perplexity(log_likelihood: float, count: int) -> float:
    """Return exp(-log_likelihood / count); infinity where no float holds it."""
    with np.errstate(over="ignore"):
        return float(np.exp(per_unit(log_likelihood, count)))


def candidate_items(
    run: "LoadedRun", context: str, candidates: Sequence[str], asking: Asking, where: str
) -> list[Item]:
    """Return what is asked for each candidate, and of "unconditional" behind it the same without the context. Raises
    UserError for a way of comparing that there is not, and Malformed for fewer than two candidates, or an empty one."""
    check_choice("normalization", asking.normalization, NORMALIZATIONS)
    if isinstance(candidates, str) or len(candidates) < 2:
        raise Malformed(f"{where}: a choice needs at least two candidates; give a list of them")
    whole = reads_both_sides(run) and not context  # of a masked model candidates are whole texts
    contexts = [None if whole else context]
    if asking.normalization == "unconditional":
        if whole:
            raise UserError("normalization: unconditional needs a context, and a masked model takes none")
        contexts.append(asking.unconditional)
    items = []
    for place, before in enumerate(contexts):
        for number, text in enumerate(candidates):
            if not text.strip():
                raise Malformed(f"{where}: candidate {number} is empty; leave it out")
            # One space stands between "Answer: " and a candidate that brings its own.
            said = before.rstrip() if place and before and text[0].isspace() else before
            items.append(item(run, (said, text), f"{where}, candidate {number}", asking.end))
    return items


def choice(
    candidates: Sequence[str], items: Sequence[Item], found: Sequence[Sequence[TokenScores]], normalization: str
) -> dict[str, Any]:
    """Return which candidate is the likeliest, counted from 0, the first of equal ones: its text and probability, and
    of each its probability (a softmax of the scores), its score, its log-likelihood and its number of tokens."""
    log_probs = [np.concatenate([one.log_probs for one in each]).astype(np.float64) for each in found]
    totals, counts = np.array([each.sum() for each in log_probs]), [len(each) for each in log_probs]
    own = len(candidates)
    divisors: dict[str, list[int]] = {
        "tokens": counts[:own],
        "bytes": [len(each.text.encode(errors="replace")) for each in items[:own]],
        "characters": [len(each.text) for each in items[:own]],
    }
    scores = totals[:own] / np.array(divisors.get(normalization, [1] * own))
    if normalization == "unconditional":
        scores = totals[:own] - totals[own:]
    shares = np.exp(scores - scores.max())
    probabilities = shares / shares.sum()
    best = int(np.argmax(scores))
    return {
        "choice": best,
        "text": candidates[best],
        "probability": float(probabilities[best]),
        "probabilities": probabilities.tolist(),
        "scores": scores.tolist(),
        "log_likelihoods": totals[:own].tolist(),
        "tokens": counts[:own],
    }


def choices_of(
    run: "LoadedRun", contexts: Sequence[str], candidates: Sequence[Sequence[str]], asking: Asking, batch_size: int = 0
) -> list[dict[str, Any]]:
    """Return the choice among the candidates of each context. Raises UserError for lists of two lengths."""
    if len(contexts) != len(candidates):
        raise UserError(
            f"choose: {len(contexts)} contexts and {len(candidates)} lists of candidates; give one for each"
        )
    asked = [
        candidate_items(run, context, texts, asking, f"choice {number}")
        for number, (context, texts) in enumerate(zip(contexts, candidates, strict=True))
    ]
    found = scores_of(run, [each for items in asked for each in items], batch_size)
    return [
        choice(texts, items, [next(found) for _ in items], asking.normalization)
        for texts, items in zip(candidates, asked, strict=True)
    ]
