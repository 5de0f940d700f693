"""Where arrays live: the mesh of devices, and a table of rules from a parameter's path to how it is split.

The mesh has three axes. `data` shares out each batch and copies all else; `fsdp` shares out each batch, too, and every
large parameter with its gradient and optimizer state (gathered layer by layer as the step needs them); `tensor` splits
attention by heads, feed-forward by its inner width, and the vocabulary (Megatron-LM, Shoeybi et al. 2019, section 3).
Over several slices (or hosts joined by a slow network) `data` crosses the slices and the others stay inside one.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.trees import LAYERS, flatten

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that share out the rows of a batch
STRATEGIES = ("mesh", "pmap")

# Which mesh axis splits which kind of dimension.
SPLITS: dict[str, str] = {"vocab": "tensor", "heads": "tensor", "d_ff": "tensor", "d_model": "fsdp"}

# Pattern of parameter paths -> the kinds of its dimensions, the layer axis of stacks left out; "" is never split. The
# first that matches counts. Norms and biases beside d_model are too small to be worth a message between devices.
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(source_)?embedding/tokens", ("vocab", "d_model")),
    (r"vocabulary/kernel", ("d_model", "vocab")),
    (r"vocabulary/bias", ("vocab",)),
    (r"vocabulary/transform/kernel", ("d_model", "")),
    (r".*/inputs/(positions|token_types)", ("", "d_model")),
    (r".*/relative_bias", ("", "heads")),
    (r".*attention/(query|key|value)/kernel", ("d_model", "heads")),
    (r".*attention/(query|key|value)/bias", ("heads",)),
    (r".*attention/output/kernel", ("heads", "d_model")),
    (r".*feed_forward/(input|gate)/kernel", ("d_model", "d_ff")),
    (r".*feed_forward/(input|gate)/bias", ("d_ff",)),
    (r".*feed_forward/output/kernel", ("d_ff", "d_model")),
    (r"row_heads/pooler/kernel", ("d_model", "")),
    (r"row_heads/.*", ()),
    (r"token_heads/.*", ()),
    (r".*norm/(scale|bias)", ()),
    (r".*/output/bias|vocabulary/transform/bias", ()),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How one step is spread over devices; the losses do not depend on it beyond rounding.

    `mesh` compiles one program over a mesh of `data` x `fsdp` x `tensor` devices; `pmap` copies everything to every
    device and adds up gradients, the plainest data parallelism.
    """

    strategy: str = "mesh"
    data: int = 0  # 0: what the other axes leave of all devices
    fsdp: int = 1
    tensor: int = 1
    slices: int = 0  # groups of devices with a slow network between them; 0: as the devices say (TPU slices)

    def __post_init__(self) -> None:
        check_choice("sharding.strategy", self.strategy, STRATEGIES)
        for axis, least in (("data", 0), ("fsdp", 1), ("tensor", 1), ("slices", 0)):
            check_range(f"sharding.{axis}", getattr(self, axis), at_least=least)
        if self.strategy == "pmap" and self.fsdp * self.tensor * max(self.slices, 1) > 1:
            raise UserError("sharding.strategy: pmap copies everything to every device; set fsdp, tensor, slices to 1")


class Placement(NamedTuple):
    """How one parameter is split, and why a dimension that a rule names is not."""

    spec: PartitionSpec
    notes: tuple[str, ...] = ()


def axis_sizes(config: ShardingConfig, num_devices: int) -> dict[str, int]:
    """Return the size of every mesh axis. Raises UserError when the devices are too few or do not divide."""
    inner = config.fsdp * config.tensor
    if inner > num_devices:
        raise UserError(
            f"sharding: fsdp {config.fsdp} x tensor {config.tensor} need {inner} devices; there are {num_devices}"
        )
    if not config.data and num_devices % inner:
        raise UserError(
            f"sharding: fsdp {config.fsdp} x tensor {config.tensor} do not divide {num_devices} devices; "
            "choose factors of that number, or set sharding.data to use fewer"
        )
    data = config.data or num_devices // inner
    if data * inner > num_devices:
        axes = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, (data, config.fsdp, config.tensor), strict=True))
        raise UserError(
            f"sharding.data: {data * inner} devices wanted ({axes}), {num_devices} found; set data to 0 to use all"
        )
    if config.slices > 1 and data % config.slices:
        raise UserError(f"sharding.slices: {config.slices} slices do not divide the data axis of {data}")
    return {"data": data, "fsdp": config.fsdp, "tensor": config.tensor}


def make_mesh(config: ShardingConfig, batch_sizes: Mapping[str, int] | None = None) -> Mesh:
    """Return the mesh for batches of these sizes, each under the name that errors call it by.

    Raises UserError when the devices are too few, or a batch or an axis does not divide.
    """
    devices = jax.devices()
    sizes = axis_sizes(config, len(devices))
    shape = tuple(sizes.values())
    check_batches(sizes, batch_sizes or {})
    count = int(np.prod(shape))
    groups = sorted({getattr(device, "slice_index", 0) or 0 for device in devices})
    # By themselves slices are told apart where that is possible: hosts of GPUs count as slices, too.
    across = len(groups) if count == len(devices) and sizes["data"] % len(groups) == 0 else 1
    slices = config.slices or across
    if count < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"sharding: {count} of {len(devices)} devices would be used, and some of {jax.process_count()} processes "
            "have nothing to do; set sharding.data to 0, or start fewer processes"
        )
    if slices == 1:
        # Neighbours on the network stand next to each other along the inner axes.
        if len(groups) > 1:
            return Mesh(np.array(devices[:count]).reshape(shape), AXES)
        return Mesh(mesh_utils.create_device_mesh(shape, devices[:count], allow_split_physical_axes=True), AXES)
    if count < len(devices) or sizes["data"] % slices:
        raise UserError(
            f"sharding: {slices} slices need all {len(devices)} devices and a data axis (here {sizes['data']}) "
            f"that is a multiple of {slices}"
        )
    by_process = len(groups) != slices
    if by_process and jax.process_count() % slices:
        raise UserError(f"sharding.slices: {jax.process_count()} processes do not make {slices} equal slices")
    return Mesh(_hybrid(devices, shape, slices, by_process), AXES)


def _hybrid(devices: Sequence[Any], shape: tuple[int, ...], slices: int, by_process: bool) -> np.ndarray:
    """Return the devices as data x fsdp x tensor, the slices one after the other along data."""
    inner = (shape[0] // slices, *shape[1:])
    parts = []
    for number in range(slices):
        if by_process:
            share = jax.process_count() // slices
            own = [device for device in devices if device.process_index // share == number]
        else:
            own = [device for device in devices if device.slice_index == number]
        parts.append(mesh_utils.create_device_mesh(inner, own, allow_split_physical_axes=True))
    return np.concatenate(parts)


def check_batches(sizes: Mapping[str, int], batch_sizes: Mapping[str, int]) -> None:
    """Raise UserError for a batch, given by the name that errors call it by, that the batch axes cannot share."""
    count = sizes["data"] * sizes["fsdp"]
    for name, size in batch_sizes.items():
        if size % count:
            phases = ", or leave the phases out with training.phases=()" if "phases" in name else ""
            others = " or ".join(str(other) for other in (size // count * count, (size // count + 1) * count) if other)
            fitting = [data for data in range(1, sizes["data"]) if size % (data * sizes["fsdp"]) == 0]
            fewer = f", or sharding.data={fitting[-1]}, which uses fewer devices" if fitting else ""
            raise UserError(
                f"{name}: {size} examples do not divide among {count} devices; set it to {others}{fewer}{phases}"
            )


def placements(shapes: Mapping[str, Any], sizes: Mapping[str, int], head_dim: int) -> dict[str, Placement]:
    """Return {path: Placement} for a tree of parameters or of their shapes on a mesh with these axis sizes.

    A dimension is split when its axis is larger than 1 and divides it; one of heads only between whole heads.
    Raises LookupError for a parameter that no rule knows.
    """
    return {path: _placement(path, tuple(leaf.shape), sizes, head_dim) for path, leaf in flatten(shapes).items()}


def _placement(path: str, shape: tuple[int, ...], sizes: Mapping[str, int], head_dim: int) -> Placement:
    kinds = next((kinds for pattern, kinds in RULES if re.fullmatch(pattern, path)), None)
    if kinds is None:
        raise LookupError(f"no placement rule for the parameter {path}; add one to RULES in devices/sharding.py")
    stacked = LAYERS in path.split("/")[:-1]
    dimensions = shape[1:] if stacked else shape
    spec: list[str | None] = [None] if stacked else []
    notes = []
    for kind, length in zip(kinds, dimensions, strict=False):
        axis = SPLITS.get(kind, "")
        size = sizes.get(axis, 1)
        # The relative bias has one column a head; everything else has head_dim of them.
        units = length // head_dim if kind == "heads" and not path.endswith("relative_bias") else length
        splits = size > 1 and units % size == 0
        if size > 1 and not splits:
            remedy = f"; model.vocab_multiple={size} pads it" if kind == "vocab" else ""
            notes.append(f"{kind} {units} does not divide by {axis} {size}{remedy}")
        spec.append(axis if splits else None)
    while spec and spec[-1] is None:
        spec.pop()
    return Placement(PartitionSpec(*spec), tuple(notes))


def specs_like(tree: Any, params: Mapping[str, Placement], shapes: Mapping[str, Any]) -> Any:
    """Return the tree of PartitionSpecs of a training state (or any tree of parameters and what belongs to them).

    A leaf whose path ends with a parameter's and that has its shape is split like it (Adam's moments); all others are
    copied to every device: step counts, and Adafactor's row and column sums, which are a thousandth of the parameters.
    """
    known = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        words = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        for first in range(len(words)):
            name = "/".join(words[first:])
            if known.get(name) == tuple(leaf.shape):
                return params[name].spec
        return PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, tree)


def shardings(mesh: Mesh, specs: Any) -> Any:
    """Return the tree of NamedShardings of a tree of PartitionSpecs."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def activations_mesh(config: ShardingConfig, mesh: Mesh) -> Mesh | None:
    """Return the mesh that activations are split over: none under pmap, whose devices know nothing of each other."""
    return mesh if config.strategy == "mesh" else None


def param_shardings(mesh: Mesh, shapes: Mapping[str, Any], head_dim: int) -> Any:
    """Return where every parameter lives on the mesh."""
    return shardings(mesh, specs_like(shapes, placements(shapes, dict(mesh.shape), head_dim), shapes))


def state_shardings(mesh: Mesh, state: Any, head_dim: int) -> Any:
    """Return where every array of a training state (or of its shapes, with a member `params`) lives on the mesh."""
    placed = placements(state.params, dict(mesh.shape), head_dim)
    return shardings(mesh, specs_like(state, placed, state.params))


def placed(shapes: Any, shardings: Any) -> Any:
    """Return a tree of shapes with where each array shall live."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of batch arrays: their first axis along the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


@functools.lru_cache(maxsize=8)  # asked at every step, and a pod has thousands of devices
def _batch_shares(mesh: Mesh) -> tuple[list[int], int]:
    """Return which of the equal shares of a batch this process's devices hold, and how many there are."""
    numbers = np.arange(mesh.shape["data"] * mesh.shape["fsdp"]).reshape(mesh.devices.shape[:2])
    numbers = np.broadcast_to(numbers[..., None], mesh.devices.shape)
    here = [device.process_index == jax.process_index() for device in mesh.devices.flat]
    return sorted(set(numbers.ravel()[here].tolist())), int(numbers.max()) + 1


def own_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """Return which rows of each global batch this process's devices hold; those are all that it has to read."""
    shares, count = _batch_shares(mesh)
    size = batch_size // count
    return [row for share in shares for row in range(share * size, (share + 1) * size)]


def place(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Make global arrays of this process's rows of a batch."""
    sharding, (shares, count) = split(mesh), _batch_shares(mesh)
    return {
        name: jax.make_array_from_process_local_data(
            sharding, array, (array.shape[0] // len(shares) * count, *array.shape[1:])
        )
        for name, array in batch.items()
    }


def num_shares(mesh: Mesh) -> int:
    """Return among how many devices, or groups of them, the rows of a batch are shared out."""
    return _batch_shares(mesh)[1]


def place_whole(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Make global arrays of a batch of which every process has all rows; they must divide by `num_shares`."""
    own = own_rows(mesh, len(next(iter(batch.values()))))
    return place(mesh, {name: array[own] for name, array in batch.items()})


def constrain(x: jax.Array, mesh: Mesh | None, kinds: Iterable[str]) -> jax.Array:
    """Ask for an activation to be split: "batch" over the batch axes, other kinds as parameters are, "" not at all.

    Without a mesh, and along dimensions that do not divide, nothing is asked for.
    """
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(mesh, kinds, x.shape)))


def partition(mesh: Mesh, kinds: Iterable[str], shape: Sequence[int]) -> PartitionSpec:
    """Return how an activation of this shape is split whose dimensions are of these kinds (see `constrain`)."""
    spec: list[Any] = []
    for kind, length in zip(kinds, shape, strict=True):
        axes: tuple[str, ...] = BATCH if kind == "batch" else (SPLITS[kind],) if kind else ()
        size = int(np.prod([mesh.shape[axis] for axis in axes]))
        spec.append(axes if size > 1 and length % size == 0 else None)
    return PartitionSpec(*spec)
