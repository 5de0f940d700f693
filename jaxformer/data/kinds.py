"""Labels by the kind that a task reads: one class or several, a number, a choice, a tag per word, answers, texts.

What a row holds is read here; which classes there are, and how choices are counted, the rows of all splits tell.
"""

import collections
import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxformer.data.fields import Malformed, Record, as_text, is_list, plain, value_of
from jaxformer.data.labels import NUMBER, Label, label_of
from jaxformer.errors import UserError
from jaxformer.tasks import place_of

JOINED = ("tags", "text")  # kinds whose fields may be lists: words, or the sentences of a text to shorten
UNSAID = -1.0  # benchmarks write it for every row of a split without labels


def read_label(kind: str, record: Record, field: str, separator: str, where: str) -> Any:
    """Return the label that a record holds in `field`, None where it has none.

    A class or a choice is a `Label`, classes and tags are lists of them, a number is a float, answers are {"text": […],
    "answer_start": […]}, texts a list of references. Raises Malformed for a record without the field and for what is no
    label of the kind.
    """
    value = value_of(record, field, where)
    if isinstance(value, bytes | str):
        value = as_text(value, field, where)
    try:
        return _READERS[kind](value, separator)
    except (TypeError, UnicodeError) as error:
        raise Malformed(f"{where}: field '{field}' is {error}") from error


def _class(value: Any, separator: str) -> Label | None:
    try:
        return label_of(value)
    except TypeError as error:
        raise TypeError(f"{error}, not a label") from error


def _classes(value: Any, separator: str) -> list[Label] | None:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(separator)] if separator else [value.strip()]
        return list(dict.fromkeys(label for part in value if (label := label_of(part)) is not None)) or None
    if is_list(value):
        return list(dict.fromkeys(_each(value, "classes")))
    label = _class(value, separator)
    return None if label is None else [label]


def _tags(value: Any, separator: str) -> list[Label] | None:
    if isinstance(value, str):
        return _each(value.split(), "tags") or None
    if is_list(value):
        return _each(value, "tags")
    if label_of(value) is None:
        return None
    raise TypeError(f"{_named(value)}, not a list of tags")


def _each(values: Sequence[Any], what: str) -> list[Label]:
    labels = []
    for place, value in enumerate(values):
        found = None if is_list(value) or isinstance(value, Mapping) else value
        label = label_of(found.decode() if isinstance(found, bytes) else found)
        if label is None:
            raise TypeError(f"no list of {what}: its element {place} is {_named(value)}")
        labels.append(label)
    return labels


def _number(value: Any, separator: str) -> float | None:
    value = plain(value) if not isinstance(value, str) else value
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = isinstance(value, int | float) or (isinstance(value, str) and NUMBER.fullmatch(value.strip()))
    if not number or isinstance(value, bool) or not math.isfinite(float(value)):
        raise TypeError(f"{_named(value)}, not a number")
    return float(value)


def _choice(value: Any, separator: str) -> Label | None:
    label = _class(value, separator)
    if isinstance(label, bool) or (isinstance(label, float) and not label.is_integer()):
        raise TypeError(f"{label!r}, not a choice: a letter, a whole number, or the text of one")
    return int(label) if isinstance(label, float) else label


def _span(value: Any, separator: str) -> dict[str, list[Any]] | None:
    value = plain(value)
    if value is None:
        return None
    if isinstance(value, list) and all(isinstance(answer, dict) for answer in value):  # as SQuAD's files have them
        value = {key: [answer.get(key) for answer in value] for key in ("text", "answer_start")}
    if not isinstance(value, dict) or not {"text", "answer_start"} <= set(value):
        raise TypeError(f"{_named(value)}, not answers with 'text' and 'answer_start'")
    texts, starts = (each if isinstance(each, list) else [each] for each in (value["text"], value["answer_start"]))
    if len(texts) != len(starts):
        raise TypeError(f"{len(texts)} answers at {len(starts)} places")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not text or type(start) is not int:
            raise TypeError(f"an answer {text!r} at {start!r}, not text at a place in its context")
    return {"text": texts, "answer_start": starts}


def _text(value: Any, separator: str) -> list[str] | None:
    value = plain(value)
    if isinstance(value, dict) and "text" in value:  # answers, written rather than marked
        value = value["text"]
    if isinstance(value, list):
        value = [answer.get("text") if isinstance(answer, dict) else answer for answer in value]
    texts = value if isinstance(value, list) else [] if value is None else [value]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{_named(text)}, not text or a list of texts")
        text.encode()
    return [text for text in texts if text.strip()] or None


def _named(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, str | bool | int | float) else type(value).__name__


_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    "class": _class,
    "classes": _classes,
    "number": _number,
    "choice": _choice,
    "tags": _tags,
    "span": _span,
    "text": _text,
}


def check_tags(tags: Sequence[Any], words: Sequence[str], fields: tuple[str, str], where: str) -> None:
    """Raise Malformed unless there is a tag for each word; `fields` hold them."""
    if len(tags) != len(words):
        raise Malformed(f"{where}: {len(words)} words in '{fields[0]}', but {len(tags)} tags in '{fields[1]}'")


def check_answers(answers: Mapping[str, list[Any]], texts: Mapping[str, str], where: str) -> None:
    """Raise Malformed for an answer that does not stand at its place in the context, white space aside: one of the
    texts, by field."""
    answered = list(zip(answers["text"], answers["answer_start"], strict=True))
    if any(all(place_of(each, start, text) for each, start in answered) for text in texts.values()):
        return
    field, context = max(texts.items(), key=lambda item: len(item[1]))
    text, start = next((each, at) for each, at in answered if not place_of(each, at, context))
    found = context.find(text)
    there = f"it stands at {found}" if found >= 0 else "it is not in it at all"
    raise Malformed(f"{where}: the answer {text!r} does not stand at character {start} of '{field}'; {there}")


class Counting(NamedTuple):
    """How the labels of all rows name one of several choices: by "letters", "numbers" from `first`, or "texts"."""

    how: str
    first: int
    choices: tuple[str, ...]  # their fields

    def choice(self, label: Label, texts: Mapping[str, str], field: str, where: str) -> int:
        """Return the place of the choice that a label names, from 0. Raises Malformed where it names none, or two."""
        count = len(self.choices)
        if self.how == "letters":
            found = [_letter(label)]
        elif self.how == "numbers":
            found = [number - self.first if (number := _whole(label)) is not None else None]
        else:
            found = [place for place in range(count) if texts[self.choices[place]].strip() == str(label).strip()]
        places = [place for place in found if place is not None and place >= 0 and (place < count or not count)]
        if len(places) == 1:
            return places[0]
        last = f" to {self.first + count - 1}" if count else " on"
        wanted = {
            "letters": f"a letter A{f' to {string.ascii_uppercase[count - 1]}' if 0 < count <= 26 else ', B, …'}",
            "numbers": f"a whole number from {self.first}{last}",
            "texts": "the text of one of them",
        }[self.how]
        what = "names several of the choices" if len(places) > 1 else "names none of the choices"
        raise Malformed(f"{where}: the label {label!r} in '{field}' {what}; as in the other rows it should be {wanted}")


def counting(rows: Iterable[tuple[Label, Mapping[str, str]]], choices: tuple[str, ...], field: str) -> Counting:
    """Return how the labels of all rows, given with their texts, name their choices: as most of them do.

    Raises UserError where that is not to be told.
    """
    fits: collections.Counter[str] = collections.Counter()
    numbers: set[int] = set()
    for label, texts in rows:
        letter, number = _letter(label), _whole(label)
        fits["letters"] += letter is not None and (letter < len(choices) or not choices)
        fits["numbers"] += number is not None and (number <= len(choices) or not choices)
        fits["texts"] += any(texts[choice].strip() == str(label).strip() for choice in choices)
        numbers |= set() if number is None else {number}
    how = max(("letters", "numbers", "texts"), key=lambda each: fits[each])
    if not fits[how] or how != "numbers":
        return Counting(how, 0, choices)
    if 0 not in numbers and choices and len(choices) not in numbers:
        raise UserError(
            f"data: the labels in '{field}' are numbers from {min(numbers)} to {max(numbers)} of {len(choices)} "
            "choices, which does not tell whether they count from 0 or from 1; write letters (A, B, …) or the choices' "
            "texts"
        )
    return Counting(how, 0 if 0 in numbers else 1, choices)


def choice_fields(fields: Sequence[str]) -> tuple[str, ...]:
    """Return which of the fields are the choices: the last ones that are named alike but for a number, such as
    `ending0`, `ending1`; () where there are none."""
    stems = [re.sub(r"\d+", "", field) for field in fields]
    first = len(fields)
    while first and stems[first - 1] == stems[-1] and stems[-1]:
        first -= 1
    return tuple(fields[first:]) if len(fields) - first > 1 else ()


def _letter(label: Label) -> int | None:
    letter = label.strip().upper() if isinstance(label, str) else ""
    return string.ascii_uppercase.index(letter) if len(letter) == 1 and letter in string.ascii_uppercase else None


def _whole(label: Label) -> int | None:
    if isinstance(label, str):
        return int(float(label)) if re.fullmatch(r"\s*\d+(\.0)?\s*", label) else None
    return int(label)
