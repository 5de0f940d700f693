"""The verb `score`: files of any length in, what the model finds likely of each row out."""

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxformer.data import IDS, Malformed, Record, unlabelled
from jaxformer.runs.answer_rows import Output, Work, answer_rows, bracketed
from jaxformer.runs.documents import document, document_answers
from jaxformer.runs.given import Given
from jaxformer.runs.loading import LoadedRun
from jaxformer.runs.progress import Display
from jaxformer.runs.scoring import (
    Asking,
    answer,
    candidate_items,
    choice,
    item,
    per_unit,
    perplexity,
    reads_both_sides,
    scores_of,
)
from jaxformer.storage import store_errors

Example = dict[str, Any]
CONTEXT, CONTINUATION, CHOICES = "context", "continuation", "choices"  # the fields of rows that are more than a text


class Scoring(NamedTuple):
    """What is scored of a row: the text of `field`, or what stands behind a context, as `asking` says; or, where a
    `window` (tokens it reads, and adds) is given, the text as a document."""

    field: str
    asking: Asking
    window: tuple[int, int] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What answers depend on."""
        window = {"window": list(self.window)} if self.window else {}
        return {"field": self.field, **self.asking._asdict(), **window}


@store_errors()
def score(
    run: LoadedRun, rows: Given, scoring: Scoring, output: Output, facts: Mapping[str, Any], display: Display
) -> None:
    """Write what is said of each row as a line of JSON (see `answer_rows`), and at the end, where all rows were scored
    now, what that makes in all."""
    sums: Counter[str] = Counter()

    def answers(
        examples: Sequence[Example], numbers: Sequence[int], count: Callable[..., None]
    ) -> list[dict[str, Any]]:
        found = (_answers if scoring.window is None else _documents)(run, scoring, examples, display)
        sums.update(_sums([each for each in found if "choice" not in each]))
        return found

    read = functools.partial(_read if scoring.window is None else _read_document, run, scoring)
    found = answer_rows(rows, Work("scoring", read, answers, run.config.evaluation_rows), output,
                        {**facts, **scoring.facts}, display)  # fmt: skip
    notes = [f"{found.malformed:,} malformed"] if found.malformed else []
    if found.answered == found.total and sums["scored"] > 1:
        notes += _in_all(sums, "pseudo-" if reads_both_sides(run) else "")
    if output.path is not None or notes:
        display.note(f"{output.path or 'standard output'}: {found.total:,} answers{bracketed(notes)}")


def _read(run: LoadedRun, scoring: Scoring, record: Record | Malformed, where: str) -> Example:
    """Return a row with what is asked of the model for it: a choice, a continuation, or a text. Raises Malformed."""
    if isinstance(record, Malformed):
        raise record
    own, asking = run.config.data, scoring.asking
    if CHOICES in record:
        listed = {CONTEXT: "", **record, CHOICES: _listed(record[CHOICES], where)}
        fields = [f"{CHOICES}[{number}]" for number in range(len(listed[CHOICES]))]
        example = unlabelled(listed, (CONTEXT, *fields), "", own, where)
        texts = [example[field] for field in fields]
        items = candidate_items(run, example[CONTEXT], texts, asking, where)
        return example | {"items": items, CHOICES: texts}
    behind = CONTINUATION in record
    example = unlabelled(record, (CONTEXT, CONTINUATION) if behind else (scoring.field,), "", own, where)
    pair = (example[CONTEXT], example[CONTINUATION]) if behind else (None, example[scoring.field])
    return example | {"items": [item(run, pair, where, asking.end)]}


def _listed(value: Any, where: str) -> list[Any]:
    """Return the choices of a row as a list: as it stands, as JSON where columns hold text, or as CommonsenseQA has it.
    Raises Malformed."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    value = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(value, list | tuple) and not getattr(value, "shape", ()):
        raise Malformed(f'{where}: field \'{CHOICES}\' is no list of texts, such as ["yes", "no"]')
    return list(value)


def _answers(run: LoadedRun, scoring: Scoring, examples: Sequence[Example], display: Display) -> list[dict[str, Any]]:
    """Return what is said of each row."""
    found = scores_of(run, [each for example in examples for each in example["items"]])
    answers = []
    for example in examples:
        items = example["items"]
        scores = [next(found) for _ in items]
        if CHOICES in example:
            answers.append(choice(example[CHOICES], items, scores, scoring.asking.normalization))
        else:
            answers.append(answer(run, items[0], scores[0], scoring.asking.per_token))
    return answers


def _read_document(run: LoadedRun, scoring: Scoring, record: Record | Malformed, where: str) -> Example:
    """Return a row with its text as a document. Raises Malformed."""
    example = unlabelled(record, (scoring.field,), "", run.config.data, where)
    ids = {key: example["record"][key] for key in IDS if key in example["record"]}  # the text itself may be long
    return {"document": document(run, example[scoring.field], where), "record": ids}


def _documents(run: LoadedRun, scoring: Scoring, examples: Sequence[Example], display: Display) -> list[dict[str, Any]]:
    """Return what is said of each document; one that stands alone may take long, and shows how far it is."""
    assert scoring.window is not None
    progress = functools.partial(display.progress, "scoring tokens") if len(examples) == 1 else lambda done, total: None
    return document_answers(run, [example["document"] for example in examples], scoring.window, progress=progress)


def _sums(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sums of what the answers to texts say."""
    named = ("log_likelihood", "pseudo_log_likelihood", "tokens", "bytes", "words", "lines", "greedy")
    return {key: sum(each.get(key, 0) for each in scored) for key in named} | {"scored": len(scored)}


def _in_all(sums: Mapping[str, Any], pseudo: str) -> list[str]:
    """Return what several answers make together: unlike a mean of theirs, the same however a text is cut."""
    total = sums[f"{pseudo.replace('-', '_')}log_likelihood"]
    said = [f"in all {pseudo}perplexity {perplexity(total, sums['tokens']):.6g} per token"]
    if sums["words"]:
        said.append(f"{perplexity(total, sums['words'] + sums['lines']):.6g} per word")
    if not pseudo:
        said.append(f"{per_unit(total, sums['bytes']) / math.log(2):.6g} bits per byte")
    if not pseudo and not sums["words"]:
        said.append(f"{sums['greedy'] / sums['scored']:.1%} of them greedy")
    return said
