"""Where arrays live: a mesh of all devices, batches split along its `data` axis, parameters and state on every device.

The step is one pure function over global arrays; the compiler adds what must be summed between devices.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """`data`: devices that share each batch; 0 takes all there are."""

    data: int = 0


def make_mesh(config: ShardingConfig, batch_sizes: Mapping[str, int]) -> Mesh:
    """Return the mesh for batches of these sizes, each under the name that errors call it by.

    Raises UserError when the devices are too few or a batch does not divide among them.
    """
    devices = jax.devices()
    count = config.data or len(devices)
    if count > len(devices):
        raise UserError(f"sharding.data: {count} devices wanted, {len(devices)} found; set 0 to use all")
    for name, size in batch_sizes.items():
        if size % count:
            raise UserError(
                f"{name}: {size} examples do not divide among {count} devices; "
                f"use a multiple of {count} or set sharding.data"
            )
    return Mesh(np.array(devices[:count]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of batch arrays: their first axis along `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Make global arrays of this process's rows of a batch."""
    sharding = split(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}
