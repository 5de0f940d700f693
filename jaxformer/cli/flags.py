"""Flags made of a config section's dataclass: one for each of its fields, --config.SECTION.KEY in short."""

import argparse
import dataclasses
import re
import typing
from collections.abc import Sequence
from typing import Any

from jaxformer.errors import UserError

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def add_flags(parser: argparse.ArgumentParser, section: str, room: type) -> None:
    """Give a parser a flag for each field of a section's dataclass; the help of each is the field's own."""
    group = parser.add_argument_group(
        section,
        f"each is --config.{section}.KEY=VALUE in short, and counts before what the run's own config\n"
        "says (in brackets: the value where that says nothing)",
    )
    kinds = typing.get_type_hints(room)
    for field in dataclasses.fields(room):
        kind, text = kinds[field.name], field.metadata["help"].replace("%", "%%")
        flag = f"--{field.name.replace('_', '-')}"
        shared: dict[str, Any] = {"dest": _dest(section, field.name), "default": None}
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text, **shared)
        elif typing.get_origin(kind) is tuple:
            text += r"; may be repeated; \n, \t and \\ are a line break, a tab and a backslash"
            group.add_argument(flag, action="append", metavar="TEXT", help=text, **shared)
        else:
            metavar = {int: "N", float: "X"}.get(kind, "NAME")
            group.add_argument(flag, type=kind, metavar=metavar, help=f"{text} ({field.default})", **shared)


def with_flags(args: argparse.Namespace, section: str, room: type, overrides: Sequence[str]) -> list[str]:
    """Return overrides with those that the flags of a section say. Raises UserError for a key that both give."""
    keys = {override.partition("=")[0] for override in overrides}
    said = []
    for field in dataclasses.fields(room):
        value = getattr(args, _dest(section, field.name))
        if value is None:
            continue
        key = f"{section}.{field.name}"
        if key in keys:
            flag = f"--{field.name.replace('_', '-')}"
            raise UserError(f"{flag}: --config.{key} is given as well, and says the same; leave one of them out")
        said.append(f"{key}={tuple(map(_unescaped, value)) if isinstance(value, list) else value}")
    return [*overrides, *said]


def _dest(section: str, name: str) -> str:
    return f"{section}.{name}"


def _unescaped(text: str) -> str:
    """Return a text of the command line, where a shell leaves a line break as the two characters that stand for it."""
    return re.sub(r"\\([ntr\\])", lambda found: _ESCAPES[found[1]], text)
