"""Strict partial restore, for fine-tuning: every parameter is restored, or named as skipped or new."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxformer.checkpoint.digest import PARAMS, Shape
from jaxformer.checkpoint.reading import restore, verified
from jaxformer.errors import UserError
from jaxformer.parameters import flatten, match, unflatten


@dataclasses.dataclass(frozen=True)
class RestoreTable:
    """What a restore did with each parameter: path -> shape."""

    source: Path
    step: int
    restored: Mapping[str, Shape]
    skipped: Mapping[str, Shape]
    new: Mapping[str, Shape]

    def render(self) -> Table:
        """Return the table that training prints: one line per parameter."""
        table = Table(title=f"from {self.source}, step {self.step}", title_justify="left", box=None, pad_edge=False)
        for column in ("", "parameter", "shape", "count"):
            table.add_column(column, justify="right" if column == "count" else "left")
        for what in ("restored", "skipped", "new"):
            for path, shape in getattr(self, what).items():
                table.add_row(what, path, " x ".join(map(str, shape)) or "scalar", f"{math.prod(shape):,}")
        return table


def restore_params(
    path: Path, target: dict[str, Any], skip: tuple[str, ...] = (), new: tuple[str, ...] = ()
) -> tuple[dict[str, Any], RestoreTable]:
    """Return `target` with its parameters replaced by those of a run or checkpoint, and a table of what was done.

    Parameters that only the checkpoint has must match a pattern of `skip`; those that only the target has must
    match one of `new` and keep their values; a parameter of another shape must match both. Raises
    UserError, listing both sides, for everything that is left over, and when the checkpoint is missing or damaged.
    """
    folder, digest = verified(path)
    stored = {name.removeprefix(PARAMS): shape for name, (shape, _) in digest.arrays.items() if name.startswith(PARAMS)}
    wanted = flatten(target)
    skipped = {name for name, shape in stored.items() if _any(name, shape, skip)}
    fresh = {name for name, leaf in wanted.items() if _any(name, leaf.shape, new)}
    left: list[tuple[str, str, str]] = []
    for name in sorted((stored.keys() - skipped) | (wanted.keys() - fresh)):
        have, want = stored.get(name), tuple(wanted[name].shape) if name in wanted else None
        if name in skipped and have is not None:
            have = None
        if name in fresh:
            want = None
        if have != want:
            left.append((name, _shown(have), _shown(want)))
    if left:
        widths = [max(len(row[column]) for row in [*left, ("parameter", "checkpoint", "")]) for column in (0, 1)]
        rows = [("parameter", "checkpoint", "model"), *left]
        lines = [f"  {name:{widths[0]}}  {have:{widths[1]}}  {want}" for name, have, want in rows]
        raise UserError(
            f"{folder} does not fit the model; name what is left over with checkpoint.init_skip (in the checkpoint "
            "only) and checkpoint.init_new (in the model only):\n" + "\n".join(lines)
        )
    taken = {name: leaf for name, leaf in wanted.items() if name in stored and name not in fresh | skipped}
    restored = flatten(restore(folder, {"params": unflatten(taken)})["params"]) if taken else {}
    table = RestoreTable(
        folder,
        digest.step,
        {name: tuple(leaf.shape) for name, leaf in taken.items()},
        {name: shape for name, shape in stored.items() if name not in taken},
        {name: tuple(leaf.shape) for name, leaf in wanted.items() if name not in taken},
    )
    return unflatten({name: restored.get(name, leaf) for name, leaf in wanted.items()}), table


def _any(path: str, shape: Shape, patterns: tuple[str, ...]) -> bool:
    return bool(patterns) and match(path, shape, patterns) is True


def _shown(shape: Shape | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape)) or "scalar"
