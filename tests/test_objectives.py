"""Objectives: what all have in common, and causal and prefix language models and parallel text by hand.

T5's corruptions have tests in test_corruption.py, BART's noises in test_denoising.py, masks in test_masked_lm.py,
mixtures in test_mixture.py; what holds for every objective is tested in test_objective_properties.py.
"""

import pickle

import numpy as np
import pytest
from cases import (
    CASES,
    CLS,
    SENTINELS,
    SEP,
    SPECIAL,
    carrier,
    check,
    draws,
    generator,
    pairs_row,
    random_row,
    row_of,
    vocabulary,
)

from jaxformer.errors import UserError
from jaxformer.models.config import FAMILIES
from jaxformer.objectives import NOT_PROVIDED, OBJECTIVES
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.corruption import BertStyle, MassStyle, PlainLM, PrefixLM, ReplaceSpans, SpanCorruption
from jaxformer.objectives.denoising import Denoising
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.objective import insert, spelled
from jaxformer.objectives.parallel_text import ParallelText


@pytest.fixture(params=CASES, ids=lambda case: case.label)
def case(request):
    return request.param


def test_every_objective_is_a_case_in_every_family_it_allows():
    assert all(kind.name == name and kind.paper for name, kind in OBJECTIVES.items())
    covered = {(type(case.objective), case.family) for case in CASES}
    assert covered == {(kind, family) for kind in OBJECTIVES.values() for family in kind.families}


def test_every_family_is_allowed_or_refused_with_a_reason():
    for kind in OBJECTIVES.values():
        assert set(kind.families) | set(kind.refusals) == set(FAMILIES), kind.name
    assert not NOT_PROVIDED.keys() & OBJECTIVES.keys()


@pytest.mark.parametrize(
    ("objective", "family", "visibility", "message"),
    [
        (CausalLM(), "decoder_only", "full", "sees what it predicts"),
        (CausalLM(), "encoder_only", "full", "sees what it predicts"),
        (CausalLM(), "encoder_decoder", "causal", "plain_lm"),
        (MaskedLM(), "encoder_only", "prefix", "has no prefix"),
        (MaskedLM(), "encoder_only", "causal", r"objective\.next_sentence"),
        (MaskedLM(), "decoder_only", "causal", "both its sides"),
        (MaskedLM(), "encoder_decoder", "causal", "bert_style and token_masking"),
        (PrefixLM(), "decoder_only", "causal", "model.visibility=prefix"),
        (PrefixLM(), "decoder_only", "full", "not full"),
        (PrefixLM(), "encoder_only", "full", "no decoder"),
        (PlainLM(), "decoder_only", "causal", "causal_lm"),
        (SpanCorruption(), "decoder_only", "full", "not full"),
        (SpanCorruption(), "encoder_only", "full", "no decoder"),
        (Denoising(), "encoder_only", "full", "no decoder"),
        (ParallelText(), "encoder_only", "causal", "no decoder"),
    ],
)
def test_a_model_that_cannot_carry_an_objective_is_refused(objective, family, visibility, message):
    with pytest.raises(UserError, match=message) as caught:
        objective.for_model(carrier(family, visibility))
    assert str(caught.value).startswith("objective.") and len(str(caught.value).splitlines()) == 1


def test_an_empty_row_counts_nothing(case):
    for transform, objective in case.parts:
        arrays = transform(random_row(objective, length=0), generator())
        for name, array in arrays.items():
            if name.endswith(("weights", "segment_ids")):
                assert not array.any(), name


def test_the_same_rng_gives_the_same_arrays(case):
    for transform, objective in case.parts:
        row = random_row(objective)
        before = row["tokens"].copy()
        first, again = (transform(row, generator(seed)) for seed in (1, 1))
        copied = pickle.loads(pickle.dumps(transform))(row, generator(1))
        others = [transform(row, generator(seed)) for seed in range(2, 7)]
        for name in first:
            np.testing.assert_array_equal(first[name], again[name])
            np.testing.assert_array_equal(first[name], copied[name])
        differs = any((first[name] != other[name]).any() for other in others for name in first)
        assert differs == draws(objective)
        np.testing.assert_array_equal(row["tokens"], before)


def test_members_the_step_and_the_data_read(case):
    objective = case.objective
    assert set(objective.coefficients) == {"tokens", *objective.heads}
    assert objective.predicts_tokens and 0 <= objective.token_smoothing < 1 and objective.z_loss >= 0
    for _, part in case.parts:
        settings = part.row_settings
        assert settings["rows"] == part.rows in ("windows", "packed", "segment_pairs", "pairs")
        if part.rows != "pairs":
            assert settings["row_length"] == part.row_length
        else:
            assert settings["lengths"] == [part.source_length, part.target_length]


def test_an_objective_is_bound_before_it_writes():
    for objective in (CausalLM(), SpanCorruption(sequence_length=8), MaskedLM(next_sentence=False)):
        with pytest.raises(TypeError, match="call bind first"):
            objective(row_of([10, 11]), generator())


def test_references_are_places_of_the_row_or_ids_put_in():
    tokens = np.array([20, 21, 22], np.int32)
    written = np.concatenate([[2], insert([5, 0]), [0]])
    np.testing.assert_array_equal(spelled(written, tokens), [22, 5, 0, 20])
    np.testing.assert_array_equal(spelled(insert([7]), tokens[:0]), [7])


@pytest.mark.parametrize(
    ("member", "role"),
    [
        (CausalLM(packing="documents"), "end"),
        (CausalLM(packing="documents").for_model(carrier("encoder_only", "causal")), "separator"),
        (CausalLM().for_model(carrier("encoder_only", "causal")), "classify"),
        (MaskedLM(), "mask"),
        (MaskedLM(), "classify"),
        (MaskedLM(), "separator"),
        (SpanCorruption(), "end"),
        (Denoising(), "mask"),
        (Denoising(), "end"),
        (ParallelText(), "end"),
    ],
)
def test_a_vocabulary_without_a_role_is_refused(member, role):
    member.bind(vocabulary())
    with pytest.raises(UserError, match=f"no '{role}' token"):
        member.bind(vocabulary(without=(role,)))


def test_t5_masks_with_the_first_sentinel_where_there_is_no_mask():
    for kind in (BertStyle, MassStyle):
        kind().bind(vocabulary(without=("mask",)))
        kind().bind(vocabulary(sentinels=SENTINELS[:0]))
        with pytest.raises(UserError, match="no 'mask' token"):
            kind().bind(vocabulary(without=("mask",), sentinels=SENTINELS[:0]))


def test_too_few_sentinels_are_refused():
    SpanCorruption().bind(vocabulary(sentinels=SENTINELS[:28]))
    with pytest.raises(UserError, match="28 sentinels"):
        SpanCorruption().bind(vocabulary(sentinels=SENTINELS[:27]))
    with pytest.raises(UserError, match="objective.sequence_length: 512 tokens need .* sentinels"):
        ReplaceSpans().bind(vocabulary())


@pytest.mark.parametrize(
    ("kind", "values", "key"),
    [
        (CausalLM, {"packing": "document"}, "packing.*did you mean 'documents'"),
        (CausalLM, {"sequence_length": 0}, "sequence_length"),
        (CausalLM, {"label_smoothing": 1.5}, "label_smoothing"),
        (CausalLM, {"z_loss": -1.0}, "z_loss"),
        (MaskedLM, {"mask_share": 0.95}, "random_share"),
        (MaskedLM, {"masking_rate": 1.5}, "masking_rate"),
        (MaskedLM, {"masks": "statik"}, "masks.*did you mean 'static'"),
        (MaskedLM, {"dupe_factor": 0}, "dupe_factor"),
        (MaskedLM, {"sequence_length": 4}, "sequence_length"),
        (MaskedLM, {"frequency_smoothing": -0.7}, "frequency_smoothing"),
        (MaskedLM, {"frequency_smoothing": 0.7, "whole_word": True}, "frequency_smoothing"),
        (SpanCorruption, {"noise_density": 1.0}, "noise_density"),
        (SpanCorruption, {"mean_span_length": 0.5}, "mean_span_length"),
        (SpanCorruption, {"sequence_length": 2}, "sequence_length"),
        (SpanCorruption, {"max_target_length": -1}, "max_target_length"),
        (SpanCorruption, {"noise": "span"}, "noise.*did you mean 'spans'"),
        (SpanCorruption, {"inputs": "masks"}, "inputs.*did you mean 'mask'"),
        (SpanCorruption, {"targets": "mask"}, "targets: 'mask' is not one of sentinels, noise, text"),
        (BertStyle, {"random_share": 2.0}, "random_share"),
        (ParallelText, {"target_field": "source"}, "target_field: 'source' is the source already"),
        (ParallelText, {"source_length": 1}, "source_length"),
    ],
)
def test_impossible_settings_are_refused(kind, values, key):
    with pytest.raises(UserError, match=f"objective.{key}"):
        kind(**values)


# Causal language modelling.


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
    assert "token_types" not in arrays


def test_windows_without_an_end_token_are_joined_by_nothing():
    """GPT's released vocabulary has none."""
    assert CausalLM(sequence_length=6).bind(vocabulary(without=("end",))).separator is None


@pytest.mark.parametrize("packing", ["windows", "documents"])
@pytest.mark.parametrize("document_mask", [False, True])
def test_packing_and_document_mask_by_hand(packing, document_mask):
    bound = CausalLM(sequence_length=6, packing=packing, document_mask=document_mask).bind(vocabulary())
    assert bound.rows == {"windows": "windows", "documents": "packed"}[packing]
    assert (bound.row_length, bound.separator) == (7, 1)
    arrays = bound(row_of([10, 11, 1, 12, 13, 1], segments=[1, 1, 1, 2, 2, 2]), generator())
    check(arrays, inputs=[10, 11, 1, 12, 13, 0], targets=[11, 1, 12, 13, 1, 0])
    if document_mask:
        check(arrays, segment_ids=[1, 1, 1, 2, 2, 0], positions=[0, 1, 2, 0, 1, 0], weights=[1, 1, 0, 1, 1, 0])
    else:
        check(arrays, segment_ids=[1, 1, 1, 1, 1, 0], positions=[0, 1, 2, 3, 4, 0], weights=[1, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("document_mask", [False, True])
def test_a_causal_encoder_reads_from_classify_on(document_mask):
    """BERT's left-to-right model: [CLS] first, [SEP] after every document, as many predictions as tokens."""
    objective = CausalLM(sequence_length=6, document_mask=document_mask).for_model(carrier("encoder_only", "causal"))
    bound = objective.bind(vocabulary())
    assert (bound.row_length, bound.separator) == (6, SEP)
    arrays = bound(row_of([10, 11, SEP, 12, 13], segments=[1, 1, 1, 2, 2]), generator())
    check(arrays, inputs=[CLS, 10, 11, SEP, 12, 0], targets=[10, 11, SEP, 12, 13, 0], token_types=[0] * 6)
    if document_mask:
        check(arrays, segment_ids=[1, 1, 1, 1, 2, 0], positions=[0, 1, 2, 3, 0, 0], weights=[1, 1, 1, 0, 1, 0])
    else:
        check(arrays, segment_ids=[1, 1, 1, 1, 1, 0], positions=[0, 1, 2, 3, 4, 0], weights=[1, 1, 1, 1, 1, 0])
    full = bound(row_of([10, 11, 12, 13, 14, 15]), generator())
    check(full, inputs=[CLS, 10, 11, 12, 13, 14], targets=[10, 11, 12, 13, 14, 15], weights=[1] * 6)


def test_the_length_of_a_causal_row_is_that_of_its_predictions():
    arrays = CausalLM(sequence_length=4).bind(vocabulary())(row_of([10, 11, 12, 13, 14, 15]), generator())
    check(arrays, inputs=[10, 11, 12, 13], targets=[11, 12, 13, 14], weights=[1] * 4)  # 15 is beyond the row


# Prefix language modelling.


class Draws:
    """Stands in for a generator whose whole numbers are `value`, checked to be within the bounds asked for."""

    def __init__(self, value):
        self.value = value

    def integers(self, low, high):
        assert low <= self.value < high
        return self.value


def test_a_prefix_in_one_stack_by_hand():
    bound = PrefixLM(sequence_length=6).for_model(carrier("decoder_only", "prefix")).bind(vocabulary())
    assert (bound.rows, bound.row_length, bound.separator) == ("windows", 7, SPECIAL["end"])
    arrays = bound(row_of(range(10, 17)), Draws(3))
    check(
        arrays,
        inputs=[10, 11, 12, 13, 14, 15],
        targets=[11, 12, 13, 14, 15, 16],
        segment_ids=[1] * 6,
        positions=[0, 1, 2, 3, 4, 5],
        weights=[0, 0, 1, 1, 1, 1],
        prefix_length=3,
    )
    short = bound(row_of([10, 11, 12]), Draws(1))
    check(short, inputs=[10, 11, 0, 0, 0, 0], targets=[11, 12, 0, 0, 0, 0], weights=[1, 1, 0, 0, 0, 0], prefix_length=1)
    with pytest.raises(AssertionError):
        bound(row_of(range(10, 17)), Draws(0))  # one token is always kept
    with pytest.raises(AssertionError):
        bound(row_of(range(10, 17)), Draws(7))  # and one predicted
    assert bound.shapes.keys() == {"inputs", "segment_ids", "positions", "targets", "weights", "prefix_length"}


def test_a_prefix_in_two_stacks_by_hand():
    bound = PrefixLM(sequence_length=6).for_model(carrier("encoder_decoder", "causal")).bind(vocabulary())
    assert (bound.row_length, bound.separator, bound.source_length, bound.target_length) == (5, None, 6, 6)
    check(
        bound(row_of([10, 11, 12, 13, 14]), Draws(2)),
        encoder_inputs=[10, 11, 1, 0, 0, 0],
        encoder_segment_ids=[1, 1, 1, 0, 0, 0],
        inputs=[0, 12, 13, 14, 0, 0],
        targets=[12, 13, 14, 1, 0, 0],
        weights=[1, 1, 1, 1, 0, 0],
    )


# Pairs of texts.


PAIRS = ([10, 11], [20]), ([12], [21, 22])


def test_packed_pairs_by_hand():
    bound = ParallelText(source_length=7, target_length=6).bind(vocabulary())
    assert bound.row_settings == {"rows": "pairs", "lengths": [7, 6], "pack": True}
    assert bound.fields == ("source", "target")
    check(
        bound(pairs_row(*PAIRS), generator()),
        encoder_inputs=[10, 11, 1, 12, 1, 0, 0],
        encoder_segment_ids=[1, 1, 1, 2, 2, 0, 0],
        encoder_positions=[0, 1, 2, 0, 1, 0, 0],
        inputs=[0, 20, 0, 21, 22, 0],
        segment_ids=[1, 1, 2, 2, 2, 0],
        positions=[0, 1, 0, 1, 2, 0],
        targets=[20, 1, 21, 22, 1, 0],
        weights=[1, 1, 1, 1, 1, 0],
    )


def test_a_pair_alone_by_hand():
    bound = ParallelText(source_length=4, target_length=4, pack=False).bind(vocabulary().starting("end"))
    assert bound.row_settings["pack"] is False
    check(
        bound(pairs_row(PAIRS[1]), generator()),
        encoder_inputs=[12, 1, 0, 0],
        inputs=[1, 21, 22, 0],
        targets=[21, 22, 1, 0],
        weights=[1, 1, 1, 0],
    )


def test_a_pair_in_one_stack_by_hand():
    carried = ParallelText(source_length=4, target_length=4).for_model(carrier("decoder_only", "prefix"))
    bound = carried.bind(vocabulary())
    assert bound.row_settings["pack"] is False  # one pair a row, whatever `pack` says
    check(
        bound(pairs_row(PAIRS[1]), generator()),
        inputs=[12, 1, 21, 22, 0, 0, 0],
        targets=[1, 21, 22, 1, 0, 0, 0],
        segment_ids=[1, 1, 1, 1, 0, 0, 0],
        positions=[0, 1, 2, 3, 0, 0, 0],
        weights=[0, 1, 1, 1, 0, 0, 0],
        prefix_length=2,
    )
