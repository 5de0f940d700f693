"""A real SLURM of several nodes on one machine, for tests of jobs: started, used and stopped by one test."""

import contextlib
import dataclasses
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from compiling import xla_flags

DAEMONS = ("munged", "slurmctld", "slurmd")
CLIENTS = ("sbatch", "srun", "scancel", "scontrol", "sinfo", "squeue")
# What is not here has SLURM's defaults, among them no accounting and no task plugin. Processes are found by their
# parents, because a test may have no cgroups of its own. A requeued job waits until its credential has expired, and
# less than 5 seconds are taken for the default of 120. Job ids start anywhere, because the port on which the processes
# of JAX meet follows from the job's id (61440 + id % 4096) and two clusters on one machine should not meet.
CONFIGURATION = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={run}/munge,cred_expire=5
StateSaveLocation={run}/state
SlurmdSpoolDir={run}/%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/%n.pid
FirstJobId={first}
ReturnToService=2
MinJobAge=86400
KillWait={grace}
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
{select}
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# Whole nodes go to one job. Only cons_tres understands --gpus-per-node, and it may share nodes.
WITHOUT_GPUS = "SelectType=select/linear"
WITH_GPUS = "SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nGresTypes=gpu"


def missing() -> list[str]:
    """The programs of SLURM and MUNGE that this machine lacks; with none, a cluster can start.

    On Debian and Ubuntu they come with `apt-get install slurm-wlm munge`.
    """
    return [name for name in (*DAEMONS, *CLIENTS) if _program(name) is None]


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A running cluster: `environment` is what any other command needs to talk to it, `folder` has its logs."""

    folder: Path
    environment: dict[str, str]

    def run(self, name: str, *args: str | os.PathLike[str]) -> str:
        """What a client of SLURM, such as squeue, prints; an error that it reports is raised with its words."""
        words = [name, *map(str, args)]
        # Files of a job (slurm-ID.out) lie where it was submitted.
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment, timeout=60, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def sbatch(self, script: Path, *args: str) -> str:
        """Submit a script, with options of sbatch in front of it; return the job's id."""
        return self.run("sbatch", "--parsable", *args, script).strip()

    def cancel(self, job: str, *args: str) -> None:
        self.run("scancel", *args, job)

    def fields(self, job: str) -> dict[str, str]:
        """All that SLURM knows of a job (JobState, Reason, Restarts, BatchHost, StdOut...), long after its end too."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", job)))

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, CANCELLED, TIMEOUT, NODE_FAIL..."""
        return self.fields(job)["JobState"]

    def exit_code(self, job: str) -> tuple[int, int]:
        """The code with which the batch script exited, and the signal that ended it (0 for none)."""
        code, number = self.fields(job)["ExitCode"].split(":")
        return int(code), int(number)

    def output(self, job: str) -> str:
        """What the job has printed so far."""
        path = Path(self.fields(job)["StdOut"])
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def wait(self, job: str, states: Collection[str], timeout: float = 60) -> str:
        """Wait until the job is in one of `states`, return it; what was found instead goes with the TimeoutError."""
        states, end = {states} if isinstance(states, str) else set(states), time.monotonic() + timeout
        while (state := self.state(job)) not in states:
            if time.monotonic() > end:
                reason = self.fields(job).get("Reason")
                raise TimeoutError(f"Job {job} is {state} ({reason})\n{self.output(job)}\n{_logs(self.folder)}")
            time.sleep(0.1)
        return state


@contextlib.contextmanager
def cluster(folder: Path, nodes: int = 2, grace: int = 30, cpus: int = 8, gpus: int = 0) -> Iterator[Slurm]:
    """Run a cluster whose every node is this machine; `folder` gets its configuration, logs and the jobs' output.

    Between SIGTERM and SIGKILL a cancelled job has `grace` seconds. A node claims `cpus` cores, so that scripts may ask
    for them, and `gpus` devices, which are names only: jobs get their numbers in CUDA_VISIBLE_DEVICES. Jobs inherit the
    environment of this process, but each has one device, as users' have, until it asks for more.
    Nodes are called 127.0.0.1, 127.0.0.2... and not node1, because JAX takes the first node's name for the address of
    the coordinator, and no resolver would know that name. No daemon, job or step outlives the block.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Sockets lie in a folder of their own, because a path of more than 107 characters cannot name one.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as run:
        configuration = folder / "slurm.conf"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))
        } | {"XLA_FLAGS": xla_flags(1)}
        environment["SLURM_CONF"] = str(configuration)
        environment["PATH"] = _path()
        slurm = Slurm(folder, environment)
        _configure(configuration, Path(run), nodes, grace, cpus, gpus)
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            for daemon in _start(slurm, Path(run), nodes):
                daemons.append(daemon)
            _wait_until_idle(slurm, daemons, nodes)
            yield slurm
        finally:
            _stop(slurm, daemons)


def _path() -> str:
    """PATH and where daemons are, which only root has on its PATH."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


def _program(name: str) -> str | None:
    return shutil.which(name, path=_path())


def _user() -> str:
    """Who runs this, which $USER, that getpass would ask, need not be."""
    return pwd.getpwuid(os.getuid()).pw_name


def _configure(path: Path, run: Path, nodes: int, grace: int, cpus: int, gpus: int) -> None:
    ports = _free_ports(nodes + 1)
    sizes = f"CPUs={cpus} RealMemory=1000000" + (f" Gres=gpu:{gpus}" if gpus else "")
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        port=ports[0],
        user=_user(),
        run=run,
        first=ports[0] % 4000 + 1,
        grace=grace,
        select=WITH_GPUS if gpus else WITHOUT_GPUS,
        nodes="\n".join(
            f"NodeName={name} NodeAddr={name} Port={port} {sizes} State=UNKNOWN"
            for name, port in zip(_names(nodes), ports[1:], strict=True)
        ),
    )
    path.write_text(text, encoding="utf-8")
    # The one setting that every version takes and that does nothing: version 2 would ask systemd for a group at once.
    path.with_name("cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n", encoding="utf-8")
    if gpus:
        files = [run / f"gpu{number}" for number in range(gpus)]
        for file in files:
            file.symlink_to(os.devnull)  # only a device gets a number
        path.with_name("gres.conf").write_text("".join(f"Name=gpu File={file}\n" for file in files), encoding="utf-8")
    (run / "state").mkdir()
    (run / "key").write_bytes(os.urandom(128))
    (run / "key").chmod(0o600)


def _names(nodes: int) -> list[str]:
    return [f"127.0.0.{number + 1}" for number in range(nodes)]


def _free_ports(number: int) -> list[int]:
    """Ports that nobody uses now; all are held until the last is found, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


def _start(slurm: Slurm, run: Path, nodes: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the daemons, one by one, so that those already started are known if one fails."""
    # MUNGE wants its folder open to all users; this one is for the user who runs the test.
    files = {
        "socket": "munge",
        "key-file": "key",
        "pid-file": "munge.pid",
        "seed-file": "seed",
        "log-file": "munge.log",
    }
    yield _daemon(slurm, "munged", "--foreground", "--force", *(f"--{name}={run / files[name]}" for name in files))
    end = time.monotonic() + 10
    while not (run / "munge").exists() and time.monotonic() < end:
        time.sleep(0.02)
    yield _daemon(slurm, "slurmctld", "-D", "-c")
    for name in _names(nodes):
        yield _daemon(slurm, "slurmd", "-D", "-c", "-N", name, log=f"slurmd-{name}")


def _daemon(slurm: Slurm, name: str, *args: str, log: str | None = None) -> "subprocess.Popen[bytes]":
    program = _program(name)
    assert program, f"{name} is not installed"
    with (slurm.folder / f"{log or name}.log").open("wb") as file:
        # Its own session: an interrupt from the keyboard is for the test, which then stops the daemons in order.
        return subprocess.Popen(
            [program, *args],
            cwd=slurm.folder,
            env=slurm.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait_until_idle(slurm: Slurm, daemons: "list[subprocess.Popen[bytes]]", nodes: int, timeout: float = 30) -> None:
    end, found = time.monotonic() + timeout, ""
    while found.split() != ["idle"] * nodes:
        dead = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if dead or time.monotonic() > end:
            raise RuntimeError(f"SLURM did not start: nodes {found!r}, ended {dead}\n{_logs(slurm.folder)}")
        time.sleep(0.1)
        with contextlib.suppress(RuntimeError):  # the controller does not answer yet
            found = slurm.run("sinfo", "--noheader", "--Node", "--format=%T")


def _stop(slurm: Slurm, daemons: "list[subprocess.Popen[bytes]]") -> None:
    """End jobs, then daemons in the reverse order of their start, then whatever is left.

    A daemon that ends leaves the steps of its jobs alone, so these go first.
    """
    with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
        if slurm.run("squeue", "--noheader"):
            slurm.run("scancel", "--quiet", "--full", "--signal=KILL", "--state=RUNNING", "--user", _user())
            slurm.run("scancel", "--quiet", "--user", _user())
            end = time.monotonic() + 5
            while slurm.run("squeue", "--noheader") and time.monotonic() < end:
                time.sleep(0.1)
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(5)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    end = time.monotonic() + 5
    while (left := _processes(slurm)) and time.monotonic() < end:
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def _processes(slurm: Slurm) -> list[int]:
    """The processes of this cluster and no other's: their environment names its configuration."""
    mark, found = f"SLURM_CONF={slurm.environment['SLURM_CONF']}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def _logs(folder: Path) -> str:
    """The last lines of every daemon's log."""
    return "\n".join(f"== {path.name}\n{_tail(path)}" for path in sorted(folder.glob("*.log")))


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
