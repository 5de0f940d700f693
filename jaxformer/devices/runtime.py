"""The process that a run lives in: what must be set before JAX touches a device."""

import ctypes
import os
import sys

import jax

from jaxformer.storage import cache_folder

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
