"""The process that a run lives in: what must be set before JAX touches a device."""

import ctypes
import os
import sys

import jax

from jaxformer.devices.flags import set_flags
from jaxformer.storage import cache_folder

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h
ARENAS = max(4, os.cpu_count() or 1)  # of malloc
_LEVEL = "xla_backend_optimization_level"


def prepare_process() -> None:
    """Keep compiled programs on disk between runs, and freed memory in the process; on CPU run one program at a time,
    on accelerators set XLA's flags (flags.py). Call it before the first array.

    What the user has set in JAX's, XLA's or glibc's own environment variables stays.
    """
    set_flags(os.environ)
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "1":  # JAX's own default: it was imported before this package
        from jax._src.lib import utils  # what is public sets the level of Python's loggers, too

        utils.absl_set_min_log_level(3)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
        # Also what compiles quickly: reading it takes some milliseconds, and a start compiles several such programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        # Run in the background, a step on CPU keeps its temporaries until the one after the next is done: two sets of
        # them, or as many as there are steps given out, at no gain in time (benchmarks/results/memory-cpu.md).
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    _keep_freed_memory()


def options_of_one_run() -> dict[str, int] | None:
    """Return the compiler options of a program that runs once: its compilation takes longer than its run.

    On CPU LLVM's first level compiles the making of a model's parameters in half the time; they are equal to the bit.
    What the user has set in XLA_FLAGS stays.
    """
    if jax.default_backend() != "cpu" or _LEVEL in os.environ.get("XLA_FLAGS", ""):
        return None
    return {_LEVEL: 1}


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
        # Few arenas, for only the main thread's can grow beyond 64 MB without the kernel's help; but not one: threads
        # that multiply would wait for each other, longest where compilation has left its crumbs.
        for option, value in ((_M_ARENA_MAX, ARENAS), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)
