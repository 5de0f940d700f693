"""Labels as data gives them: which rows have none, and which classes they name, in which order.

A label is text, a whole number or a truth value; all labels of a field are of one kind. Null, NaN, -1 and empty text
say that a row has no label.
"""

import dataclasses
import decimal
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxformer.errors import UserError

Label = bool | int | float | str
_KINDS = {bool: "a truth value", int: "a whole number", float: "a number with a point", str: "text"}
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
_NAMED = 5  # labels, in one message


@dataclasses.dataclass(frozen=True)
class Labels:
    """The classes of a field in all rows of a source, in their order, and how many rows each has in its splits.

    `added` are the numbers of rows that are held out so that their class has a held-out row.
    """

    rows: Mapping[str, Mapping[str, int]]
    added: frozenset[int] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.rows)

    def notes(self) -> list[str]:
        """Return what a person should know of these classes before training, a line each."""
        notes = []
        if spaced := [name for name in self.rows if name != name.strip()]:
            found = _listed([f"{name!r} ({sum(self.rows[name].values())} rows)" for name in spaced])
            notes.append(f"labels with white space around them, which are classes of their own: {found}")
        if untaught := [name for name, counts in self.rows.items() if not counts.get("train")]:
            notes.append(f"labels that no training row has, so nothing teaches them: {_listed(untaught)}")
        if unjudged := [name for name, counts in self.rows.items() if not counts.get("validation")]:
            notes.append(f"labels that no held-out row has: {_listed(unjudged)}")
        if self.added:
            notes.append(f"held out so that each label has a held-out row: {len(self.added)}")
        return notes


def label_of(value: Any) -> Label | None:
    """Return a row's label as a plain value, None where the row has none. Raises TypeError for what is no label."""
    if not isinstance(value, str) and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # numpy's
    if isinstance(value, decimal.Decimal):
        value = float(value)
    if value is None or (isinstance(value, str) and value.strip() in ("", "-1", "-1.0")):
        return None
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return None if math.isnan(value) or value == -1 else value
    if isinstance(value, list | tuple | dict | set) or getattr(value, "shape", None):
        raise TypeError(type(value).__name__)
    return str(value)


def name_of(label: Label) -> str:
    """Return the name of a label's class. A float that is one is whole: a column of whole numbers with gaps."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def check_labels(field: str, found: Iterable[tuple[str, Label]]) -> None:
    """Raise UserError where labels, given as (where, label), are of several kinds, or scores."""
    found = list(found)
    kinds = {type(label): (where, label) for where, label in reversed(found)}
    if len(kinds) > 1:
        each = "; ".join(f"{where} has {label!r}, {_KINDS[kind]}" for kind, (where, label) in reversed(kinds.items()))
        raise UserError(f"data: the labels in '{field}' are mixed: {each}; write all of them in one way")
    numeric = all(NUMBER.fullmatch(label.strip()) if isinstance(label, str) else True for _, label in found)
    scores = [(where, label) for where, label in found if numeric and not float(label).is_integer()]
    if scores:
        where, label = scores[0]
        raise UserError(
            f"{where}: the label in '{field}' is {label}: numbers such as these are scores, and a task tells classes "
            "apart; make classes of them (ranges, with names), or name another data.label_field"
        )


def in_order(names: Iterable[str]) -> list[str]:
    """Return class names in the order of their numbers: whole numbers as numbers, all else as text."""
    names = sorted(names)
    if all(NUMBER.fullmatch(name.strip()) and float(name).is_integer() for name in names):
        return sorted(names, key=float)
    return names


def classes_among(names: Sequence[str], learnt: Sequence[str]) -> list[int]:
    """Return the class of each name among the labels that a run has learnt; both may write whole numbers as 1 or 1.0.

    Raises UserError for names that are not among them.
    """
    classes = {_plain(name): number for number, name in enumerate(learnt)}
    if unknown := [name for name in names if _plain(name) not in classes]:
        raise UserError(
            f"data: the labels {_listed(unknown)} are not among those that the run learnt: {', '.join(learnt)}"
        )
    return [classes[_plain(name)] for name in names]


def _plain(name: str) -> str:
    return re.sub(r"^([-+]?\d+)\.0$", r"\1", name)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
