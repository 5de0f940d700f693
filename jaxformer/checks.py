"""Checks of what a config says: values out of range or not among their choices, and the members of a mixture.

Every message names the key as the user writes it, the value and what is allowed, in one phrasing wherever the key is.
"""

import dataclasses
import operator
import sys
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar

from jaxformer.errors import UserError, suggest

Text = TypeVar("Text", str, str | Path)

# What a value has to be, in words.
KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    dict: "keys and values",
    tuple[str, ...]: "a list of texts",
}


def several(given: Text | Iterable[Text]) -> tuple[Text, ...]:
    """Return what is given as texts (or paths): a single one is one, and not its characters."""
    return (given,) if isinstance(given, (str, PurePath)) else tuple(given)


def check_range(
    key: str,
    value: float,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise UserError unless `value`, that of `key` ("training.num_steps"), keeps every limit given; NaN keeps none."""
    limits = (
        ("at least", at_least, operator.ge),
        ("above", above, operator.gt),
        ("at most", at_most, operator.le),
        ("below", below, operator.lt),
    )
    given = [(words, limit, keeps) for words, limit, keeps in limits if limit is not None]
    if not all(keeps(value, limit) for _, limit, keeps in given):
        raise UserError(f"{key}: {value} must be {' and '.join(f'{words} {limit}' for words, limit, _ in given)}")


def check_choice(key: str, value: str, choices: Collection[str]) -> None:
    """Raise UserError unless `value`, that of `key` ("model.norm"), is one of `choices`; it tells the nearest one."""
    if value not in choices:
        raise UserError(f"{key}: {value!r} is not one of {', '.join(choices)}{suggest(str(value), choices)}")


def check_kind(key: str, value: Any, kind: Any) -> None:
    """Raise UserError unless `value`, that of `key`, has the type `kind`; a float may be whole, but not inf or NaN, and
    of several (tuple[…]) one may stand by itself."""
    if typing.get_origin(kind) is tuple:
        for entry in value if isinstance(value, (list, tuple)) else (value,):
            check_kind(key, entry, typing.get_args(kind)[0])
        return
    kinds = (int, float) if kind is float else (kind,)
    if type(value) not in kinds or (kind is float and not abs(value) <= sys.float_info.max):
        raise UserError(f"{key}: {value!r} is not {KINDS.get(kind, kind)}")


def read_members(
    section: str, members: Sequence[Any], choices: Mapping[str, type], own: Mapping[str, Any] = {}
) -> list[tuple[Any, float, dict[str, Any]]]:
    """Return (dataclass, weight, the mixture's own keys) of each of a mixture's `members`.

    A member is {"name": …, "weight": …, keys of the chosen dataclass}; `own` are further keys that the mixture reads,
    with their defaults. Raises UserError, naming the member, for whatever is wrong with one.
    """
    if not members:
        raise UserError(f"{section}.members: a mixture needs at least one member")
    return [_read(section, number, member, choices, own) for number, member in enumerate(members)]


def _read(
    section: str, number: int, member: Any, choices: Mapping[str, type], own: Mapping[str, Any]
) -> tuple[Any, float, dict[str, Any]]:
    where = f"{section}.members[{number}]"
    if not isinstance(member, Mapping):
        raise UserError(f"{where}: {member!r} is not a dict of keys such as {{'name': {next(iter(choices))!r}}}")
    keys = dict(member)
    name, weight = keys.pop("name", None), keys.pop("weight", 1.0)
    if name not in choices:
        raise UserError(f"{where}.name: no '{name}'{suggest(str(name), choices)}; there are {', '.join(choices)}")
    check_kind(f"{where}.weight", weight, float)
    check_range(f"{where}.weight", weight, above=0)
    options = {key: keys.pop(key, default) for key, default in own.items()}
    check_keys(where, keys, choices[name], name, tuple(own))
    try:
        return choices[name](**keys), float(weight), options
    except UserError as error:
        raise UserError(str(error).replace(f"{section}.", f"{where}.", 1)) from error
    except TypeError as error:  # a key is missing
        raise UserError(f"{where}: {str(error).removeprefix(f'{choices[name].__name__}.__init__() ')}") from error


def check_keys(where: str, keys: Mapping[str, Any], kind: type, name: str, own: Sequence[str] = ()) -> None:
    """Raise UserError for a key that the dataclass `kind`, called `name`, does not have, or a value of another type.

    `own` are further keys that errors name; they are not checked here.
    """
    fields = {
        field.name: field.type
        for field in dataclasses.fields(kind)
        if field.name != "workers" and field.metadata.get("config", True)
    }
    for key, value in keys.items():
        if key not in fields:
            known = sorted([*fields, *own])
            raise UserError(f"{where}.{key}: no such key{suggest(key, known)}; {name} has {', '.join(known)}")
        check_kind(f"{where}.{key}", value, fields[key])
