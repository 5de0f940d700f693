"""What judges a supervised task: each metric by the library or the rules of its official scorer, with an interval.

Truths and guesses have one entry per example. By the kind of label they are
class: int, int (-1: none of the classes, which is wrong); choice: int, int; classes: list of int, list of int;
number: float, float; tags: list of str, list of str, one per word; span: list of right answers ([]: it has none), str;
text: list of references, str.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxformer.checks import check_choice, several
from jaxformer.errors import UserError
from jaxformer.tasks import label_metrics, text_metrics
from jaxformer.tasks.label_metrics import Score
from jaxformer.tasks.text_metrics import signatures

__all__ = ["KINDS", "METRICS", "Metric", "check_metrics", "intervals", "measure", "signatures"]

# Takes truths, guesses and the number of classes; what can be worked out once for all draws is.
Prepare = Callable[[Sequence[Any], Sequence[Any], int], Score]


class Metric(NamedTuple):
    """A metric: the kinds of label that it judges, and what prepares its score."""

    kinds: tuple[str, ...]
    prepare: Prepare


KINDS = {
    "class": "a class",
    "classes": "any number of classes",
    "number": "a number",
    "choice": "a choice",
    "tags": "a tag for each word",
    "span": "an answer",
    "text": "text",
}


METRICS: dict[str, Metric] = {
    "accuracy": Metric(("class", "choice"), label_metrics.same),
    "f1": Metric(("class",), label_metrics.f1),
    "f1_binary": Metric(("class",), label_metrics.f1_binary),
    "matthews": Metric(("class",), label_metrics.matthews),
    "micro_f1": Metric(("classes",), partial(label_metrics.label_sets_f1, "micro")),
    "macro_f1": Metric(("classes",), partial(label_metrics.label_sets_f1, "macro")),
    "exact_match": Metric(("classes",), label_metrics.same_sets),
    "pearson": Metric(("number",), partial(label_metrics.correlation, "pearsonr")),
    "spearman": Metric(("number",), partial(label_metrics.correlation, "spearmanr")),
    "mse": Metric(("number",), label_metrics.squared_error),
    "seqeval_f1": Metric(("tags",), partial(label_metrics.entities, "f1")),
    "seqeval_precision": Metric(("tags",), partial(label_metrics.entities, "precision")),
    "seqeval_recall": Metric(("tags",), partial(label_metrics.entities, "recall")),
    "tag_accuracy": Metric(("tags",), label_metrics.tag_accuracy),
    "squad_em": Metric(("span", "text"), partial(text_metrics.squad, str.__eq__, None)),
    "squad_f1": Metric(("span", "text"), partial(text_metrics.squad, text_metrics.words_f1, None)),
    "squad_has_answer_em": Metric(("span",), partial(text_metrics.squad, str.__eq__, True)),
    "squad_has_answer_f1": Metric(("span",), partial(text_metrics.squad, text_metrics.words_f1, True)),
    "squad_no_answer_em": Metric(("span",), partial(text_metrics.squad, str.__eq__, False)),
    "bleu": Metric(("text",), partial(text_metrics.corpus_score, "bleu")),
    "bleu_intl": Metric(("text",), partial(text_metrics.corpus_score, "bleu_intl")),
    "chrf": Metric(("text",), partial(text_metrics.corpus_score, "chrf")),
    "rouge1": Metric(("text",), partial(text_metrics.rouge, "rouge1")),
    "rouge2": Metric(("text",), partial(text_metrics.rouge, "rouge2")),
    "rougeL": Metric(("text",), partial(text_metrics.rouge, "rougeL")),
    "rougeLsum": Metric(("text",), partial(text_metrics.rouge, "rougeLsum")),
}


def check_metrics(names: str | Sequence[str], kind: str, labels: Sequence[str] = ()) -> None:
    """Raise UserError unless every name is a metric of labels of this kind ("class", …, see KINDS) and, where they are
    known, of these class or tag names."""
    fitting = [name for name, metric in METRICS.items() if kind in metric.kinds]
    for name in several(names):
        if name in METRICS and name not in fitting:
            judges = " or ".join(KINDS[one] for one in METRICS[name].kinds)
            raise UserError(
                f"task.metrics: {name} judges {judges}, but this task predicts {KINDS[kind]}; "
                f"choose among {', '.join(fitting)}"
            )
        check_choice("task.metrics", name, fitting)
        if labels and name == "f1_binary":
            label_metrics.check_two(len(labels))
        if labels and name.startswith("seqeval"):
            label_metrics.check_entities(labels)


def _prepared(
    names: str | Sequence[str], truths: Sequence[Any], guesses: Sequence[Any], num_classes: int, labels: Sequence[str]
) -> dict[str, Score]:
    if len(truths) != len(guesses):
        raise ValueError(f"{len(guesses)} guesses for {len(truths)} examples")
    if len(truths) == 0:
        return {}
    return {name: METRICS[name].prepare(truths, guesses, num_classes or len(labels)) for name in several(names)}


def measure(
    names: str | Sequence[str],
    truths: Sequence[Any],
    guesses: Sequence[Any],
    num_classes: int = 0,
    labels: Sequence[str] = (),
) -> dict[str, float]:
    """Return each named metric of all examples; {} of none.

    `num_classes` is, where it is not given, the number of `labels`, or follows from the examples. BLEU, chrF and ROUGE
    are 0 to 100, the others fractions; what is not defined is NaN (docs/metrics.md).

    Raises:
      UserError: a metric cannot judge these labels.
    """
    everything = np.arange(len(truths))
    return {name: score(everything) for name, score in _prepared(names, truths, guesses, num_classes, labels).items()}


def intervals(
    names: str | Sequence[str],
    truths: Sequence[Any],
    guesses: Sequence[Any],
    num_classes: int = 0,
    labels: Sequence[str] = (),
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % confidence interval (low, high) of what `measure` returns: the percentiles 2.5 and 97.5 over
    resamples of the examples with replacement, the same ones for all metrics. Resamples that have no value are left
    out; without any the interval is (NaN, NaN)."""
    scores = _prepared(names, truths, guesses, num_classes, labels)
    rng = np.random.default_rng(seed)
    values = np.empty((resamples, len(scores)))
    for row in values:
        draw = rng.integers(len(truths), size=len(truths)) if scores else np.empty(0, np.int64)
        row[:] = [score(draw) for score in scores.values()]
    return {name: _percentiles(column[~np.isnan(column)]) for name, column in zip(scores, values.T, strict=True)}


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5)) if values.size else (math.nan, math.nan)
    return float(low), float(high)
