"""What a run runs on.

What lives here: the mesh and where arrays live on it (`sharding`), the processes of a run and how they end
(`processes`), what a process must set before its first array (`runtime`), XLA's flags per platform (`flags`).
What may come in: another axis of the mesh, another way to start processes.
What must not: what the arrays mean."""

from jaxformer.devices.flags import Flag, flags_for, flags_in_force
from jaxformer.devices.processes import (
    agreed,
    check_same,
    connect,
    first_alone,
    gathered,
    has_peers,
    is_first,
    let_speak,
    meet,
)
from jaxformer.devices.runtime import options_of_one_run, prepare_process
from jaxformer.devices.sharding import (
    Placement,
    ShardingConfig,
    activations_mesh,
    axis_sizes,
    check_batches,
    constrain,
    make_mesh,
    num_shares,
    own_rows,
    param_shardings,
    partition,
    place,
    place_whole,
    placed,
    placements,
    replicated,
    specs_like,
    split,
    state_shardings,
)

__all__ = [
    "Flag",
    "Placement",
    "ShardingConfig",
    "activations_mesh",
    "agreed",
    "axis_sizes",
    "check_batches",
    "check_same",
    "connect",
    "constrain",
    "first_alone",
    "flags_for",
    "flags_in_force",
    "gathered",
    "has_peers",
    "is_first",
    "let_speak",
    "make_mesh",
    "meet",
    "num_shares",
    "options_of_one_run",
    "own_rows",
    "param_shardings",
    "partition",
    "place",
    "place_whole",
    "placed",
    "placements",
    "prepare_process",
    "replicated",
    "specs_like",
    "split",
    "state_shardings",
]
