"""Every task that reads a state learns a handful of examples by heart, for every family that has it, and with shuffled
labels learns nothing of others."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax
import pytest
from by_heart import batch, mixed_up, trainer
from sampling import sampled
from test_tasks import SPECIAL, decode, encode
from tiny import CONFIGS, head_shapes

from jaxformer.models.config import Execution
from jaxformer.models.model import Model
from jaxformer.tasks import measure
from jaxformer.tasks.classification import Classification, MultiLabel, MultipleChoice, Regression
from jaxformer.tokenizers import Vocabulary
from jaxformer.training import losses_of, make_eval_step

# Of one layer, with parameters that begin large enough to learn fast.
MODELS = {
    family: dataclasses.replace(CONFIGS[name], num_layers=1, d_model=32, initialization="transformer")
    for family, name in {"decoder_only": "gpt", "encoder_only": "bert", "encoder_decoder": "t5"}.items()
}
LABELS = {"classification": ("x", "y", "z"), "multi_label": ("x", "y", "z"), "regression": (), "multiple_choice": ()}
KINDS: dict[str, Any] = {
    "classification": Classification(sequence_length=16, head_dropout=0.0),
    "multi_label": MultiLabel(sequence_length=16, head_dropout=0.0),
    "regression": Regression(sequence_length=16, text_fields=("a", "b"), head_dropout=0.0),
    "multiple_choice": MultipleChoice(
        sequence_length=16, text_fields=("a",), choice_fields=("b", "c", "d"), head_dropout=0.0
    ),
}
SCORES = {
    "classification": ("accuracy", 1.0, 0.6),
    "multi_label": ("exact_match", 1.0, 0.5),
    "regression": ("pearson", 0.99, 0.6),
    "multiple_choice": ("accuracy", 1.0, 0.6),
}
COUNT, WORDS = 15, 20  # ids 11 to 30 are words
STEPS, LEARNING_RATE = 400, 1e-2


def examples(kind: str, seed: int, shuffled: bool) -> list[dict[str, Any]]:
    """Texts of random words, in which the words 11, 12 and 13 say what the label is."""
    rng = np.random.default_rng(seed)
    fields, rows = KINDS[kind].fields, []
    for number in range(COUNT):
        row: dict[str, Any] = {field: rng.integers(14, 11 + WORDS, 5).astype(np.int32) for field in fields}
        if kind == "multiple_choice":
            row["label"] = number % 3
            row[fields[1 + row["label"]]][1] = 11
        elif kind == "multi_label":
            row["label"] = [label for label in range(3) if rng.random() < 0.5]
            for label in row["label"]:
                row["text"][label] = 11 + label
        else:
            label = number % 3
            row[fields[0]][1] = 11 + label
            row["label"] = 2.5 * label if kind == "regression" else label
        rows.append(row)
    if shuffled:
        return mixed_up(rows, rng)
    return rows


def score(task: Any, model: Model, judge: Any, params: Any, rows: list[dict[str, Any]], metric: str) -> float:
    outputs = {name: np.asarray(values) for name, values in judge(params, batch(task, rows))[1].items()}
    answers = task.answers(rows, task.read(outputs, rows))
    found = measure((metric,), task.truths(rows), task.guesses(answers), len(task.labels), task.labels)
    return found[metric]


PAIRS = [(kind, family) for kind in KINDS for family in MODELS]


@pytest.mark.parametrize(
    ("kind", "family"),
    sampled(
        PAIRS, lambda kind, family: kind,
        daily=[("multi_label", "encoder_only")],
    ),
)  # fmt: skip
def test_a_handful_is_learnt_by_heart_and_noise_says_nothing_of_others(kind: str, family: str) -> None:
    special = {role: number for role, number in SPECIAL.items()}
    words = Vocabulary(31, special, np.array([], np.int32), np.arange(31) < 9, np.ones(31, bool))
    task = KINDS[kind].for_model(MODELS[family]).bind(words, LABELS[kind], encode, decode)
    model = Model(MODELS[family], Execution(unroll=1), head_shapes(task.heads), predicts_tokens=False)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))
    trained = trainer(task, model, optimizer, STEPS)
    judge = jax.jit(make_eval_step(model, losses_of(task)))

    metric, learnt, noise = SCORES[kind]
    rows = examples(kind, 0, False)
    assert score(task, model, judge, trained(batch(task, rows)), rows, metric) >= learnt
    params = trained(batch(task, examples(kind, 0, True)))
    others = [score(task, model, judge, params, examples(kind, seed, False), metric) for seed in (1, 2, 3)]
    assert np.mean(others) < noise, others
