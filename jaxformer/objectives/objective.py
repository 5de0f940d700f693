"""What all objectives share: a row of a corpus is written anew, and the writing is turned into the arrays of a batch.

A writing consists of **references**: n >= 0 stands for token n of the row, -1 - id (`insert`) for a token that the
objective puts there. So an objective only says what goes where; which tokens those are, and what each prediction may
see of the original text, follows from it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.objectives.arrays import FLOAT, INT, Shapes, padded
from jaxformer.objectives.supervision import Decode, Encode, Head, Part
from jaxformer.tokenizers import Vocabulary

if TYPE_CHECKING:
    from jaxformer.models import TransformerConfig

Row = Mapping[str, Any]
Written = dict[str, Any]  # array -> its values without padding; those of TOKENS are references
TOKENS = ("inputs", "encoder_inputs", "targets")
UNSEEN: Any = {"config": False}  # fields that no config gives


def insert(ids: Any) -> np.ndarray:
    """Return the references that stand for tokens of these ids, whatever the row."""
    return -1 - np.asarray(ids, np.int64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """An objective gives its fields, `shapes` and `write`; all else here is what most of them need."""

    name: ClassVar[str]
    paper: ClassVar[str] = "–"  # where it comes from, in a few words
    families: ClassVar[tuple[str, ...]]  # that can carry it; the first is its own
    refusals: ClassVar[Mapping[str, str]] = {}  # every other family, and why it cannot
    needs: ClassVar[tuple[str, ...]] = ("pad",)  # roles of special tokens
    rows: ClassVar[str] = "windows"
    labelled: ClassVar[bool] = False
    labels: ClassVar[tuple[str, ...]] = ()
    fields: ClassVar[tuple[str, ...]] = ()
    packed: ClassVar[bool] = True  # whatever an objective writes, attention stays inside segments
    predicts_tokens: ClassVar[bool] = True
    head_dropout: ClassVar[float] = 0.0
    heads: ClassVar[dict[str, Head]] = {}
    label_kind: ClassVar[str] = ""
    answering: ClassVar[None] = None
    metrics: ClassVar[tuple[str, ...]] = ()
    decodes: ClassVar[bool] = False
    delimited: ClassVar[bool] = False
    new_token_ids: ClassVar[tuple[int, ...]] = ()

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    _vocabulary: Vocabulary | None = dataclasses.field(default=None, metadata=UNSEEN)
    family: str = dataclasses.field(default="", metadata=UNSEEN)  # of the model; "": the objective's own

    def __post_init__(self) -> None:
        check_range("objective.label_smoothing", self.label_smoothing, at_least=0, at_most=1)
        check_range("objective.z_loss", self.z_loss, at_least=0)
        if not self.family:
            object.__setattr__(self, "family", self.families[0])

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return a copy for a model. Raises UserError, with the reason, for one that cannot carry the objective."""
        if model.family not in self.families:
            reason = self.refusals.get(model.family, f"it is for {' and '.join(self.families)}")
            raise UserError(f"objective.name: {self.name} cannot train a model of {model.family}: {reason}")
        return dataclasses.replace(self, family=model.family)

    def bind(
        self, vocabulary: Vocabulary, labels: Sequence[str] = (), encode: Encode | None = None,
        decode: Decode | None = None,
    ) -> Self:  # fmt: skip
        """Return a copy that knows the ids. Raises UserError when the tokenizer lacks a token that is needed.

        What tasks need besides is not read.
        """
        self.check_vocabulary(vocabulary)
        return dataclasses.replace(self, _vocabulary=vocabulary)

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Raise UserError when the tokenizer lacks a token that is needed."""
        for role in self.needs:
            vocabulary.id(role)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of a bound objective."""
        if self._vocabulary is None:
            raise TypeError("this objective has no vocabulary yet; call bind first")
        return self._vocabulary

    @property
    def parts(self) -> tuple[Part, ...]:
        return (Part(self, 1.0, ()),)

    @property
    def token_smoothing(self) -> float:
        return self.label_smoothing

    @property
    def fills_masks(self) -> bool:
        return "mask" in self.needs

    @property
    def coefficients(self) -> dict[str, float]:
        return {"tokens": 1.0} | dict.fromkeys(self.heads, 1.0)

    @property
    def separator(self) -> int | None:
        """The id that stands between documents in windows."""
        return None

    @property
    def row_length(self) -> int:
        """Tokens of the corpus that one row takes."""
        raise TypeError("an objective says how long its rows are")

    @property
    def row_settings(self) -> dict[str, Any]:
        return {"rows": self.rows, "row_length": self.row_length, "separator": self.separator}

    @property
    def shapes(self) -> Shapes:
        """{array: (shape of one example, dtype)} of everything that is emitted."""
        raise TypeError("an objective says what it emits")

    def write(self, row: Row, rng: np.random.Generator) -> Written:
        """Return the values of every array of `shapes`, references for tokens. Everything random comes from `rng`."""
        raise TypeError("an objective writes")

    def __call__(self, row: Row, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return one example of `shapes`. What is too long is cut at its end; an empty row has no weight."""
        written, tokens = self.write(row, rng), np.asarray(row["tokens"])
        pad, arrays = self.vocabulary.id("pad"), {}
        for name, (shape, dtype) in self.shapes.items():
            values = written[name]
            if name in TOKENS:
                self._check_references(name, values, tokens)
                arrays[name] = padded(spelled(values, tokens), shape[0], dtype, pad)
            else:
                arrays[name] = padded(values, shape[0], dtype) if shape else np.array(values, dtype)
        return arrays

    def _check_references(self, name: str, references: np.ndarray, tokens: np.ndarray) -> None:
        """Raise UserError for a place that the row does not have, as an id in place of one mostly is, and an id that
        the vocabulary does not have."""
        if not len(references):
            return
        if (highest := int(np.max(references))) >= len(tokens):
            raise UserError(
                f"objective {self.name}: {name} holds {highest}, but the row has {len(tokens)} tokens; an objective "
                f"says which place of the row stands where (0 to {len(tokens) - 1}), and insert(id) for another token"
            )
        if (lowest := int(np.min(references))) < -self.vocabulary.size:
            raise UserError(
                f"objective {self.name}: {name} inserts the id {-1 - lowest}; the vocabulary has 0 to "
                f"{self.vocabulary.size - 1}"
            )

    def visible(self, row: Row, rng: np.random.Generator, visibility: str) -> np.ndarray:
        """Return bool [predictions, tokens of the row]: which original tokens each prediction may see.

        `visibility` is the model's, of its only stack; an encoder is seen whole by its decoder, which is causal.
        """
        written, count = self.write(row, rng), len(row["tokens"])
        segments = np.asarray(written["segment_ids"])
        places = np.arange(len(segments))
        slots = np.asarray(written.get("predict_positions", places))
        sees = segments[slots, None] == segments
        if visibility != "full":
            prefix = written.get("prefix_length", 0) if visibility == "prefix" else 0
            sees &= (places <= slots[:, None]) | (places < prefix)
        seen = sees @ _originals(written["inputs"], count)
        if "encoder_inputs" in written:
            reads = segments[slots, None] == np.asarray(written["encoder_segment_ids"])
            seen |= reads @ _originals(written["encoder_inputs"], count)
        return seen


def spelled(references: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the ids [m] that references [m] stand for, in a row of these tokens [n]."""
    if not len(tokens):
        return -1 - references
    return np.where(references >= 0, tokens.take(references, mode="clip"), -1 - references)


def _originals(references: np.ndarray, count: int) -> np.ndarray:
    """Return bool [slots, count]: which token of the row stands in which slot."""
    return np.asarray(references)[:, None] == np.arange(count)


def one_segment(references: np.ndarray, side: str = "") -> Written:
    """Return what a stack reads of one text: its tokens, segment ids of 1, and positions."""
    length = len(references)
    return {
        f"{side}inputs": references,
        f"{side}segment_ids": np.ones(length, INT),
        f"{side}positions": np.arange(length),
    }


def row_shapes(length: int, side: str = "") -> Shapes:
    """Return the shapes of what a stack reads."""
    return {f"{side}{name}": ((length,), INT) for name in ("inputs", "segment_ids", "positions")}


def target_shapes(length: int) -> Shapes:
    """Return the shapes of the main predictions."""
    return {"targets": ((length,), INT), "weights": ((length,), FLOAT)}
