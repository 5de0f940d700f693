"""Reading a checkpoint back: verified against its digest first, straight into the target's shardings."""

import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxformer.checkpoint.digest import Digest, find_damage, locate, read_digest
from jaxformer.errors import UserError


def restore(folder: Path, target: Any) -> Any:
    """Return the arrays of a sound checkpoint in the structure, dtypes and shardings of `target`.

    Keys that the target lacks are not read.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf)), target)
    arguments = ocp.checkpoint_utils.construct_restore_args(shapes)
    with warnings.catch_warnings(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as reader:
        # Orbax warns that the saved and the present topology may differ, which is what restoring here is for.
        warnings.simplefilter("ignore")
        return reader.restore(
            folder, args=ocp.args.PyTreeRestore(item=shapes, restore_args=arguments, partial_restore=True)
        )


def restore_named(path: Path, target: Any) -> tuple[int, Any]:
    """Return (step, state) of the checkpoint, or the newest one of the run, that the user names.

    Raises UserError when there is none or it is damaged; nothing is changed on disk.
    """
    folder, digest = verified(path)
    return digest.step, restore(folder, target)


def verified(path: Path) -> tuple[Path, Digest]:
    """Return the checkpoint that `path` names and its digest. Raises UserError when there is none or it is damaged."""
    folder = locate(path)
    damage = find_damage(folder)
    if damage is not None:
        raise UserError(f"the checkpoint {folder} is damaged: {damage}; name another one")
    return folder, read_digest(folder)


def _sharding(leaf: Any) -> Any:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
