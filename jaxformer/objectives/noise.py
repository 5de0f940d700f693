"""Parts of denoising objectives (T5, sections 3.1.4 and 3.3): which tokens are noise, and how each side is written.

An objective is a noise mask x how inputs are written x how targets are written; all are vectorised, row by row.
"""

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


def spans_to_sentinels(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Return `tokens` [n] with each run of True in `mask` [n] replaced by one sentinel, the k-th by `sentinels[k]`."""
    first = mask & ~np.concatenate([[False], mask[:-1]])[: len(mask)]
    number = np.maximum(np.cumsum(first) - 1, 0)
    return np.where(first, sentinels[number], tokens)[~mask | first]


def shifted_right(targets: np.ndarray, start: int) -> np.ndarray:
    """Return the decoder's inputs [n]: `start`, then the targets [n] but the last."""
    return np.concatenate([[start], targets[:-1]])[: len(targets)]
