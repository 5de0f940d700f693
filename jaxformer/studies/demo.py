"""What pretraining is worth, shown on the built-in corpus: one pretraining, and a transfer from it.

Finished runs are kept, so a demonstration that was stopped goes on.
"""

import dataclasses
import time
from pathlib import Path

from jaxformer import config as configs
from jaxformer import report
from jaxformer.checkpoint import finished_steps
from jaxformer.runs import Display, check_resumable, train
from jaxformer.storage import is_run
from jaxformer.studies.transferring import Transfer, transfer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long to pretrain, and which fine-tunings to compare: {labels: steps}, learning rates, number of seeds."""

    pretraining_steps: int
    model: tuple[str, ...]  # keys of the config in both
    pretraining: tuple[str, ...]
    fine_tuning: tuple[str, ...]
    rates: tuple[float, ...]
    steps: dict[int, int] = dataclasses.field(default_factory=lambda: {50: 60, 200: 100, 800: 160})
    seeds: int = 3


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
        # A head that pretraining did not have, or gave another job, starts afresh.
        fine_tuning=(
            "task.sequence_length=64",
            "checkpoint.init_skip=vocabulary/.*",
            "checkpoint.init_new=row_heads/.*",
        ),
        rates=(1e-3, 2e-3),
    ),
    "gpt": Recipe(
        pretraining_steps=1500,
        # One layer learns more in the same time than two; the auxiliary language model takes capacity from the
        # classifier (in the paper's Table 5, too, the average without it is the higher one).
        model=("model.max_length=64", "model.num_layers=1"),
        pretraining=("objective.sequence_length=64", "optimizer.learning_rate=2e-3"),
        fine_tuning=("task.sequence_length=64", "task.language_model_weight=0"),
        rates=(1e-3, 3e-3),
    ),
    "t5": Recipe(
        pretraining_steps=1000,
        # 40 % of the tokens corrupted: more to predict per step, and little worse in the paper's Table 6 (25 %, 50 %).
        model=("model.num_layers=1",),
        pretraining=("objective.sequence_length=64", "objective.noise_density=0.4", "optimizer.learning_rate=0.06"),
        fine_tuning=("task.sequence_length=64",),
        rates=(1e-2, 2e-2),
    ),
}
# Of every fine-tuning: the last step alone is judged.
FINE_TUNING = (
    "optimizer.warmup_steps=0",
    "optimizer.warmup_share=0.1",
    "training.batch_size=16",
    "training.eval_every=0",
    "checkpoint.every=0",
    "evaluation.batch_size=64",
)


def run_demo(family: str, output: Path) -> None:
    """Run the demonstration of one family, or of all: show a table and write a page into
    `output`/FAMILY/transfer/report."""
    for name in RECIPES if family == "all" else (family,):
        began = time.monotonic()
        recipe, pretraining, study = RECIPES[name], output / name / "pretraining", output / name / "transfer"
        with Display() as display:
            display.note(f"{name}: train a tokenizer and pretrain on the documentation of the standard library")
            _pretrain(name, recipe, pretraining, display)
        found = transfer(comparison(name, recipe, pretraining), study)
        report.print_transfer(found)
        print(f"report: {study / 'report' / 'report.html'}  ({time.monotonic() - began:.0f} s)")


def comparison(family: str, recipe: Recipe, pretraining: Path) -> Transfer:
    """Return what is compared once the pretraining is done."""
    return Transfer(
        config=f"finetune/area:{family},smoke",
        pretrained=str(pretraining),
        overrides=(*FINE_TUNING, *recipe.model, *recipe.fine_tuning),
        labels=tuple(recipe.steps),
        steps=tuple(recipe.steps.values()),
        rates=recipe.rates,
        seeds=recipe.seeds,
    )


def _pretrain(family: str, recipe: Recipe, workdir: Path, display: Display) -> None:
    """Pretrain unless that was done before."""
    steps = recipe.pretraining_steps
    overrides = [f"training.num_steps={steps}", "training.eval_every=0", *recipe.model, *recipe.pretraining]
    config = configs.load(f"{family}:smoke", overrides)
    if is_run(workdir):
        check_resumable(workdir, config, allow_change=False)
    if steps not in finished_steps(workdir / "checkpoints"):
        train(config, workdir, display=display)
