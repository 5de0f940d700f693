"""The fakes of gcloud, kubectl and sky behave as the real ones do: all that tests of launchers rely on."""

import copy
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clouds
import pytest
import yaml

ZONE = "--zone=us-east5-b"
TPU = ["--accelerator-type=v5litepod-16", ZONE]
NODE = ["compute", "tpus", "tpu-vm"]
QUEUE = ["compute", "tpus", "queued-resources"]
CONTAINER = "w"
MANIFEST = f"""
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {{name: train, labels: {{kueue.x-k8s.io/queue-name: tpus}}}}
spec:
  failurePolicy: {{maxRestarts: 2}}
  replicatedJobs:
  - name: slice
    replicas: 2
    template:
      spec:
        backoffLimit: 0
        completions: 2
        parallelism: 2
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 1
            containers:
            - name: {CONTAINER}
              image: image:tag
              command: [bash, -c]
              args: [echo]
              env:
              - {{name: GREETING, value: "hello"}}
              - name: INDEX
                valueFrom:
                  fieldRef: {{fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
              - name: SLICE
                valueFrom: {{fieldRef: {{fieldPath: "metadata.labels['jobset.sigs.k8s.io/job-index']"}}}}
              resources: {{limits: {{google.com/tpu: 4}}}}
"""
SPOT = {"name": "spot", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
AGAIN = {"rules": [
    {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [75]}},
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
]}  # fmt: skip


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[clouds.Cloud]:
    with clouds.install(tmp_path / "cloud") as cloud:
        cloud.hosts["v5litepod-16"] = 2
        yield cloud


def run(cloud: clouds.Cloud, *words: str, code: int = 0, text: str = "") -> str:
    """What a tool prints, both streams together, once its exit code is the expected one."""
    done = subprocess.run(
        words,
        env=cloud.environment,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def start(cloud: clouds.Cloud, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        words,
        env=cloud.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(what: Callable[[], Any], timeout: float = 15) -> Any:
    end = time.monotonic() + timeout
    while not (result := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return result


def create(cloud: clouds.Cloud, name: str = "node") -> None:
    run(cloud, "gcloud", *NODE, "create", name, *TPU, "--version=v2-alpha-tpuv5-lite")


def ssh(*words: str) -> list[str]:
    return ["gcloud", *NODE, "ssh", "node", ZONE, *words]


def alive(path: Path) -> bool:
    """Whether the process still runs whose number a file has."""
    stat = Path(f"/proc/{path.read_text().strip()}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["gcloud", *NODE, "create", "n", *TPU, "--version=v", "--machine=x"],
            2,
            "unrecognized arguments: --machine=x",
        ),
        (["gcloud", *NODE, "create", "n", *TPU], 2, "argument --version: Must be specified"),
        (
            ["gcloud", *QUEUE, "create", "n", *TPU, "--node-id=n", "--version=v"],
            2,
            "unrecognized arguments: --version=v",
        ),
        (["gcloud", *QUEUE, "create", "n", *TPU, "--runtime-version=v"], 2, "--node-id | --node-count"),
        (["gcloud", *NODE, "describe", "n"], 1, "Failed to find attribute [zone]"),
        (["gcloud", *NODE, "describe", "n", ZONE], 1, "(gcloud.compute.tpus.tpu-vm.describe) NOT_FOUND: "),
        (["gcloud", *NODE, "create", "n", ZONE, "--version=v", "--accelerator-type=v9-8"], 1, "INVALID_ARGUMENT"),
        (["gcloud", "compute", "tpus", "restart", "n"], 2, "Invalid choice"),
        (["kubectl", "apply", "--file", "x"], 1, "unrecognized arguments: --file"),
        (["kubectl", "get", "jobset", "n"], 1, 'jobsets.jobset.x-k8s.io "n" not found'),
        (["kubectl", "get", "deployments"], 1, "the server doesn't have a resource type"),
        (["sky", "jobs", "launch", "--detach", "x.yaml"], 2, "--detach"),
        (["sky", "jobs", "cancel"], 2, "Can only specify one of"),
        (["sky", "launch", "x.yaml"], 2, "No such command 'launch'"),
    ],
)
def test_a_wrong_command_line_is_refused(cloud: clouds.Cloud, words: list[str], code: int, message: str) -> None:
    assert message in run(cloud, *words, code=code)
    assert cloud.calls(words[0]) == [words[1:]]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("quota", "RESOURCE_EXHAUSTED"),
        ("capacity", "There is no more capacity in the zone"),
        ("permission", "PERMISSION_DENIED"),
        ("login", "$ gcloud auth login"),
        ("exists", "ALREADY_EXISTS"),
    ],
)
def test_a_planned_failure_happens_as_often_as_planned(cloud: clouds.Cloud, kind: clouds.Kind, message: str) -> None:
    cloud.fail("gcloud", ["tpu-vm", "create"], kind, times=2)
    for _ in range(2):
        assert message in run(cloud, "gcloud", *NODE, "create", "node", *TPU, "--version=v", code=1)
    create(cloud)


def test_a_node_is_created_used_and_deleted(cloud: clouds.Cloud) -> None:
    create(cloud)
    assert (
        run(cloud, "gcloud", *NODE, "describe", "node", ZONE, "--format=value(state,name.basename())")
        == "READY\tnode\n"
    )
    assert "ALREADY_EXISTS" in run(cloud, "gcloud", *NODE, "create", "node", *TPU, "--version=v", code=1)
    node = json.loads(run(cloud, "gcloud", *NODE, "list", ZONE, "--format=json"))[0]
    assert node["state"] == "READY" and len(node["networkEndpoints"]) == 2
    run(cloud, "gcloud", *NODE, "delete", "node", ZONE, "--quiet")
    assert run(cloud, "gcloud", *NODE, "list", ZONE, "--format=value(name)") == ""


def test_hosts_follow_from_the_accelerator(cloud: clouds.Cloud) -> None:
    del cloud.hosts["v5litepod-16"]
    expected = {"v2-8": 1, "v3-32": 4, "v4-16": 2, "v5p-8": 1, "v5litepod-8": 1, "v5litepod-16": 4, "v6e-16": 4}
    for kind in expected:
        run(cloud, "gcloud", *NODE, "create", kind, ZONE, f"--accelerator-type={kind}", "--version=v", "--async")
    assert {name: node["hosts"] for name, node in cloud.state()["nodes"].items()} == expected


def test_ssh_runs_a_command_with_a_clean_environment(cloud: clouds.Cloud) -> None:
    create(cloud)
    cloud.worker_environment["EXTRA"] = "extra"
    output = run(cloud, *ssh("--worker=1", "--command=env; pwd; cat; exit 3"), text="from stdin\n", code=3)
    assert "from stdin\n" in output and "EXTRA=extra\n" in output and "FAKE_CLOUD=" not in output
    assert "JAX_PROCESS_ID=1\n" in output and "JAX_NUM_PROCESSES=2\n" in output
    assert (
        f"HOME={cloud.folder}/nodes/node/worker-1\n" in output and f"\n{cloud.folder}/nodes/node/worker-1\n" in output
    )


def test_several_workers_need_a_first_connection_to_one(cloud: clouds.Cloud) -> None:
    create(cloud)
    everywhere = ssh("--worker=all", "--command=echo $JAX_PROCESS_ID; exit $JAX_PROCESS_ID")
    assert "Failed to execute command on multiple workers" in run(cloud, *everywhere, code=255)
    run(cloud, *ssh("--command=true"))
    assert "##### Command execution on worker 1 failed with exit status 1." in run(cloud, *everywhere, code=1)
    assert run(cloud, *ssh("--worker=all", "--command=cat"), text="to one of them").count("to one of them") == 1


def test_output_of_a_command_arrives_at_once(cloud: clouds.Cloud) -> None:
    create(cloud)
    client = start(cloud, *ssh("--command=echo now; exec sleep 60"))
    assert client.stdout is not None and client.stdout.readline() == "now\n"
    client.kill()
    client.communicate()


# A command of which one process moved to a session of its own, as launchers start training.
DETACHED = "--command=nohup setsid bash -c 'echo $$ > detached; exec sleep 60' < /dev/null > log 2>&1 & " \
    "until [ -s detached ]; do sleep 0.01; done; echo $$ > shell; echo started; sleep 60"  # fmt: skip


@pytest.mark.parametrize("how", ["break_ssh", "terminate", "kill"])
def test_what_moved_away_outlives_its_connection(cloud: clouds.Cloud, how: str) -> None:
    create(cloud)
    client = start(cloud, *ssh(DETACHED))
    assert client.stdout is not None and client.stdout.readline() == "started\n"
    assert cloud.break_ssh("node") == 1 if how == "break_ssh" else getattr(client, how)() is None
    errors = client.communicate(timeout=10)[1]
    if how == "break_ssh":
        assert client.returncode == 255 and "exited with return code [255]" in errors
    home = cloud.folder / "nodes/node/worker-0"
    wait(lambda: not alive(home / "shell"))
    assert alive(home / "detached")
    assert run(cloud, "gcloud", *NODE, "describe", "node", ZONE, "--format=value(state)") == "READY\n"


def test_a_broken_connection_that_comes_back_runs_the_command_again(cloud: clouds.Cloud) -> None:
    create(cloud)
    client = start(cloud, *ssh("--command=echo life >> lives; echo started; [ $(wc -l < lives) = 2 ] || sleep 60"))
    assert client.stdout is not None and client.stdout.readline() == "started\n"
    cloud.break_ssh("node", reconnect=True)
    assert client.communicate(timeout=10)[0] == "started\n" and client.returncode == 0


def test_preemption_kills_everything_on_the_node(cloud: clouds.Cloud) -> None:
    create(cloud)
    client = start(cloud, *ssh(DETACHED))
    assert client.stdout is not None and client.stdout.readline() == "started\n"
    cloud.preempt("node")
    assert "closed by remote host" in client.communicate(timeout=10)[1] and client.returncode == 255
    assert not alive(cloud.folder / "nodes/node/worker-0/detached")
    assert run(cloud, "gcloud", *NODE, "describe", "node", ZONE, "--format=value(state)") == "PREEMPTED\n"
    assert 'terminal state "PREEMPTED"' in run(cloud, *ssh("--command=true"), code=1)
    run(cloud, "gcloud", *NODE, "create", "node", *TPU, "--version=v", code=1)
    run(cloud, "gcloud", *NODE, "delete", "node", ZONE, "--quiet")
    create(cloud)
    assert not (cloud.folder / "nodes/node").exists()  # the disk was another


def test_a_warned_process_ends_by_itself(cloud: clouds.Cloud) -> None:
    create(cloud)
    client = start(cloud, *ssh("--command=trap 'exit 75' TERM; echo started; while :; do sleep 0.05; done"))
    assert client.stdout is not None and client.stdout.readline() == "started\n"
    cloud.preempt("node", warning=10)
    client.communicate(timeout=10)
    assert client.returncode in (75, 255)  # the connection may go first


def test_a_queued_resource_becomes_nodes_and_is_suspended(cloud: clouds.Cloud) -> None:
    run(
        cloud,
        "gcloud",
        *QUEUE,
        "create",
        "q",
        *TPU,
        "--runtime-version=v",
        "--node-count=2",
        "--node-prefix=n",
        "--spot",
    )
    describe = ["gcloud", *QUEUE, "describe", "q", ZONE, "--format=value(state.state)"]
    assert [run(cloud, *describe).strip() for _ in range(4)] == [
        "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE",
    ]  # fmt: skip
    assert run(cloud, "gcloud", *NODE, "list", ZONE, "--format=value(name.basename())") == "n-0\nn-1\n"
    output = run(cloud, "gcloud", *NODE, "ssh", "n-1", ZONE, "--worker=1", "--command=env")
    assert "JAX_PROCESS_ID=3\n" in output and "JAX_NUM_PROCESSES=4\n" in output
    cloud.preempt("n-0")
    assert run(cloud, *describe) == "SUSPENDED\n"
    run(cloud, "gcloud", *QUEUE, "delete", "q", ZONE, "--force", "--quiet")
    assert "NOT_FOUND" in run(cloud, *describe, code=1)


def test_files_are_copied_to_all_workers(cloud: clouds.Cloud, tmp_path: Path) -> None:
    create(cloud)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_text("text")
    run(cloud, *ssh("--command=true"))
    scp = ["gcloud", *NODE, "scp", str(tmp_path / "folder"), "node:~/there", ZONE, "--worker=all"]
    assert "not a regular file" in run(cloud, *scp, code=1)
    run(cloud, *scp, "--recurse")
    assert [(cloud.folder / f"nodes/node/worker-{k}/there/file").read_text() for k in (0, 1)] == ["text", "text"]


def manifest(script: str, policy: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load(MANIFEST)
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    container = job["template"]["spec"]["containers"][0]
    container["args"] = [script]
    container.update(changes)
    if policy is not None:
        job["podFailurePolicy"] = AGAIN
        made["spec"]["failurePolicy"] = policy
    return made


def apply(cloud: clouds.Cloud, *args: Any, **changes: Any) -> None:
    run(cloud, "kubectl", "-n", "ml", "apply", "-f", "-", text=yaml.safe_dump(manifest(*args, **changes)))


def status(cloud: clouds.Cloud) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(run(cloud, "kubectl", "get", "jobset", "train", "-n", "ml", "-o", "json"))[
        "status"
    ]
    return result


def ended(cloud: clouds.Cloud) -> tuple[str, int]:
    """How the JobSet ended, and after how many restarts."""
    wait(lambda: status(cloud).get("terminalState"))
    last = status(cloud)
    return last["conditions"][-1]["reason"], last["restarts"]


def pods(cloud: clouds.Cloud) -> list[dict[str, Any]]:
    selector = "jobset.sigs.k8s.io/jobset-name=train"
    found: list[dict[str, Any]] = json.loads(
        run(cloud, "kubectl", "get", "pods", "-n", "ml", "-l", selector, "-o", "json")
    )["items"]
    return found


def running(cloud: clouds.Cloud) -> bool:
    return [pod["status"]["phase"] for pod in pods(cloud)] == ["Running"] * 4


def test_pods_of_a_jobset_run_with_their_environment(cloud: clouds.Cloud) -> None:
    made = run(cloud, "kubectl", "create", "secret", "generic", "s", "--from-env-file=/dev/stdin", "--dry-run=client",
               "-o", "yaml", text="TOKEN=a=b\n")  # fmt: skip
    run(cloud, "kubectl", "apply", "-n", "ml", "-f", "-", text=made)
    secret = {"secretRef": {"name": "s"}}
    apply(
        cloud,
        "echo $(GREETING) $$SLICE.$$INDEX $$TOKEN $$JAX_PROCESS_ID/$$JAX_NUM_PROCESSES '$(NONE)'",
        envFrom=[secret],
    )
    assert ended(cloud) == ("AllJobsCompleted", 0)
    names = [pod["metadata"]["name"] for pod in pods(cloud)]
    assert sorted(run(cloud, "kubectl", "logs", name, "-f", "-n", "ml") for name in names) == [
        f"hello {k // 2}.{k % 2} a=b {k}/4 $(NONE)\n" for k in range(4)
    ]
    assert pods(cloud)[0]["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 0
    run(cloud, "kubectl", "delete", "jobset", "train", "-n", "ml")
    assert pods(cloud) == []


def test_restarts_of_a_jobset_are_counted(cloud: clouds.Cloud) -> None:
    apply(cloud, "[ $INDEX = 0 ] || exit 1; exec sleep 60")
    assert ended(cloud) == ("ReachedMaxRestarts", 2)
    # What survived the failure was deleted, and no process of it is left.
    assert {pod["status"]["phase"] for pod in pods(cloud)} == {"Failed"}


def test_exit_codes_decide_by_the_policies_of_pods_and_jobset(cloud: clouds.Cloud) -> None:
    rules = {"maxRestarts": 0, "rules": [SPOT]}
    lives = f"{cloud.folder}/lives"
    apply(cloud, f"echo >> {lives}; [ $(wc -l < {lives}) -gt 8 ] && exit 1; exit 75", rules)
    reason, restarts = ended(cloud)
    assert reason == "ReachedMaxRestarts" and restarts >= 1


def test_preempted_pods_are_restarted_without_being_counted(cloud: clouds.Cloud) -> None:
    apply(cloud, "trap 'exit 3' TERM; while :; do sleep 0.05; done", {"maxRestarts": 0, "rules": [SPOT]})
    for restarts, warning in enumerate([None, 5], start=1):
        wait(lambda: running(cloud))
        before = {pod["metadata"]["name"] for pod in pods(cloud)}
        cloud.preempt("train-slice-1", warning)
        wait(lambda count=restarts: status(cloud)["restarts"] == count)
        wait(lambda: running(cloud))
        assert not before & {pod["metadata"]["name"] for pod in pods(cloud)}
    assert status(cloud)["restartsCountTowardsMax"] == 0


def test_pods_that_fit_nowhere_are_pending(cloud: clouds.Cloud) -> None:
    cloud.settings["unschedulable"] = True
    apply(cloud, "true")
    conditions = wait(lambda: [pod["status"]["conditions"][0] for pod in pods(cloud)])
    assert {condition["reason"] for condition in conditions} == {"Unschedulable"}
    cloud.settings["unschedulable"] = False
    assert ended(cloud) == ("AllJobsCompleted", 0)


def test_a_jobset_is_suspended_and_resumed(cloud: clouds.Cloud) -> None:
    apply(cloud, "exec sleep 60")
    wait(lambda: running(cloud))
    for value in ("true", "false"):
        run(
            cloud,
            "kubectl",
            "patch",
            "jobset",
            "train",
            "-n",
            "ml",
            "--type=merge",
            "-p",
            f'{{"spec":{{"suspend":{value}}}}}',
        )
        wait(lambda value=value: running(cloud) if value == "false" else not pods(cloud))
    assert status(cloud)["restarts"] == 0


def test_the_address_of_a_pod_becomes_one_of_this_machine(cloud: clouds.Cloud) -> None:
    addresses = [{"name": "JAX_COORDINATOR_ADDRESS", "value": "train-slice-0-0.train:8476"}]
    apply(cloud, "echo $JAX_COORDINATOR_ADDRESS", env=addresses, resources={})
    assert ended(cloud) == ("AllJobsCompleted", 0)
    printed = {run(cloud, "kubectl", "logs", pod["metadata"]["name"], "-n", "ml") for pod in pods(cloud)}
    assert len(printed) == 1 and printed.pop().startswith("127.0.0.1:")


def change(path: str, value: Any) -> dict[str, Any]:
    """A good manifest but for one value; None takes it away."""
    made = manifest("true", {"maxRestarts": 1, "restartStrategy": "BlockingRecreate", "rules": [dict(SPOT)]})
    made = copy.deepcopy(made)
    made["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"] = copy.deepcopy(AGAIN)
    part: Any = made
    keys = [int(key) if key.isdigit() else key for key in path.replace("POD", POD).replace("JOB", JOB).split(".")]
    for key in keys[:-1]:
        part = part[key]
    if value is None:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    return made


JOB = "spec.replicatedJobs.0.template.spec"
POD = f"{JOB}.template.spec"


def test_a_good_manifest_passes(cloud: clouds.Cloud) -> None:
    pytest.importorskip("kubeflow_trainer_api")
    clouds.check_manifest(change("metadata.name", "other"))
    cloud.settings["check_manifests"] = True
    wrong = yaml.safe_dump(change("spec.suspended", True))
    assert "suspended" in run(cloud, "kubectl", "apply", "-f", "-", text=wrong, code=1)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "Jobset"),
        ("apiVersion", "jobset.x-k8s.io/v1"),
        ("metadata.label", {"a": "b"}),
        ("metadata.labels", {"a": 1}),
        ("metadata.name", "a" * 60),
        ("spec.suspended", True),
        ("spec.failurePolicy.maxRestart", 3),
        ("spec.failurePolicy.maxRestarts", "3"),
        ("spec.failurePolicy.restartStrategy", "Blocking"),
        ("spec.failurePolicy.rules.0.action", "Restart"),
        ("spec.failurePolicy.rules.0.action", None),
        ("spec.failurePolicy.rules.0.name", "a-b"),
        ("spec.failurePolicy.rules.0.onJobFailureReasons", ["Preempted"]),
        ("spec.failurePolicy.rules.0.targetReplicatedJobs", ["other"]),
        ("spec.replicatedJobs.0.name", None),
        ("spec.replicatedJobs.0.template.podFailurePolicy", AGAIN),
        ("JOB.backofLimit", 0),
        ("JOB.backoffLimit", "0"),
        ("JOB.podFailurePolicy.rules.0.onExitCodes.operator", "Is"),
        ("JOB.podFailurePolicy.rules.0.onExitCodes.values", [76, 75]),
        ("JOB.podFailurePolicy.rules.0.onExitCodes.containerName", "other"),
        ("POD.restartpolicy", "Never"),
        ("POD.restart_policy", "Never"),
        ("POD.restartPolicy", "OnFailure"),
        ("POD.terminationGracePeriodSeconds", "30"),
        ("POD.nodeSelector", ["a"]),
        ("POD.containers", None),
        ("POD.containers.0.name", None),
        ("POD.containers.0.comand", ["true"]),
        ("POD.containers.0.command", "true"),
        ("POD.containers.0.env.0.value", 1),
        ("POD.containers.0.env.0.name", None),
        ("POD.containers.0.env.1.valueFrom.fieldRef.fieldpath", "metadata.name"),
        ("POD.containers.0.resources.limit", {}),
        ("POD.containers.0.resources.limits", {"google.com/tpu": "four"}),
        ("POD.containers.0.resources.requests", {"google.com/tpu": 8}),
    ],
)
def test_a_mistake_in_a_manifest_is_found(path: str, value: Any) -> None:
    pytest.importorskip("kubeflow_trainer_api")
    with pytest.raises(ValueError):
        clouds.check_manifest(change(path, value))


def launch(cloud: clouds.Cloud, code: int = 0, detach: bool = False, recovery: Any = None, **task: Any) -> str:
    path = cloud.folder / "task.yaml"
    resources = {"accelerators": "H100:8", "use_spot": True, "job_recovery": recovery or {}}
    path.write_text(yaml.safe_dump({"name": "train", "num_nodes": 2, "resources": resources, **task}))
    return run(cloud, "sky", "jobs", "launch", str(path), "-y", *["-d"] * detach, code=code)


def job(cloud: clouds.Cloud) -> tuple[str, int]:
    newest = json.loads(run(cloud, "sky", "jobs", "queue", "-o", "json"))[0]
    return newest["status"], newest["recovery_count"]


def test_a_job_of_sky_runs_on_all_nodes(cloud: clouds.Cloud, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/file").touch()
    output = launch(
        cloud,
        setup="echo setup",
        run="ls; echo $SKYPILOT_NODE_RANK/$SKYPILOT_NUM_NODES $SKYPILOT_NUM_GPUS_PER_NODE $A",
        workdir=str(tmp_path / "code"),
        envs={"A": "a"},
    )
    lines = [line.partition(")") for line in output.splitlines()]
    said = {(head.split("pid")[0], tail.strip()) for head, _, tail in lines}
    assert {("(head, rank=0, ", "0/2 8 a"), ("(worker1, rank=1, ", "1/2 8 a"), ("(setup ", "setup")} <= said
    assert ("(head, rank=0, ", "file") in said and "Managed Job ID: 1" in output
    assert job(cloud) == ("SUCCEEDED", 0)


def test_hosts_of_a_tpu_are_nodes_of_sky(cloud: clouds.Cloud) -> None:
    task = {"num_nodes": 1, "resources": {"accelerators": "tpu-v5litepod-16"}}
    output = launch(cloud, run="echo rank $SKYPILOT_NODE_RANK of $SKYPILOT_NUM_NODES $JAX_NUM_PROCESSES", **task)
    assert "rank 0 of 2 2" in output and "rank 1 of 2 2" in output


def test_one_failed_node_ends_a_job_of_sky(cloud: clouds.Cloud) -> None:
    output = launch(
        cloud, run="[ $SKYPILOT_NODE_RANK = 0 ] || exit 3; sleep 60", recovery={"max_restarts_on_errors": 1}, code=100
    )
    assert "[137, 3]" in output
    assert job(cloud) == ("FAILED", 1)
    launch(cloud, setup="exit 1", run="true", code=100)
    assert job(cloud) == ("FAILED_SETUP", 0)


def test_exit_codes_to_recover_on_are_not_counted(cloud: clouds.Cloud) -> None:
    lives = f"{cloud.folder}/lives"
    launch(
        cloud, run=f"echo >> {lives}; [ $(wc -l < {lives}) -gt 6 ] || exit 75", recovery={"recover_on_exit_codes": [75]}
    )
    status, recoveries = job(cloud)
    assert status == "SUCCEEDED" and recoveries >= 2


def test_a_job_of_sky_recovers_from_preemption_and_is_cancelled(cloud: clouds.Cloud) -> None:
    launch(cloud, run="echo started; exec sleep 60", detach=True)

    def started() -> bool:
        return run(cloud, "sky", "jobs", "logs", "1", "--no-follow").count("started\n") == 2

    for recoveries in (1, 2):
        wait(started)
        cloud.preempt("train", warning=None if recoveries == 1 else 1)
        wait(lambda count=recoveries: job(cloud) == ("RUNNING", count))
    run(cloud, "sky", "jobs", "cancel", "--name", "train", "-y")
    wait(lambda: job(cloud)[0] == "CANCELLED")
    assert "(status: CANCELLED)" in run(cloud, "sky", "jobs", "logs", "1", code=103)
    assert "No running managed job found" in run(cloud, "sky", "jobs", "logs", "-n", "train", code=102)


def test_a_secret_of_sky_comes_from_the_environment(cloud: clouds.Cloud) -> None:
    cloud.environment["TOKEN"] = "secret"
    path = cloud.folder / "task.yaml"
    path.write_text(yaml.safe_dump({"name": "train", "secrets": {"TOKEN": None}, "run": "echo $TOKEN"}))
    assert "Secret variable 'TOKEN' is None" in run(cloud, "sky", "jobs", "launch", str(path), "-y", code=1)
    assert ") secret" in run(cloud, "sky", "jobs", "launch", str(path), "-y", "--secret", "TOKEN")


def test_a_task_with_an_unknown_key_is_refused(cloud: clouds.Cloud) -> None:
    assert "unsupported field 'max_restarts'" in launch(cloud, run="true", recovery={"max_restarts": 1}, code=1)


def test_many_calls_at_once_do_not_disturb_each_other(cloud: clouds.Cloud) -> None:
    clients = [start(cloud, "gcloud", *NODE, "create", f"n{k}", *TPU, "--version=v") for k in range(12)]
    assert [client.communicate(timeout=30) and client.returncode for client in clients] == [0] * 12
    assert len(cloud.state()["nodes"]) == len(cloud.calls("gcloud")) == 12


def test_nothing_outlives_a_cloud(tmp_path: Path) -> None:
    with clouds.install(tmp_path / "cloud") as cloud:
        cloud.hosts["v5litepod-16"] = 2
        create(cloud)
        client = start(cloud, *ssh(DETACHED))
        assert client.stdout is not None and client.stdout.readline() == "started\n"
        run(cloud, "kubectl", "apply", "-f", "-", text=yaml.safe_dump(manifest("exec sleep 60")))
        launch(cloud, run="exec sleep 60", detach=True)
    assert client.wait(10) is not None
    assert str(cloud.folder) not in "".join(
        path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
    )
