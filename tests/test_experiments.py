"""The experiments of `experiments/`, run at the size that a laptop runs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxformer
from jaxformer.cli.main import main
from jaxformer.data.batches import train_batches
from jaxformer.data.preparing import prepare
from jaxformer.runs.loading import LoadedRun, bind
from jaxformer.storage import read_metrics
from jaxformer.training.losses import cross_entropy

# gpt's smoke run is trained to its end: bert's is much like what `make demo` does. The others are
# trained until they have learned something, and to the end by `make test-full`. A short run has passed its warm-up, and
# its loss, from ln 4096 = 8.3, has fallen by more than noise.
WHOLE = "gpt"
SHORT = ["training.num_steps=36", "optimizer.warmup_steps=10", "training.eval_every=36", "checkpoint.every=0"]
SHORT += ["training.log_every=3", "evaluation.max_examples=32", "sharding.data=1"]
FAMILIES = ("transformer", "gpt", "bert", "gpt2", "distilbert", "t5", "bart", "gpt3")
# Hundreds of steps take longer at the tests' level of optimisation than compiling as users do.
AS_USERS = {"XLA_FLAGS": ""}
Smoke = Callable[..., Path]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """Return a function that gives the finished smoke run of a family, made when first asked for."""
    runs: dict[tuple[str, bool], Path] = {}

    def run(family: str, run_cli: Any, short: bool = False) -> Path:
        if (family, short) not in runs:
            keys = SHORT if short else []
            if family == "distilbert":
                keys = [*keys, f"distillation.teacher={run('bert', run_cli, short)}"]
            workdir = runs[family, short] = tmp_path_factory.mktemp("smoke") / family
            words = [f"--config={family}:smoke", f"--workdir={workdir}", *(f"--config.{key}" for key in keys)]
            if short:  # in this process, on one of its devices
                assert main(["train", *words]) == 0
            else:
                done = run_cli("train", *words, env=AS_USERS, timeout=600)
                assert done.returncode == 0, done.stderr
        return runs[family, short]

    return run


def token_losses(workdir: Path) -> list[float]:
    logged = [line for line in read_metrics(workdir) if "train/loss" in line]
    return [line.get("train/tokens_loss", line["train/loss"]) for line in logged]


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


def fall_of(family: str) -> float:
    """How far the loss falls at least, in nats; a student begins with what its teacher knows."""
    return 0.25 if family == "distilbert" else 0.5


# GPT-2's and GPT-3's objective and kind of model are GPT's, and the Transformer's kind of model is BART's.
@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=pytest.mark.full) if family in ("gpt2", "gpt3", "transformer") else family
        for family in FAMILIES
        if family != WHOLE
    ],
)
def test_a_short_smoke_run_learns(family: str, smoke: Smoke, run_cli: Any) -> None:
    workdir = smoke(family, run_cli, short=True)
    losses = token_losses(workdir)
    if (
        family == "distilbert"
    ):  # whose teacher knows hardly more by then than how often tokens come: it learns to see alike
        losses = [line["train/cosine_loss"] for line in read_metrics(workdir) if "train/loss" in line]
        assert len(losses) == 12 and np.mean(losses[-2:]) < losses[0] / 4
    else:
        assert len(losses) == 12 and np.mean(losses[-2:]) < losses[0] - fall_of(family)


def assert_learned_more_than_frequencies(family: str, workdir: Path) -> None:
    losses = token_losses(workdir)
    tenth = len(losses) // 10
    entropy, loss = unigram_entropy_and_loss(jaxformer.load(workdir))
    assert np.mean(losses[-tenth:]) < np.mean(losses[:tenth]) - fall_of(family)
    assert np.mean(losses[-tenth:]) <= entropy and loss <= entropy


@pytest.mark.slow
def test_a_whole_smoke_run_learns_more_than_how_often_tokens_come(smoke: Smoke, run_cli: Any) -> None:
    assert_learned_more_than_frequencies(WHOLE, smoke(WHOLE, run_cli))


# test_runs.py fine-tunes a GPT every day until it beats chance by far, and `make demo` a BERT of this size.
@pytest.mark.slow
@pytest.mark.full
def test_a_whole_smoke_run_can_be_fine_tuned(smoke: Smoke, run_cli: Any, tmp_path: Path) -> None:
    base = smoke(WHOLE, run_cli)
    config = f"finetune/area:{WHOLE},smoke"
    words = [f"--config={config}", f"--config.init_from={base}", "--workdir=tuned"]
    done = run_cli("train", *words, env=AS_USERS, timeout=900)
    assert done.returncode == 0, done.stderr
    # Ten areas, the largest of them a fifth of the corpus.
    assert read_metrics(tmp_path / "tuned")[-1]["eval/accuracy"] > 0.4


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != WHOLE])
def test_the_other_smoke_runs_do_too(family: str, smoke: Smoke, run_cli: Any) -> None:
    assert_learned_more_than_frequencies(family, smoke(family, run_cli))
