"""What a sweep costs beside its training: ten trials of bert:smoke that differ in learning rate, in one process.

    python benchmarks/sweep.py                        # the cache is warm, but for the study; about ten minutes
    python benchmarks/sweep.py --cold                 # nothing is cached: corpus, tokenizer, compiled programs
    python benchmarks/sweep.py --output benchmarks/results    # and write sweep-cpu.json and sweep-cpu.md
    python benchmarks/sweep.py --trials 2 --steps 60 --anyway # a try

The command is `jaxformer sweep`, from its start to its end. Its seconds are divided by the pure training time: of each
trial the steps that it took, times the median of the seconds a step that its log has. See benchmarks/README.md.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

MOST = 1.15  # times the pure training time
# Where the seconds go, as (what, module, function or Class.function): those that call each other are counted once.
PARTS = (
    ("data: tokenizer, store, row index", "jaxformer.runs.loop", "prepare_data"),
    ("learner: model, random numbers", "jaxformer.runs.loop", "build_learner"),
    ("state: made, the step compiled beside it", "jaxformer.runs.loop", "start_state"),
    ("evaluation", "jaxformer.runs.loop", "evaluate"),
    ("checkpoints: copied", "jaxformer.runs.loop", "save"),
    ("checkpoints: waited for", "jaxformer.checkpoint.manager", "Checkpoints.wait"),
    ("energy: the tracker's end", "jaxformer.footprint.measure", "Footprint.stop"),
    ("search: Optuna's journal", "jaxformer.studies.searching", "Search.asked"),
    ("search: Optuna's journal", "jaxformer.studies.searching", "Search.ask"),
    ("search: Optuna's journal", "jaxformer.studies.searching", "Search.tell"),
    ("checkpoints that are not kept: deleted", "jaxformer.studies.working", "keep_checkpoints"),
    ("page and best point", "jaxformer.studies.sweeping", "finish"),
)
TRAINING = ("evaluation", "checkpoints: copied", "checkpoints: waited for")  # what is a training's own work, too


def child(words: list[str]) -> int:
    """Be the command, and print the seconds of each part as the last line."""
    began, seconds, inside = time.time() - harness.since_start(), dict.fromkeys((part for part, *_ in PARTS), 0.0), []
    command = importlib.import_module("jaxformer.cli.main")

    def timed(part: str, function: Any) -> Any:
        def called(*args: Any, **given: Any) -> Any:
            if inside:
                return function(*args, **given)
            inside.append(part)
            start = time.perf_counter()
            try:
                return function(*args, **given)
            finally:
                seconds[part] += time.perf_counter() - start
                inside.clear()

        return called

    for part, module, path in PARTS:
        place = importlib.import_module(module)
        *classes, name = path.split(".")
        for inner in classes:
            place = getattr(place, inner)
        setattr(place, name, timed(part, getattr(place, name)))
    imported = time.time() - began
    code: int = command.main(words)
    print("\n" + json.dumps({"start of Python, imports": imported} | seconds))
    return code


def swept(folder: Path, name: str, trials: int, steps: int, cache: Path) -> dict[str, Any]:
    """Run a sweep as a fresh process; return its seconds, those of its parts and of its trials' steps."""
    rates = ",".join(f"{1e-4 * (number + 1):g}" for number in range(trials))
    words = ["sweep", "--config=bert:smoke", f"--sweep.optimizer.learning_rate={rates}", f"--study={folder / name}"]
    words += ["--quiet"] + ([f"--config.training.num_steps={steps}"] if steps else [])
    env = harness.environment("ours", folder) | {"JAXFORMER_CACHE": str(cache)}
    watch, began = harness.Watch(), time.time()
    command = [sys.executable, __file__, "--child", *words]
    done = subprocess.run(
        command, env=env | {"BENCHMARK_STARTED": repr(began)}, capture_output=True, text=True, check=False
    )
    wall = time.time() - began
    if done.returncode:
        raise harness.Failed(f"the sweep failed: {done.stderr.strip()[-500:]}")
    logs = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((folder / name / "trials").glob("*/metrics.jsonl"))
    ]
    trained = [[line for line in log if "train/step_seconds" in line] for log in logs]
    assert len(logs) == trials
    return {
        "command": " ".join(["jaxformer", *words]),
        "wall": wall,
        "foreign_share": watch.foreign(),
        "pure": [log[-1]["step"] * statistics.median(line["train/step_seconds"] for line in log) for log in trained],
        "logged": [log[-1]["train/seconds"] for log in trained],
        "losses": [next(line["eval/loss"] for line in reversed(log) if "eval/loss" in line) for log in logs],
        "parts": json.loads(done.stdout.splitlines()[-1]),
    }


def summary(run: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios, and the rows that add up to the whole command."""
    pure, logged, parts = sum(run["pure"]), sum(run["logged"]), run["parts"]
    own = sum(parts[part] for part in TRAINING)
    rows = {"steps, by their median": pure, "steps slower than their median": logged - pure} | parts
    rows["all else: first calls of programs, records, end of the process"] = run["wall"] - logged - sum(parts.values())
    return {"ratio": run["wall"] / pure, "with_own_work": run["wall"] / (pure + own), "rows": rows}


def page(record: dict[str, Any]) -> str:
    run, found = record["run"], record["summary"]
    rows = [f"| {part} | {seconds:.1f} | {seconds / run['wall']:.1%} |" for part, seconds in found["rows"].items()]
    return "\n".join([
        "# A sweep beside its training", "",
        f"{len(run['pure'])} trials of `bert:smoke` that differ in learning rate, one after the other in one process, "
        f"{record['cache']} cache; {record['date']}, {record['device']}, Python {record['versions']['python']}, "
        f"jax {record['versions'].get('jax', '')}, commit {record['commit']}; others took "
        f"{run['foreign_share']:.0%} of the machine. Written by `python benchmarks/sweep.py --output`.", "",
        f"**The command takes {found['ratio']:.3f} times its pure training time** (at most {MOST}: "
        f"{'met' if found['ratio'] <= MOST else 'missed'}): {run['wall']:.1f} s from its start to its end, and of each "
        "trial the number of its steps times the median of the seconds a step that its log has, "
        f"{sum(run['pure']):.1f} s together. Where the evaluation and the checkpoint at the end of each run count as "
        f"training, too, it is {found['with_own_work']:.3f} times.", "",
        "| where the time goes | s | of the command |", "| --- | ---: | ---: |", *rows, "",
    ])  # fmt: skip


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", action="store_true", help="with nothing cached")
    parser.add_argument("--trials", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="of each (default: the experiment's)")
    parser.add_argument("--anyway", action="store_true", help="measure also where the machine is not idle")
    parser.add_argument("--output", type=Path, help="folder for sweep-cpu.json and sweep-cpu.md; default: none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not args.cold:
            swept(folder, "before", 1, 51, folder / "cache")  # the fewest steps that its warm-up allows
        if not args.anyway and (share := harness.wait_until_idle()) >= harness.BEFORE:
            parser.error(f"others take {share:.0%} of the machine; --anyway measures all the same")
        run = swept(folder, "study", args.trials, args.steps, folder / "cache")
    record = harness.about() | {"cache": "cold" if args.cold else "warm", "run": run, "summary": summary(run)}
    text = page(record)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "sweep-cpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (args.output / "sweep-cpu.md").write_text(text, encoding="utf-8")
    print(text)
    return int(record["summary"]["ratio"] > MOST)


if __name__ == "__main__":
    sys.exit(main())
