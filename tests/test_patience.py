"""Runs that end early: how long an evaluation may be no better, what is kept, and that a resumed run ends there too."""

import contextlib
import math
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training import SIZES, assert_same_run, make_corpus, pretraining

from jaxformer import config as configs
from jaxformer.checkpoint import CheckpointConfig, checkpoint_of, finished_steps
from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.runs.learner import Learner
from jaxformer.runs.loop import Due, evaluate
from jaxformer.runs.patience import since_best
from jaxformer.runs.signals import Signals
from jaxformer.storage import read_metrics

TINY = {f"model.{name}": size for name, size in (SIZES | {"num_layers": 1}).items()} | {
    "training.num_steps": 9, "training.eval_every": 1, "training.patience": 2, "checkpoint.every": 0,
    "footprint.enabled": False, "sharding.data": 1, "optimizer.warmup_steps": 1,
}  # fmt: skip
Train = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("values", "mode", "expected"),
    [
        ([], "min", (0, 0, None)),
        ([3.0], "min", (0, 1, 3.0)),
        ([3.0, 2.0, 2.5, 2.0], "min", (2, 2, 2.0)),  # an equal one is no better
        ([0.1, 0.3, 0.3], "max", (1, 2, 0.3)),
        ([0.1, 0.3, 0.2, 0.4], "max", (0, 4, 0.4)),
        ([None, None], "max", (2, 0, None)),
        ([None, 0.0, None], "max", (1, 2, 0.0)),
    ],
)
def test_what_counts_is_how_long_the_best_is_past(
    values: list[float | None], mode: str, expected: tuple[int, int, float | None]
) -> None:
    assert since_best(list(enumerate(values, 1)), mode) == expected


def test_what_is_saved_follows_from_the_patience_that_is_left() -> None:
    due = Due(evaluates=True, saves=False, must_save=False, stop=0)
    assert due.after(0, 0) == due and due.after(1, 3) == due
    assert due.after(3, 3) == due._replace(saves=True)  # the best so far
    assert due.after(0, 3) == due._replace(saves=True, must_save=True, ends=True)
    last = due._replace(saves=True, must_save=True)
    assert last.after(0, 3) == last  # the end comes anyway


@pytest.mark.parametrize(
    ("given", "metrics", "expected"),
    [
        ({}, ("accuracy", "f1"), ("eval/accuracy", "max")),
        ({}, (), ("eval/loss", "min")),
        ({"best_metric": "eval/perplexity"}, ("accuracy",), ("eval/perplexity", "min")),
        ({"best_metric": "eval/next_sentence_loss"}, (), ("eval/next_sentence_loss", "min")),
        ({"best_metric": "eval/f1"}, (), ("eval/f1", "max")),
        ({"best_metric": "eval/error", "best_mode": "min"}, (), ("eval/error", "min")),
        ({"best_mode": "min"}, ("matthews",), ("eval/matthews", "min")),
    ],
)
def test_the_best_checkpoint_is_that_of_the_tasks_own_metric(
    given: dict[str, Any], metrics: tuple[str, ...], expected: tuple[str, str]
) -> None:
    found = CheckpointConfig(**given).judged_by(metrics)
    assert (found.best_metric, found.best_mode) == expected
    assert found.judged_by(["other"]) == found  # as a run keeps it


def test_a_patience_without_evaluations_is_refused() -> None:
    with pytest.raises(UserError, match=r"^training\.patience: .* set training\.eval_every"):
        configs.load("gpt:smoke", ["training.patience=2", "training.eval_every=0"])
    with pytest.raises(UserError, match=r"^training\.patience: -1"):
        configs.load("gpt:smoke", ["training.patience=-1"])


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def train(corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Train:
    """Return a function that trains: of each evaluation the loss is given, and of the steps how many come before a
    SIGTERM."""

    def run(workdir: Path, losses: Iterable[float], steps: int | None = None, **keys: Any) -> tuple[int, str]:
        given, signals = iter(losses), iter([0] * (steps or 0) + [signal.SIGTERM])
        monkeypatch.setattr(Learner, "judge", lambda self, params: {"loss": next(given)})
        monkeypatch.setattr(Signals, "after_step", lambda self: 0 if steps is None else next(signals))
        code = main(pretraining("gpt", corpus, workdir, **TINY | keys))
        return code, capsys.readouterr().err

    return run


def last(run: Path) -> int:
    return int(read_metrics(run)[-1]["step"])


def test_a_run_ends_with_its_patience_and_stays_ended(train: Train, tmp_path: Path) -> None:
    run, losses = tmp_path / "run", [3.0, 2.0, 2.5, 2.0]
    # What has been seen is not forgotten where a run is stopped, and judged where it goes on.
    assert train(run, losses[:2], steps=2)[0] == 75 and last(run) == 3
    code, said = train(run, losses[2:])
    assert code == 0 and "step 4: ended before 9: 2 evaluations in a row gave no better eval/loss" in said
    assert "the best, 2, is of step 2" in said
    assert last(run) == 4 and finished_steps(run / "checkpoints") == [2, 3, 4]
    assert checkpoint_of(run, "best").name == "2" and checkpoint_of(run).name == "4"
    before = read_metrics(run)
    code, said = train(run, [])
    assert code == 0 and "nothing to do" in said and "raise training.patience" in said and read_metrics(run) == before

    # With more of it the run goes on, as one does that had it from the beginning.
    more = {"training.patience": 3}
    assert train(run, [1.0, 1.5, 1.5, math.nan], **more)[0] == 0
    assert last(run) == 8 and checkpoint_of(run, "best").name == "5"
    assert train(tmp_path / "whole", [*losses, 1.0, 1.5, 1.5, math.nan], **more)[0] == 0
    assert_same_run(run, tmp_path / "whole")


def test_a_metric_that_is_not_there_is_said() -> None:
    said: list[str] = []
    config = SimpleNamespace(
        training=SimpleNamespace(patience=1), checkpoint=SimpleNamespace(best_metric="eval/accuracy")
    )
    run: Any = SimpleNamespace(config=config, display=SimpleNamespace(note=said.append))
    learner: Any = SimpleNamespace(judge=lambda params: {"loss": 3.0}, data=SimpleNamespace(held_out=[1]))
    log = SimpleNamespace(evaluated=lambda step: True)
    watch: Any = SimpleNamespace(meter=SimpleNamespace(paused=contextlib.nullcontext), log=log)
    assert evaluate(run, learner, watch, SimpleNamespace(step=1, params={})) == {"eval/loss": 3.0}  # type: ignore[arg-type]
    assert said == ["step 1: training.patience has no eval/accuracy to go by; this evaluation gives eval/loss"]
