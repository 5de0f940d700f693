"""Extractive question answering: windows, hand-written rows, and answers read back out of logits."""

import dataclasses

import numpy as np
import pytest
from labelled import byte_bpe, example_of, gpt_bpe, wordpiece

from jaxformer.data.kinds import check_answers
from jaxformer.errors import UserError
from jaxformer.tasks.answering import (
    QuestionAnswering,
    at_threshold,
    best_spans,
    best_threshold,
    has_most_context,
    place_of,
    window_starts,
)
from jaxformer.tasks.metrics import measure

CONTEXT = "The café in Zürich is old. Anna Berg lives in New York"
ANNA = {"text": ["Anna Berg"], "answer_start": [27]}
SPECIAL = [["<|start|>"], ["<|delimiter|>"], ["<|extract|>"]]
NO_ANSWER = {"text": [], "answer_start": []}
RNG = np.random.default_rng(0)


def task_of(tokenizer, family="encoder_only", **keys):
    keys = {"sequence_length": 24, "max_query_length": 6} | keys
    model = type("Model", (), {"family": family, "visibility": "full", "token_types": 2})
    vocabulary = tokenizer.vocabulary.starting("end") if family == "encoder_decoder" else tokenizer.vocabulary
    return QuestionAnswering(**keys).for_model(model).bind(vocabulary, (), tokenizer.encode, tokenizer.decode)


def asked(tokenizer, label, window=0, question="Who lives in Zürich?", context=CONTEXT, name="q1"):
    return example_of(tokenizer, label, window, name=name, question=question, context=context)


def spelled(tokenizer, ids):
    return " ".join(tokenizer.tokens(ids))


def test_a_row_of_an_encoder_by_hand():
    arrays = task_of(wordpiece())(asked(wordpiece(), ANNA), RNG)
    assert spelled(wordpiece(), arrays["inputs"]) == (
        "[CLS] Who lives in Zürich ? [SEP] The café in Zürich is old . Anna Berg lives in New York [SEP]"
        " [PAD] [PAD] [PAD]"
    )
    expected = {
        "segment_ids": [1] * 21 + [0] * 3,
        "positions": [*range(21), 0, 0, 0],
        "token_types": [0] * 7 + [1] * 14 + [0] * 3,
        "start_targets": 14,
        "end_targets": 15,
        "start_weights": 1,
        "end_weights": 1,
    }
    assert set(arrays) == {"inputs", *expected}
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)


def test_a_row_of_encoder_and_decoder_by_hand():
    """BART: the decoder reads the same one place later; places are the encoder's. Characters of several bytes."""
    tokenizer = byte_bpe()
    task = task_of(tokenizer, "encoder_decoder", sequence_length=28)
    context = "Émile swims 🙂 in Zürich."
    arrays = task(asked(tokenizer, {"text": ["🙂"], "answer_start": [12]}, context=context), RNG)
    tokens = tokenizer.tokens(arrays["encoder_inputs"])
    start = len("<s> Who Ġlives Ġin ĠZürich ? </s> </s>".split())
    assert tokens[:start] == ["<s>", "Who", "Ġlives", "Ġin", "ĠZÃ¼rich", "?", "</s>", "</s>"]
    assert tokenizer.decode(arrays["encoder_inputs"][arrays["start_targets"] : arrays["end_targets"] + 1]) == " 🙂"
    assert arrays["end_targets"] - arrays["start_targets"] == 2  # a token for each piece of the character
    length = int(arrays["encoder_segment_ids"].sum())
    assert tokens[length - 1] == "</s>" and tokens[length - 2] == "."
    np.testing.assert_array_equal(arrays["inputs"][1:length], arrays["encoder_inputs"][: length - 1])
    assert tokenizer.tokens(arrays["inputs"][:1]) == ["</s>"]
    assert "token_types" not in arrays


def test_a_row_of_a_decoder_by_hand():
    """Without GPT's tokens the question and its context stand alone, one behind the other; else GPT's pair."""
    label = {"text": ["Anna Berg"], "answer_start": [0]}
    question, context = "Who lives in Zürich?", "Anna Berg lives in New York"
    for tokenizer, special in ((byte_bpe(), [[], [], []]), (gpt_bpe(), SPECIAL)):
        task = task_of(tokenizer, "decoder_only", sequence_length=28)
        arrays = task(asked(tokenizer, label, question=question, context=context), RNG)
        before, between, after = special
        texts = [tokenizer.tokens(tokenizer.encode(text)) for text in (question, context)]
        tokens = tokenizer.tokens(arrays["inputs"][: int(arrays["segment_ids"].sum())])
        assert tokens == [*before, *texts[0], *between, *texts[1], *after]
        answer = slice(arrays["start_targets"], arrays["end_targets"] + 1)
        assert tokenizer.decode(arrays["inputs"][answer]) == "Anna Berg"
        assert arrays["start_targets"] == len(before) + len(texts[0]) + len(between)


@pytest.mark.parametrize("family", ["encoder_only", "encoder_decoder"])
def test_shapes_never_change(family):
    tokenizer = wordpiece() if family == "encoder_only" else byte_bpe()
    task = task_of(tokenizer, family, sequence_length=16)
    for question, context in (("", ""), ("Who", ""), ("Who lives " * 9, "The café"), ("", CONTEXT * 4)):
        arrays = task(asked(tokenizer, None, 0, question, context), RNG)
        assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == task.shapes
        assert arrays["start_weights"] == arrays["end_weights"] == 0


def test_a_long_question_is_cut_at_its_end():
    arrays = task_of(wordpiece())(asked(wordpiece(), ANNA, question="Who lives in Zürich ? When did it snow ?"), RNG)
    assert spelled(wordpiece(), arrays["inputs"][:9]) == "[CLS] Who lives in Zürich ? When [SEP] The"
    assert task_of(wordpiece()).is_cut({"question": np.array([6, 7]), "context": np.array([99, 1])}).tolist() == [0, 1]
    assert (arrays["start_targets"], arrays["end_targets"]) == (15, 16)


def test_windows_by_hand():
    """Room for 5 of the 13 tokens, a window every 3: the answer, tokens 7 and 8, is whole in one window."""
    task = task_of(wordpiece(), sequence_length=13, doc_stride=3)
    assert task.num_rows({"question": np.array([5]), "context": np.array([13])}).tolist() == [4]
    rows = [task(asked(wordpiece(), ANNA, window), RNG) for window in range(4)]
    assert [spelled(wordpiece(), row["inputs"][7:]) for row in rows] == [
        "The café in Zürich is [SEP]",
        "Zürich is old . Anna [SEP]",
        ". Anna Berg lives in [SEP]",
        "lives in New York [SEP] [PAD]",
    ]
    assert [(int(row["start_targets"]), int(row["end_targets"])) for row in rows] == [(0, 0), (0, 0), (8, 9), (0, 0)]
    assert all(row["start_weights"] == 1 for row in rows)


@pytest.mark.parametrize(
    ("length", "room", "stride", "expected"),
    [
        (0, 4, 2, [0]),
        (4, 4, 2, [0]),
        (5, 4, 2, [0, 2]),
        (10, 4, 2, [0, 2, 4, 6]),
        (9, 4, 10, [0, 4, 8]),
        (3, 1, 1, [0, 1, 2]),
    ],
)
def test_windows_reach_the_end_and_leave_nothing_out(length, room, stride, expected):
    assert window_starts(length, room, stride).tolist() == expected


def test_questions_leave_room_for_more_or_less_of_the_context():
    task = task_of(wordpiece(), sequence_length=13, doc_stride=3)
    lengths = {"question": np.array([0, 5, 6, 90, 5]), "context": np.array([10, 5, 5, 5, 0])}
    assert task.num_rows(lengths).tolist() == [1, 1, 2, 2, 1]


def test_most_context_by_hand():
    """Windows of 4 that begin every 2 tokens: tokens 2 and 3 are in two of them, at (2, 1) and (0, 3), (3, 0) and
    (1, 2) tokens from the ends."""
    marks = [has_most_context(10, 4, 2, window).tolist() for window in range(4)]
    assert marks[0] == [True, True, True, False]
    assert marks[1] == marks[2] == [False, True, True, False]
    assert marks[3] == [False, True, True, True]
    # Equally near to an end in both: the earlier one, which is never the shorter one.
    assert has_most_context(5, 4, 3, 0).tolist() == [True, True, True, True]
    assert has_most_context(5, 4, 3, 1).tolist() == [False, True]
    assert has_most_context(5, 3, 2, 0).tolist() == [True, True, True]
    assert has_most_context(0, 4, 2, 0).tolist() == []


@pytest.mark.parametrize(("length", "room", "stride"), [(23, 7, 3), (40, 9, 9), (11, 4, 1)])
def test_every_token_has_most_context_once(length, room, stride):
    counts = np.zeros(length, int)
    for window, start in enumerate(window_starts(length, room, stride)):
        marks = has_most_context(length, room, stride, window)
        counts[start : start + len(marks)] += marks
    assert (counts == 1).all()


@pytest.mark.parametrize(
    ("answer", "start", "expected"),
    [
        ("Anna Berg", 27, (27, 36)),
        ("Anna  Berg", 27, (27, 36)),
        (" Anna Berg ", 26, (27, 36)),
        ("Anna\nBerg", 26, (27, 36)),
        ("Anna Berg", 28, None),
        ("anna berg", 27, None),
        ("York", 900, None),
        ("York", -4, None),
        (" ", 26, None),
    ],
)
def test_where_an_answer_stands(answer, start, expected):
    assert place_of(answer, start, CONTEXT) == expected


def test_data_is_refused_by_the_same_rule():
    check_answers({"text": ["Anna  Berg"], "answer_start": [26]}, {"question": "Who?", "context": CONTEXT}, "row 3")
    for start in (25, 28, -1):
        with pytest.raises(UserError, match=f"row 3: the answer 'Anna' does not stand at character {start}"):
            check_answers({"text": ["Anna"], "answer_start": [start]}, {"context": CONTEXT}, "row 3")


def test_an_answer_ends_where_its_last_character_does():
    """Tokens beside it that it touches are not in it; the first of several right answers trains."""
    label = {"text": ["old", "café", "."], "answer_start": [22, 4, 25]}
    arrays = task_of(wordpiece())(asked(wordpiece(), label), RNG)
    assert spelled(wordpiece(), arrays["inputs"][[12, 13]]) == "old ."
    assert (arrays["start_targets"], arrays["end_targets"]) == (12, 12)
    arrays = task_of(wordpiece())(asked(wordpiece(), {"text": ["."], "answer_start": [25]}), RNG)
    assert (arrays["start_targets"], arrays["end_targets"]) == (13, 13)


def test_an_answer_that_is_not_there_is_refused():
    task = task_of(wordpiece())
    with pytest.raises(
        UserError, match=r"example 'q1': its answer 'Anna' is not at character 3 .*where ' café in Zürich"
    ):
        task(asked(wordpiece(), {"text": ["Anna"], "answer_start": [3]}), RNG)
    several = {"text": ["Anna Berg", "Berg"], "answer_start": [27, 0]}
    with pytest.raises(UserError, match="its answer 'Berg' is not at character 0") as error:
        task(asked(wordpiece(), several, name=7), RNG)
    assert "example 7" in str(error.value) and "\n" not in str(error.value)


def test_an_answer_that_the_tokenizer_leaves_out_has_no_weight():
    context = "It snowed \u200b\u0007 in May."
    arrays = task_of(wordpiece())(asked(wordpiece(), {"text": ["\u0007"], "answer_start": [11]}, context=context), RNG)
    assert arrays["start_weights"] == arrays["end_weights"] == 0


def test_a_question_without_an_answer_trains_to_place_0():
    arrays = task_of(wordpiece())(asked(wordpiece(), NO_ANSWER), RNG)
    assert [int(arrays[name]) for name in ("start_targets", "end_targets", "start_weights")] == [0, 0, 1]
    with pytest.raises(UserError, match="example 'q1' has no answer; .*set task.null_threshold to 0.0"):
        task_of(wordpiece(), null_threshold=None)(asked(wordpiece(), NO_ANSWER), RNG)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="task.max_query_length: 64 tokens of task.sequence_length 64 leave none"):
        QuestionAnswering(sequence_length=64)
    for key in ("doc_stride", "max_query_length", "max_answer_length", "n_best"):
        with pytest.raises(UserError, match=f"task.{key}: 0 must be at least 1"):
            QuestionAnswering(**{key: 0})
    with pytest.raises(UserError, match="task.text_fields: name two fields"):
        QuestionAnswering(text_fields=("text",))


def test_best_spans_by_hand():
    starts, ends = np.array([0.0, 1.0, 2.0]), np.array([1.0, 5.0, 0.0])
    every = np.ones(3, bool)
    assert best_spans(starts, ends, every, 2, 3) == [(1, 1, 6.0), (0, 1, 5.0), (2, 2, 2.0)]
    assert best_spans(starts, ends, every, 9, 9)[-3:] == [(0, 0, 1.0), (1, 2, 1.0), (0, 2, 0.0)]
    assert best_spans(starts, ends, np.array([True, False, True]), 1, 9) == [(2, 2, 2.0), (0, 0, 1.0)]
    assert best_spans(starts[:0], ends[:0], every[:0], 5, 5) == []
    brute = [(i, j, starts[i] + ends[j]) for i in range(3) for j in range(i, 3)]
    assert sorted(best_spans(starts, ends, every, 3, 20)) == sorted(brute)


def read(task, rows, scores):
    """Answers from logits that are -9 but for `scores`: {(row, head, place): logit}."""
    outputs = {head: np.full((len(rows), task.sequence_length), -9, np.float32) for head in ("start", "end")}
    for (row, head, place), score in scores.items():
        outputs[head][row, place] = score
    return task.answers(rows, task.read(outputs, rows))


def test_an_answer_is_cut_out_of_the_original_text():
    """By characters, white space around left off, whatever the tokens are; no word of the question, no span that
    ends before it begins."""
    context = "It snowed in  Zürich , 🙂 naïvely"
    for tokenizer, family in ((wordpiece(), "encoder_only"), (byte_bpe(), "encoder_decoder")):
        task = task_of(tokenizer, family, sequence_length=40)
        row = asked(tokenizer, None, context=context)
        offsets = row["offsets"]["context"]
        first = 1 + len(row["question"]) + (1 if family == "encoder_only" else 2)
        place = {context[a:b].strip(): first + number for number, (a, b) in enumerate(offsets)}
        scores = {
            (0, "start", place["Zürich"]): 4, (0, "end", place["🙂"]): 3, (0, "start", 2): 9, (0, "end", 3): 9,
            (0, "start", place["naïvely"]): 8, (0, "start", 0): -9,
        }  # fmt: skip
        (answer,) = read(task, [row], scores)
        assert (answer["answer"], answer["start"], answer["end"], answer["score"]) == ("Zürich , 🙂", 14, 24, 7.0)
        assert answer["n_best"][0] == {key: answer[key] for key in ("start", "end", "score", "probability")} | {
            "text": answer["answer"]
        }
        texts = [one["text"] for one in answer["n_best"]]
        assert len(set(texts)) == len(texts) <= task.n_best + 1 and "" in texts
        assert sum(one["probability"] for one in answer["n_best"]) == pytest.approx(1)
        assert answer["probability"] == pytest.approx(1 / sum(np.exp(one["score"] - 7) for one in answer["n_best"]))


def test_white_space_in_a_token_is_not_in_the_answer():
    """GPT-2's kind of offsets begin with the space; a token may be nothing but space."""
    tokenizer = byte_bpe()
    task = task_of(tokenizer, "encoder_decoder", sequence_length=40)
    context = "It  snowed in May"
    row = asked(tokenizer, None, context=context)
    offsets = row["offsets"]["context"]
    first = 1 + len(row["question"]) + 2
    assert tokenizer.tokens(row["context"])[1:3] == ["Ġ", "Ġsnowed"]
    offsets[1:3] = [(2, 3), (3, 10)]
    scores = {
        (0, "start", first + 1): 5,
        (0, "end", first + 1): 5,
        (0, "start", first + 2): 3,
        (0, "end", first + 2): 3,
    }
    (answer,) = read(task, [row], scores)
    assert (answer["answer"], answer["start"], answer["end"], answer["score"]) == ("snowed", 4, 10, 8.0)
    assert all(one["text"] == one["text"].strip() for one in answer["n_best"])
    assert sum(one["text"] == "" for one in answer["n_best"]) == 1  # no answer, and no span of mere space


def test_no_more_than_n_best_are_told():
    task = task_of(wordpiece(), sequence_length=13, doc_stride=3, n_best=3)
    rows = [asked(wordpiece(), None, window) for window in range(4)]
    (answer,) = read(task, rows, {(0, "start", 7): 1})
    assert len(answer["n_best"]) == 4 and answer["n_best"][0]["text"].startswith("The")


def test_spans_are_no_longer_than_allowed():
    task = task_of(wordpiece(), max_answer_length=2)
    scores = {(0, "start", 14): 5, (0, "end", 16): 5, (0, "end", 15): 1}
    assert read(task, [asked(wordpiece(), None)], scores)[0]["answer"] == "Anna Berg"
    wider = dataclasses.replace(task, max_answer_length=3)
    assert read(wider, [asked(wordpiece(), None)], scores)[0]["answer"] == "Anna Berg lives"


def test_windows_of_an_example_are_merged():
    """A span counts where its first token has most context; the score of no answer is the lowest of all windows."""
    task = task_of(wordpiece(), sequence_length=13, doc_stride=3)
    rows = [asked(wordpiece(), None, window) for window in range(4)]
    other = asked(wordpiece(), None, context="It snowed in May .")
    scores = {(1, "start", 11): 9, (1, "end", 11): 9}  # "Anna" at the end of window 1, which shows nothing behind it
    scores |= {(2, "start", 8): 3, (2, "end", 9): 3, (2, "start", 0): 1, (2, "end", 0): 1, (0, "start", 0): 8}
    scores |= {(4, "start", 7): 5, (4, "end", 8): 2}
    answers = read(task, [*rows, other], scores)
    assert [answer["answer"] for answer in answers] == ["Anna Berg", "It snowed"]
    assert answers[0]["null_odds"] == -18 - 6
    assert task.truths([*rows, other]) == [None, None]
    assert task.guesses(answers) == ["Anna Berg", "It snowed"]
    labelled = [row | {"label": ANNA} for row in rows]
    assert task.truths([*labelled, other | {"label": NO_ANSWER}]) == [["Anna Berg"], []]


def test_no_answer_where_its_score_is_above_the_threshold():
    task, row = task_of(wordpiece()), asked(wordpiece(), None)
    scores = {(0, "start", 14): 2, (0, "end", 15): 2, (0, "start", 0): 3, (0, "end", 0): 2.5}
    (answer,) = read(task, [row], scores)
    assert (answer["answer"], answer["start"], answer["end"], answer["score"]) == ("", None, None, 5.5)
    assert answer["null_odds"] == 1.5
    for threshold, expected in ((1.5, "Anna Berg"), (1.4, ""), (None, "Anna Berg")):
        chosen = read(dataclasses.replace(task, null_threshold=threshold), [row], scores)[0]
        assert chosen["answer"] == at_threshold(answer, threshold)["answer"] == expected
    never = read(dataclasses.replace(task, null_threshold=None), [row], scores)[0]
    assert all(one["text"] for one in never["n_best"])


def test_an_empty_context_has_no_answer():
    for threshold in (0.0, None):
        task = task_of(wordpiece(), null_threshold=threshold)
        (answer,) = read(task, [asked(wordpiece(), None, context="")], {})
        assert (answer["answer"], answer["probability"], answer["null_odds"]) == ("", 1.0, None)


def test_the_best_threshold_is_found_on_answers_with_truths():
    """Against the score at every threshold that tells answers apart."""

    def answer(odds, text):
        none, span = {"text": "", "score": 0.0}, {"text": text, "score": -odds}
        parts = {"start": None, "end": None, "probability": 0.5}
        return {"null_odds": odds, "n_best": [none | parts, span | parts]}

    told = [
        (["May"], 3.0, "May"),
        ([], 2.0, "May"),
        (["New York"], 2.0, "York"),
        (["Anna"], -1.0, "Berg"),
        ([], 4.0, "x"),
    ]
    truths, answers = [one[0] for one in told], [answer(*one[1:]) for one in told]
    nothing = {
        "null_odds": None,
        "n_best": [{"text": "", "score": 1.0, "start": None, "end": None, "probability": 1.0}],
    }
    threshold, best = best_threshold([*truths, []], [*answers, nothing])
    scores = {}
    for at in (-2.0, 0.0, 2.5, 3.5, 5.0):
        guesses = [at_threshold(one, at)["answer"] for one in [*answers, nothing]]
        scores[at] = measure(("squad_f1",), [*truths, []], guesses)["squad_f1"]
    assert (threshold, best) == (3.5, pytest.approx((1 + 0 + 2 / 3 + 0 + 1 + 1) / 6))
    assert best == pytest.approx(max(scores.values())) == pytest.approx(scores[3.5])
    assert best_threshold([["May"], []], [answer(1.0, "x"), answer(0.5, "y")]) == (-0.0, 0.5)
    assert best_threshold([["May"]], [answer(1.0, "May")]) == (1.5, 1.0)
    # Equal odds: both or none, and never the one alone that would gain.
    assert best_threshold([["May"], [], []], [answer(1.0, "May"), answer(1.0, "x"), answer(1.0, "y")]) == (0.5, 2 / 3)
    assert best_threshold([[]], [nothing]) == (0.0, 1.0)
