"""What small models reach on real data: nine tasks from one small pretrained BERT, and translation from scratch.

    python benchmarks/finetuning.py --data=DIR --pretrained=RUN --output=DIR [NAME ...]

DIR/data holds the public data sets under the names that TASKS gives. Each run is trained, judged at its best checkpoint
and set beside what no model needs to be trained for. Results go to docs/results/finetuning.json, one entry a task, and
the table of docs/results/finetuning.md is written from it.
"""

import argparse
import collections
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt

from jaxformer.tasks import measure

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "finetuning.json"
PAGE = RESULTS.with_suffix(".md")
INTRODUCTION = """# What small models reach on real data

Written by `python benchmarks/finetuning.py`. All but the translation start from one BERT-tiny (2 layers of width 128,
WordPiece of 8192 tokens), pretrained for 4,000 steps of 32 x 128 tokens of English novels and arXiv abstracts. One seed
each; no hyperparameter was searched. The numbers say that every task works from end to end; so small a model, so
briefly trained, learns most of them a little, and RTE not at all. They say nothing of what these architectures can
reach.

"""
PACKAGES = ("jaxformer", "jax", "flax", "optax", "numpy")


class Task(NamedTuple):
    """A recipe with the keys that this data and a small model want, and what judges it first."""

    recipe: str
    metric: str
    baseline: str  # what is answered without a model
    keys: tuple[str, ...]
    # Further evaluations of the same run, each with the words that it takes.
    others: Mapping[str, tuple[str, ...]] = {}


def table(folder: str, train: str = "train.tsv", held_out: str = "dev.tsv") -> tuple[str, ...]:
    names = ("data.name=csv", f"data.path={folder}/{train}", f"data.validation_path={folder}/{held_out}")
    return (*names, "data.quoting=none")


def steps(number: int, length: int, batch_size: int = 32, rate: float = 3e-4, save_every: int = 0) -> tuple[str, ...]:
    every = number // 4
    return (
        f"training.num_steps={number}", f"training.eval_every={every}", f"checkpoint.every={save_every or every}",
        f"training.batch_size={batch_size}", f"task.sequence_length={length}", f"optimizer.learning_rate={rate}",
    )  # fmt: skip


GREEDY = ("generation.num_beams=1", "generation.length_alpha=0", "generation.extra_length=-1")
BEAMS = (
    "--config.generation.num_beams=4",
    "--config.generation.length_alpha=0.6",
    "--config.generation.extra_length=50",
)
# fmt: off
TASKS = {
    "SST-2": Task("glue:bert,sst2", "accuracy", "majority",
                  (*table("glue/SST-2", "train.tsv.xz"), *steps(1600, 64))),
    "CoLA": Task("glue:bert,cola", "matthews", "majority",
                 (*table("glue/CoLA"), "data.header=false", "data.label_field=2", "task.text_fields=4",
                  *steps(1600, 32))),
    "RTE": Task("glue:bert,rte", "accuracy", "majority", (*table("glue/RTE"), *steps(400, 128))),
    "STS-B": Task("glue:bert,stsb", "pearson", "majority",
                  (*table("glue/STS-B"), "data.label_field=score", *steps(1080, 64))),
    "AG News": Task("classify:bert", "accuracy", "majority",
                    ("data.name=csv", "data.path=ag_news/train10k.tsv.xz", "data.header=false", "data.quoting=none",
                     "data.validation_path=", "data.validation_share=0.1", "data.label_field=2", "task.text_fields=1",
                     *steps(1200, 64))),
    "WNUT-17": Task("ner:bert", "seqeval_f1", "majority",
                    ("data.path=wnut17/wnut17train.conll", "data.validation_path=wnut17/emerging.dev.conll",
                     *steps(1060, 64))),
    "CODAH": Task("choice:bert", "accuracy", "majority",
                  (*table("mc/codah", "fold0.train.tsv", "fold0.dev.tsv"), "data.header=false", "data.label_field=7",
                   "task.text_fields=2", "task.stem_fields=", "task.choice_fields=3,4,5,6", *steps(520, 48, 16))),
    "SQuAD, 5,000 questions": Task("squad:bert", "squad_f1", "whole context",
                                   ("data.path=squad_train5k/train.json.xz",
                                    "data.validation_path=squad_train5k/valid.json",
                                    *steps(1200, 128), "task.max_query_length=32", "task.doc_stride=64")),
    "Multi30k, English to German": Task(
        "translate:transformer,smoke", "bleu", "copy",
        ("data.name=parallel", "data.path=multi30k/train", "data.validation_path=multi30k/val", "data.test_path=",
         "data.languages=en,de", "tokenizer.vocab_size=4096", "model.vocab_size=4096", "task.target_length=32",
         *steps(1200, 32, 64, 2e-3, 60), "checkpoint.keep_last=5", *GREEDY),
        {"4 beams, alpha 0.6": ("--step=latest", *BEAMS), "mean of the last 5 checkpoints": ("--average=5",),
         "4 beams, alpha 0.6, mean of the last 5 checkpoints": ("--average=5", *BEAMS)}),
}
# fmt: on


def untrained(task: Task, data: Path, answers: Sequence[dict[str, Any]]) -> list[Any]:
    """Return what is answered without a model: the commonest class, the mean, no entity; the whole text that a question
    is about; the sentence that is to be translated as it stands."""
    truths = [answer["truth"] for answer in answers]
    if task.baseline == "copy":
        return (data / "multi30k" / "val.en").read_text(encoding="utf-8").splitlines()[: len(truths)]
    if task.baseline == "whole context":
        articles = json.loads((data / "squad_train5k" / "valid.json").read_text(encoding="utf-8"))["data"]
        paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
        return [paragraph["context"] for paragraph in paragraphs for _ in paragraph["qas"]]
    if isinstance(truths[0], float):
        return [statistics.fmean(truths)] * len(truths)
    if isinstance(truths[0], list):
        return [["O"] * len(truth) for truth in truths]
    return [collections.Counter(truths).most_common(1)[0][0]] * len(truths)


def command(verb: str, keys: Sequence[str], *words: str) -> list[str]:
    return ["jaxformer", verb, *words, *(f"--config.{key}" for key in keys)]


def run(words: Sequence[str], log: Path, folder: Path) -> float:
    """Run a command where the data is and return its seconds. Its words go to a log."""
    start = time.monotonic()
    with log.open("a") as file:
        done = subprocess.run([sys.executable, "-m", *words], stdout=file, stderr=subprocess.STDOUT, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)} ended with {done.returncode}; see {log}")
    return time.monotonic() - start


def measured(name: str, task: Task, data: Path, pretrained: Path, output: Path) -> dict[str, Any]:
    """Train and judge one task, and return what is known of it."""
    workdir = output / name.split(",")[0].replace(" ", "-").lower()
    keys = task.keys if "transformer" in task.recipe else (f"init_from={pretrained}", *task.keys)
    train = command("train", keys, f"--config=finetune/{task.recipe}", f"--workdir={workdir}")
    judge = command("evaluate", (), f"--workdir={workdir}", "--step=best")
    log = output / f"{workdir.name}.log"
    seconds = run(train, log, data), run(judge, log, data)
    others = {
        other: judged(["evaluate", f"--workdir={workdir}", *words, "--json"], task.metric, data)
        for other, words in task.others.items()
    }
    (path,) = (workdir / "results").glob("evaluate-validation-step-*.json")
    result = json.loads(path.read_text())
    answers = [json.loads(line) for line in path.with_suffix(".answers.jsonl").read_text().splitlines()]
    truths = [answer["truth"] for answer in answers]
    record = json.loads((workdir / "config.json").read_text())
    baseline = measure([task.metric], truths, untrained(task, data, answers), len(record["labels"]), record["labels"])
    shown = [word.replace(str(pretrained), "RUN") for word in train if not word.startswith("--workdir")]
    return {
        "command": shlex.join(shown),
        "metric": task.metric,
        "value": result["metrics"][task.metric],
        "interval": result["intervals"].get(task.metric),
        "baseline": baseline[task.metric] if math.isfinite(baseline[task.metric]) else None,
        "baseline_is": task.baseline,
        "examples": result["metrics"]["examples"],
        "step": result["step"],
        "seed": record["config"]["seed"],
        "parameters": record["num_parameters"],
        "train_seconds": round(seconds[0]),
        "evaluate_seconds": round(seconds[1]),
        "metrics": result["metrics"],
        "date": datetime.date.today().isoformat(),
        "commit": record["git_revision"],
        "python": platform.python_version(),
        "packages": {package: importlib.metadata.version(package) for package in PACKAGES},
        "cpus": len(os.sched_getaffinity(0)),
        "others": others,
    }


def judged(words: Sequence[str], metric: str, folder: Path) -> dict[str, Any]:
    """Return what an evaluation finds, and its command."""
    line = subprocess.run([sys.executable, "-m", "jaxformer", *words], check=True, capture_output=True, cwd=folder)
    found = json.loads(line.stdout)
    shown = shlex.join(word for word in words if not word.startswith("--workdir"))
    return {"command": f"jaxformer {shown}", "value": found[metric], "interval": found[f"{metric}_interval"]}


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw what was reached, with its interval, beside what is reached without a model."""
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(results) + 1), layout="constrained")
    scales = [100 if found["metric"] == "bleu" else 1 for found in results.values()]  # BLEU counts to 100
    for place, (found, scale) in enumerate(zip(results.values(), scales, strict=True)):
        low, high = (bound / scale for bound in found["interval"])
        axes.plot([low, high], [place, place], color="C0", linewidth=2)
        axes.plot(found["value"] / scale, place, "o", color="C0", label="reached, with its 95 % interval")
        if found["baseline"] is not None:
            axes.plot(found["baseline"] / scale, place, "x", color="0.4", label="without a model")
    titles = [f"{name} ({found['metric'].replace('_', ' ')})" for name, found in results.items()]
    axes.set(yticks=range(len(results)), yticklabels=titles, xlabel="metric (BLEU: of 100)", xlim=(-0.05, 1))
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    axes.legend(handles.values(), handles.keys(), loc="lower right")
    figure.savefig(path, dpi=120)


def page(results: dict[str, Any]) -> str:
    """Return the table that results make, and their commands."""
    columns = ("data", "metric", "reached (95 % interval)", "without a model", "examples", "training")
    lines = [f"| {' | '.join(columns)} |", "| --- | --- | --- | --- | ---: | ---: |"]
    for name, found in results.items():
        low, high = found["interval"] or (float("nan"),) * 2
        reached = f"{found['value']:.3g} ({low:.3g} to {high:.3g})"
        known = "not defined" if found["baseline"] is None else f"{found['baseline']:.3g}"
        baseline = f"{known} ({found['baseline_is']})"
        cells = (name, found["metric"], reached, baseline, f"{found['examples']:,}", f"{found['train_seconds']} s")
        lines.append(f"| {' | '.join(cells)} |")
        for other, one in found.get("others", {}).items():
            reached = "{:.3g} ({:.3g} to {:.3g})".format(one["value"], *one["interval"])
            lines.append(f"| the same run, {other} | {found['metric']} | {reached} | | {found['examples']:,} | |")
    commands = [
        "\n".join([f"# {name}, {found['date']}", found["command"], *(one["command"] for one in others.values())])
        for name, found in results.items()
        for others in [found.get("others", {})]
    ]
    return "\n".join([*lines, "", "```", *commands, "```", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(TASKS)}")
    parser.add_argument("--data", type=Path, help="the folder of the data sets")
    parser.add_argument("--pretrained", type=Path, help="the run that they start from")
    parser.add_argument("--output", type=Path, help="where runs and logs go")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in TASKS]:
        parser.error(f"no task {unknown[0]}; there are {', '.join(TASKS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if args.data:
        args.output.mkdir(parents=True, exist_ok=True)
        for name in args.names or TASKS:
            output, pretrained = args.output.resolve(), args.pretrained.resolve()
            results[name] = measured(name, TASKS[name], args.data.resolve(), pretrained, output)
            print(name, results[name]["value"], results[name]["baseline"], results[name]["train_seconds"], flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps({each: results[each] for each in TASKS if each in results}, indent=1) + "\n")
    draw(results, PAGE.with_suffix(".png"))
    PAGE.write_text(f"{INTRODUCTION}![What was reached]({PAGE.stem}.png)\n\n{page(results)}", encoding="utf-8")


if __name__ == "__main__":
    main()
