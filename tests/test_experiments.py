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

FAMILIES = ("transformer", "gpt", "bert", "gpt2", "distilbert", "t5", "bart", "gpt3")
FINE_TUNED = ("bert",)  # the others, at a tiny size, in test_runs.py


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Path]:
    """Return a function that gives the finished smoke run of a family, made when first asked for."""
    runs: dict[str, Path] = {}

    def run(family: str, run_cli: Any) -> Path:
        if family not in runs:
            taught = [f"--config.distillation.teacher={run('bert', run_cli)}"] if family == "distilbert" else []
            runs[family] = tmp_path_factory.mktemp("smoke") / family
            done = run_cli("train", f"--config={family}:smoke", f"--workdir={runs[family]}", *taught, timeout=600)
            assert done.returncode == 0, done.stderr
        return runs[family]

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
@pytest.mark.parametrize("family", FAMILIES)
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
