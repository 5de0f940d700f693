"""Make-believe clouds for tests of launchers: fakes of gcloud, kubectl and sky that run everything on this machine."""

import collections
import contextlib
import copy
import dataclasses
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fake_cloud import common

Kind = Literal["quota", "capacity", "permission", "login", "ssh_refused", "not_found", "exists"]
SETTINGS: dict[str, Any] = {
    "queue_describes": 1,  # how many describe calls a queued resource stays in each state before ACTIVE
    "create_describes": 1,  # the same for a node made with --async, in state CREATING
    "create_seconds": 0.0,  # how long `tpu-vm create` takes without --async
    "check_manifests": False,  # kubectl apply refuses what check_manifest refuses, at the cost of a slow import
    "unschedulable": False,  # no node has what pods ask for, so they stay Pending
    "entrypoint": [],  # of the container's image, for containers without a command
    "skip_setup": False,  # sky leaves out a task's setup
    "recovery_seconds": 0.0,  # how long sky takes to get other machines after a preemption
}


class Saved(collections.UserDict[str, Any]):
    """A dictionary that the fakes, which are other processes, see each change of."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self._path = path
        super().__init__(content)
        self._save()

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._save()

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._save()

    def _save(self) -> None:
        written = self._path.with_suffix(".new")
        written.write_text(json.dumps(self.data))
        written.replace(self._path)


@dataclasses.dataclass(frozen=True)
class Cloud:
    """One cloud in one folder: nodes/, pods/ and jobs/ hold what its machines wrote, calls.jsonl what was asked of it.

    `environment` is what a process needs that shall talk to this cloud instead of a real one. `hosts` overrides how
    many hosts a TPU of some type has, `worker_environment` adds to the otherwise clean environment of its machines,
    `settings` has the other things that a test may choose (see SETTINGS).
    """

    folder: Path
    environment: dict[str, str]
    hosts: Saved
    worker_environment: Saved
    settings: Saved

    @property
    def _store(self) -> common.Store:
        return common.Store(self.folder)

    def calls(self, tool: str) -> list[list[str]]:
        """The arguments of each call of gcloud, kubectl or sky so far."""
        path = self.folder / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call["argv"] for call in calls if call["tool"] == tool]

    def stdin(self, tool: str) -> list[int]:
        """How many bytes each call that read its stdin, and has ended, got from it."""
        path = self.folder / "stdin.jsonl"
        sizes = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [size["bytes"] for size in sizes if size["tool"] == tool]

    def state(self) -> dict[str, Any]:
        """All that the cloud knows: nodes, queued (resources), jobsets, pods, secrets, jobs (of sky)."""
        return self._store.read()

    def fail(self, tool: str, words: Sequence[str], kind: Kind, times: int = 1) -> None:
        """Let the next `times` calls whose arguments contain all `words` fail as the real tool does."""
        with self._store.change() as state:
            state.setdefault("failures", []).append({"tool": tool, "words": list(words), "kind": kind, "times": times})

    def preempt(self, name: str, warning: float | None = None) -> None:
        """Take a machine away: a TPU node or queued resource, a pod or all pods of a Job, or a job of sky (its name).

        Its processes are killed, `warning` seconds after a SIGTERM if that is given.
        """
        with self._store.change() as state:
            marks = _machines(state, name)
            # Others are known to be taken away from the warning on, TPU nodes when they are gone.
            _mark_preempted(state, [mark for mark in marks if warning is None or not mark.startswith("nodes/")])
        if warning is not None:
            self._warn(marks, warning)
            with self._store.change() as state:
                _mark_preempted(state, marks)
        for mark in marks:
            common.kill(common.machine(self._store, mark))

    def give_up(self, queued: str, message: str) -> None:
        """Let a queued resource fail before it was ever ACTIVE."""
        with self._store.change() as state:
            failed = {"state": "FAILED", "failedData": {"error": {"code": 8, "message": message}}}
            state["queued"][queued].update(failed)

    def forgive(self) -> None:
        """Take back what `fail` has still in store."""
        with self._store.change() as state:
            state["failures"] = []

    def _warn(self, marks: list[str], seconds: float) -> None:
        """What a shutdown sends to all processes of a machine, and a kubelet to the first of a container."""
        first = [pod.get("pid") for pod in self.state().get("pods", {}).values() if _mark("pods", "", pod) in marks]
        for mark in marks:
            for pid in common.processes(common.machine(self._store, mark)):
                if not first or pid in first:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + seconds
        while time.monotonic() < end and any(common.processes(common.machine(self._store, mark)) for mark in marks):
            time.sleep(common.TICK)

    def break_ssh(self, node: str, reconnect: bool = False) -> int:
        """Break the open ssh connections to a node, which stays READY; return how many there were.

        The clients give up with 255, as after ten attempts in vain; or else, as gcloud does when the network is back
        within its ten attempts, they run their whole command again.
        """
        living = common.processes(f"FAKE_CLOUD={self.folder}")
        pids = [pid for pid in living if (self.folder / "ssh" / node / str(pid)).exists()]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2 if reconnect else signal.SIGUSR1)
        return len(pids)

    def close(self) -> None:
        """End everything that was started here: clients, controllers and all that runs on the machines."""
        # First those that could start others.
        common.kill(f"FAKE_CLOUD={self.folder}")
        common.kill(common.machine(self._store, "*"))


def _machines(state: dict[str, Any], name: str) -> list[str]:
    """The marks of the machines that go when `name` is preempted."""
    nodes, jobs = state.get("nodes", {}), state.get("jobs", {}).items()
    names = {name}.union(*(q["nodes"] for key, q in state.get("queued", {}).items() if name in (key, *q["nodes"])))
    pods = [pod for key, pod in state.get("pods", {}).items() if name in (key.partition("/")[2], pod["job"])]
    marks = [_mark("nodes", node, nodes[node]) for node in sorted(names) if node in nodes]
    marks += [_mark("pods", "", pod) for pod in pods]
    marks += [_mark("jobs", number, job) for number, job in jobs if name == job["name"]]
    if not marks:
        raise KeyError(f"nothing is called {name}")
    return marks


def _mark(kind: str, name: str, facts: dict[str, Any]) -> str:
    """What tells the processes of this life of a machine from those of a later one with the same name."""
    if kind == "pods":
        return f"pods/{facts['uid']}"
    return f"{kind}/{name}/{facts['life' if kind == 'nodes' else 'attempt']}/*"


def _mark_preempted(state: dict[str, Any], marks: list[str]) -> None:
    """Say so before anything is killed, because whoever sees a process end looks here for the reason."""
    for kind in ("nodes", "pods", "jobs"):
        for name, facts in state.get(kind, {}).items():
            if _mark(kind, name, facts) in marks:
                facts.update({"state": "PREEMPTED"} if kind == "nodes" else {"preempted": True})
    for resource in state.get("queued", {}).values():
        if any(state.get("nodes", {}).get(node, {}).get("state") == "PREEMPTED" for node in resource["nodes"]):
            resource["state"] = "SUSPENDED"


@contextlib.contextmanager
def install(folder: Path) -> Iterator[Cloud]:
    """A cloud in `folder`, with its three tools in folder/bin; nothing of it outlives the block."""
    folder = folder.resolve()
    (folder / "bin").mkdir(parents=True)
    for tool in ("gcloud", "kubectl", "sky"):
        program = folder / "bin" / tool
        # Isolated mode keeps variables such as PYTHONPATH, meant for the program under test, from the fakes.
        words = shlex.join([sys.executable, "-I", str(Path(__file__).parent / "fake_cloud"), tool])
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        program.chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, "FAKE_CLOUD": str(folder)}
    saved = [
        Saved(folder / f"{name}.json", content)
        for name, content in {"hosts": {}, "worker_environment": {}, "settings": SETTINGS}.items()
    ]
    cloud = Cloud(folder, environment, *saved)
    try:
        yield cloud
    finally:
        cloud.close()


JOB_FAILURE_REASONS = (
    "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy",
)  # fmt: skip
ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raise a ValueError for whatever an API server with JobSet would refuse in a JobSet.

    Unknown or misspelt keys, wrong types and missing fields at any depth are found by the models of JobSet and of
    Kubernetes; the rest is what those models leave out and the webhooks of JobSet and of Jobs look at.
    """
    from kubeflow_trainer_api import models

    if (manifest.get("apiVersion"), manifest.get("kind")) != ("jobset.x-k8s.io/v1alpha2", "JobSet"):
        raise ValueError(f"not a JobSet of v1alpha2: {manifest.get('apiVersion')} {manifest.get('kind')}")
    checked = copy.deepcopy(manifest)
    _take_quantities_out(checked)
    models.JobsetV1alpha2JobSet.model_validate(checked, extra="forbid", by_alias=True, by_name=False)
    spec = manifest["spec"]
    names = [replicated["name"] for replicated in spec["replicatedJobs"]]
    policy = spec.get("failurePolicy", {})
    _one_of(policy.get("restartStrategy", "Recreate"), ("Recreate", "BlockingRecreate"))
    for rule in policy.get("rules", []):
        _one_of(rule["action"], ACTIONS)
        if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"]):
            raise ValueError(f"no name for a rule: {rule['name']}")
        for reason in rule.get("onJobFailureReasons", []):
            _one_of(reason, JOB_FAILURE_REASONS)
        for target in rule.get("targetReplicatedJobs", []):
            _one_of(target, names)
    for replicated in spec["replicatedJobs"]:
        _check_job(manifest["metadata"]["name"], replicated)


def _check_job(name: str, replicated: dict[str, Any]) -> None:
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    # The longest name of a pod, with five random characters, is also the name of a host.
    longest = f"{name}-{replicated['name']}-{replicated.get('replicas', 1) - 1}-{job.get('completions', 1) - 1}-abcde"
    if len(longest) > 63 or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", longest):
        raise ValueError(f"no name for a pod: {longest}")
    _one_of(pod.get("restartPolicy", "OnFailure"), ("Never", "OnFailure"))
    rules = job.get("podFailurePolicy", {}).get("rules", [])
    if rules and pod.get("restartPolicy") != "Never":
        raise ValueError("podFailurePolicy needs restartPolicy Never")
    containers = [container["name"] for container in pod["containers"]]
    for rule in rules:
        _one_of(rule["action"], ("FailJob", "FailIndex", "Ignore", "Count"))
        if ("onExitCodes" in rule) == ("onPodConditions" in rule):
            raise ValueError("a rule of podFailurePolicy has either onExitCodes or onPodConditions")
        if codes := rule.get("onExitCodes"):
            _one_of(codes.get("containerName", containers[0]), containers)
            if codes["values"] != sorted(set(codes["values"])) or (codes["operator"] == "In" and 0 in codes["values"]):
                raise ValueError(f"exit codes are ordered, each once, and 0 is none to fail on: {codes['values']}")
    if len({container["name"] for container in pod["containers"]}) != len(containers):
        raise ValueError("two containers of one name")
    for container in pod["containers"]:
        resources = container.get("resources", {})
        for device, count in resources.get("limits", {}).items():
            if "/" in device and str(resources.get("requests", {}).get(device, count)) != str(count):
                raise ValueError(f"requests and limits of {device} differ")


def _take_quantities_out(part: Any) -> None:
    """Check amounts such as 4 and 16Gi, which the models have wrong, and leave their places empty."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("limits", "requests") and isinstance(value, dict):
                for amount in value.values():
                    if isinstance(amount, bool) or not re.fullmatch(r"[0-9.]+([munkKMGTPE]i?)?", str(amount)):
                        raise ValueError(f"not an amount: {amount!r}")
                part[key] = {}
            elif key == "sizeLimit":
                part[key] = {}
            else:
                _take_quantities_out(value)
    elif isinstance(part, list):
        for one in part:
            _take_quantities_out(one)


def _one_of(value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
