"""What a config file defines: objectives and tasks of its own, `OBJECTIVES` and `TASKS` beside `get_config`, which join
the package's while that file's config is resolved. The run keeps where the file is, and its digest."""

import contextlib
import dataclasses
import hashlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError
from jaxformer.objectives import OBJECTIVES


@dataclasses.dataclass(frozen=True)
class Definitions:
    """The objectives and tasks that a config file defines: its `OBJECTIVES` and `TASKS`."""

    path: str  # from the root
    sha256: str
    arg: str
    module: types.ModuleType = dataclasses.field(compare=False, repr=False)
    objectives: Mapping[str, type] = dataclasses.field(compare=False, default_factory=dict)
    tasks: Mapping[str, type] = dataclasses.field(compare=False, default_factory=dict)

    def to_dict(self) -> dict[str, str]:
        """Return what `config.json` holds: with it, `defined_by` finds them again."""
        return {"path": self.path, "sha256": self.sha256, "arg": self.arg}


def _package() -> dict[str, dict[str, Any]]:
    from jaxformer.tasks import TASKS  # beside which this stands

    return {"OBJECTIVES": OBJECTIVES, "TASKS": TASKS}


def read_file(path: Path, arg: str) -> Definitions:
    """Run a config file and return it with the objectives and tasks that it has besides the package's, in dicts of its
    own or put into the package's, where they do not stay. Raises UserError for what is none."""
    content = path.read_bytes()
    module = types.ModuleType(f"jaxformer_config_{path.stem}")
    module.__file__ = str(path)
    before = {name: dict(choices) for name, choices in _package().items()}
    own: dict[str, dict[str, type]] = {}
    try:
        with _known(module):
            exec(compile(content.decode(), str(path), "exec"), vars(module))
        for name, choices in _package().items():
            given = vars(module).get(name, {})
            if not isinstance(given, Mapping):
                raise UserError(f"{path}: {name} is {type(given).__name__}, not a dict of names and classes")
            own[name] = {key: kind for key, kind in {**choices, **given}.items() if before[name].get(key) is not kind}
            for key, kind in own[name].items():
                _check_defined(f"{path}: {name}[{key!r}]", key, kind, before[name])
                with _known(module):
                    _read_annotations(kind, module.__name__)
    finally:
        for name, choices in _package().items():
            choices.clear()
            choices.update(before[name])
    sha256 = hashlib.sha256(content).hexdigest()
    return Definitions(str(path.absolute()), sha256, arg, module, own["OBJECTIVES"], own["TASKS"])


def _check_defined(where: str, key: str, kind: Any, package: Mapping[str, Any]) -> None:
    if key in package:
        raise UserError(f"{where}: the package has one of this name; give yours another")
    if not isinstance(kind, type) or not dataclasses.is_dataclass(kind):
        raise UserError(f"{where} is {kind!r}, not a dataclass")
    for member in ("name", "families"):
        if not hasattr(kind, member):
            raise UserError(f"{where}: the class {kind.__name__} has no `{member}`; docs/batch.md lists the members")
    if kind.name != key:  # type: ignore[attr-defined]
        raise UserError(f"{where}: the name of the class {kind.__name__} is {kind.name!r}; both must agree")  # type: ignore[attr-defined]


def _read_annotations(kind: type, module: str) -> None:
    """Put types in place of annotations that are text (`from __future__ import annotations`), which nobody could read
    once the module is not known any more."""
    types_ = typing.get_type_hints(kind)
    for one in kind.__mro__:
        if one.__module__ == module:
            own = vars(one).get("__annotations__", {})
            one.__annotations__ = {name: types_.get(name, annotation) for name, annotation in own.items()}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        field.type = types_[field.name]


@contextlib.contextmanager
def _known(module: types.ModuleType) -> Iterator[None]:
    """Let Python find the module of a class while it is made. Not for longer: what makes batches in
    other processes could not import it there, and takes its classes along instead."""
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        sys.modules.pop(module.__name__, None)


@contextlib.contextmanager
def joined(defined: Definitions | None) -> Iterator[None]:
    """Let a file's objectives and tasks stand among the package's."""
    if defined is None:
        yield
        return
    own: dict[str, Mapping[str, type]] = {"OBJECTIVES": defined.objectives, "TASKS": defined.tasks}
    for name, choices in _package().items():
        choices.update(own[name])
    try:
        yield
    finally:
        for name, choices in _package().items():
            for key in own[name]:
                choices.pop(key, None)


def defined_by(stored: Mapping[str, str] | None, workdir: Path) -> Definitions | None:
    """Return the objectives and tasks of the file that a run keeps in its record, `stored`; None where it has none.

    The file may also lie in the current folder or in the run. Raises UserError for a file that is gone or changed.
    """
    if stored is None:
        return None
    path = Path(stored["path"])
    found = [place for place in (path, Path(path.name), workdir / path.name) if place.is_file()]
    for place in found:
        if hashlib.sha256(place.read_bytes()).hexdigest() == stored["sha256"]:
            return dataclasses.replace(read_file(place, stored["arg"]), path=stored["path"])
    what = "has changed since" if found else "is gone"
    raise UserError(
        f"{workdir}: {path}, which defines what this run learns from, {what}; bring back the file as it was, there or "
        f"into {workdir}" + ("; to train on with it as it is now: --allow-config-change" if found else "")
    )
