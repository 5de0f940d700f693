"""Tokenizers: byte-level BPE, WordPiece and Unigram trained on a corpus, and the released ones of the papers.

Encoding adds no special token unless asked: objectives and tasks place them, by role. `Vocabulary` is what those need
of a tokenizer, as plain numpy.

What may come in: another kind of tokenizer or of released file.
What must not: JAX, corpora, templates of tasks."""

from jaxformer.tokenizers.loading import load_tokenizer
from jaxformer.tokenizers.tokenizer import ROLES, Tokenizer, Vocabulary
from jaxformer.tokenizers.training import TOKENIZERS, ByteBPE, Unigram, WordPiece, train_tokenizer
from jaxformer.tokenizers.words import Encoded

__all__ = [
    "ByteBPE",
    "Encoded",
    "ROLES",
    "TOKENIZERS",
    "Tokenizer",
    "Unigram",
    "Vocabulary",
    "WordPiece",
    "load_tokenizer",
    "train_tokenizer",
]
