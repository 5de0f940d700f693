"""Small tokenizers, and examples as the store hands them to a task that reads records."""

import functools

import numpy as np

from jaxformer.tokenizers import ByteBPE, Tokenizer, WordPiece, train_tokenizer

TEXT = (
    "Who lives in Zürich? The café in Zürich is old. Anna Berg lives in New York, and Émile naïvely swims 🙂. "
    "When did it snow? It snowed in May."
)


@functools.cache
def wordpiece() -> Tokenizer:
    """WordPiece with whole words of TEXT; other words come apart into letters."""
    return train_tokenizer(WordPiece(vocab_size=400, lowercase=False), [TEXT] * 4)


@functools.cache
def byte_bpe() -> Tokenizer:
    """BART's kind of byte-level BPE with whole words of TEXT, each with the space before it."""
    return train_tokenizer(ByteBPE(vocab_size=500, special="bart"), [TEXT] * 4)


@functools.cache
def gpt_bpe() -> Tokenizer:
    """The same with GPT's special tokens."""
    return train_tokenizer(ByteBPE(vocab_size=500), [TEXT] * 4)


def example_of(tokenizer: Tokenizer, label: object, window: int = 0, /, *, name: str = "q1", **fields: object) -> dict:
    """A labelled example whose fields are texts, or lists of words, with their offsets."""
    texts = {field: given if isinstance(given, str) else " ".join(given) for field, given in fields.items()}
    encoded = {field: tokenizer.encode_batch([text])[0] for field, text in texts.items()}
    return {
        **{field: np.array(one.ids, np.int32) for field, one in encoded.items()},
        "label": label,
        "window": window,
        "record": {"id": name, **fields},
        "offsets": {field: np.array(one.offsets, np.int32).reshape(-1, 2) for field, one in encoded.items()},
    }
