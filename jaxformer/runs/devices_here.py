"""The devices that a trained run is used on, which need not be those that it was trained on."""

import dataclasses
from collections.abc import Callable, Sequence

from jax.sharding import Mesh

from jaxformer.config import Config
from jaxformer.devices import ShardingConfig, make_mesh, num_shares
from jaxformer.errors import UserError


def mesh_here(config: Config, overrides: Sequence[str], note: Callable[[str], None]) -> tuple[Config, Mesh]:
    """Return the mesh of all processes' devices that a run is judged on, and its config with batches that they share.

    It is what `sharding.*` says. Where the devices at hand are not those of the training, and no override names that
    section, all of them share the rows and each has all parameters, with a note. Evaluations do not depend on the size
    of their batches, which is rounded up. Raises UserError for a section of the overrides that does not fit.
    """
    # Devices that each know nothing of the others are a way to train.
    config = dataclasses.replace(config, sharding=dataclasses.replace(config.sharding, strategy="mesh"))
    try:
        mesh = make_mesh(config.sharding)
    except UserError as error:
        if any(override.startswith("sharding.") for override in overrides):
            raise
        config = dataclasses.replace(config, sharding=ShardingConfig())
        mesh = make_mesh(config.sharding)
        note(
            f"the run was trained on other devices ({error}); all {mesh.size} here share the rows, each with the model"
        )
    shares = num_shares(mesh)
    rows = -(-config.evaluation_rows // shares) * shares
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, batch_size=rows)), mesh
