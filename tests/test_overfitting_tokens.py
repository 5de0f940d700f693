"""Tasks that read every token learn a handful of examples by heart, and nothing of others where labels are mixed up."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import jax
import optax
import pytest
from by_heart import Rows, batch, trainer
from labelled import byte_bpe, example_of, wordpiece
from sampling import sampled
from tiny import CONFIGS, head_shapes

from jaxformer.evaluation.held_out import evaluate
from jaxformer.models.model import Model
from jaxformer.tasks.answering import QuestionAnswering
from jaxformer.tasks.tagging import TokenClassification
from jaxformer.training import losses_of, make_eval_step

WORDS = {"PER": ["Anna", "Berg"], "LOC": ["York", "Zürich"], "": ["lives", "old", "snow", "café"]}
TAGS = ("O", "B-PER", "I-PER", "B-LOC")
CLASSES = {"Anna": 1, "Berg": 2, "York": 3, "Zürich": 3}
KINDS: dict[str, Any] = {
    "answers": QuestionAnswering(sequence_length=24, max_query_length=4, head_dropout=0.0),
    "tags": TokenClassification(sequence_length=12, head_dropout=0.0),
}
STEPS, LEARNING_RATE, COUNT = 200, 3e-3, 12


def examples(kind: str, tokenizer: Any, draw: random.Random, mixed_up: bool) -> Rows:
    """Sentences with a person, a place and other words, in any order."""
    rows = []
    for number in range(COUNT):
        words = [draw.choice(some) for some in WORDS.values()] + [draw.choice(WORDS[""])]
        draw.shuffle(words)
        if kind == "tags":
            tags = [CLASSES.get(word, 0) for word in words]
            if mixed_up:
                draw.shuffle(tags)
            rows.append(example_of(tokenizer, tags, text=words))
            continue
        question, asked = [("Who", WORDS["PER"]), ("When", []), ("in", WORDS["LOC"])][number % 3]
        context = " ".join(words)
        answers = [draw.choice(words)] if mixed_up else [word for word in words if word in asked]
        label = {"text": answers, "answer_start": [context.index(answer) for answer in answers]}
        rows.append(example_of(tokenizer, label, question=question, context=context))
    return rows


def training(task: Any, system: str, tokenizer: Any) -> tuple[Callable[[Rows], Any], Callable[[Any, Rows], Any]]:
    """What gives parameters that were trained on rows, and what judges some on rows."""
    model = Model(
        dataclasses.replace(CONFIGS[system], vocab_size=tokenizer.vocab_size, num_layers=1),
        heads=head_shapes(task.heads), predicts_tokens=False,
    )  # fmt: skip
    optimizer = optax.adam(LEARNING_RATE)
    trained, eval_step = trainer(task, model, optimizer, STEPS), jax.jit(make_eval_step(model, losses_of(task)))

    def judge(params: Any, rows: Rows) -> dict[str, float]:
        return evaluate(
            model,
            task,
            eval_step,
            params,
            [batch(task, rows)],
            place=lambda arrays: arrays,
            tokenizer=tokenizer,
            rows=rows,
        ).metrics

    return lambda rows: trained(batch(task, rows)), judge


PAIRS = [(kind, family) for kind in KINDS for family in ("encoder_only", "encoder_decoder")]


@pytest.mark.parametrize(
    ("kind", "family"),
    sampled(PAIRS, lambda kind, family: kind, daily=[("tags", "encoder_only")], ci=[("answers", "encoder_decoder")]),
)
def test_a_handful_is_learnt_by_heart_and_noise_says_nothing_of_others(kind: str, family: str) -> None:
    tokenizer, system = (wordpiece(), "bert") if family == "encoder_only" else (byte_bpe(), "transformer")
    vocabulary = tokenizer.vocabulary.starting("end") if family == "encoder_decoder" else tokenizer.vocabulary
    labels = TAGS if kind == "tags" else ()
    task = KINDS[kind].for_model(CONFIGS[system]).bind(vocabulary, labels, tokenizer.encode, tokenizer.decode)
    trained, judge = training(task, system, tokenizer)
    for mixed_up in (False, True):
        draw = random.Random(0)
        rows, others = examples(kind, tokenizer, draw, mixed_up), examples(kind, tokenizer, draw, False)
        params = trained(rows)
        found, held_out = judge(params, rows), judge(params, others)
        for metric in task.metrics:
            assert found[metric] == 1, (mixed_up, found)
            assert not mixed_up or held_out[metric] < 0.5, held_out
