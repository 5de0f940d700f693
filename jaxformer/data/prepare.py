"""From a config's data section to what the batches draw from: sources, token stores, row indexes, mixtures."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxformer.data.records import Source
from jaxformer.data.rows import build_rows
from jaxformer.data.sources import Mixture
from jaxformer.data.store import build_examples, build_store
from jaxformer.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

Progress = Callable[[str, int, int], None]
Member = tuple[Any, float]  # random access to rows or examples, and its weight


def cache_folder() -> Path:
    """Return where stores, tokenizers and compiled code are kept: $JAXFORMER_CACHE or ~/.cache/jaxformer."""
    return Path(os.environ.get("JAXFORMER_CACHE") or Path.home() / ".cache" / "jaxformer")


def weighted_sources(source: Source) -> list[tuple[Source, float]]:
    """Return a mixture's members with their weights; any other source is its own only member."""
    return source.sources() if isinstance(source, Mixture) else [(source, 1.0)]


def corpus_tokenizer(config: Any, source: Source, progress: Progress | None = None) -> Tokenizer:
    """Return the tokenizer that `config` asks for, trained on the training text unless that was done before."""
    members = weighted_sources(source)
    if not hasattr(config, "vocab_size"):
        return load_tokenizer(Path(config.path))
    key = json.dumps(
        [type(config).__name__, dataclasses.asdict(config), [member.fingerprint("train") for member, _ in members]]
    )
    path = cache_folder() / "tokenizers" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        if progress:
            progress("training the tokenizer", 0, 0)
        train_tokenizer(config, _texts(members)).save(path)
    return load_tokenizer(path)


def _texts(members: list[tuple[Source, float]]) -> Iterator[str]:
    for member, _ in members:
        yield from member.documents("train")


def prepare(
    source: Source, supervision: Any, tokenizer: Tokenizer, split: str, *, seed: int, progress: Progress | None = None
) -> list[Member]:
    """Return the rows of an objective, or the examples of a task, of one split, per member of the mixture."""
    members: list[Member] = []
    for member, weight in weighted_sources(source):
        if hasattr(supervision, "fields"):
            members.append(
                (build_examples(member, split, tokenizer, supervision.fields, cache_folder(), progress), weight)
            )
        else:
            store = build_store(member, split, tokenizer, cache_folder(), progress)
            members.append((build_rows(store, supervision, seed), weight))
    return members
