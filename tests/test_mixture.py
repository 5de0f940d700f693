"""Mixtures of objectives: common shapes, shares, which corpora each reads, and what does not mix."""

import dataclasses
import itertools

import numpy as np
import pytest
from cases import CORPORA, carrier, check, generator, prepared, row_of, vocabulary

from jaxformer.data.batches import train_batches
from jaxformer.errors import UserError
from jaxformer.objectives import Head
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.corruption import PrefixLM, SpanCorruption
from jaxformer.objectives.mixture import ObjectiveMixture, Padded

LONG = {"name": "prefix_lm", "sequence_length": 9}
SHORT = {"name": "span_corruption", "sequence_length": 6}


def mixture(*members, family="encoder_decoder", visibility="causal"):
    return ObjectiveMixture(members=members).for_model(carrier(family, visibility)).bind(vocabulary())


def padded(objective, number):
    return Padded(objective.parts[number].objective, objective.shapes)


def test_arrays_are_filled_up_to_the_longest_of_each():
    bound = mixture(SHORT, LONG)
    first, second = (member.objective.shapes for member in bound.parts)
    assert (first["encoder_inputs"][0], first["targets"][0]) == ((6,), (3,))
    assert (second["encoder_inputs"][0], second["targets"][0]) == ((9,), (9,))
    assert bound.shapes == second
    arrays = padded(bound, 0)(row_of([10, 11, 12, 13]), generator())
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == bound.shapes
    check(
        arrays,
        encoder_inputs=[10, 11, 12, 199, 1, 0, 0, 0, 0],
        encoder_segment_ids=[1, 1, 1, 1, 1, 0, 0, 0, 0],
        encoder_positions=[0, 1, 2, 3, 4, 0, 0, 0, 0],
        inputs=[0, 199, 13, 0, 0, 0, 0, 0, 0],
        targets=[199, 13, 1, 0, 0, 0, 0, 0, 0],
        weights=[1, 1, 1, 0, 0, 0, 0, 0, 0],
        segment_ids=[1, 1, 1, 0, 0, 0, 0, 0, 0],
        positions=[0, 1, 2, 0, 0, 0, 0, 0, 0],
    )


def test_tokens_are_filled_up_with_the_id_of_padding():
    special = {"pad": 7, "end": 1}
    bound = (
        ObjectiveMixture(members=(SHORT, LONG))
        .for_model(carrier("encoder_decoder", "causal"))
        .bind(vocabulary(special=special))
    )
    arrays = padded(bound, 0)(row_of([10, 11, 12, 13]), generator())
    check(arrays, encoder_inputs=[10, 11, 12, 199, 1, 7, 7, 7, 7], targets=[199, 13, 1, 7, 7, 7, 7, 7, 7])
    check(arrays, encoder_segment_ids=[1, 1, 1, 1, 1, 0, 0, 0, 0], weights=[1, 1, 1, 0, 0, 0, 0, 0, 0])


def test_in_one_stack_each_row_has_its_own_prefix():
    bound = mixture(SHORT, LONG, family="decoder_only", visibility="prefix")
    assert bound.shapes["prefix_length"] == ((), np.int32) and bound.shapes["inputs"][0] == (9,)
    arrays = padded(bound, 0)(row_of([10, 11, 12, 13]), generator())
    check(arrays, inputs=[10, 11, 12, 199, 1, 199, 13, 0, 0], weights=[0, 0, 0, 0, 1, 1, 1, 0, 0], prefix_length=5)
    assert all(member.objective.family == "decoder_only" for member in bound.parts)


def test_predictions_of_masked_lm_are_filled_up_too():
    keys = {"name": "masked_lm", "next_sentence": False, "sequence_length": 8}
    bound = mixture(
        keys | {"max_predictions": 1}, keys | {"max_predictions": 3}, family="encoder_only", visibility="full"
    )
    arrays = padded(bound, 0)(row_of([20, 21, 22]), generator())
    assert arrays["weights"].tolist() == [1, 0, 0] and arrays["predict_positions"].shape == (3,)


def test_a_mixture_answers_for_its_members():
    values = {"label_smoothing": 0.1, "z_loss": 0.5}
    bound = mixture(SHORT | values, LONG | values)
    assert (bound.token_smoothing, bound.z_loss, bound.heads) == (0.1, 0.5, {})
    assert bound.coefficients == {"tokens": 1.0}
    pair = {"name": "masked_lm", "sequence_length": 16}
    two = mixture(pair, pair | {"whole_word": True}, family="encoder_only", visibility="full")
    assert two.heads == {"next_sentence": Head(2)} and two.coefficients == {"tokens": 1.0, "next_sentence": 1.0}


def test_shares_are_weights_that_sum_to_one():
    shares = [(m.objective.name, m.weight, m.corpora) for m in mixture(SHORT | {"weight": 3}, LONG).parts]
    assert shares == [("span_corruption", 0.75, ()), ("prefix_lm", 0.25, ())]
    only = mixture(LONG | {"corpora": [1, 0]}).parts
    assert [(member.weight, member.corpora) for member in only] == [(1.0, (1, 0))]


# With the data.


def test_each_objective_reads_its_corpora(tmp_path):
    bound = mixture(SHORT | {"weight": 3.0}, LONG | {"corpora": [1]})
    members = prepared(bound, tmp_path, corpora=2)
    assert [member.name for member in members] == [
        "span_corruption0-data0",
        "span_corruption0-data1",
        "prefix_lm1-data1",
    ]
    np.testing.assert_allclose([member.weight for member in members], [0.375, 0.375, 0.25])
    assert [member.rows.store.fingerprint for member in members] == ["corpus 0", "corpus 1", "corpus 1"]
    assert [member.rows.settings["row_length"] for member in members] == [5, 5, 8]


def test_rates_of_the_data_hold_within_the_corpora_that_an_objective_reads(tmp_path):
    bound = mixture(SHORT | {"weight": 3.0}, LONG | {"corpora": [1]})
    members = prepared(bound, tmp_path, corpora=2, mixing="proportional")
    first, second, third = members
    rows = len(first.rows), len(second.rows)
    assert rows[0] > rows[1]  # five tokens a row
    tokens = [sum(len(sentence) for document in corpus for sentence in document) for corpus in CORPORA]
    assert rows == (tokens[0] // 5, tokens[1] // 5)
    np.testing.assert_allclose([first.weight, second.weight], 0.75 * np.array(rows) / sum(rows))
    assert third.weight == pytest.approx(0.25)


def test_an_objective_alone_reads_every_corpus(tmp_path):
    members = prepared(SpanCorruption(sequence_length=6).bind(vocabulary()), tmp_path, corpora=2)
    assert [(member.name, member.weight) for member in members] == [("data0", 0.5), ("data1", 0.5)]
    (only,) = prepared(SpanCorruption(sequence_length=6).bind(vocabulary()), tmp_path)
    assert (only.name, only.weight) == ("", 1.0) and isinstance(only.transform, SpanCorruption)
    (lone,) = prepared(mixture(SHORT), tmp_path)
    assert (lone.name, lone.weight) == ("", 1.0) and isinstance(lone.transform, SpanCorruption)


def test_examples_are_drawn_by_weight(tmp_path):
    members = prepared(mixture(SHORT | {"weight": 3.0}, LONG | {"corpora": [1]}), tmp_path, corpora=2)
    batches = train_batches(members, seed=0, batch_size=20)
    batches_of_long = [
        int((batch["encoder_segment_ids"].sum(axis=1) + batch["segment_ids"].sum(axis=1) == 10).sum())
        for batch in itertools.islice(batches, 10)
    ]
    batches.close()
    # A row of 8 tokens, cut in two, each with EOS; span corruptions of 5 tokens have 9 in all.
    assert sum(batches_of_long) == 50


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ([2], r"objective.members\[1\].corpora: there is no data.members\[2\]; their numbers are 0 to 1"),
        ([0, -1], r"objective.members\[1\].corpora: there is no data.members\[-1\]"),
    ],
)
def test_a_corpus_that_is_not_there_is_refused(corpora, message, tmp_path):
    with pytest.raises(UserError, match=message):
        prepared(mixture(SHORT, LONG | {"corpora": corpora}), tmp_path, corpora=2)


def test_the_only_corpus_is_number_zero(tmp_path):
    assert len(prepared(mixture(SHORT, LONG | {"corpora": [0]}), tmp_path)) == 2
    with pytest.raises(UserError, match="numbers are 0 to 0"):
        prepared(mixture(SHORT, LONG | {"corpora": [1]}), tmp_path)


# What does not mix.


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((), "objective.members: a mixture needs at least one member"),
        (("prefix_lm",), r"objective.members\[0\]: 'prefix_lm' is not a dict"),
        ((SHORT, {"name": "span_corupt"}), r"objective.members\[1\].name: no 'span_corupt'; did you mean"),
        ((SHORT, {"name": "mixture", "members": ()}), r"objective.members\[1\].name: no 'mixture'"),
        ((SHORT | {"corpora": 1},), r"objective.members\[0\].corpora: 1 is not a list of numbers"),
        ((SHORT | {"corpora": [0, 0]},), r"objective.members\[0\].corpora: \[0, 0\] names a corpus twice"),
        ((SHORT | {"corpora": ["a"]},), r"objective.members\[0\].corpora: \['a'\] is not a list"),
        ((SHORT | {"corpora": [True]},), r"objective.members\[0\].corpora: \[True\] is not a list"),
        ((SHORT, LONG | {"weight": 0}), r"objective.members\[1\].weight: 0 must be above 0"),
        ((SHORT | {"noise_density": 2.0},), r"objective.members\[0\].noise_density: 2.0 must be"),
        ((SHORT | {"sequence_lenth": 8},), r"members\[0\].sequence_lenth: no such key; did you mean 'sequence_length'"),
        ((SHORT | {"vocabulary": None},), r"objective.members\[0\].vocabulary: no such key"),
        ((SHORT | {"family": "decoder_only"},), r"objective.members\[0\].family: no such key"),
    ],
)
def test_a_bad_member_is_named(members, message):
    with pytest.raises(UserError, match=message) as caught:
        ObjectiveMixture(members=members)
    assert len(str(caught.value).splitlines()) == 1


CAUSAL = {"name": "causal_lm", "sequence_length": 8}
MASKED = {"name": "masked_lm", "sequence_length": 8, "next_sentence": False}


@pytest.mark.parametrize(
    ("members", "family", "visibility", "message"),
    [
        (
            (SHORT, LONG | {"z_loss": 0.0}), "encoder_decoder", "causal",
            r"objective.members\[1\]: z_loss is 0.0, but that of span_corruption 0.0001: a run has one loss",
        ),
        ((SHORT, LONG | {"label_smoothing": 0.1}), "encoder_decoder", "causal", r"\[1\]: label_smoothing is 0.1"),
        ((MASKED, MASKED | {"next_sentence": True}), "encoder_only", "full", r"\[1\]: heads is {'next_sentence'"),
        (
            (CAUSAL, LONG | {"z_loss": 0.0}), "decoder_only", "prefix",
            r"members\[1\]: prefix_lm does not mix with causal_lm: only one of them emits prefix_length",
        ),
        (
            (MASKED, CAUSAL), "encoder_only", "causal",
            r"members\[1\]: causal_lm does not mix with masked_lm: only one of them emits predict_positions",
        ),
        (
            (CAUSAL, MASKED), "decoder_only", "causal",
            r"^objective.members\[1\].name: masked_lm cannot train a model of decoder_only",
        ),
        ((SHORT, LONG), "decoder_only", "causal", r"^objective.members\[1\].name: prefix_lm needs a model that sees"),
        ((CAUSAL,), "encoder_decoder", "causal", r"^objective.members\[0\].name: causal_lm cannot train"),
    ],
)  # fmt: skip
def test_members_that_do_not_go_together_are_refused(members, family, visibility, message):
    with pytest.raises(UserError, match=message) as caught:
        ObjectiveMixture(members=members).for_model(carrier(family, visibility))
    assert len(str(caught.value).splitlines()) == 1


def test_a_mixture_is_bound_whole():
    carried = ObjectiveMixture(members=(SHORT, LONG)).for_model(carrier("encoder_decoder"))
    with pytest.raises(UserError, match="no 'end' token"):
        carried.bind(vocabulary(without=("end",)))
    bound = mixture(SHORT, LONG)
    assert [member.objective.vocabulary.size for member in bound.parts] == [200, 200]
    assert [type(member.objective) for member in bound.parts] == [SpanCorruption, PrefixLM]
    assert dataclasses.replace(bound, members=bound.members) == bound
    assert (
        ObjectiveMixture(members=(CAUSAL,))
        == ObjectiveMixture(members=(CAUSAL,))
        != ObjectiveMixture(members=(CAUSAL | {"weight": 2.0},))
    )
    assert isinstance(ObjectiveMixture(members=(CAUSAL,)).parts[0].objective, CausalLM)
