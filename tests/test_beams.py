"""Beam search: against a search by hand that recomputes everything, its penalties, ends, and refusals."""

import itertools

import jax
import numpy as np
import pytest
from sampling import sampled
from test_generation import PROMPTS, START, built, logits_after, prompts_of

from jaxformer.errors import UserError
from jaxformer.generation import Answer, GenerationConfig, TokenRules, choice_table, decoding_weights, generate
from jaxformer.generation.beams import largest, penalty

NEW, BEAMS = 5, 3


def test_the_largest_are_those_of_a_sort() -> None:
    """Of many values, of few that are often equal, and where most are ruled out."""
    rng = np.random.default_rng(0)
    for num, kinds in itertools.product((600, 1001), (3, 10**6)):
        values = rng.integers(0, kinds, (2, num)).astype(np.float32)
        values[1, 5:] = -np.inf
        found, places = jax.jit(largest, static_argnums=1)(values, 8)
        expected = np.argsort(-values, axis=1, kind="stable")[:, :8]
        assert np.array_equal(places, expected)
        assert np.array_equal(found, np.take_along_axis(values, expected, axis=1))


def searched(
    name: str, prompts: list[np.ndarray], end_id: int, choices: object = None, **config: object
) -> list[list[Answer]]:
    model, params = built(name)
    settings = {"max_new_tokens": NEW, "num_beams": BEAMS, "num_answers": BEAMS} | config
    rules = TokenRules(end_id, START, choices=choices)
    return generate(model, decoding_weights(model, params), prompts, GenerationConfig(**settings), rules)


def by_hand(
    name: str, prompt: np.ndarray, end_id: int, kind: str, alpha: float, early: bool
) -> list[tuple[list[int], float]]:
    """Search for answers to one prompt with lists of (tokens, score), as the books describe it."""
    running: list[tuple[list[int], float]] = [([], 0.0)]
    answers: list[tuple[list[int], float]] = []

    def divisor(length: int) -> float:
        return float(((5 + length) / 6 if kind == "gnmt" else length) ** alpha)

    for length in range(1, NEW + 1):
        found = []
        for tokens, score in running:
            logits = logits_after(name)(prompt, np.array(tokens, np.int32)).astype(np.float64)
            likely = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            found += [([*tokens, token], score + value) for token, value in enumerate(likely.tolist())]
        found = sorted(found, key=lambda each: -each[1])[: 2 * BEAMS]
        whole = [each for each in found[:BEAMS] if each[0][-1] == end_id or length == NEW]
        answers += [(tokens, score / divisor(length)) for tokens, score in whole]
        answers = sorted(answers, key=lambda each: -each[1])[:BEAMS]
        running = [each for each in found if each[0][-1] != end_id][:BEAMS]
        bound = running[0][1] / divisor(NEW if kind == "gnmt" else length)
        if len(answers) == BEAMS and (early or bound <= answers[-1][1]):
            break
    return [([token for token in tokens if token != end_id], score) for tokens, score in answers]


@pytest.mark.parametrize(
    ("name", "alpha", "early"),
    # Each way to end, with and without an encoder, and what a cache may hold: bands, relative places, a whole prompt.
    sampled(
        itertools.product(("learned", "banded", "relative", "prefix", "transformer", "t5"), (0.6, 0.0), (False, True)),
        path=lambda name, alpha, early: early,
        daily=[("banded", 0.6, False), ("prefix", 0.6, False), ("t5", 0.0, True)],
    ),
)
def test_beams_find_what_a_search_by_hand_finds(name: str, alpha: float, early: bool) -> None:
    end = int(searched(name, PROMPTS, -1, early_stopping=early)[0][0].ids[1])
    compare(name, end, "gnmt", alpha, early)


@pytest.mark.parametrize("kind", ["gnmt", pytest.param("power", marks=pytest.mark.slow)])
def test_whether_an_answer_may_still_be_beaten_is_seen_as_the_penalty_has_it(kind: str) -> None:
    """With this end and penalty, the searches of some prompts end otherwise if the other kind's bound is taken."""
    compare("learned", 15, kind, 1.5, False)


def compare(name: str, end: int, kind: str, alpha: float, early: bool) -> None:
    found = searched(name, PROMPTS, end, length_penalty=kind, length_alpha=alpha, early_stopping=early)
    for prompt, answers in zip(PROMPTS, found, strict=True):
        expected = by_hand(name, prompt, end, kind, alpha, early)
        assert [answer.ids.tolist() for answer in answers] == [tokens for tokens, _ in expected]
        scores = [answer.score for answer in answers]
        np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-4)


def test_one_prompt_is_searched_as_among_others() -> None:
    together = searched("t5", PROMPTS, 1, early_stopping=True)
    alone = searched("t5", [PROMPTS[3]] * 6, 1, early_stopping=True)[0]
    assert [answer.ids.tolist() for answer in alone] == [answer.ids.tolist() for answer in together[3]]


@pytest.mark.parametrize(
    ("kind", "length", "alpha", "expected"),
    [
        ("gnmt", 1, 0.6, 1.0),
        ("gnmt", 7, 0.6, 2**0.6),
        ("power", 4, 2.0, 16.0),
        ("power", 9, 0.5, 3.0),
        ("gnmt", 7, 0, 1),
    ],
)
def test_penalties(kind: str, length: int, alpha: float, expected: float) -> None:
    assert float(penalty(kind, np.int32(length), alpha)) == pytest.approx(expected)


def test_choices_are_ranked_whole() -> None:
    """All of them are found with as many beams, each with its probability; a choice may begin another one."""
    choices = [np.array(ids, np.int32) for ids in ([4], [4, 6], [7, 8, 9])]
    found = searched("learned", PROMPTS, 1, choice_table(choices, 31, 1))
    for prompt, answers in zip(PROMPTS, found, strict=True):
        assert sorted(answer.ids.tolist() for answer in answers) == [[4], [4, 6], [7, 8, 9]]
        assert all(answer.ended for answer in answers)
        scores = [answer.score for answer in answers]
        assert scores == sorted(scores, reverse=True)
        for answer in answers:
            row = answer.ids.tolist() + ([1] if answer.ids.tolist() == [4] else [])
            total = 0.0
            for place, token in enumerate(row):
                logits = logits_after("learned")(prompt, np.array(row[:place], np.int32))
                total += float(logits[token] - np.log(np.exp(logits).sum()))
            assert answer.score == pytest.approx(total, rel=1e-4)


def test_more_beams_than_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="generation.num_beams: 32 is more than the 31 tokens of the vocabulary"):
        searched("learned", prompts_of(3), 1, num_beams=32)


def test_what_cannot_go_together_is_refused() -> None:
    for settings, words in itertools.chain(
        [({"num_beams": 2, "temperature": 1.0}, "generation.temperature: 1.0 draws, and 2 beams search")],
        [({"num_beams": 2, "num_answers": 3}, "generation.num_answers: 3 are more than the 2 beams")],
        [({"num_answers": 2}, "generation.num_answers: without drawing there is one answer, not 2")],
        [({"top_k": 5}, "generation.top_k: it limits what is drawn")],
        [({"max_new_tokens": 3, "min_new_tokens": 4}, "generation.min_new_tokens: 4 is more than")],
        [({"stop": ("",)}, "generation.stop: one of its texts is empty")],
        [({"length_penalty": "gmnt"}, "'gmnt' is not one of gnmt, power; did you mean 'gnmt'")],
    ):
        with pytest.raises(UserError, match=words):
            GenerationConfig(**settings)
