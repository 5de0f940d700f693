"""Denoising, taken apart: a noise mask, how the inputs are written, how the targets are written (T5, section 3.1.4)."""

import numpy as np


def random_spans_mask(length: int, density: float, mean_span_length: float, rng: np.random.Generator) -> np.ndarray:
    """Return bool [length]: T5's span noise. Spans of noise alternate with text, beginning with text and ending with noise.

    round(length * density) tokens are noise, in round(noise / mean_span_length) spans, both at least 1; how noise and
    text are cut into spans is uniform over all compositions. Rows of fewer than 2 tokens have no noise.
    """
    if length < 2:
        return np.zeros(length, bool)
    num_noise = int(np.clip(round(length * density), 1, length - 1))
    num_spans = min(max(1, round(num_noise / mean_span_length)), num_noise, length - num_noise)
    lengths = np.empty(2 * num_spans, np.int64)
    lengths[0::2] = _composition(length - num_noise, num_spans, rng)
    lengths[1::2] = _composition(num_noise, num_spans, rng)
    return np.repeat(np.arange(2 * num_spans) % 2 == 1, lengths)


def _composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Return a uniformly random way to write `total` as an ordered sum of `parts` numbers of at least 1."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def spans_to_sentinels(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Return the tokens with each run of True in `mask` replaced by one sentinel, <extra_id_0> first.

    With the noise mask this writes T5's inputs, with its complement T5's targets.
    """
    starts = mask & ~np.concatenate([[False], mask[:-1]])
    written = np.where(starts, sentinels[np.maximum(np.cumsum(starts) - 1, 0)], tokens) if len(tokens) else tokens
    return written[starts | ~mask]
