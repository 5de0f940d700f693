"""From text to batches: source -> documents -> token store -> row index -> objective or task -> batch.

What lives here: sources (`sources`, `files`, `stdlib_docs`), the token store (`store`), the row index (`rows`), what a
config's data section becomes (`preparing`), and batches as a pure function of config and step (`batches`).
What may come in: another source, another kind of row.
What must not: JAX, and state: nothing that depends on the number of hosts or workers."""

from jaxformer.data.batches import Member, evaluation_batches, train_batches
from jaxformer.data.preparing import corpus_tokenizer, prepare, training_texts, weighted_sources
from jaxformer.data.records import PLACES
from jaxformer.data.sources import SOURCES

__all__ = [
    "Member",
    "PLACES",
    "SOURCES",
    "corpus_tokenizer",
    "evaluation_batches",
    "prepare",
    "train_batches",
    "training_texts",
    "weighted_sources",
]
