"""The process that a run lives in: what must be set before JAX touches a device, and its peers on other hosts.

JAX's distributed runtime connects the processes and moves the bytes; whatever started them (SLURM, MPI, a TPU pod, the
variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID) says who they are.
"""

import ctypes
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxformer.data.prepare import cache_folder
from jaxformer.errors import UserError

Result = TypeVar("Result")
HEARTBEAT_SECONDS = 20  # a process not heard of for so long takes the others down
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")  # up to v4, and from v5 on
_DAY = 24 * 3600 * 1000  # milliseconds
_meetings = itertools.count()  # each has a name of its own

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


def prepare_process() -> None:
    """Keep compiled programs on disk between runs, and freed memory in the process. Call it before the first array.

    What the user has set in JAX's or glibc's own environment variables stays.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let malloc reuse what a step has freed.

    XLA:CPU allocates its temporary buffers anew at every step. Above 32 MB glibc takes them from the kernel and gives
    them back each time, and the kernel clears every page again: a quarter to a third of a small model's step.
    """
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):
            return  # another C library
        # One arena: only that one can grow beyond 64 MB without the kernel's help.
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)


def connect() -> None:
    """Find the other processes of this run, where the environment says that there are some, and wait for them.

    Raises UserError when it contradicts itself or the peers do not come.
    """
    arguments = _peers(os.environ)
    if arguments is None or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **arguments)
    except (RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines()
        raise UserError(
            f"the processes of this run did not find each other: {lines[0] if lines else error}; all must be started "
            "with the same command, and reach the coordinator"
        ) from error


def _peers(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what `jax.distributed.initialize` must be told, or None for a process that has no peers."""

    def number(name: str) -> int:
        try:
            return int(environment.get(name, "0"))
        except ValueError:
            raise UserError(f"{name}={environment[name]!r} is not a whole number") from None

    if "JAX_NUM_PROCESSES" in environment:
        count, own = number("JAX_NUM_PROCESSES"), number("JAX_PROCESS_ID")
        if count < 2:
            return None
        if not 0 <= own < count or "JAX_COORDINATOR_ADDRESS" not in environment:
            raise UserError(
                f"JAX_NUM_PROCESSES={count} needs JAX_PROCESS_ID from 0 to {count - 1} (here {own}) "
                "and JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0"
            )
        return {"num_processes": count, "process_id": own, "cluster_detection_method": "deactivate"}
    if number("SLURM_NTASKS") > 1 and "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
        return {"local_device_ids": _local_devices(environment)}
    if number("OMPI_COMM_WORLD_SIZE") > 1:
        return {}
    on_tpu = importlib.util.find_spec("libtpu") is not None and any(map(os.path.exists, _TPU_DEVICES))
    return {} if on_tpu and environment.get("JAX_PLATFORMS", "tpu") != "cpu" else None


def _local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Return which of the GPUs that a SLURM task sees are its own: JAX would give it just one of them.

    All tasks of a node may see all of its GPUs, which they then share out, or each only those that SLURM bound to it.
    """
    seen = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    tasks = int(environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0])
    if not seen:
        return None
    if len(seen) < tasks:
        return list(range(len(seen)))
    share, own = len(seen) // tasks, int(environment.get("SLURM_LOCALID", "0"))
    return list(range(own * share, (own + 1) * share))


def has_peers() -> bool:
    """Say whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Say whether this process is the one that writes what all share."""
    return jax.process_index() == 0


def leave(code: int) -> NoReturn:
    """End this process at once: on the way out JAX would wait for its peers, who may be waiting for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def meet() -> None:
    """Wait until every process is here, for a day if need be.

    It is no wait of the devices, which may lose patience while a large corpus is tokenised or a checkpoint hashed.
    """
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=f"meeting_{next(_meetings)}", timeout_ms=_DAY)


def first_alone(work: Callable[[], Result]) -> Result:
    """Let process 0 do work that leaves files which all read, then the others; they find it done where they share a
    file system. When process 0 fails, all do."""
    if jax.process_count() == 1:
        return work()
    failure: BaseException | None = None
    if jax.process_index() == 0:
        try:
            result = work()
        except Exception as error:
            failure = error
    meet()
    if agreed(failure is None):
        return result if jax.process_index() == 0 else work()
    raise failure or UserError("process 0 could not prepare the run; see its message")


def agreed(value: int) -> int:
    """Return process 0's value on every process."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))
