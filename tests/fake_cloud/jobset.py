"""What the JobSet controller, the Job controller and kubelets do, for one JobSet whose pods are processes here."""

import base64
import datetime
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from fake_cloud import common

PREFIX = "jobset.sigs.k8s.io/"
INDEX = "batch.kubernetes.io/job-completion-index"
MESSAGES = {
    "FailedJobs": "jobset failed due to one or more job failures",
    "ReachedMaxRestarts": "jobset failed due to reaching max number of restarts",
    "FailJobSetFailurePolicyAction": "applying FailJobSet failure policy action",
}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def pod_object(pod: dict[str, Any]) -> dict[str, Any]:
    """A pod as the API gives it."""
    terminated = {"exitCode": pod["code"], "reason": "Completed" if pod["code"] == 0 else "Error"}
    running: dict[str, Any] = {"running": {"startedAt": pod["started"]}}
    waiting: dict[str, Any] = {"waiting": {"reason": pod.get("waiting", "ContainerCreating")}}
    state = {"Pending": waiting, "Running": running}.get(pod["phase"], {"terminated": terminated})
    conditions = [{"type": "Ready", "status": str(pod["phase"] == "Running")}]
    if pod["phase"] == "Pending" and "waiting" not in pod:
        message = "0/8 nodes are available: 8 Insufficient google.com/tpu."
        conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
    if pod.get("preempted"):
        conditions.append({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"})
    container = {"name": pod["container"], "state": state, "restartCount": 0, "ready": pod["phase"] == "Running"}
    status = {"phase": pod["phase"], "conditions": conditions, "containerStatuses": [container], "podIP": "127.0.0.1"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": pod["metadata"], "spec": pod["spec"], "status": status}


class Controller:
    """Runs until the JobSet is deleted."""

    def __init__(self, key: str) -> None:
        self.store = common.Store(Path(os.environ["FAKE_CLOUD"]))
        self.key = key
        self.namespace, _, self.name = key.partition("/")
        facts = self.store.read()["jobsets"][key]
        self.uid, self.manifest = facts["uid"], facts["manifest"]
        self.spec = self.manifest["spec"]
        self.running: dict[str, subprocess.Popen[bytes]] = {}  # by the pod's key
        self.readers: dict[str, threading.Thread] = {}
        self.restarts = self.counted = 0
        self.state = "stopped"  # started, finished
        self.failures: dict[str, int] = {}  # of a Job's pods

    def run(self) -> int:
        while True:
            facts = self.store.read()["jobsets"].get(self.key, {})
            suspended = bool(facts and facts["manifest"]["spec"].get("suspend"))
            if facts.get("uid") != self.uid or facts.get("deleted"):
                self._stop_all()
                with self.store.change() as state:
                    if state["jobsets"].get(self.key, {}).get("uid") == self.uid:
                        del state["jobsets"][self.key]
                return 0
            if suspended and self.state == "started":
                self._stop_all()
                self.state = "stopped"
                self._condition("Suspended", "SuspendedJobs", "jobset is suspended")
            elif not suspended and self.state == "stopped":
                self._condition("Suspended", "ResumeJobs", "jobset is resumed", "False", only_known=True)
                self._start()
            if self.state == "started":
                self._look()
            time.sleep(common.TICK)

    # Pods

    def _start(self) -> None:
        """Create all Jobs and their pods."""
        self.state, self.failures = "started", {}
        self.port = common.free_port()
        self.jobs = {
            f"{self.name}-{replicated['name']}-{index}": (replicated, index)
            for replicated in self.spec["replicatedJobs"]
            for index in range(replicated.get("replicas", 1))
        }
        for job in self.jobs:
            for index in range(self._job(job).get("completions", 1)):
                self._create_pod(job, index)

    def _job(self, job: str) -> dict[str, Any]:
        spec: dict[str, Any] = self.jobs[job][0]["template"]["spec"]
        return spec

    def _create_pod(self, job: str, index: int) -> None:
        replicated, job_index = self.jobs[job]
        template = self._job(job)["template"]
        names = list(self.jobs)
        marks = {
            PREFIX + "jobset-name": self.name,
            PREFIX + "jobset-uid": self.uid,
            PREFIX + "replicatedjob-name": replicated["name"],
            PREFIX + "replicatedjob-replicas": str(replicated.get("replicas", 1)),
            PREFIX + "global-replicas": str(len(names)),
            PREFIX + "job-index": str(job_index),
            PREFIX + "job-global-index": str(names.index(job)),
            PREFIX + "restart-attempt": str(self.restarts),
            INDEX: str(index),
        }
        given, number = template.get("metadata", {}), uuid.uuid4().hex
        metadata = {
            "name": f"{job}-{index}-{number[:5]}",
            "namespace": self.namespace,
            "uid": number,
            "labels": {**given.get("labels", {}), **marks, "job-name": job, "batch.kubernetes.io/job-name": job},
            "annotations": {**given.get("annotations", {}), **marks},
        }
        folder = self.store.folder / "pods" / f"{metadata['name']}"
        folder.mkdir(parents=True)
        pod = {
            "uid": number, "job": job, "index": index, "metadata": metadata, "spec": template["spec"], "code": None,
            "phase": "Pending", "container": template["spec"]["containers"][0]["name"], "started": now(),
            "log": str(folder.with_suffix(".log")), "folder": str(folder),
        }  # fmt: skip
        Path(pod["log"]).touch()
        with self.store.change() as state:
            state.setdefault("pods", {})[f"{self.namespace}/{metadata['name']}"] = pod
        self._try_to_run(f"{self.namespace}/{metadata['name']}", pod)

    def _try_to_run(self, key: str, pod: dict[str, Any]) -> None:
        """Start the pod's container, unless something that it needs is missing, such as a secret."""
        container = pod["spec"]["containers"][0]
        if self.store.setting("settings")["unschedulable"]:
            return
        try:
            variables = self._variables(pod, container)
        except LookupError:
            with self.store.change() as state:
                state["pods"][key]["waiting"] = "CreateContainerConfigError"
            return
        words = container.get("command") or self.store.setting("settings")["entrypoint"]
        words = [expand(word, variables) for word in [*words, *container.get("args", [])]]
        # What is in the environment of the image comes first, and a container's own variables win.
        environment = {**common.environment(self.store, f"pods/{pod['uid']}", HOME=pod["folder"]), **variables}
        try:
            process = subprocess.Popen(
                words, cwd=pod["folder"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            process = subprocess.Popen(
                ["sh", "-c", 'echo "$0" && exit 128', f"failed to create containerd task: exec: {error}"],
                stdout=subprocess.PIPE,
            )
        with self.store.change() as state:
            state["pods"][key]["pid"] = process.pid
            state["pods"][key]["phase"] = "Running"
        self.running[key] = process
        self.readers[key] = threading.Thread(target=_keep, args=(process, pod["log"]), daemon=True)
        self.readers[key].start()

    def _variables(self, pod: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
        """The container's own variables; a LookupError for a secret, or a key in one, that does not exist."""
        secrets, result = self.store.read().get("secrets", {}), {}
        for source in container.get("envFrom", []):
            reference = source["secretRef"]
            data = secrets.get(f"{self.namespace}/{reference['name']}", {} if reference.get("optional") else None)
            if data is None:
                raise LookupError(reference["name"])
            for key, value in data.get("data", {}).items():
                result[source.get("prefix", "") + key] = base64.b64decode(value).decode()
        for variable in container.get("env", []):
            if source := variable.get("valueFrom"):
                if reference := source.get("secretKeyRef"):
                    data = secrets[f"{self.namespace}/{reference['name']}"]["data"]
                    result[variable["name"]] = base64.b64decode(data[reference["key"]]).decode()
                else:
                    result[variable["name"]] = _field(pod, source["fieldRef"]["fieldPath"])
            else:
                result[variable["name"]] = expand(variable.get("value", ""), result)
        result.setdefault("JOB_COMPLETION_INDEX", str(pod["index"]))
        if "google.com/tpu" in container.get("resources", {}).get("limits", {}):
            # These stand for what GKE puts into a TPU's pods, and that JAX finds there by itself.
            counts = [self._job(job).get("completions", 1) for job in self.jobs]
            position = list(self.jobs).index(pod["job"])
            result["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{self.port}"
            result["JAX_NUM_PROCESSES"] = str(sum(counts))
            result["JAX_PROCESS_ID"] = str(sum(counts[:position]) + pod["index"])
        elif address := result.get("JAX_COORDINATOR_ADDRESS"):
            subdomain = self.spec.get("network", {}).get("subdomain", self.name)
            names = [f"{job}-{i}.{subdomain}" for job in self.jobs for i in range(self._job(job).get("completions", 1))]
            # A name that no pod has stays as it is, and is not found.
            if address.partition(":")[0].removesuffix(f".{self.namespace}.svc.cluster.local") in names:
                result["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{self.port}"
        return result

    def _stop(self, keys: list[str]) -> None:
        """End pods, gently at first; afterwards they are gone with their logs, as deleted pods are."""
        for key in keys:
            _signal(self.running[key], signal.SIGTERM)
        end = {}
        pods = self.store.read().get("pods", {})
        for key in keys:
            end[key] = time.monotonic() + pods[key]["spec"].get("terminationGracePeriodSeconds", 30)
        while any(self.running[key].poll() is None for key in keys):
            for key in keys:
                if time.monotonic() > end[key]:
                    _signal(self.running[key], signal.SIGKILL)
            time.sleep(common.TICK)
        for key in keys:
            common.kill(common.machine(self.store, f"pods/{pods[key]['uid']}"))
        with self.store.change() as state:
            for key in keys:
                del self.running[key]
                del state["pods"][key]

    def _stop_all(self) -> None:
        """End all pods, and forget those that had ended before, too."""
        self._stop(list(self.running))
        with self.store.change() as state:
            for key in self._pods(state):
                del state["pods"][key]

    def _pods(self, state: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """This JobSet's pods, by their keys."""
        mark = PREFIX + "jobset-uid"
        pods = state.get("pods", {}).items()
        return {key: pod for key, pod in pods if pod["metadata"]["labels"][mark] == self.uid}

    # What happens to Jobs, and then to the JobSet

    def _look(self) -> None:
        """Note which pods have ended, and act on it."""
        for key, pod in self._pods(self.store.read()).items():
            if pod["phase"] == "Pending":
                self._try_to_run(key, pod)
        for key, process in list(self.running.items()):
            if process.poll() is None:
                continue
            # A container ends with its first process, and all that was printed is in the log before that is known.
            common.kill(common.machine(self.store, f"pods/{self.store.read()['pods'][key]['uid']}"))
            self.readers[key].join()
            del self.running[key]
            with self.store.change() as state:
                pod = state["pods"][key]
                pod["code"] = common.exit_code(process.returncode)
                pod["phase"] = "Succeeded" if pod["code"] == 0 and not pod.get("preempted") else "Failed"
            if pod["phase"] == "Failed" and (reason := self._job_failure(pod)):
                self._job_failed(pod["job"], reason)
                return
        pods = self._pods(self.store.read()).values()
        done = {(pod["job"], pod["index"]) for pod in pods if pod["phase"] == "Succeeded"}
        wanted = {(job, index) for job in self.jobs for index in range(self._job(job).get("completions", 1))}
        if wanted <= done:
            self.state = "finished"
            self._condition("Completed", "AllJobsCompleted", "jobset completed successfully")

    def _job_failure(self, pod: dict[str, Any]) -> str | None:
        """Why a Job fails with this pod; None if it goes on, with another pod instead."""
        spec = self._job(pod["job"])
        for rule in spec.get("podFailurePolicy", {}).get("rules", []):
            if codes := rule.get("onExitCodes"):
                matched = (pod["code"] in codes["values"]) == (codes["operator"] == "In") and pod["code"] != 0
            else:
                conditions = {condition["type"] for condition in rule["onPodConditions"]}
                matched = "DisruptionTarget" in conditions and pod.get("preempted", False)
            if matched and rule["action"] == "FailJob":
                return "PodFailurePolicy"
            if matched and rule["action"] == "Ignore":
                self._create_pod(pod["job"], pod["index"])
                return None
            if matched:
                break
        self.failures[pod["job"]] = self.failures.get(pod["job"], 0) + 1
        if self.failures[pod["job"]] > spec.get("backoffLimit", 6):
            return "BackoffLimitExceeded"
        self._create_pod(pod["job"], pod["index"])
        return None

    def _job_failed(self, job: str, reason: str) -> None:
        """First the Job's other pods end, then the JobSet's policy decides."""
        # Pods may end meanwhile by themselves, because their peer is gone: those are of the same failure.
        pods = self.store.read()["pods"]
        self._stop([key for key in self.running if pods[key]["job"] == job])
        policy = self.spec.get("failurePolicy")
        action = "RestartJobSet"
        for rule in (policy or {}).get("rules", []):
            reasons, targets = rule.get("onJobFailureReasons"), rule.get("targetReplicatedJobs")
            if (not reasons or reason in reasons) and (not targets or self.jobs[job][0]["name"] in targets):
                action = rule["action"]
                break
        with self.store.change() as state:
            failures = state["jobsets"][self.key].setdefault("failures", [])
            failures.append({"job": job, "reason": reason, "action": action})
        if policy is None:
            self._fail("FailedJobs", job)
        elif action == "FailJobSet":
            self._fail("FailJobSetFailurePolicyAction", job)
        elif action == "RestartJobSet" and self.counted >= policy.get("maxRestarts", 0):
            self._fail("ReachedMaxRestarts", job)
        else:
            self.restarts += 1
            self.counted += action == "RestartJobSet"
            self._stop_all()
            with self.store.change() as state:
                status = state["jobsets"][self.key]["status"]
                status["restarts"], status["restartsCountTowardsMax"] = self.restarts, self.counted
            self._start()

    def _fail(self, reason: str, job: str) -> None:
        self._stop(list(self.running))
        self.state = "finished"
        self._condition("Failed", reason, f"{MESSAGES[reason]} (first failed job: {job})")

    def _condition(self, kind: str, reason: str, message: str, value: str = "True", only_known: bool = False) -> None:
        with self.store.change() as state:
            facts = state["jobsets"].get(self.key)
            if facts is None or facts["uid"] != self.uid:
                return
            status = facts["status"]
            others = [one for one in status["conditions"] if one["type"] != kind]
            if only_known and len(others) == len(status["conditions"]):
                return
            condition = {"type": kind, "status": value, "reason": reason, "message": message}
            status["conditions"] = [*others, {**condition, "lastTransitionTime": now()}]
            if kind in ("Completed", "Failed"):
                status["terminalState"] = kind


def _signal(process: "subprocess.Popen[bytes]", number: int) -> None:
    """To the container's first process alone, as kubelets do; a SIGKILL reaches the others with it."""
    if process.poll() is None:
        process.send_signal(number)


def _keep(process: "subprocess.Popen[bytes]", path: str) -> None:
    """Store what a container prints, with the time of each line."""
    assert process.stdout is not None
    with open(path, "ab", buffering=0) as log:
        for line in process.stdout:
            log.write(f"{now()} ".encode() + line.rstrip(b"\n") + b"\n")


def _field(pod: dict[str, Any], path: str) -> str:
    metadata = pod["metadata"]
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path):
        return str(metadata[match[1]].get(match[2], ""))
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "status.podIP": "127.0.0.1",
        "spec.nodeName": "node",
    }
    return str(known[path])


def expand(text: str, variables: dict[str, str]) -> str:
    """Kubernetes' own rule: $(NAME) is a known variable's value, $$ is a dollar, all else stays."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, text)
