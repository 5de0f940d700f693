"""Sweeps as processes: killed at any moment, shared by several, started anew."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from compiling import xla_flags
from sweeps import RATE, overrides
from training import logged, make_corpus

from jaxformer.report import read_sweep

pytestmark = pytest.mark.slow

# Every step is logged: a run that is asked to stop logs its last one, too.
KEYS = {"footprint.enabled": False, "training.log_every": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def command(corpus: Path, folder: Path, *words: str) -> list[str]:
    keys = [f"--config.{key}" for key in overrides(corpus, **KEYS)]
    searched = [f"--sweep.{RATE}=1e-3,1e-2", "--sweep.training.batch_size=4,8", f"--study={folder}"]
    return [sys.executable, "-m", "jaxformer", "sweep", "--config=gpt:smoke", *keys, *searched, *words]


@contextlib.contextmanager
def started(words: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """A sweep in a session of its own; all that is left of it is killed in the end."""
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(words, env=environment, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def finish(words: Sequence[str]) -> str:
    with started(words) as process:
        said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return said


def results(folder: Path) -> dict[str, Any]:
    return {trial.path.name: (trial.state, logged(trial.path)) for trial in read_sweep(folder).trials}


def done(folder: Path) -> dict[Path, int]:
    """When each finished trial was last written to."""
    if not (folder / "study.json").exists():
        return {}
    finished = [trial.path for trial in read_sweep(folder).trials if trial.state == "done"]
    return {path: (path / "metrics.jsonl").stat().st_mtime_ns for path in finished}


@pytest.fixture(scope="module")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken") / "study"
    finish(command(corpus, folder))
    return results(folder)


@pytest.mark.full
def test_a_grid_killed_ten_times_at_random_ends_as_an_unbroken_one(
    corpus: Path, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    # Nothing but real kills shows that no moment leaves a study that cannot go on.
    draw, folder, finished = random.Random(7), tmp_path / "study", dict[Path, int]()
    for _ in range(10):
        with started(command(corpus, folder)) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=draw.uniform(2, 9))
        now = done(folder)
        assert finished.items() <= now.items(), "none is trained twice"
        finished = now
    said = finish(command(corpus, folder))
    assert results(folder) == unbroken and finished.items() <= done(folder).items()
    assert "best: jaxformer train" in said and len(unbroken) == 4


@pytest.mark.full
def test_two_that_are_started_at_once_share_the_trials(corpus: Path, unbroken: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    with started(command(corpus, folder)) as one, started(command(corpus, folder)) as other:
        said = [process.communicate(timeout=400)[0] for process in (one, other)]
    assert one.returncode == other.returncode == 0, said
    begun = [line.split()[1] for text in said for line in text.splitlines() if line.endswith(": begins")]
    assert sorted(begun) == sorted(unbroken), "no trial is begun by both"
    assert results(folder) == unbroken


def test_workers_end_with_their_driver_and_a_dead_worker_is_replaced(
    corpus: Path, unbroken: dict[str, Any], tmp_path: Path
) -> None:
    import psutil

    folder = tmp_path / "study"
    with started(command(corpus, folder, "--parallel=2")) as process:
        workers = _workers(process.pid, 2)
        workers[0].kill()
        psutil.wait_procs(workers[:1], timeout=60)  # the driver has seen it
        assert workers[0] not in _workers(process.pid, 2)
        workers = _workers(process.pid, 2)
        process.kill()  # the driver alone
        gone, alive = psutil.wait_procs(workers, timeout=120)
        assert not alive
    finish(command(corpus, folder, "--parallel=2"))
    assert results(folder) == unbroken


def _workers(driver: int, number: int) -> list[Any]:
    """The driver's workers, once there are so many."""
    import psutil

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = [child for child in psutil.Process(driver).children() if child.status() != psutil.STATUS_ZOMBIE]
        if len(found) == number:
            return found
        time.sleep(0.1)
    raise AssertionError("the workers do not come")


@pytest.mark.full
def test_ctrl_c_lets_the_running_trial_save(corpus: Path, unbroken: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    with started(command(corpus, folder)) as process:
        deadline = time.monotonic() + 120
        while not any(trial.step >= 10 for trial in (read_sweep(folder).trials if folder.exists() else ())):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command to go on" in said, said
    finish(command(corpus, folder))
    assert results(folder) == unbroken
