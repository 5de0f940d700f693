"""Text to text learns a handful of examples by heart, whatever it writes and whichever family writes it, and with
shuffled labels learns nothing of others."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import optax
import pytest
from by_heart import batch, mixed_up, trainer
from sampling import sampled
from test_source_encoder import BART
from tiny import CONFIGS

from jaxformer.evaluation import outputs_of
from jaxformer.generation import decoding_weights
from jaxformer.models.config import Execution
from jaxformer.models.model import Model
from jaxformer.tasks import measure
from jaxformer.tasks.text_to_text import TextToText
from jaxformer.tokenizers import Vocabulary

SYSTEMS = {
    "t5": CONFIGS["t5"],
    "bart": dataclasses.replace(BART, source_layers=0),
    "transformer": CONFIGS["transformer"],
    "gpt": CONFIGS["gpt"],
    "prefix": dataclasses.replace(CONFIGS["gpt"], visibility="prefix"),
}
SPECIAL = {"pad": 0, "end": 1, "unknown": 2, "start": 3}
COUNT, SIZE, FIRST = 18, 31, 12  # ids from FIRST on are words; the first three say what the label is
STEPS, RATE = 600, 3e-3
SENTENCES = ("12 20 21 22 23", "13 24 20 25 21", "14 23 26 22 27")
# Of each kind its task, the labels, and its metric with what is learnt by heart and what noise does not reach.
KINDS: dict[str, tuple[dict[str, Any], tuple[Any, ...], tuple[str, float, float]]] = {
    "class": ({"words": {"x": "20", "y": "21 22", "z": "21 23"}}, (0, 1, 2), ("accuracy", 1.0, 0.6)),
    "number": ({}, (0.2, 2.6, 5.0), ("pearson", 0.99, 0.6)),
    "text": ({}, tuple([text] for text in SENTENCES), ("bleu", 95.0, 60.0)),
    "span": ({}, tuple({"text": [str(word)], "answer_start": [0]} for word in (12, 13, 14)), ("squad_em", 1.0, 0.6)),
}
NUMBERS = {"0.2": 4, "2.6": 5, "5.0": 6}


def encode(text: str) -> np.ndarray:
    return np.array([NUMBERS.get(word) or (int(word) if word.isdigit() else 7) for word in text.split()], np.int32)


def decode(ids: Any) -> str:
    spelled = {number: word for word, number in NUMBERS.items()}
    return " ".join(spelled.get(int(number), str(number)) for number in ids if number > 3)


def vocabulary(start: str) -> Vocabulary:
    words = Vocabulary(SIZE, SPECIAL, np.array([], np.int32), np.arange(SIZE) < 4, np.ones(SIZE, bool))
    return words.starting(start)


def examples(labels: tuple[Any, ...], seed: int, shuffled: bool) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(COUNT):
        text = rng.integers(FIRST + 3, SIZE, 4).astype(np.int32)
        text[number % 4] = FIRST + number % 3
        rows.append({"text": text, "label": labels[number % 3], "window": 0})
    if shuffled:
        return mixed_up(rows, rng)
    return rows


@pytest.mark.parametrize(
    ("kind", "system"),
    sampled(
        [(kind, system) for kind in KINDS for system in SYSTEMS], lambda kind, system: kind,
    ),
)  # fmt: skip
def test_a_handful_is_learnt_by_heart_and_noise_says_nothing_of_others(kind: str, system: str) -> None:
    keys, labels, (metric, learnt, noise) = KINDS[kind]
    config = SYSTEMS[system]
    task = TextToText(target_kind=kind, input="29: {text}", sequence_length=8, target_length=8, **keys)
    names = ("x", "y", "z") if kind == "class" else ()
    task = task.for_model(config).bind(vocabulary(config.decoder_start), names, encode, decode)
    model, optimizer = Model(config, Execution(unroll=1)), optax.adamw(RATE)
    trained = trainer(task, model, optimizer, STEPS)
    writable = np.arange(SIZE) > 0
    tokenizer: Any = SimpleNamespace(vocabulary=task.vocabulary, writable=writable, decode=decode)

    def judged(params: Any, rows: list[dict[str, Any]]) -> float:
        written = outputs_of(model, task, decoding_weights(model, params), batch(task, rows), {}, tokenizer)
        answers = task.answers(rows, task.read(written, rows))
        return measure((metric,), task.truths(rows), task.guesses(answers), len(names), names)[metric]

    for shuffled in (False, True):
        rows = examples(labels, 0, shuffled)
        params = trained(batch(task, rows))
        assert judged(params, rows) >= learnt, shuffled
    assert judged(params, examples(labels, 1, False)) < noise
