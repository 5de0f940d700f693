"""Taking over parameters from another run, strictly: whatever is on one side only must be named."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Group
from rich.text import Text

from jaxformer.checkpoint.digest import Shape, read_digest, stored_shapes
from jaxformer.checkpoint.reading import difference
from jaxformer.checkpoint.source import Source, opened, read_params
from jaxformer.errors import UserError
from jaxformer.tables import table
from jaxformer.trees import flatten, mask, unflatten

HEADS = ("vocabulary", "row_heads", "token_heads")  # the parts of a model that depend on what it learns
# The axis along which an array has a row for each id of the vocabulary, and behind them rows that are padding.
VOCABULARY = {"embedding/tokens": 0, "source_embedding/tokens": 0, "vocabulary/kernel": 1, "vocabulary/bias": 0}


@dataclass(frozen=True)
class RestoreTable:
    """What `restore_params` did: {path: shape} of each kind; of a partly taken stack, the shape of that part."""

    source: Source
    step: int
    restored: dict[str, Shape]
    skipped: dict[str, Shape]
    new: dict[str, Shape]

    def render(self) -> Group:
        """Return a line and the table for `rich` to print."""
        count = {kind: sum(int(np.prod(shape)) for shape in shapes.values()) for kind, shapes in self._kinds().items()}
        summary = ", ".join(f"{count[kind]:,} {kind}" for kind in count)
        shown = table()
        shown.add_column("Parameter", overflow="fold")
        shown.add_column("Shape", justify="right")
        shown.add_column("What")
        for kind, shapes in self._kinds().items():
            for path, shape in shapes.items():
                shown.add_row(path, " x ".join(map(str, shape)), kind, style=None if kind == "restored" else "bold")
        return Group(Text(f"Parameters from {self.source} (step {self.step}): {summary}"), shown)

    __rich__ = render

    def _kinds(self) -> dict[str, dict[str, Shape]]:
        return {"restored": self.restored, "skipped": self.skipped, "new": self.new}


@dataclass(frozen=True)
class _Side:
    """One side's arrays and, of each, the part that the patterns leave over for the other side."""

    shapes: dict[str, Shape]
    named: dict[str, bool | np.ndarray]  # what the patterns select: all, nothing, or some layers

    def rows(self, path: str) -> np.ndarray | None:
        """The layers that are left over, or None where that is not a matter of layers."""
        named = self.named[path]
        return None if isinstance(named, bool) else np.flatnonzero(~named.ravel())

    def left(self) -> dict[str, Shape]:
        """{path: shape} of what is left over."""
        return {
            path: shape if (rows := self.rows(path)) is None else (len(rows), *shape[1:])
            for path, shape in self.shapes.items()
            if self.named[path] is not True
        }

    def taken(self) -> dict[str, Shape]:
        """{path: shape} of what the patterns select."""
        return {
            path: shape if named is True else (int(np.sum(named)), *shape[1:])
            for path, shape in self.shapes.items()
            if (named := self.named[path]) is not False
        }


def restore_params(
    path: Path | Source,
    target: dict[str, Any],
    skip: tuple[str, ...] = (),
    new: tuple[str, ...] = (),
    vocab_size: int = 0,
) -> tuple[dict[str, Any], RestoreTable]:
    """Restore parameters from a checkpoint, or from the newest one of a run, or as a source says, into the tree of
    `target`.

    `target` holds arrays, or shapes as long as nothing is new. Restored arrays get its dtypes and shardings (none: the
    first device); new ones are returned as they are in `target`.

    Patterns in `skip` name what of the checkpoint is not wanted, those in `new` what of the model the checkpoint does
    not give; a shape that differs must be named by both. Where they select layers, the layers left over on both sides
    are matched in order: skip=("encoder/layers[1::2]/.*",) gives a model of half the depth every other layer.

    Where both sides have `vocab_size` ids, either may store any number of rows behind them (`model.vocab_multiple`):
    they are left out, or filled with zeros. 0: all rows count.

    Raises:
      UserError: something is left over on one side (with the difference in two columns), a pattern selects nothing,
        there is no checkpoint, or it is damaged.
    """
    source, shapes = opened(path)
    newest = source.checkpoints[-1]
    wanted = flatten(target)
    padded = _padded(shapes, wanted, vocab_size)
    kept = shapes | {path: tuple(wanted[path].shape) for path in padded}
    stored = _side(kept, skip, "checkpoint.init_skip")
    model = _side({path: tuple(leaf.shape) for path, leaf in wanted.items()}, new, "checkpoint.init_new")
    restored = stored.left()
    if restored != model.left():
        raise UserError(
            f"the parameters in {newest} are not the model's; name what is left over by patterns in "
            f"checkpoint.init_skip (left) and checkpoint.init_new (right)\n{difference(restored, model.left())}"
        )
    reading = {
        path: jax.ShapeDtypeStruct(shapes[path], wanted[path].dtype, sharding=_sharding(wanted[path], path in padded))
        for path in restored
    }
    found = read_params(source, reading) if reading else {}
    found |= {path: _resized(found[path], wanted[path], padded[path]) for path in padded if path in found}
    params = {
        path: _merge(found[path], stored.rows(path), leaf, model.rows(path)) if path in found else leaf
        for path, leaf in wanted.items()
    }
    return unflatten(params), RestoreTable(source, read_digest(newest).step, restored, stored.taken(), model.taken())


def fresh_heads(path: Path, target: dict[str, Any], same_task: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the patterns (`skip`, `new`) of heads that a checkpoint and the tree of `target` do not share: whatever is
    in one of them only, has other shapes, or, unless both are of the `same_task`, is called "label"."""
    stored = {name: shape for name, (shape, _) in stored_shapes(path).items()}
    wanted = {name: tuple(leaf.shape) for name, leaf in flatten(target).items()}

    def differing(one: dict[str, Shape], other: dict[str, Shape]) -> tuple[str, ...]:
        return tuple(
            re.escape(name)
            for name, shape in one.items()
            if name.split("/")[0] in HEADS
            and (other.get(name) != shape or (not same_task and name.split("/")[1] == "label"))
        )

    return differing(stored, wanted), differing(wanted, stored)


def _padded(stored: dict[str, Shape], wanted: dict[str, Any], vocab_size: int) -> dict[str, int]:
    """Return {path: axis} of arrays that differ only in how many rows they have behind those of `vocab_size` ids."""
    found = {}
    for path, axis in VOCABULARY.items() if vocab_size else ():
        if path not in stored or path not in wanted:
            continue
        ours, theirs = tuple(wanted[path].shape), stored[path]
        same = ours[:axis] + ours[axis + 1 :] == theirs[:axis] + theirs[axis + 1 :]
        if ours != theirs and same and min(ours[axis], theirs[axis]) >= vocab_size:
            found[path] = axis
    return found


def _sharding(leaf: Any, whole: bool) -> Any:
    """Return where an array is read to: where it shall live, or, `whole`, to every device that has a part of it."""
    sharding = getattr(leaf, "sharding", None)
    return NamedSharding(sharding.mesh, PartitionSpec()) if whole and isinstance(sharding, NamedSharding) else sharding


def _resized(found: jax.Array, leaf: Any, axis: int) -> jax.Array:
    """Return an array with as many rows as `leaf` has, placed like it: cut, or filled up with zeros."""
    rows, had = leaf.shape[axis], found.shape[axis]

    def resize(x: jax.Array) -> jax.Array:
        widths = [(0, max(rows - had, 0) if place == axis else 0) for place in range(x.ndim)]
        return jnp.pad(jax.lax.slice_in_dim(x, 0, min(rows, had), axis=axis), widths)

    return jax.jit(resize, out_shardings=getattr(leaf, "sharding", None))(found)


def _side(shapes: dict[str, Shape], patterns: tuple[str, ...], where: str) -> _Side:
    tree = unflatten({path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()})
    return _Side(shapes, flatten(mask(tree, patterns, where)))


def _merge(found: jax.Array, source: np.ndarray | None, fresh: Any, destination: np.ndarray | None) -> Any:
    """Put the layers `source` of a restored stack in the places `destination` of a fresh one (None: all of them)."""
    if source is None and destination is None:
        return found

    def merge(found: jax.Array, fresh: Any) -> jax.Array:
        rows = found if source is None else found[source]
        return rows if destination is None else fresh.at[destination].set(rows)

    if destination is None:
        return jax.jit(lambda found: merge(found, None), out_shardings=getattr(fresh, "sharding", None))(found)
    return jax.jit(merge, out_shardings=fresh.sharding)(found, fresh)
