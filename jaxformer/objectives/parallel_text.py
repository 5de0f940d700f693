"""Teacher forcing on pairs of texts: read one, write the other (Transformer, sections 3 and 5.1)."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.objectives.arrays import positions
from jaxformer.objectives.objective import Row, Written, insert
from jaxformer.objectives.text_to_text import TextToText


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelText(TextToText):
    """Read the field `source_field` of the data and write `target_field`, each with its end token.

    Pairs of which a side is empty, or does not fit into `source_length` or `target_length`, are left out. `pack` puts
    as many pairs into a row as fit, in the order of the data, so that little of a batch is padding (the paper batches
    sentences of similar length instead); no pair sees another. A decoder-only model reads one pair a row.
    """

    name: ClassVar[str] = "parallel_text"
    paper: ClassVar[str] = "Transformer 3, 5"
    rows: ClassVar[str] = "pairs"

    source_field: str = "source"
    target_field: str = "target"
    source_length: int = 256  # type: ignore[assignment]
    target_length: int = 256  # type: ignore[assignment]
    pack: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("source_length", "target_length"):
            check_range(f"objective.{key}", getattr(self, key), at_least=2)
        if self.source_field == self.target_field:
            raise UserError(f"objective.target_field: '{self.target_field}' is the source already; name another field")

    @property
    def fields(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.source_field, self.target_field

    @property
    def packed(self) -> bool:  # type: ignore[override]
        return self.pack and self.family == "encoder_decoder"

    @property
    def row_settings(self) -> dict[str, Any]:
        return {"rows": self.rows, "lengths": [self.source_length, self.target_length], "pack": self.packed}

    def write(self, row: Row, rng: np.random.Generator) -> Written:
        """Return one example; draws nothing. A packed row has a segment for each of its pairs."""
        if self.family == "decoder_only":
            return super().write(row, rng)
        (source, encoder_segments), (target, segments) = self._ended(row, False), self._ended(row, True)
        firsts = np.diff(segments, prepend=0) != 0
        read = np.where(firsts, insert(self.vocabulary.decoder_start), np.concatenate([target[:1], target[:-1]]))
        return {
            "encoder_inputs": source,
            "encoder_segment_ids": encoder_segments,
            "encoder_positions": positions(encoder_segments),
            "inputs": read,
            "segment_ids": segments,
            "positions": positions(segments),
            "targets": target,
            "weights": np.ones(len(target)),
        }

    def sides(self, row: Row, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self._ended(row, False)[0], self._ended(row, True)[0]

    def _ended(self, row: Row, is_target: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return one side's references and segments, with the end token behind each pair's."""
        own = np.flatnonzero(np.asarray(row["is_target"]) == is_target)
        segments = np.asarray(row["segment_ids"])[own]
        ends = np.flatnonzero(np.diff(segments, append=0)) + 1
        references = np.insert(own, ends, insert(self.vocabulary.id("end")))
        return references, np.insert(segments, ends, segments[ends - 1])
