"""Tasks that read every token learn a handful of examples by heart, and nothing of others where labels are mixed up."""

import dataclasses
import random
from typing import Any

import pytest
from labelled import byte_bpe, example_of, wordpiece
from overfitting import Overfitting

from jaxformer.tasks.answering import QuestionAnswering
from jaxformer.tasks.tagging import TokenClassification

WORDS = {"PER": ["Anna", "Berg"], "LOC": ["York", "Zürich"], "": ["lives", "old", "snow", "café"]}
TAGS = ("O", "B-PER", "I-PER", "B-LOC")
CLASSES = {"Anna": 1, "Berg": 2, "York": 3, "Zürich": 3}


def bound(task: Any, family: str, labels: tuple[str, ...] = ()) -> tuple[Any, Any, str]:
    tokenizer, system = (wordpiece(), "bert") if family == "encoder_only" else (byte_bpe(), "transformer")
    vocabulary = tokenizer.vocabulary.starting("end") if family == "encoder_decoder" else tokenizer.vocabulary
    task = dataclasses.replace(task, family=family, head_dropout=0.0)
    return task.bind(vocabulary, labels, tokenizer.encode, tokenizer.decode), tokenizer, system


def sentences(count: int, draw: random.Random) -> list[list[str]]:
    """Of every kind of word one, in any order."""
    found = []
    for _ in range(count):
        words = [draw.choice(some) for some in WORDS.values()] + [draw.choice(WORDS[""])]
        draw.shuffle(words)
        found.append(words)
    return found


def starting_at(row: dict[str, Any], *answers: str) -> dict[str, list[Any]]:
    return {"text": list(answers), "answer_start": [row["record"]["context"].index(answer) for answer in answers]}


@pytest.mark.parametrize("family", ["encoder_only", "encoder_decoder"])
def test_answers(family: str) -> None:
    task, tokenizer, system = bound(QuestionAnswering(sequence_length=24, max_query_length=4, doc_stride=3), family)
    draw = random.Random(0)
    rows = []
    for number, words in enumerate(sentences(24, draw)):
        asked = ["Who", "When", "in"][number % 3]  # a person, nothing, a place
        kind = {"Who": "PER", "in": "LOC"}.get(asked)
        context = " ".join(words)
        row = example_of(tokenizer, None, question=asked, context=context)
        rows.append(row | {"label": starting_at(row, *[word for word in words if kind and word in WORDS[kind]])})
    training, others = rows[:12], rows[12:]
    overfitting = Overfitting(task, system, tokenizer)
    found = overfitting.judge(overfitting.train(training), training)
    assert (found["squad_em"], found["squad_f1"]) == (1, 1)
    mixed = [row | {"label": starting_at(row, draw.choice(row["record"]["context"].split()))} for row in training]
    wrong = overfitting.train(mixed)
    assert overfitting.judge(wrong, mixed)["squad_em"] == 1
    assert overfitting.judge(wrong, others)["squad_em"] < 0.5


@pytest.mark.parametrize("family", ["encoder_only", "encoder_decoder"])
def test_tags(family: str) -> None:
    task, tokenizer, system = bound(TokenClassification(sequence_length=12), family, TAGS)
    draw = random.Random(0)
    rows = [
        example_of(tokenizer, [CLASSES.get(word, 0) for word in words], text=words) for words in sentences(24, draw)
    ]
    training, others = rows[:12], rows[12:]
    overfitting = Overfitting(task, system, tokenizer)
    found = overfitting.judge(overfitting.train(training), training)
    assert (found["seqeval_f1"], found["tag_accuracy"]) == (1, 1)
    mixed = [row | {"label": draw.sample(row["label"], len(row["label"]))} for row in training]
    wrong = overfitting.train(mixed)
    assert overfitting.judge(wrong, mixed)["seqeval_f1"] > 0.9
    assert overfitting.judge(wrong, others)["seqeval_f1"] < 0.5
