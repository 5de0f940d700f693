"""Objectives that read one text and write another: in two stacks, or one text after the other in a single one."""

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from jaxformer.errors import UserError
from jaxformer.objectives.arrays import INT, Shapes
from jaxformer.objectives.noise import shifted_right
from jaxformer.objectives.objective import Objective, Row, Written, insert, one_segment, row_shapes, target_shapes

if TYPE_CHECKING:
    from jaxformer.models import TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToText(Objective):
    """An encoder-decoder reads the source and writes the target. A decoder-only model reads both in one row and
    predicts the target alone; with visibility "prefix" it sees the whole source (T5, section 3.2.1)."""

    families: ClassVar[tuple[str, ...]] = ("encoder_decoder", "decoder_only")
    refusals: ClassVar[dict[str, str]] = {"encoder_only": "it writes text, and the model has no decoder"}
    needs: ClassVar[tuple[str, ...]] = ("pad", "end")
    packed: ClassVar[bool] = False
    delimited: ClassVar[bool] = True

    def for_model(self, model: "TransformerConfig") -> Self:
        """Return a copy for a model. Raises UserError when the model sees what it predicts."""
        if model.family in self.families and model.visibility == "full":
            raise UserError(f"objective.name: {self.name} needs model.visibility to be causal or prefix, not full")
        return super().for_model(model)

    @property
    def source_length(self) -> int:
        raise TypeError("a text-to-text objective says how long its sources are")

    @property
    def target_length(self) -> int:
        raise TypeError("a text-to-text objective says how long its targets are")

    def sides(self, row: Row, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return source and target as references, the tokens around them included. Not called for an empty row."""
        raise TypeError("a text-to-text objective writes two sides")

    @property
    def _row(self) -> int:
        return self.source_length + self.target_length - 1

    @property
    def shapes(self) -> Shapes:
        if self.family == "decoder_only":
            return row_shapes(self._row) | target_shapes(self._row) | {"prefix_length": ((), INT)}
        sides = row_shapes(self.source_length, "encoder_") | row_shapes(self.target_length)
        return sides | target_shapes(self.target_length)

    def write(self, row: Row, rng: np.random.Generator) -> Written:
        """Return one example: both sides, the target shifted right where it is read."""
        source = target = np.zeros(0, np.int64)
        if len(row["tokens"]):
            source, target = self.sides(row, rng)
            source, target = source[: self.source_length], target[: self.target_length]
        if self.family == "decoder_only":
            both, first = np.concatenate([source, target]), len(source)
            predicted = np.arange(1, max(len(both), 1)) >= first
            return one_segment(both[:-1]) | {"targets": both[1:], "weights": predicted, "prefix_length": first}
        read = shifted_right(target, int(insert(self.vocabulary.decoder_start)))
        written = one_segment(source, "encoder_") | one_segment(read)
        return written | {"targets": target, "weights": np.ones(len(target))}
