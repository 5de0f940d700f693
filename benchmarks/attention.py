"""Implementations of attention in a whole training step on CPU: milliseconds, temporaries, seconds of compilation.

    python benchmarks/attention.py [CASE …] [--attention einsum blockwise] [--rounds 5] [--no-times] [--json]

Every implementation steps in turn in this process, on the same batch; the losses of the first step are printed beside.
Cases: c2 to c5 as in benchmarks/README.md, and gpt2-T: four layers of GPT-2 124M's sizes without its large vocabulary,
1024 tokens a step in rows of T. Temporaries are what XLA says (`compiled.memory_analysis()`). See benchmarks/README.md.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import config as configs
from jaxformer.devices import prepare_process
from jaxformer.devices.sharding import activations_mesh, make_mesh
from jaxformer.runs.learner import step_settings
from jaxformer.runs.loading import build_model
from jaxformer.training.compiled import compiled_steps

NO_DROPOUT = tuple(f"model.{name}=0" for name in ("dropout", "attention_dropout", "hidden_dropout", "final_dropout"))


def _gpt2(layers: int, width: int, heads: int, ids: int, length: int) -> tuple[str, ...]:
    return (
        f"model.num_layers={layers}", f"model.d_model={width}", f"model.num_heads={heads}", f"model.d_ff={4 * width}",
        f"model.head_dim={width // heads}", f"model.vocab_size={ids}", f"model.max_length={max(length, 1024)}",
        f"objective.sequence_length={length}",
    )  # fmt: skip


# Config, overrides, rows.
CASES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "c2": ("gpt2:124m", _gpt2(6, 384, 6, 8192, 256), 8),
    "c3": ("gpt2:124m", _gpt2(12, 768, 12, 50_257, 256), 1),
    "c4": (
        "bert:base",
        ("objective.sequence_length=128", "objective.max_predictions=20", "objective.next_sentence=False"),
        8,
    ),
    "c5": ("t5:60m", ("objective.z_loss=0",), 2),
    **{f"gpt2-{length}": ("gpt2:124m", _gpt2(4, 768, 12, 512, length), max(1024 // length, 1))
       for length in (128, 256, 512, 1024, 2048)},
}  # fmt: skip


def _batch(config: Any, rows: int) -> dict[str, jax.Array]:
    rng, arrays = np.random.default_rng(0), {}
    for name, (shape, dtype) in config.supervision.shapes.items():
        if name.endswith(("segment_ids", "weights")):
            arrays[name] = np.ones((rows, *shape), dtype)
        elif name.endswith("positions"):
            arrays[name] = np.broadcast_to(np.arange(shape[-1], dtype=dtype), (rows, *shape))
        else:
            arrays[name] = rng.integers(0, 2 if "type" in name else 500, (rows, *shape)).astype(dtype)
    return {name: jnp.asarray(array) for name, array in arrays.items()}


def _step(case: str, attention: str, more: tuple[str, ...]) -> tuple[Any, list[Any], dict[str, Any]]:
    """Return the compiled step, its arguments, and what is known of it before it runs."""
    spec, overrides, rows = CASES[case]
    sizes = (f"training.batch_size={rows}", "training.phases=()", "evaluation.batch_size=8", "sharding.data=1")
    config = configs.load(spec, [*sizes, *overrides, *NO_DROPOUT, f"training.attention={attention}", *more])
    mesh = make_mesh(config.sharding)
    model = build_model(config, config.supervision, activations_mesh(config.sharding, mesh))
    steps = compiled_steps(model, step_settings(config, config.supervision, config.phases[-1]), mesh)
    arguments = [steps.make_state(jax.random.key(0)), _batch(config, rows), jax.random.key(1), jnp.float32(1e-4)]
    began = time.perf_counter()
    compiled = steps.train_step.lower(*arguments).compile()
    found = compiled.memory_analysis()
    seconds = time.perf_counter() - began
    return compiled, arguments, {"temporaries_mb": found.temp_size_in_bytes / 1e6, "compile_seconds": seconds}


def measure(case: str, attentions: list[str], rounds: int, more: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return what was found of each implementation."""
    steps, found = {}, {}
    for attention in attentions:
        step, arguments, found[attention] = _step(case, attention, more)
        if rounds:
            arguments[0], metrics = step(*arguments)
            found[attention]["loss"] = float(metrics["loss"])
            steps[attention] = (step, arguments, [])
    for _ in range(rounds):
        for step, arguments, times in steps.values():
            began = time.perf_counter()
            arguments[0], metrics = step(*arguments)
            jax.block_until_ready((arguments[0], metrics))
            times.append(1000 * (time.perf_counter() - began))
    for attention, (_, _, times) in steps.items():
        found[attention] |= {"median_ms": statistics.median(times), "least_ms": min(times)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--attention", nargs="+", default=["einsum", "blockwise"], help="default: einsum blockwise")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each (default: 5)")
    parser.add_argument("--no-times", action="store_true", help="compile only")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of the config")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    prepare_process()
    jax.config.update("jax_enable_compilation_cache", False)  # seconds of compilation are asked for
    for case in args.cases or CASES:
        found = measure(case, args.attention, 0 if args.no_times else args.rounds, tuple(args.set))
        if args.json:
            print(json.dumps({case: found}), flush=True)
            continue
        for attention, values in found.items():
            figures = ", ".join(f"{name} {value:,.4f}" if name == "loss" else f"{name} {value:,.1f}"
                                for name, value in values.items())  # fmt: skip
            print(f"{case} {attention}: {figures}", flush=True)


if __name__ == "__main__":
    main()
