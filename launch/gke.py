"""Google Kubernetes Engine: a JobSet, queued by Kueue and applied with `kubectl`; its controller starts it, and again.

jaxformer launch gke --accelerator=v5litepod-16 --image=IMAGE --queue=QUEUE -- train --config=bert:base --workdir=gs://…
"""

import dataclasses
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from jaxformer.errors import UserError
from jaxformer.launch.accelerators import Tpu, require_accelerator
from jaxformer.launch.commands import ToolError, as_lines, here_document, lines_of, piped, run, script
from jaxformer.launch.job import Job, checked, of_record, option, require_store
from jaxformer.launch.jobset import INDEX, RESTARTS, as_yaml, manifest
from jaxformer.launch.output import printer, say
from jaxformer.launch.policy import judge
from jaxformer.launch.records import DONE, FAILED, OVER, PAUSED, RUNNING, STARTING, STOPPED, Record, Status

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
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), str):
                checked(f"--{field.name.replace('_', '-')}", value)
        if not self.image:
            raise UserError("--image: give the container image, which launch/Containerfile builds")


def check(job: Job, options: Options) -> None:
    found = require_accelerator(job.accelerator)
    if isinstance(found, Tpu) and not found.kind.gke:
        raise UserError(f"--accelerator: GKE has no {found.generation}; use `jaxformer launch tpu_vm`")
    if isinstance(found, Tpu) and job.hosts != 1:
        raise UserError(f"--hosts: a slice of {found.type} has {found.hosts} by itself; leave it out")
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


def _secret_commands(job: Job, options: Options) -> tuple[list[str], list[str]]:
    """(delete, create) of the Kubernetes Secret that holds the job's; its values come in by standard input."""
    return (
        _kubectl(options, "delete", "secret", job.name, "--ignore-not-found"),
        _kubectl(options, "create", "secret", "generic", job.name, "--from-env-file=/dev/stdin"),
    )


def dry_run(job: Job, options: Options) -> str:
    remove, create = _secret_commands(job, options)
    path = f"{job.name}.yaml"
    secret = [remove, piped(job.secrets) + script(create).rstrip()] if job.secrets else []
    return script(
        here_document(path, _manifest(job, options)), *secret, _kubectl(options, "apply", f"--filename={path}")
    )


def launch(job: Job, options: Options, record: Record) -> int:
    """Apply the JobSet; its controller starts it, and starts it again. One that has ended makes room for a new one."""
    path = record.folder / "jobset.yaml"
    path.write_text(_manifest(job, options), encoding="utf-8")
    try:
        found = _jobset(job.name, options)
        if found is not None:
            if _state_of(found)[0] not in OVER:
                raise UserError(
                    f"job {job.name} runs on this cluster already; `jaxformer launch logs {job.name}` shows it"
                )
            run(_kubectl(options, "delete", "jobset", job.name))
        if job.secrets:
            remove, create = _secret_commands(job, options)
            run(remove)
            run(create, stdin=as_lines(job.secret_values()))
        run(_kubectl(options, "apply", f"--filename={path}"))
    except ToolError as error:
        raise error.for_people() from error
    record.note(state=STARTING, attempts=0, message="")
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
    for kind, state in (("Completed", DONE), ("Failed", FAILED), ("Suspended", PAUSED)):
        if kind in holds:
            return state, "" if state == DONE else holds[kind].get("message", "")
    active = any(entry.get("active") or entry.get("ready") for entry in standing.get("replicatedJobsStatus", ()))
    return (RUNNING if active else STARTING), ""


def _pods(name: str, options: Options) -> dict[str, dict[str, Any]]:
    """Return the pods of the newest attempt, by the number of their worker."""
    shown = run(_kubectl(options, "get", "pods", f"--selector=jobset.sigs.k8s.io/jobset-name={name}", "--output=json"))
    pods = json.loads(shown)["items"]
    attempts = [int(pod["metadata"]["labels"].get(RESTARTS, 0)) for pod in pods]
    of_slice = 1 + max((int(pod["metadata"]["labels"][INDEX]) for pod in pods), default=0)
    newest = {}
    for pod, attempt in zip(pods, attempts, strict=True):
        if attempt == max(attempts):
            labels = pod["metadata"]["labels"]
            index = int(labels[INDEX])
            newest[str(int(labels["jobset.sigs.k8s.io/job-index"]) * of_slice + index)] = pod
    return dict(sorted(newest.items(), key=lambda entry: int(entry[0])))


def _options_of(record: Record) -> Options:
    return Options(**record.asked()["options"])


def status(record: Record, lines: int) -> Status:
    """Return how the job stands by the JobSet's own words; of one that is no longer there, what was noted of it."""
    options, before = _options_of(record), record.state()
    try:
        jobset = _jobset(record.name, options)
        if jobset is None:
            state = before["state"] if before["state"] in OVER else STOPPED
            gone = "there is no such JobSet on the cluster"
            return Status(state, before["attempts"], gone, before.get("code"), record.tails(lines))
        state, message = _state_of(jobset)
        pods = _pods(record.name, options) if lines or state == FAILED else {}
        workers = {worker: _said(pod, lines, options) for worker, pod in pods.items()}
    except ToolError as error:
        raise error.for_people() from error
    code = 0 if state == DONE else None
    if state == FAILED:
        found = judge(
            [(worker, _exit_code(pod)) for worker, pod in pods.items()], lambda worker: "".join(workers[worker][-1:])
        )
        code, message = found.code or 1, found.message if found.code in (1, 2) else message
    attempts = jobset.get("status", {}).get("restarts", 0) + 1
    record.note(state=state, attempts=attempts, message=message, code=code)
    return Status(state, attempts, message, code, workers)


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
    options, seen, readers = _options_of(record), set[str](), list[threading.Thread]()
    put = printer(record, keep=False)

    def read(worker: str, pod: str) -> None:
        for line in lines_of(_kubectl(options, "logs", pod, "--follow")):
            put(worker, line)

    while True:
        over = status(record, 0).state in OVER
        try:
            pods = _pods(record.name, options)
        except ToolError:
            pods = {}
        for worker, pod in pods.items():
            name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase", "Pending")
            if name not in seen and phase != "Pending":
                seen.add(name)
                readers.append(threading.Thread(target=read, args=(worker, name), daemon=True))
                readers[-1].start()
        if over:
            for reader in readers:
                reader.join(timeout=10)
            return
        time.sleep(options.poll)


def stop(record: Record) -> None:
    """Let all workers save and end. The JobSet goes with them, for as long as it is there it would start them again."""
    options = _options_of(record)
    for worker, lines in status(record, 1000).workers.items():
        record.log(worker).write_text("\n".join(lines) + "\n", encoding="utf-8")
    run(_kubectl(options, "delete", "jobset", record.name, "--ignore-not-found"))
    record.note(state=STOPPED, message="")


def delete(record: Record) -> None:
    options = _options_of(record)
    run(_kubectl(options, "delete", "jobset", record.name, "--ignore-not-found"))
    if record.asked()["job"]["secrets"]:
        run(_secret_commands(of_record(record.asked()["job"]), options)[0])
