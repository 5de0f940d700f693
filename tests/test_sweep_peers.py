"""Sweeps whose trials are trained by several processes together: what these tell each other, and real ones."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from compiling import xla_flags
from sweeps import RATE, make_believe, opened, overrides
from training import make_corpus

from jaxformer.errors import Interrupted, UserError
from jaxformer.report import read_sweep
from jaxformer.runs import Lost
from jaxformer.studies import run_study, working
from jaxformer.studies.study import Study

GRID = {RATE: [1e-3, 1e-2], "seed": [0, 1]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What process 0 of a worker tells its peers, who are make-believe and always do as it does."""
    said: list[str] = []

    def told(text: str) -> str:
        said.append(text)
        return text

    monkeypatch.setattr(working, "has_peers", lambda: True)
    monkeypatch.setattr(working, "told", told)
    monkeypatch.setattr(working, "stop_is_due", lambda: False)
    monkeypatch.setattr(working, "ended_alike", lambda failed: True)
    return said


def quiet(_: str) -> None:
    pass


def listening(study: Study, said: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a peer hear what process 0 has said, and return the trials that it trains."""
    trained: list[str] = []
    left = list(said)
    monkeypatch.setattr(working, "told", lambda text: left.pop(0))
    monkeypatch.setattr(working, "train", make_believe(trained))
    working.follow(study)
    assert not left
    return trained


def test_peers_train_what_process_0_trains_and_end_with_it(
    corpus: Path, tmp_path: Path, peers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[str] = []
    believed = make_believe(first)

    def fails_once(config: Any, workdir: Path, **rest: Any) -> dict[str, float]:
        if config.seed == 1 and not (workdir / "tried").exists():
            (workdir / "tried").touch()
            first.append(workdir.name)
            raise RuntimeError("no luck")
        return believed(config, workdir, **rest)

    monkeypatch.setattr(working, "train", fails_once)
    study = opened(tmp_path / "study", corpus, GRID | {"model.dropout": {"low": 0.0, "high": 0.2}}, trials=3)
    working.work(study, quiet)
    working.tell(working.END)
    failures = [trial.record["failures"] for trial in read_sweep(study.folder).trials]
    assert sorted(failures) == [0, 0, 0, 1, 1, 1], "once for all processes"
    before = {path: path.read_bytes() for path in study.folder.rglob("trial.json")}
    # A fresh study, as another process has it, knows nothing but the experiment and what it is told.
    other = opened(tmp_path / "study", corpus, GRID | {"model.dropout": {"low": 0.0, "high": 0.2}}, trials=3)
    assert listening(other, peers, monkeypatch) == first and len(first) == 9
    assert before == {path: path.read_bytes() for path in study.folder.rglob("trial.json")}, "process 0 alone writes"


def test_a_peer_that_would_train_another_run_says_so(
    corpus: Path, tmp_path: Path, peers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(tmp_path / "study", corpus, GRID)
    working.tell(working.TRAIN, study.trial({RATE: 1e-3}, 0))
    other = tmp_path / "other.txt"
    other.write_text((corpus / "documents.txt").read_text() + "\n\nMore.")
    monkeypatch.setattr(study.experiment.__class__, "config", lambda *_: _config(corpus, other))
    with pytest.raises(UserError, match=r"another run of optimizer.learning_rate=0.001 seed=0 than process 0"):
        listening(study, peers, monkeypatch)


def _config(corpus: Path, text: Path) -> Any:
    from jaxformer import config as configs

    return configs.load("gpt:smoke", overrides(corpus, **{"data.path": text, RATE: 1e-3, "seed": 0}))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("the disk of this host is gone"), RuntimeError),  # ends this process with its own exit code
        (Lost("the run was taken over"), Interrupted),
        (None, Interrupted),  # another one failed
    ],
)
def test_what_fails_on_some_processes_only_ends_them_all(
    error: Exception | None, raised: type[BaseException], corpus: Path, tmp_path: Path, peers: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def train(*_: Any, **__: Any) -> dict[str, float]:
        if error is not None:
            raise error
        return {}

    monkeypatch.setattr(working, "train", train)
    monkeypatch.setattr(working, "ended_alike", lambda failed: False)
    study = opened(tmp_path / "study", corpus, GRID)
    with pytest.raises(raised) as found:
        working.work(study, quiet)
    assert getattr(found.value, "code", 75) == 75
    (trial,) = read_sweep(study.folder).trials
    assert trial.record["failures"] == 0


def test_a_worker_that_is_asked_to_stop_between_runs_does(
    corpus: Path, tmp_path: Path, peers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened(tmp_path / "study", corpus, GRID)
    monkeypatch.setattr(working, "stop_is_due", lambda: True)
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        working.work(study, quiet)
    (trial,) = read_sweep(study.folder).trials
    assert trial.state == "stopped"
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        listening(study, peers, monkeypatch)


# Real processes, below: that they agree, and that none waits for one that has gone, no make-believe can show.

KEYS = {"footprint.enabled": False, "training.log_every": 1, "model.dropout": 0}
RATES = [1e-3, 1e30, 1e-2]  # the second diverges on all processes


def command(corpus: Path, folder: Path, *before: str, **keys: object) -> list[str]:
    given = [word for word in overrides(corpus, **(KEYS | keys)) if not word.startswith("sharding.")]
    searched = [f"--sweep.{RATE}={','.join(map(str, RATES))}", f"--study={folder}", "--attempts=1"]
    words = ["--config=gpt:smoke", *(f"--config.{key}" for key in given), *searched]
    return [sys.executable, "-m", "jaxformer", *before, *words]


def results(folder: Path) -> dict[str, Any]:
    found = read_sweep(folder)
    assert found.best is not None and found.best.values == {RATE: 1e-2}
    return {trial.path.name: (trial.state, trial.step, trial.record["failures"]) for trial in found.trials}


def losses(folder: Path) -> list[float]:
    return [trial.metrics["eval/loss"] for trial in read_sweep(folder).trials if trial.state == "done"]


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study, trained by this process alone, on one device."""
    made = opened(tmp_path_factory.mktemp("alone") / "study", corpus, {RATE: RATES}, attempts=1, keys=KEYS)
    run_study(made, quiet=True)
    return made


Started = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Started]:
    """Return a function that starts a command in a session of its own; all that is left of it is killed in the end."""
    started: list[subprocess.Popen[str]] = []

    def start(words: list[str], **environment: str) -> "subprocess.Popen[str]":
        env = {**os.environ, "XLA_FLAGS": xla_flags(1), **environment}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(words, env=env, **pipes))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_processes_give_the_trials_of_one_and_go_on_after_one_that_fails(
    corpus: Path, alone: Study, start: Started, tmp_path: Path
) -> None:
    words = command(corpus, tmp_path / "study", "launch", "local", "--processes=2", "--restarts=0", "--", "sweep")
    process = start(words)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert results(tmp_path / "study") == results(alone.folder)
    assert losses(tmp_path / "study") == pytest.approx(losses(alone.folder), rel=1e-4)
    assert "[0] best: jaxformer train" in said and "[1] best" not in said


def wait_for(what: Callable[[], Any], process: "subprocess.Popen[str]") -> Any:
    deadline = time.monotonic() + 240
    while not (found := what()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return found


# With the kills of tests/test_sweep_kills.py, which are of workers of one process, most of it is tried every day.
@pytest.mark.slow
@pytest.mark.full
def test_a_group_that_loses_a_process_is_started_again_and_one_that_is_asked_to_stop_saves(
    corpus: Path, alone: Study, start: Started, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    words = command(corpus, folder, "sweep", "--processes=2")
    process = start(words)

    def workers() -> list[psutil.Process]:
        found = psutil.Process(process.pid).children()
        return found if len(found) == 2 and all(one.status() != psutil.STATUS_ZOMBIE for one in found) else []

    def steps() -> dict[str, int]:
        return {trial.path.name: trial.step for trial in read_sweep(folder).trials} if folder.exists() else {}

    (before) = wait_for(workers, process)
    assert {one.environ()["JAXFORMER_CORES"] for one in before} and len({one.pid for one in before}) == 2
    wait_for(lambda: max(steps().values(), default=0) >= 12, process)
    before[1].kill()
    psutil.wait_procs(before, timeout=60)
    after = wait_for(workers, process)
    assert not {one.pid for one in before} & {one.pid for one in after}
    wait_for(lambda: sum(trial.state == "failed" for trial in read_sweep(folder).trials), process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and "run the same command to go on" in said, said
    assert not any(one.is_running() for one in after)
    process = start(words)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert results(folder) == results(alone.folder)
    assert losses(folder) == pytest.approx(losses(alone.folder), rel=1e-4)


# Guards against a hang: an error that only one machine has, such as a full disk.
@pytest.mark.slow
@pytest.mark.full
def test_an_error_of_one_process_leaves_none_waiting(corpus: Path, start: Started, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('JAX_PROCESS_ID') == '1':\n"
        "    from jaxformer.devices import processes\n"
        "    from jaxformer.errors import UserError\n"
        "    from jaxformer.runs import loop\n"
        "    processes._PATIENCE = 2000\n"
        "    def fails(*args, **keys):\n"
        "        raise UserError('data.path: the disk of this host is gone')\n"
        "    loop.build_learner = fails\n"
    )
    words = command(corpus, tmp_path / "study", "launch", "local", "--processes=2", "--", "sweep")
    process = start(words, PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 2, said
    assert "worker 1 ended with exit code 2: jaxformer sweep: data.path: the disk of this host is gone" in said
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "study").rglob("trial.json"))
    assert record["failures"] == 0
