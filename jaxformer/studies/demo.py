"""What pretraining is worth, shown on the built-in corpus: one pretraining, then fine-tunings from it and from scratch.

Both arms get the same labels, steps and seeds, and each its own learning rate, chosen on the validation split; what is
reported is accuracy on the test split. Finished runs are kept, so a demonstration that was stopped goes on.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxformer import config as configs
from jaxformer import report
from jaxformer.checkpoint import finished_steps
from jaxformer.config import Config
from jaxformer.footprint import read_emissions
from jaxformer.runs import Display, check_resumable, train
from jaxformer.storage import is_run, read_metrics, write_json

ARMS = ("pretrained", "scratch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long to pretrain, and which fine-tunings to compare: {labels: steps}, seeds, learning rates per arm."""

    pretraining_steps: int
    model: tuple[str, ...]  # keys of the config in both
    pretraining: tuple[str, ...]
    fine_tuning: tuple[str, ...]
    rates: dict[str, tuple[float, ...]]
    steps: dict[int, int] = dataclasses.field(default_factory=lambda: {50: 60, 200: 100, 800: 160})
    seeds: tuple[int, ...] = (1, 2, 3)


# Rows of 64 tokens hold nearly every docstring, in half the time of 128. What else departs from the experiments was
# measured to help on so little text in so few steps.
RECIPES = {
    "bert": Recipe(
        pretraining_steps=1400,
        # Next-sentence prediction learns little and slows the masked LM down; with it left out, 30 % of the tokens
        # masked give twice the signal per step. N(0, 0.02) is small for so narrow a model: from it, [CLS] hardly sees
        # the other tokens at first, and the arm from scratch does not get off the ground in these few steps.
        model=("model.max_length=64", "model.initialization=transformer"),
        pretraining=(
            "objective.sequence_length=64",
            "objective.max_predictions=20",
            "objective.masking_rate=0.3",
            "objective.next_sentence=False",
            "training.batch_size=16",
        ),
        fine_tuning=("task.sequence_length=64", "checkpoint.init_skip=vocabulary/.*"),
        rates={"pretrained": (1e-3, 2e-3), "scratch": (1e-3, 2e-3)},
    ),
    "gpt": Recipe(
        pretraining_steps=1500,
        # One layer learns more in the same time than two; the auxiliary language model takes capacity from the
        # classifier (in the paper's Table 5, too, the average without it is the higher one).
        model=("model.max_length=64", "model.num_layers=1"),
        pretraining=("objective.sequence_length=64", "optimizer.learning_rate=2e-3"),
        fine_tuning=("task.sequence_length=64", "task.language_model_weight=0"),
        rates={"pretrained": (1e-3, 3e-3), "scratch": (1e-3, 3e-3)},
    ),
    "t5": Recipe(
        pretraining_steps=1000,
        # 40 % of the tokens corrupted: more to predict per step, and little worse in the paper's Table 6 (25 %, 50 %).
        model=("model.num_layers=1",),
        pretraining=("objective.sequence_length=64", "objective.noise_density=0.4", "optimizer.learning_rate=0.06"),
        fine_tuning=("task.sequence_length=64",),
        rates={"pretrained": (1e-2, 2e-2), "scratch": (1e-2, 2e-2)},
    ),
}


def run_demo(family: str, output: Path) -> None:
    """Run the demonstration of one family, or of all; show a table and write a page into `output`/FAMILY."""
    for name in RECIPES if family == "all" else (family,):
        _study(name, RECIPES[name], output / name)


def _study(family: str, recipe: Recipe, output: Path) -> None:
    began = time.monotonic()
    base = output / "pretraining"
    seeds = itertools.product(recipe.steps, ARMS, recipe.seeds)
    number = sum(map(len, recipe.rates.values())) + sum(1 for _ in seeds)
    with Display() as display:
        display.note(f"1. {family}: train a tokenizer and pretrain on the documentation of the standard library")
        overrides = [f"training.num_steps={recipe.pretraining_steps}", "training.eval_every=0"]
        overrides += [*recipe.model, *recipe.pretraining]
        _train_once(configs.load(f"{family}:smoke", overrides), base, display)

        done = itertools.count(1)

        def fine_tune(name: str, arm: str, labels: int, seed: int, rate: float, split: str) -> dict[str, float]:
            config = _fine_tuning(family, recipe, base, arm, labels, seed, rate, split)
            result = _train_once(config, output / name, Display(quiet=True))
            display.progress("fine-tuning", next(done), number)
            return result

        most = max(recipe.steps)
        display.note(f"2. choose each arm's learning rate with {most} labels, on the validation split")
        rates = {}
        for arm in ARMS:
            scores = {
                rate: fine_tune(f"tuning/{arm}-{rate:g}", arm, most, 0, rate, "validation")
                for rate in recipe.rates[arm]
            }
            rates[arm] = max(scores, key=lambda rate: scores[rate]["eval/accuracy"])
            tried = ", ".join(f"{rate:g} ({score['eval/accuracy']:.3f})" for rate, score in scores.items())
            display.note(f"   {arm}: {rates[arm]:g} of {tried}")

        display.note("3. fine-tune from the checkpoint and from scratch, and judge on the test split")
        points: list[dict[str, Any]] = []
        for labels, arm in itertools.product(recipe.steps, ARMS):
            runs = [
                fine_tune(f"{arm}-{labels}-seed{seed}", arm, labels, seed, rates[arm], "test") for seed in recipe.seeds
            ]
            points.append(
                {
                    "labels": labels,
                    "arm": arm,
                    "learning_rate": rates[arm],
                    "steps": recipe.steps[labels],
                    "seeds": [run["eval/accuracy"] for run in runs],
                    "f1": [run["eval/f1"] for run in runs],
                    "energy_wh": [run.get("energy_wh") for run in runs],
                }
            )
            accuracy = statistics.mean(points[-1]["seeds"])
            display.note(f"   {labels} labels, {arm}: accuracy {accuracy:.3f}")
    study = {"family": family, "task": "area of the standard library", "points": points, **_costs(base, points)}
    write_json(output / "study.json", study)
    page = report.write_transfer_report(study, report.find_runs([output]), output)
    report.print_transfer(study)
    print(f"report: {page}  ({time.monotonic() - began:.0f} s)")


def _fine_tuning(
    family: str, recipe: Recipe, base: Path, arm: str, labels: int, seed: int, rate: float, split: str
) -> Config:
    steps = recipe.steps[labels]
    overrides = [
        f"seed={seed}",
        f"data.max_examples={labels}",
        f"data.subset_seed={seed}",
        f"training.num_steps={steps}",
        f"optimizer.warmup_steps={steps // 10}",
        f"optimizer.learning_rate={rate}",
        "training.batch_size=16",
        "training.eval_every=0",
        "checkpoint.every=0",
        "evaluation.max_examples=0",
        "evaluation.batch_size=64",
        f"evaluation.split={split}",
        *recipe.model,
        *recipe.fine_tuning,
    ]
    if arm == "pretrained":
        # A head that pretraining did not have, or gave another job, starts afresh.
        overrides += [f"init_from={base}", *(["checkpoint.init_new=row_heads/.*"] if family != "t5" else [])]
    else:
        overrides += ["tokenizer.name=file", f"tokenizer.path={base / 'tokenizer.json'}"]
    return configs.load(f"finetune/area:{family},smoke", overrides)


def _train_once(config: Config, workdir: Path, display: Display) -> dict[str, float]:
    """Train unless that was done before; return what was logged at the last step, and "energy_wh" where measured."""
    if is_run(workdir):
        check_resumable(workdir, config, allow_change=False)
    steps = config.training.num_steps
    if steps not in finished_steps(workdir / "checkpoints"):
        train(config, workdir, display=display)
    emissions = read_emissions(workdir)
    return _last_step(workdir, steps) | ({"energy_wh": emissions.energy_kwh * 1e3} if emissions.segments else {})


def _last_step(workdir: Path, step: int) -> dict[str, float]:
    values: dict[str, float] = {}
    for entry in read_metrics(workdir):
        values |= entry if entry["step"] == step else {}
    return values


def _costs(base: Path, points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What pretraining took, where both arms are equally accurate, and when pretraining has paid back."""
    emissions, metrics = read_emissions(base), read_metrics(base)
    last = [entry for entry in metrics if "train/seconds" in entry][-1]
    equal = report.equal_accuracy(points)
    energy_wh = emissions.energy_kwh * 1e3 if emissions.segments else None
    return {
        "pretraining": {
            "energy_wh": energy_wh,
            "emissions_g": emissions.emissions_kg * 1e3 if emissions.segments else None,
            "seconds": last["train/seconds"],
            "tokens": last["train/tokens"],
        },
        "equal_accuracy": equal,
        "payback_runs": report.payback(equal, energy_wh)[0],
    }
