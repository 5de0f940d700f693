"""The connections of `gcloud compute tpus tpu-vm ssh` and scp: shells on workers, whose other end can break."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from fake_cloud import common
from fake_cloud.common import Store

BROKEN = -1  # instead of an exit code: the connection ended before the command
ATTEMPTS = 10
HINT = (
    "Failed to execute command on multiple workers. This may have happened if you have not added your SSH key to your "
    'ssh-agent using "ssh-add ~/.ssh/google_compute_engine".'
)
RETRYING = "Retrying: {} command error: [/usr/bin/ssh] exited with return code [255]."


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def refuse(verb: str, workers: list[int]) -> None:
    """What is said when nobody answers; the five seconds between the real one's attempts are left out."""
    for attempt in range(ATTEMPTS):
        for worker in workers:
            say(f"{verb.upper()}: Attempting to connect to worker {worker}...")
            say("ssh: connect to host 127.0.0.1 port 22: Connection refused")
            if attempt < ATTEMPTS - 1:
                if len(workers) > 1:
                    say(HINT)
                say(RETRYING.format(verb.upper()))


def home(store: Store, name: str, worker: int) -> Path:
    path = store.folder / "nodes" / name / f"worker-{worker}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def copy(store: Store, name: str, workers: list[int], paths: list[str], recurse: bool) -> int:
    """Files to all workers, or from one."""
    up = ":" in paths[-1]
    sources, target = paths[:-1], paths[-1].partition(":")[2] if up else paths[-1]
    for worker in workers:
        say(f"SCP: Attempting to connect to worker {worker}...")
        folder = home(store, name, worker)
        here = [Path(one) if up else _remote(folder, one.partition(":")[2]) for one in sources]
        there = _remote(folder, target) if up else Path(target)
        if (len(here) > 1 or target.endswith("/")) and not there.is_dir():
            say(f"scp: {target}: No such file or directory" if len(here) == 1 else f"{target}: Not a directory")
            return 1
        for source in here:
            to = there / source.name if there.is_dir() else there
            if not source.exists() or not to.parent.is_dir():
                say(f"scp: {source if to.parent.is_dir() else to}: No such file or directory")
                return 1
            if not source.is_dir():
                shutil.copy2(source, to)
            elif recurse:
                shutil.copytree(source, to, dirs_exist_ok=True, symlinks=False)
            else:
                say(f"scp: {source}: not a regular file")
                return 1
    return 0


def _remote(folder: Path, path: str) -> Path:
    return folder / path.removeprefix("~/").removeprefix("~")  # an absolute path stays one


def run(store: Store, name: str, node: dict[str, Any], workers: list[int], command: str) -> int:
    """Run a command on some workers at once; the exit code is the first worker's that failed, or BROKEN.

    A connection that breaks is tried again by gcloud, which runs the whole command once more.
    """
    client = Client(store, name, node, workers)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, client.break_off)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, client.give_up)
    registered = store.folder / "ssh" / name / str(os.getpid())
    registered.parent.mkdir(parents=True, exist_ok=True)
    registered.touch()
    try:
        while True:
            codes = client.run(command)
            if BROKEN not in codes:
                return next((code for code in codes if code), 0)
            # Nobody answers on a machine that is gone.
            gone = store.read().get("nodes", {}).get(name, {}).get("state") != "READY"
            if gone or not client.reconnect:
                closed = "Connection to 127.0.0.1 closed by remote host."
                say(closed if gone else "client_loop: send disconnect: Broken pipe")
                return BROKEN
            say(RETRYING.format("SSH"))
            client.reconnect = False
    finally:
        registered.unlink(missing_ok=True)
        common.append(store.folder / "stdin.jsonl", {"tool": "gcloud", "bytes": client.size})


class Client:
    """The clients' side of the connections to some workers of one node."""

    def __init__(self, store: Store, name: str, node: dict[str, Any], workers: list[int]) -> None:
        self.store, self.name, self.node, self.workers = store, name, node, workers
        self.ends: list[int] = []  # closing these is how servers learn that this side is gone
        self.broken = self.reconnect = False
        self.size = 0  # of what came from stdin

    def break_off(self, number: int, frame: Any) -> None:
        self.broken, self.reconnect = True, number == signal.SIGUSR2
        while self.ends:
            os.close(self.ends.pop())

    def give_up(self, number: int, frame: Any) -> None:
        os._exit(128 + number)  # the kernel closes our ends, as it does after a SIGKILL

    def run(self, command: str) -> list[int]:
        """The codes of all workers; like ssh, wait for their output's end too, which a background child may hold."""
        self.broken = False
        mine: list[int] = []
        results: list[int] = []
        pumps: list[threading.Thread] = []
        for worker in self.workers:
            say(f"SSH: Attempting to connect to worker {worker}...")
            pipes = [os.pipe() for _ in range(5)]
            (stdin, feed), (out, stdout), (error, stderr), (result, report), (alive, end) = pipes
            mine += [feed, out, error, result, end]
            if os.fork() == 0:
                # A server may hold no client's end, not even another worker's, or would not see it close.
                for one in mine:
                    os.close(one)
                with contextlib.suppress(BaseException):
                    _serve(self.store, self.name, self.node, worker, command, (stdin, stdout, stderr, report, alive))
                os._exit(0)
            for one in (stdin, stdout, stderr, report, alive):
                os.close(one)
            self.ends.append(end)
            results.append(result)
            pumps += [self._pump(out, 1), self._pump(error, 2), self._pump(0, feed)]
        for pump in pumps:  # not before the last fork, which copies no thread but the locks that one may hold
            pump.start()
        codes = [self._code(worker, result) for worker, result in zip(self.workers, results, strict=True)]
        for pump in (pump for index, pump in enumerate(pumps) if index % 3 < 2):
            while not self.broken and pump.is_alive():
                pump.join(0.05)
        if BROKEN not in codes and self.store.read().get("nodes", {}).get(self.name, {}).get("state") != "READY":
            codes.append(BROKEN)  # the command was killed with its machine, which cannot report that
        return codes

    def _code(self, worker: int, result: int) -> int:
        while not self.broken and not select.select([result], [], [], 0.05)[0]:
            pass
        data = b"" if self.broken else os.read(result, 16)
        code = int(data) if data else BROKEN
        if code > 0 and len(self.workers) > 1:
            say(f"##### Command execution on worker {worker} failed with exit status {code}. Continuing.")
        return code

    def _pump(self, source: int, target: int) -> threading.Thread:
        def pump() -> None:
            with contextlib.suppress(OSError):
                while data := os.read(source, 65536):
                    if source == 0:
                        self.size += len(data)
                    while data and not self.broken:
                        data = data[os.write(target, data) :]
            for one in (source, target):
                if one > 2:
                    os.close(one)

        return threading.Thread(target=pump, daemon=True)


def _serve(
    store: Store, name: str, node: dict[str, Any], worker: int, command: str, files: tuple[int, int, int, int, int]
) -> None:
    """What sshd does on the worker: run the command until it ends or the client is gone."""
    stdin, stdout, stderr, report, alive = files
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    folder = home(store, name, worker)
    environment = common.environment(
        store,
        f"nodes/{name}/{node['life']}/worker-{worker}",
        HOME=str(folder),
        JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{node['port']}",
        JAX_NUM_PROCESSES=str(node["total"]),
        JAX_PROCESS_ID=str(node["first"] + worker),
    )
    shell = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, stdin=stdin, stdout=stdout, stderr=stderr,
        start_new_session=True,
    )  # fmt: skip
    for theirs in (stdin, stdout, stderr, 0, 1, 2):
        os.close(theirs)
    ended = os.pidfd_open(shell.pid)
    ready = select.select([ended, alive], [], [])[0]
    if ended in ready:
        os.write(report, str(common.exit_code(shell.wait())).encode())
    else:
        # As after a hang-up: what moved to another session, or ignores it with nohup, stays.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGHUP)
