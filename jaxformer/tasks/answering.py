"""Extractive question answering: the answer is a span of the context (BERT, section 4.2 and 4.3; BART, section 3.1).

A context that is too long is read in windows that overlap, as BERT's code does; each window is a row of its own. The
windows of an example are merged again when its answer is read.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.objectives import FLOAT, INT, Example, Head, Shapes
from jaxformer.tasks.classification import softmax
from jaxformer.tasks.metrics import measure
from jaxformer.tasks.task import RowTask
from jaxformer.tasks.writing import BART, BERT, T5, Format, row_shapes, rows_of, tokens_format_of

START, END = "start", "end"  # the two heads
NOWHERE = (0, 0)  # the places of an answer that a window does not have
_MOST_FIXED = max(form.fixed(2) for form in (BERT, BART, T5))
_ONE = (("targets", INT), ("weights", FLOAT))


class Window(NamedTuple):
    """A window of a context: which tokens, the place in the row of the first, and which of them have most context."""

    tokens: slice
    place: int
    most_context: np.ndarray  # bool [tokens]


class Found(NamedTuple):
    """What one window says: the score of no answer, and spans of the context (first character, end, score), best
    first. Scores are sums of two logits."""

    null: float
    spans: list[tuple[int, int, float]]


def window_starts(length: int, room: int, stride: int) -> np.ndarray:
    """Return the first token of each window: int64 [windows]. Windows hold `room` of a context's `length` tokens."""
    return np.arange(int(num_windows(np.array(length), room, stride))) * min(stride, room)


def num_windows(lengths: np.ndarray, room: np.ndarray | int, stride: int) -> np.ndarray:
    """Return how many windows contexts of `lengths` tokens take, int64 of their shape: the last one reaches the end."""
    left = np.maximum(lengths - room, 0)
    return 1 + -(-left // np.minimum(stride, room))


def has_most_context(length: int, room: int, stride: int, window: int) -> np.ndarray:
    """Say of each token of a window whether no other window shows more on its poorer side: bool [tokens].

    BERT's max-context rule: of the windows that hold a token, the one where the smaller of the tokens to its left and
    to its right is largest, or the earlier one of two such, is where its prediction counts.
    """
    starts = window_starts(length, room, stride)[:, None]
    ends = np.minimum(starts + room, length)
    places = np.arange(starts[window, 0], ends[window, 0])
    shown = np.minimum(places - starts, ends - 1 - places)  # negative: the window does not hold the token
    return np.asarray(shown.argmax(axis=0) == window)


def place_of(answer: str, start: int, context: str) -> tuple[int, int] | None:
    """Return the characters [first, end) of an answer in its context where it begins at `start`, white space aside;
    None where something else stands."""
    pattern = r"\s*" + r"\s+".join(re.escape(word) for word in answer.split())
    found = re.compile(pattern).match(context, start) if 0 <= start <= len(context) and answer.split() else None
    if found is None:
        return None
    return found.end() - len(found.group().lstrip()), found.end()


def best_spans(
    starts: np.ndarray, ends: np.ndarray, may_start: np.ndarray, longest: int, count: int
) -> list[tuple[int, int, float]]:
    """Return the `count` best spans (first token, last token, score) of at most `longest` tokens, best first.

    `starts` and `ends` are logits [n], summed; a span begins where `may_start` [n] says so. Equal scores: the earlier,
    then the shorter one.
    """
    if not len(starts):
        return []
    longest = min(longest, len(starts))
    beyond = np.concatenate([ends, np.full(longest - 1, -np.inf)])
    scores = starts[:, None] + np.lib.stride_tricks.sliding_window_view(beyond, longest)
    scores = np.where(may_start[:, None], scores, -np.inf).ravel()
    best = np.argsort(-scores, kind="stable")[:count]
    best = best[np.isfinite(scores[best])]
    return [(int(at // longest), int(at // longest + at % longest), float(scores[at])) for at in best]


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswering(RowTask):
    """Questions answered by a span of their context: `[CLS] question [SEP] context [SEP]` with two token types in an
    encoder; `<s> question </s></s> context </s>` in encoder and decoder, the decoder one place later.

    The question is cut at its end to `max_query_length` tokens; a context that is too long becomes windows that begin
    every `doc_stride` tokens. Two heads score every token as the answer's start and as its end; a window without the
    answer, or a question that has none, trains to place 0. The `n_best` spans of at most `max_answer_length` tokens
    are kept. No answer is told where its score is above the best span's by more than `null_threshold`; None: every
    question has an answer (SQuAD 1.1). An example may have several right answers; the first one trains.
    """

    name: ClassVar[str] = "question_answering"
    families: ClassVar[tuple[str, ...]] = ("encoder_only", "decoder_only", "encoder_decoder")
    label_kind: ClassVar[str] = "span"
    reads_records: ClassVar[bool] = True
    coefficients: ClassVar[dict[str, float]] = {START: 0.5, END: 0.5}

    sequence_length: int = 384
    text_fields: tuple[str, ...] = ("question", "context")
    metrics: tuple[str, ...] = ("squad_em", "squad_f1")
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 30
    n_best: int = 20
    null_threshold: float | None = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("doc_stride", "max_query_length", "max_answer_length", "n_best"):
            check_range(f"task.{key}", getattr(self, key), at_least=1)
        if len(self.text_fields) != 2:
            raise UserError("task.text_fields: name two fields, that of the question and that of its context")
        if self.sequence_length - _MOST_FIXED <= self.max_query_length:
            raise UserError(
                f"task.max_query_length: {self.max_query_length} tokens of task.sequence_length {self.sequence_length} "
                f"leave none for the context beside {_MOST_FIXED} special ones; change one of the two"
            )

    def is_cut(self, lengths: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return bool [N]: whether each example's question is cut."""
        return lengths[self.text_fields[0]] > self.max_query_length

    @property
    def what_is_cut(self) -> str:
        return f"examples whose question is cut to {self.max_query_length} tokens"

    @property
    def heads(self) -> dict[str, Head]:
        return {START: Head(1, "tokens", "places"), END: Head(1, "tokens", "places")}

    @property
    def format(self) -> Format:
        """How a row is written; known once the task is bound."""
        return tokens_format_of(self.family, self.vocabulary)

    @property
    def shapes(self) -> Shapes:
        heads = {f"{head}_{name}": ((), kind) for head in (START, END) for name, kind in _ONE}
        return row_shapes(self.family, self.sequence_length) | heads

    def num_rows(self, lengths: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return how many windows examples take whose fields have `lengths` tokens: int64 [examples]."""
        question, context = (lengths[field] for field in self.text_fields)
        return num_windows(context, self.room - np.minimum(question, self.max_query_length), self.doc_stride)

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`; draws nothing from `rng`. Raises UserError for an answer that is not there."""
        window, (question, context) = self._window(example), self.text_fields
        texts = [example[question][: self.max_query_length], example[context][window.tokens]]
        written = self.format.write(texts, self.vocabulary)
        arrays = rows_of(self.family, written, self.sequence_length, self.vocabulary)
        places = self._places(example, window)
        for head, place in zip((START, END), places or (0, 0), strict=True):
            arrays |= {f"{head}_targets": np.array(place, INT), f"{head}_weights": np.array(places is not None, FLOAT)}
        return arrays

    def _window(self, example: Example) -> Window:
        question, context = (len(example[field]) for field in self.text_fields)
        question = min(question, self.max_query_length)
        room = self.room - question
        most = has_most_context(context, room, self.doc_stride, example["window"])
        start = int(window_starts(context, room, self.doc_stride)[example["window"]])
        place = len(self.format.before) + question + len(self.format.between)
        return Window(slice(start, start + len(most)), place, most)

    def _places(self, example: Example, window: Window) -> tuple[int, int] | None:
        """Return the places of an answer's first and last token in a window, 0 where it is not in there; None where
        there is no label, or no token is left of the answer."""
        characters = self._characters(example)
        if characters is None or characters == NOWHERE:
            return characters
        spans = example["offsets"][self.text_fields[1]]
        inside = np.flatnonzero((spans[:, 1] > characters[0]) & (spans[:, 0] < characters[1]))
        if not len(inside):
            return None
        first, last = int(inside[0]) - window.tokens.start, int(inside[-1]) - window.tokens.start
        if first < 0 or last >= len(window.most_context):
            return NOWHERE
        return window.place + first, window.place + last

    def _characters(self, example: Example) -> tuple[int, int] | None:
        """Return the characters of the context that are the first answer; NOWHERE: none; None: there is no label."""
        label, record = example["label"], example["record"]
        if label is None:
            return None
        if not label["text"]:
            if self.null_threshold is None:
                raise UserError(
                    f"data: {_named(record)} has no answer; where questions may have none, as in SQuAD 2.0, set "
                    "task.null_threshold to 0.0 (finetune/squad2)"
                )
            return NOWHERE
        context = record[self.text_fields[1]]
        found = [place_of(*answer, context) for answer in zip(label["text"], label["answer_start"], strict=True)]
        if None in found:
            at = found.index(None)
            answer, start = label["text"][at], label["answer_start"][at]
            raise UserError(
                f"data: {_named(record)}: its answer {answer!r} is not at character {start} of the context, where "
                f"{context[max(start, 0) :][: len(answer) + 20]!r} stands; correct answer_start, or leave the row out"
            )
        return found[0]

    def read(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Example]) -> list[Found]:
        """Return what each window's logits, of `start` and `end` [B, T], say."""
        return [self._found(*row) for row in zip(rows, outputs[START], outputs[END], strict=True)]

    def _found(self, row: Example, starts: np.ndarray, ends: np.ndarray) -> Found:
        window, context = self._window(row), row["record"][self.text_fields[1]]
        starts, ends = starts.astype(np.float64), ends.astype(np.float64)
        places = slice(window.place, window.place + len(window.most_context))
        best = best_spans(starts[places], ends[places], window.most_context, self.max_answer_length, self.n_best)
        offsets = row["offsets"][self.text_fields[1]][window.tokens]
        spans = [(*_stripped(context, int(offsets[i, 0]), int(offsets[j, 1])), score) for i, j, score in best]
        return Found(float(starts[0] + ends[0]), [span for span in spans if span[0] < span[1]])

    def answers(self, rows: Sequence[Example], found: Sequence[Found]) -> list[dict[str, Any]]:
        """Return each example's answer, of all its windows: the text as it stands in the context and its characters
        [start, end) there ("" and None: no answer), the sum of its two logits, its probability among the `n_best`,
        and these. `null_odds` is by how much no answer scores above the best span."""
        by_example: list[tuple[Example, list[Found]]] = []
        for row, one in zip(rows, found, strict=True):
            if row["window"] == 0:
                by_example.append((row, []))
            by_example[-1][1].append(one)
        return [self._answer(row["record"][self.text_fields[1]], windows) for row, windows in by_example]

    def _answer(self, context: str, windows: Sequence[Found]) -> dict[str, Any]:
        texts: dict[str, dict[str, Any]] = {}
        for start, end, score in sorted((span for one in windows for span in one.spans), key=lambda span: -span[2]):
            texts.setdefault(context[start:end], {"start": start, "end": end, "score": score})
        spans = [{"text": text, **span} for text, span in texts.items()][: self.n_best]
        null = {"text": "", "start": None, "end": None, "score": min(one.null for one in windows)}
        best = sorted([*spans, null], key=lambda one: -one["score"]) if self.null_threshold is not None else spans
        best = best or [null]
        probabilities = softmax(np.array([one["score"] for one in best]))
        best = [one | {"probability": float(each)} for one, each in zip(best, probabilities, strict=True)]
        answer = {"n_best": best, "null_odds": null["score"] - spans[0]["score"] if spans else None}
        return at_threshold(answer, self.null_threshold)

    def truths(self, rows: Sequence[Example]) -> list[Any]:
        """Return each example's right answers; []: it has none."""
        return [row["label"] and row["label"]["text"] for row in rows if row["window"] == 0]

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [answer["answer"] for answer in answers]

    def tuned(self, answers: Sequence[Mapping[str, Any]], truths: Sequence[Any]) -> dict[str, float]:
        """Return the best F1 that another `null_threshold` would reach, and that threshold (SQuAD 2.0's scorer)."""
        if self.null_threshold is None:
            return {}
        threshold, f1 = best_threshold(truths, answers)
        return {"best_squad_f1": f1, "best_null_threshold": threshold}


def _named(record: Mapping[str, Any]) -> str:
    for key in ("id", "idx", "index"):
        if key in record:
            return f"example {record[key]!r}"
    return f"the example {str(record)[:60]}…"


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the characters [start, end) of a text without white space around: byte-level tokens begin with some."""
    inside = text[start:end]
    return end - len(inside.lstrip()), start + len(inside.rstrip())


def at_threshold(answer: Mapping[str, Any], threshold: float | None) -> dict[str, Any]:
    """Return an answer with what a `null_threshold` chooses of its `n_best`."""
    none = answer["null_odds"] is None or (threshold is not None and answer["null_odds"] > threshold)
    chosen = next(one for one in answer["n_best"] if bool(one["text"]) != none)
    told = {"answer": chosen["text"], **{key: chosen[key] for key in ("start", "end", "score", "probability")}}
    return {**told, "null_odds": answer["null_odds"], "n_best": answer["n_best"]}


def best_threshold(truths: Sequence[Sequence[str]], answers: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the `null_threshold` with which the answers reach their best mean F1, and that F1, as SQuAD 2.0's scorer
    finds it on a development set; the threshold lies midway between the `null_odds` that it parts."""

    def f1(truth: Sequence[str], guess: str) -> float:
        return measure(("squad_f1",), [truth], [guess])["squad_f1"]

    found = []  # (odds of no answer, what the span gains over it)
    for truth, answer in zip(truths, answers, strict=True):
        if answer["null_odds"] is not None:
            span = next(one["text"] for one in answer["n_best"] if one["text"])
            found.append((answer["null_odds"], f1(truth, span) - f1(truth, "")))
    nothing = sum(f1(truth, "") for truth in truths)
    if not found:
        return 0.0, nothing / max(len(truths), 1)
    odds, gains = np.array(sorted(found)).T
    totals = nothing + np.concatenate([[0.0], np.cumsum(gains)])  # with the first 0, 1, … spans told
    edges = np.concatenate([odds[:1] - 1, odds, odds[-1:] + 1])
    totals[np.diff(edges) == 0] = -np.inf  # no threshold parts equal odds
    best = int(totals.argmax())
    return float(edges[best : best + 2].mean()), float(totals[best] / len(truths))
