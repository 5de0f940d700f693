"""A copy of a state in memory, which a save reads in the background while training overwrites the original."""

import concurrent.futures
import contextlib
import itertools
import mmap
import os
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ALIGNMENT = 64  # bytes: JAX takes over what begins there without copying it once more
_LOWEST = 19  # the priority that has the processor when nothing else wants it


def copied(state: Any) -> Any:
    """Return a complete copy of a tree of arrays on CPU devices, so that the original may be donated.

    Arrays of one device lie in one block of their own, in huge pages where there are such: one page fault instead of
    500. When the copy is dropped the block goes back as a whole, so that malloc's heap, which the step's temporaries
    come from, does not keep the room of a second state.
    """
    leaves, structure = jax.tree.flatten(jax.block_until_ready(state))
    ours = [leaf for leaf in leaves if len(leaf.sharding.device_set) == 1]
    sizes = [-(-leaf.nbytes // _ALIGNMENT) * _ALIGNMENT for leaf in ours]
    *starts, size = itertools.accumulate(sizes, initial=0)
    # Private: shared memory, the default, has no huge pages.
    block = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        copies = pool.map(lambda leaf, start: _copied(leaf, block, start), ours, starts)
        found = [next(copies) if len(leaf.sharding.device_set) == 1 else jnp.copy(leaf) for leaf in leaves]
    return jax.block_until_ready(jax.tree.unflatten(structure, found))


def _copied(leaf: jax.Array, block: mmap.mmap, start: int) -> jax.Array:
    """Return a copy of an array that lies in `block`, from `start` on."""
    place = np.frombuffer(block, leaf.dtype, leaf.size, start).reshape(leaf.shape)
    np.copyto(place, np.asarray(leaf))
    return jax.device_put(place, leaf.sharding, may_alias=True)


def yield_to_training() -> None:
    """Let this thread, and all that it starts, have only the time that training leaves (on Linux; elsewhere priorities
    are those of whole processes)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
