"""Google Kubernetes Engine: a JobSet, queued by Kueue and applied with `kubectl`; its controller starts it, and again.

jaxformer launch gke --accelerator=v5litepod-16 --image=IMAGE --queue=QUEUE -- train --config=bert:base --workdir=gs://…
"""

import dataclasses
import json
import re
import threading
import time
from collections.abc import Mapping
from typing import Any

from jaxformer.errors import UserError
from jaxformer.launch.accelerators import Tpu, require_accelerator
from jaxformer.launch.commands import ToolError, as_lines, as_yaml, here_document, lines_of, piped, run, script
from jaxformer.launch.job import Job, check_words, option, require_store
from jaxformer.launch.jobset import INDEX, RESTARTS, manifest, secret_of
from jaxformer.launch.output import patiently, printer, say
from jaxformer.launch.policy import PREEMPTED, outcome_of
from jaxformer.launch.records import DONE, FAILED, OVER, PAUSED, RUNNING, STARTING, STOPPED, Busy, Record, Status

_TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)")
TAKES = ("accelerator", "hosts", "slices", "mounts", "spot", "reserved")


@dataclasses.dataclass(frozen=True)
class Options:
    image: str = option("the container image, made with launch/Containerfile", metavar="IMAGE")
    queue: str = option("Kueue's local queue", metavar="NAME")
    namespace: str = option("Kubernetes' namespace (default: kubectl's own)", metavar="NAME")
    context: str = option("kubectl's context, that is the cluster (default: the current one)", metavar="NAME")
    service_account: str = option("of Kubernetes, with the right to read and write the bucket", metavar="NAME")
    topology: str = option("shape of the slice (default: the usual one)", metavar="AxB[xC]")
    priority: str = option("Kueue's priority class", metavar="NAME")
    poll: float = option("seconds between two looks at the JobSet", 5.0, "SECONDS")

    def __post_init__(self) -> None:
        check_words(self)
        if not self.image:
            raise UserError("--image: give the container image, which launch/Containerfile builds")


def check(job: Job, options: Options) -> None:
    found = require_accelerator(job.accelerator, job.hosts)
    if isinstance(found, Tpu) and not found.kind.gke:
        raise UserError(f"--accelerator: GKE has no {found.generation}; use `jaxformer launch tpu_vm`")
    if not isinstance(found, Tpu) and job.slices != 1:
        raise UserError("--slices: only TPUs come in slices; machines with GPUs are --hosts")
    for folder, url in job.mounts.items():
        if not url.startswith("gs://"):
            raise UserError(f"--mount {folder}={url}: GKE mounts gs:// only")
    if job.reserved == "any":
        raise UserError("--reserved: give the reservation's name, as --reserved=NAME")
    require_store(job)


def _kubectl(options: Options, *words: str) -> list[str]:
    where = [f"--{name}={value}" for name in ("namespace", "context") if (value := getattr(options, name))]
    return ["kubectl", *words, *where]


def _manifest(job: Job, options: Options) -> str:
    names = ("image", "queue", "priority", "service_account", "topology")
    return as_yaml(manifest(job, **{name: getattr(options, name) for name in names}))


def _secret_commands(name: str, options: Options) -> tuple[list[str], list[str]]:
    """(delete, create) of the Kubernetes Secret of a job; its values come in by standard input."""
    return (
        _kubectl(options, "delete", "secret", secret_of(name), "--ignore-not-found"),
        _kubectl(options, "create", "secret", "generic", secret_of(name), "--from-env-file=/dev/stdin"),
    )


def _delete(name: str, options: Options) -> list[str]:
    # Its pods first: another JobSet of this name must not run beside them.
    return _kubectl(options, "delete", "jobset", name, "--ignore-not-found", "--cascade=foreground")


def dry_run(job: Job, options: Options) -> str:
    remove, create = _secret_commands(job.name, options)
    path = f"{job.name}.yaml"
    secret = [remove, piped(job.secrets) + script(create).rstrip()] if job.secrets else []
    return script(
        here_document(path, _manifest(job, options)), *secret, _kubectl(options, "apply", f"--filename={path}")
    )


def launch(job: Job, options: Options, record: Record) -> int:
    """Apply the JobSet; its controller starts it, and starts it again. One that has ended makes room for a new one."""
    path = record.folder / "jobset.yaml"
    path.write_text(_manifest(job, options), encoding="utf-8")
    found = _jobset(job.name, options)
    if found is not None and _state_of(found)[0] not in OVER:
        raise Busy(f"job {job.name} runs on this cluster already; `jaxformer launch logs {job.name}` shows it")
    if found is not None:
        run(_delete(job.name, options), timeout=None)
    if job.secrets:
        remove, create = _secret_commands(job.name, options)
        run(remove)
        run(create, stdin=as_lines(job.secret_values()))
    run(_kubectl(options, "apply", f"--filename={path}"))
    record.note(state=STARTING, attempts=0, message="", code=None)
    say(f"{job.name} is applied; Kueue starts it when there is room" if options.queue else f"{job.name} is applied")
    return 0


def _jobset(name: str, options: Options) -> dict[str, Any] | None:
    try:
        return json.loads(run(_kubectl(options, "get", "jobset", name, "--output=json")))
    except ToolError as error:
        if error.kind == "missing":
            return None
        raise


def _state_of(jobset: Mapping[str, Any]) -> tuple[str, str]:
    """Return (state, message) of a JobSet."""
    standing = jobset.get("status", {})
    holds = {entry["type"]: entry for entry in standing.get("conditions", ()) if entry.get("status") == "True"}
    for kind, state in (("Completed", DONE), ("Failed", FAILED), ("Suspended", STARTING)):
        if kind in holds:
            return state, "" if state == DONE else holds[kind].get("message", "")
    if any(entry.get("active") or entry.get("ready") for entry in standing.get("replicatedJobsStatus", ())):
        return RUNNING, ""
    return (PAUSED if standing.get("restarts") else STARTING), ""


def _pods(name: str, options: Options, hosts: int) -> dict[str, dict[str, Any]]:
    """Return the pods of the newest attempt, by the number of their worker; a slice has so many hosts."""
    shown = run(_kubectl(options, "get", "pods", f"--selector=jobset.sigs.k8s.io/jobset-name={name}", "--output=json"))
    pods = [(pod["metadata"]["labels"], pod) for pod in json.loads(shown)["items"]]
    newest = max((int(labels.get(RESTARTS, 0)) for labels, _ in pods), default=0)
    numbered = {
        int(labels["jobset.sigs.k8s.io/job-index"]) * hosts + int(labels[INDEX]): pod
        for labels, pod in pods
        if int(labels.get(RESTARTS, 0)) == newest
    }
    return {str(number): numbered[number] for number in sorted(numbered)}


def _known(record: Record) -> tuple[Options, int]:
    """Return the options of a job, and how many hosts each of its slices has."""
    asked = record.asked()
    found = require_accelerator(asked["job"]["accelerator"])
    return Options(**asked["options"]), found.hosts if isinstance(found, Tpu) else asked["job"]["hosts"]


def status(record: Record, lines: int) -> Status:
    """Return how the job stands by the JobSet's own words; of one that is no longer there, what was noted of it."""
    (options, hosts), before = _known(record), record.state()
    jobset = _jobset(record.name, options)
    if jobset is None:
        state = before["state"] if before["state"] in OVER else STOPPED
        message = before["message"] or "there is no such JobSet on the cluster"
        return Status(state, before["attempts"], message, before.get("code", 1), record.tails(lines))
    state, message = _state_of(jobset)
    pods = _pods(record.name, options, hosts) if lines or state == FAILED else {}
    workers = {worker: _said(pod, lines, options) for worker, pod in pods.items()}
    code = 0 if state == DONE else None
    if state == FAILED:
        codes = [(worker, _exit_code(pod)) for worker, pod in pods.items()]
        found = outcome_of(codes, lambda worker: "".join(workers[worker][-1:]))
        code, message = found.code or 1, message if found.code in (0, PREEMPTED) else found.message
    attempts = jobset.get("status", {}).get("restarts", 0) + 1
    record.note(state=state, attempts=attempts, message=message, code=code)
    return Status(state, attempts, message, code, workers if lines else {})


def _said(pod: Mapping[str, Any], lines: int, options: Options) -> list[str]:
    """Return the last lines of a pod, one at least."""
    try:
        return run(_kubectl(options, "logs", pod["metadata"]["name"], f"--tail={max(lines, 1)}")).splitlines()
    except ToolError as error:  # it has not begun
        return [f"({error.line})"]


def _exit_code(pod: Mapping[str, Any]) -> int | None:
    for container in pod.get("status", {}).get("containerStatuses", ()):
        if ended := container.get("state", {}).get("terminated"):
            return int(ended["exitCode"])
    return None


def follow(record: Record) -> None:
    """Print what the pods say, those of every attempt, until the JobSet is over."""
    options, hosts = _known(record)
    put, readers = printer(record, keep=False), dict[str, threading.Thread]()
    read = dict[str, str]()  # by pod, when its last line was written

    def listen(worker: str, pod: str) -> None:
        seen = read.get(pod, "")
        since = [f"--since-time={seen}"] if seen else []
        for line in lines_of(_kubectl(options, "logs", pod, "--follow", "--timestamps", *since)):
            when, space, text = line.partition(" ")
            if space and _TIME.fullmatch(when) and when > seen:  # what was in the last second comes again
                read[pod] = when
                put(worker, text)

    def look() -> bool:
        over = status(record, 0).state in OVER
        for worker, pod in _pods(record.name, options, hosts).items():
            name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase", "Pending")
            ended = name in readers and not readers[name].is_alive()
            # A stream ends when the log is rotated, or the server has had enough.
            if (name not in readers and phase != "Pending") or (ended and phase == "Running"):
                readers[name] = threading.Thread(target=listen, args=(worker, name), daemon=True)
                readers[name].start()
        return over

    looked = patiently(look)
    while not looked():
        time.sleep(options.poll)
    for reader in readers.values():
        reader.join(timeout=10)


def stop(record: Record) -> None:
    """Let all workers save and end. The JobSet goes with them, for as long as it is there it would start them again."""
    options, hide = _known(record)[0], record.hider()
    for worker, lines in status(record, 1000).workers.items():
        record.log(worker).write_text("".join(f"{hide(line)}\n" for line in lines), encoding="utf-8")
    run(_delete(record.name, options), timeout=None)
    record.note(state=STOPPED, message="", code=PREEMPTED)


def delete(record: Record) -> None:
    options = _known(record)[0]
    run(_delete(record.name, options), timeout=None)
    if record.asked()["job"]["secrets"]:
        run(_secret_commands(record.name, options)[0])
