"""Launching on make-believe clouds: fakes of gcloud, kubectl and sky run the workers on this machine, and fail."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import clouds
import gcs
import pytest
from training import assert_same_run, make_corpus, pretraining

from jaxformer.checkpoint import finished_steps
from jaxformer.launch import local
from jaxformer.launch.records import Record, jobs_folder
from jaxformer.run import read_metrics

SECRET = "hf_PkxQ-not-for-anybody"
NUM_STEPS = 120
KEYS = {"training.num_steps": NUM_STEPS, "checkpoint.every": 20, "footprint.enabled": False}
# Two workers, as gcloud counts.
TPU = ["tpu_vm", "--zone=us-central2-b", "--accelerator=v4-16", "--poll=0.1", "--backoff=0.1"]
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[clouds.Cloud]:
    with clouds.install(tmp_path / "cloud") as cloud:
        kept = ("JAXFORMER_CACHE", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "JAX_DEFAULT_MATMUL_PRECISION")
        cloud.worker_environment.update({name: os.environ[name] for name in kept})
        monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "launcher"))  # not that of the workers
        cloud.environment["JAXFORMER_CACHE"] = str(tmp_path / "launcher")
        yield cloud


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What is sent to the workers: a repository with files that git knows, does not know yet, and ignores."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name, text in {"known.txt": "1", "new.txt": "2", "ignored.txt": "3", ".gitignore": "ignored.txt"}.items():
        (folder / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    subprocess.run(["git", "-C", folder, "add", "known.txt"], check=True)
    return folder


def python_is(script: str) -> str:
    """Shell for --setup that makes a worker's Python this script of bash, in place of an installation."""
    write = shlex.join(["printf", "%s", f"#!/bin/bash\n{script}\n"])
    return f"mkdir -p .venv/bin && {write} > .venv/bin/python && chmod +x .venv/bin/python"


REAL = python_is(f'exec {shlex.quote(sys.executable)} "$@"')


@pytest.fixture
def launch(cloud: clouds.Cloud, project: Path) -> Iterator[Launch]:
    """Return a function that starts `jaxformer launch …` beside the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> "subprocess.Popen[str]":
        environment = {**cloud.environment, "HF_TOKEN": SECRET, "XLA_FLAGS": ""}
        command = [sys.executable, "-m", "jaxformer", "launch", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=project, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def output(process: "subprocess.Popen[str]", code: int) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def status(launch: Launch, name: str) -> dict[str, object]:
    return json.loads(output(launch("status", name, "--json"), 0))


def until(holds: Callable[[], object], process: "subprocess.Popen[str] | None" = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def speaking() -> bool:
    """Whether both workers of the job have said something."""
    said = [path.read_text().splitlines() for path in Record(jobs_folder() / "job").logs().values()]
    return len(said) == 2 and all(len(lines) > 1 for lines in said)  # the first says which attempt it is


def reached(run: Path, step: int) -> Callable[[], bool]:
    return lambda: bool([entry for entry in read_metrics(run) if entry["step"] >= step])


# Quick ones: the worker's Python is a line of bash.


def tpu(script: str, *words: str, secret: str = "") -> list[str]:
    return [
        *TPU,
        f"--setup={python_is(script)}",
        *words,
        "--",
        "train",
        "--config=gpt:smoke",
        f"--workdir=gs://b/{secret or 'job'}",
    ]


def test_a_tpu_is_made_prepared_and_used(cloud: clouds.Cloud, launch: Launch) -> None:
    script = 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $HF_TOKEN $WHO $(cat known.txt new.txt) $(echo *) $*"'
    said = output(launch(*tpu(script, "--secret=HF_TOKEN", "--env=WHO=you & me", "--spot")), 0)
    for index in range(2):
        line = f"[{index}] {index} of 2: *** you & me 12 known.txt new.txt -m jaxformer train --config=gpt:smoke"
        assert line in said, said
    assert SECRET not in said and SECRET not in json.dumps([cloud.calls("gcloud")])
    assert "the TPU is kept, and paid for: `jaxformer launch delete job`" in said
    kept = "".join(path.read_text(errors="replace") for path in (jobs_folder() / "job").glob("*.*[nt]"))
    assert SECRET not in kept and "***" in kept
    verbs = [call[3] for call in cloud.calls("gcloud")]
    assert verbs.count("create") == 1 and verbs.count("scp") == 2 and "delete" not in verbs
    found = status(launch, "job")
    assert (found["state"], found["attempts"], found["message"]) == ("done", 1, "the TPU is READY")
    assert "making 1 x v4-16" in said
    assert set(found["workers"]) == {"0", "1"}  # type: ignore[arg-type]
    output(launch("delete", "job"), 0)
    assert not cloud.state()["nodes"] and not (jobs_folder() / "job").exists()


@pytest.mark.slow
def test_75_runs_again_and_a_second_launch_goes_on_counting(cloud: clouds.Cloud, launch: Launch, project: Path) -> None:
    script = "echo $$ >> ../runs; [ $(wc -l < ../runs) -lt 3 ] && exit 75; echo enough $(echo *)"
    said = output(launch(*tpu(script)), 0)
    assert said.count("preempted; attempt") == 2 and "[0] enough known.txt new.txt" in said and "[1] enough" in said
    assert status(launch, "job")["attempts"] == 3
    assert [call[3] for call in cloud.calls("gcloud")].count("create") == 1  # the TPU was there
    (project / "new.txt").unlink()
    said = output(launch(*tpu(script, "--delete")), 0)
    assert "[0] enough known.txt\n" in said  # what was sent before and is no longer there is gone
    assert status(launch, "job")["attempts"] == 4 and not cloud.state()["nodes"]


def test_the_line_of_the_worker_that_the_user_must_mend_is_shown(cloud: clouds.Cloud, launch: Launch) -> None:
    script = 'if [ $JAX_PROCESS_ID = 1 ]; then echo "data.path: no such file"; exit 2; fi; sleep 2; exit 75'
    said = output(launch(*tpu(script)), 2)
    line = "worker 1 ended with exit code 2: data.path: no such file"
    assert said.count(line) == 1 and "attempt 2" not in said
    found = status(launch, "job")
    assert found["state"] == "failed" and line in str(found["message"])


@pytest.mark.slow
def test_workers_that_hang_when_one_has_failed_are_ended(
    cloud: clouds.Cloud, launch: Launch, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "sitecustomize.py").write_text("from jaxformer.launch import tpu_vm\ntpu_vm.GRACE_SECONDS = 1\n")
    cloud.environment["PYTHONPATH"] = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    script = "if [ $JAX_PROCESS_ID = 1 ]; then echo oh; exit 1; fi; exec -a hangs sleep 300"
    began = time.monotonic()
    assert "worker 1 ended with exit code 1: oh" in output(launch(*tpu(script)), 1)
    assert time.monotonic() - began < 60
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if _read(path).startswith(b"hangs\x00300")]


@pytest.mark.slow
@pytest.mark.parametrize("reconnect", [True, False])
def test_a_broken_connection_loses_and_repeats_nothing(reconnect: bool, cloud: clouds.Cloud, launch: Launch) -> None:
    process = launch(*tpu("for i in $(seq 40); do echo line $i; sleep 0.1; done", "--delete"))
    until(speaking, process)
    assert cloud.break_ssh("job", reconnect=reconnect) == 2
    said = output(process, 0)
    for worker in range(2):
        lines = [line for line in said.splitlines() if line.startswith(f"[{worker}] line")]
        assert lines == [f"[{worker}] line {number}" for number in range(1, 41)]
    assert ("connecting again" in said) != reconnect


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("quota", "ask for more quota"), ("permission", "ask the project's owner"), ("login", "log in"),
    ],
)  # fmt: skip
def test_what_the_user_must_mend_stops_the_launch(
    kind: clouds.Kind, said: str, cloud: clouds.Cloud, launch: Launch
) -> None:
    cloud.fail("gcloud", ["create"], kind)
    shown = output(launch(*tpu("true")), 2).splitlines()
    assert said in shown[-1] and shown[-1].startswith("jaxformer launch: gcloud says: ")
    found = status(launch, "job")
    assert found["state"] == "failed" and said in str(found["message"])


@pytest.mark.slow
def test_no_capacity_is_waited_for(cloud: clouds.Cloud, launch: Launch) -> None:
    cloud.fail("gcloud", ["create"], "capacity", times=2)
    said = output(launch(*tpu("true", "--delete")), 0)
    assert said.count("no TPU yet") == 2
    cloud.fail("gcloud", ["create"], "capacity", times=2)
    assert "started 2 times" in output(launch(*tpu("true", "--restarts=1")), 75)


@pytest.mark.slow
def test_ssh_that_is_refused_is_said_so(cloud: clouds.Cloud, launch: Launch) -> None:
    cloud.fail("gcloud", ["ssh"], "ssh_refused")
    assert "see that your network lets SSH through" in output(launch(*tpu("true")), 2)


@pytest.mark.slow
def test_the_queue_is_waited_in_and_slices_know_each_other(cloud: clouds.Cloud, launch: Launch) -> None:
    said = output(launch(*tpu('echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES"', "--slices=2", "--delete")), 0)
    assert all(f"[{index}] {index} of 4" in said for index in range(4))
    assert "WAITING_FOR_RESOURCES" in said and "PROVISIONING" in said
    creations = [call for call in cloud.calls("gcloud") if "create" in call]
    assert creations[0][2] == "queued-resources" and "--node-count=2" in creations[0]
    assert not cloud.state()["nodes"]


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_the_same_command_looks_after_it(cloud: clouds.Cloud, launch: Launch) -> None:
    words = tpu("for i in $(seq 60); do echo line $i; sleep 0.1; done; [ -e ../again ] || { touch ../again; exit 75; }")
    process = launch(*words)
    until(speaking, process)
    assert "runs already" in output(launch(*words), 2)
    process.send_signal(signal.SIGINT)
    assert "the same command looks after it again" in output(process, 130)
    assert status(launch, "job")["state"] == "left alone"
    before = len(cloud.calls("gcloud"))
    said = output(launch(*words), 0)
    assert [call[3] for call in cloud.calls("gcloud")[before:]].count("scp") == 0
    assert said.count("[0] line 60") == 2 and "attempt 2 in" in said
    assert status(launch, "job")["attempts"] == 2


@pytest.mark.slow
def test_a_tpu_that_somebody_deleted_is_made_and_prepared_anew(cloud: clouds.Cloud, launch: Launch) -> None:
    words = tpu("echo ready; [ -e $WHERE/second ] || sleep 300", f"--env=WHERE={cloud.folder}", "--delete")
    process = launch(*words)
    until(speaking, process)
    process.send_signal(signal.SIGINT)
    output(process, 130)
    delete = ["gcloud", "compute", "tpus", "tpu-vm", "delete", "job", "--zone=us-central2-b", "--quiet"]
    subprocess.run(delete, env=cloud.environment, check=True, capture_output=True)
    (cloud.folder / "second").touch()
    said = output(launch(*words), 0)
    assert "making 1 x v4-16" in said and "preparing 2 workers" in said and "[1] ready" in said


@pytest.mark.slow
def test_a_stopped_job_saves_and_does_not_come_back(cloud: clouds.Cloud, launch: Launch) -> None:
    process = launch(*tpu("trap 'echo saved; exit 75' TERM; echo ready; while true; do sleep 0.1; done"))
    until(speaking, process)
    output(launch("stop", "job"), 0)
    said = output(process, 75)
    assert "[0] saved" in said and "[1] saved" in said
    found = status(launch, "job")
    assert (found["state"], found["attempts"], found["message"]) == ("stopped", 1, "preempted; the TPU is READY")


# What may come between.


def interrupted(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGINT) -> str:
    process.send_signal(number)
    return output(process, 130)


@pytest.mark.slow
def test_a_launcher_that_ends_while_the_tpu_is_made_is_made_up_for(cloud: clouds.Cloud, launch: Launch) -> None:
    cloud.settings["create_seconds"] = 3.0
    process = launch(*tpu("echo well"))
    until(lambda: [call for call in cloud.calls("gcloud") if "create" in call], process)
    time.sleep(0.5)
    assert "left job as it is" in interrupted(process, signal.SIGTERM)
    said = output(launch(*tpu("echo well")), 0)
    assert "[0] well" in said and "[1] well" in said and "connecting again" not in said
    assert [call[3] for call in cloud.calls("gcloud")].count("create") <= 2


@pytest.mark.slow
def test_a_platform_that_does_not_answer_is_no_failure_of_the_job(cloud: clouds.Cloud, launch: Launch) -> None:
    words = tpu("for i in $(seq 80); do echo line $i; sleep 0.1; done")
    process = launch(*words)
    until(speaking, process)
    cloud.fail("gcloud", ["describe"], "login", times=1000)
    cloud.fail("gcloud", ["ssh"], "login", times=1000)
    cloud.break_ssh("job")
    assert "lost sight of job, which goes on" in output(process, 2)
    cloud.forgive()
    before = len(cloud.calls("gcloud"))
    said = output(launch(*words), 0)
    assert "[0] line 80" in said and "scp" not in [call[3] for call in cloud.calls("gcloud")[before:]]
    assert status(launch, "job")["attempts"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("queued", [True, False])
def test_a_stop_before_the_job_runs_holds(queued: bool, cloud: clouds.Cloud, launch: Launch) -> None:
    cloud.settings.update({"create_seconds": 3.0, "queue_describes": 1000})
    process = launch(*tpu("echo it ran", *(["--queued"] if queued else [])))
    until(lambda: [call for call in cloud.calls("gcloud") if "create" in call], process)
    output(launch("stop", "job"), 0)
    assert "it ran" not in output(process, 75)
    found = status(launch, "job")
    assert found["state"] == "stopped" and "stopped before it ran" in str(found["message"])
    assert "stopped already" in output(launch("stop", "job"), 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "times", "code", "said"),
    [
        (["--restarts=1"], 2, 75, "started 2 times"),
        (["--valid-until=6h"], 1, 2, "the queue ended it as FAILED: no luck"),
    ],
)
def test_a_queue_that_gives_nothing_is_joined_again_only_so_often(
    words: list[str], times: int, code: int, said: str, cloud: clouds.Cloud, launch: Launch
) -> None:
    cloud.settings["queue_describes"] = 1000
    process = launch(*tpu("echo it ran", "--queued", *words))
    for number in range(times):
        until(lambda: [call[3] for call in cloud.calls("gcloud")].count("create") > number, process)  # noqa: B023
        until(lambda: cloud.state().get("queued"), process)
        cloud.give_up("job", "no luck")
    assert said in output(process, code)
    assert not cloud.state().get("queued")


@pytest.mark.slow
def test_deleting_ends_the_launcher_first(cloud: clouds.Cloud, launch: Launch) -> None:
    process = launch(*tpu("echo ready; sleep 100"))
    until(speaking, process)
    output(launch("delete", "job"), 0)
    assert process.wait(10) == 130
    assert not cloud.state()["nodes"] and not (jobs_folder() / "job").exists()


@pytest.mark.slow
def test_a_tpu_that_is_kept_is_not_forgotten_and_nobody_elses_is_touched(cloud: clouds.Cloud, launch: Launch) -> None:
    output(launch(*tpu("true")), 0)
    other = ["local", "--name=job", "--", "train", "--config=gpt:smoke"]
    assert "is another one" in output(launch(*other), 2)
    elsewhere = [word.replace("us-central2-b", "us-east5-b") for word in tpu("true")]
    assert "with another --zone ('us-central2-b')" in output(launch(*elsewhere), 2)
    (jobs_folder() / "job" / "state.json").unlink()  # as on another machine
    assert "which is not of this job" in output(launch(*tpu("true")), 2)
    assert cloud.state()["nodes"]["job"]["state"] == "READY"


@pytest.mark.slow
def test_a_preemption_while_the_workers_are_prepared_is_one(cloud: clouds.Cloud, launch: Launch) -> None:
    words = tpu("echo well", "--delete")
    slow = [
        word.replace("--setup=", "--setup=[ -e ../../../slow ] || { touch ../../../slow; sleep 30; }; ")
        for word in words
    ]
    process = launch(*slow)
    until(lambda: list(cloud.folder.rglob("slow")), process)
    cloud.preempt("job")
    said = output(process, 0)
    assert "the TPU was taken while it was prepared" in said and "[0] well" in said


@pytest.mark.slow
def test_a_worker_that_fails_on_a_tpu_that_is_taken_does_not_stop_the_job(
    cloud: clouds.Cloud, launch: Launch, tmp_path: Path
) -> None:
    script = "[ -e $WHERE/second ] && echo well && exit 0; [ $JAX_PROCESS_ID = 0 ] && exec sleep 300; echo oh; exit 1"
    process = launch(*tpu(script, f"--env=WHERE={tmp_path}", "--delete"))
    log = jobs_folder() / "job" / "worker-1.txt"
    until(lambda: log.exists() and "oh" in log.read_text(), process)
    (tmp_path / "second").touch()
    cloud.preempt("job")
    said = output(process, 0)
    assert "preempted: the TPU is PREEMPTED" in said and "[0] well" in said and "[1] well" in said


@pytest.mark.slow
@pytest.mark.parametrize("place", ["skypilot", "gke"])
def test_a_job_that_was_never_taken_can_be_stopped_and_forgotten(
    place: str, cloud: clouds.Cloud, launch: Launch
) -> None:
    words = SKY if place == "skypilot" else [*GKE, "--accelerator=v4-16"]
    cloud.fail(*(("sky", ["launch"]) if place == "skypilot" else ("kubectl", ["apply"])), "login")
    assert "log in" in output(launch(*words, *COMMAND), 2)
    assert "already" in output(launch("stop", "job"), 0)
    output(launch("logs", "job"), 0)
    output(launch("delete", "job"), 0)
    assert "no job was launched" in output(launch("status"), 0)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_goes_on_to_all_local_processes(
    number: signal.Signals, code: int, processes: int, cloud: clouds.Cloud, launch: Launch, project: Path
) -> None:
    (project / "sitecustomize.py").write_text(
        "import os, signal, sys, time\n"
        "def save(number, frame):\n"
        "    print('saved on', signal.Signals(number).name, flush=True)\n"
        "    os._exit(130 if number == signal.SIGINT else 75)\n"
        "if 'launch' not in sys.orig_argv and 'train' in sys.orig_argv:\n"
        "    signal.signal(signal.SIGTERM, save), signal.signal(signal.SIGINT, save)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(100)\n"
    )
    cloud.environment["PYTHONPATH"] = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    process = launch("local", "--name=job", f"--processes={processes}", "--", "train", "--config=gpt:smoke")
    record = Record(jobs_folder() / "job")
    until(lambda: "".join(path.read_text() for path in record.logs().values()).count("ready") == processes, process)
    process.send_signal(number)
    said = output(process, code)
    # Of several processes JAX listens for SIGTERM alone.
    name = "SIGINT" if processes == 1 and number == signal.SIGINT else "SIGTERM"
    assert all(f"[{index}] saved on {name}" in said for index in range(processes)) and "attempt 2" not in said
    assert status(launch, "job")["state"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "delete", "SIGINT", "SIGTERM"])
def test_a_local_job_can_be_stopped_while_it_pauses(
    how: str, cloud: clouds.Cloud, launch: Launch, project: Path
) -> None:
    (project / "sitecustomize.py").write_text(
        "import os, sys\nif 'launch' not in sys.orig_argv and 'train' in sys.orig_argv:\n    os._exit(75)\n"
    )
    cloud.environment["PYTHONPATH"] = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    process = launch("local", "--name=job", "--backoff=300", "--", "train", "--config=gpt:smoke")
    record = Record(jobs_folder() / "job")
    until(lambda: record.folder.exists() and record.state()["state"] == "waiting to run again", process)
    if how in ("stop", "delete"):
        output(launch(how, "job"), 0)
    else:
        process.send_signal(signal.Signals[how])
    assert "preempted; attempt 2 in 300 s" in output(process, 75)
    if how != "delete":
        assert status(launch, "job")["state"] == "stopped"
    else:
        assert not record.folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--delete"], ["--slices=2", "--delete"]])
def test_the_dry_run_of_a_tpu_can_be_pasted(
    more: list[str], cloud: clouds.Cloud, launch: Launch, project: Path
) -> None:
    place, *words = tpu('echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: ${#HF_TOKEN} $WHO $(cat known.txt)"', *more)
    text = output(launch(place, "--dry-run", "--secret=HF_TOKEN", "--env=WHO=you & me", *words), 0)
    assert SECRET not in text
    environment = {**cloud.environment, "HF_TOKEN": SECRET}
    done = subprocess.run(["bash"], input=text, cwd=project, env=environment, capture_output=True, text=True)
    count = 4 if "--slices=2" in more else 2
    for index in range(count):
        assert f"1\t{index} of {count}: {len(SECRET)} you & me 1\n" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("exit\t0") == count and not cloud.state()["nodes"]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["gke", "skypilot"])
def test_the_dry_run_of_a_manifest_can_be_pasted(
    place: str, cloud: clouds.Cloud, launch: Launch, project: Path
) -> None:
    stub(cloud, 'echo "${#HF_TOKEN} $WHO $*" > "$WHERE/$JAX_PROCESS_ID"')
    cloud.worker_environment["WHERE"] = str(project)
    words = [*SKY] if place == "skypilot" else [*GKE, "--accelerator=v4-16"]
    text = output(launch(*words, "--dry-run", "--secret=HF_TOKEN", "--env=WHO=$(you) & me", *COMMAND), 0)
    assert SECRET not in text
    environment = {**cloud.environment, "HF_TOKEN": SECRET}
    subprocess.run(["bash", "-e"], input=text, cwd=project, env=environment, check=True, text=True)
    until(lambda: all((project / str(index)).exists() for index in range(2)))
    for index in range(2):
        said = (project / str(index)).read_text()
        assert said == f"{len(SECRET)} $(you) & me train --config=gpt:smoke --workdir=gs://b/job\n"


# Kubernetes and SkyPilot, quick.


def stub(cloud: clouds.Cloud, script: str) -> None:
    """Make `jaxformer`, which an image has, a script of bash."""
    folder = cloud.folder / "image"
    folder.mkdir()
    (folder / "jaxformer").write_text(f"#!/bin/bash\n{script}\n")
    (folder / "jaxformer").chmod(0o755)
    cloud.worker_environment["PATH"] = os.pathsep.join([str(folder), os.environ["PATH"]])


GKE = ["gke", "--name=job", "--image=image:1", "--poll=0.1", "--backoff=0"]
SKY = ["skypilot", "--name=job", "--image=image:1", "--accelerator=h100:8", "--hosts=2", "--backoff=0"]
COMMAND = ["--", "train", "--config=gpt:smoke", "--workdir=gs://b/job"]


@pytest.mark.parametrize("accelerator", [["--accelerator=v4-16", "--slices=2"], ["--accelerator=h100:8", "--hosts=4"]])
def test_a_jobset_is_applied_followed_and_deleted(accelerator: list[str], cloud: clouds.Cloud, launch: Launch) -> None:
    cloud.settings["check_manifests"] = True
    stub(cloud, 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES: $HF_TOKEN $WHO $*"')
    said = output(launch(*GKE, *accelerator, "--secret=HF_TOKEN", "--env=WHO=$(you) & me", "--queue=q", *COMMAND), 0)
    for index in range(4):
        assert f"[{index}] {index} of 4: *** $(you) & me train --config=gpt:smoke --workdir=gs://b/job" in said, said
    kept = "".join(path.read_text(errors="replace") for path in (jobs_folder() / "job").iterdir())
    assert SECRET not in kept and SECRET not in json.dumps(cloud.calls("kubectl"))
    found = status(launch, "job")
    assert (found["state"], found["attempts"], set(found["workers"])) == ("done", 1, {"0", "1", "2", "3"})  # type: ignore[arg-type]
    output(launch("delete", "job"), 0)
    assert not cloud.state().get("jobsets") and not cloud.state().get("secrets")


@pytest.mark.slow
def test_a_jobset_runs_again_on_75_and_stops_on_2(cloud: clouds.Cloud, launch: Launch) -> None:
    script = (
        'echo "attempt $ATTEMPT"; sleep 1.5; [ $ATTEMPT -lt 2 ] && exit 75; [ $JAX_PROCESS_ID = 1 ] || exec sleep 20'
    )
    stub(cloud, f'{script}; echo "data.path: gone"; exit 2')
    said = output(launch(*GKE, "--accelerator=v4-16", "--secret=HF_TOKEN", *COMMAND), 2)
    assert "failed: worker 1 ended with exit code 2: data.path: gone" in said
    assert all(f"[1] attempt {number}" in said for number in range(3))
    assert status(launch, "job")["attempts"] == 3
    # The same command makes room for itself.
    stubbed = cloud.folder / "image" / "jaxformer"
    stubbed.write_text("#!/bin/bash\nexit 75\n")
    output(launch(*GKE, "--accelerator=v4-16", "--restarts=1", "--secret=HF_TOKEN", *COMMAND), 75)
    assert status(launch, "job")["attempts"] == 2


@pytest.mark.slow
def test_a_jobset_that_is_stopped_has_time_to_save(cloud: clouds.Cloud, launch: Launch) -> None:
    stub(cloud, "trap 'echo saved >> ../saved; exit 75' TERM; echo ready; while true; do sleep 0.1; done")
    output(launch(*GKE, "--accelerator=v4-16", "--detach", *COMMAND), 0)
    until(lambda: status(launch, "job")["workers"] == {"0": ["ready"], "1": ["ready"]})
    again = output(launch(*GKE, "--accelerator=v4-16", *COMMAND), 2)
    assert "runs on this cluster already" in again and "lost sight" not in again
    output(launch("stop", "job"), 0)
    assert len(list(cloud.folder.rglob("saved"))) >= 1
    found = status(launch, "job")
    assert (found["state"], found["workers"]) == ("stopped", {"0": ["ready"], "1": ["ready"]})


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "said"), [("permission", "ask the project's owner"), ("login", "log in")])
def test_a_cluster_that_refuses_is_said_so(kind: clouds.Kind, said: str, cloud: clouds.Cloud, launch: Launch) -> None:
    cloud.fail("kubectl", ["apply"], kind)
    assert said in output(launch(*GKE, "--accelerator=v4-16", *COMMAND), 2).splitlines()[-1]


def test_skypilot_runs_again_on_75_and_stops_on_2(cloud: clouds.Cloud, launch: Launch) -> None:
    stub(
        cloud,
        'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at ${JAX_COORDINATOR_ADDRESS##*:}: ${#HF_TOKEN}"; echo x >> runs\n'
        "[ $(wc -l < runs) -lt 3 ] && exit 75; [ $JAX_PROCESS_ID = 1 ] || exec sleep 20\n"
        'echo "data.path: gone"; exit 2',
    )
    said = output(launch(*SKY, "--secret=HF_TOKEN", *COMMAND), 2)
    for index in range(2):
        # The first may be ended, for the other's sake, before it speaks again.
        assert said.count(f"[{index}] {index} of 2 at 8476: {len(SECRET)}") in ((1, 2, 3), (3,))[index], said
    assert "failed: worker 1 ended with exit code 2: data.path: gone" in said
    assert SECRET not in json.dumps(cloud.calls("sky"))
    assert SECRET not in (jobs_folder() / "job" / "task.yaml").read_text()
    found = status(launch, "job")
    assert found["state"] == "failed" and "data.path: gone" in str(found["workers"])


@pytest.mark.slow
def test_skypilots_job_is_stopped(cloud: clouds.Cloud, launch: Launch) -> None:
    stub(cloud, "echo ready; exec sleep 100")
    output(launch(*SKY, "--detach", *COMMAND), 0)
    until(lambda: status(launch, "job")["state"] == "running")
    assert "not over" in output(launch(*SKY, *COMMAND), 2)
    output(launch("stop", "job"), 0)
    until(lambda: status(launch, "job")["state"] == "stopped")


# Training in two processes, from which the machines are taken in the middle.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus, and a run on it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    corpus = make_corpus(folder)
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    assert local.wait(local.start(pretraining("gpt", corpus, folder / "run", **KEYS), 2, flags)) == 0
    return corpus, folder / "run"


def training(whole: tuple[Path, Path], run: Path | str) -> list[str]:
    words = pretraining("gpt", whole[0], Path("run"), **KEYS)
    return ["--", *(f"--workdir={run}" if word.startswith("--workdir=") else word for word in words)]


@pytest.mark.slow
@pytest.mark.parametrize("queued", [[], ["--queued"]])
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
@pytest.mark.parametrize(("place", "warning"), [("gke-tpu", None), ("gke-gpus", 20.0), ("skypilot", None)])
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


def pod_of(cloud: clouds.Cloud, index: int) -> str:
    (name,) = [key.partition("/")[2] for key in cloud.state()["pods"] if f"-0-{index}-" in key]
    return name


@pytest.mark.slow
def test_a_local_run_whose_processes_are_asked_to_stop_comes_back(
    whole: tuple[Path, Path], launch: Launch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = launch("local", "--name=job", "--processes=2", "--backoff=0", *training(whole, run))
    until(reached(run, 20), process)
    (worker,) = [
        path.parent for path in Path("/proc").glob("[0-9]*/environ")
        if b"JAX_PROCESS_ID=1" in _read(path) and str(run).encode() in _read(path.with_name("cmdline"))
    ]  # fmt: skip
    os.kill(int(worker.name), signal.SIGTERM)
    assert "preempted; attempt 2" in output(process, 0)
    assert_same_run(run, whole[1])
    assert Record(jobs_folder() / "job").state()["attempts"] == 2


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
