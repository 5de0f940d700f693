"""T5's corruptions by hand: every way to write inputs x every way to write targets, in two stacks and one, lengths."""

import math

import numpy as np
import pytest
from cases import MASK, SENTINELS, SPECIAL, carrier, check, generator, random_row, row_of, vocabulary

from jaxformer.objectives.corruption import (
    INPUTS,
    NOISES,
    TARGETS,
    BertStyle,
    Corruption,
    Deshuffling,
    DropTokens,
    MassStyle,
    PlainLM,
    PrefixLM,
    ReplaceSpans,
    SpanCorruption,
)
from jaxformer.objectives.noise import (
    first_runs,
    noise_counts,
    random_composition,
    random_spans_noise_mask,
    shifted_right,
    spans_to_sentinels,
)

TEXT = [10, 11, 12, 13, 14, 15, 16, 17]
# Noise that begins inside the text and ends it, as T5's spans do; noise that begins the text, as an i.i.d. mask may.
LAST, FIRST = [0, 0, 1, 1, 0, 0, 0, 1], [1, 0, 0, 1, 1, 0, 0, 0]
S0, S1 = SENTINELS[:2].tolist()
WRITTEN_INPUTS = {
    "sentinels": ([10, 11, S0, 14, 15, 16, S1], [S0, 11, 12, S1, 15, 16, 17]),
    "mask": ([10, 11, MASK, MASK, 14, 15, 16, MASK], [MASK, 11, 12, MASK, MASK, 15, 16, 17]),
    "mask_or_random": ([10, 11, 62, MASK, 14, 15, 16, 67], [MASK, 11, 12, MASK, 64, 15, 16, 17]),
    "drop": ([10, 11, 14, 15, 16], [11, 12, 15, 16, 17]),
    "permute": (TEXT[::-1], TEXT[::-1]),
}
WRITTEN_TARGETS = {
    "sentinels": ([S0, 12, 13, S1, 17], [10, S0, 13, 14, S1]),
    "noise": ([12, 13, 17], [10, 13, 14]),
    "text": (TEXT, TEXT),
}


class Draws:
    """Stands in for a generator: noise where `mask` says so, then the third, fifth and last token random if noise."""

    def __init__(self, mask):
        self.draws = [np.where(mask, 0.1, 0.9), np.where(np.isin(np.arange(8), [2, 4, 7]), 0.1, 0.9)]

    def random(self, size):
        return self.draws.pop(0)[:size]

    def permutation(self, text):
        return text[::-1]

    def integers(self, low, high, size):
        assert (low, high) == (3, 200)
        return 60 + np.arange(size)


def corruption(inputs, targets, kind=SpanCorruption, **values):
    return kind(
        sequence_length=12, max_target_length=10, noise="iid", inputs=inputs, targets=targets, random_share=0.5,
        noise_density=0.5, **values,
    )  # fmt: skip


def filled(values, length, pad=SPECIAL["pad"]):
    return [*values, *[pad] * (length - len(values))]


@pytest.mark.parametrize("which", [0, 1], ids=["last", "first"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_the_grid_in_two_stacks(inputs, targets, which):
    bound = corruption(inputs, targets).bind(vocabulary())
    source, target = [*WRITTEN_INPUTS[inputs][which], 1], [*WRITTEN_TARGETS[targets][which], 1]
    check(
        bound(row_of(TEXT), Draws((LAST, FIRST)[which])),
        encoder_inputs=filled(source, 12),
        encoder_segment_ids=filled([1] * len(source), 12),
        encoder_positions=filled(range(len(source)), 12),
        inputs=filled([0, *target[:-1]], 10),
        targets=filled(target, 10),
        weights=filled([1] * len(target), 10),
        segment_ids=filled([1] * len(target), 10),
        positions=filled(range(len(target)), 10),
    )


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_the_grid_in_one_stack(inputs, targets):
    bound = corruption(inputs, targets).for_model(carrier("decoder_only", "prefix")).bind(vocabulary())
    source, target = [*WRITTEN_INPUTS[inputs][0], 1], [*WRITTEN_TARGETS[targets][0], 1]
    both, length = source + target, 12 + 10 - 1
    arrays = bound(row_of(TEXT), Draws(LAST))
    check(
        arrays,
        inputs=filled(both[:-1], length),
        targets=filled(both[1:], length),
        # The last token of the source predicts the first of the target.
        weights=filled([0] * (len(source) - 1) + [1] * len(target), length),
        segment_ids=filled([1] * (len(both) - 1), length),
        positions=filled(range(len(both) - 1), length),
        prefix_length=len(source),
    )
    assert arrays.keys() == bound.shapes.keys() and not any(name.startswith("encoder") for name in arrays)


def test_the_first_sentinel_is_the_mask_where_there_is_none():
    for inputs in ("mask", "mask_or_random"):
        bound = corruption(inputs, "text").bind(vocabulary(without=("mask",)))
        expected = [S0 if token == MASK else token for token in WRITTEN_INPUTS[inputs][0]]
        check(bound(row_of(TEXT), Draws(LAST)), encoder_inputs=filled([*expected, 1], 12))


def test_what_each_name_chooses():
    chosen = {
        SpanCorruption: ("spans", "sentinels", "sentinels"),
        ReplaceSpans: ("iid", "sentinels", "sentinels"),
        DropTokens: ("iid", "drop", "noise"),
        BertStyle: ("iid", "mask_or_random", "text"),
        MassStyle: ("iid", "mask", "text"),
        Deshuffling: ("all", "permute", "text"),
        PlainLM: ("all", "drop", "text"),
        PrefixLM: ("suffix", "drop", "noise"),
    }
    for kind, choice in chosen.items():
        objective = kind()
        assert (objective.noise, objective.inputs, objective.targets) == choice
        assert (objective.noise_density, objective.random_share, objective.z_loss) == (0.15, 0.1, 1e-4)
    assert {noise for noise, _, _ in chosen.values()} == set(NOISES)
    assert set(chosen) == set(Corruption.__subclasses__())


def test_deshuffling_by_hand():
    bound = Deshuffling(sequence_length=6).bind(vocabulary())
    assert (bound.row_length, bound.source_length, bound.target_length) == (5, 6, 6)
    check(
        bound(row_of([10, 11, 12]), Draws([])),
        encoder_inputs=[12, 11, 10, 1, 0, 0],
        inputs=[0, 10, 11, 12, 0, 0],
        targets=[10, 11, 12, 1, 0, 0],
    )
    row = random_row(Deshuffling(sequence_length=64))
    arrays = Deshuffling(sequence_length=64).bind(vocabulary())(row, generator())
    assert sorted(arrays["encoder_inputs"][:63]) == sorted(row["tokens"])
    assert (arrays["encoder_inputs"][:63] != row["tokens"]).mean() > 0.8


def test_plain_language_modelling_reads_nothing_but_the_end():
    bound = PlainLM(sequence_length=6).bind(vocabulary())
    assert (bound.row_length, bound.source_length, bound.target_length) == (5, 1, 6)
    check(
        bound(row_of([10, 11, 12]), generator()),
        encoder_inputs=[1],
        encoder_segment_ids=[1],
        inputs=[0, 10, 11, 12, 0, 0],
        targets=[10, 11, 12, 1, 0, 0],
        weights=[1, 1, 1, 1, 0, 0],
    )


def test_span_corruption_by_hand():
    bound = SpanCorruption(sequence_length=6).bind(vocabulary())
    assert (bound.row_length, bound.target_length) == (5, 3)
    # One noise token, one span, and the noise stands last: nothing is left to chance.
    check(
        bound(row_of([10, 11, 12, 13]), generator()),
        encoder_inputs=[10, 11, 12, S0, 1, 0],
        encoder_segment_ids=[1, 1, 1, 1, 1, 0],
        encoder_positions=[0, 1, 2, 3, 4, 0],
        inputs=[0, S0, 13],
        targets=[S0, 13, 1],
        weights=[1, 1, 1],
        segment_ids=[1, 1, 1],
        positions=[0, 1, 2],
    )
    # A row of one token has no noise (T5's code).
    check(bound(row_of([10]), generator()), encoder_inputs=[10, 1, 0, 0, 0, 0], targets=[S0, 1, 0], weights=[1, 1, 0])


def test_the_decoder_starts_from_the_token_that_the_model_names():
    row = row_of([10, 11, 12, 13, 14, 15])
    for words, first in ((vocabulary(), SPECIAL["pad"]), (vocabulary().starting("end"), SPECIAL["end"])):
        arrays = SpanCorruption(sequence_length=6).bind(words)(row, generator())
        assert arrays["inputs"][0] == first
        np.testing.assert_array_equal(arrays["inputs"][1:], arrays["targets"][:-1])


def test_a_target_that_is_too_long_is_cut_at_its_end():
    bound = SpanCorruption(sequence_length=12, targets="text", max_target_length=3).bind(vocabulary())
    assert bound.target_length == 3
    check(bound(row_of(TEXT), generator()), targets=[10, 11, 12], inputs=[0, 10, 11], weights=[1, 1, 1])


def test_documents_are_joined_without_a_separator():
    for kind in (SpanCorruption, DropTokens, Deshuffling, PlainLM):
        assert kind(sequence_length=64).bind(vocabulary()).row_settings["separator"] is None


# The pieces.


def test_writing_both_sides_by_hand():
    tokens, noise = np.arange(10, 18), np.array(LAST, bool)
    inputs = spans_to_sentinels(tokens, noise, SENTINELS)
    targets = spans_to_sentinels(tokens, ~noise, SENTINELS)
    np.testing.assert_array_equal(inputs, [10, 11, 199, 14, 15, 16, 198])
    np.testing.assert_array_equal(targets, [199, 12, 13, 198, 17])
    np.testing.assert_array_equal(shifted_right(targets, 0), [0, 199, 12, 13, 198])
    assert spans_to_sentinels(tokens[:0], noise[:0], SENTINELS).tolist() == []


def test_an_iid_mask_makes_no_more_spans_than_there_are_sentinels():
    mask = np.array([1, 1, 0, 1, 0, 0, 1, 1, 0, 1], bool)
    np.testing.assert_array_equal(first_runs(mask, 2), [1, 1, 0, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(first_runs(mask, 0), [0] * 10)
    np.testing.assert_array_equal(first_runs(mask, 9), mask)

    class Alternating:
        def random(self, size):
            return np.arange(size) % 2 * 0.9  # noise, kept, noise, …

    bound = ReplaceSpans(sequence_length=128).bind(vocabulary(sentinels=SENTINELS[:30]))
    arrays = bound(random_row(bound), Alternating())
    sentinels = arrays["encoder_inputs"][np.isin(arrays["encoder_inputs"], SENTINELS)]
    np.testing.assert_array_equal(sentinels, SENTINELS[:29])
    # The text that is kept begins after noise, so its last run is the 29th too; each sentinel stands once.
    there = arrays["targets"][np.isin(arrays["targets"], SENTINELS)]
    np.testing.assert_array_equal(there, SENTINELS[:29])


def test_compositions_are_equally_likely():
    rng = generator()
    drawn = [tuple(random_composition(5, 3, rng)) for _ in range(1200)]
    counts = {parts: drawn.count(parts) for parts in set(drawn)}
    assert set(counts) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert min(counts.values()) > 150 and max(counts.values()) < 250


def test_spans_begin_with_text_and_end_with_noise():
    for length in (1, 2, 3, 10, 200):
        mask = random_spans_noise_mask(length, 0.15, 3.0, generator(length))
        tokens, spans = noise_counts(max(length, 2), 0.15, 3.0)
        assert not mask[0] and mask.sum() == (tokens if length > 1 else 0)
        if length > 1:
            assert mask[-1] and (np.diff(mask.astype(int)) == 1).sum() == spans


@pytest.mark.parametrize(
    ("length", "density", "span", "expected"),
    [(568, 0.15, 3.0, (85, 28)), (2, 0.15, 3.0, (1, 1)), (10, 0.9, 1.0, (9, 1)), (100, 0.15, 10.0, (15, 2))],
)
def test_noise_counts_are_those_of_the_code(length, density, span, expected):
    assert noise_counts(length, density, span) == expected


# Lengths.


@pytest.mark.parametrize(
    ("length", "span", "row", "target"),
    [
        (512, 3, 568, 114),
        (64, 3, 70, 14),
        (128, 3, 141, 29),
        (256, 3, 284, 58),
        (1024, 3, 1137, 229),
        (512, 2, 552, 126),
        (512, 5, 581, 105),
        (512, 10, 591, 99),
    ],
)
def test_span_corruption_lengths_are_those_of_the_paper(length, span, row, target):
    member = SpanCorruption(sequence_length=length, mean_span_length=float(span))
    assert (member.row_length, member.target_length) == (row, target)
    bound = member.bind(vocabulary(sentinels=np.arange(199, 99, -1, dtype=np.int32)))
    arrays = bound(random_row(bound), generator())
    assert arrays["encoder_segment_ids"].all() and arrays["weights"].all()  # full to the last token
    assert arrays["encoder_inputs"][-1] == arrays["targets"][-1] == SPECIAL["end"]


@pytest.mark.parametrize(("density", "target"), [(0.10, 103), (0.15, 192), (0.25, 256), (0.50, 512)])
def test_replace_spans_lengths_are_those_of_the_configurations(density, target):
    member = ReplaceSpans(noise_density=density)
    assert (member.row_length, member.source_length, member.target_length) == (511, 512, target)


def test_other_lengths_are_those_of_the_configurations():
    drop = DropTokens()
    assert (drop.row_length, drop.source_length, drop.target_length) == (511, 512, 104)
    for kind in (BertStyle, MassStyle, Deshuffling):
        assert (kind().row_length, kind().source_length, kind().target_length) == (511, 512, 512)
    assert (PlainLM().row_length, PlainLM().source_length, PlainLM().target_length) == (511, 1, 512)
    prefix = PrefixLM().for_model(carrier("encoder_decoder", "causal"))
    assert (prefix.row_length, prefix.source_length, prefix.target_length) == (511, 512, 512)
    assert PrefixLM(sequence_length=512).row_length == 513
    assert SpanCorruption(max_target_length=77).target_length == 77


@pytest.mark.parametrize("targets", ["sentinels", "noise"])
@pytest.mark.parametrize("density", [0.05, 0.15, 0.5])
def test_other_iid_masks_have_room_for_four_deviations(density, targets):
    length = 300
    member = DropTokens(sequence_length=length + 1, noise_density=density, targets=targets)
    one = density * (1 - density)
    noise = math.ceil(length * density + 4 * math.sqrt(length * one))
    if targets == "noise":
        assert member.target_length == noise + 1
    else:
        # Each token is noise, or begins a kept run, with probability d + d (1 - d); nothing is longer than the text.
        assert noise + length * one < member.target_length <= length + 1
        bound = member.bind(vocabulary(sentinels=np.arange(199, 9, -1, dtype=np.int32)))
        row, rng = random_row(bound), generator()
        ends = [bound(row, rng)["targets"] for _ in range(300)]
        assert all(1 in target for target in ends)  # nothing was cut: EOS is there
