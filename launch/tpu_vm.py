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
from jaxformer.launch.packing import pack, require_project
from jaxformer.launch.policy import PREEMPTED, USER_ERROR, Outcome, outcome_of, supervise
from jaxformer.launch.records import RUNNING, STOPPED, Record, Status, follow_files, last_line, watched_status
from jaxformer.launch.tpu_pod import GONE, LENT, WORKER, Options, Pod

TAKES = ("accelerator", "slices", "spot", "reserved")
FIXED = ("zone", "project", "queued", "accelerator", "slices")  # while there is a TPU of the job
GRACE_SECONDS = 60.0  # between the end of the first worker that failed and the end of the others
LOOK_SECONDS = 60.0  # between two looks at a TPU that is used
RECONNECTS = 10  # in a row, without a new line
STOPPED_BEFORE = Outcome(PREEMPTED, "stopped before it ran")


def check(job: Job, options: Options) -> None:
    """Raise UserError for what TPU VMs cannot run; generations that they do not have are pointed to where they are."""
    slice_ = tpu(job.accelerator)
    if slice_ is None:
        known = ", ".join(f"{name}-16" for name in TPUS)
        raise UserError(f"--accelerator: '{job.accelerator}' is no TPU type; give one of {known}")
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
    each = ("@node@", "@worker@")  # marks that need no quotes, for what the shell puts in

    def everywhere(command: list[str], before: str = "") -> str:
        text = shlex.join(command).replace("@node@", '"$node"').replace("@worker@", '"$worker"')
        indices = " ".join(str(index) for index in range(pod.slice.hosts))
        loops = f"for node in {' '.join(pod.nodes)}; do for worker in {indices}; do\n"
        return f"{loops}    {before}{text}{'' if before else ' </dev/null'} &\ndone; done; wait"

    waits = (
        f'while state=$({shlex.join(pod.describe())}); [ "$state" != ACTIVE ]; do\n'
        f'    echo "$state"; case $state in FAILED|SUSPENDED) break ;; esac; sleep {options.poll:.0f}\ndone'
    )
    return script(
        "# The TPU.",
        f"{shlex.join(pod.create())} </dev/null",
        *([waits] if pod.queued else []),
        "# SSH keys: made and spread by the first connection.",
        *(f"{shlex.join(pod.ssh((node, '0'), f'mkdir -p {pod.folder}'))} </dev/null" for node in pod.nodes),
        everywhere(pod.ssh(each, f"mkdir -p {pod.folder}")),
        "# The code.",
        pack(options.code, archive),
        everywhere(pod.scp(each, [archive, WORKER])),
        everywhere(pod.ssh(each, pod.install())),
        "# The command, on every worker at once. If they end with 75: again, with 2 for the attempt.",
        everywhere(pod.ssh(each, pod.follow("1", 1)), piped(job.secrets) if job.secrets else ""),
        "# After a preemption, and then again from the top. Also when all is done: until then the TPU is paid for.",
        ("" if options.delete else "# ") + shlex.join(pod.delete()),
    )


def launch(job: Job, options: Options, record: Record) -> int:
    """Make the TPU where there is none, run the job on it, again after each preemption; return the job's exit code.

    A job that still runs there is followed from where it is. An interruption leaves it running.
    """
    pod = Pod(job, options)
    state = record.state()
    # On a TPU there may be attempts of an earlier job of this name.
    record.note(made=state.get("made") or int(time.time()))
    if state["state"] == RUNNING:  # its launcher has gone, the attempt goes on
        record.note(attempts=state["attempts"] - 1)
    elif state.get("prepared"):
        record.note(prepared=False)  # the code may have changed

    try:
        code = supervise(job, record, lambda number: _attempt(pod, record, number), say)
    except (ToolError, UserError):
        if record.state()["state"] != RUNNING:
            _give_back(pod, record)
        raise
    _give_back(pod, record)
    return code


def _give_back(pod: Pod, record: Record) -> None:
    if not record.state().get("holds"):
        return
    if not pod.options.delete:
        say(f"the TPU is kept, and paid for: `jaxformer launch delete {pod.job.name}` gives it back")
        return
    say("giving the TPU back")
    _delete(pod, record)


def _delete(pod: Pod, record: Record) -> None:
    record.note(prepared=False)
    try:
        run(pod.delete(), timeout=None)
    except ToolError as error:
        if error.kind != "missing":
            raise
    record.note(holds="")


def _attempt(pod: Pod, record: Record, number: int) -> Outcome:
    """Have the TPU made and prepared as far as need be, run the command, and say how that ended."""
    try:
        if (outcome := _lend(pod, record)) is not None:
            return outcome
        fresh = not record.state().get("prepared")
        if fresh:
            _prepare(pod, record)
    except ToolError as error:
        if error.kind == "capacity":
            return Outcome(PREEMPTED, f"no TPU yet: {error.line}")
        if record.state().get("holds") and pod.state() not in LENT:
            return Outcome(PREEMPTED, f"the TPU was taken while it was prepared: {error.line}")
        raise
    if record.is_asked_to_stop():
        return STOPPED_BEFORE
    outcome = _run(pod, record, number, fresh)
    if outcome.code in (0, USER_ERROR):
        return outcome
    state = pod.state()
    return outcome if state in LENT else Outcome(PREEMPTED, f"preempted: the TPU is {state or 'gone'}")


def _lend(pod: Pod, record: Record) -> Outcome | None:
    """Wait until the job has its TPUs, making them where there are none. Return what became of them otherwise."""
    shown, made = None, False
    while (state := pod.state()) not in LENT:
        if record.is_asked_to_stop():
            return STOPPED_BEFORE
        if state != shown:
            deletes = ": deleting it" if state in GONE and record.state().get("holds") else ""
            say(f"{pod.job.name} is {state}{deletes}" if state else f"making {pod.job.slices} x {pod.slice.type}")
            shown = state
        if state and not record.state().get("holds"):
            raise UserError(f"{_foreign(pod)} (it is {state})")
        if not state:
            made = True
            record.note(prepared=False, holds=f"a TPU in {pod.options.zone}")
            try:
                run(pod.create(), timeout=None)
            except ToolError as error:
                if error.kind != "ssh" and not pod.state():
                    record.note(holds="")
                raise
        elif state in GONE:
            why = pod.why_not()
            _delete(pod, record)
            if made:  # before it was ever lent: a failure of the attempt, or what the user asked for
                code = USER_ERROR if pod.options.valid_until else PREEMPTED
                return Outcome(code, f"no TPU: the queue ended it as {state}{why}")
        else:
            time.sleep(pod.options.poll)
    if not record.state().get("holds"):
        raise UserError(_foreign(pod))
    return None


def _foreign(pod: Pod) -> str:
    command = shlex.join(pod.delete())
    return f"there is a TPU {pod.job.name} already, which is not of this job; choose another --name, or: {command}"


def _prepare(pod: Pod, record: Record) -> None:
    """Send the code to every worker and install it."""
    say(f"preparing {len(pod.workers)} worker{'s' * (len(pod.workers) > 1)}: SSH keys, code, environment")
    archive = record.folder / "code.tar.gz"
    run(["bash", "-o", "pipefail", "-c", pack(pod.options.code, archive)])
    make = f"mkdir -p {pod.folder}"
    run_all([pod.ssh((node, "0"), make) for node in pod.nodes])  # makes and spreads the keys; the others find them
    run_all([pod.ssh(worker, make) for worker in pod.workers])
    run_all([pod.scp(worker, [archive, WORKER]) for worker in pod.workers], timeout=None)
    run_all([pod.ssh(worker, pod.install()) for worker in pod.workers], timeout=None)
    record.note(prepared=True)


def _run(pod: Pod, record: Record, number: int, fresh: bool) -> Outcome:
    """Run the command on all workers, or follow them; return how it ended once all of them have. On `fresh` machines
    nothing of the attempt has been seen, whatever its number."""
    ended: queue.Queue[tuple[str, int | None]] = queue.Queue()
    clients: dict[int, subprocess.Popen[str]] = {}
    closing = threading.Event()
    put, stdin = printer(record), as_lines(pod.job.secret_values())
    attempt = f"{record.state()['made']}-{number}"
    record.note(state=RUNNING)

    def attend(index: int) -> int | None:
        seen, lost = record.begin(index, number), 0
        line = 1 if fresh else seen + 1
        while True:
            code, before = None, line
            for kind, text in _lines(pod.ssh(pod.workers[index], pod.follow(attempt, line)), stdin, clients, index):
                if kind == "exit":
                    code = int(text)
                elif kind == "error":
                    why = text
                elif int(kind) >= line:  # gcloud, too, connects again, and then repeats them
                    put(str(index), text)
                    line = int(kind) + 1
            lost = 0 if line > before else lost + 1
            if code is not None or closing.is_set() or lost > RECONNECTS or _seems(pod) == "gone":
                return code
            say(f"the connection to worker {index} broke ({why}); connecting again")
            closing.wait(pod.options.poll)

    def worker(index: int) -> None:
        code = None
        try:
            code = attend(index)
        finally:
            ended.put((str(index), code))

    for index in range(len(pod.workers)):
        threading.Thread(target=worker, args=(index,), daemon=True).start()
    codes: list[tuple[str, int | None]] = []
    deadline, look = float("inf"), time.monotonic() + LOOK_SECONDS
    try:
        while len(codes) < len(pod.workers):
            try:
                codes.append(ended.get(timeout=1.0))
                if codes[-1][1] != 0:
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
                continue
            except queue.Empty:
                pass
            late = time.monotonic() > deadline
            if late and not closing.is_set():
                _end(pod, [index for index in range(len(pod.workers)) if str(index) not in dict(codes)])
            if late or (time.monotonic() > look and _seems(pod) == "gone"):
                _close(closing, clients)
            elif time.monotonic() > look:
                look = time.monotonic() + LOOK_SECONDS
    finally:
        _close(closing, clients)
    return outcome_of(codes, lambda name: last_line(record.log(name)))


def _close(closing: threading.Event, clients: dict[int, "subprocess.Popen[str]"]) -> None:
    closing.set()
    for client in list(clients.values()):
        client.terminate()


def _seems(pod: Pod) -> str:
    """Say whether the TPU is "lent" or "gone"; "unknown" where there is no answer."""
    try:
        return "lent" if pod.state() in LENT else "gone"
    except (ToolError, UserError):
        return "unknown"


def _lines(
    words: Sequence[str], stdin: str, clients: dict[int, "subprocess.Popen[str]"], index: int
) -> Iterator[tuple[str, str]]:
    """Run an SSH client and yield (number or "exit", text) of what worker.py prints there, then ("error", text) with
    what the client itself said last."""
    try:
        client = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise missing_tool(words[0]) from None
    clients[index] = client
    assert client.stdin is not None and client.stdout is not None and client.stderr is not None
    said: list[str] = []
    errors = client.stderr

    def listen() -> None:
        for text in errors:
            said[:] = [text.strip() or said[-1] if said else text.strip()]

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
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
    listener.join(timeout=5)
    yield "error", said[-1] if said else f"exit code {client.returncode}"


def _end(pod: Pod, indices: Sequence[int]) -> None:
    try:
        run_all([pod.ssh(pod.workers[index], pod.tell("end")) for index in indices])
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
    record.ask_to_stop()
    try:
        run_all([pod.ssh(worker, pod.tell("stop")) for worker in pod.workers])
    except ToolError:
        if pod.state() in LENT and record.state()["state"] == RUNNING:
            raise
    if record.launcher() is None:
        record.note(state=STOPPED, code=PREEMPTED)


def delete(record: Record) -> None:
    """Give the TPU back, with whatever runs on it."""
    if record.state().get("holds"):
        _delete(_pod_of(record), record)


def follow(record: Record) -> None:
    follow_files(record, lambda: record.launcher() is None, printer(record, keep=False))
