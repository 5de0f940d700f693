"""From text to batches: source -> documents -> token store -> row index -> objective or task -> batch.

What lives here: sources (`records`, `splits`; `sources`, `files`, `columns`, `squad`, `parallel`, `huggingface`,
`stdlib_docs`), what a row's fields and labels are (`fields`, `kinds`, `labels`), which files are data and how they are
read (`finding`, `reading`), the token store (`store`), the row index (`rows`), how both are kept (`sealed`) and what
they count (`left_out`), what a config's data section becomes (`preparing`), batches as a pure function of config and
step (`batches`), and rows that a model is to answer (`inputs`).
What may come in: another source, another kind of row.
What must not: JAX, and state: nothing that depends on the number of hosts or workers."""

from jaxformer.data.batches import Member, evaluation_batches, train_batches
from jaxformer.data.fields import IDS
from jaxformer.data.inputs import input_records, unlabelled
from jaxformer.data.labels import classes_among
from jaxformer.data.left_out import LeftOut
from jaxformer.data.preparing import (
    Chosen,
    check_split,
    corpus_tokenizer,
    doubts,
    evaluated_rows,
    learnt_from,
    left_out_files,
    left_out_of,
    num_labelled,
    num_records,
    prepare,
    training_texts,
    weighted_sources,
)
from jaxformer.data.records import EVERY, PLACES, Malformed, Record, digest
from jaxformer.data.sources import SOURCES

__all__ = [
    "Chosen",
    "EVERY",
    "IDS",
    "LeftOut",
    "Malformed",
    "Member",
    "PLACES",
    "Record",
    "SOURCES",
    "check_split",
    "classes_among",
    "corpus_tokenizer",
    "doubts",
    "digest",
    "evaluated_rows",
    "evaluation_batches",
    "input_records",
    "learnt_from",
    "left_out_files",
    "left_out_of",
    "num_labelled",
    "num_records",
    "prepare",
    "train_batches",
    "training_texts",
    "unlabelled",
    "weighted_sources",
]
