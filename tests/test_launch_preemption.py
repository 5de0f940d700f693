"""Training in two processes, from which the machines are taken in the middle: it ends as an unbroken run does."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import clouds
import gcs
import pytest
from compiling import xla_flags
from launching import GKE, SKY, TPU, Launch, output, python_is, read, status, stub, until
from training import assert_same_run, make_corpus, pretraining

from jaxformer.checkpoint import finished_steps
from jaxformer.launch import local
from jaxformer.launch.records import Record, jobs_folder
from jaxformer.storage import read_metrics

NUM_STEPS = 120
KEYS = {"training.num_steps": NUM_STEPS, "checkpoint.every": 20, "footprint.enabled": False}
REAL = python_is(f'exec {shlex.quote(sys.executable)} "$@"')


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus, and a run on it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = make_corpus(folder)
    flags = {"XLA_FLAGS": xla_flags(1)}
    assert local.wait(local.start(pretraining("gpt", corpus, folder / "run", **KEYS), 2, flags)) == 0
    return corpus, folder / "run"


def training(whole: tuple[Path, Path], run: Path | str) -> list[str]:
    words = pretraining("gpt", whole[0], Path("run"), **KEYS)
    return ["--", *(f"--workdir={run}" if word.startswith("--workdir=") else word for word in words)]


def reached(run: Path, step: int) -> Callable[[], bool]:
    return lambda: bool([entry for entry in read_metrics(run) if entry["step"] >= step])


def pod_of(cloud: clouds.Cloud, index: int) -> str:
    (name,) = [key.partition("/")[2] for key in cloud.state()["pods"] if f"-0-{index}-" in key]
    return name


@pytest.mark.slow
# How a TPU is queued for again, test_launch_tpu_vm.py shows.
@pytest.mark.parametrize("queued", [[], pytest.param(["--queued"], marks=pytest.mark.full)])
def test_a_preempted_tpu_is_made_again_and_the_run_ends_as_an_unbroken_one(
    queued: list[str], whole: tuple[Path, Path], cloud: clouds.Cloud, launch: Launch, tmp_path: Path
) -> None:
    with gcs.serve() as bucket:
        cloud.worker_environment.update(bucket.environment)
        words = [*TPU, "--name=job", *queued, "--spot", "--delete", f"--setup={REAL}"]
        process = launch(*words, *training(whole, "gs://bucket/run"))
        until(lambda: "run/checkpoints/40/digest.json" in bucket.objects, process)
        cloud.preempt("job")
        said = output(process, 0)
        assert "preempted: the TPU is" in said and "deleting it" in said and "resuming gs://bucket/run at step" in said
        verbs = [call[3] for call in cloud.calls("gcloud")]
        assert verbs.count("create") == 2 and verbs.count("delete") == 2 and not cloud.state()["nodes"]
        fetched = tmp_path / "fetched"
        for name, data in bucket.objects.items():
            path = fetched / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        assert_same_run(fetched / "run", whole[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "warning"),
    [
        # Without a warning the TPU above goes; that each place runs a job again test_launch_platforms.py shows.
        pytest.param("gke-tpu", None, marks=pytest.mark.full), ("gke-gpus", 20.0),
        pytest.param("skypilot", None, marks=pytest.mark.full),
    ],
)  # fmt: skip
def test_a_preempted_job_ends_as_an_unbroken_one(
    place: str, warning: float | None, whole: tuple[Path, Path], cloud: clouds.Cloud, launch: Launch, tmp_path: Path
) -> None:
    stub(cloud, f'exec {shlex.quote(sys.executable)} -m jaxformer "$@"')
    run = tmp_path / "store" / "run"
    words = {
        "gke-tpu": [*GKE, "--accelerator=v4-16"], "gke-gpus": [*GKE, "--accelerator=h100:8", "--hosts=2"],
        "skypilot": SKY,
    }[place]  # fmt: skip
    process = launch(*words, "--spot", f"--mount={tmp_path / 'store'}=gs://bucket", *training(whole, run))
    until(reached(run, 45), process)
    cloud.preempt("job" if place == "skypilot" else pod_of(cloud, 1), warning=warning)
    said = output(process, 0)
    assert "resuming" in said
    assert status(launch, "job")["attempts"] == 2
    assert finished_steps(run / "checkpoints")[-1] == NUM_STEPS
    assert_same_run(run, whole[1])


# The stop of one of two is in test_processes.py, and that the launcher runs them again in test_launch_local.py.
@pytest.mark.slow
@pytest.mark.full
def test_a_local_run_whose_processes_are_asked_to_stop_comes_back(
    whole: tuple[Path, Path], launch: Launch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = launch("local", "--name=job", "--processes=2", "--backoff=0", *training(whole, run))
    until(reached(run, 20), process)
    (worker,) = [
        path.parent for path in Path("/proc").glob("[0-9]*/environ")
        if b"JAX_PROCESS_ID=1" in read(path) and str(run).encode() in read(path.with_name("cmdline"))
    ]  # fmt: skip
    os.kill(int(worker.name), signal.SIGTERM)
    assert "preempted; attempt 2" in output(process, 0)
    assert_same_run(run, whole[1])
    assert Record(jobs_folder() / "job").state()["attempts"] == 2
