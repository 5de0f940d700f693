"""Members of a mixture: dicts of keys in a config, each read into the dataclass that its `name` chooses."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxformer.errors import UserError, suggest

_KINDS: dict[Any, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


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
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < math.inf:
        raise UserError(f"{where}.weight: {weight!r} must be a number above 0")
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
        kinds: tuple[Any, ...] = (int, float) if fields[key] is float else (fields[key],)
        if type(value) not in kinds:
            raise UserError(f"{where}.{key}: {value!r} is not {_KINDS.get(fields[key], fields[key])}")
