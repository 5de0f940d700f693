"""SLURM: a batch script that runs the job on its nodes, and has SLURM put it back into the queue after each preemption.

jaxformer launch slurm --hosts=2 --accelerator=h100:8 --time=24:00:00 -- train --config=gpt2:124m --workdir=runs/gpt2
"""

import dataclasses
import re
import shlex
import sys
from pathlib import Path

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.launch.accelerators import gpus
from jaxformer.launch.commands import ToolError, here_document, run, script
from jaxformer.launch.job import Job, check_words, checked, exports, option
from jaxformer.launch.output import patiently, printer, say
from jaxformer.launch.policy import PREEMPTED, SHELL_AGAIN, USER_ERROR, outcome_of, shell_pause
from jaxformer.launch.records import (
    DONE,
    FAILED,
    OVER,
    PAUSED,
    RUNNING,
    STARTING,
    STOPPED,
    Busy,
    Record,
    Status,
    follow_files,
    jobs_folder,
    last_line,
)

TAKES = ("accelerator", "hosts", "reserved")
# SLURM's word for a job's state: ours. Those of ENDED are failures, unless the job has left its exit code.
STATES = {"PENDING": STARTING, "CONFIGURING": STARTING, "SUSPENDED": PAUSED, "REQUEUED": PAUSED, "REQUEUE_HOLD": PAUSED}
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")

# Each task writes down its own exit code, for srun reports the highest only, and those that it kills for another's sake
# have none. The shell between survives SIGTERM, which is for the command. After `requeue` SLURM ends this script, too.
BODY = """\
folder={folder}
rm -f {left}
srun --kill-on-bad-exit=1 --open-mode=append --output={output} bash -c '
    trap : TERM
    "${{@:2}}"
    code=$?
    echo $code > "$1/exit-${rank}"
    exit $code
' worker "$folder" {command}
code=$?
if [ $code -ne 0 ]; then
    code={preempted}
    for file in "$folder"/{exits}; do
        case $(cat "$file" 2>/dev/null) in
            0|{again}) ;;  # done, preempted, or ended because another worker had gone
            {user_error}) code={user_error} ;;
            *) if [ $code -ne {user_error} ]; then code=1; fi ;;
        esac
    done
fi
restarts=${{SLURM_RESTART_COUNT:-0}}
if [ $code -eq {preempted} ] && [ $restarts -lt {restarts} ] && [ ! -e "$folder/stop" ]; then
    {pause}
    trap '' TERM
    if scontrol requeue $SLURM_JOB_ID; then
        scontrol update JobId=$SLURM_JOB_ID StartTime=now+$pause
        exit $code
    fi
fi
echo $code > "$folder/{ended}"
exit $code
"""
# What an attempt leaves in the folder: the exit code of each task, and of the whole. The elements of an array are jobs
# of their own, and each leaves its own.
WHOLE = {"rank": "SLURM_PROCID", "exits": "exit-*", "ended": "ended", "left": '"$folder"/exit-* "$folder/ended"'}
ELEMENT = {
    "rank": "SLURM_ARRAY_TASK_ID", "exits": "exit-$SLURM_ARRAY_TASK_ID", "ended": "ended-$SLURM_ARRAY_TASK_ID",
    "left": '"$folder/exit-$SLURM_ARRAY_TASK_ID" "$folder/ended-$SLURM_ARRAY_TASK_ID"',
}  # fmt: skip
GROUP = ELEMENT | {  # an element of several tasks
    "rank": "SLURM_ARRAY_TASK_ID-$SLURM_PROCID", "exits": "exit-$SLURM_ARRAY_TASK_ID-*",
    "left": '"$folder"/exit-$SLURM_ARRAY_TASK_ID-* "$folder/ended-$SLURM_ARRAY_TASK_ID"',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    partition: str = option("SLURM's partition", metavar="NAME")
    account: str = option("whom it is charged to", metavar="NAME")
    qos: str = option("quality of service", metavar="NAME")
    time: str = option("the longest that one attempt may take, as 24:00:00", metavar="TIME")
    tasks_per_node: int = option("processes on each node, which share out its GPUs", 1, "N")
    array: int = option("jobs of one array, each of which runs the whole command: workers of one sweep", 0, "N")
    sbatch: tuple[str, ...] = option(
        "any other option of sbatch, as --sbatch=--exclusive; may be repeated", (), "OPTION"
    )
    setup: str = option("shell to run first on the first node, as 'module load cuda'", metavar="SHELL")

    def __post_init__(self) -> None:
        check_words(self, besides=("setup",))
        for word in self.sbatch:
            if not checked("--sbatch", word).startswith("--"):
                raise UserError(f"--sbatch: '{word}' is no option of sbatch; write --sbatch=--exclusive and the like")
        check_range("--tasks-per-node", self.tasks_per_node, at_least=1)
        check_range("--array", self.array, at_least=0)


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
        "reservation": job.reserved, "array": f"0-{options.array - 1}" if options.array else "",
    }  # fmt: skip
    header = [f"--{name}={value}" for name, value in given.items() if value]
    header += ["--requeue", "--open-mode=append", "--signal=TERM@120", *options.sbatch]
    place = shlex.quote(str(folder))
    task, names = ("%a", ELEMENT) if options.array else ("%t", WHOLE)
    if options.array and job.hosts * options.tasks_per_node > 1:
        task, names = "%a-%t", GROUP
    pause = shell_pause("restarts", job.backoff)
    body = BODY.format(
        folder=place, output=shlex.quote(f"{str(folder).replace('%', '%%')}/worker-{task}.txt"), restarts=job.restarts,
        command=shlex.join([sys.executable, "-m", "jaxformer", *job.command]), pause=pause,
        preempted=PREEMPTED, user_error=USER_ERROR, again=SHELL_AGAIN, **names,
    )  # fmt: skip
    setup = [options.setup] if options.setup else []
    return "\n".join(["#!/bin/bash", *(f"#SBATCH {word}" for word in header), *exports(job), *setup, body])


def submit(folder: Path) -> list[str]:
    # A path may hold what the script's header could not quote.
    output = f"--output={str(folder).replace('%', '%%')}/batch.txt"
    return ["sbatch", "--parsable", output, str(folder / "job.sh")]


def dry_run(job: Job, options: Options) -> str:
    folder = jobs_folder() / job.name
    text = here_document(folder / "job.sh", batch_script(job, options, folder))
    return script(["mkdir", "-p", str(folder)], text, submit(folder))


def launch(job: Job, options: Options, record: Record) -> int:
    """Submit the job; SLURM starts it, and starts it again."""
    if (before := record.state().get("id")) and status(record, 0).state not in OVER:
        raise Busy(f"job {job.name} is in SLURM's queue already, as {before}")
    for path in (*record.logs().values(), *record.folder.glob("exit-*"), *record.folder.glob("ended*")):
        path.unlink(missing_ok=True)  # of an earlier job
    record.let_run()
    (record.folder / "job.sh").write_text(batch_script(job, options, record.folder), encoding="utf-8")
    number = run(submit(record.folder)).strip().partition(";")[0]
    record.note(state=STARTING, attempts=0, message="", code=None, id=number)
    say(f"{job.name} is SLURM's job {number}")
    return 0


def _shown(number: str) -> list[dict[str, str]]:
    """Return what SLURM says of a job, of an array what it says of each of its jobs; nothing of one that it has
    forgotten."""
    try:
        lines = run(["scontrol", "--oneliner", "show", "job", number]).splitlines()
        return [dict(found) for line in lines if (found := re.findall(r"(\S+?)=(\S*)", line))]
    except ToolError as error:
        if re.search("invalid job id", error.line, re.IGNORECASE):
            return []
        raise


def _of_array(shown: list[dict[str, str]]) -> dict[str, str]:
    """Return what stands for all jobs of an array: the one that is furthest from its end, and the most restarts."""
    order = ("RUNNING", "COMPLETING", "CONFIGURING", "PENDING", "REQUEUED")
    rank = {word: number for number, word in enumerate(order)}
    shown = sorted(shown, key=lambda fields: rank.get(fields["JobState"], len(rank)))
    return shown[0] | {"Restarts": str(max(int(fields["Restarts"]) for fields in shown))} if shown else {}


def status(record: Record, lines: int) -> Status:
    """Return how the job stands, by SLURM's words, or by what it has left behind when SLURM has forgotten it."""
    number = record.state().get("id")
    if not number:
        return Status(STOPPED, 0, "it was never submitted")
    found, array = _of_array(_shown(number)), record.asked()["options"].get("array", 0)
    ends = [last_line(path) for path in record.folder.glob("ended*")]
    ended = max(ends, key=lambda code: (code == str(USER_ERROR), int(code))) if len(ends) == (array or 1) else ""
    word = found.get("JobState", "")
    attempts = int(found["Restarts"]) + 1 if found else record.state()["attempts"]
    code, message = None, ""
    if ended and word not in ("PENDING", "RUNNING"):
        # In the order in which they ended.
        files = sorted(record.folder.glob("exit-*"), key=lambda file: file.stat().st_mtime)
        codes = [(file.name.removeprefix("exit-"), int(last_line(file) or 1)) for file in files]
        message = outcome_of(codes, lambda worker: last_line(record.log(worker))).message
        code = int(ended)
        state = DONE if code == 0 else STOPPED if record.is_asked_to_stop() else FAILED
    elif not found or word in ENDED:
        said = f"is {word}" if found else "is forgotten by SLURM"
        state, code = STOPPED if word == "CANCELLED" else FAILED, 1
        message = f"SLURM's job {number} {said} and left no exit code; see {record.folder}/batch.txt"
    else:
        state = PAUSED if word == "PENDING" and attempts > 1 else STATES.get(word, RUNNING)
        message = f"SLURM's job {number} is {word}" + (f" ({found['Reason']})" if word == "PENDING" else "")
    record.note(state=state, attempts=attempts, message=message, code=code)
    return Status(state, attempts, message, code, record.tails(lines))


def stop(record: Record) -> None:
    """Let all workers save and end; the job does not come back by itself."""
    number, state = record.state()["id"], status(record, 0).state
    record.ask_to_stop()
    run(["scontrol", "update", f"JobId={number}", "Requeue=0"])
    if record.asked()["options"].get("array"):
        run(["scancel", "--state=PENDING", number])  # those that have not begun
    run(["scancel", *(["--signal=TERM"] if state == RUNNING else []), number])


def delete(record: Record) -> None:
    """Take the job out of SLURM, at once."""
    if status(record, 0).state not in OVER:
        run(["scancel", record.state()["id"]])


def follow(record: Record) -> None:
    over = patiently(lambda: status(record, 0).state in OVER)
    follow_files(record, over, printer(record, keep=False))
