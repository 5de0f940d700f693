"""What tests of labelled data share: small tokenizers, examples as the store hands them to a task, rows of sources."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer.data.records import Source
from jaxformer.errors import UserError
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


# Sources of labelled data.

ALL: dict[str, Any] = {"validation_share": 1e-12}  # nothing is held out
CONTEXT = "Ada met Al in Rome."

# (label_field, kind, fields, labels by idx)
OF_ROWS: list[tuple[str, str, tuple[str, ...], list[Any]]] = [
    ("label", "class", ("question",), [0, 1, 0]),
    ("score", "number", ("question", "context"), [0.0, 0.5, 1.0]),
    ("tags", "tags", ("tokens",), [[0, 1]] * 3),
    ("answers", "span", ("question", "context"),
     [{"text": [], "answer_start": []}, *[{"text": ["Al"], "answer_start": [8]}] * 2]),
    ("pair.de", "text", ("pair.en",), [["Nummer 0"], ["Nummer 1"], ["Nummer 2"]]),
    ("options[1]", "choice", ("question", "options[0]", "options[1]"), [1, 1, 1]),
]  # fmt: skip


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def refusal(source: Source, *fields: str, kind: str = "class") -> str:
    with pytest.raises(UserError) as caught:
        list(source.examples("train", fields or ("text",), kind))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)
