"""Where the time of a training step goes: each operation of the compiled program, grouped by the part that it is of.

    python benchmarks/step_profile.py c2                 # of the comparisons C1 to C5; one core: taskset -c 0 python …
    python benchmarks/step_profile.py c3 --operations 30

Times are those of XLA's own profiler on CPU: what runs side by side counts twice. See results/step-cpu.md.
"""

import argparse
import collections
import glob
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_xprof_traceme=true"
sys.path.insert(0, str(Path(__file__).parent))

STEPS = 4
# What an operation is of, by the path that JAX gives it: the first pattern that is found counts.
PARTS = (
    ("vocabulary: products", r"vocabulary.*dot_general|project.*dot_general"),
    ("loss", r"project|jvp\(\)|transpose\(jvp\(\)\)"),
    ("attention: products", r"attention/[^/]*(BHTS|BTHK|BHTK|BHKT|BHKS)[^/]*/"),
    ("linear maps of attention", r"(query|key|value|attention/output)/.*dot_general"),
    ("feed-forward: products", r"feed_forward/(input|output|gate)/.*dot_general"),
    ("norms", r"norm/"),
    ("attention: all else", r"attention"),
    ("feed-forward: all else", r"feed_forward"),
    ("residuals, embeddings, stacks", r"DecoderOnly|EncoderOnly|EncoderDecoder"),
    ("optimizer, clipping", r"jit\(train_step\)"),
)


def part_of(path: str) -> str:
    return next((part for part, pattern in PARTS if re.search(pattern, path)), "not named")


def operations(text: str) -> dict[str, tuple[str, str]]:
    """Return (path, shape of the result) of every operation in a compiled program's text, by its name."""
    found = {}
    for line in text.splitlines():
        named = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\S+)", line)
        if named:
            path = re.search(r'op_name="([^"]*)"', line)
            found[named[1]] = (path[1] if path else "", re.sub(r"\{.*", "", named[2]))
    return found


def profiled(case: str) -> tuple[dict[str, float], dict[str, tuple[str, str]]]:
    """Return milliseconds a step of every operation, and what `operations` says of them."""
    import jax
    from harness import find
    from trainers import batch_of, learner_of

    from jaxformer.devices import place, prepare_process

    prepare_process()
    side: Any = find(case, case).sides["ours"]
    learner = learner_of(side.args[0])
    state = learner.last.make_state(learner.rngs[0])
    batch = place(learner.mesh, batch_of(learner.config, 0))
    step = learner.last.train_step.lower(state, batch, learner.rngs[1], 1e-4).compile()
    for _ in range(2):
        state, _ = step(state, batch, learner.rngs[1], 1e-4)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    found, known = collections.Counter[str](), operations(step.as_text())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(STEPS):
                state, _ = step(state, batch, learner.rngs[1], 1e-4)
            jax.block_until_ready(state)
        (file,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        for plane in jax.profiler.ProfileData.from_file(file).planes:
            for line in plane.lines:
                for event in line.events:
                    if event.name in known:
                        found[event.name] += event.duration_ns / 1e6 / STEPS
    return found, known


def table(rows: collections.Counter[str], counts: collections.Counter[str]) -> str:
    total = sum(rows.values())
    lines = [f"| {name} | {counts[name]} | {time:.1f} | {time / total:.0%} |" for name, time in rows.most_common()]
    return "\n".join(["| | operations | ms | share |", "| --- | ---: | ---: | ---: |", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("c1", "c2", "c3", "c4", "c5"))
    parser.add_argument(
        "--operations", type=int, default=0, help="also the so many groups of operations that take longest"
    )
    args = parser.parse_args()
    times, known = profiled(args.case)
    rows, counts = collections.Counter[str](), collections.Counter[str]()
    groups, sizes = collections.Counter[str](), collections.Counter[str]()
    for name, time in times.items():
        path, shape = known[name]
        rows[part_of(path)] += time
        counts[part_of(path)] += 1
        group = f"{re.sub(r'[.0-9]+$', '', name)} {shape} {'/'.join(path.split('/')[-3:])}"
        groups[group] += time
        sizes[group] += 1
    print(f"{args.case}: {sum(rows.values()):.0f} ms of operations a step\n\n{table(rows, counts)}")
    if args.operations:
        most = collections.Counter(dict(groups.most_common(args.operations)))
        print(f"\n{table(most, sizes)}")


if __name__ == "__main__":
    main()
