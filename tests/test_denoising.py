"""BART's noises: each by hand, what they leave alone, and their rates over many draws."""

import dataclasses

import numpy as np
import pytest

from jaxformer.errors import UserError
from jaxformer.objectives.denoising import Denoising
from jaxformer.objectives.noise import infilling_spans, inserted, permuted_sentences, rotated
from jaxformer.tokenizers import Vocabulary

PAD, END, MASK, START, SIZE = 0, 1, 2, 3, 100
STILL = {"masking_rate": 0.0, "permute_share": 0.0}


def vocabulary(start: bool = True) -> Vocabulary:
    special = {"pad": PAD, "end": END, "mask": MASK} | ({"start": START} if start else {})
    ids = np.arange(SIZE)
    return Vocabulary(SIZE, special, np.array([], np.int32), ids < 4, ids % 2 == 0)  # odd ids continue a word


def row(tokens: list[int] | np.ndarray, sentences: tuple[int, ...] = (0,)) -> dict[str, np.ndarray]:
    starts = np.isin(np.arange(len(tokens)), sentences)
    return {"tokens": np.array(tokens, np.int32), "sentence_starts": starts}


def source(objective: Denoising, tokens: list[int] | np.ndarray, seed: int = 0, **given: tuple[int, ...]) -> list[int]:
    """Return what the encoder reads, without padding and the tokens around the text."""
    arrays = objective.bind(vocabulary())(row(tokens, **given), np.random.default_rng(seed))
    ids = arrays["encoder_inputs"][arrays["encoder_segment_ids"] > 0].tolist()
    assert ids[0] == START and ids[-1] == END
    return ids[1:-1]


def test_without_noise_by_hand() -> None:
    words = vocabulary().starting("end")
    arrays = Denoising(sequence_length=8, **STILL).bind(words)(row([10, 11, 12]), np.random.default_rng(0))
    assert arrays["encoder_inputs"].tolist() == [START, 10, 11, 12, END, PAD, PAD, PAD]
    assert arrays["targets"].tolist() == [START, 10, 11, 12, END, PAD, PAD, PAD]
    assert arrays["inputs"].tolist() == [END, START, 10, 11, 12, PAD, PAD, PAD]  # BART's decoder starts from </s>
    assert arrays["weights"].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert arrays["encoder_positions"].tolist() == [0, 1, 2, 3, 4, 0, 0, 0]
    arrays = Denoising(sequence_length=8, **STILL).bind(vocabulary(False))(row([10, 11]), np.random.default_rng(0))
    assert arrays["encoder_inputs"].tolist() == [10, 11, END, PAD, PAD, PAD, PAD, PAD]


def test_targets_are_the_whole_text_whatever_the_noise() -> None:
    text = np.random.default_rng(0).integers(4, SIZE, 30)
    for seed in range(20):
        objective = Denoising(
            sequence_length=32, masking_rate=0.5, rotate_probability=0.5, random_share=0.2, insert_rate=0.1
        )
        arrays = objective.bind(vocabulary())(row(text, (0, 7, 20)), np.random.default_rng(seed))
        assert arrays["targets"].tolist() == [START, *text, END]


def test_token_masking_and_deletion() -> None:
    text = np.arange(10, 60)
    plain = {"masking_rate": 0.15, "mean_span_length": 0.0, "whole_words": False, "permute_share": 0.0}
    for seed in range(10):
        masked = np.array(source(Denoising(sequence_length=64, replace="token", **plain), text, seed))
        assert len(masked) == 50 and (masked == MASK).sum() == 8  # 15 % of 50, rounded up
        assert np.array_equal(masked[masked != MASK], text[masked != MASK])
        left = source(Denoising(sequence_length=64, replace="nothing", **plain), text, seed)
        assert len(left) == 42 and left == sorted(left)  # the text is ascending: order is kept


def test_infilling_writes_one_mask_for_a_span_of_whole_words() -> None:
    text = np.array([10, 11, 12, 14, 15, 16, 18, 19, 20, 22])  # words: 10 11, 12, 14 15, 16, 18 19, 20, 22
    ends, found = [10, 12, 14, 16, 18, 20, 22], set()
    for seed in range(200):
        left = source(
            Denoising(sequence_length=32, masking_rate=1 / 7, mean_span_length=1.0, permute_share=0.0), text, seed
        )
        assert left.count(MASK) >= 1
        kept = [token for token in left if token != MASK]
        gone = [token for token in text if token not in kept]
        if gone:  # one word, with all its tokens, and a mask in its place
            assert gone[0] in ends and gone[1:] == [gone[0] + 1] * (len(gone) - 1)
            found.add(gone[0])
    assert found == set(ends)


def test_spans_by_hand() -> None:
    class Draws:
        """Stands in for a generator: lengths 2, 0, 5 and words in this order."""

        def poisson(self, mean: float, size: int) -> np.ndarray:
            return np.array([2, 0, 5, 9])[:size]

        def permutation(self, number: int) -> np.ndarray:
            return np.array([3, 0, 1, 2, 4, 5])

    words = np.array([True, False, True, True, False, True, True, False, True])  # 6 words at 0, 2, 3, 5, 6, 8
    firsts, ends, inserts = infilling_spans(words, 4 / 6, 3.0, Draws())  # type: ignore[arg-type]
    # Budget 4: lengths 2, 0 and 2 (5, trimmed). The first span begins at the fourth word, the next at the first.
    assert firsts.tolist() == [5, 0] and ends.tolist() == [8, 3] and inserts == 1


def test_a_span_over_another_leaves_one_mask() -> None:
    masks = set()
    for seed in range(300):
        left = source(
            Denoising(sequence_length=32, masking_rate=0.9, permute_share=0.0, whole_words=False),
            list(range(10, 30)),
            seed,
        )
        masks.add(left.count(MASK))
        kept = [token for token in left if token != MASK]
        assert kept == sorted(kept)
    assert min(masks) == 1


def test_random_tokens_stand_for_their_share_of_masks() -> None:
    text = np.full(400, 50)
    objective = Denoising(
        sequence_length=512, masking_rate=0.5, mean_span_length=0.0, whole_words=False, replace="token",
        random_share=0.3, permute_share=0.0,
    )  # fmt: skip
    counts = [np.array(source(objective, text, seed)) for seed in range(50)]
    masks = np.mean([(ids == MASK).sum() for ids in counts]) / 200
    assert masks == pytest.approx(0.7 + 0.3 / SIZE, abs=0.02)


def test_sentences_change_places_whole() -> None:
    text, starts = np.arange(12), np.isin(np.arange(12), [0, 3, 4, 9])
    sentences = [[0, 1, 2], [3], [4, 5, 6, 7, 8], [9, 10, 11]]
    first = np.zeros(4)
    for seed in range(400):
        found = permuted_sentences(text, starts, 1.0, np.random.default_rng(seed)).tolist()
        order = sorted(range(4), key=lambda n: found.index(sentences[n][0]))
        assert [token for n in order for token in sentences[n]] == found
        first[order[0]] += 1
    assert first.min() > 60  # each comes first about a hundred times
    assert permuted_sentences(text, starts, 0.0, np.random.default_rng(0)).tolist() == text.tolist()
    half = [permuted_sentences(text, starts, 0.5, np.random.default_rng(seed)).tolist() for seed in range(100)]
    orders = [sorted(range(4), key=lambda n: found.index(sentences[n][0])) for found in half]
    # Two of four are chosen, and stay or change places with each other.
    assert {sum(place != sentence for place, sentence in enumerate(order)) for order in orders} == {0, 2}
    assert permuted_sentences(text[:0], starts[:0], 1.0, np.random.default_rng(0)).tolist() == []


def test_rotation_and_insertion() -> None:
    text = np.arange(7)
    begun = {int(rotated(text, np.random.default_rng(seed))[0]) for seed in range(100)}
    assert begun == set(range(7))
    turned = rotated(text, np.random.default_rng(3))
    assert turned.tolist() == [*text[turned[0] :], *text[: turned[0]]]
    for seed in range(50):
        found = inserted(text, np.array([90, 91]), np.random.default_rng(seed))
        assert len(found) == 9 and found[found < 90].tolist() == text.tolist()
    places = {
        tuple(np.flatnonzero(inserted(text[:2], np.array([9]), np.random.default_rng(seed)) == 9)) for seed in range(60)
    }
    assert places == {(0,), (1,), (2,)}
    assert inserted(text, text[:0], np.random.default_rng(0)).tolist() == text.tolist()


def test_statistics_of_infilling() -> None:
    """Over 100,000 words: the covered share, the spans' mean length, and the share of spans of no length."""
    spans, inserts, lengths = 0, 0, []
    words = np.ones(1000, bool)
    for seed in range(100):
        firsts, ends, num_inserted = infilling_spans(words, 0.3, 3.0, np.random.default_rng(seed))
        assert len(set(firsts.tolist())) == len(firsts)
        spans, inserts = spans + len(firsts), inserts + num_inserted
        lengths += (ends - firsts).tolist()
    assert spans + inserts == pytest.approx(100 * 300 / 3, rel=0.03)
    assert inserts / (spans + inserts) == pytest.approx(np.exp(-3), rel=0.15)
    assert np.mean(lengths) == pytest.approx(3 / (1 - np.exp(-3)), rel=0.03)


def test_what_does_not_fit_is_cut_at_its_end() -> None:
    objective = Denoising(sequence_length=10, masking_rate=0.0, permute_share=0.0, insert_rate=1.0)
    arrays = objective.bind(vocabulary())(row(list(range(10, 18))), np.random.default_rng(0))
    assert (arrays["encoder_segment_ids"] == 1).all() and arrays["encoder_inputs"][-1] == END


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replace": "spam"}, "objective.replace: 'spam' is not one of span, token, nothing; did you mean 'span'"),
        ({"masking_rate": 1.5}, "objective.masking_rate"),
        ({"mean_span_length": -1.0}, "objective.mean_span_length"),
        ({"mean_span_length": 1e-9}, "objective.mean_span_length: 1e-09 must be at least 0.1"),
        ({"sequence_length": 2}, "objective.sequence_length"),
    ],
)
def test_impossible_settings_are_refused(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Denoising(**values)


def test_whole_words_need_a_tokenizer_that_says_where_they_begin() -> None:
    wordless = dataclasses.replace(vocabulary(), word_starts=np.arange(SIZE) < 4)  # special tokens alone
    with pytest.raises(UserError, match="objective.whole_words: this tokenizer does not say where words begin"):
        Denoising().bind(wordless)
    for objective in (Denoising(whole_words=False), Denoising(masking_rate=0.0)):
        objective.bind(wordless)
