"""Metrics of text: answers by SQuAD's rules, translations by sacreBLEU, summaries by ROUGE.

Each takes truths, guesses and a number of classes, which does not matter here, and returns a `Score`.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxformer.checks import several
from jaxformer.tasks.label_metrics import Score, mean_of, of_sums

# Answers.

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normal_answer(text: str) -> str:
    """Return an answer as SQuAD's scorers compare it: in lower case, without punctuation, articles and extra spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def words_f1(true: str, guess: str) -> float:
    right, guessed = true.split(), guess.split()
    return 2 * (Counter(right) & Counter(guessed)).total() / max(len(right) + len(guessed), 1)


def squad(
    compare: Callable[[str, str], float],
    answerable: bool | None,
    truths: Sequence[Any],
    guesses: Sequence[Any],
    num_classes: int,
) -> Score:
    """The best match with any right answer: of all questions (None) or of those that have an answer, or none.

    The rules are those of SQuAD 1.1 where every question has an answer, else those of 2.0: an answer of which nothing
    is left, such as "the", does not count, and without one only the empty answer is right."""
    lacking = not all(truths)
    values = []
    for answers, guess in zip(truths, guesses, strict=True):
        right = [answer for answer in map(normal_answer, answers) if answer or not lacking]
        guess = normal_answer(guess)
        values.append(max(compare(answer, guess) for answer in right) if right else not guess)
    return mean_of(values, None if answerable is None else [bool(answers) == answerable for answers in truths])


# Written text.

SACREBLEU = ("bleu", "bleu_intl", "chrf")


def _streams(truths: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References as sacreBLEU takes them: one list of first, one of second references, …; None where one lacks."""
    most = max(map(len, truths))
    return [[refs[place] if place < len(refs) else None for refs in truths] for place in range(most)]


def _sacrebleu(name: str) -> Any:
    """sacreBLEU's metric. `force`: no warning, at each evaluation, of text that looks tokenised."""
    from sacrebleu.metrics import BLEU, CHRF

    return CHRF() if name == "chrf" else BLEU(tokenize="intl" if name == "bleu_intl" else "13a", force=True)


def corpus_score(name: str, truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    metric = _sacrebleu(name)
    # Each segment's counts, and the score of their sums: the two halves of sacreBLEU's corpus_score, whose own
    # resampling gives a standard error instead of an interval.
    rows = np.array(metric._extract_corpus_statistics(list(guesses), _streams(truths)), np.float64)
    return of_sums(rows, lambda sums: metric._compute_score_from_stats(sums.tolist()).score)


def rouge(name: str, truths: Sequence[Any], guesses: Sequence[Any], num_classes: int) -> Score:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name])

    def lines(text: str) -> str:
        return text.replace(" . ", " .\n")  # T5's way to give rougeLsum its sentences

    return mean_of(
        [
            100 * scorer.score_multi([lines(ref) for ref in refs], lines(guess))[name].fmeasure
            for refs, guess in zip(truths, guesses, strict=True)
        ]
    )


def signatures(names: str | Sequence[str], truths: Sequence[Any]) -> dict[str, str]:
    """Return sacreBLEU's signature for each of its metrics among the names, as "NAME_signature"; {} without any."""
    wanted = [name for name in several(names) if name in SACREBLEU]
    counts = sorted({len(refs) for refs in truths}) if wanted else []
    found = {}
    for name in wanted:
        if counts:
            metric = _sacrebleu(name)
            # It asks for the number of references alone, which any text tells.
            metric.corpus_score(["."] * len(counts), _streams([["."] * count for count in counts]))
            found[f"{name}_signature"] = str(metric.get_signature())
    return found
