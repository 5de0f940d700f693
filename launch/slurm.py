"""SLURM: a batch script that runs the job on its nodes, and has SLURM put it back into the queue after each preemption.

jaxformer launch slurm --hosts=2 --accelerator=h100:8 --time=24:00:00 -- train --config=gpt2:124m --workdir=runs/gpt2
"""

import dataclasses
import re
import shlex
import sys
from pathlib import Path

from jaxformer.errors import UserError
from jaxformer.launch.accelerators import gpus
from jaxformer.launch.commands import ToolError, here_document, run, script
from jaxformer.launch.job import Job, checked, exports, option
from jaxformer.launch.output import printer, say
from jaxformer.launch.policy import LONGEST_PAUSE, judge
from jaxformer.launch.records import (
    DONE,
    FAILED,
    OVER,
    PAUSED,
    RUNNING,
    STARTING,
    STOPPED,
    STOPPING,
    Record,
    Status,
    follow_files,
    jobs_folder,
    last_line,
)

TAKES = ("accelerator", "hosts", "reserved")
# SLURM's word for a job's state: ours. All others that end a job are failures.
STATES = {"PENDING": STARTING, "CONFIGURING": STARTING, "RUNNING": RUNNING, "COMPLETING": RUNNING, "SUSPENDED": PAUSED,
          "REQUEUED": PAUSED, "COMPLETED": DONE, "CANCELLED": STOPPED}  # fmt: skip

# Each task writes down its own exit code, for srun reports the highest only, and those that it kills for another's sake
# have none. The shell between survives SIGTERM, which is for the command. After `requeue` SLURM ends this script, too.
BODY = """\
folder={folder}
rm -f "$folder"/exit-* "$folder/ended"
srun --kill-on-bad-exit=1 --open-mode=append --output={output} bash -c '
    trap : TERM
    "${{@:2}}"
    code=$?
    echo $code > "$1/exit-$SLURM_PROCID"
    exit $code
' worker "$folder" {command}
srun_code=$?
code=0
if [ $srun_code -ne 0 ]; then
    code=75
    for file in "$folder"/exit-*; do
        case $(cat "$file" 2>/dev/null) in
            0|75|134) ;;                           # done, preempted, or ended because another worker had gone
            2) code=2 ;;
            *) if [ $code -ne 2 ]; then code=1; fi ;;
        esac
    done
fi
restarts=${{SLURM_RESTART_COUNT:-0}}
if [ $code -eq 75 ] && [ $restarts -lt {restarts} ]; then
    trap '' TERM
    pause=$(( {backoff} << (restarts < 10 ? restarts : 10) ))
    if scontrol requeue $SLURM_JOB_ID; then
        scontrol update JobId=$SLURM_JOB_ID StartTime=now+$(( pause < {longest} ? pause : {longest} ))
        exit $code
    fi
fi
echo $code > "$folder/ended"
exit $code
"""


@dataclasses.dataclass(frozen=True)
class Options:
    partition: str = option("SLURM's partition", metavar="NAME")
    account: str = option("whom it is charged to", metavar="NAME")
    qos: str = option("quality of service", metavar="NAME")
    time: str = option("the longest that one attempt may take, as 24:00:00", metavar="TIME")
    tasks_per_node: int = option("processes on each node, which share out its GPUs", 1, "N")
    sbatch: tuple[str, ...] = option(
        "any other option of sbatch, as --sbatch=--exclusive; may be repeated", (), "OPTION"
    )
    setup: str = option("shell to run first on the first node, as 'module load cuda'", metavar="SHELL")

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "time"):
            checked(f"--{name}", getattr(self, name))
        for word in self.sbatch:
            if not checked("--sbatch", word).startswith("--"):
                raise UserError(f"--sbatch: '{word}' is no option of sbatch; write --sbatch=--exclusive and the like")
        if self.tasks_per_node < 1:
            raise UserError(f"--tasks-per-node: {self.tasks_per_node} must be at least 1")


def check(job: Job, options: Options) -> None:
    if job.accelerator and gpus(job.accelerator) is None:
        raise UserError(
            f"--accelerator: '{job.accelerator}' is not KIND:N; give the GPUs of a node, as h100:8 or gpu:8"
        )
    checked("--accelerator", job.accelerator)
    checked("--reserved", job.reserved)


def batch_script(job: Job, options: Options, folder: Path) -> str:
    """Return the script for sbatch; what workers say and how they end goes to `folder`, which all nodes must see."""
    found = gpus(job.accelerator)
    given = {
        "job-name": job.name, "nodes": job.hosts, "ntasks-per-node": options.tasks_per_node,
        "gpus-per-node": "" if found is None else found[1] if found[0] == "gpu" else f"{found[0]}:{found[1]}",
        "partition": options.partition, "account": options.account, "qos": options.qos, "time": options.time,
        "reservation": job.reserved,
    }  # fmt: skip
    header = [f"--{name}={value}" for name, value in given.items() if value]
    header += ["--requeue", "--open-mode=append", "--signal=TERM@120", *options.sbatch]
    place = shlex.quote(str(folder))
    body = BODY.format(
        folder=place, output=shlex.quote(f"{str(folder).replace('%', '%%')}/worker-%t.txt"), restarts=job.restarts,
        command=shlex.join([sys.executable, "-m", "jaxformer", *job.command]), backoff=round(job.backoff),
        longest=round(LONGEST_PAUSE),
    )  # fmt: skip
    setup = [options.setup] if options.setup else []
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {word}" for word in header), *exports(job), *setup, body])


def submit(job: Job, folder: Path) -> list[str]:
    # A path may hold what the script's header could not quote.
    output = f"--output={str(folder).replace('%', '%%')}/batch.txt"
    return ["sbatch", "--parsable", output, str(folder / "job.sh")]


def dry_run(job: Job, options: Options) -> str:
    folder = jobs_folder() / job.name
    text = here_document(folder / "job.sh", batch_script(job, options, folder))
    return script(["mkdir", "-p", str(folder)], text, submit(job, folder))


def launch(job: Job, options: Options, record: Record) -> int:
    """Submit the job; SLURM starts it, and starts it again."""
    if (before := record.state().get("id")) and status(record, 0).state not in OVER:
        raise UserError(f"job {job.name} is in SLURM's queue already, as {before}")
    (record.folder / "job.sh").write_text(batch_script(job, options, record.folder), encoding="utf-8")
    (record.folder / "ended").unlink(missing_ok=True)
    try:
        number = run(submit(job, record.folder)).strip().partition(";")[0]
    except ToolError as error:
        raise error.for_people() from error
    record.note(state=STARTING, attempts=0, message="", id=number)
    say(f"{job.name} is SLURM's job {number}")
    return 0


def status(record: Record, lines: int) -> Status:
    """Return how the job stands, by SLURM's words, or by what it has left behind when SLURM has forgotten it."""
    state, workers = record.state(), record.tails(lines)
    try:
        shown = run(["scontrol", "--oneliner", "show", "job", state["id"]])
        found = dict(re.findall(r"(\S+?)=(\S*)", shown))
    except KeyError:
        return Status(STOPPED, 0, "it was never submitted")
    except ToolError:
        found = {}
    ended = last_line(record.folder / "ended")
    attempts = int(found["Restarts"]) + 1 if found else state["attempts"]
    code = None
    if ended and found.get("JobState") not in ("PENDING", "RUNNING"):
        files = sorted(record.folder.glob("exit-*"))
        codes = [(file.name.removeprefix("exit-"), int(last_line(file) or 1)) for file in files]
        code, message = judge(codes, lambda worker: last_line(record.log(worker)))
        code = int(ended)  # a job without tasks has none of the others
        name = DONE if code == 0 else STOPPED if state["state"] == STOPPING else FAILED
    elif not found:
        name, code = FAILED, 1
        message = f"SLURM has forgotten job {state['id']}, which left no exit code; see {record.folder}/batch.txt"
    else:
        word = found["JobState"]
        name = PAUSED if word == "PENDING" and attempts > 1 else STATES.get(word, FAILED)
        message = f"SLURM's job {state['id']} is {word}" + (f" ({found['Reason']})" if word == "PENDING" else "")
    record.note(attempts=attempts)
    return Status(name, attempts, message, code, workers)


def stop(record: Record) -> None:
    """Let all workers save and end; the job does not come back by itself."""
    number = record.state()["id"]
    record.note(state=STOPPING)
    run(["scontrol", "update", f"JobId={number}", "Requeue=0"])
    if status(record, 0).state == RUNNING:
        run(["scancel", "--signal=TERM", number])
    else:
        run(["scancel", number])


def delete(record: Record) -> None:
    """Take the job out of SLURM, at once."""
    if status(record, 0).state not in OVER:
        run(["scancel", record.state()["id"]])


def follow(record: Record) -> None:
    follow_files(record, lambda: status(record, 0).state in OVER, printer(record, keep=False))
