"""T5's classification: the model writes the label's text (T5, section 2.4)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.objectives import FLOAT, INT, Decode, Encode, Example, Shapes, padded, row_arrays
from jaxformer.tasks.task import BOUND, Task
from jaxformer.tasks.writing import cut
from jaxformer.tokenizers import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToTextClassification(Task):
    """T5's: reads `PREFIX FIELD: text`, each field announced by its name, and writes the label's text.

    Targets are the label's tokens and EOS, at most `target_length` together. It is judged by what the model writes;
    text that is no label counts as wrong.
    """

    name: ClassVar[str] = "text_to_text_classification"
    label_kind: ClassVar[str] = "class"
    families: ClassVar[tuple[str, ...]] = ("encoder_decoder",)
    head_dropout: ClassVar[float] = 0.0
    decodes: ClassVar[bool] = True

    metrics: tuple[str, ...] = ("accuracy", "f1")

    prefix: str = ""
    target_length: int = 8
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    words: tuple[np.ndarray, ...] = dataclasses.field(default=(), compare=False, metadata=BOUND)
    label_ids: tuple[np.ndarray, ...] = dataclasses.field(default=(), compare=False, metadata=BOUND)
    spelled: tuple[str, ...] = dataclasses.field(default=(), compare=False, metadata=BOUND)  # as the tokenizer does it

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.text_fields) not in (1, 2):
            raise UserError(f"task.text_fields: {len(self.text_fields)} fields, but one text or two can be classified")
        check_range("task.target_length", self.target_length, at_least=2)
        check_range("task.label_smoothing", self.label_smoothing, at_least=0, at_most=1)
        check_range("task.z_loss", self.z_loss, at_least=0)

    def bind(self, vocabulary: Vocabulary, labels: Sequence[str], encode: Encode, decode: Decode) -> Self:
        """Return a copy that knows ids, labels and their tokens.

        Raises UserError when the tokenizer lacks padding or EOS, when it has no tokens for a label's text, or when a
        label or the words before the texts are too long.
        """
        names = [f"{field}:" for field in self.text_fields]
        names[0] = f"{self.prefix} {names[0]}".strip()
        words = tuple(np.asarray(encode(name), INT) for name in names)
        label_ids = tuple(np.asarray(encode(label), INT) for label in labels)
        spelled = tuple(decode(ids).strip() for ids in label_ids)
        task = super().bind(vocabulary, labels, encode, decode)
        task = dataclasses.replace(task, words=words, label_ids=label_ids, spelled=spelled)
        vocabulary.id("end")
        for label, ids in zip(labels, label_ids, strict=True):
            if len(ids) + 1 > self.target_length:
                raise UserError(
                    f"task.target_length: {self.target_length}, but the label '{label}' takes {len(ids) + 1} tokens "
                    "with the end; set it larger"
                )
            if len(ids) == 0 or ("unknown" in vocabulary.special and vocabulary.id("unknown") in ids):
                raise UserError(f"data: the tokenizer cannot write the label '{label}'; rename it or train another")
        if task.room < 1:
            taken = self.sequence_length - task.room
            raise UserError(f"task.sequence_length: {self.sequence_length}, but prefix and field names take {taken}")
        return task

    @property
    def room(self) -> int:
        return self.sequence_length - sum(map(len, self.words)) - 1

    @property
    def predicts_tokens(self) -> bool:
        return True

    @property
    def token_smoothing(self) -> float:  # type: ignore[override]
        return self.label_smoothing

    @property
    def shapes(self) -> Shapes:
        source, target = (self.sequence_length,), (self.target_length,)
        names = ("inputs", "segment_ids", "positions")
        shapes: Shapes = {name: (target, INT) for name in (*names, "targets")} | {"weights": (target, FLOAT)}
        return shapes | {f"encoder_{name}": (source, INT) for name in names}

    def __call__(self, example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the arrays of `shapes`; draws nothing from `rng`."""
        pad, end = self.vocabulary.id("pad"), self.vocabulary.id("end")
        texts = cut([np.asarray(example[field], INT) for field in self.text_fields], self.room)
        parts = [part for pair in zip(self.words, texts, strict=True) for part in pair]
        source = row_arrays(np.concatenate([*parts, [end]]), self.sequence_length, pad, "encoder_")
        label, length = -1 if example["label"] is None else int(example["label"]), self.target_length
        target = np.append(self.label_ids[label], end) if label >= 0 else np.array([end])
        return (
            source
            | row_arrays(np.append(self.vocabulary.decoder_start, target[:-1]), length, pad)
            | {
                "targets": padded(target, length, fill=pad),
                "weights": padded(np.full(len(target), label >= 0), length, FLOAT),
            }
        )

    def read(self, outputs: Mapping[str, Any], rows: Sequence[Example]) -> list[str]:
        """Return the text that the model wrote for each row."""
        return list(outputs["written"])

    def answers(self, rows: Sequence[Example], found: Sequence[str]) -> list[dict[str, Any]]:
        """Return {"label": the text that was written, also where it is no label} of each example."""
        return [{"label": text} for text in found]

    def guesses(self, answers: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the class of each answer; -1 where it is no label."""
        classes = {name: number for number, name in enumerate(self.spelled)}
        return [classes.get(answer["label"], -1) for answer in answers]
