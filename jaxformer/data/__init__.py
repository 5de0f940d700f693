"""From text to batches: source -> documents -> token store -> row index -> objective or task -> batch.

What lives here: sources (`sources`, `files`, `stdlib_docs`), which files are data and how they are read (`finding`,
`reading`), the token store (`store`), the row index (`rows`), how both are kept (`sealed`) and what they count
(`left_out`), what a config's data section becomes (`preparing`), and batches as a pure function of config and step
(`batches`).
What may come in: another source, another kind of row.
What must not: JAX, and state: nothing that depends on the number of hosts or workers."""

from jaxformer.data.batches import Member, evaluation_batches, train_batches
from jaxformer.data.left_out import LeftOut
from jaxformer.data.preparing import (
    corpus_tokenizer,
    doubts,
    left_out_files,
    left_out_of,
    prepare,
    training_texts,
    weighted_sources,
)
from jaxformer.data.records import PLACES
from jaxformer.data.sources import SOURCES

__all__ = [
    "LeftOut",
    "Member",
    "PLACES",
    "SOURCES",
    "corpus_tokenizer",
    "doubts",
    "evaluation_batches",
    "left_out_files",
    "left_out_of",
    "prepare",
    "train_batches",
    "training_texts",
    "weighted_sources",
]
