"""Several processes, connected by JAX's distributed runtime: one run, which survives the end of any of them."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiling import xla_flags
from training import assert_same_run, logged, make_corpus, pretraining

from jaxformer.checkpoint import finished_steps
from jaxformer.cli.main import main
from jaxformer.devices.processes import is_peers_end
from jaxformer.launch import local
from jaxformer.launch.policy import Outcome, outcome_of
from jaxformer.storage import read_metrics

NUM_STEPS = 200  # of runs that are stopped: a process hears of another's SIGTERM a second or two later
COMPARED_STEPS = 30
COMPARED = {
    "training.num_steps": COMPARED_STEPS,
    "training.eval_every": 15,
    "model.dropout": 0,
}  # with runs of other numbers of devices
ALONE = {"sharding.data": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def words(family: str, corpus: Path, workdir: Path, **keys: Any) -> list[str]:
    """Arguments of a run that logs every step and saves every twenty."""
    given = {"training.num_steps": NUM_STEPS, "checkpoint.every": 20, "checkpoint.keep_last": 0}
    given |= {"training.eval_every": 50, "footprint.enabled": False}
    given |= {"evaluation.max_examples": 13}  # the last batch is filled up, on some processes with nothing real
    return pretraining(family, corpus, workdir, **{**given, **keys})


def begin(command: list[str], folder: Path, processes: int = 2, devices: int = 1) -> list["subprocess.Popen[str]"]:
    folder.mkdir(parents=True, exist_ok=True)
    flags = {"XLA_FLAGS": xla_flags(devices)}
    with (folder / "output.txt").open("a") as output:
        return local.start(command, processes, flags, cwd=folder, stdout=output, stderr=subprocess.STDOUT)


def finish(command: list[str], folder: Path, **keys: int) -> None:
    assert local.wait(begin(command, folder, **keys)) == 0, (folder / "output.txt").read_text()


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, int], Path]]:
    """Finished runs to compare of (family, number of processes), made when first asked for: by one process here, on
    one of its devices."""

    class Runs(dict[tuple[str, int], Path]):
        def __missing__(self, key: tuple[str, int]) -> Path:
            family, processes = key
            folder = tmp_path_factory.mktemp(f"{family}-{processes}")
            if processes == 1:
                assert main(words(family, corpus, folder / "run", **COMPARED, **ALONE)) == 0
            else:
                finish(words(family, corpus, folder / "run", **COMPARED), folder, processes=processes)
            self[key] = folder / "run"
            return self[key]

    yield Runs()


def assert_equal_losses(ours: Path, theirs: Path) -> None:
    mine, expected = (
        [(line["step"], value) for line in logged(run) for name, value in line.items() if name.endswith("/loss")]
        for run in (ours, theirs)
    )
    assert [step for step, _ in mine] == [step for step, _ in expected] and len(mine) == COMPARED_STEPS + 2
    losses, expected_losses = (np.array([value for _, value in each]) for each in (mine, expected))
    assert abs(losses[0] / expected_losses[0] - 1) < 1e-6
    differences = np.abs(losses / expected_losses - 1)
    assert differences[:20].max() < 1e-4
    assert np.abs(losses - expected_losses).max() < 0.02  # by then rounding has grown


# Below, meshes over processes are compared with one.
@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize(("family", "processes"), [("bert", 2), ("t5", 2), ("gpt", 4)])
def test_several_processes_agree_with_one(family: str, processes: int, runs: dict[tuple[str, int], Path]) -> None:
    assert_equal_losses(runs[family, processes], runs[family, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "processes", "devices"),
    [
        ({"sharding.fsdp": 2, "sharding.slices": 2, "training.accumulation_steps": 2}, 2, 2),
        # Eight devices take twice as long; in one process test_strategies.py splits by all three.
        pytest.param(
            {"sharding.fsdp": 2, "sharding.tensor": 2, "sharding.slices": 2, "training.accumulation_steps": 2}, 2, 4,
            marks=pytest.mark.full,
        ),
        pytest.param({"sharding.tensor": 2}, 2, 1, marks=pytest.mark.full),  # slices split by tensor, too
        ({"sharding.strategy": "pmap"}, 2, 2),
    ],
    ids=["slices", "slices split by tensor", "tensor", "pmap"],
)  # fmt: skip
def test_a_mesh_over_processes_agrees_with_one_device_and_its_checkpoint_goes_anywhere(
    keys: dict[str, Any], processes: int, devices: int, corpus: Path, runs: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    command = words("gpt", corpus, workdir, **{**COMPARED, **keys})
    finish(command, tmp_path, processes=processes, devices=devices)
    assert_equal_losses(workdir, runs["gpt", 1])
    if keys.get("sharding.strategy") == "pmap":
        return  # a checkpoint does not know the strategy
    # From the middle of it one device goes on, and the other way round.
    for name, source, placement in (("apart", workdir, ALONE), ("together", runs["gpt", 1], keys)):
        half = begun(source, tmp_path / name, 20)
        command = words("gpt", corpus, half, **{**COMPARED, **placement})
        allowed = [*command, "--allow-config-change"]  # of accumulation
        if name == "apart":
            assert main(allowed) == 0
        else:
            finish(allowed, tmp_path / f"{name}-output", processes=processes, devices=devices)
        assert_equal_losses(half, runs["gpt", 1])


def begun(run: Path, folder: Path, last: int) -> Path:
    """A copy of a run as if it had been killed soon after it saved this step."""
    shutil.copytree(run, folder)
    for step in finished_steps(folder / "checkpoints"):
        if step > last:
            shutil.rmtree(folder / "checkpoints" / str(step))
    return folder


def stop_one(
    number: signal.Signals, victim: int, command: list[str], folder: Path, workdir: Path, after: int, grace: float = 40
) -> int:
    """Send a signal to one of two processes once step `after` is logged (0: soon after the start) and return the exit
    code of both. With the launcher's own `grace` it may come while they still look for each other."""
    started = begin(command, folder)
    if after:
        while not any(line["step"] >= after for line in read_metrics(workdir)):
            assert all(process.poll() is None for process in started), (folder / "output.txt").read_text()
            time.sleep(0.01)
    else:
        time.sleep(random.Random(victim).uniform(0.5, 6.0))
    started[victim].send_signal(number)
    began = time.monotonic()
    code = local.wait(started, grace=grace)
    if number == signal.SIGKILL and after:  # the other asks to be run again, unless it was JAX that ended it
        assert started[1 - victim].returncode in (75, -signal.SIGABRT)
    assert time.monotonic() - began < 30
    return code


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run in two processes, with dropout."""
    folder = tmp_path_factory.mktemp("whole")
    finish(words("gpt", corpus, folder / "run"), folder)
    return folder / "run"


@pytest.mark.slow
def test_one_of_two_processes_may_end_at_any_moment(corpus: Path, whole: Path, tmp_path: Path) -> None:
    """A kill takes both down; a polite end saves both at one step. That what was saved so goes on to the same end,
    test_launch_preemption.py shows."""
    broken = tmp_path / "broken"
    command = words("gpt", corpus, broken)
    shown = [*command, "--traceback"]  # which changes nothing but what is shown
    assert stop_one(signal.SIGKILL, 1, shown, tmp_path / "output", broken, after=33) == 1
    assert "another process of this run has gone" in (tmp_path / "output" / "output.txt").read_text()
    assert finished_steps(broken / "checkpoints") == [20]
    assert stop_one(signal.SIGTERM, 1, command, tmp_path / "output", broken, after=45) == 75
    stopped = finished_steps(broken / "checkpoints")[-1]
    assert 45 <= stopped < NUM_STEPS and read_metrics(broken)[-1]["step"] == stopped
    before = logged(broken)
    assert before[-1]["step"] == stopped and before == logged(whole)[: len(before)]


# The ends above, of test_launch_preemption.py and of test_slurm.py are of the same kinds.
@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_random_ends_change_nothing(seed: int, corpus: Path, whole: Path, tmp_path: Path) -> None:
    draw, broken = random.Random(seed), tmp_path / "broken"
    command, output = words("gpt", corpus, broken), tmp_path / "output"
    for after in sorted(draw.sample(range(0, NUM_STEPS - 20), 2)):
        number, victim = draw.choice([signal.SIGTERM, signal.SIGKILL]), draw.randrange(2)
        stop_one(number, victim, command, output, broken, after, local.GRACE_SECONDS)
    finish(command, output)
    assert_same_run(broken, whole)


def launched(command: list[str], folder: Path, in_process_1: str) -> "subprocess.CompletedProcess[str]":
    """Run a command by the launcher in two processes, the second of which first runs some code of its own."""
    lines = "".join(f"    {line}\n" for line in in_process_1.strip().splitlines())
    (folder / "sitecustomize.py").write_text(
        f"import os\nif os.environ.get('JAX_PROCESS_ID') == '1':\n    from jaxformer.errors import UserError\n{lines}"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
        "XLA_FLAGS": xla_flags(1),
    }
    words = [sys.executable, "-m", "jaxformer", "launch", "local", "--processes=2", "--restarts=0", "--", *command]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_a_process_that_fails_takes_the_others_down_and_is_named_first(corpus: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    done = launched(
        words("gpt", corpus, tmp_path / "run"), tmp_path,
        """
import jaxformer.runs.data
def fails(*args, **keys):
    raise UserError('data.path: the disk of this host is gone')
jaxformer.runs.data.prepare = fails
""",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    own = lines.index("[1] jaxformer train: data.path: the disk of this host is gone")
    others = [number for number, line in enumerate(lines) if "another process of this run has gone" in line]
    assert all(own < number for number in others)
    said = "worker 1 ended with exit code 2: jaxformer train: data.path: the disk of this host is gone"
    assert lines[-1] == f"jaxformer launch: {said}"
    assert "Traceback" not in done.stderr and time.monotonic() - began < 60


@pytest.mark.slow
def test_an_error_of_ours_is_not_taken_for_the_end_of_a_peer(corpus: Path, tmp_path: Path) -> None:
    done = launched(
        words("gpt", corpus, tmp_path / "run"), tmp_path,
        """
import jax
import jaxformer.runs.loop
def fails(*args, **keys):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes.')
jaxformer.runs.loop.start_state = fails
""",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "[1] jaxformer train: internal error: JaxRuntimeError: RESOURCE_EXHAUSTED" in done.stderr
    assert "fails" in (tmp_path / "run" / "error-1.log").read_text()
    assert done.stderr.splitlines()[-1].startswith(
        "jaxformer launch: worker 1 ended with exit code 1: jaxformer train: internal error"
    )


@pytest.mark.slow
def test_processes_that_read_different_files_are_refused(corpus: Path, tmp_path: Path) -> None:
    done = launched(
        words("gpt", corpus, tmp_path / "run"), tmp_path,
        """
import jaxformer.runs.data
original = jaxformer.runs.data.training_members
def shorter(*args, **keys):
    return [[member._replace(rows=range(3)) for member in members] for members in original(*args, **keys)]
jaxformer.runs.data.training_members = shorter
""",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "[1] jaxformer train: the data of this process (number 1) is not that of process 0" in done.stderr
    assert not finished_steps(tmp_path / "run" / "checkpoints")


@pytest.mark.slow
def test_a_stop_while_a_resumed_run_begins_is_not_lost(corpus: Path, whole: Path, tmp_path: Path) -> None:
    """The signal comes before the first step of this part of the run, which has steps behind it already."""
    run = begun(whole, tmp_path / "run", 60)
    command = words("gpt", corpus, run)
    done = launched(
        command, tmp_path,
        """
import signal, time
import jaxformer.runs.loop
original = jaxformer.runs.loop.start_state
def stopped(*args, **keys):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)
    return original(*args, **keys)
jaxformer.runs.loop.start_state = stopped
""",
    )  # fmt: skip
    assert done.returncode == 75, done.stderr
    assert 60 < finished_steps(run / "checkpoints")[-1] < NUM_STEPS


@pytest.mark.parametrize(
    ("scripts", "code", "said"),
    [
        (["pass", "pass"], 0, ""),
        (["sys.exit(75)", "sys.exit(75)"], 75, "preempted"),
        (["sys.exit(75)", "time.sleep(60)"], 75, "preempted"),  # one that waits for peers who have gone
        (["sys.exit(2)", "time.sleep(60)"], 2, "worker 0 ended with exit code 2"),
        (["time.sleep(0.6); sys.exit(1)", "sys.exit(3)"], 1, "worker 1 ended with exit code 3"),
        (["time.sleep(60)", "os.kill(os.getpid(), 9)"], 1, "worker 1 was ended by SIGKILL"),
        (["os.kill(os.getpid(), 15)", "sys.exit(75)"], 75, "preempted"),  # stopped before it had a handler
        (["sys.exit(75)", "os.abort()"], 75, "preempted"),  # as JAX does where the first process is lost
    ],
)
def test_the_launcher_tells_who_failed_first(scripts: list[str], code: int, said: str) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", f"import os, sys, time; {script}"], text=True) for script in scripts
    ]
    codes = local.ends(started, grace=2.0)
    assert all(process.poll() is not None for process in started)
    assert outcome_of(codes, lambda worker: "") == Outcome(code, said)


def test_the_end_of_a_peer_is_told_from_other_errors() -> None:
    """Also where a step runs in the thread that calls it, whose error is a ValueError with a status."""
    lost = "UNKNOWN: Gloo all-reduce failed: Read error [127.0.0.1]:7381: Connection reset by peer"
    assert is_peers_end(ValueError(lost))
    assert not is_peers_end(ValueError("no peer of that name"))
    assert not is_peers_end(ValueError("INVALID_ARGUMENT: shapes differ"))
    assert not is_peers_end(RuntimeError(lost))
