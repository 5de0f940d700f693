"""Masked language modelling: rows by hand, which tokens are chosen, masks that stay, rare tokens first."""

import dataclasses

import numpy as np
import pytest
from cases import CLS, SEP, SIZE, WORDS, check, generator, random_row, row_of, store_of, vocabulary

from jaxformer.data.rows import build_rows
from jaxformer.errors import UserError
from jaxformer.objectives import Head
from jaxformer.objectives.masked_lm import MaskedLM, fitting

ALL_MASKED = {"masking_rate": 1.0, "mask_share": 1.0, "random_share": 0.0}
SHARES = {"keep": {"mask_share": 0.0, "random_share": 0.0}, "random": {"mask_share": 0.0, "random_share": 1.0}}


def chosen(arrays):
    """The places that a row predicts."""
    return arrays["predict_positions"][arrays["weights"] > 0]


def test_masked_pair_by_hand():
    bound = MaskedLM(sequence_length=10, max_predictions=6, **ALL_MASKED).bind(vocabulary())
    assert (bound.rows, bound.row_length, bound.separator) == ("segment_pairs", 7, None)
    assert bound.heads == {"next_sentence": Head(2)} and bound.coefficients == {"tokens": 1.0, "next_sentence": 1.0}
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


def test_masked_window_by_hand():
    member = MaskedLM(sequence_length=8, next_sentence=False, masking_rate=0.0, max_predictions=2, **SHARES["keep"])
    bound = member.bind(vocabulary())
    assert (bound.rows, bound.row_length, bound.separator, bound.heads) == ("windows", 6, SEP, {})
    arrays = bound(row_of([20, SEP, 21]), generator())
    check(arrays, inputs=[CLS, 20, SEP, 21, SEP, 0, 0, 0], token_types=[0] * 8, weights=[1, 0])
    assert arrays["targets"][0] == [CLS, 20, SEP, 21][arrays["predict_positions"][0]]
    assert "next_sentence_targets" not in arrays
    # A window that ends with its document has its separator already.
    check(bound(row_of([20, 21, SEP]), generator()), inputs=[CLS, 20, 21, SEP, 0, 0, 0, 0])


def test_a_window_that_ends_with_its_document_has_one_separator_there():
    bound = MaskedLM(sequence_length=6, next_sentence=False, max_predictions=3, **ALL_MASKED).bind(vocabulary())
    check(bound(row_of([20, 21, SEP]), generator()), inputs=[CLS, 5, 5, SEP, 0, 0], targets=[20, 21, 0])
    check(bound(row_of([20, SEP, 21, SEP]), generator()), inputs=[CLS, 5, SEP, 5, SEP, 0], weights=[1, 1, 0])
    check(bound(row_of([20, SEP, 21, 22]), generator()), inputs=[CLS, 5, SEP, 5, 5, SEP], segment_ids=[1] * 6)
    pair = MaskedLM(sequence_length=8, max_predictions=3, **ALL_MASKED).bind(vocabulary())
    arrays = pair(row_of([20, SEP], boundary=1), generator())  # not of pairs, whose frame is the same whatever the text
    check(arrays, inputs=[CLS, 5, SEP, SEP, SEP, 0, 0, 0], token_types=[0, 0, 0, 1, 1, 0, 0, 0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {"dupe_factor": 10, "short_sequence_probability": 0.1}),
        ({"masks": "static", "dupe_factor": 5}, {"dupe_factor": 5, "short_sequence_probability": 0.1}),
        ({"next_sentence": False}, {}),
        ({"next_sentence": False, "masks": "static"}, {"dupe_factor": 10}),
        ({"next_sentence": False, "frequency_smoothing": 0.7}, {"frequency_smoothing": 0.7}),
    ],
)
def test_rows_are_made_as_the_settings_ask(values, expected):
    settings = MaskedLM(**values).bind(vocabulary()).row_settings
    assert {key: settings[key] for key in settings if key not in ("rows", "row_length", "separator")} == expected


def test_a_chosen_token_is_kept_or_replaced_by_any_other():
    row, text = row_of(WORDS[:60], boundary=30), np.concatenate([[CLS], WORDS[:30], [SEP], WORDS[30:60], [SEP]])
    for share, values in SHARES.items():
        bound = MaskedLM(sequence_length=64, max_predictions=60, masking_rate=1.0, **values).bind(vocabulary())
        arrays = bound(row, generator())
        places = chosen(arrays)
        assert len(places) == 60 and (arrays["targets"] == text[places]).all()
        kept = (arrays["inputs"][places] == text[places]).mean()
        if share == "keep":
            assert kept == 1
        else:
            assert kept < 0.1 and len(set(arrays["inputs"][places])) > 40


@pytest.mark.parametrize("whole_word", [False, True])
def test_what_is_not_chosen_stays_and_targets_are_the_text(whole_word):
    bound = MaskedLM(sequence_length=128, max_predictions=30, whole_word=whole_word).bind(vocabulary())
    row = random_row(bound)
    clean = np.concatenate([[CLS], row["tokens"][:62], [SEP], row["tokens"][62:], [SEP]])
    for seed in range(50):
        arrays = bound(row, generator(seed))
        places = chosen(arrays)
        assert len(places) == 19 if not whole_word else 17 <= len(places) <= 19  # 15 % of 128
        assert (np.diff(places) > 0).all()
        np.testing.assert_array_equal(arrays["targets"][: len(places)], clean[places])
        untouched = np.setdiff1d(np.arange(128), places)
        np.testing.assert_array_equal(arrays["inputs"][untouched], clean[untouched])


def test_special_tokens_are_never_chosen():
    bound = MaskedLM(sequence_length=32, masking_rate=1.0, max_predictions=32, next_sentence=False).bind(vocabulary())
    row = row_of([20, SEP, 2, 21] * 7)
    for seed in range(20):
        arrays = bound(row, generator(seed))
        count = int(arrays["weights"].sum())
        assert count == 14 and set(arrays["targets"][:count]) == {20, 21}


def test_max_predictions_is_the_limit_and_one_the_least():
    bound = MaskedLM(sequence_length=128, max_predictions=5).bind(vocabulary())
    assert bound(random_row(bound), generator())["weights"].sum() == 5
    assert bound(row_of([20, 21]), generator())["weights"].sum() == 1  # 15 % of 5 tokens is less than one


def test_whole_words_are_chosen_whole():
    member = MaskedLM(sequence_length=14, next_sentence=False, whole_word=True, masking_rate=0.4, max_predictions=9)
    ids = np.arange(SIZE)
    bound = member.bind(vocabulary(word_starts=(ids % 2 == 0) & (ids >= 10)))
    # The first piece continues a word that was cut off, the one after [SEP] too: neither joins what stands before.
    words = [{1}, {2, 3, 4}, {5, 6}, {8}, {9}]
    row = row_of([21, 20, 21, 23, 20, 21, SEP, 25, 30])
    seen, apart = set(), False
    for seed in range(60):
        places = set(chosen(bound(row, generator(seed))).tolist())
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


@pytest.mark.parametrize("next_sentence", [False, True])
def test_static_masks_belong_to_the_row_and_not_to_the_visit(next_sentence):
    member = MaskedLM(sequence_length=64, masks="static", next_sentence=next_sentence)
    bound = member.bind(vocabulary())
    row = random_row(bound) | {"number": 7, "seed": 3}
    first, again = (bound(row, generator(seed)) for seed in (0, 1))
    check(again, **first)
    for change in ({"number": 8}, {"seed": 4}):
        other = bound(row | change, generator())
        assert (other["predict_positions"] != first["predict_positions"]).any()
    dynamic = dataclasses.replace(bound, masks="dynamic")
    visits = [dynamic(row, generator(seed)) for seed in (0, 1)]
    assert (visits[0]["predict_positions"] != visits[1]["predict_positions"]).any()


@pytest.mark.parametrize("masks", ["static", "dynamic"])
def test_each_copy_of_the_corpus_has_its_own_static_masks(masks):
    store = store_of([WORDS[:100].tolist()])
    bound = MaskedLM(sequence_length=52, next_sentence=False, masks=masks, dupe_factor=4).bind(vocabulary())
    rows = build_rows(store, bound, seed=0, cache=False)
    assert len(rows) == (8 if masks == "static" else 2)
    if masks == "static":
        copies = [rows[number] for number in range(0, 8, 2)]
        assert all((copy["tokens"] == WORDS[:50]).all() for copy in copies)
        places = [bound(copy, generator())["predict_positions"].tolist() for copy in copies]
        assert len(set(map(tuple, places))) == 4
        assert places == [bound(copy, generator(1))["predict_positions"].tolist() for copy in copies]


def test_rare_tokens_are_chosen_first():
    bound = MaskedLM(sequence_length=16, next_sentence=False, frequency_smoothing=0.7, max_predictions=2).bind(
        vocabulary()
    )
    rarity = np.where(np.isin(np.arange(14), [4, 9]), 1.0, 1e-12)
    row = row_of(WORDS[:14], rarity=rarity)
    for seed in range(50):
        assert chosen(bound(row, generator(seed))).tolist() == [5, 10]


def test_rarity_does_not_choose_special_tokens():
    bound = MaskedLM(sequence_length=16, next_sentence=False, frequency_smoothing=0.7, masking_rate=1.0).bind(
        vocabulary()
    )
    arrays = bound(row_of([SEP, 20, SEP, 21], rarity=np.array([1.0, 1e-9, 1.0, 1e-9])), generator())
    assert chosen(arrays).tolist() == [2, 4] and arrays["targets"][:2].tolist() == [20, 21]


def test_a_separator_that_the_text_never_has_has_a_rarity():
    """Windows put it between documents, where its id may be larger than any of the text's."""
    text = [[20, 21, 20], [22]]
    bound = MaskedLM(sequence_length=8, next_sentence=False, frequency_smoothing=0.5).bind(
        vocabulary(special={"pad": 0, "classify": 1, "separator": 150, "mask": 151})
    )
    rows = build_rows(store_of(*([sentence] for sentence in text)), bound, seed=0, cache=False)
    np.testing.assert_allclose(rows[0]["rarity"], [2**-0.5, 1, 2**-0.5, 1, 1, 1])
    assert rows[0]["tokens"].tolist() == [20, 21, 20, 150, 22, 150]
    bound(rows[0], generator())


def test_whole_words_need_a_tokenizer_that_says_where_they_begin():
    words = vocabulary()
    wordless = vocabulary(word_starts=words.is_special)
    with pytest.raises(UserError, match="objective.whole_word: this tokenizer does not say where words begin"):
        MaskedLM(whole_word=True).bind(wordless)
    MaskedLM().bind(wordless)
