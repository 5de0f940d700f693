"""TPU VMs: a fake of gcloud runs the workers on this machine, and fails as the real one does."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import clouds
import pytest
from launching import SECRET, Launch, interrupted, output, read, speaking, status, tpu, until

from jaxformer.launch.records import jobs_folder


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


@pytest.mark.slow
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
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if read(path).startswith(b"hangs\x00300")]


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
        # Which line says what, test_clouds.py shows every day.
        ("quota", "ask for more quota"), pytest.param("permission", "ask the project's owner", marks=pytest.mark.full),
        pytest.param("login", "log in", marks=pytest.mark.full),
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
    # The first attempt lasts until somebody looks after it again.
    script = "echo line 1; until [ -e $WHERE/go ]; do sleep 0.1; done; echo line 2; [ -e $WHERE/again ]"
    script += " || { sleep 2; touch $WHERE/again; exit 75; }"
    words = tpu(script, f"--env=WHERE={cloud.folder}")
    process = launch(*words)
    until(speaking, process)
    assert "runs already" in output(launch(*words), 2)
    process.send_signal(signal.SIGINT)
    assert "the same command looks after it again" in output(process, 130)
    assert status(launch, "job")["state"] == "left alone"
    before = len(cloud.calls("gcloud"))
    process = launch(*words)
    until(speaking, process)
    (cloud.folder / "go").touch()
    said = output(process, 0)
    assert [call[3] for call in cloud.calls("gcloud")[before:]].count("scp") == 0
    assert said.count("[0] line 2") == 2 and "attempt 2 in" in said
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
@pytest.mark.parametrize("more", [pytest.param(["--delete"], marks=pytest.mark.full), ["--slices=2", "--delete"]])
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
