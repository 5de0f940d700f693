"""The workers of a sweep as processes: how one finds its peers, and how several on this machine are started, watched
and, where they die, replaced."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxformer.devices import connect, has_peers, is_first, prepare_process
from jaxformer.errors import Interrupted, UserError, disk_errors
from jaxformer.launch import local
from jaxformer.studies.study import Study, read_study
from jaxformer.studies.working import END, MOST_STARTS, Said, follow, tell, work

STORAGE = "JAXFORMER_SWEEP_STORAGE"  # the database's URL, whose password stands in no file and on no command line
GRACE_SECONDS = 180.0  # that workers have to save


def joined() -> bool:
    """Find the other processes of this worker, where the environment says that there are some, and say whether this is
    the one that shows what the study gives."""
    prepare_process()
    connect()
    return not has_peers() or is_first()


def leave_devices() -> None:
    """Let this process, which only starts workers, touch none of the devices that are theirs."""
    jax.config.update("jax_platforms", "cpu")


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Between runs, too, SIGTERM ends a worker in order. Where there are peers, JAX listens for it."""
    if has_peers():
        yield
        return

    def stop(*_: object) -> None:
        raise Interrupted("stopped by SIGTERM", code=75)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the program around us owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def worker(folder: Path, parent: bool) -> None:
    """Work on a study as one of several workers, or as a process of one; with a `parent`, it ends, after saving, when
    that has gone."""
    if parent:
        threading.Thread(target=_follow_parent, name="parent", daemon=True).start()
    if cores := os.environ.get("JAXFORMER_CORES"):
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    study = read_study(folder, os.environ.get(STORAGE, ""))
    if not joined():
        follow(study)
        return
    with stoppable():
        work(study, lambda line: print(line, file=sys.stderr, flush=True))
        tell(END)


def _follow_parent() -> None:
    """Wait until the pipe from the parent ends, whatever ended the parent."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def share_out(study: Study, parallel: int, processes: int, say: Said) -> None:
    """Let so many workers here work on the study, each of their processes with its share of the cores and devices."""
    logs = study.folder / "workers"
    with disk_errors(logs):
        logs.mkdir(parents=True, exist_ok=True)
    files = [logs / f"{number}.txt" for number in range(parallel)]
    command = ["sweep", f"--study={study.folder}", "--worker"]
    groups: dict[int, list[subprocess.Popen[str]]] = {}
    codes: dict[int, concurrent.futures.Future[int]] = {}
    starts = dict.fromkeys(range(parallel), 0)

    def start(number: int) -> None:
        starts[number] += 1
        own = [shares(number * processes + index, parallel * processes) for index in range(processes)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "start_new_session": True}
        with files[number].open("ab") as output:
            groups[number] = local.start(
                command, processes, {STORAGE: study.storage}, own, stdout=output, stderr=output, **pipes
            )
        codes[number] = pool.submit(local.wait, groups[number])

    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        read = {number: file.stat().st_size if file.exists() else 0 for number, file in enumerate(files)}
        try:
            for number in range(parallel):
                start(number)
            while codes:
                for number, ending in list(codes.items()):
                    read[number] = _pass_on(files[number], read[number], say)
                    if not ending.done():
                        continue
                    code = ending.result()
                    del codes[number]
                    if code == 2 or (code and starts[number] > MOST_STARTS):
                        said = files[number].read_text(errors="replace").strip().splitlines()
                        why = said[-1].removeprefix("jaxformer sweep: ") if said else f"a worker ends with {code}"
                        raise UserError(f"{why} (worker {number}; {files[number]} has all that it said)")
                    if code:
                        start(number)
                time.sleep(0.2)
        finally:
            _end([process for group in groups.values() for process in group])


def _pass_on(path: Path, start: int, say: Any) -> int:
    with path.open("rb") as file:
        file.seek(start)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        say(line)
    return start + len(whole)


def _end(processes: Iterable["subprocess.Popen[str]"]) -> None:
    """Let workers save and end; kill those that take too long."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE_SECONDS
    for process in running:
        try:
            process.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def shares(number: int, parallel: int) -> dict[str, str]:
    """Return the environment that gives process `number` of so many its share of this machine: its cores, and its GPUs,
    or of one GPU its part of the memory."""
    given: dict[str, str] = {}
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = [core for index, core in enumerate(cores) if index * parallel // len(cores) == number]
        given["JAXFORMER_CORES"] = ",".join(map(str, own or [cores[number % len(cores)]]))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*")]
    devices = sorted(device for device in devices if device)
    if devices:
        own_devices = [device for index, device in enumerate(devices) if index % parallel == number]
        given["CUDA_VISIBLE_DEVICES"] = ",".join(own_devices or [devices[number % len(devices)]])
        together = -(-parallel // len(devices))
        if together > 1:
            given["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / together:.3f}"
    return given
