"""Tokenizers: byte-level BPE, WordPiece and Unigram trained on a corpus, and the released ones of the papers.

Encoding adds no special token unless asked: objectives and tasks place them, by role. `Vocabulary` is what those need
of a tokenizer, as plain numpy.
"""

from jaxformer.tokenizers.loading import load_tokenizer
from jaxformer.tokenizers.tokenizer import ROLES, SENTINEL, Tokenizer, Vocabulary
from jaxformer.tokenizers.training import TOKENIZERS, ByteBPE, TokenizerFile, Unigram, WordPiece, train_tokenizer

__all__ = [
    "ROLES",
    "SENTINEL",
    "TOKENIZERS",
    "ByteBPE",
    "Tokenizer",
    "TokenizerFile",
    "Unigram",
    "Vocabulary",
    "WordPiece",
    "load_tokenizer",
    "train_tokenizer",
]
