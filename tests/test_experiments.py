"""The experiments of `experiments/`, run at the size that a laptop runs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxformer
from jaxformer.data.batches import train_batches
from jaxformer.data.preparing import prepare
from jaxformer.runs.loading import LoadedRun, bind
from jaxformer.storage import read_metrics
from jaxformer.training.losses import cross_entropy

# One family at its full length, from which the others' tests go on; the others until they have learned something.
# A short run has passed its warm-up and lowered the loss by more than noise does: from ln 4096 = 8.3 by half a nat.
WHOLE = "bert"
SHORT = ["training.num_steps=60", "optimizer.warmup_steps=10", "training.eval_every=60", "checkpoint.every=0"]
SHORT += ["training.log_every=5", "evaluation.max_examples=32"]
FAMILIES = ("transformer", "gpt", "bert", "gpt2", "distilbert", "t5", "bart", "gpt3")
FINE_TUNED = ("bert",)  # the others, at a tiny size, in test_runs.py


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Path]:
    """Return a function that gives the finished smoke run of a family, made when first asked for."""
    runs: dict[tuple[str, bool], Path] = {}

    def run(family: str, run_cli: Any, whole: bool = True) -> Path:
        if (family, whole) not in runs:
            keys = [] if whole else SHORT
            keys = [*keys, f"distillation.teacher={run(WHOLE, run_cli)}"] if family == "distilbert" else keys
            workdir = runs[family, whole] = tmp_path_factory.mktemp("smoke") / family
            words = [f"--config.{key}" for key in keys]
            done = run_cli("train", f"--config={family}:smoke", f"--workdir={workdir}", *words, timeout=600)
            assert done.returncode == 0, done.stderr
        return runs[family, whole]

    return run


def unigram_entropy_and_loss(run: LoadedRun) -> tuple[float, float]:
    """Return, in nats, the entropy of the tokens that a run predicted, and its parameters' mean loss on those of the
    last tenth of its steps; sentinels and what begins and ends a text left out of both."""
    config, vocabulary = run.config, run.tokenizer.vocabulary
    supervision = bind(config, run.tokenizer, run.labels)
    steps = config.training.num_steps
    left_out = [*vocabulary.sentinels, *(vocabulary.special.get(role, -1) for role in ("start", "end"))]
    members = prepare(config.data, supervision, run.tokenizer, "train", seed=config.seed)
    batches = train_batches(members, seed=config.seed, batch_size=config.training.batch_size)

    @jax.jit
    def losses(batch: Any) -> jax.Array:
        logits = run.model.project(run.params, run.model.apply(run.params, batch)["hidden"])
        return cross_entropy(logits, batch["targets"], config.model.vocab_size)

    counts, late = np.zeros(run.tokenizer.vocab_size), []
    for step in range(1, steps + 1):
        batch = next(batches)
        counted = (batch["weights"] > 0) & ~np.isin(batch["targets"], left_out)
        counts += np.bincount(batch["targets"][counted], minlength=len(counts))
        if step > steps * 0.9:
            late.append(np.asarray(losses(batch))[counted])
    batches.close()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum()), float(np.concatenate(late).mean())


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != WHOLE])
def test_a_short_smoke_run_learns(family: str, smoke: Any, run_cli: Any) -> None:
    logged = [line for line in read_metrics(smoke(family, run_cli, whole=False)) if "train/loss" in line]
    losses = [line.get("train/tokens_loss", line["train/loss"]) for line in logged]
    assert len(losses) == 12 and np.mean(losses[-2:]) < losses[0] - (0.25 if family == "distilbert" else 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [family if family == WHOLE else pytest.param(family, marks=pytest.mark.full) for family in FAMILIES]
)
def test_a_smoke_run_learns_more_than_how_often_tokens_come(family: str, smoke: Any, run_cli: Any) -> None:
    workdir = smoke(family, run_cli)
    logged = [
        line.get("train/tokens_loss", line["train/loss"]) for line in read_metrics(workdir) if "train/loss" in line
    ]
    tenth = len(logged) // 10
    entropy, loss = unigram_entropy_and_loss(jaxformer.load(workdir))
    fall = 0.25 if family == "distilbert" else 0.5  # a student begins with what its teacher knows
    assert np.mean(logged[-tenth:]) < np.mean(logged[:tenth]) - fall
    assert np.mean(logged[-tenth:]) <= entropy and loss <= entropy


@pytest.mark.slow
@pytest.mark.parametrize("family", FINE_TUNED)
def test_a_smoke_run_can_be_fine_tuned(family: str, smoke: Any, run_cli: Any, tmp_path: Path) -> None:
    base = smoke(family, run_cli)
    config = f"finetune/area:{family},smoke"
    done = run_cli("train", f"--config={config}", f"--config.init_from={base}", "--workdir=tuned", timeout=900)
    assert done.returncode == 0, done.stderr
    # Ten areas, the largest of them a fifth of the corpus.
    assert read_metrics(tmp_path / "tuned")[-1]["eval/accuracy"] > 0.4
