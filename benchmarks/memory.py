"""What each memory lever saves: bytes of a compiled training step, one lever at a time and all together.

    python benchmarks/memory.py [--config gpt2:124m] [--rows 8] [--json]

Nothing is run and no parameter is made: XLA says what the compiled program will hold (`compiled.memory_analysis()`;
on CPU temporaries + arguments + outputs - what is shared between them). See benchmarks/README.md.
"""

import argparse
import json
import os
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp

from jaxformer import config as configs
from jaxformer.devices.sharding import activations_mesh, make_mesh, placed, split
from jaxformer.runs.learner import step_settings
from jaxformer.runs.loading import build_model
from jaxformer.training.compiled import compiled_steps

SCAN = "training.unroll_layers=1"
LEVERS: dict[str, tuple[str, ...]] = {
    "none (layers unrolled)": (),
    "scan over layers": (SCAN,),
    "remat=dots, scan": (SCAN, "training.remat=dots"),
    "remat=full, scan": (SCAN, "training.remat=full"),
    "logits_chunk=128": ("training.logits_chunk=128",),
    "accumulation_steps=4": ("training.accumulation_steps=4",),
    "moment_dtype=bfloat16": ("optimizer.moment_dtype=bfloat16",),
    "compute_dtype=bfloat16": ("training.compute_dtype=bfloat16",),
    "state not donated": (),
    "remat=full, scan, chunk, accumulation, moments": (
        SCAN, "training.remat=full", "training.logits_chunk=128", "training.accumulation_steps=4",
        "optimizer.moment_dtype=bfloat16",
    ),
    "fsdp=8, of one device": ("sharding.data=1", "sharding.fsdp=8"),
    "tensor=4 x data=2, of one device": ("sharding.data=2", "sharding.tensor=4", "model.vocab_multiple=4"),
}  # fmt: skip


def analyse(spec: str, overrides: tuple[str, ...], rows: int, donate: bool = True) -> dict[str, float]:
    """Return megabytes of the compiled step by kind, and the seconds that compiling took."""
    sizes = (f"training.batch_size={rows}", "training.phases=()", "evaluation.batch_size=8")
    one = () if any(override.startswith("sharding.") for override in overrides) else ("sharding.data=1",)
    config = configs.load(spec, [*sizes, *one, *overrides])
    mesh = make_mesh(config.sharding)
    model = build_model(config, config.supervision, activations_mesh(config.sharding, mesh))
    steps = compiled_steps(model, step_settings(config, config.supervision, config.phases[-1]), mesh)
    rng = jax.random.key(0)
    state = placed(jax.eval_shape(steps.make_state, rng), steps.shardings)
    batch = {
        name: jax.ShapeDtypeStruct((rows, *shape), jnp.dtype(dtype), sharding=split(mesh))
        for name, (shape, dtype) in config.supervision.shapes.items()
    }
    step = steps.train_step if donate else jax.jit(steps.train_step.__wrapped__)
    began = time.perf_counter()
    found = step.lower(state, batch, rng, jnp.float32(0.0)).compile().memory_analysis()
    sizes_mb = {
        "temporaries": found.temp_size_in_bytes,
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "shared": found.alias_size_in_bytes,
    }
    total = sum(sizes_mb.values()) - 2 * sizes_mb["shared"]
    megabytes = {name: round(size / 1e6, 1) for name, size in (sizes_mb | {"total": total}).items()}
    return megabytes | {"compile_seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="gpt2:124m", help="default: gpt2:124m")
    parser.add_argument("--rows", type=int, default=8, help="examples of a batch (default: 8)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    found = {}
    for name, overrides in LEVERS.items():
        found[name] = analyse(args.config, overrides, args.rows, donate=name != "state not donated")
        if not args.json:
            if len(found) == 1:
                print(f"| {args.config}, {args.rows} rows | {' | '.join(found[name])} |")
                print("| --- " + "| ---: " * len(found[name]) + "|")
            print(f"| {name} | " + " | ".join(f"{value:,}" for value in found[name].values()) + " |", flush=True)
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
