"""From a config's data section to what the batches draw from: sources, token stores, row indexes, mixtures."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxformer.data.batches import Member
from jaxformer.data.records import Source
from jaxformer.data.rows import build_rows
from jaxformer.data.sources import Mixture as Mixed
from jaxformer.data.store import build_examples, build_pairs, build_store
from jaxformer.errors import UserError
from jaxformer.objectives.mixture import Member as Part
from jaxformer.objectives.mixture import Mixture, Padded
from jaxformer.objectives.objective import Objective
from jaxformer.tokenizers import Tokenizer, load_tokenizer, train_tokenizer

Progress = Callable[[str, int, int], None]


def cache_folder() -> Path:
    """Return where stores, tokenizers and compiled code are kept: $JAXFORMER_CACHE or ~/.cache/jaxformer."""
    return Path(os.environ.get("JAXFORMER_CACHE") or Path.home() / ".cache" / "jaxformer")


def weighted_sources(source: Source) -> list[tuple[Source, float]]:
    """Return a mixture's members with their weights; any other source is its own only member."""
    return source.sources() if isinstance(source, Mixed) else [(source, 1.0)]


def parts_of(supervision: Any) -> list[Part]:
    """Return a mixture's objectives with their shares; any other objective, or a task, is its own only part."""
    return supervision.mixed() if isinstance(supervision, Mixture) else [Part(supervision, 1.0, ())]


def corpus_tokenizer(config: Any, source: Source, supervision: Any, progress: Progress | None = None) -> Tokenizer:
    """Return the tokenizer that `config` asks for, trained on the training text unless that was done before."""
    if not hasattr(config, "vocab_size"):
        return load_tokenizer(Path(config.path))
    corpora = [member for member, _ in weighted_sources(source)]
    # What each objective reads of which corpus, once: a document, or both sides of a pair.
    read = dict.fromkeys(
        (corpus, getattr(part.objective, "fields", ()) if isinstance(part.objective, Objective) else ())
        for part in parts_of(supervision)
        for corpus in part.corpora or range(len(corpora))
        if 0 <= corpus < len(corpora)
    )
    fingerprints = [[corpora[corpus].fingerprint("train"), *fields] for corpus, fields in read]
    key = json.dumps([type(config).__name__, dataclasses.asdict(config), fingerprints])
    path = cache_folder() / "tokenizers" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not path.exists():
        if progress:
            progress("training the tokenizer", 0, 0)

        def texts() -> Iterator[str]:
            for corpus, fields in read:
                yield from corpora[corpus].texts("train", fields)

        train_tokenizer(config, texts()).save(path)
    return load_tokenizer(path)


def prepare(
    source: Source, supervision: Any, tokenizer: Tokenizer, split: str, *, seed: int, progress: Progress | None = None
) -> list[Member]:
    """Return the rows of an objective, or the examples of a task, of one split: a member for each corpus of a mixture
    and for each objective that reads it.

    Raises UserError for malformed data, an empty split, and a number of a corpus that there is not.
    """
    corpora = weighted_sources(source)
    parts = parts_of(supervision)
    members: list[Member] = []
    for number, part in enumerate(parts):
        wanted = part.corpora or range(len(corpora))
        if outside := [corpus for corpus in wanted if not 0 <= corpus < len(corpora)]:
            raise UserError(
                f"objective.members[{number}].corpora: there is no data.members[{outside[0]}]; "
                f"their numbers are 0 to {len(corpora) - 1}"
            )
        found = [
            _rows(corpora[corpus][0], part.objective, tokenizer, split, seed, progress) if corpus in wanted else []
            for corpus in range(len(corpora))
        ]
        sizes = [len(rows) for rows in found]
        rates = source.rates(sizes) if isinstance(source, Mixed) else [1.0]
        total = sum(rates[corpus] for corpus in wanted)
        transform = Padded(part.objective, supervision.shapes) if len(parts) > 1 else part.objective
        for corpus in wanted:
            name = "-".join(
                [*([f"{part.objective.name}{number}"] if len(parts) > 1 else []),
                 *([f"data{corpus}"] if len(corpora) > 1 else [])]
            )  # fmt: skip
            members.append(Member(found[corpus], transform, part.weight * rates[corpus] / total, name))
    return members


def _rows(
    source: Source, supervision: Any, tokenizer: Tokenizer, split: str, seed: int, progress: Progress | None
) -> Any:
    if hasattr(supervision, "labels"):
        return build_examples(source, split, tokenizer, supervision.fields, cache_folder(), progress)
    if hasattr(supervision, "fields"):
        store = build_pairs(source, split, tokenizer, supervision.fields, cache_folder(), progress)
    else:
        store = build_store(source, split, tokenizer, cache_folder(), progress)
    return build_rows(store, supervision, seed)
