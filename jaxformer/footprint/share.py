"""Which part of a machine's load is this process's: what a run is charged where others run beside it.

Processor and memory are shared by processor time: that of this process and its descendants over that of all. A GPU
is shared equally by the processes that compute on it, and one that nobody uses as the processor is. What all processes
of a machine are charged adds up to what it used, idle power included, and never to more.
"""

import functools
import os
import socket
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # loaded where it is needed: help waits for nothing heavy
    import psutil


class ProcessorTime(NamedTuple):
    """Seconds of all processors, since any moment in the past: of this process with its descendants, and of all."""

    own: float
    machine: float

    def share_since(self, earlier: "ProcessorTime") -> float | None:
        """Return this process's part of the load since then, from 0 to 1; None where no clock has ticked since."""
        own, machine = max(self.own - earlier.own, 0.0), self.machine - earlier.machine
        load = max(machine, own)  # ticks are 10 ms, and some sandboxes know nothing of the machine
        return own / load if load > 0 else None


def processor_time() -> ProcessorTime:
    """Return the processor seconds until now."""
    import psutil

    own = 0.0
    for process in _own_processes():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it has ended; its parent counts it
        # Those of descendants that have ended stand with who has waited for them.
        own += times.user + times.system + times.children_user + times.children_system
    all_times = psutil.cpu_times()
    busy = ("user", "nice", "system", "irq", "softirq")
    return ProcessorTime(own, sum(getattr(all_times, name, 0.0) for name in busy))


def _own_processes() -> "list[psutil.Process]":
    import psutil

    process = psutil.Process()
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return [process]


@functools.cache
def machine_name() -> str:
    """Return what tells this machine, since it was started, from others; containers on it have it in common."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def gpu_share(load: float) -> float:
    """Return this process's part of what the GPUs that it sees use now; `load` is its part of the processor's load."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            own = {process.pid for process in _own_processes()}
            watts, part = 0.0, 0.0
            for handle in _visible_gpus(pynvml):
                power = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
                users = {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
                watts += power
                part += power * share_of_gpu(users, own, load)
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # other vendors' GPUs, and drivers that do not tell
        return load
    return part / watts if watts > 0 else load


def share_of_gpu(users: Collection[int], own: Collection[int], load: float) -> float:
    """Return the part of a GPU that is charged to the processes `own`, of all `users` that compute on it."""
    import psutil

    if not users:
        return load
    if any(pid in own for pid in users):
        return len(set(users) & set(own)) / len(users)
    # In a container the numbers are those of the host: then one of them is this process, as far as it can tell.
    return 0.0 if all(psutil.pid_exists(pid) for pid in users) else 1 / len(users)


def _visible_gpus(nvml: Any) -> list[Any]:
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    if not named:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return [
        nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)
        for name in named
    ]
