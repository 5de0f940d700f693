"""How cost grows: step time, memory and compile time of a small GPT-2 along one axis at a time, beside their formulas.

    python benchmarks/growth.py                     # what was not measured yet, then the page; a quarter of an hour
    python benchmarks/growth.py --axes depth fsdp   # some axes
    python benchmarks/growth.py --page              # the page and its picture, from what was measured

Each point is a process of its own and is written to results/growth-cpu.json at once; one that is there is not measured
again (one that failed is). Delete the file for new figures. See benchmarks/README.md.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BASE = {"depth": 4, "width": 256, "length": 128, "batch": 4, "vocabulary": 4096}
HEAD = 64  # width of a head; of 32 where a mesh splits heads over up to 8 devices
AXES: dict[str, tuple[int, ...]] = {
    "depth": (1, 2, 4, 8, 16, 24),
    "width": (128, 256, 512, 768, 1024),
    "length": (64, 128, 256, 512, 1024, 2048),
    "batch": (1, 2, 4, 8, 16, 32),
    "vocabulary": (1024, 4096, 16_384, 65_536),
    # Numbers of fake CPU devices along an axis of the mesh: compiled only.
    "data": (2, 4, 8),
    "fsdp": (2, 4, 8),
    "tensor": (2, 4, 8),
    "checkpoint": (10, 40, 150, 500, 1500),  # megabytes of state
}
MESH_AXES = ("data", "fsdp", "tensor")
REFERENCE = BASE | dict.fromkeys(MESH_AXES, 2) | {"checkpoint": 150}  # what growth is counted from
WARM_UP, STEPS, SECONDS = 2, 9, 6.0  # steps that are not counted; at most so many that are, in at most so many seconds
SIZES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "f16": 2, "bf16": 2, "s8": 1, "u8": 1, "pred": 1}
COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
# The devices that exchange: all groups, the groups' number and size, or a mesh and those of its axes.
GROUPS = re.compile(
    r"replica_groups=(\{\{(?P<first>[\d,]+)\}|\[\d+,(?P<size>\d+)\]|mesh\[(?P<mesh>[^\]]*)\] \{(?P<axes>[^}]*)\})"
)


def key_of(axis: str, value: int) -> str:
    """Return the name of a point; all axes share the base. What is on no axis is a point of its own."""
    return "base" if BASE.get(axis) == value else f"{axis}/{value}" if axis in AXES else axis


# What a child measures.


def config_of(axis: str, value: int) -> Any:
    from jaxformer import config as configs

    sizes = BASE | ({axis: value} if axis in BASE else {"batch": 8})
    head = 32 if axis in MESH_AXES else HEAD
    mesh = {"data": 1} | ({axis: value} if axis in MESH_AXES else {})
    return configs.load("gpt2:124m,small", [
        f"model.num_layers={sizes['depth']}", f"model.d_model={sizes['width']}", f"model.d_ff={4 * sizes['width']}",
        f"model.num_heads={sizes['width'] // head}", f"model.head_dim={head}",
        f"model.vocab_size={sizes['vocabulary']}",
        f"model.max_length={sizes['length']}", f"objective.sequence_length={sizes['length']}",
        f"tokenizer.vocab_size={sizes['vocabulary']}", f"training.batch_size={sizes['batch']}",
        "training.compute_dtype=float32", *(f"sharding.{name}={size}" for name, size in mesh.items()),
    ])  # fmt: skip


def step_point(axis: str, value: int) -> dict[str, Any]:
    """Return what the training step of one point takes; over several devices it is compiled only."""
    from jaxformer.devices.runtime import prepare_process

    prepare_process()
    import jax
    import jax.numpy as jnp

    from jaxformer.devices.sharding import activations_mesh, make_mesh, placed, split
    from jaxformer.planning.plan import make_plan
    from jaxformer.runs.learner import step_settings
    from jaxformer.runs.loading import build_model
    from jaxformer.training.compiled import compiled_steps
    from jaxformer.training.flops import step_flops

    config = config_of(axis, value)
    mesh = make_mesh(config.sharding)
    model = build_model(config, config.supervision, activations_mesh(config.sharding, mesh))
    steps = compiled_steps(model, step_settings(config, config.supervision, config.phases[-1]), mesh)
    rng, rate = jax.random.key(0), jnp.float32(1e-4)
    shapes = {
        name: jax.ShapeDtypeStruct((config.training.batch_size, *shape), dtype, sharding=split(mesh))
        for name, (shape, dtype) in config.supervision.shapes.items()
    }
    state = placed(jax.eval_shape(steps.make_state, rng), steps.shardings)
    began = time.perf_counter()
    traced = steps.train_step.trace(state, shapes, rng, rate)
    then = time.perf_counter()
    lowered = traced.lower()
    after = time.perf_counter()
    compiled = lowered.compile()
    times = {"trace": then - began, "lower": after - then, "compile": time.perf_counter() - after}
    memory, plan = compiled.memory_analysis(), make_plan(config, num_devices=mesh.size)["bytes_per_device"]
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = {name: round(seconds, 3) for name, seconds in times.items()} | {
        "bytes": memory.temp_size_in_bytes + arguments,
        "planned_bytes": plan["total"],
        "flops": step_flops(config.phases, model, config.supervision, None)(1),
    }
    if mesh.size > 1:
        leaves = jax.tree.leaves(state.params)
        parameters = 4 * sum(leaf.size for leaf in leaves)
        divided = 4 * sum(leaf.size for leaf in leaves if not leaf.sharding.is_fully_replicated)
        activation = 4 * BASE["width"] * BASE["length"] * config.training.batch_size
        sent = collective_bytes(compiled.as_text())
        return found | {
            "sent": sent,
            "sent_bytes": sum(sent.values()),
            "formula_bytes": FORMULAS[axis](value, parameters, divided, activation, BASE["depth"]),
        }
    batch = {name: made(name, shape, config.model.vocab_size) for name, shape in shapes.items()}
    return found | timed(compiled, steps.make_state(rng), batch, rng, rate)


def made(name: str, shape: Any, vocabulary: int) -> Any:
    """Return a full batch's array: random ids, places, and ones (segments, weights)."""
    import jax
    import numpy as np

    values: Any = np.ones(shape.shape)
    if name == "positions":
        values = np.broadcast_to(np.arange(shape.shape[-1]), shape.shape)
    if name in ("inputs", "targets"):
        values = np.random.default_rng(0).integers(0, vocabulary, shape.shape)
    return jax.device_put(values.astype(shape.dtype), shape.sharding)


def timed(compiled: Any, state: Any, batch: Any, rng: Any, rate: Any) -> dict[str, Any]:
    """Run steps and return their median seconds, seconds of CPU, page faults and the process's peak."""
    import jax

    seconds, spent, faults = [], [], []
    began = time.perf_counter()
    least, most = WARM_UP + 3, WARM_UP + STEPS
    while len(seconds) < least or (len(seconds) < most and time.perf_counter() - began < SECONDS):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        state, metrics = compiled(state, batch, rng, rate)
        jax.block_until_ready((state, metrics))
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds.append(time.perf_counter() - start)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        faults.append(after.ru_minflt - before.ru_minflt)
    return {
        "step": statistics.median(seconds[WARM_UP:]),
        "step_cpu": statistics.median(spent[WARM_UP:]),
        "steps": [round(each, 4) for each in seconds],
        "faults": faults,
        "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def checkpoint_point(megabytes: int) -> dict[str, Any]:
    """Return seconds of saving and restoring a state of this size, and its bytes on disk."""
    from jaxformer.devices.runtime import prepare_process

    prepare_process()
    import jax
    import numpy as np

    from jaxformer.checkpoint.manager import CheckpointConfig, Checkpoints

    arrays = 24
    size = megabytes * 10**6 // 4 // arrays
    rng = np.random.default_rng(0)
    state = {f"array_{number}": jax.device_put(rng.random(size, np.float32)) for number in range(arrays)}
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    with tempfile.TemporaryDirectory(dir=os.environ.get("GROWTH_FOLDER")) as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", CheckpointConfig())
        checkpoints.save(1, {"first": jax.numpy.zeros(1)})  # starts what saving needs
        checkpoints.wait()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        checkpoints.save(2, state)
        copied = time.perf_counter()
        checkpoints.wait()
        written = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        restored = checkpoints.restore_latest(target)
        jax.block_until_ready(restored)
        read = time.perf_counter()
        checkpoints.close()
        disk = sum(path.stat().st_size for path in (Path(folder) / "checkpoints" / "2").rglob("*") if path.is_file())
    return {
        "state_bytes": 4 * size * arrays,
        "waits": copied - began,
        "save": written - began,
        "restore": read - written,
        "disk_bytes": disk,
        "added_rss": (peak - before) * 1024,
    }


def rate_point() -> dict[str, Any]:
    """Return the FLOPs per second of one large matrix product."""
    import jax
    import jax.numpy as jnp

    square = jnp.ones((2048, 2048), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        multiply(square, square).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return {"gemm": 2 * 2048**3 / statistics.median(seconds[2:])}


# Formulas.


def collective_bytes(text: str) -> dict[str, float]:
    """Return the bytes that each device sends in a compiled program, by kind of collective, as rings send them."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if (match := COLLECTIVE.search(line)) is None:
            continue
        n = group_size(line)
        size = array_bytes(match["result"])
        share = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1, "collective-permute": 1}
        kind = match["kind"]
        found[kind] = found.get(kind, 0.0) + share.get(kind, (n - 1) / n) * size
    return found


def group_size(line: str) -> int:
    """Return among how many devices a collective exchanges; 2 where it says pairs or nothing."""
    groups = GROUPS.search(line)
    if groups is None:
        return 2
    if groups["mesh"] is None:
        return int(groups["size"] or len(groups["first"].split(",")))
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", groups["mesh"])}
    return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", groups["axes"]))


def array_bytes(shapes: str) -> int:
    """Return the bytes of all arrays in a type as HLO writes it: f32[4,8]{1,0}, or several in parentheses."""
    total = 0
    for kind, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
        size = SIZES.get(kind, 0)
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size
    return total


def data_bytes(n: int, parameters: float, divided: float, activation: float, layers: int) -> float:
    """Gradients are added up."""
    return 2 * (n - 1) / n * parameters


def fsdp_bytes(n: int, parameters: float, divided: float, activation: float, layers: int) -> float:
    """What is divided is gathered once (unrolled layers keep it for the backward pass) and its gradient added up in
    parts; the rest as under `data`."""
    return (n - 1) / n * (2 * divided + 2 * (parameters - divided))


def tensor_bytes(n: int, parameters: float, divided: float, activation: float, layers: int) -> float:
    """Two sums of activations a layer, forward and backward (Megatron-LM), one for the look-up, one for the head."""
    return 2 * (n - 1) / n * (4 * layers + 2) * activation


FORMULAS: Mapping[str, Callable[[int, float, float, float, int], float]] = {
    "data": data_bytes, "fsdp": fsdp_bytes, "tensor": tensor_bytes,
}  # fmt: skip


# Processes.


def measure(axis: str, value: int) -> dict[str, Any]:
    """Measure a point in a process of its own; {"error": its last words} if that fails."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if axis in MESH_AXES:
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    watch = Watch()
    command = [sys.executable, __file__, "--point", axis, str(value)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        return {"error": "took more than 300 seconds"}
    if done.returncode:
        return {"error": " ".join(done.stderr.strip().splitlines()[-1:])[-300:] or f"exit code {done.returncode}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"foreign": round(watch.foreign(), 3)}


class Watch:
    """Measures which share of the CPUs that this process may use others took since it was made."""

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.monotonic(), self._busy(), self._own()

    def _busy(self) -> float:
        lines = Path("/proc/stat").read_text().splitlines() if Path("/proc/stat").exists() else []
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)} if lines else set()
        rows = [line.split() for line in lines]
        # user, nice, system, irq, softirq, steal
        ticks = sum(int(row[place]) for row in rows if row[0] in allowed for place in (1, 2, 3, 6, 7, 8))
        return ticks / os.sysconf("SC_CLK_TCK")

    def _own(self) -> float:
        spent = os.times()
        return spent.user + spent.system + spent.children_user + spent.children_system

    def foreign(self) -> float:
        others = (self._busy() - self.busy) - (self._own() - self.own)
        return max(others, 0.0) / (max(time.monotonic() - self.began, 1e-3) * cores())


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def about() -> dict[str, Any]:
    import importlib.metadata

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS, capture_output=True, text=True)
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "cpu": model,
        "cores": cores(),
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "base": BASE,
    }


def stored(path: Path) -> dict[str, Any]:
    """Return what was measured so far."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else about() | {"points": {}}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="*", default=list(AXES), choices=AXES, metavar="AXIS", help="default: all")
    parser.add_argument("--output", type=Path, default=RESULTS / "growth-cpu.json", help="default: %(default)s")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        axis, value = args.point[0], int(args.point[1])
        kinds = {"rate": rate_point, "checkpoint": lambda: checkpoint_point(value)}
        print("\n" + json.dumps(kinds.get(axis, lambda: step_point(axis, value))()))
        return
    wanted = [("rate", 0), *((axis, value) for axis in args.axes for value in AXES[axis])]
    for axis, value in [] if args.page else wanted:
        key = key_of(axis, value)
        if "error" not in stored(args.output)["points"].get(key, {"error": ""}):
            continue
        began = time.monotonic()
        point = measure(axis, value)
        results = stored(args.output)  # another one may be measuring other axes
        results["points"][key] = point
        args.output.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{key}: {time.monotonic() - began:.0f} s {point.get('error', '')}", flush=True)
    from growth_page import write_page

    write_page(stored(args.output), AXES, REFERENCE, args.output.with_suffix(".md"))


if __name__ == "__main__":
    main()
