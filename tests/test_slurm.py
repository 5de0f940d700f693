"""SLURM for real: two nodes on loopback, and jobs that `jaxformer launch slurm` submits, stops and shows."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm
from compiling import xla_flags
from sweeps import RATE, overrides
from training import logged, make_corpus, pretraining

from jaxformer.checkpoint import finished_steps
from jaxformer.launch import local
from jaxformer.launch.records import Record, jobs_folder
from jaxformer.report import read_sweep
from jaxformer.storage import read_metrics, read_record

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.missing()), reason=f"no SLURM here: {', '.join(slurm.missing())}"),
]

NUM_STEPS = 120
KEYS = {"training.num_steps": NUM_STEPS, "checkpoint.every": 50, "footprint.enabled": False}
Launch = Callable[..., str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Slurm]:
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as found:
        yield found


@pytest.fixture
def launch(run_cli: Callable[..., "local.subprocess.CompletedProcess[str]"], cluster: slurm.Slurm) -> Launch:
    """Return a function that runs `jaxformer launch …` and gives what it printed; `code`: what it must end with."""

    def run(*words: str, code: int = 0) -> str:
        done = run_cli("launch", *words, env=cluster.environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def number_of(name: str) -> str:
    return Record(jobs_folder() / name).state()["id"]


def wait_for_step(workdir: Path, step: int, cluster: slurm.Slurm, job: str) -> None:
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(workdir)):
        assert time.monotonic() < deadline and cluster.state(job) in ("PENDING", "RUNNING"), cluster.output(job)
        time.sleep(0.05)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.full), 2])
def test_a_preempted_job_comes_back_and_goes_on_to_its_end(
    devices: int, cluster: slurm.Slurm, launch: Launch, tmp_path: Path
) -> None:
    """That it ends as an unbroken run does to the last bit, test_processes.py and test_launch_preemption.py say."""
    corpus, broken = make_corpus(tmp_path), tmp_path / "broken"
    flags = {"XLA_FLAGS": xla_flags(devices)}
    name = f"broken-{devices}"
    words = ["slurm", f"--name={name}", "--hosts=2", "--backoff=1", f"--env=XLA_FLAGS={flags['XLA_FLAGS']}"]
    command = [*words, "--detach", "--", *pretraining("gpt", corpus, broken, **KEYS)]
    assert f"{name} is SLURM's job" in launch(*command)
    job = number_of(name)
    assert "queue already" in launch(*command, code=2)
    wait_for_step(broken, 20, cluster, job)
    cluster.cancel(job, "--signal=TERM")
    assert cluster.wait(job, ["COMPLETED"], timeout=180) == "COMPLETED", cluster.output(job)
    assert cluster.fields(job)["Restarts"] == "1"
    shown = json.loads(launch("status", name, "--json"))
    assert (shown["state"], shown["attempts"]) == ("done", 2)
    said = {worker: "\n".join(Record(jobs_folder() / name).tails(1000)[worker]) for worker in shown["workers"]}
    assert said.keys() == {"0", "1"} and "stopped by SIGTERM and saved" in said["0"] and "resuming" in said["0"]
    assert read_record(broken)["device"] == {"platform": "cpu", "kind": "cpu", "count": 2 * devices, "processes": 2}
    steps = [line["step"] for line in logged(broken) if "train/loss" in line]
    assert steps == list(range(1, NUM_STEPS + 1)) and finished_steps(broken / "checkpoints")[-1] == NUM_STEPS


def test_a_job_that_is_stopped_saves_and_stays_away_until_it_is_launched_again(
    cluster: slurm.Slurm, launch: Launch, tmp_path: Path
) -> None:
    corpus, run = make_corpus(tmp_path), tmp_path / "run"
    command = ["slurm", "--name=stopped", "--", *pretraining("gpt", corpus, run, **KEYS)]
    launch(*command[:2], "--detach", *command[2:])
    job = number_of("stopped")
    wait_for_step(run, 5, cluster, job)
    launch("stop", "stopped")
    cluster.wait(job, ["FAILED"], timeout=60)
    assert cluster.exit_code(job) == (75, 0)
    shown = json.loads(launch("status", "stopped", "--json"))
    assert shown["state"] == "stopped" and finished_steps(run / "checkpoints")[-1] < NUM_STEPS
    followed = launch(*command)  # to its end
    assert "[0]" in followed and "resuming" in followed
    assert json.loads(launch("status", "stopped", "--json"))["state"] == "done"
    assert finished_steps(run / "checkpoints")[-1] == NUM_STEPS
    launch("delete", "stopped")
    assert "no job 'stopped'" in launch("status", "stopped", code=2)


def test_a_job_that_the_user_must_mend_stops_and_shows_the_line(
    cluster: slurm.Slurm, launch: Launch, tmp_path: Path
) -> None:
    corpus = make_corpus(tmp_path)
    command = pretraining("gpt", corpus, tmp_path / "run", **{**KEYS, "data.path": tmp_path / "missing.txt"})
    shown = launch("slurm", "--name=mend", "--hosts=2", "--", *command, code=2)
    assert "missing.txt" in shown and "ended with exit code 2" in shown
    assert cluster.fields(number_of("mend"))["Restarts"] == "0"


@pytest.mark.full  # 160 s; the script of an array is a golden text, and workers that die have a test of their own
def test_the_jobs_of_an_array_share_a_sweep_and_one_that_is_preempted_comes_back(
    cluster: slurm.Slurm, launch: Launch, tmp_path: Path
) -> None:
    # Two nodes, one study: what no faster test has is SLURM's own way with the elements of an array.
    corpus, study = make_corpus(tmp_path), tmp_path / "study"
    keys = [f"--config.{key}" for key in overrides(corpus, **{"footprint.enabled": False, "training.num_steps": 400})]
    command = ["--", "sweep", "--config=gpt:smoke", *keys, f"--sweep.{RATE}=1e-3,1e-2,3e-2", "--sweep.seed=0:2"]
    launch("slurm", "--name=sweep", "--array=2", "--backoff=1", "--detach", *command, f"--study={study}")
    job = number_of("sweep")
    deadline = time.monotonic() + 180
    while not (study / "trials").exists() or sum(t.state == "running" for t in read_sweep(study).trials) < 2:
        assert time.monotonic() < deadline, launch("status", "sweep")
        time.sleep(0.1)
    assert json.loads(launch("status", "sweep", "--json"))["state"] == "running"
    cluster.cancel(f"{job}_0", "--signal=TERM")
    while (shown := json.loads(launch("status", "sweep", "--json")))["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline + 240, shown
        time.sleep(1)
    assert shown["state"] == "done" and shown["attempts"] == 2 and shown["workers"].keys() == {"0", "1"}, shown
    said = ["\n".join(Record(jobs_folder() / "sweep").tails(1000)[worker]) for worker in "01"]
    assert all(": begins" in text or ": goes on" in text for text in said)
    assert [point.state for point in read_sweep(study).points] == ["done"] * 3
    assert all(trial.record["failures"] == 0 for trial in read_sweep(study).trials)
