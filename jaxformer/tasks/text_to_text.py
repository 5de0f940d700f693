"""Every task as text to text: the model reads a text with the data's fields in it and writes the label (T5, section
2.4); translation and summarisation are no others."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.objectives import FLOAT, INT, Decode, Encode, Example, Shapes, padded, row_arrays
from jaxformer.tasks.task import BOUND, Task
from jaxformer.tasks.template import Template, encoded, read_template
from jaxformer.tasks.writing import cut
from jaxformer.tokenizers import Vocabulary

# What is written of each kind of label, and what judges it where the config does not say.
KINDS: dict[str, tuple[str, ...]] = {
    "class": ("accuracy", "f1"),
    "number": ("pearson", "spearman"),
    "text": ("bleu",),
    "span": ("squad_em", "squad_f1"),
}
NO_NUMBER = -1.0  # what text that is no number counts as


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToText(Task):
    """Read the text `input`, with fields of the data in it, and write the label: of `target_kind` "class" its words
    (`words`: {label: text}; its name where there are none), of "number" its nearest multiple of 0.2 as "3.2", of "text"
    the first of its references, of "span" the first of its answers, or nothing where it has none.

    What `input` says itself is never cut; its fields are, at their ends, the longest first, to `sequence_length` in
    all.
    A target is cut to `target_length`, its end token always there. BART's texts begin with <s>, and its decoder with
    </s>. A decoder-only model reads the input up to its end token, and writes behind it.

    Text that is no label counts as wrong, text that is no number as -1.
    """

    name: ClassVar[str] = "text_to_text"
    families: ClassVar[tuple[str, ...]] = ("encoder_decoder", "decoder_only")
    head_dropout: ClassVar[float] = 0.0
    decodes: ClassVar[bool] = True
    delimited: ClassVar[bool] = True

    input: str = "{text}"
    target_kind: str = "class"
    words: dict = dataclasses.field(default_factory=dict, hash=False)
    target_length: int = 64
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    text_fields: tuple[str, ...] = dataclasses.field(default=(), metadata=BOUND)  # those of `input`
    _encode: Encode | None = dataclasses.field(default=None, compare=False, repr=False, metadata=BOUND)
    literal_ids: tuple[np.ndarray, ...] = dataclasses.field(default=(), compare=False, metadata=BOUND)
    label_ids: tuple[np.ndarray, ...] = dataclasses.field(default=(), compare=False, metadata=BOUND)
    spelled: tuple[str, ...] = dataclasses.field(default=(), compare=False, metadata=BOUND)  # as the tokenizer does it

    def __post_init__(self) -> None:
        check_choice("task.target_kind", self.target_kind, KINDS)
        object.__setattr__(self, "text_fields", self.template.fields)
        object.__setattr__(self, "words", {str(label): str(text) for label, text in self.words.items()})
        if not self.metrics:
            object.__setattr__(self, "metrics", KINDS[self.target_kind])
        super().__post_init__()
        if self.words and self.target_kind != "class":
            raise UserError(f"task.words: they are written for classes, and task.target_kind is {self.target_kind}")
        check_range("task.target_length", self.target_length, at_least=2)
        check_range("task.label_smoothing", self.label_smoothing, at_least=0, at_most=1)
        check_range("task.z_loss", self.z_loss, at_least=0)

    @property
    def label_kind(self) -> str:  # type: ignore[override]
        return self.target_kind

    @property
    def template(self) -> Template:
        return read_template("task.input", self.input)

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode, decode: Decode) -> Self:
        """Return a copy that knows ids, labels and how they are written.

        Raises UserError when the tokenizer lacks padding or EOS or has no tokens for what is to be written, when words
        are given for labels that there are not, or when a label or the input without its fields is too long.
        """
        vocabulary.id("end")
        names = tuple(labels) if self.target_kind == "class" else ()
        if names and (unknown := [label for label in self.words if label not in names]):
            raise UserError(f"task.words: there is no label '{unknown[0]}'; the data has {', '.join(names)}")
        texts = [self.words.get(label, label) for label in names]
        label_ids = tuple(np.asarray(encode(text), INT) for text in texts)
        task = dataclasses.replace(
            super().bind(vocabulary, labels, encode, decode), _encode=encode, label_ids=label_ids,
            literal_ids=encoded(self.template, encode), spelled=tuple(decode(ids).strip() for ids in label_ids),
        )  # fmt: skip
        for text, ids in zip(texts, label_ids, strict=True):
            if len(ids) > task._target_room:
                raise UserError(
                    f"task.target_length: {self.target_length}, but the label '{text}' takes "
                    f"{len(ids) + self.target_length - task._target_room} tokens with the end; set it larger"
                )
            task._check_written(f"the label '{text}'", ids)
        if len(set(task.spelled)) < len(texts):
            twice = next(text for text in task.spelled if task.spelled.count(text) > 1)
            raise UserError(f"task.words: '{twice}' is written for two labels; give each its own")
        if self.target_kind == "number":
            task._check_written("numbers", encode("0.123456789"))
        if task.room < 1:
            taken = self.sequence_length - task.room
            raise UserError(
                f"task.sequence_length: {self.sequence_length}, but task.input takes {taken} without fields"
            )
        return task

    def _check_written(self, what: str, ids: np.ndarray) -> None:
        if len(ids) == 0 or self.vocabulary.special.get("unknown", -1) in ids:
            raise UserError(f"data: the tokenizer cannot write {what}; choose other words or another tokenizer")

    @property
    def _start(self) -> list[int]:
        """The token before both texts: BART's <s>, whose decoder starts from another."""
        special, end = self.vocabulary.special, self.vocabulary.id("end")
        starts = self.family == "encoder_decoder" and self.vocabulary.decoder_start == end
        return [special["start"]] if starts and "start" in special else []

    def said(self, labels: Sequence[str]) -> list[str]:
        """Return the words of the input, and how labels, if they are classes or numbers, are written."""
        words = [text.strip() for text in self.template.literals if text.strip()]
        if self.target_kind == "class":
            return words + [self.words.get(label, label) for label in labels]
        return words + ([written_number(fifths / 5) for fifths in range(50)] if self.target_kind == "number" else [])

    @property
    def room(self) -> int:
        """The tokens of the fields that an input holds."""
        return self.sequence_length - sum(map(len, self.literal_ids)) - len(self._start) - 1

    @property
    def _target_room(self) -> int:
        return self.target_length - len(self._start) - 1

    @property
    def predicts_tokens(self) -> bool:
        return True

    @property
    def token_smoothing(self) -> float:  # type: ignore[override]
        return self.label_smoothing

    @property
    def shapes(self) -> Shapes:
        names = ("inputs", "segment_ids", "positions")
        alone = self.family == "decoder_only"
        row = (self.sequence_length + self.target_length - 1,) if alone else (self.target_length,)
        shapes: Shapes = {name: (row, INT) for name in (*names, "targets")} | {"weights": (row, FLOAT)}
        if alone:
            return shapes | {"prefix_length": ((), INT)}
        return shapes | {f"encoder_{name}": ((self.sequence_length,), INT) for name in names}

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`; draws nothing from `rng`. Without a label nothing has a weight."""
        pad, end = self.vocabulary.id("pad"), [self.vocabulary.id("end")]
        texts = cut([np.asarray(example[field], INT) for field in self.text_fields], self.room)
        pieces = [self.literal_ids[0]]
        for text, literal in zip(texts, self.literal_ids[1:], strict=True):
            pieces += [text, literal]
        source = np.concatenate([self._start, *pieces, end]).astype(INT)
        known = example["label"] is not None
        written = self._written(example["label"])[: self._target_room] if known else np.zeros(0, INT)
        target = np.concatenate([self._start, written, end]).astype(INT)
        if self.family == "decoder_only":
            both, length = np.concatenate([source, target]), self.shapes["inputs"][0][0]
            predicted = (np.arange(1, len(both)) >= len(source)) & known
            arrays = row_arrays(both[:-1], length, pad) | {"prefix_length": np.array(len(source), INT)}
            return arrays | {"targets": padded(both[1:], length, fill=pad), "weights": padded(predicted, length, FLOAT)}
        length = self.target_length
        read = np.append(self.vocabulary.decoder_start, target[:-1])
        return (
            row_arrays(source, self.sequence_length, pad, "encoder_")
            | row_arrays(read, length, pad)
            | {
                "targets": padded(target, length, fill=pad),
                "weights": padded(np.full(len(target), known), length, FLOAT),
            }
        )

    def _written(self, label: Any) -> np.ndarray:
        """Return the ids of what is written of a label."""
        if self.target_kind == "class":
            return self.label_ids[int(label)]
        if self._encode is None:
            raise TypeError("this task has no tokenizer yet; call bind first")
        return np.asarray(self._encode(self.text_of(label)), INT)

    def text_of(self, label: Any) -> str:
        """Return what is written of a number, of references or of answers."""
        if self.target_kind == "number":
            return written_number(label)
        texts = label["text"] if self.target_kind == "span" else label
        return texts[0] if len(texts) else ""

    def read(self, outputs: Mapping[str, Any], rows: Sequence[Example]) -> list[str]:
        """Return the text that the model wrote for each row."""
        return [text.strip() for text in outputs["written"]]

    def answers(self, rows: Sequence[Example], found: Sequence[str]) -> list[dict[str, Any]]:
        """Return of each example {"label": name or None, "text": what was written}, {"number": or None, "text": …},
        {"text": …} or {"answer": …}."""
        if self.target_kind == "class":
            names = dict(zip(self.spelled, self.labels, strict=True))
            return [{"label": names.get(text), "text": text} for text in found]
        if self.target_kind == "number":
            return [{"number": read_number(text), "text": text} for text in found]
        return [{"answer" if self.target_kind == "span" else "text": text} for text in found]

    def truths(self, rows: Sequence[Example]) -> list[Any]:
        """Return the label of each example; of a span its answers."""
        labels = super().truths(rows)
        if self.target_kind == "span":
            return [None if label is None else list(label["text"]) for label in labels]
        return labels

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the class of each answer (-1: it is no label), its number (-1: it is none) or its text."""
        if self.target_kind == "class":
            classes = {name: number for number, name in enumerate(self.labels)}
            return [classes.get(answer["label"], -1) for answer in answers]
        if self.target_kind == "number":
            return [NO_NUMBER if answer["number"] is None else answer["number"] for answer in answers]
        return [answer["answer" if self.target_kind == "span" else "text"] for answer in answers]


def written_number(number: float) -> str:
    """Return a number as T5 writes it: the nearest multiple of 0.2 with one decimal (section 2.4)."""
    return f"{round(5 * number) / 5:.1f}"


def read_number(text: str) -> float | None:
    """Return the number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
