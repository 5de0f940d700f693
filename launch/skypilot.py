"""SkyPilot: a managed job of `sky`, which finds the machines, on any cloud, and finds others when they are taken away.

jaxformer launch skypilot --accelerator=h100:8 --hosts=2 --spot -- train --config=gpt2:124m --workdir=gs://…

Source: SkyPilot 0.14's task YAML and its `sky jobs` commands.
"""

import dataclasses
import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError
from jaxformer.launch.accelerators import GPUS, Tpu, require_accelerator
from jaxformer.launch.commands import as_yaml, here_document, lines_of, run, script
from jaxformer.launch.job import COORDINATOR_PORT, Job, check_words, option, require_store
from jaxformer.launch.output import patiently, printer, say
from jaxformer.launch.packing import PYTHON, require_project, setup_of
from jaxformer.launch.policy import PREEMPTED, SHELL_AGAIN, outcome_of, shell_pause
from jaxformer.launch.records import (
    DONE,
    FAILED,
    OVER,
    PAUSED,
    RUNNING,
    STARTING,
    STOPPED,
    STOPPING,
    Busy,
    Record,
    Status,
)

TAKES = ("accelerator", "hosts", "mounts", "spot")
STATES = {"PENDING": STARTING, "STARTING": STARTING, "RUNNING": RUNNING, "WINDING_DOWN": RUNNING, "RECOVERING": PAUSED,
          "CANCELLING": STOPPING, "SUCCEEDED": DONE, "CANCELLED": STOPPED}  # fmt: skip
# SkyPilot brings back machines that were taken; a command that asks to be run again is run again here, for SkyPilot
# would do so without end. One that failed makes SkyPilot end it everywhere.
RUN = """\
{setting}
for restart in $(seq 0 {restarts}); do
    {command}
    code=$?
    case $code in
        {again}) ;;
        *) exit $code ;;
    esac
    if [ $restart -lt {restarts} ]; then
        {pause}
        sleep $pause
    fi
done
exit {preempted}
"""
# On TPUs the chips know each other.
PEERS = f"""\
export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{COORDINATOR_PORT}"
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK\""""


@dataclasses.dataclass(frozen=True)
class Options:
    infra: str = option("where to look: CLOUD[/REGION[/ZONE]] (default: wherever it is cheapest)", metavar="PLACE")
    image: str = option(
        "run in this container image, made with launch/Containerfile (default: send the code)", metavar="IMAGE"
    )
    code: str = option("the folder that is sent to the machines", ".", "FOLDER")
    setup: str = option("shell that makes .venv there (default: installs the project)", metavar="SHELL")
    disk: int = option("size of the machines' disks in GB (default: SkyPilot's)", 0, "GB")

    def __post_init__(self) -> None:
        check_words(self, besides=("code", "setup"))


def check(job: Job, options: Options) -> None:
    found = require_accelerator(job.accelerator, job.hosts)
    if isinstance(found, Tpu) and not found.kind.runtime:
        raise UserError(f"--accelerator: SkyPilot has no {found.generation}; use `jaxformer launch gke`")
    require_store(job)
    if not options.image and not options.setup:
        require_project(options.code)


def task(job: Job, options: Options) -> dict[str, Any]:
    """Return SkyPilot's description of the job."""
    found = require_accelerator(job.accelerator)
    resources: dict[str, Any] = {"infra": options.infra} if options.infra else {}
    if isinstance(found, Tpu):
        kind = found.type if found.type.startswith("tpu") else f"tpu-{found.type}"
        resources |= {"accelerators": kind, "accelerator_args": {"runtime_version": found.kind.runtime}}
    else:
        resources |= {"accelerators": f"{GPUS[found[0]][1]}:{found[1]}"}
    resources |= {"use_spot": job.spot}
    resources |= {"image_id": f"docker:{options.image}"} if options.image else {}
    resources |= {"disk_size": options.disk} if options.disk else {}
    setup = options.setup or setup_of(options.code, "jax[tpu]" if isinstance(found, Tpu) else "jax[cuda12]")
    command = shlex.join([*(["jaxformer"] if options.image else [PYTHON, "-m", "jaxformer"]), *job.command])
    mounts = {folder: {"source": url, "mode": "MOUNT"} for folder, url in job.mounts.items()}
    several = not isinstance(found, Tpu) and job.hosts > 1
    return {
        "name": job.name,
        "num_nodes": job.hosts,
        "resources": resources,
        **({} if options.image else {"workdir": options.code, "setup": setup}),
        **({"envs": dict(job.environment)} if job.environment else {}),
        **({"secrets": dict.fromkeys(job.secrets)} if job.secrets else {}),
        **({"file_mounts": mounts} if mounts else {}),
        "run": RUN.format(
            setting=PEERS if several else "", restarts=job.restarts, command=command, preempted=PREEMPTED,
            again=SHELL_AGAIN, pause=shell_pause("restart", job.backoff),
        ).lstrip(),
    }  # fmt: skip


def submit(job: Job, path: str) -> list[str]:
    # By name alone: sky takes the values from its own environment.
    secrets = [word for name in job.secrets for word in ("--secret", name)]
    return ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", job.name, *secrets, path]


def dry_run(job: Job, options: Options) -> str:
    path = f"{job.name}.yaml"
    return script(here_document(path, as_yaml(task(job, options))), submit(job, path))


def launch(job: Job, options: Options, record: Record) -> int:
    """Hand the job to SkyPilot, which starts it and brings it back."""
    if record.state().get("id") and status(record, 0).state not in OVER:
        raise Busy(f"job {job.name} is SkyPilot's job {record.state()['id']} already, and not over")
    path = record.folder / "task.yaml"
    options = dataclasses.replace(options, code=str(Path(options.code).resolve()))
    path.write_text(as_yaml(task(job, options)), encoding="utf-8")
    shown = run(submit(job, str(path)), timeout=None)
    number = re.search(r"Managed Job ID: (\d+)", shown)
    if number is None:
        said = "".join(shown.strip().splitlines()[-1:]) or "nothing"
        raise UserError(f"sky named no job; it said: {said}; see `sky jobs queue`")
    record.note(state=STARTING, attempts=0, message="", code=None, id=number[1])
    say(f"{job.name} is SkyPilot's job {number[1]}")
    return 0


def status(record: Record, lines: int) -> Status:
    """Return how the job stands by SkyPilot's own words."""
    before = record.state()
    number = before.get("id")
    if not number:
        return Status(STOPPED, 0, "it was never submitted")
    queue = json.loads(run(["sky", "jobs", "queue", "--all", "--verbose", "--output", "json"]))
    mine = next((entry for entry in queue if str(entry["job_id"]) == number), None)
    if mine is None:
        gone = f"SkyPilot has no job {number} any more"
        return Status(before["state"], before["attempts"], gone, before.get("code"), record.tails(lines))
    state, message = STATES.get(mine["status"], FAILED), f"SkyPilot's job {number} is {mine['status']}"
    workers: dict[str, list[str]] = {}
    if lines or state == FAILED:
        for line in run(["sky", "jobs", "logs", "--no-follow", "--tail", "1000", number]).splitlines():
            worker, text = _worker_of(line)
            workers.setdefault(worker, []).append(text)
    code = {DONE: 0, FAILED: 1, STOPPED: PREEMPTED}.get(state)
    reason = mine.get("failure_reason") or ""
    if state == FAILED:
        message += f": {reason}" if reason else ""
        if codes := re.search(r"exit codes? \[?([\d, ]+)", reason):  # of the nodes, in order
            found = outcome_of(
                [(str(rank), int(text)) for rank, text in enumerate(codes[1].split(","))],
                lambda worker: "".join(workers.get(worker, [])[-1:]),
            )
            code, message = found.code or 1, found.message or message
    attempts = int(mine.get("recovery_count") or 0) + 1
    record.note(state=state, attempts=attempts, message=message, code=code)
    shown = {worker: said[-lines:] for worker, said in sorted(workers.items())} if lines else {}
    return Status(state, attempts, message, code, shown)


def _worker_of(line: str) -> tuple[str, str]:
    """Return (worker, text) of a line of SkyPilot's, which begins with the node that said it; "sky" for its own."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    match = re.match(r"\((?P<who>[^()]*pid=\d+[^()]*)\) ?(?P<text>.*)", plain)
    if match is None or match["who"].startswith("setup"):
        return "sky", plain
    rank = re.search(r"rank=(\d+)", match["who"])
    return rank[1] if rank else "0", match["text"]


def follow(record: Record) -> None:
    """Print what SkyPilot shows of the job until that is over. Where its stream breaks, the next begins at the end."""
    put, over = printer(record, keep=False), patiently(lambda: status(record, 0).state in OVER)
    tail = "0"  # everything
    while record.state().get("id"):
        for line in lines_of(["sky", "jobs", "logs", "--follow", "--tail", tail, record.state()["id"]]):
            put(*_worker_of(line))
        if over():
            return
        tail = "1"
        time.sleep(5)


def stop(record: Record) -> None:
    """End the job and give its machines back; SkyPilot leaves it no time to save."""
    run(["sky", "jobs", "cancel", "--yes", record.state()["id"]])


def delete(record: Record) -> None:
    if status(record, 0).state not in OVER:
        stop(record)
