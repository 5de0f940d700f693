"""The processes of a run: who they are, what they do together, and how one ends without leaving the others waiting.

JAX's distributed runtime connects them and moves the bytes; whatever started them (SLURM, MPI, a TPU pod, the variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID) says who they are.
"""

import itertools
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jaxformer.devices.flags import has_tpu
from jaxformer.errors import UserError

Result = TypeVar("Result")
HEARTBEAT_SECONDS = 20  # a process not heard of for so long takes the others down
_DAY = 24 * 3600 * 1000  # milliseconds
_meetings = itertools.count()  # each has a name of its own
_ends = itertools.count()
_askings = itertools.count(1)  # JAX begins at 1
_PATIENCE = 30 * 1000  # milliseconds in which those who fail alike do so
_BLOCK = 1024  # of what is told at once: texts of many lengths are one program


def connect() -> None:
    """Find the other processes of this run, where the environment says that there are some, and wait for them.

    Raises UserError when it contradicts itself. Peers that do not come within five minutes end the process, by JAX.
    """
    arguments = _peers(os.environ)
    if arguments is None or jax.distributed.is_initialized():
        return
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        # As JAX has it by default: in the thread that calls it, a step in which a peer ends raises another error.
        jax.config.update("jax_cpu_enable_async_dispatch", True)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **arguments)
    except (RuntimeError, ValueError) as error:
        if not arguments and jax.process_count() == 1:
            return  # one TPU host, whose devices have been in use already
        lines = str(error).strip().splitlines()
        raise UserError(
            f"the processes of this run did not find each other: {lines[0] if lines else error}; all must be started "
            "with the same command, and reach the coordinator"
        ) from error


def _peers(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what `jax.distributed.initialize` must be told, or None for a process that has no peers."""

    def count_in(name: str) -> int:
        try:
            return int(environment.get(name, "0"))
        except ValueError:
            raise UserError(f"{name}={environment[name]!r} is not a whole number") from None

    if "JAX_NUM_PROCESSES" in environment:
        count, own = count_in("JAX_NUM_PROCESSES"), count_in("JAX_PROCESS_ID")
        if count < 2:
            return None
        if not 0 <= own < count or "JAX_COORDINATOR_ADDRESS" not in environment:
            raise UserError(
                f"JAX_NUM_PROCESSES={count} needs JAX_PROCESS_ID from 0 to {count - 1} (here {own}) "
                "and JAX_COORDINATOR_ADDRESS=HOST:PORT of process 0"
            )
        return {"num_processes": count, "process_id": own, "cluster_detection_method": "deactivate"}
    if count_in("SLURM_NTASKS") > 1 and "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
        return {"local_device_ids": _local_devices(environment)}
    if count_in("OMPI_COMM_WORLD_SIZE") > 1:
        return {}
    return {} if has_tpu() and environment.get("JAX_PLATFORMS", "tpu") != "cpu" else None


def _local_devices(environment: Mapping[str, str]) -> list[int] | None:
    """Return which of the GPUs that a SLURM task sees are its own: JAX would give it just one of them.

    All tasks of a node may see all of its GPUs, which they then share out, or each only those that SLURM bound to it.
    """
    seen = [gpu for gpu in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if not seen:
        return None
    tasks: list[int] = []  # of every node; SLURM writes 2(x3),1
    for entry in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = entry.rstrip(")").partition("(x")
        tasks += [int(count)] * int(times or 1)
    here = tasks[min(int(environment.get("SLURM_NODEID", "0")), len(tasks) - 1)]
    if len(seen) < here:
        return list(range(len(seen)))
    share, own = len(seen) // here, int(environment.get("SLURM_LOCALID", "0"))
    return list(range(own * share, (own + 1) * share))


def expects_peers() -> bool:
    """Say whether the environment names other processes of this job. Of a TPU host, which always asks, nothing is known
    before it is connected."""
    found = _peers(os.environ)
    return found is not None and (bool(found) or not has_tpu())


def has_peers() -> bool:
    """Say whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def number() -> int:
    """Return which of the processes this is, from 0."""
    return jax.process_index()


def is_first() -> bool:
    """Say whether this process is the one that writes what all share."""
    return number() == 0


def leave(code: int, together: bool) -> NoReturn:
    """End this process at once. One that has done its part, as the others do, says so to them first (`together`); from
    one that failed they hear nothing more, for on the way out JAX would wait for them, who may be waiting for it."""
    if together:
        jax.distributed.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_peers_end(error: BaseException) -> bool:
    """Say whether an error of JAX's is what this process sees of the end of another one."""
    signs = r"gloo|nccl|connection|peer|heartbeat|coordination|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED"
    # Run in the calling thread, a step raises it as a ValueError, whose text begins with a status.
    status = type(error) is ValueError and re.match(r"[A-Z_]+: ", str(error))
    of_jax = type(error).__name__ == "JaxRuntimeError" or status
    return bool(of_jax and re.search(signs, str(error), re.I))


def let_speak() -> None:
    """Give the process that knows what is wrong the time to say so, and to end, before those that only hear of it."""
    time.sleep(1.0)


def meet() -> None:
    """Wait until every process is here, for a day if need be.

    It is no wait of the devices, which may lose patience while a large corpus is tokenised or a checkpoint hashed.
    """
    if jax.process_count() > 1:
        ocp.multihost.get_barrier_sync_fn()(key=f"meeting_{next(_meetings)}", timeout_ms=_DAY)


def agreed(value: int) -> int:
    """Return process 0's value (of 32 bits) on every process."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def told(text: str) -> str:
    """Return process 0's text on every process. They wait for it as long as they would `meet`."""
    if jax.process_count() == 1:
        return text
    meet()
    own = np.frombuffer(text.encode(), np.uint8)
    size = agreed(len(own))
    block = np.zeros(-(-size // _BLOCK) * _BLOCK, np.int32)
    if is_first():
        block[:size] = own
    return np.asarray(multihost_utils.broadcast_one_to_all(block))[:size].astype(np.uint8).tobytes().decode()


def stop_is_due() -> bool:
    """Say whether all processes stop now, one of them having been sent SIGTERM. They must ask alike, and go on asking:
    JAX has them agree on an asking that is yet to come, by its number since the process began."""
    return has_peers() and bool(multihost_utils.reached_preemption_sync_point(next(_askings)))


def ended_alike(failed: bool) -> bool:
    """Say whether what every process has just done has failed on all of them, or on none, and at the same point.

    One that failed by itself learns after half a minute that the others do not come, and has to end: they wait for it
    somewhere in the middle.
    """
    if jax.process_count() == 1:
        return True
    try:
        meet_at = ocp.multihost.get_barrier_sync_fn()
        meet_at(key=f"end_{next(_ends)}", timeout_ms=_PATIENCE if failed else _DAY)
    except Exception:
        if failed:
            return False
        raise
    ends = multihost_utils.process_allgather(np.array([failed, next(_meetings)], np.int32))
    return bool((ends == ends[0]).all())


def first_alone(work: Callable[[], Result]) -> Result:
    """Let process 0 do work that leaves files which all read, then the others; they find it done where they share a
    file system. When process 0 fails, all do."""
    if jax.process_count() == 1:
        return work()
    failure: BaseException | None = None
    if is_first():
        try:
            result = work()
        except Exception as error:
            failure = error
    meet()
    if agreed(failure is None):
        return result if is_first() else work()
    if failure is None:
        let_speak()
    raise failure or UserError("process 0 could not prepare the run; its own message says why")


def check_same(what: str, value: str) -> None:
    """Raise UserError on the processes whose value differs from process 0's."""
    own = zlib.crc32(value.encode()) >> 1
    if agreed(own) != own:
        raise UserError(
            f"{what} of this process (number {number()}) is not that of process 0: they read different "
            "files; give all hosts the same data and JAXFORMER_CACHE, or share them"
        )


def gathered(array: Any) -> np.ndarray:
    """Return a global array's values, on every process the same. All processes must call it."""
    if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
