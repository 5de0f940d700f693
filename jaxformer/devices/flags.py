"""The settings of XLA that public training records use, per platform: what each is for, and where it is from.

`train` and the other verbs set them in the environment before JAX starts a backend, each unless the user has set it;
`jaxformer plan --chip=NAME` prints them, and `config.json` keeps what was in force. XLA ends a process whose XLA_FLAGS
holds a name that it does not know, so there are few of them: those for GPU are tested against the jaxlib that is
installed, those for TPU are in libtpu 0.0.52. Nothing here was measured by us.

Left out on purpose: --xla_gpu_enable_triton_gemm=false (XLA now measures Triton against cuBLAS and takes the faster),
thresholds for combining collectives (the best depend on the model; XLA's own follow its size), and
--xla_disable_hlo_passes=rematerialization (a program that does not fit would fail instead of being slower).
"""

import importlib.util
import os
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple

import jax
from jax._src import xla_bridge  # nothing public says whether a backend has started

GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")  # as JAX looks for them
GPU_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")  # up to v4, and from v5 on
_PLATFORMS = {"cuda": "gpu", "gpu": "gpu", "tpu": "tpu", "cpu": "cpu"}  # JAX's names -> ours


class Flag(NamedTuple):
    """One setting: an environment variable, the flag in it ("": the variable is the setting), its value, and why."""

    variable: str
    name: str
    value: str
    why: str
    source: str

    @property
    def text(self) -> str:
        """What stands in the variable."""
        return f"{self.name}={self.value}" if self.name else self.value


def _xla(name: str, why: str, source: str) -> Flag:
    return Flag("XLA_FLAGS", f"--xla_gpu_{name}", "true", why, source)


def _tpu(name: str, why: str, source: str) -> Flag:
    return Flag("LIBTPU_INIT_ARGS", f"--xla_{name}", "true", why, source)


_TOOLBOX = "JAX-Toolbox docs/GPU_performance.md, and the settings of its images"
_MAXTEXT_GPU = "MaxText's runs of Llama 2 on H100 (MaxText/configs/a3, JAX-Toolbox rosetta/maxtext)"
_GATHER = "MaxText benchmarks/xla_flags_library.py, CF_FOR_ALL_GATHER"
_OVERLAP = "MaxText benchmarks/xla_flags_library.py, DATA_PARALLEL_OVERLAP"

FLAGS: dict[str, tuple[Flag, ...]] = {
    "cpu": (),
    "gpu": (
        _xla(
            "enable_latency_hiding_scheduler", "fsdp's gathers and the sums of gradients run beside products", _TOOLBOX
        ),
        _xla(
            "enable_pipelined_all_gather",
            "in a scan, the next layer's parameters come while this one computes",
            _MAXTEXT_GPU,
        ),
        _xla(
            "enable_pipelined_reduce_scatter",
            "in a scan, fsdp's gradients leave while the next layer computes",
            _MAXTEXT_GPU,
        ),
        _xla(
            "enable_pipelined_all_reduce",
            "in a scan, data's gradients leave while the next layer computes",
            _MAXTEXT_GPU,
        ),
        _xla("enable_while_loop_double_buffering", "a scan's turns need no copies of what they hand on", _MAXTEXT_GPU),
        Flag(
            "XLA_PYTHON_CLIENT_MEM_FRACTION",
            "",
            "0.9",
            "of a GPU's memory; JAX takes 0.75, plan counts on 0.9",
            _TOOLBOX,
        ),
    ),
    "tpu": (
        _tpu("tpu_enable_async_collective_fusion", "collectives run inside of fusions, beside products", _GATHER),
        _tpu("tpu_enable_async_collective_fusion_fuse_all_gather", "so do fsdp's gathers of parameters", _GATHER),
        _tpu(
            "tpu_enable_async_collective_fusion_multiple_steps", "over several fusions, where one is too short", _GATHER
        ),
        _tpu("tpu_overlap_compute_collective_tc", "computation and collectives share a core", _GATHER),
        _tpu("enable_async_all_gather", "gathers are started ahead of what reads them", _GATHER),
        _tpu(
            "tpu_enable_data_parallel_all_reduce_opt",
            "sums of gradients over slices run beside the backward pass",
            _OVERLAP,
        ),
        _tpu("tpu_data_parallel_opt_different_sized_ops", "those of unequal sizes, too", _OVERLAP),
    ),
}
# Another name of a variable; a value under either is the user's.
_ALSO = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "XLA_CLIENT_MEM_FRACTION"}


def platform_here(asked: str | None) -> str:
    """Return what this process is about to run on, "cpu", "gpu" (NVIDIA) or "tpu", without starting it; "" is none of
    these. `asked` are the platforms that JAX was told to use, comma-separated; None or "": it looks itself."""
    if asked:
        return _PLATFORMS.get(asked.split(",")[0].strip().lower(), "")
    if has_tpu():
        return "tpu"
    if any(map(_installed, GPU_PLUGINS)) and any(map(os.path.exists, GPU_DEVICES)):
        return "gpu"
    return "cpu"


def has_tpu() -> bool:
    """Say whether this machine has TPUs, and what drives them."""
    return _installed("libtpu") and any(map(os.path.exists, TPU_DEVICES))


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def flags_for(platform: str, environment: Mapping[str, str]) -> tuple[Flag, ...]:
    """Return the settings for a platform that the user has not set in this environment, to whatever value."""

    def is_set(flag: Flag) -> bool:
        if not flag.name:
            return bool({flag.variable, _ALSO.get(flag.variable, flag.variable)} & environment.keys())
        words = environment.get(flag.variable, "").split()
        return flag.name.lstrip("-") in {word.partition("=")[0].lstrip("-") for word in words}

    return tuple(flag for flag in FLAGS.get(platform, ()) if not is_set(flag))


def set_flags(environment: MutableMapping[str, str]) -> None:
    """Add the settings for the platform at hand to the environment; once a backend has started they would do nothing,
    and are left alone."""
    if xla_bridge.backends_are_initialized():
        return
    for flag in flags_for(platform_here(jax.config.jax_platforms), environment):
        environment[flag.variable] = f"{environment.get(flag.variable, '')} {flag.text}".strip()


def flags_in_force(platform: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that hold a platform's settings, as they are: ours and the user's."""
    variables = {flag.variable: None for flag in FLAGS.get(platform, ())}
    return {name: environment[name] for name in variables if name in environment}
