"""Predictions as the files that official scorers and servers read, by the kind of label.

Each function takes one answer (as a task's `answers` gives it) and one record per example, the label names and, where
they are known, the true labels (as a task's `truths` gives them), and returns {file name: content}.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxformer.errors import UserError
from jaxformer.tasks.label_metrics import as_bio

Answers = Sequence[Mapping[str, Any]]

# GLUE's server wants the numbers of these classes, but the names of others: entailment, neutral, …
_BY_NUMBER = (
    ("unacceptable", "acceptable"),  # CoLA
    ("negative", "positive"),  # SST-2
    ("not_equivalent", "equivalent"),  # MRPC
    ("not_duplicate", "duplicate"),  # QQP
    ("not_entailment", "entailment"),  # WNLI; RTE and QNLI, of which it wants names, have them in the other order
)


def _number(record: Mapping[str, Any], place: int) -> int:
    """The example's number in its file: as the record says, or counted from 0."""
    for key in ("index", "idx", "id"):
        if re.fullmatch(r"\d+", str(record.get(key))):
            return int(record[key])
    return place


def _table(predictions: Sequence[str], records: Answers) -> dict[str, str]:
    rows = [
        (_number(record, place), text) for place, (record, text) in enumerate(zip(records, predictions, strict=True))
    ]
    if len({number for number, _ in rows}) < len(rows):
        rows = list(enumerate(predictions))  # numbers that begin again tell nothing
    return {"predictions.tsv": "index\tprediction\n" + "".join(f"{number}\t{text}\n" for number, text in rows)}


def _same_classes(pair: tuple[str, str], labels: tuple[str, ...]) -> bool:
    return labels == pair or (labels == pair[::-1] and "entailment" not in pair)


def glue_classes(
    answers: Answers, records: Answers, labels: Sequence[str] = (), truths: Sequence[Any] = ()
) -> dict[str, str]:
    """GLUE's table of an example's number and class, which its server reads: the class's name, or its number (0, 1)
    for CoLA, SST-2, MRPC, QQP and WNLI. Text that names no class counts as the first one."""
    by_number = next((pair for pair in _BY_NUMBER if _same_classes(pair, tuple(labels))), ())
    found = [answer["label"] if answer["label"] is not None else labels[0] for answer in answers]
    return _table([str(by_number.index(label)) if by_number else label for label in found], records)


def glue_numbers(
    answers: Answers, records: Answers, labels: Sequence[str] = (), truths: Sequence[Any] = ()
) -> dict[str, str]:
    """GLUE's table for STS-B: an example's number and the predicted number, to three places."""
    return _table([f"{answer['number']:.3f}" for answer in answers], records)


def squad(answers: Answers, records: Answers, labels: Sequence[str] = (), truths: Sequence[Any] = ()) -> dict[str, str]:
    """SQuAD's predictions, {question's id: text}, "" for no answer, and, where answers have them, the odds of no answer
    that the scorer of SQuAD 2.0 takes as `--na-prob-file` to find the best threshold.

    Raises:
      UserError: a question has no id, or two have the same.
    """
    ids = [record.get("id") for record in records]
    for place, one in enumerate(ids):
        if one is None:
            raise UserError(
                f"question {place} has no id, which SQuAD's scorer compares answers by; add the field id to the data"
            )
    if len(set(map(str, ids))) < len(ids):
        raise UserError(
            "several questions have the same id, which SQuAD's scorer compares answers by; make them differ"
        )
    texts = {str(one): answer["answer"] for one, answer in zip(ids, answers, strict=True)}
    files = {"predictions.json": json.dumps(texts, ensure_ascii=False, indent=1) + "\n"}
    odds = {str(one): answer.get("null_odds") for one, answer in zip(ids, answers, strict=True)}
    if odds and None not in odds.values():
        files["null_odds.json"] = json.dumps(odds, indent=1) + "\n"
    return files


def conll(answers: Answers, records: Answers, labels: Sequence[str] = (), truths: Sequence[Any] = ()) -> dict[str, str]:
    """CoNLL's columns, which conlleval reads: a word, its true tag where tags are known, and the predicted one; an
    empty line after each sentence. BIOES and BILOU, which it cannot read, are spelled as BIO."""
    lines = []
    for place, answer in enumerate(answers):
        # A column ends at a space.
        words = ["_".join(one["word"].split()) or "_" for one in answer["tags"]]
        guessed = as_bio([one["tag"] for one in answer["tags"]])
        columns = (words, as_bio(truths[place]), guessed) if truths else (words, guessed)
        lines += [*map(" ".join, zip(*columns, strict=True)), ""]
    return {"predictions.conll": "".join(f"{line}\n" for line in lines)}


def plain_text(
    answers: Answers, records: Answers, labels: Sequence[str] = (), truths: Sequence[Any] = ()
) -> dict[str, str]:
    """One line per text, as sacreBLEU and ROUGE's scripts read them: a line break within a text becomes a space."""
    return {"predictions.txt": "".join(f"{' '.join(answer['text'].splitlines())}\n" for answer in answers)}


FILES: dict[str, Callable[..., dict[str, str]]] = {
    "class": glue_classes,
    "number": glue_numbers,
    "span": squad,
    "tags": conll,
    "text": plain_text,
}
