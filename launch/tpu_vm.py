"""TPU VMs: slices of Cloud TPU's own API, made, prepared, run and made again with `gcloud`.

jaxformer launch tpu_vm --zone=us-west4-a --accelerator=v5litepod-16 --spot -- train --config=bert:base --workdir=gs://…

The launcher keeps one SSH connection to each worker, behind which the command goes on when it breaks (worker.py). A
preempted slice is deleted and created again, as the API demands.
"""

import dataclasses
import queue
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxformer.errors import UserError
from jaxformer.launch.accelerators import TPUS, Tpu, tpu
from jaxformer.launch.commands import ToolError, as_lines, missing_tool, piped, run, run_all, script
from jaxformer.launch.job import Job, of_record, require_store
from jaxformer.launch.output import printer, say
from jaxformer.launch.policy import PREEMPTED, Outcome, judge, supervise
from jaxformer.launch.records import OVER, STOPPED, STOPPING, Record, Status, follow_files, last_line, watched_status
from jaxformer.launch.tpu_pod import WORKER, Options, Pod, require_project

TAKES = ("accelerator", "slices", "spot", "reserved")
GRACE_SECONDS = 60.0  # between the end of the first worker that failed and the end of the others
RECONNECTS = 10  # in a row, without a new line
GONE = (
    "PREEMPTED",
    "TERMINATED",
    "STOPPED",
    "SUSPENDING",
    "SUSPENDED",
    "FAILED",
)  # of a slice that is never lent again
LENT = ("READY", "ACTIVE")


def check(job: Job, options: Options) -> None:
    """Raise UserError for what TPU VMs cannot run; generations that they do not have are pointed to where they are."""
    slice_ = tpu(job.accelerator)
    if slice_ is None:
        raise UserError(
            f"--accelerator: '{job.accelerator}' is no TPU type; give one of {', '.join(f'{name}-16' for name in TPUS)}"
        )
    if not slice_.kind.runtime:
        raise UserError(_elsewhere(job, options, slice_))
    require_store(job)
    if job.reserved not in ("", "any"):
        raise UserError(f"--reserved={job.reserved}: this API chooses the reservation itself; leave the name out")
    if not options.setup:
        require_project(options.code)


def _elsewhere(job: Job, options: Options, slice_: Tpu) -> str:
    region, name = options.zone.rpartition("-")[0], job.name
    flags = [f"--name={name}", f"--accelerator={slice_.type}", *([f"--slices={job.slices}"] if job.slices > 1 else [])]
    gke = shlex.join(["jaxformer", "launch", "gke", *flags, "--queue=QUEUE", "--image=IMAGE", "--", *job.command])
    project = options.project or "PROJECT"
    policy = f"projects/{project}/regions/{region}/resourcePolicies/{name}"
    machine = f"{slice_.generation}-standard-{slice_.chips_per_host}t"
    capacity = "--provisioning-model=SPOT --instance-termination-action=STOP" if job.spot else (
        f"--provisioning-model=RESERVATION_BOUND --instance-termination-action=DELETE --reservation-affinity=specific "
        f"--reservation={job.reserved or 'RESERVATION'}"
    )  # fmt: skip
    return (
        f"--accelerator: the Cloud TPU API has no {slice_.generation}; run it on GKE:\n  {gke}\n"
        "or make the machines as a managed instance group of Compute Engine, and start the same command on each:\n"
        f"  gcloud compute resource-policies create workload-policy {name} --type=HIGH_THROUGHPUT "
        f"--accelerator-topology={slice_.topology} --region={region} --project={project}\n"
        f"  gcloud compute instance-templates create {name} --machine-type={machine} --maintenance-policy=TERMINATE "
        f"{capacity} --scopes=cloud-platform --image-family=ubuntu-accel-2404-amd64-tpu-tpu7x "
        f"--image-project=ubuntu-os-accelerator-images --project={project}\n"
        f"  gcloud compute instance-groups managed create {name} --zone={options.zone} --template={name} "
        f"--size={slice_.hosts} --default-action-on-vm-failure=do-nothing --workload-policy={policy} "
        f"--project={project}"
    )


def dry_run(job: Job, options: Options) -> str:
    """Return what a first attempt does, for several workers as loops."""
    pod, archive = Pod(job, options), Path("code.tar.gz")

    def everywhere(command: list[str], before: str = "") -> str:
        text = shlex.join(command)
        for flag in ("node", "worker"):
            text = text.replace(f"'--{flag}=${flag}'", f'--{flag}="${flag}"')
        text = text.replace(" '$node' ", ' "$node" ').replace("'$node:", '"$node":\'')
        loops = (
            f"for node in {' '.join(pod.nodes)}; do for worker in {' '.join(map(str, range(pod.slice.hosts)))}; do\n"
        )
        return f"{loops}    {before}{text} &\ndone; done; wait"

    each = ("$node", "$worker")
    wait = f"until {shlex.join(pod.describe())} | grep -q ACTIVE; do sleep {options.poll:.0f}; done"
    return script(
        "# The TPU.",
        pod.create(),
        *([wait] if pod.queued else []),
        "# SSH keys: made and spread by the first connection.",
        *(pod.ssh((node, 0), f"mkdir -p {pod.folder}") for node in pod.nodes),
        everywhere(pod.ssh(each, f"mkdir -p {pod.folder}")),
        "# The code.",
        pod.pack(archive),
        everywhere(pod.scp(each, [archive, WORKER])),
        everywhere(pod.ssh(each, pod.install())),
        "# The command, on every worker at once. On 75: again with 2 for the attempt.",
        everywhere(pod.ssh(each, pod.follow(1, 1)), piped(job.secrets) if job.secrets else ""),
        "# After a preemption, and when all is done. After a preemption everything starts again from the top.",
        ("# " if not options.delete else "") + shlex.join(pod.delete()),
    )


def launch(job: Job, options: Options, record: Record) -> int:
    """Make the TPU where there is none, run the job on it, again after each preemption; return the job's exit code.

    A job that still runs there is followed from where it is. Ctrl-C leaves it running.
    """
    pod = Pod(job, options)
    record.note(made=record.state().get("made") or int(time.time()))
    # Nothing is sent to workers that are in the middle of an attempt, which another launcher has begun.
    prepared = record.state()["state"] not in (*OVER, "starting")
    if prepared:
        record.note(attempts=max(record.state()["attempts"] - 1, 0))

    def attempt(number: int) -> Outcome:
        nonlocal prepared
        try:
            prepared = _lend(pod) and prepared
            if not prepared:
                _prepare(pod, record)
                prepared = True
        except ToolError as error:
            if error.kind == "capacity" or (error.kind == "ssh" and pod.state() not in LENT):
                return Outcome(PREEMPTED, f"no TPU yet: {error.line}")
            raise
        outcome = _attempt(pod, record, number)
        if outcome.code == PREEMPTED and (state := pod.state()) not in LENT:
            return Outcome(PREEMPTED, f"preempted: the TPU is {state or 'gone'}")
        return outcome

    try:
        code = supervise(job, record, attempt, say)
        if options.delete:
            run(pod.delete())
    except ToolError as error:
        raise error.for_people() from error
    if not options.delete:
        say(f"the TPU is kept, and paid for: `jaxformer launch delete {job.name}` gives it back")
    return code


def _lend(pod: Pod) -> bool:
    """Wait until the job has its TPUs, making them where there are none; say whether these were there before."""
    there = True
    while (state := pod.state()) not in LENT:
        if state in GONE:
            say(f"{pod.job.name} is {state}: deleting it")
            run(pod.delete())
        elif not state:
            say(f"making {pod.job.slices} x {pod.slice.type} in {pod.options.zone}")
            run(pod.create())
            there = False
        else:
            say(f"{pod.job.name} is {state}")
            time.sleep(pod.options.poll)
    return there


def _prepare(pod: Pod, record: Record) -> None:
    """Send the code to every worker and install it."""
    say(f"preparing {len(pod.workers)} worker{'s' * (len(pod.workers) > 1)}: SSH keys, code, environment")
    archive = record.folder / "code.tar.gz"
    run(["bash", "-o", "pipefail", "-c", pod.pack(archive)])
    make = f"mkdir -p {pod.folder}"
    run_all([pod.ssh((node, 0), make) for node in pod.nodes])  # makes and spreads the keys; the others find them
    run_all([pod.ssh(worker, make) for worker in pod.workers])
    run_all([pod.scp(worker, [archive, WORKER]) for worker in pod.workers])
    run_all([pod.ssh(worker, pod.install()) for worker in pod.workers])


def _attempt(pod: Pod, record: Record, number: int) -> Outcome:
    """Run the command on all workers, or follow them; return how it ended once all of them have."""
    values = pod.job.secret_values()
    made = record.state()["made"]  # on a TPU that was kept there may be attempts of an earlier job of this name
    put = printer(record)
    ends: queue.Queue[tuple[int, int | None]] = queue.Queue()
    clients: dict[int, subprocess.Popen[str]] = {}
    closing = threading.Event()

    def attend(index: int) -> None:
        line, lost = 1, 0
        while True:
            code, read = None, 0
            command = pod.follow(f"{made}-{number}", line)
            for kind, text in _lines(pod.ssh(pod.workers[index], command), as_lines(values), clients, index):
                if kind == "exit":
                    code = int(text)
                elif int(kind) >= line:  # gcloud, too, connects again, and then repeats them
                    put(str(index), text)
                    line, read = int(kind) + 1, read + 1
            lost = 0 if read else lost + 1
            if code is not None or closing.is_set() or lost > RECONNECTS or pod.state() not in LENT:
                ends.put((index, code))
                return
            put(str(index), "(the connection broke; connecting again)")
            closing.wait(pod.options.poll)

    threads = [threading.Thread(target=attend, args=(index,), daemon=True) for index in range(len(pod.workers))]
    for thread in threads:
        thread.start()
    codes: list[tuple[int, int | None]] = []
    deadline = float("inf")
    try:
        while len(codes) < len(threads):
            try:
                codes.append(ends.get(timeout=1.0))
            except queue.Empty:
                if time.monotonic() > deadline and not closing.is_set():
                    _end_others(pod, [index for index in range(len(threads)) if index not in dict(codes)])
                    closing.set()
                continue
            if codes[-1][1] != 0:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    finally:
        closing.set()
        for client in clients.values():
            client.terminate()
    return judge([(str(index), code) for index, code in codes], lambda worker: last_line(record.log(worker)))


def _lines(
    words: Sequence[str], stdin: str, clients: dict[int, "subprocess.Popen[str]"], index: int
) -> Iterator[tuple[str, str]]:
    """Run an SSH client and yield (number or "exit", text) of what worker.py prints there."""
    try:
        client = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise missing_tool(words[0]) from None
    clients[index] = client
    assert client.stdin is not None and client.stdout is not None
    try:
        client.stdin.write(stdin)
        client.stdin.close()
    except BrokenPipeError:
        pass  # it has ended already, as its output will show
    for text in client.stdout:
        kind, tab, rest = text.rstrip("\n").partition("\t")
        if tab and (kind == "exit" or kind.isdecimal()):
            yield kind, rest
    client.wait()


def _end_others(pod: Pod, indices: Sequence[int]) -> None:
    try:
        run_all([pod.ssh(pod.workers[index], f"python3 {pod.folder}/worker.py end") for index in indices])
    except ToolError:
        pass  # where the machine is gone, so is what ran on it


def _pod_of(record: Record) -> Pod:
    asked = record.asked()
    return Pod(of_record(asked["job"]), Options(**asked["options"]))


def status(record: Record, lines: int) -> Status:
    found = watched_status(record, lines)
    try:
        state = _pod_of(record).state()
    except (ToolError, UserError) as error:
        state = f"unknown ({error})"
    message = f"the TPU is {state}" if state else "there is no TPU"
    return dataclasses.replace(found, message="; ".join(part for part in (found.message, message) if part))


def stop(record: Record) -> None:
    """Let all workers save and end; the TPU is kept."""
    pod = _pod_of(record)
    record.note(state=STOPPING)
    run_all([pod.ssh(worker, f"python3 {pod.folder}/worker.py stop") for worker in pod.workers])
    if not record.is_watched():
        record.note(state=STOPPED)


def delete(record: Record) -> None:
    """Give the TPU back, with whatever runs on it."""
    pod = _pod_of(record)
    record.note(state=STOPPING)
    if pod.state():
        run(pod.delete())


def follow(record: Record) -> None:
    follow_files(record, lambda: not record.is_watched(), printer(record, keep=False))
