"""Token classification, such as named entity recognition: each word's first token tells its tag (BERT, section 5.3)."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.objectives import FLOAT, INT, Decode, Encode, Example, Head, Shapes
from jaxformer.tasks.classification import check_class_weights, softmax
from jaxformer.tasks.schemes import OUTSIDE, entities_of, scheme_of, to_bio, with_beginnings
from jaxformer.tasks.task import RowTask
from jaxformer.tasks.writing import Format, row_shapes, rows_of, tokens_format_of
from jaxformer.tokenizers import Vocabulary

ENTITY_METRICS = ("seqeval_f1", "seqeval_precision", "seqeval_recall", "tag_accuracy")

# In running text the marks before and after a word are words of their own, as they are where people tag words.
_RUN = re.compile(r"""(?P<before>[(\[{<"“‘«¿¡]*)(?P<word>\S*?)(?P<after>[)\]}>"”’»….,;:!?]*)(?=\s|$)""")


def text_and_words(given: str | Sequence[str]) -> tuple[str, np.ndarray]:
    """Return the text of what a field holds, and its words' characters [first, end) there: int64 [words, 2].

    A list of words is joined by one space. In running text white space parts words, and marks around them.
    """
    if isinstance(given, str):
        return given, np.array(list(_words(given)), np.int64).reshape(-1, 2)
    lengths = np.array([len(word) for word in given], np.int64)
    ends = np.cumsum(lengths + 1) - 1
    return " ".join(given), np.stack([ends - lengths, ends], axis=1)


def _words(text: str) -> Iterator[tuple[int, int]]:
    for found in _RUN.finditer(text):
        if not found["word"]:
            yield from [found.span()] if found.group() else []  # marks alone, such as ...
            continue
        yield from ((place, place + 1) for place in range(*found.span("before")))
        yield found.span("word")
        yield from ((place, place + 1) for place in range(*found.span("after")))


def first_tokens(text: str, words: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the first token of each word, int64 [words], -1 where it has none; `offsets` [tokens, 2] are the tokens'
    characters in the text. White space is no part of a word, though a token may begin with some."""
    blank = np.array([character.isspace() for character in text] + [False])
    # The next character that is not blank, from every place on.
    visible = np.minimum.accumulate(np.where(blank, len(text), np.arange(len(text) + 1))[::-1])[::-1]
    starts = visible[offsets[:, 0]]
    word = np.searchsorted(words[:, 0], starts, side="right") - 1
    within = np.flatnonzero((starts < offsets[:, 1]) & (word >= 0) & (starts < np.append(words[:, 1], 0)[word]))
    first = np.full(len(words), -1, np.int64)
    first[word[within][::-1]] = within[::-1]
    return first


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassification(RowTask):
    """A tag for every word of one text, `[CLS] words [SEP]`, told by the word's first token; the others weigh nothing.

    Tags may spell entities as BIO, IOB1 (learnt as BIO) or BIOES, or none, and then their accuracy alone is told. A
    text that is too long is cut at its end; words that are cut off, and those of which the tokenizer leaves nothing,
    are told to be "O". `class_weights` (one for each tag, in their order) weigh the loss of their words.
    """

    name: ClassVar[str] = "token_classification"
    families: ClassVar[tuple[str, ...]] = ("encoder_only", "decoder_only", "encoder_decoder")
    label_kind: ClassVar[str] = "tags"
    reads_records: ClassVar[bool] = True
    coefficients: ClassVar[dict[str, float]] = {"label": 1.0}

    metrics: tuple[str, ...] = ENTITY_METRICS
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("task.label_smoothing", self.label_smoothing, at_least=0, at_most=1)
        check_class_weights(self.class_weights)
        if len(self.text_fields) != 1:
            raise UserError(f"task.text_fields: {len(self.text_fields)} fields, but the words of one are tagged")

    def learnt(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the tags that are learnt of data that has these."""
        return with_beginnings(names) if scheme_of(names) == "IOB1" else tuple(names)

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode, decode: Decode) -> Self:
        check_class_weights(self.class_weights, labels)
        names_entities = not labels or bool(scheme_of(labels))
        metrics = self.metrics if names_entities or self.metrics != ENTITY_METRICS else ("tag_accuracy",)
        return RowTask.bind(dataclasses.replace(self, metrics=metrics), vocabulary, labels, encode, decode)

    @property
    def heads(self) -> dict[str, Head]:
        return {"label": Head(len(self.labels), "tokens", "softmax", self.label_smoothing)}

    @property
    def format(self) -> Format:
        """How a row is written; known once the task is bound."""
        return tokens_format_of(self.family, self.vocabulary)

    @property
    def shapes(self) -> Shapes:
        row = (self.sequence_length,)
        return row_shapes(self.family, self.sequence_length) | {
            "label_targets": (row, INT),
            "label_weights": (row, FLOAT),
        }

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`; draws nothing from `rng`. Raises UserError where tags do not match words."""
        tokens = np.asarray(example[self.text_fields[0]], INT)[: self.room]
        targets, weights = (np.zeros(self.sequence_length, kind) for kind in (INT, FLOAT))
        places, tags = self._places(example), self._tags(example)
        if tags is not None:
            seen = places >= 0
            classes = np.array([self.labels.index(tag) for tag in tags], INT)[seen]
            targets[places[seen]] = classes
            weights[places[seen]] = np.array(self.class_weights, FLOAT)[classes] if self.class_weights else 1
        arrays = rows_of(
            self.family, self.format.write([tokens], self.vocabulary), self.sequence_length, self.vocabulary
        )
        return arrays | {"label_targets": targets, "label_weights": weights}

    def _places(self, example: Example) -> np.ndarray:
        """Return the place in the row of each word's first token, int64 [words], -1 where there is none."""
        field = self.text_fields[0]
        first = first_tokens(*text_and_words(example["record"][field]), example["offsets"][field])
        return np.where((first >= 0) & (first < self.room), first + len(self.format.before), -1)

    def _tags(self, example: Example) -> list[str] | None:
        """Return the tag of each word, in the scheme that is learnt (an imported model may know IOB1 as it is); None
        where there are none."""
        if example["label"] is None:
            return None
        tags = [self.labels[number] for number in example["label"]]
        _, words = text_and_words(example["record"][self.text_fields[0]])
        if len(tags) != len(words):
            raise UserError(f"data: {len(tags)} tags for the {len(words)} words of {str(example['record'])[:80]}")
        return to_bio(tags) if scheme_of(self.labels) == "BIO" else tags

    def read(self, outputs: Mapping[str, np.ndarray], rows: Sequence[Example]) -> list[Any]:
        """Return (tag's number, probability) of each word of each row, None of a word that no token stands for, from
        the logits `label` [B, T, tags]."""
        return [self._found(*row) for row in zip(rows, outputs["label"], strict=True)]

    def _found(self, row: Example, logits: np.ndarray) -> list[tuple[int, float] | None]:
        places = self._places(row)
        probabilities = softmax(logits[places])
        best = zip(probabilities.argmax(axis=-1).tolist(), probabilities.max(axis=-1).tolist(), strict=True)
        return [one if place >= 0 else None for one, place in zip(best, places, strict=True)]

    def answers(self, rows: Sequence[Example], found: Sequence[Any]) -> list[dict[str, Any]]:
        """Return each text's words with their characters [start, end), tags and probabilities (None: `unseen`, cut off
        or left out by the tokenizer), and the entities that the tags spell."""
        return [self._answer(row["record"][self.text_fields[0]], tags) for row, tags in zip(rows, found, strict=True)]

    def _answer(self, given: str | Sequence[str], found: Sequence[tuple[int, float] | None]) -> dict[str, Any]:
        text, spans = text_and_words(given)
        tags = [OUTSIDE if one is None else self.labels[one[0]] for one in found]
        words = [
            {"word": text[start:end], "start": start, "end": end, "tag": tag, "probability": one and one[1]}
            for (start, end), tag, one in zip(spans.tolist(), tags, found, strict=True)
        ]
        entities = []
        for type_, first, end in entities_of(tags):
            start, stop = int(spans[first, 0]), int(spans[end - 1, 1])
            entities.append({"type": type_, "text": text[start:stop], "start": start, "end": stop})
        return {"tags": words, "entities": entities, "unseen": sum(one is None for one in found)}

    def truths(self, rows: Sequence[Example]) -> list[Any]:
        """Return each text's tags, one per word."""
        return [self._tags(row) for row in rows]

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[Any]:
        return [[word["tag"] for word in answer["tags"]] for answer in answers]
