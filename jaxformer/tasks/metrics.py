"""What judges a supervised task, computed by scikit-learn from true and predicted classes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxformer.checks import check_choice, several


def _f1(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> float:
    from sklearn.metrics import f1_score  # which takes a second to import

    # Macro: every class counts the same, also those that were never predicted. -1 (text that names no label) is wrong
    # for every class without being a class of its own.
    return float(f1_score(labels, predictions, labels=range(num_classes), average="macro", zero_division=0.0))


def _accuracy(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predictions))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {"accuracy": _accuracy, "f1": _f1}


def task_metrics(
    names: str | Sequence[str], labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> dict[str, float]:
    """Return each named metric of int arrays [N] of true and predicted classes (-1: no class)."""
    return {name: METRICS[name](labels, predictions, num_classes) for name in several(names)}


def check_metrics(names: Sequence[str], kind: str) -> None:
    """Raise UserError for a metric that there is not."""
    for name in names if kind == "class" else ():
        check_choice("task.metrics", name, METRICS)


def measure(
    names: Sequence[str],
    truths: Sequence[Any],
    guesses: Sequence[Any],
    num_classes: int = 0,
    labels: Sequence[str] = (),
) -> dict[str, float]:
    """Return each named metric."""
    return task_metrics(names, np.array(truths), np.array(guesses), num_classes)
