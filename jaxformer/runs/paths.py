"""The paths in a config: how a run keeps them, so that it works from any folder, and when two spellings are one."""

import dataclasses
import glob
import os
import re
from collections.abc import Mapping
from typing import Any

from jaxformer.config import Config
from jaxformer.storage import is_remote, location

# The keys that hold paths: of files, folders, patterns or runs. Those of `data` may stand in its members too.
_DATA = ("path", "validation_path", "test_path", "data_dir")
_PATHS = ("init_from", "distillation.teacher", "tokenizer.path", *(f"data.{key}" for key in _DATA))


def paths_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return {"data.path": …, "data.members[1].path": …}, the paths that a config, given as its dict, names."""
    found: dict[str, Any] = {}
    for key in _PATHS:
        section, _, field = key.partition(".")
        found[key] = (config.get(section) or {}).get(field) if field else config.get(section)
    for number, member in enumerate((config.get("data") or {}).get("members") or ()):
        found |= {f"data.members[{number}].{key}": member.get(key) for key in _DATA}
    return {key: path for key, path in found.items() if isinstance(path, str) and path}


def with_paths(config: Config, paths: Mapping[str, str]) -> Config:
    """Return a config with other paths, given as `paths_of` names them."""
    for key, path in paths.items():
        section, _, field = key.partition(".")
        value: Any = path
        if field.startswith("members["):
            number, _, inner = field.removeprefix("members[").partition("].")
            members = [dict(member) for member in config.data.members]
            members[int(number)][inner] = path
            field, value = "members", tuple(members)
        if field:
            section, value = section, dataclasses.replace(getattr(config, section), **{field: value})
        config = dataclasses.replace(config, **{section: value})
    return config


def anchored(config: Config) -> Config:
    """Return a config with every path from the root, as a run keeps it. Links are kept as they are."""
    return with_paths(config, {key: from_root(path) for key, path in paths_of(config.to_dict()).items()})


def from_root(path: str) -> str:
    """Return a path from the root, "~" written out; what lies in a store stays as it is."""
    if _in_store(path):
        return path
    plain = os.path.join(os.getcwd(), os.path.expanduser(path))
    tidy = os.path.abspath(plain)
    return tidy if os.path.realpath(tidy) == os.path.realpath(plain) else plain  # a link may stand before a ".."


def same_target(one: str, other: str) -> bool:
    """Say whether two spellings mean the same file, folder, pattern or run."""
    return target(one) == target(other)


def target(path: str) -> str:
    """Return the one spelling of what a path leads to, through links."""
    if not path or _in_store(path):
        return path.rstrip("/")
    run, checkpoint = _parted(path)
    return os.path.realpath(from_root(run)) + checkpoint


def where_recorded(config: Config, recorded: Mapping[str, Any]) -> Config:
    """Return a config whose relative paths that lead nowhere from here are those of the run that it resumes, where
    these end alike: the command was given in another folder then."""
    known, found = paths_of(recorded), {}
    for key, path in paths_of(config.to_dict()).items():
        if key in known and not os.path.isabs(os.path.expanduser(path)) and not _in_store(path):
            ends_alike = known[key].endswith("/" + os.path.normpath(path))
            if ends_alike and not is_there(path):
                found[key] = known[key]
    return with_paths(config, found)


def _parted(path: str) -> tuple[str, str]:
    """Return RUN@STEP as (RUN, "@STEP"), and a path that names no checkpoint of a run as (path, "")."""
    run, at, step = path.rpartition("@")
    names_one = at and "/" not in step and not os.path.lexists(os.path.expanduser(path))
    return (run, at + step) if names_one else (path, "")


def _in_store(path: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path) is not None


def is_there(path: str) -> bool:
    """Say whether something lies at a path, or fits a pattern."""
    if is_remote(path):
        return location(path).exists()
    name = os.path.expanduser(_parted(path)[0])
    return os.path.exists(name) or any(glob.iglob(name, recursive=True))
