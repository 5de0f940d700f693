"""What pretraining is worth, shown on the built-in corpus: one pretraining, then fine-tunings from it and from scratch.

Both arms get the same labels, steps and seeds, and each its own learning rate, chosen on the validation split; what is
reported is accuracy on the test split.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

from jaxformer import config as configs
from jaxformer import report
from jaxformer.errors import UserError
from jaxformer.footprint import read_emissions
from jaxformer.progress import Display
from jaxformer.run import read_metrics, write_json
from jaxformer.train import train

ARMS = ("pretrained", "scratch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to pretrain, which fine-tunings to compare ({labels: steps}), with which seeds and learning rates."""

    pretraining_steps: int
    steps: dict[int, int]
    seeds: tuple[int, ...] = (1, 2, 3)
    rates: dict[str, tuple[float, ...]]
    pretraining: tuple[str, ...] = ()
    fine_tuning: tuple[str, ...] = ()
    init: tuple[str, ...] = ()


PLANS = {
    "bert": Plan(
        pretraining_steps=900,
        steps={50: 40, 200: 80, 800: 160},
        rates={"pretrained": (3e-4, 1e-3), "scratch": (1e-3, 3e-3)},
        init=(
            "checkpoint.init_skip=vocabulary/.*,row_heads/next_sentence/.*",
            "checkpoint.init_new=row_heads/label/.*",
        ),
    ),
    "gpt": Plan(
        pretraining_steps=600,
        steps={50: 40, 200: 80, 800: 160},
        rates={"pretrained": (3e-4, 1e-3), "scratch": (1e-3, 3e-3)},
        init=("checkpoint.init_new=row_heads/.*",),
    ),
    "t5": Plan(
        pretraining_steps=600,
        steps={50: 40, 200: 80, 800: 160},
        rates={"pretrained": (3e-3, 1e-2), "scratch": (3e-3, 1e-2)},
    ),
}


def demo(family: str, output: Path) -> None:
    """Run the demonstration of one family, or of all; show a table and write a page into `output`/FAMILY."""
    for name in PLANS if family == "all" else (family,):
        _study(name, PLANS[name], output / name)


def _study(family: str, plan: Plan, output: Path) -> None:
    began = time.monotonic()
    if any(output.glob("*/config.json")):
        raise UserError(f"{output} holds an earlier demonstration; remove it or choose another --output")
    with Display() as display:
        base = output / "pretraining"
        display.note(f"1. {family}: train a tokenizer and pretrain on the documentation of the standard library")
        overrides = (f"training.num_steps={plan.pretraining_steps}", "checkpoint.every=0", *plan.pretraining)
        train(configs.load(f"{family}:smoke", overrides), base, display=display)

        display.note("2. choose each arm's learning rate on the validation split")
        middle = sorted(plan.steps)[len(plan.steps) // 2]
        rates = {}
        for arm in ARMS:
            scores = {
                rate: _fine_tune(family, plan, output, arm, middle, 0, rate, "validation", display)["eval/accuracy"]
                for rate in plan.rates[arm]
            }
            rates[arm] = max(scores, key=lambda rate: scores[rate])
            display.note(f"   {arm}: {rates[arm]:g} of {', '.join(f'{r:g} ({a:.3f})' for r, a in scores.items())}")

        display.note("3. fine-tune from the checkpoint and from scratch, and judge on the test split")
        points: list[dict[str, Any]] = []
        for labels, steps in plan.steps.items():
            for arm in ARMS:
                runs: list[dict[str, float]] = [
                    _fine_tune(family, plan, output, arm, labels, seed, rates[arm], "test", display)
                    for seed in plan.seeds
                ]
                point: dict[str, Any] = {"labels": labels, "arm": arm, "learning_rate": rates[arm], "steps": steps}
                point["seeds"] = [run["eval/accuracy"] for run in runs]
                point["f1"] = [run["eval/f1"] for run in runs]
                point["energy_wh"] = [run["energy_wh"] for run in runs]
                points.append(point)
                accuracy = statistics.mean(run["eval/accuracy"] for run in runs)
                display.note(f"   {labels} labels, {arm}: accuracy {accuracy:.3f}")
    emissions = read_emissions(base)
    study: dict[str, Any] = {"family": family, "task": "area of the standard library", "points": points}
    study["pretraining"] = {
        "energy_wh": emissions.energy_kwh * 1e3,
        "emissions_g": emissions.emissions_kg * 1e3,
        "seconds": read_metrics(base)[-1].get("train/seconds") or emissions.seconds,
        "tokens": next(entry["train/tokens"] for entry in reversed(read_metrics(base)) if "train/tokens" in entry),
    }
    study["equal_accuracy"] = report.equal_accuracy(points)
    study["payback_runs"], _ = report.payback(study["equal_accuracy"], study["pretraining"]["energy_wh"])
    write_json(output / "study.json", study)
    page = report.write_transfer_report(study, report.find_runs([output]), output)
    report.print_transfer(study)
    print(f"report: {page}  ({time.monotonic() - began:.0f} s)")


def _fine_tune(
    family: str, plan: Plan, output: Path, arm: str, labels: int, seed: int, rate: float, split: str, display: Display
) -> dict[str, float]:
    """Fine-tune one run and return its metrics with "energy_wh"."""
    workdir = output / f"{arm}-{labels}-seed{seed}" if split == "test" else output / "tuning" / f"{arm}-{rate:g}"
    base = output / "pretraining"
    start = (f"init_from={base}", *plan.init)
    if arm == "scratch":
        start = ("tokenizer.name=file", f"tokenizer.path={base / 'tokenizer.json'}")
    overrides = [
        f"seed={seed}",
        f"data.max_examples={labels}",
        f"data.subset_seed={seed}",
        f"training.num_steps={plan.steps[labels]}",
        "training.eval_every=0",
        "checkpoint.every=0",
        f"optimizer.learning_rate={rate}",
        f"evaluation.split={split}",
        *plan.fine_tuning,
        *start,
    ]
    results = train(configs.load(f"finetune_area:{family},smoke", overrides), workdir, display=Display(quiet=True))
    display.progress(f"{arm}, {labels} labels, seed {seed}", 1, 1)
    return results | {"energy_wh": read_emissions(workdir).energy_kwh * 1e3}
