"""Fields of records by name, `question.choices[0]` too: as text, as words, and as plain values that JSON can hold."""

import math
import re
from collections.abc import Mapping
from typing import Any

from jaxformer.errors import UserError, suggest

Record = Mapping[str, Any]
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_PATH = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[\d+\])*")
IDS = ("id", "idx", "index")  # fields by which people, and the servers of benchmarks, know a row


class Malformed(UserError):
    """A row that cannot be read as the config says. `data.skip_malformed` leaves some out."""


def value_of(record: Record, field: str, where: str) -> Any:
    """Return what a record holds under a name: of a field, `a.b` inside of one, or `a[0]`, `a[1]`, … of a list's
    elements. Raises Malformed where there is no such field."""
    if field in record or not _PATH.fullmatch(field):
        if field not in record:
            raise absent(record, field, where)
        return record[field]
    value: Any = record
    path = ""
    for step in _STEP.finditer(field):
        name, place = step.groups()
        if name is not None:
            if not isinstance(value, Mapping) or name not in value:
                raise absent(value, name, where, path)
            value = value[name]
        else:
            if not is_list(value):
                raise Malformed(
                    f"{where}: field '{path}' is {type(value).__name__}, not a list with an element {place}"
                )
            if int(place) >= len(value):
                raise Malformed(f"{where}: no '{path}[{place}]': field '{path}' has {len(value)} elements")
            value = value[int(place)]
        path = field[: step.end()]
    return value


def has(record: Record, field: str) -> bool:
    """Whether a record has something under a name."""
    try:
        value_of(record, field, "")
    except Malformed:
        return False
    return True


def absent(record: Any, field: str, where: str, path: str = "") -> Malformed:
    """Return the error for a field that a record, or what stands at `path` in it, does not have."""
    names = [str(name)[:40] for name in record] if isinstance(record, Mapping) else []
    inside = f" in '{path}'" if path else ""
    return Malformed(f"{where}: no field '{field}'{inside}{suggest(field, names)}; it has {', '.join(names) or 'none'}")


def text_of(record: Record, field: str, where: str) -> str:
    """Return a field's text; of an object such as CommonsenseQA's choices its `text`. Raises Malformed."""
    value = value_of(record, field, where)
    if value is None:
        raise absent(record, field, where)
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    return as_text(value, field, where)


def as_text(value: Any, field: str, where: str) -> str:
    """Return a value of a field as text. Raises Malformed for what is none."""
    try:
        if isinstance(value, bytes):
            value = value.decode()
        if isinstance(value, str):
            value.encode()  # JSON can spell half of a surrogate pair, which no tokenizer takes
            return value
    except UnicodeError as error:
        raise Malformed(f"{where}: field '{field}' is not UTF-8 text ({error}); mend or drop it") from error
    advice = f"; '{field}[0]' is its first element" if is_list(value) else ""
    raise Malformed(f"{where}: field '{field}' is {type(value).__name__}, not text{advice}")


def words_of(record: Record, field: str, where: str) -> list[str]:
    """Return a field's list of texts, or the words of its text, which white space parts. Raises Malformed."""
    value = value_of(record, field, where)
    if is_list(value):
        return [as_text(word, f"{field}[{place}]", where) for place, word in enumerate(value)]
    return text_of(record, field, where).split()


def is_list(value: Any) -> bool:
    """Whether a value is a list, as JSON, Parquet or numpy have them."""
    return isinstance(value, list | tuple) or bool(getattr(value, "shape", ()))


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers of numpy as numbers, bytes as text, no number as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if is_list(value):
        return [plain(each) for each in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if not isinstance(value, str) and hasattr(value, "item"):
        value = value.item()  # numpy's
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def with_names(value: Any, feature: Any) -> Any:
    """Return what a field of TFDS or of Hugging Face holds with the names of its classes, which are null where they are
    below 0, as in GLUE's tests: labels look alike in all sources. `feature` is the library's description of it."""
    inner = getattr(feature, "feature", None)
    if inner is None and hasattr(feature, "keys") and isinstance(value, Mapping):
        return {key: with_names(each, feature[key]) for key, each in value.items()}
    if inner is not None and isinstance(value, Mapping):  # a list of objects, kept as an object of lists
        return {key: [with_names(one, inner[key]) for one in each] for key, each in value.items()}
    if inner is not None and is_list(value):
        return [with_names(each, inner) for each in value]
    if inner is None and hasattr(feature, "int2str") and value is not None:
        return feature.int2str(int(value)) if value >= 0 else None
    return value


def raw_record(record: Record, texts: Mapping[str, Any], label_field: str) -> dict[str, Any]:
    """Return what predictions keep of a record: its texts, its label as it stands there, and what it is known by."""
    kept = {key: record[key] for key in IDS if key in record} | dict(texts)
    if has(record, label_field):  # rows to predict need none
        kept[label_field] = value_of(record, label_field, "")
    return {key: plain(value) for key, value in kept.items()}
