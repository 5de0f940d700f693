"""A fake of SkyPilot's managed jobs: `sky jobs launch`, queue, logs and cancel, recovering as its controller does."""

import json
import os
import time
from pathlib import Path
from typing import Any

from fake_cloud import common, gcloud
from fake_cloud.common import Refusal, Store
from fake_cloud.managed import FAILED, TERMINAL, Controller, accelerator, log_path

FLAGS: dict[str, tuple[str, ...]] = {
    "launch": (
        "name|n=", "cluster|c=", "workdir=", "infra=", "cloud=", "region=", "zone=", "num-nodes=", "cpus=", "memory=",
        "disk-size=", "disk-tier=", "network-tier=", "use-spot", "no-use-spot", "image-id=", "env-file=", "env=*",
        "secret-file=", "secret=*", "local-disk=", "gpus=", "instance-type|t=", "ports=*", "priority=",
        "job-recovery=", "detach-run|d", "pool|p=", "num-jobs=", "job-group=", "no-job-group", "git-url=", "git-ref=",
        "workspace|w=", "yes|y", "config=*", "async",
    ),
    "queue": (
        "verbose|v", "limit|l=", "refresh|r", "skip-finished", "status|s=*", "since=", "after=", "before=", "infra=",
        "all-users|u", "all|a", "output|o=", "config=*",
    ),
    "logs": ("name|n=", "follow", "no-follow", "controller", "refresh|r", "sync-down|s", "tail=", "config=*"),
    "cancel": (
        "name|n=", "pool|p=", "task=", "graceful", "graceful-timeout=", "all|a", "all-users|u", "yes|y", "config=*",
    ),
}  # fmt: skip
USED = {  # of the flags of launch; the others are known, but the fake does not do what they ask for
    "name", "workdir", "infra", "num_nodes", "use_spot", "no_use_spot", "image_id", "env", "secret", "gpus",
    "job_recovery", "detach_run", "yes",
}  # fmt: skip
TASK = {
    "name", "workdir", "event_callback", "num_nodes", "resources", "file_mounts", "service", "pool", "setup", "run",
    "envs", "secrets", "managed_secrets", "inputs", "outputs", "config", "volumes", "volume_mounts",
    "api_server_access",
}  # fmt: skip
RESOURCES = {
    "cloud", "region", "zone", "infra", "cpus", "memory", "accelerators", "instance_type", "use_spot", "job_recovery",
    "disk_size", "disk_tier", "network_tier", "local_disk", "ports", "labels", "accelerator_args", "image_id",
    "autostop", "any_of", "ordered", "priority", "volumes", "max_hourly_cost",
}  # fmt: skip
RECOVERY = {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"}
STRATEGIES = {None, "EAGER_NEXT_REGION", "FAILOVER"}
FAILURES = {
    "login": "sky.exceptions.NoCloudAccessError: No cloud access available. Please run `sky check` for details.",
    "permission": "sky.exceptions.PermissionDeniedError: permission denied",
    "ssh_refused": "sky.exceptions.ApiServerConnectionError: Could not connect to SkyPilot API server",
}


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["CONTROLLER"]:
        return Controller(arguments[1]).run()
    store = common.start("sky", arguments)
    kind = common.planned_failure(store, "sky", arguments)
    if arguments[:1] != ["jobs"] or len(arguments) < 2 or arguments[1] not in FLAGS:
        word, group = (arguments[1:2], "sky jobs") if arguments[:1] == ["jobs"] else (arguments[:1], "sky")
        raise Refusal(
            f"Usage: {group} [OPTIONS] COMMAND [ARGS]...\nTry '{group} -h' for help.\n\n"
            f"Error: No such command '{''.join(word)}'.", 2,
        )  # fmt: skip
    verb = arguments[1]
    words = {"launch": "ENTRYPOINT...", "cancel": "[JOB_IDS]...", "logs": "[JOB_ID] [TASK]"}.get(verb, "")
    form = "Usage: {title} [OPTIONS] " + words + "\nTry '{title} -h' for help.\n\nError: {message}"
    parser = common.Parser(f"sky jobs {verb}", 2, form).flags(*FLAGS[verb])
    parser.add_argument("words", nargs="*")
    flags = parser.parse_args(arguments[2:])
    if kind in FAILURES:
        raise Refusal(FAILURES[kind])
    if verb == "launch":
        if not flags.words:
            parser.error("Missing argument 'ENTRYPOINT...'.")
        return _launch(store, flags, kind)
    return {"queue": _queue, "logs": _logs, "cancel": _cancel}[verb](store, flags, parser)


def _task(store: Store, flags: Any) -> dict[str, Any]:
    """The task that a file and the flags describe, refused as the real one refuses it."""
    import yaml

    for name, value in vars(flags).items():
        if value and name not in USED | {"words"}:
            raise Refusal(f"sky: this fake does not know what to do with --{name.replace('_', '-')}", 2)
    path = Path(flags.words[0])
    if len(flags.words) > 1 or path.suffix not in (".yaml", ".yml"):
        raise Refusal("ValueError: the fake launches only YAML files")
    task: dict[str, Any] = yaml.safe_load(path.read_text())
    resources = task.setdefault("resources", {})
    recovery = resources.get("job_recovery")
    if isinstance(recovery, str) or flags.job_recovery:
        recovery = {"strategy": flags.job_recovery or recovery}
    recovery = recovery or {}
    # The server refuses what the client lets pass inside job_recovery.
    invalid = "sky.exceptions.InvalidSkyPilotConfigError: Invalid"
    for where, known, given in (
        ("task", TASK, task),
        ("resources", RESOURCES, resources),
        ("task", RECOVERY, recovery),
    ):
        for key in set(given) - known:
            raise Refusal(f"{invalid} {where} YAML: Found unsupported field '{key}'.")
    if recovery.get("strategy") not in STRATEGIES:
        raise Refusal(f"ValueError: Recovery strategy {recovery['strategy']} is not a valid strategy.")
    if flags.gpus:
        resources["accelerators"] = flags.gpus
    kind = accelerator(resources)[0]
    if kind.startswith("tpu-"):
        try:
            gcloud.hosts(store, kind.removeprefix("tpu-"))
        except Refusal:
            raise Refusal(f"sky.exceptions.ResourcesUnavailableError: Catalog does not contain {kind}") from None
    if flags.num_nodes:
        task["num_nodes"] = int(flags.num_nodes)
    task["recovery"], task["workdir"] = recovery, flags.workdir or task.get("workdir")
    if task["workdir"] and not Path(task["workdir"]).expanduser().is_dir():
        raise Refusal(f"ValueError: Workdir must be a valid directory. {task['workdir']} not found.")
    for kind, option in (("envs", "env"), ("secrets", "secret")):
        given = task.setdefault(kind, {}) or {}
        for pair in getattr(flags, option) or []:
            key, separator, value = pair.partition("=")
            if not separator and key not in os.environ:
                raise Refusal(f"Error: Invalid value for '--{option}': {key} is not set in local environment.", 2)
            given[key] = value if separator else os.environ[key]
        for key, value in given.items():
            if value is None:
                raise Refusal(
                    f"ValueError: {'Environment' if kind == 'envs' else 'Secret'} variable {key!r} is None. Please set "
                    f"a value for it in task YAML or with --{option} flag."
                )
        task[kind] = {key: str(value) for key, value in given.items()}
    return task


def _launch(store: Store, flags: Any, kind: str | None) -> int:
    task = _task(store, flags)
    if not flags.yes:
        print(f"Managed job {task.get('name')!r} will be launched on (estimated):\nProceed? [Y/n]: ")
        raise Refusal("Aborted!")
    with store.change() as state:
        jobs = state.setdefault("jobs", {})
        number = str(len(jobs) + 1)
        job: dict[str, Any] = {
            "name": flags.name or task.get("name") or f"sky-{number}",
            "task": task, "status": "PENDING", "recovery_count": 0, "submitted_at": time.time(), "end_at": None,
            "attempt": 0, "preempted": False, "cancelled": False, "failure_reason": None, "codes": [],
        }  # fmt: skip
        jobs[number] = job
        if kind in ("capacity", "quota"):
            job["status"] = "FAILED_NO_RESOURCE"
            job["failure_reason"] = "sky.exceptions.ResourcesUnavailableError: Failed to acquire resources in all zones"
    if job["status"] == "PENDING":
        common.detach(store, "sky", number)
    code = 0 if flags.detach_run else _follow(store, number)
    print(f"\n📋 Useful Commands\nManaged Job ID: {number}\n├── To cancel the job:\t\tsky jobs cancel {number}")
    print(f"├── To stream job logs:\t\tsky jobs logs {number}\n└── To view all managed jobs:\tsky jobs queue")
    return code


def _queue(store: Store, flags: Any, parser: common.Parser) -> int:
    wanted = [one for group in flags.status or [] for one in group.upper().split(",")]
    records = []
    for number, job in reversed(store.read().get("jobs", {}).items()):
        if (flags.skip_finished and job["status"] in TERMINAL) or (wanted and job["status"] not in wanted):
            continue
        record = {key: job[key] for key in ("status", "recovery_count", "submitted_at", "end_at")}
        record |= {"job_id": int(number), "task_id": 0, "job_name": job["name"], "task_name": job["name"]}
        record["job_duration"] = (job["end_at"] or time.time()) - job["submitted_at"]
        records.append({**record, "failure_reason": job["failure_reason"] if flags.verbose else None})
    if flags.output == "json":
        print(json.dumps(records, indent=2))
    else:
        print("Fetching managed job statuses...\nManaged jobs\nID  NAME  #RECOVERIES  STATUS")
        for record in records:
            print(f"{record['job_id']}  {record['job_name']}  {record['recovery_count']}  {record['status']}")
    return 0


def _find(store: Store, name: str | None, words: list[str]) -> tuple[list[str], str]:
    """The jobs meant: by number any, by name only those that have not ended."""
    jobs = store.read().get("jobs", {})
    if words:
        return [word for word in words if word in jobs], f"Job {words[0]} not found."
    if name is None:
        return list(jobs)[-1:], "No managed job found."
    found = [number for number, job in jobs.items() if job["name"] == name and job["status"] not in TERMINAL]
    return found, f"No running managed job found with name {name!r}."


def _logs(store: Store, flags: Any, parser: common.Parser) -> int:
    found, missing = _find(store, flags.name, flags.words[:1])
    if not found:
        print(missing)
        return 0 if flags.no_follow else 102
    if flags.no_follow:
        attempt = store.read()["jobs"][found[0]]["attempt"]
        path = log_path(store, found[0], attempt)
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        tail = int(flags.tail) if flags.tail is not None else 1000
        print("".join(lines[-tail:]), end="")
        return 0
    return _follow(store, found[0])


def _follow(store: Store, number: str) -> int:
    """Print what the job prints, over its recoveries, until it ends."""
    attempt, read = 1, 0
    while True:
        job = store.read()["jobs"][number]
        path = log_path(store, number, attempt)
        if path.exists():
            with open(path) as log:
                log.seek(read)
                text = log.read()
                read += len(text.encode())
                print(text, end="", flush=True)
        if job["attempt"] > attempt:
            attempt, read = attempt + 1, 0
            continue
        if job["status"] in TERMINAL:
            print(f"✓ Managed job finished: {number} (status: {job['status']}).")
            if job["status"] in FAILED:
                print(f"Failure reason: {job['failure_reason']}")
            return {"SUCCEEDED": 0, "CANCELLED": 103}.get(job["status"], 100)
        time.sleep(common.TICK)


def _cancel(store: Store, flags: Any, parser: common.Parser) -> int:
    if (flags.name is not None) + bool(flags.words) + bool(flags.all or flags.all_users) != 1:
        parser.error("Can only specify one of JOB_IDS, --name, --pool, or --all/--all-users. Provided ''.")
    if not flags.yes:
        raise Refusal("Aborted!")
    found = list(store.read().get("jobs", {})) if flags.all else _find(store, flags.name, flags.words)[0]
    with store.change() as state:
        running = [number for number in found if state["jobs"][number]["status"] not in TERMINAL]
        for number in running:
            state["jobs"][number] |= {"cancelled": True, "status": "CANCELLING"}
    if running:
        print(f"Jobs with IDs {', '.join(running)} are scheduled to be cancelled.")
    else:
        print("No job to cancel." if flags.name is None else f"No running job found with name {flags.name!r}.")
    return 0
