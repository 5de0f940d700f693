"""Evaluation: exact means whatever the batching, text judged as text."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from tiny import CONFIGS, batch_of

from jaxformer.errors import UserError
from jaxformer.evaluation import held_out as evaluation
from jaxformer.evaluation.held_out import EvaluationConfig, combined, evaluate
from jaxformer.generation import Answer, GenerationConfig, TokenRules
from jaxformer.models.model import Model
from jaxformer.objectives import Head
from jaxformer.tasks.classification import Classification
from jaxformer.tasks.text_to_text import TextToText
from jaxformer.training.step import make_eval_step

Batch = dict[str, np.ndarray]
STARTS_FROM_PADDING: Any = Model(CONFIGS["t5"])


# Means over batches, with an eval step that reads the numbers from the batch.


@dataclasses.dataclass
class Supervision:
    coefficients: dict[str, float]
    answering: Any = None
    metrics: tuple[str, ...] = ()
    decodes: bool = False
    labels: tuple[str, ...] = ()
    heads: dict[str, Head] = dataclasses.field(default_factory=dict)


def judged_by(**given: Any) -> Supervision:
    """A task that is judged by the classes of its label, of as many as there are labels."""
    task = Classification(metrics=given.pop("metrics", ("accuracy",)), labels=given.pop("labels"))
    return Supervision({"label": 1.0}, task, task.metrics, labels=task.labels, heads=task.heads, **given)


def sums_of(params: Any, batch: Batch) -> tuple[dict[str, tuple[Any, ...]], Batch]:
    """An eval step whose losses and hits are arrays of the batch."""
    names = {"tokens": "weights", "next_sentence": "next_sentence_weights", "label": "label_weights"}
    sums = {
        name: tuple(np.sum(batch[weights] * batch.get(f"{name}_{what}", 1.0)) for what in ("loss", "hit", "one"))
        for name, weights in names.items()
        if weights in batch
    }
    return sums, {"label": np.eye(3)[batch["label_guess"]]} if "label_guess" in batch else {}


def evaluated(supervision: Supervision, batches: list[Batch], **given: Any) -> dict[str, float]:
    arguments = {"place": lambda batch: batch, "tokenizer": None} | given
    return evaluate(STARTS_FROM_PADDING, supervision, sums_of, {}, iter(batches), **arguments).metrics  # type: ignore[arg-type]


def cut(arrays: Batch, size: int) -> list[Batch]:
    """Rows in batches of `size`, the last filled up with copies of the last row that weigh nothing."""
    count = len(next(iter(arrays.values())))
    batches = []
    for first in range(0, count, size):
        rows = np.arange(first, first + size)
        batch = {name: array[np.minimum(rows, count - 1)].copy() for name, array in arrays.items()}
        for name in batch:
            if name.endswith("weights"):
                batch[name][rows >= count] = 0
        batches.append(batch)
    return batches


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_means_are_exact_whatever_the_batch_size(size: int) -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 3, (7, 5)) / 2.0
    arrays = {
        "weights": weights, "tokens_loss": rng.random((7, 5)), "tokens_hit": rng.integers(0, 2, (7, 5)),
        "next_sentence_weights": np.ones(7), "next_sentence_loss": rng.random(7), "next_sentence_hit": np.arange(7) > 1,
    }  # fmt: skip
    loss = (weights * arrays["tokens_loss"]).sum() / weights.sum()
    expected = {
        "loss": 0.5 * loss + 2.0 * arrays["next_sentence_loss"].mean(),
        "perplexity": math.exp(loss),
        "token_accuracy": (weights * arrays["tokens_hit"]).sum() / weights.sum(),
        "next_sentence_loss": arrays["next_sentence_loss"].mean(),
        "next_sentence_accuracy": 5 / 7,
    }
    supervision = Supervision({"tokens": 0.5, "next_sentence": 2.0})
    assert evaluated(supervision, cut(arrays, size)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_classes_are_judged_without_padding_rows(size: int) -> None:
    arrays = {
        "label_weights": np.ones(5), "label_loss": np.array([1.0, 2, 3, 4, 5]), "label_hit": np.array([1, 0, 1, 1, 0]),
        "label_targets": np.array([0, 0, 1, 1, 2]), "label_guess": np.array([0, 1, 1, 1, 0]),
    }  # fmt: skip
    supervision = judged_by(metrics=("accuracy", "f1"), labels=("a", "b", "c"))
    rows = [{"label": label} for label in (0, 0, 1, 1, 2)]
    metrics = evaluated(supervision, cut(arrays, size), rows=rows)
    assert metrics == pytest.approx({"loss": 3.0, "accuracy": 3 / 5, "f1": (1 / 2 + 4 / 5) / 3})


def test_a_group_without_predictions_has_no_loss() -> None:
    empty = {"weights": np.zeros((2, 3)), "tokens_loss": np.ones((2, 3)), "tokens_hit": np.ones((2, 3))}
    assert evaluated(Supervision({"tokens": 1.0}), [empty]) == {}
    both = empty | {"next_sentence_weights": np.ones(2), "next_sentence_loss": np.array([1.0, 2])}
    both["next_sentence_hit"] = np.array([0, 1])
    metrics = evaluated(Supervision({"tokens": 1.0, "next_sentence": 1.0}), [both])
    assert metrics == {"loss": 1.5, "next_sentence_loss": 1.5, "next_sentence_accuracy": 0.5}


def test_perplexity_is_of_the_token_loss_and_never_overflows() -> None:
    def of(loss: float) -> float:
        arrays = {"weights": np.ones((1, 2)), "tokens_loss": np.full((1, 2), loss)}
        return evaluated(Supervision({"tokens": 0.1}), [arrays])["perplexity"]

    assert of(math.log(20.0)) == pytest.approx(20.0)
    assert of(0.0) == 1.0
    assert math.isfinite(of(1e6))


def test_the_members_of_a_mixture_are_judged_apart_and_by_their_shares_together() -> None:
    one = {"loss": 2.0, "perplexity": math.exp(2.0), "accuracy": 0.5}
    two = {"loss": 4.0, "perplexity": math.exp(4.0), "accuracy": 0.25, "f1": 0.1}
    assert combined([("", 1.0, one)]) == one
    found = combined([("a", 0.75, one), ("b", 0.25, two)])
    assert {key: value for key, value in found.items() if "/" in key} == {
        **{f"a/{key}": value for key, value in one.items()}, **{f"b/{key}": value for key, value in two.items()},
    }  # fmt: skip
    means = {key: value for key, value in found.items() if "/" not in key}
    assert means == pytest.approx({"loss": 2.5, "perplexity": math.exp(2.5), "accuracy": 0.4375})
    # A member without rows has no share.
    alone = combined([("a", 0.75, {}), ("b", 0.25, two)])
    assert {key: alone[key] for key in two} == pytest.approx(two) and not any(key.startswith("a/") for key in alone)
    assert combined([("a", 0.5, {}), ("b", 0.5, {})]) == {}


def test_no_batches_give_no_metrics() -> None:
    assert evaluated(Supervision({"tokens": 1.0}), []) == {}


def test_a_real_model_has_one_loss_for_every_batch_size() -> None:
    """Rows in fours, the last filled up: the loss is that of all rows at once."""
    model = Model(dataclasses.replace(CONFIGS["gpt"], num_layers=1))
    rng = np.random.default_rng(0)
    shapes = model.shapes
    params = jax.tree.map(lambda leaf: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32), shapes)
    arrays = {name: np.asarray(array) for name, array in batch_of("gpt", rows=6).items()}

    class Plain:
        heads: dict[str, Head] = {}
        coefficients = {"tokens": 1.0}
        predicts_tokens = True
        answering = None
        head_dropout = token_smoothing = z_loss = 0.0

    step = jax.jit(make_eval_step(model, Plain()))

    def metrics(size: int) -> dict[str, float]:
        batches = cut(arrays, size)
        return evaluate(model, Plain(), step, params, batches, place=lambda batch: batch, tokenizer=None).metrics  # type: ignore[arg-type]

    whole = metrics(6)
    assert set(whole) == {"loss", "perplexity", "token_accuracy"}
    assert metrics(4) == pytest.approx(whole, rel=1e-5)


# Text to text.

PAD, END = 0, 1
WORDS = {2: "red", 3: "green", 4: "light", 5: "dark", 6: " "}


class Tokenizer:
    """Words by id; it lowers case and squeezes spaces, as real ones do."""

    writable = np.ones(1000, bool)

    class vocabulary:
        special = {"pad": PAD, "end": END}
        id = staticmethod(special.__getitem__)

    def encode(self, text: str) -> np.ndarray:
        ids = {word: number for number, word in WORDS.items()}
        return np.array([ids[word] for word in text.lower().split()], np.int32)

    def decode(self, ids: np.ndarray, skip_special: bool = True) -> str:
        return " ".join(WORDS[int(number)] for number in ids)


LABELS = ("red", "Light  Green", "dark green")


def text_batch(labels: list[int], real: list[bool]) -> Batch:
    ids = [Tokenizer().encode(LABELS[label]) for label in labels]
    targets, weights = np.zeros((len(ids), 4), np.int32), np.zeros((len(ids), 4), np.float32)
    sources, segments = np.zeros((len(ids), 6), np.int32), np.zeros((len(ids), 6), np.int32)
    for row, label in enumerate(ids):
        targets[row, : len(label) + 1] = [*label, END]
        weights[row, : len(label) + 1] = real[row]
        sources[row, : row + 2] = row + 2
        segments[row, : row + 2] = 1
    return {"targets": targets, "weights": weights, "encoder_inputs": sources, "encoder_segment_ids": segments}


def writes(metrics: tuple[str, ...]) -> Supervision:
    tokenizer = Tokenizer()
    spelled = tuple(tokenizer.decode(tokenizer.encode(label)) for label in LABELS)
    task = TextToText(metrics=metrics, spelled=spelled, labels=LABELS, target_length=4)
    return Supervision({"tokens": 1.0}, task, metrics, decodes=True, labels=LABELS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Let the model write what `answers` says, and note what it was asked."""
    note: dict[str, Any] = {"answers": []}

    def generate(
        model: Any, weights: Any, prompts: Any, config: GenerationConfig, rules: TokenRules, min_width: int
    ) -> list[list[Answer]]:
        note.update(prompts=[prompt.tolist() for prompt in prompts], config=config, rules=rules, min_width=min_width)
        return [[Answer(np.array(answer, np.int32), 0.0, True)] for answer in note["answers"]]

    monkeypatch.setattr(evaluation, "generate", generate)
    monkeypatch.setattr(evaluation, "decoding_weights", lambda model, params: params)
    yield note


def test_text_to_text_is_judged_by_the_text(asked: dict[str, Any]) -> None:
    batch = text_batch([0, 1, 2, 1, 2], real=[True, True, True, True, False])
    # Right; right but for a space more; another label; no label at all; a row of padding.
    asked["answers"] = [[2], [4, 3, 6], [2], [3, 4], [2]]
    rows = [{"label": label} for label in (0, 1, 2, 1)]
    metrics = evaluated(writes(("accuracy", "f1")), [batch], tokenizer=Tokenizer(), rows=rows)
    assert metrics["accuracy"] == 2 / 4
    # red: precision 1/2, recall 1; light green: 1, 1/2; dark green: 0.
    assert metrics["f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    # Every row is read without its padding and answered in as many tokens as targets have, from the pad id.
    assert asked["prompts"][0] == [2, 2] and asked["prompts"][3] == [5, 5, 5, 5, 5]
    assert asked["config"] == GenerationConfig(max_new_tokens=4)
    assert (*asked["rules"][:2], asked["min_width"]) == (END, PAD, 6)


def test_a_label_that_the_tokenizer_rewrites_is_still_that_label(asked: dict[str, Any]) -> None:
    """`Light  Green` comes back as `light green`: nonsense must not count as right because neither is a known label."""
    asked["answers"] = [[5], [4, 3]]
    batch = text_batch([1, 1], real=[True, True])
    rows = [{"label": 1}, {"label": 1}]
    assert evaluated(writes(("accuracy",)), [batch], tokenizer=Tokenizer(), rows=rows)["accuracy"] == 1 / 2


def test_evaluation_values_are_checked() -> None:
    for key, value, words in (
        ("split", "train", "evaluation.split: 'train' is not one of validation, test"),
        ("batch_size", -1, "evaluation.batch_size: -1 must be at least 0"),
        ("max_examples", -1, "evaluation.max_examples: -1 must be at least 0"),
    ):
        with pytest.raises(UserError, match=words):
            EvaluationConfig(**{key: value})
