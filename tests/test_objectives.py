"""Objectives: hand-written examples, statistics over draws, and properties that all of them share."""

import dataclasses
import pickle

import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.objectives import OBJECTIVES
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.denoising import Denoising
from jaxformer.objectives.masked_lm import MaskedLM, fitting
from jaxformer.objectives.noise import random_composition, random_spans_noise_mask, shifted_right, spans_to_sentinels
from jaxformer.objectives.corruption import SpanCorruption
from jaxformer.tokenizers import Vocabulary

SPECIAL = {"pad": 0, "end": 1, "unknown": 2, "classify": 3, "separator": 4, "mask": 5}
SIZE, SENTINELS = 200, np.arange(199, 159, -1, dtype=np.int32)


def vocabulary(**changes):
    is_special = np.zeros(SIZE, bool)
    is_special[[*SPECIAL.values(), *SENTINELS]] = True
    values = {
        "size": SIZE,
        "special": SPECIAL,
        "sentinels": SENTINELS,
        "is_special": is_special,
        "word_starts": np.arange(SIZE) % 2 == 0,  # odd ids continue a word
    }
    return Vocabulary(**(values | changes))


def row_of(tokens, segments=None, boundary=None, label=0):
    tokens = np.array(tokens, np.int32)
    segments = np.ones(len(tokens), np.int32) if segments is None else np.array(segments, np.int32)
    boundary = len(tokens) // 2 if boundary is None else boundary
    starts = np.zeros(len(tokens), bool)
    return {"tokens": tokens, "segment_ids": segments, "sentence_starts": starts, "boundary": boundary, "label": label}


def random_row(objective, seed=0, length=None):
    length = objective.row_length if length is None else length
    return row_of(np.random.default_rng(seed).integers(10, 160, length))


def generator(seed=0):
    return np.random.default_rng(seed)


def check(arrays, **expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)


MEMBERS = [
    CausalLM(sequence_length=16),
    CausalLM(sequence_length=16, packing="documents", document_mask=True),
    MaskedLM(sequence_length=16, max_predictions=4),
    MaskedLM(sequence_length=16, max_predictions=4, next_sentence=False, whole_word=True),
    SpanCorruption(sequence_length=32),
    Denoising(sequence_length=32),
    Denoising(sequence_length=32, replace="token", mean_span_length=0, whole_words=False, rotate_probability=1.0),
]


@pytest.fixture(params=MEMBERS, ids=lambda member: f"{member.name}-{member.rows}")
def objective(request):
    return request.param.bind(vocabulary())


def test_every_objective_has_its_name():
    assert all(kind.name == name for name, kind in OBJECTIVES.items())
    assert {type(member) for member in MEMBERS} == set(OBJECTIVES.values())


def test_shapes_and_dtypes_never_change(objective):
    unbound = dataclasses.replace(objective, vocabulary=None)
    limit = max(shape[0] for name, (shape, _) in unbound.shapes.items() if name.endswith("inputs"))
    for length in (0, 1, 2, 3, 5, objective.row_length - 1, objective.row_length):
        arrays = objective(random_row(objective, length=length), generator())
        assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == unbound.shapes
        for name, array in arrays.items():
            if name.endswith("positions"):
                assert array.min() >= 0 and array.max() < limit


def test_an_empty_row_counts_nothing(objective):
    arrays = objective(random_row(objective, length=0), generator())
    for name, array in arrays.items():
        if name.endswith(("weights", "segment_ids")):
            assert not array.any(), name


def test_the_same_rng_gives_the_same_arrays(objective):
    row = random_row(objective)
    before = row["tokens"].copy()
    first, again, other = (objective(row, generator(seed)) for seed in (1, 1, 2))
    copied = pickle.loads(pickle.dumps(objective))(row, generator(1))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        np.testing.assert_array_equal(first[name], copied[name])
    differs = any((first[name] != other[name]).any() for name in first)
    assert differs == (objective.name != "causal_lm")
    np.testing.assert_array_equal(row["tokens"], before)


def test_members_the_step_and_the_data_read(objective):
    assert set(objective.coefficients) == {"tokens", *objective.heads}
    assert objective.row_settings["row_length"] == objective.row_length
    assert objective.row_settings["rows"] == objective.rows in ("windows", "packed", "segment_pairs")
    assert objective.num_input_tokens == sum(
        shape[0] for name, (shape, _) in objective.shapes.items() if name.endswith("inputs")
    )


@pytest.mark.parametrize(
    ("member", "role"),
    [
        (CausalLM(packing="documents"), "end"),
        (MaskedLM(), "mask"),
        (MaskedLM(), "classify"),
        (SpanCorruption(), "end"),
        (Denoising(), "mask"),
    ],
)
def test_a_vocabulary_without_a_role_is_refused(member, role):
    special = {name: number for name, number in SPECIAL.items() if name != role}
    with pytest.raises(UserError, match=role):
        member.bind(vocabulary(special=special))


def test_too_few_sentinels_are_refused():
    SpanCorruption().bind(vocabulary(sentinels=SENTINELS[:28]))
    with pytest.raises(UserError, match="28 sentinels"):
        SpanCorruption().bind(vocabulary(sentinels=SENTINELS[:27]))


@pytest.mark.parametrize(
    ("kind", "values", "key"),
    [
        (CausalLM, {"packing": "document"}, "packing.*did you mean 'documents'"),
        (CausalLM, {"sequence_length": 0}, "sequence_length"),
        (MaskedLM, {"mask_share": 0.95}, "random_share"),
        (MaskedLM, {"masking_rate": 1.5}, "masking_rate"),
        (SpanCorruption, {"noise_density": 1.0}, "noise_density"),
        (SpanCorruption, {"mean_span_length": 0.5}, "mean_span_length"),
    ],
)
def test_impossible_settings_are_refused(kind, values, key):
    with pytest.raises(UserError, match=f"objective.{key}"):
        kind(**values)


def test_causal_windows_by_hand():
    bound = CausalLM(sequence_length=6).bind(vocabulary())
    arrays = bound(row_of([10, 11, 1, 12, 13], segments=[1, 1, 1, 2, 2]), generator())
    assert (bound.rows, bound.row_length, bound.separator) == ("windows", 7, 1)
    check(
        arrays,
        inputs=[10, 11, 1, 12, 0, 0],
        targets=[11, 1, 12, 13, 0, 0],
        segment_ids=[1, 1, 1, 1, 0, 0],
        positions=[0, 1, 2, 3, 0, 0],
        weights=[1, 1, 1, 1, 0, 0],
    )


def test_windows_without_an_end_token_are_joined_by_nothing():
    """GPT's released vocabulary has none."""
    special = {name: number for name, number in SPECIAL.items() if name != "end"}
    bound = CausalLM(sequence_length=6).bind(vocabulary(special=special))
    assert bound.separator is None


def test_causal_documents_by_hand():
    bound = CausalLM(sequence_length=6, packing="documents", document_mask=True).bind(vocabulary())
    arrays = bound(row_of([10, 11, 1, 12, 13, 1], segments=[1, 1, 1, 2, 2, 2]), generator())
    assert bound.rows == "packed"
    check(
        arrays,
        inputs=[10, 11, 1, 12, 13, 0],
        targets=[11, 1, 12, 13, 1, 0],
        segment_ids=[1, 1, 1, 2, 2, 0],
        positions=[0, 1, 2, 0, 1, 0],
        weights=[1, 1, 0, 1, 1, 0],
    )


def test_masked_pair_by_hand():
    member = MaskedLM(sequence_length=10, masking_rate=1.0, mask_share=1.0, random_share=0.0, max_predictions=6)
    bound = member.bind(vocabulary())
    assert (bound.rows, bound.row_length, bound.separator) == ("segment_pairs", 7, None)
    arrays = bound(row_of([20, 21, 22, 23, 24], boundary=2, label=1), generator())
    check(
        arrays,
        inputs=[3, 5, 5, 4, 5, 5, 5, 4, 0, 0],
        segment_ids=[1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        positions=[0, 1, 2, 3, 4, 5, 6, 7, 0, 0],
        token_types=[0, 0, 0, 0, 1, 1, 1, 1, 0, 0],
        predict_positions=[1, 2, 4, 5, 6, 0],
        targets=[20, 21, 22, 23, 24, 0],
        weights=[1, 1, 1, 1, 1, 0],
        next_sentence_targets=1,
        next_sentence_weights=1,
    )
    assert bound.row_settings["dupe_factor"] == 10


def test_masked_window_by_hand():
    member = MaskedLM(sequence_length=8, next_sentence=False, masking_rate=0.0, mask_share=0.0, random_share=0.0)
    bound = dataclasses.replace(member, max_predictions=2).bind(vocabulary())
    assert (bound.rows, bound.row_length, bound.separator, bound.heads) == ("windows", 6, 4, {})
    arrays = bound(row_of([20, 4, 21]), generator())
    check(arrays, inputs=[3, 20, 4, 21, 4, 0, 0, 0], token_types=[0] * 8, weights=[1, 0])
    assert arrays["targets"][0] == [3, 20, 4, 21][arrays["predict_positions"][0]]
    assert "next_sentence_targets" not in arrays and "dupe_factor" not in bound.row_settings


@pytest.mark.parametrize("whole_word", [False, True])
def test_masking_statistics(whole_word):
    bound = MaskedLM(sequence_length=128, max_predictions=30, whole_word=whole_word).bind(vocabulary())
    row, rng = random_row(bound), generator()
    clean = np.concatenate([[3], row["tokens"][:62], [4], row["tokens"][62:], [4]])
    kept = masked = total = 0
    chosen = np.zeros(128)
    for _ in range(400):
        arrays = bound(row, rng)
        count = int(arrays["weights"].sum())
        assert count == round(0.15 * 128) if not whole_word else 17 <= count <= 19
        places = arrays["predict_positions"][:count]
        assert (np.diff(places) > 0).all()
        np.testing.assert_array_equal(arrays["targets"][:count], clean[places])
        untouched = np.setdiff1d(np.arange(128), places)
        np.testing.assert_array_equal(arrays["inputs"][untouched], clean[untouched])
        chosen[places] += 1
        total, kept = total + count, kept + (arrays["inputs"][places] == clean[places]).sum()
        masked += (arrays["inputs"][places] == 5).sum()
    assert masked / total == pytest.approx(0.8, abs=0.02)
    assert kept / total == pytest.approx(0.1, abs=0.02)
    assert chosen[[0, 63, 127]].sum() == 0
    if not whole_word:
        ordinary = np.delete(chosen, [0, 63, 127])
        assert ordinary.mean() == pytest.approx(400 * 19 / 125) and ordinary.std() < 12


def test_special_tokens_are_never_chosen():
    bound = MaskedLM(sequence_length=32, masking_rate=1.0, max_predictions=32, next_sentence=False).bind(vocabulary())
    row = row_of([20, 4, 2, 21] * 7)
    for seed in range(20):
        arrays = bound(row, generator(seed))
        count = int(arrays["weights"].sum())
        assert count == 14 and set(arrays["targets"][:count]) == {20, 21}


def test_max_predictions_is_the_limit():
    bound = MaskedLM(sequence_length=128, max_predictions=5).bind(vocabulary())
    assert bound(random_row(bound), generator())["weights"].sum() == 5


def test_whole_words_are_chosen_whole():
    member = MaskedLM(sequence_length=14, next_sentence=False, whole_word=True, masking_rate=0.4, max_predictions=9)
    ids = np.arange(SIZE)
    bound = member.bind(vocabulary(word_starts=(ids % 2 == 0) & (ids >= 10)))
    # The first piece continues a word that was cut off, the one after [SEP] too: neither joins what stands before.
    words = [{1}, {2, 3, 4}, {5, 6}, {8}, {9}]
    row = row_of([21, 20, 21, 23, 20, 21, 4, 25, 30])
    seen, apart = set(), False
    for seed in range(60):
        arrays = bound(row, generator(seed))
        places = set(arrays["predict_positions"][: int(arrays["weights"].sum())].tolist())
        assert len(places) <= round(0.4 * 11)
        assert all(word <= places or not word & places for word in words)
        seen |= places
        apart |= 8 in places and 5 not in places
    assert seen == set().union(*words) and apart


def test_words_that_overflow_are_skipped():
    sizes = generator(3).integers(1, 6, 40)
    for seed in range(50):
        order, budget = generator(seed).permutation(40), seed
        expected, used = [], 0
        for word in order:
            if used + sizes[word] <= budget:
                expected.append(word)
                used += sizes[word]
        assert sorted(fitting(order, sizes, budget)) == sorted(expected)


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
    member = SpanCorruption(sequence_length=length, mean_span_length=span)
    assert (member.row_length, member.target_length) == (row, target)


def test_writing_both_sides_by_hand():
    tokens = np.arange(10, 18)
    noise = np.array([0, 0, 1, 1, 0, 0, 0, 1], bool)
    inputs = spans_to_sentinels(tokens, noise, SENTINELS)
    targets = spans_to_sentinels(tokens, ~noise, SENTINELS)
    np.testing.assert_array_equal(inputs, [10, 11, 199, 14, 15, 16, 198])
    np.testing.assert_array_equal(targets, [199, 12, 13, 198, 17])
    np.testing.assert_array_equal(shifted_right(targets, 0), [0, 199, 12, 13, 198])


def test_the_decoder_starts_from_the_token_that_the_model_names():
    row = row_of([10, 11, 12, 13, 14, 15])
    for words, first in ((vocabulary(), SPECIAL["pad"]), (vocabulary().starting("end"), SPECIAL["end"])):
        arrays = SpanCorruption(sequence_length=6).bind(words)(row, generator())
        assert arrays["inputs"][0] == first
        np.testing.assert_array_equal(arrays["inputs"][1:][arrays["weights"][1:] > 0],
                                      arrays["targets"][:-1][arrays["weights"][1:] > 0])  # fmt: skip


def test_span_corruption_by_hand():
    bound = SpanCorruption(sequence_length=6).bind(vocabulary())
    assert (bound.row_length, bound.target_length) == (5, 3)
    # One noise token, one span, and the noise stands last: nothing is left to chance.
    check(
        bound(row_of([10, 11, 12, 13]), generator()),
        encoder_inputs=[10, 11, 12, 199, 1, 0],
        encoder_segment_ids=[1, 1, 1, 1, 1, 0],
        encoder_positions=[0, 1, 2, 3, 4, 0],
        inputs=[0, 199, 13],
        targets=[199, 13, 1],
        weights=[1, 1, 1],
        segment_ids=[1, 1, 1],
        positions=[0, 1, 2],
    )
    # A row of one token has no noise (T5's code).
    check(bound(row_of([10]), generator()), encoder_inputs=[10, 1, 0, 0, 0, 0], targets=[199, 1, 0], weights=[1, 1, 0])


def test_noise_mask_statistics():
    rng = generator()
    masks = np.stack([random_spans_noise_mask(200, 0.15, 3.0, rng) for _ in range(500)])
    assert (masks.sum(axis=1) == 30).all()
    assert (np.diff(masks.astype(int), axis=1) == 1).sum(axis=1).tolist() == [10] * 500
    assert not masks[:, 0].any() and masks[:, -1].all()
    # Apart from the ends, which are fixed, noise is spread evenly.
    middle = masks[:, 30:170].mean(axis=0)
    assert middle.mean() == pytest.approx(0.15, abs=0.01) and middle.std() < 0.03


def test_compositions_are_equally_likely():
    rng = generator()
    drawn = [tuple(random_composition(5, 3, rng)) for _ in range(1200)]
    counts = {parts: drawn.count(parts) for parts in set(drawn)}
    assert set(counts) == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    assert min(counts.values()) > 150 and max(counts.values()) < 250


@pytest.mark.parametrize("length", [1, 2, 3, 7, 40, 141])
def test_span_corruption_rebuilds_the_text(length):
    bound = SpanCorruption(sequence_length=128).bind(vocabulary())
    row = random_row(bound, seed=length, length=length)
    for seed in range(5):
        arrays = bound(row, generator(seed))
        source = arrays["encoder_inputs"][arrays["encoder_segment_ids"] > 0]
        target = arrays["targets"][arrays["weights"] > 0]
        assert source[-1] == target[-1] == 1
        np.testing.assert_array_equal(arrays["inputs"][arrays["segment_ids"] > 0], [0, *target[:-1]])
        spans, current = {}, None
        for token in target[:-1].tolist():
            current = token if token in SENTINELS else current
            spans.setdefault(current, [])
            spans[current] += [] if token in SENTINELS else [token]
        rebuilt = [part for token in source[:-1].tolist() for part in spans.get(token, [token])]
        assert rebuilt == row["tokens"].tolist()
        if length == bound.row_length:
            assert (len(source), len(target)) == (128, 29)
