"""Parts of denoising objectives (T5, sections 3.1.4 and 3.3): which tokens are noise, and how each side is written.

An objective is a noise mask x how inputs are written x how targets are written; all are vectorised, row by row. What is
written are token ids, or whatever stands for them (see `objectives/objective.py`).
"""

import math

import numpy as np


def noise_counts(length: int, density: float, mean_span_length: float) -> tuple[int, int]:
    """Return the numbers of noise tokens and of noise spans in `length` >= 2 tokens.

    As in T5's code, but never more spans than there are tokens for them on either side.
    """
    tokens = min(max(round(length * density), 1), length - 1)
    spans = max(1, round(tokens / mean_span_length))
    return tokens, min(spans, tokens, length - tokens)


def random_composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Return `parts` positive lengths that sum to `total`, every such composition equally likely."""
    starts = rng.permutation(np.arange(total - 1) < parts - 1)
    return np.bincount(np.concatenate([[0], np.cumsum(starts)]), minlength=parts)


def random_spans_noise_mask(
    length: int, density: float, mean_span_length: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a bool mask [length] of noise spans: kept and noise spans alternate, from a kept one to a noise one.

    As in T5's code a row of one token is all kept.
    """
    whole = max(length, 2)
    tokens, spans = noise_counts(whole, density, mean_span_length)
    noise = random_composition(tokens, spans, rng)
    kept = random_composition(whole - tokens, spans, rng)
    lengths = np.stack([kept, noise], axis=1).reshape(-1)
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)[:length]


def bernoulli_noise_mask(length: int, density: float, rng: np.random.Generator) -> np.ndarray:
    """Return a bool mask [length] in which each token is noise with probability `density`, by itself."""
    return rng.random(length) < density


def random_suffix_noise_mask(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return a bool mask [length] of all tokens from a place on, drawn uniformly; the first token is kept if there are
    two (prefix language modelling)."""
    first = int(rng.integers(1, length)) if length > 1 else 0
    return np.arange(length) >= first


def first_runs(mask: np.ndarray, limit: int) -> np.ndarray:
    """Return `mask` [n] with only its first `limit` runs of True."""
    first = mask & ~np.concatenate([[False], mask[:-1]])[: len(mask)]
    return mask & (np.cumsum(first) <= limit)


def spans_to_sentinels(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Return `tokens` [n] with each run of True in `mask` [n] replaced by one sentinel, the k-th by `sentinels[k]`."""
    first = mask & ~np.concatenate([[False], mask[:-1]])[: len(mask)]
    number = np.maximum(np.cumsum(first) - 1, 0)
    return np.where(first, sentinels[number], tokens)[~mask | first]


def shifted_right(targets: np.ndarray, start: int) -> np.ndarray:
    """Return the decoder's inputs [n]: `start`, then the targets [n] but the last."""
    return np.concatenate([[start], targets[:-1]])[: len(targets)]


def permuted_sentences(tokens: np.ndarray, starts: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return `tokens` [n] with `share` of its sentences, rounded up, in each other's places at random.

    `starts` [n] is True where a sentence begins; the first token always begins one.
    """
    firsts = np.flatnonzero(np.concatenate([[True], starts[1:]]))
    count = math.ceil(share * len(firsts))
    order = np.arange(len(firsts))
    chosen = rng.permutation(len(firsts))[:count]
    order[chosen] = rng.permutation(chosen)
    lengths = np.diff(firsts, append=len(tokens))[order]
    within = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return tokens[np.repeat(firsts[order], lengths) + within]


def infilling_spans(
    word_starts: np.ndarray, rate: float, mean_length: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the first tokens and the ends of the spans to mask, and how many masks stand for spans of no length.

    Spans cover `rate` of the words of `word_starts` [n], rounded up, in lengths drawn from Poisson(`mean_length`) until
    they suffice, the last one trimmed (BART, section 2.2; fairseq). They begin at distinct words drawn at random and
    may run into each other, and so cover fewer words, or reach the end of the text. `mean_length` 0: each is one word.
    """
    words = np.flatnonzero(word_starts)
    budget = math.ceil(rate * len(words))
    if budget == 0:
        return words[:0], words[:0], 0
    lengths = np.ones(budget, np.int64)
    if mean_length > 0:
        lengths = rng.poisson(mean_length, budget)
        while lengths.sum() < budget:
            lengths = np.concatenate([lengths, rng.poisson(mean_length, budget)])
        last = int(np.searchsorted(np.cumsum(lengths), budget))
        lengths = lengths[: last + 1]
        lengths[last] -= int(lengths.sum()) - budget
    spans = lengths[lengths > 0]
    chosen = rng.permutation(len(words))[: len(spans)]
    ends = np.append(words, len(word_starts))[np.minimum(chosen + spans[: len(chosen)], len(words))]
    return words[chosen], ends, len(lengths) - len(spans)


def inserted(tokens: np.ndarray, new: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `tokens` [n] with `new` [k] put in between at random places, all choices of places equally likely."""
    result = np.zeros(len(tokens) + len(new), tokens.dtype)
    places = rng.permutation(len(result))[: len(new)]
    rest = np.ones(len(result), bool)
    rest[places] = False
    result[places], result[rest] = new, tokens
    return result


def rotated(tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return `tokens` [n] begun at a token drawn uniformly, as document rotation does."""
    return np.roll(tokens, -int(rng.integers(0, max(len(tokens), 1))))
