"""What objectives and tasks share: shapes, padding, positions."""

import numpy as np

from jaxformer.errors import UserError
from jaxformer.tokenizers import Vocabulary

Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]
INT, FLOAT = np.dtype(np.int32), np.dtype(np.float32)


def padded(values: np.ndarray, length: int, dtype: np.dtype = INT, fill: int = 0) -> np.ndarray:
    """Return the 1-D `values` [n], cut at `length` or filled up to it with `fill`."""
    array = np.full(length, fill, dtype)
    array[: len(values)] = values[:length]
    return array


def row_arrays(ids: np.ndarray, length: int, pad: int, side: str = "") -> dict[str, np.ndarray]:
    """Return what a stack reads of one segment of `ids` [n]: inputs, segment ids and positions, each [length]."""
    return {
        f"{side}inputs": padded(ids, length, fill=pad),
        f"{side}segment_ids": padded(np.ones(len(ids)), length),
        f"{side}positions": padded(np.arange(len(ids)), length),
    }


def positions(segment_ids: np.ndarray) -> np.ndarray:
    """Return each token's place in its own segment, counted from 0; segments are runs of equal ids [n]."""
    index = np.arange(len(segment_ids))
    starts = np.append(0, index[1:] * (segment_ids[1:] != segment_ids[:-1]))
    return index - np.maximum.accumulate(starts)


def check_word_starts(vocabulary: Vocabulary, key: str) -> None:
    """Raise UserError for a tokenizer none of whose tokens says that a word begins; `key` asks for whole words."""
    if not (vocabulary.word_starts & ~vocabulary.is_special).any():
        raise UserError(f"objective.{key}: this tokenizer does not say where words begin; set it to false")
