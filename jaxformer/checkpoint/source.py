"""Which parameters are read: those that were trained or their moving average, of one checkpoint or of several."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer.checkpoint.digest import PARAMS, Shape, content_of, read_digest
from jaxformer.checkpoint.reading import read_arrays, verified
from jaxformer.errors import UserError
from jaxformer.trees import flatten, unflatten

# Where each kind of parameters stands in a checkpoint. The moving average is a part of the optimizer's state: see
# training/moving_average.py.
ROOTS = {"trained": PARAMS.rstrip("/"), "ema": "opt_state/ema"}
_GROUP_BYTES = 2**28  # of the arrays, in float32, whose mean is taken at a time


class Source(NamedTuple):
    """Where parameters are read. Those of several checkpoints are averaged; the last is the newest."""

    checkpoints: tuple[Path, ...]
    kind: str = "trained"

    @property
    def facts(self) -> dict[str, Any]:
        """What results say of it beside the step of the newest; nothing of what was trained, as it was saved."""
        steps = [int(folder.name) for folder in self.checkpoints]
        averaged = {"average": steps} if len(steps) > 1 else {}
        return averaged | ({"parameters": self.kind} if self.kind != "trained" else {})

    @property
    def name(self) -> str:
        """How files call it: "-average-5-ema"; "" for what was trained, as it was saved."""
        average = f"-average-{len(self.checkpoints)}" if len(self.checkpoints) > 1 else ""
        return average + (f"-{self.kind}" if self.kind != "trained" else "")

    @property
    def content(self) -> str:
        """What names the parameters, the same for a copy. Raises UserError for a damaged digest."""
        return "; ".join([*map(content_of, self.checkpoints), *([self.kind] if self.kind != "trained" else [])])

    def __str__(self) -> str:
        kind = " (the moving average)" if self.kind == "ema" else ""
        before = len(self.checkpoints) - 1
        return f"{self.checkpoints[-1]}{f', the mean with the {before} before it' if before else ''}{kind}"


def opened(path: Path | Source) -> tuple[Source, dict[str, Shape]]:
    """Return where parameters are read, found sound, and their {path: shape}; `path` names a checkpoint, or a run for
    its newest one.

    Raises:
      UserError: one is damaged or missing, has no such parameters, or others than the newest.
    """
    source = path if isinstance(path, Source) else Source((path,))
    source = source._replace(checkpoints=tuple(verified(folder) for folder in source.checkpoints))
    root = f"{ROOTS[source.kind]}/"
    shapes: dict[str, Shape] = {}
    for folder in reversed(source.checkpoints):
        arrays = read_digest(folder).arrays
        found = {name.removeprefix(root): shape for name, (shape, _) in arrays.items() if name.startswith(root)}
        if not found and source.kind == "ema":
            raise UserError(
                f"the checkpoint {folder} has no moving average of the parameters: training.ema_decay was 0; take "
                "those that were trained (--parameters=trained)"
            )
        if shapes and found != shapes:
            raise UserError(f"{folder}: its parameters have other shapes than those of {source.checkpoints[-1]}")
        shapes = found
    return source, shapes


def read_params(source: Source, target: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Return {path: array} of parameters with the dtypes and shardings of `target`.

    Of several checkpoints each mean is summed in float64 and rounded once, some arrays at a time: beside the result no
    more than those (256 MB in float32, or one array) are in memory, once as they are read and once as their sum.
    """
    if len(source.checkpoints) == 1:
        return _read(source.checkpoints[0], ROOTS[source.kind], target)
    found: dict[str, jax.Array] = {}
    for group in _groups(target):
        found |= _mean(source, {path: target[path] for path in group})
    return found


def read_params_in_groups(
    path: Path | Source, groups: Sequence[tuple[str, ...]]
) -> Iterator[tuple[tuple[str, ...], dict[str, np.ndarray]]]:
    """Yield, for each group of parameter paths, the group and {path: array}: no more than a group is in memory.

    `path` names a checkpoint, or a run for its newest one. Raises UserError if it is damaged or lacks a parameter.
    """
    source, stored = opened(path)
    for group in groups:
        missing = [name for name in group if name not in stored]
        if missing:
            folder = source.checkpoints[-1]
            raise UserError(f"the checkpoint {folder} has no parameter {missing[0]}; its config is another model's")
        arrays = read_params(source, {name: jax.ShapeDtypeStruct(stored[name], np.float32) for name in group})
        held = {name: np.asarray(array) for name, array in arrays.items()}
        del arrays
        yield group, held
        del held
        gc.collect()  # Orbax leaves cycles that hold what it read


def _groups(target: Mapping[str, jax.ShapeDtypeStruct]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for path, leaf in target.items():
        if group and size + 4 * leaf.size > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(path)
        size += 4 * leaf.size
    if group:
        yield group


def _mean(source: Source, target: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Return the means of arrays, each process of its own parts; of copies on several devices once."""
    wanted = {path: jax.ShapeDtypeStruct(x.shape, np.float32, sharding=x.sharding) for path, x in target.items()}
    totals: dict[tuple[str, str], np.ndarray] = {}
    placed: dict[str, Any] = {}
    for folder in source.checkpoints:
        found = _read(folder, ROOTS[source.kind], wanted)
        parts = {(path, str(part.index)): part.data for path, x in found.items() for part in x.addressable_shards}
        for key, part in parts.items():
            value = np.asarray(part, np.float64)
            totals[key] = totals[key] + value if key in totals else value
        placed = {path: array.sharding for path, array in found.items()}

    def mean(path: str, index: Any) -> np.ndarray:
        average: np.ndarray = totals[path, str(index)] / len(source.checkpoints)
        return average.astype(target[path].dtype)

    return {
        path: jax.make_array_from_callback(target[path].shape, sharding, lambda index, path=path: mean(path, index))
        for path, sharding in placed.items()
    }


def _read(folder: Path, root: str, target: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    tree: Any = unflatten(dict(target))
    for key in reversed(root.split("/")):
        tree = {key: tree}
    found = read_arrays(folder, tree, partial=True)
    for key in root.split("/"):
        found = found[key]
    arrays: dict[str, jax.Array] = flatten(found)
    return arrays
