"""Texts with fields in them, such as "mnli hypothesis: {hypothesis} premise: {premise}" (T5, section 2.4), as pieces
that are tokenised apart: what a task says in every example, and what the data says in each."""

import string
from typing import NamedTuple

import numpy as np

from jaxformer.errors import UserError
from jaxformer.objectives import INT, Encode


class Template(NamedTuple):
    """A text whose fields stand between its literals, of which there is one more."""

    fields: tuple[str, ...]
    literals: tuple[str, ...]

    @property
    def words(self) -> str:
        """What it says before its first field."""
        return self.literals[0].strip()


def read_template(key: str, text: str) -> Template:
    """Return the template that a config's `key` holds; `{{` and `}}` are braces that belong to the text.

    Raises UserError for a text without a field, and for fields without a name, named twice or with a format.
    """
    fields, literals = [], [""]
    try:
        parsed = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(
            f"{key}: {text!r} is not a text with {{fields}}: {error}; write a brace itself as {{{{"
        ) from error
    for literal, field, form, conversion in parsed:
        literals[-1] += literal
        if field is None:
            continue
        if not field or form or conversion:
            raise UserError(
                f"{key}: {text!r} has a field that is no name; write {{NAME}}, NAME being a field of the data"
            )
        if field in fields:
            raise UserError(f"{key}: {text!r} has the field '{field}' twice; name each once")
        fields.append(field)
        literals.append("")
    if not fields:
        raise UserError(f"{key}: {text!r} names no field of the data; write for example 'summarize: {{article}}'")
    return Template(tuple(fields), tuple(literals))


def template_of(prefix: str, fields: tuple[str, ...]) -> str:
    """Return the template that announces each field by its name, behind a prefix: "PREFIX a: {a} b: {b}"."""
    announced = " ".join(f"{field}: {{{field}}}" for field in fields)
    return f"{prefix.replace('{', '{{').replace('}', '}}')} {announced}".strip()


def encoded(template: Template, encode: Encode) -> tuple[np.ndarray, ...]:
    """Return the ids of each literal, so that with those of the fields between them they are the whole text's.

    Where a text's words give the same ids apart (T5's and BERT's pieces) the spaces around a literal say nothing.
    Elsewhere (byte-level BPE) they are tokens, or parts of them, and stay: a space before a field is a token of its
    own, as the field's first token was made without one.
    """
    apart = np.array_equal(encode("a b"), np.concatenate([encode("a"), encode("b")]))
    return tuple(np.asarray(encode(text.strip() if apart else text), INT) for text in template.literals)
