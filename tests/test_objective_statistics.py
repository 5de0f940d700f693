"""Rates of the objectives over 100,000 draws and more, beside those of the papers.

A share p of n independent draws has the standard error sqrt(p (1 - p) / n); found shares lie within four of them. The
sum over k classes of (found - expected)^2 / expected has mean k - 1 and variance 2 (k - 1), and exceeds the mean by no
more than four standard deviations. Draws without replacement vary less than that. Seeds are fixed.
"""

import math

import numpy as np
import pytest
from cases import END, MASK, SENTINELS, SIZE, WORDS, generator, row_of, store_of, vocabulary

from jaxformer.data.rows import build_rows
from jaxformer.objectives.corruption import BertStyle, SpanCorruption
from jaxformer.objectives.denoising import Denoising, TokenMasking
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.noise import infilling_spans, permuted_sentences, random_suffix_noise_mask, rotated

DRAWS = 100_000


def has_share(found, draws, share):
    assert draws >= DRAWS
    return abs(found / draws - share) <= 4 * math.sqrt(share * (1 - share) / draws)


def has_shares(counts, shares, draws=None):
    """`draws` says of how many those are that were counted; None: of all."""
    counts, shares = np.asarray(counts, float), np.asarray(shares, float)
    assert (draws or counts.sum()) >= DRAWS and len(counts) == len(shares)
    assert not counts[shares == 0].any()
    expected = counts.sum() * shares[shares > 0] / shares.sum()
    freedom = len(expected) - 1
    return ((counts[shares > 0] - expected) ** 2 / expected).sum() <= freedom + 4 * math.sqrt(2 * freedom)


def shares_of(put_in, random, kept=0.0, token=0, first=0):
    """Shares of what stands for a chosen `token`: the mask, a token drawn from `first` on, or itself."""
    shares = np.where(np.arange(SIZE) >= first, random / (SIZE - first), 0.0)
    shares[MASK] += put_in
    shares[token] += kept
    return shares


# BERT.


def test_masked_lm_chooses_fifteen_percent_and_writes_eighty_ten_ten():
    bound = MaskedLM(next_sentence=False).bind(vocabulary())
    row, rng = row_of([50] * 510), generator()
    written, places = np.zeros(SIZE), np.zeros(512)
    for _ in range(1400):
        arrays = bound(row, rng)
        chosen = arrays["predict_positions"][arrays["weights"] > 0]
        assert len(chosen) == round(0.15 * 512) == 77
        written += np.bincount(arrays["inputs"][chosen], minlength=SIZE)
        places += np.bincount(chosen, minlength=512)
    assert has_shares(written, shares_of(0.8, 0.1, 0.1, token=50))
    assert places[0] == places[511] == 0 and has_shares(places[1:511], np.ones(510))


def test_whole_words_are_drawn_alike_and_their_pieces_apart():
    bound = MaskedLM(next_sentence=False, whole_word=True).bind(vocabulary())
    pieces = [50, 52, 53, 54, 56, 57, 58, 60, 61, 62]  # words of one, two, one, two, … pieces
    row, rng = row_of(pieces * 51), generator()
    single, double = np.zeros(512), np.zeros(512)
    both = pairs = 0
    for _ in range(4500):
        arrays = bound(row, rng)
        chosen = arrays["predict_positions"][arrays["weights"] > 0]
        assert len(chosen) == 77
        first = chosen[np.isin(arrays["targets"][: len(chosen)], [52, 56, 60])]
        assert np.isin(first + 1, chosen).all()
        double[first] += 1
        single[chosen[np.isin(arrays["targets"][: len(chosen)], [50, 54, 58, 62])]] += 1
        both += ((arrays["inputs"][first] == MASK) & (arrays["inputs"][first + 1] == MASK)).sum()
        pairs += len(first)
    assert has_shares(single[single > 0], np.ones(4 * 51)) and has_shares(double[double > 0], np.ones(3 * 51))
    assert has_share(both, pairs, (0.8 + 0.1 / SIZE) ** 2)


def test_half_of_the_pairs_are_random_and_all_of_a_single_sentence():
    documents = [[[number] * 5 for _ in range(24)] for number in range(10, 40)]
    bound = MaskedLM(sequence_length=33, short_sequence_probability=0.0, dupe_factor=650).bind(vocabulary())
    index = build_rows(store_of(*documents), bound, seed=0, cache=False).index
    # A chunk of one sentence is the last sentence of a document, left over; nothing of so short an A is cut.
    alone = index["a_start"] % 120 == 115
    assert index["label"][alone].all() and 0 < alone.mean() < 0.2
    several = index["label"][~alone]
    assert has_share(several.sum(), len(several), 0.5)
    assert 0.5 < index["label"].mean() < 0.6


@pytest.mark.slow
def test_a_tenth_of_the_documents_are_cut_into_short_sequences():
    """Sentences of one token make chunks of exactly the target length, which B shows where it follows A."""
    longest, documents, passes = 7, 40, 2600
    store = store_of(*([[10 + token] for token in range(longest)] for _ in range(documents)))
    bound = MaskedLM(sequence_length=longest + 3, dupe_factor=passes).bind(vocabulary())
    index = build_rows(store, bound, seed=0, cache=False).index
    shown = (index["a_start"] % longest == 0) & (index["label"] == 0)
    lengths = np.bincount((index["a_length"] + index["b_length"])[shown])
    assert abs(lengths.sum() / (documents * passes) - 0.5) < 0.01
    # A tenth has any length from 2 on, the rest the longest.
    shares = np.append([0, 0], np.full(longest - 1, 0.1 / (longest - 1)))
    shares[longest] += 0.9
    assert has_shares(lengths, shares, draws=documents * passes)


def test_rare_tokens_are_drawn_by_their_smoothed_frequency():
    counts = [1, 2, 4, 8, 16, 32, 64, 128]
    text = np.repeat(np.arange(10, 18), counts)
    bound = MaskedLM(sequence_length=10, next_sentence=False, frequency_smoothing=0.7, max_predictions=1).bind(
        vocabulary()
    )
    rarity = build_rows(store_of([text.tolist()]), bound, seed=0, cache=False).index["rarity"]
    row, rng = row_of(np.arange(10, 18), rarity=rarity[10:18]), generator()
    # Drawing alone: making whole examples of single draws takes ten times as long.
    found = np.bincount([bound._choose(np.arange(8), row, rng)[0] for _ in range(DRAWS)], minlength=8)
    assert has_shares(found, np.array(counts) ** -0.7)
    written = [int(bound.write(row, rng)["targets"][0]) for _ in range(2000)]
    assert abs(written.count(0) / 2000 - found[0] / DRAWS) < 0.05


# T5.


def test_spans_have_their_density_and_are_cut_in_any_way_alike():
    bound = SpanCorruption().bind(vocabulary())
    row, rng = row_of(np.resize(WORDS, 568)), generator()
    lengths, noise = np.zeros(86), np.zeros(568)
    kept = []
    for _ in range(3600):
        arrays = bound(row, rng)
        bounds = np.flatnonzero(np.isin(arrays["targets"], SENTINELS) | (arrays["targets"] == END))
        assert len(bounds) == 29  # 28 spans, and the end
        spans = np.diff(bounds) - 1
        assert spans.sum() == 85 and abs(85 / 568 - 0.15) < 1 / 568 and abs(85 / 28 - 3) < 3 / 28
        lengths += np.bincount(spans, minlength=86)
        source = np.flatnonzero(np.isin(arrays["encoder_inputs"], SENTINELS))
        kept.append(np.diff(source, prepend=-1) - 1)
        starts = np.cumsum(kept[-1]) + np.cumsum(spans) - spans
        noise += np.bincount(np.concatenate([starts + n for n in range(spans.max())])[
            np.concatenate([spans > n for n in range(spans.max())])
        ], minlength=568)  # fmt: skip
    # Of the cuts of 85 tokens into 28 spans, those whose first is of length k cut 85 - k into 27.
    cuts = [math.comb(84 - k, 26) / math.comb(84, 27) for k in range(1, 59)]
    assert has_shares(lengths, [0, *cuts, *[0] * 27])
    assert np.mean(kept) == (568 - 85) / 28
    middle = noise[60:500] / 3600
    assert abs(middle.mean() - 0.15) < 0.005 and middle.std() < 2 * math.sqrt(0.15 * 0.85 / 3600)


def test_an_iid_mask_has_its_rate_and_bert_style_a_tenth_of_random_tokens():
    bound = BertStyle().bind(vocabulary())
    text = 2  # never drawn: random tokens are those from 3 on
    row, rng = row_of([text] * 511), generator()
    written, noise, neighbours = np.zeros(SIZE), 0, 0
    for _ in range(1400):
        source = bound(row, rng)["encoder_inputs"][:511]
        written += np.bincount(source[source != text], minlength=SIZE)
        noise += (source != text).sum()
        neighbours += ((source[:-1:2] != text) & (source[1::2] != text)).sum()
    assert has_share(noise, 1400 * 511, 0.15)
    assert has_share(neighbours, 1400 * 255, 0.15**2)
    assert has_shares(written, shares_of(0.9, 0.1, first=3))


def test_prefixes_are_of_any_length_alike():
    rng = generator()
    lengths = np.bincount([13 - random_suffix_noise_mask(13, rng).sum() for _ in range(DRAWS)], minlength=13)
    assert has_shares(lengths, [0, *[1] * 12])


# BART.


def test_spans_of_words_have_poisson_lengths_and_begin_anywhere():
    words, rng = np.ones(20_000, bool), generator()
    lengths, firsts = np.zeros(30), np.zeros(20_000)
    for _ in range(32):
        begins, ends, empty = infilling_spans(words, 0.5, 3.0, rng)
        spans = (ends - begins)[:-1]  # the last one is trimmed
        lengths += np.bincount(np.append(spans, np.zeros(empty, int)), minlength=30)
        firsts += np.bincount(begins, minlength=20_000)
    expected = [math.exp(-3) * 3**k / math.factorial(k) for k in range(12)]
    assert has_shares([*lengths[:12], lengths[12:].sum()], [*expected, 1 - sum(expected)])
    assert has_shares(firsts.reshape(200, 100).sum(axis=1), np.ones(200))


def test_token_masking_masks_its_share_and_random_tokens_are_uniform():
    bound, row, rng = TokenMasking(random_share=0.1).bind(vocabulary()), row_of([50] * 510), generator()
    written = np.zeros(SIZE)
    for _ in range(1400):
        source = bound(row, rng)["encoder_inputs"]
        written += np.bincount(source[1:-1], minlength=SIZE)
        written[50] -= 510 - math.ceil(0.15 * 510)  # those that are not masked
    assert has_shares(written, shares_of(0.9, 0.1))


def test_masks_of_spans_are_random_tokens_in_their_share():
    bound, row, rng = Denoising(random_share=0.1).bind(vocabulary()), row_of([50] * 510), generator()
    written = np.zeros(SIZE)
    for _ in range(2500):
        arrays = bound(row, rng)
        written += np.bincount(arrays["encoder_inputs"][arrays["encoder_segment_ids"] > 0][1:-1], minlength=SIZE)
    masks = np.where(np.arange(SIZE) == 50, 0, written)
    assert has_shares(masks, np.where(np.arange(SIZE) == 50, 0, shares_of(0.9, 0.1)))


def test_a_sentence_comes_to_any_place_and_a_text_begins_at_any_token():
    text, starts, rng = np.repeat(np.arange(50), 2), np.arange(100) % 2 == 0, generator()
    places = np.zeros((50, 50))
    for _ in range(DRAWS // 50):
        places[permuted_sentences(text, starts, 1.0, rng)[::2], np.arange(50)] += 1
    assert has_shares(places.ravel(), np.ones(2500))
    begun = np.bincount([rotated(text, rng)[0] for _ in range(DRAWS)], minlength=50)
    assert has_shares(begun, np.ones(50))
