"""What an evaluation reads, a split of the run's own data or all rows of data of one's own, and how results name it."""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import Config
from jaxformer.data import EVERY, Member, check_split, digest, num_records, weighted_sources
from jaxformer.errors import UserError


class Judged(NamedTuple):
    """The data that is judged: `part` of it is read, a split or all its rows; `name` is that of its results."""

    part: str
    name: str
    facts: list[dict[str, Any]]  # of every corpus: what names it, and its fingerprint


def judged_data(config: Config, trained: Config, split: str, record: Mapping[str, Any]) -> Judged:
    """Return what an evaluation reads of a config's data, given the run's own config and its record.

    Of data that the run was not trained with all rows are judged: none was seen in training. Raises UserError for a
    split that there is not.
    """
    corpora = [corpus for corpus, _ in weighted_sources(config.data)]
    before = [corpus for corpus, _ in weighted_sources(trained.data)]
    others = [corpus for corpus in corpora if not _was_read(corpus, before, record)]
    names_split = any(
        _split_of(corpus, split) not in ("", *[_split_of(own, split) for own in before]) for corpus in others
    )
    part = EVERY if len(others) == len(corpora) and not names_split else split
    if part == EVERY and split == "test":
        raise UserError(
            f"--split=test: of {_place(others[0], EVERY)} all rows are judged; leave --split out, "
            "or name what to test on with data.test_path (data.test_split of a TFDS data set)"
        )
    check_split(config.data, part)
    prints = [corpus.fingerprint(part) for corpus in corpora]
    name = f"evaluate-{split}"
    if part == EVERY or prints != _prints(before, corpora, split):
        named = re.sub(r"[^\w.-]+", "-", Path(_place(corpora[0], part)).stem if len(corpora) == 1 else "mixture")
        name += f"-{named}-{digest(*prints)[:8]}"
    facts = [
        {"data": _place(corpus, part), "whole": part == EVERY, "fingerprint": found}
        for corpus, found in zip(corpora, prints, strict=True)
    ]
    return Judged(part, name, facts)


def with_rows(judged: Judged, members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return the facts of what was judged with the number of rows that each corpus has."""
    if len(members) != len(judged.facts):  # several objectives read them, perhaps not all
        return judged.facts
    return [fact | {"rows": num_records(member.rows)} for fact, member in zip(judged.facts, members, strict=True)]


def described(fact: Mapping[str, Any], part: str) -> str:
    """Return a line that says of a corpus which rows of it are judged."""
    which = "all its rows" if part == EVERY else part
    return f"{fact['data']} ({which}): {fact.get('rows', 'its')} rows, fingerprint {fact['fingerprint']}"


def _place(corpus: Any, split: str) -> str:
    """Return the path, or the name, of what a split is read from."""
    return _split_of(corpus, split) or getattr(corpus, "path", "") or getattr(corpus, "dataset", "stdlib_docs")


def _split_of(corpus: Any, split: str) -> str:
    """Return the path, or the name, of a split that is stored as such, "" where there is none."""
    return getattr(corpus, f"{split}_path", "") or getattr(corpus, f"{split}_split", "")


def _was_read(corpus: Any, before: Sequence[Any], record: Mapping[str, Any]) -> bool:
    """Say whether the run was trained with this very data, wherever it lies now."""
    alike = [own for own in before if type(own) is type(corpus)]
    if not hasattr(corpus, "path") and not hasattr(corpus, "dataset"):
        return True  # the built-in corpus has splits of its own
    if not hasattr(corpus, "path"):
        key = ("dataset", "data_dir")
        return any([getattr(own, k, "") for k in key] == [getattr(corpus, k, "") for k in key] for own in alike)
    places = [os.path.realpath(os.path.expanduser(own.path)) for own in alike]
    if os.path.realpath(os.path.expanduser(corpus.path)) in places:
        return True
    content = _content(corpus)
    kept = record.get("fingerprints", {}).get("data", {})
    recorded = [list(files.values()) for key, files in kept.items() if key.endswith(".path")]
    return bool(content) and content in [*map(_content, alike), *recorded]


def _content(corpus: Any) -> list[str]:
    """Return the digests of what a corpus of files is trained on, as a run keeps them; [] where it is gone."""
    with contextlib.suppress(OSError, UserError):
        return list(corpus.contents()["path"].values())
    return []


def _prints(before: Sequence[Any], corpora: Sequence[Any], split: str) -> list[str]:
    """Return the fingerprints of the run's own data, [] where it cannot be that of `corpora`."""
    if [type(own) for own in before] == [type(corpus) for corpus in corpora]:
        with contextlib.suppress(OSError, UserError):
            return [own.fingerprint(split) for own in before]
    return []
