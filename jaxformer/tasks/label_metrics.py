"""Metrics of labels: classes, several classes, numbers and tags, by scikit-learn, scipy and seqeval.

Each takes truths, guesses and the number of classes (0: as the examples have it), and returns a `Score`.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxformer.errors import UserError

# What is told of a draw of examples, an int array of their numbers: all of them once each, or a resample.
Score = Callable[[np.ndarray], float]


def mean_of(values: Any, counted: Any = None) -> Score:
    """The mean of the examples' own values [N], of those `counted` (bool [N]); NaN where none is."""
    values = np.asarray(values, np.float64)
    kept = np.ones(len(values), bool) if counted is None else np.asarray(counted, bool)

    def score(draw: np.ndarray) -> float:
        found = values[draw][kept[draw]]
        return float(found.mean()) if found.size else math.nan

    return score


def of_sums(rows: Any, judge: Callable[[np.ndarray], float]) -> Score:
    """What `judge` makes of the sums [S] of the examples' own counts [N, S], an array or a sparse matrix."""
    return lambda draw: float(judge(rows.T @ np.bincount(draw, minlength=rows.shape[0]).astype(np.float64)))


def _ratio(right: Any, of: Any) -> Any:
    """right / of, and 0 where there is nothing to divide by."""
    return np.divide(right, of, out=np.zeros(np.shape(of)), where=np.asarray(of) > 0)


# Classes.


def same(truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    return mean_of(np.asarray(truths) == np.asarray(guesses))


def _judged(judge: Callable[..., float], truths: np.ndarray, guesses: np.ndarray, num_classes: int) -> Score:
    # Every pair of true and predicted class stands once, weighed by how often it was drawn: scikit-learn need not look
    # at every example for each resample.
    pairs, cells = np.unique(np.stack([truths, guesses]), axis=1, return_inverse=True)
    cells, size = cells.ravel(), pairs.shape[1]
    num_classes = num_classes or int(pairs.max()) + 1
    return lambda draw: float(judge(*pairs, num_classes, sample_weight=np.bincount(cells[draw], minlength=size)))


def f1(truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    from sklearn.metrics import f1_score  # which takes a second to import

    # Macro: every class counts the same, also those that were never predicted. -1 (text that names no label) is wrong
    # for every class without being a class of its own.
    def judge(truths: np.ndarray, guesses: np.ndarray, num_classes: int, **weights: Any) -> float:
        return f1_score(truths, guesses, labels=range(num_classes), average="macro", zero_division=0.0, **weights)

    return _judged(judge, np.asarray(truths), np.asarray(guesses), num_classes)


def check_two(num_classes: int) -> None:
    """Raise UserError unless there are two classes."""
    if num_classes != 2:
        raise UserError(
            f"task.metrics: f1_binary is the F1 of the second of two classes, but there are {num_classes}; "
            "f1 is the mean over any number of them"
        )


def f1_binary(truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    from sklearn.metrics import f1_score

    true, guessed = np.asarray(truths), np.asarray(guesses)
    check_two(num_classes or max(2, int(true.max()) + 1))

    def judge(truths: np.ndarray, guesses: np.ndarray, num_classes: int, **weights: Any) -> float:
        return f1_score(truths, guesses, labels=[1], average="macro", zero_division=0.0, **weights)

    # No class counts as the wrong one of the two (T5's code).
    return _judged(judge, true, np.where(guessed < 0, 1 - true, guessed), num_classes)


def matthews(truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    from sklearn.metrics import matthews_corrcoef

    def judge(truths: np.ndarray, guesses: np.ndarray, num_classes: int, **weights: Any) -> float:
        return matthews_corrcoef(truths, guesses, **weights)

    return _judged(judge, np.asarray(truths), np.asarray(guesses), num_classes)


def label_sets_f1(average: str, truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    """F1 over several labels per example, from each class's hits, guesses and truths: one sparse row per example."""
    from scipy.sparse import csr_array, hstack

    num_classes = num_classes or 1 + max((label for labels in (*truths, *guesses) for label in labels), default=0)

    def table(sets: Sequence[Any]) -> csr_array:
        found = [sorted(set(labels)) for labels in sets]
        ends = np.cumsum([0, *map(len, found)])
        columns = np.array([label for labels in found for label in labels], np.int64)
        return csr_array((np.ones(len(columns)), columns, ends), shape=(len(found), num_classes))

    true, guessed = table(truths), table(guesses)

    def judge(sums: np.ndarray) -> float:
        hits, of = sums[:num_classes], sums[num_classes:].reshape(2, num_classes).sum(axis=0)
        return _ratio(2 * hits.sum(), of.sum()) if average == "micro" else _ratio(2 * hits, of).mean()

    return of_sums(hstack([true * guessed, true, guessed], format="csr"), judge)


def same_sets(truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    return mean_of([set(true) == set(guess) for true, guess in zip(truths, guesses, strict=True)])


# Numbers.


def correlation(name: str, truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    import scipy.stats

    pairs = np.array([truths, guesses], np.float64)

    def score(draw: np.ndarray) -> float:
        drawn = pairs[:, draw]
        if (drawn == drawn[:, :1]).all(axis=1).any():
            return math.nan  # no correlation with what is constant, as GLUE's code has it, whose scipy says so
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of what is nearly constant
            return float(getattr(scipy.stats, name)(*drawn).statistic)

    return score


def squared_error(truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    return mean_of((np.asarray(truths, np.float64) - np.asarray(guesses, np.float64)) ** 2)


# Tags.

_TAG = re.compile(r"O|[BIESLU](-.*)?")
_AS_BIOES = str.maketrans("LU", "ES")  # BILOU's letters for the last and the only word


def check_entities(tags: Iterable[str]) -> None:
    """Raise UserError unless the tags spell entities, in BIO, IOB1, BIOES or BILOU."""
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise UserError(
                f"task.metrics: the tag {tag!r} spells no entity, as B-PER, I-PER and O do, so that no entities can be "
                "compared; choose tag_accuracy"
            )


def entities_of(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities that tags spell, as conlleval reads them: type, first and last word."""
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities([tag[0].translate(_AS_BIOES) + tag[1:] for tag in tags]))


def as_bio(tags: Sequence[str]) -> list[str]:
    """Return tags of BIOES or BILOU as BIO spells the same entities; others as they are."""
    if not all(map(_TAG.fullmatch, tags)) or {tag[0] for tag in tags} <= set("BIO"):
        return list(tags)
    spelled = ["O"] * len(tags)
    for type_, first, last in entities_of(tags):
        spelled[first : last + 1] = [f"B-{type_}", *[f"I-{type_}"] * (last - first)]
    return spelled


def entities(part: str, truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    check_entities({tag for tags in (*truths, *guesses) for tag in tags})
    rows = []
    for true, guess in zip(truths, guesses, strict=True):
        if len(true) != len(guess):
            raise ValueError(f"{len(guess)} tags for {len(true)} words")
        right, guessed = entities_of(true), entities_of(guess)
        rows.append((len(right & guessed), len(guessed), len(right)))

    def judge(sums: np.ndarray) -> float:
        hits, guessed, right = sums
        parts = {"precision": (hits, guessed), "recall": (hits, right), "f1": (2 * hits, guessed + right)}
        return _ratio(*parts[part])

    return of_sums(np.array(rows, np.float64), judge)


def tag_accuracy(truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    rows = [
        (sum(map(str.__eq__, true, guess)), len(true))
        for true, guess in zip(truths, guesses, strict=True)
    ]  # fmt: skip
    return of_sums(np.array(rows, np.float64), lambda sums: _ratio(sums[0], sums[1]))
