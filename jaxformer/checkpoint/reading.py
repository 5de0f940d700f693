"""Reading a verified checkpoint into a tree of arrays."""

import itertools
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxformer.checkpoint.digest import Shape, array_paths, find_damage, finished_steps, locate, read_digest
from jaxformer.devices import agreed, is_first, let_speak, meet
from jaxformer.errors import UserError

_MOST_ROWS = 30  # of a difference shown in an error


def verified(path: Path) -> Path:
    """Return the checkpoint that `path` names (see `locate`); UserError if it is damaged."""
    folder = locate(path)
    damage = find_damage(folder) if is_first() else None  # one reads it all, for all
    meet()
    if not agreed(damage is None) and not damage:
        let_speak()
        raise UserError(f"the checkpoint {folder} is damaged; the message of process 0 says how")
    if damage:
        others = [str(step) for step in finished_steps(folder.parent) if str(step) != folder.name]
        hint = f"name another one; {folder.parent} also has {', '.join(others)}" if others else "name another one"
        if others and folder.parent.name == "checkpoints":
            hint += f" (as {folder.parent.parent}@{others[-1]})"
        raise UserError(f"the checkpoint {folder} is damaged: {damage}; {hint}")
    return folder


def restore_state(folder: Path, target: Any) -> Any:
    """Restore the whole state from a sound checkpoint; UserError with the difference if it is not the target's."""
    stored = {path: shape for path, (shape, _) in read_digest(folder).arrays.items()}
    wanted = {path: tuple(leaf.shape) for path, leaf in array_paths(target).items()}
    if stored != wanted:
        raise UserError(
            f"the checkpoint {folder} does not fit this model and optimizer; continue with the config that wrote it, "
            f"or start in another workdir (init_from takes over parameters alone)\n{difference(stored, wanted)}"
        )
    return read_arrays(folder, target)


def read_arrays(folder: Path, target: Any, partial: bool = False) -> Any:
    """Let Orbax read the arrays of `target`; with `partial` the checkpoint may hold more. Shapes must agree."""
    quiet_orbax()
    target = jax.tree.map(_abstract, target)
    arguments = ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=partial
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(folder, args=arguments)


def difference(stored: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> str:
    """Return what differs between two sets of arrays as lines of two columns, equal paths with unequal shapes first."""
    both = [path for path in stored if path in wanted and stored[path] != wanted[path]]
    left = [f"{path} {list(stored[path])}" for path in [*both, *(path for path in stored if path not in wanted)]]
    right = [f"{path} {list(wanted[path])}" for path in [*both, *(path for path in wanted if path not in stored)]]
    rows = [("only in the checkpoint", "only in the model"), *itertools.zip_longest(left, right, fillvalue="")]
    width = max(len(row[0]) for row in rows[: _MOST_ROWS + 1]) + 2
    lines = [f"  {row[0]:{width}}{row[1]}".rstrip() for row in rows[: _MOST_ROWS + 1]]
    if len(rows) > len(lines):
        lines.append(f"  … and {len(rows) - len(lines)} more")
    return "\n".join(lines)


def quiet_orbax() -> None:
    """Keep Orbax's log off the terminal: what goes wrong there reaches the user as our own error."""
    logger = logging.getLogger("absl")
    if _not_from_orbax in logger.filters:
        return
    logger.addFilter(_not_from_orbax)
    # When a save fails at several arrays, asyncio reports those that Orbax did not wait for.
    logging.getLogger("asyncio").addFilter(lambda record: "orbax" not in record.getMessage())
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # When a save fails at one array, TensorStore reports the others to an event loop that Orbax has closed by then.
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
