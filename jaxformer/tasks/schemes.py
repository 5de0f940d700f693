"""How tags of words spell entities: BIO, IOB1 and BIOES (or BILOU), read as CoNLL's conlleval and seqeval read them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])-(.+)")
_BIOES = {"L": "E", "U": "S"}  # BILOU's last and unit


class Entity(NamedTuple):
    """An entity: its type, and its words [first, end)."""

    type: str
    first: int
    end: int


def _split(tag: str) -> tuple[str, str]:
    """Return a tag's prefix and type; ("", "") for a tag that spells no part of an entity."""
    found = _TAG.fullmatch(tag)
    return (_BIOES.get(found[1], found[1]), found[2]) if found else ("", "")


def scheme_of(labels: Sequence[str]) -> str:
    """Return how a set of tags spells entities: "BIO", "BIOES", or "IOB1" where a type has I- and no B-, as words that
    begin an entity are B- only right after another of that type (CoNLL 2003); "" where they spell none, such as parts
    of speech. IOB1 with every B- looks like BIO; `to_bio` reads both."""
    parts = [_split(label) for label in labels if label != OUTSIDE]
    if not parts or ("", "") in parts:
        return ""
    if {prefix for prefix, _ in parts} & {"E", "S"}:
        return "BIOES"
    types = [{type_ for prefix, type_ in parts if prefix == one} for one in "BI"]
    return "IOB1" if types[1] - types[0] else "BIO"


def with_beginnings(labels: Sequence[str]) -> tuple[str, ...]:
    """Return IOB1's labels with a B- for every type, those that were missing behind the others."""
    begin = [f"B-{type_}" for prefix, type_ in map(_split, labels) if prefix == "I"]
    return (*labels, *[label for label in begin if label not in labels])


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of a sentence's tags, in any scheme. An I- (E-) that follows no entity of its type begins
    one, as in conlleval."""
    entities: list[Entity] = []
    open_type = ""  # of the entity that the next word may continue
    for word, (prefix, type_) in enumerate(map(_split, tags)):
        if type_ and (prefix in "BS" or type_ != open_type):
            entities.append(Entity(type_, word, word + 1))
        elif type_:
            entities[-1] = entities[-1]._replace(end=word + 1)
        open_type = "" if prefix in ("E", "S") else type_
    return entities


def to_bio(tags: Sequence[str]) -> list[str]:
    """Return a sentence's BIO or IOB1 tags as BIO: every entity begins with B-. BIO stays as it is."""
    spelled = [OUTSIDE if _split(tag)[1] else tag for tag in tags]
    for type_, first, end in entities_of(tags):
        spelled[first:end] = [f"B-{type_}", *[f"I-{type_}"] * (end - first - 1)]
    return spelled
