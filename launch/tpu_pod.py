"""The TPUs of a job, and what `gcloud` is told about them."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.errors import UserError
from jaxformer.launch.accelerators import Tpu, tpu
from jaxformer.launch.commands import ToolError, run
from jaxformer.launch.job import Job, check_words, option
from jaxformer.launch.packing import PYTHON, setup_of, unpack

WORKER = Path(__file__).with_name("worker.py")
LENT = ("READY", "ACTIVE")
GONE = ("PREEMPTED", "TERMINATED", "STOPPED", "SUSPENDING", "SUSPENDED", "FAILED")  # of what is never lent again
# Of SSH: a host that has vanished is noticed within seconds, where it is tried ten times, and a silent one in minutes.
SSH = ("ConnectTimeout=15", "ServerAliveInterval=30", "ServerAliveCountMax=4")


@dataclasses.dataclass(frozen=True)
class Options:
    zone: str = option("Google Cloud's zone, as us-west4-a", metavar="ZONE")
    project: str = option("Google Cloud's project (default: gcloud's own)", metavar="ID")
    version: str = option("the VM's software version (default: the one for JAX on this generation)", metavar="NAME")
    queued: bool = option("wait in the queue for capacity, as a queued resource", False)
    valid_until: str = option("leave the queue after that long, as 6h", metavar="DURATION")
    network: str = option("VPC network", metavar="NAME")
    subnetwork: str = option("subnetwork", metavar="NAME")
    service_account: str = option("whose permissions the workers have", metavar="EMAIL")
    internal_ips: bool = option("no public addresses; SSH goes to the internal ones", False)
    code: str = option("the git repository that is sent to the workers", ".", "FOLDER")
    setup: str = option("shell that makes .venv there (default: installs the project and JAX)", metavar="SHELL")
    delete: bool = option("give the TPU back when the job is over", False)
    poll: float = option("seconds between two looks at a TPU that is being made", 10.0, "SECONDS")

    def __post_init__(self) -> None:
        if not self.zone:
            raise UserError("--zone: give the zone that has these TPUs, as --zone=us-west4-a")
        check_words(self, besides=("code", "setup"))


class Pod(NamedTuple):
    """The TPUs of a job, and the commands that deal with them."""

    job: Job
    options: Options

    @property
    def slice(self) -> Tpu:
        found = tpu(self.job.accelerator)
        assert found is not None
        return found

    @property
    def queued(self) -> bool:
        return self.options.queued or self.job.slices > 1  # slices that know each other come from the queue only

    @property
    def nodes(self) -> list[str]:
        name, count = self.job.name, self.job.slices
        return [name] if count == 1 else [f"{name}-{index}" for index in range(count)]

    @property
    def workers(self) -> list[tuple[str, str]]:
        """(node, index in it) of every worker, in the order in which they are numbered."""
        return [(node, str(index)) for node in self.nodes for index in range(self.slice.hosts)]

    @property
    def folder(self) -> str:
        return f"jaxformer-{self.job.name}"

    def tpus(self, group: str, verb: str, *words: str) -> list[str]:
        project = [f"--project={self.options.project}"] if self.options.project else []
        return ["gcloud", "compute", "tpus", group, verb, *words, f"--zone={self.options.zone}", *project, "--quiet"]

    def create(self) -> list[str]:
        job, options = self.job, self.options
        version = options.version or self.slice.kind.runtime
        flags = [f"--accelerator-type={self.slice.type}"]
        flags += ["--spot"] if job.spot else ["--reserved"] if job.reserved else []
        for name in ("network", "subnetwork", "service_account"):
            value = getattr(options, name)
            flags += [f"--{name.replace('_', '-')}={value}"] if value else []
        flags += ["--internal-ips"] if options.internal_ips else []
        if not self.queued:
            return self.tpus("tpu-vm", "create", job.name, *flags, f"--version={version}")
        several = [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
        which = [f"--node-id={job.name}"] if job.slices == 1 else several
        until = [f"--valid-until-duration={options.valid_until}"] if options.valid_until else []
        return self.tpus("queued-resources", "create", job.name, *which, *flags, f"--runtime-version={version}", *until)

    def describe(self, what: str = "state.state") -> list[str]:
        if self.queued:
            return self.tpus("queued-resources", "describe", self.job.name, f"--format=value({what})")
        return self.describe_node(self.job.name)

    def describe_node(self, node: str) -> list[str]:
        return self.tpus("tpu-vm", "describe", node, "--format=value(state)")

    def delete(self) -> list[str]:
        force = ["--force"] if self.queued else []  # its nodes with it
        return self.tpus("queued-resources" if self.queued else "tpu-vm", "delete", self.job.name, *force)

    def ssh(self, worker: tuple[str, str], command: str) -> list[str]:
        node, index = worker
        flags = [f"--ssh-flag=-o {setting}" for setting in SSH]
        inside = ["--internal-ip"] if self.options.internal_ips else []
        return self.tpus("tpu-vm", "ssh", node, f"--worker={index}", f"--command={command}", *flags, *inside)

    def scp(self, worker: tuple[str, str], files: Sequence[Path]) -> list[str]:
        node, index = worker
        inside = ["--internal-ip"] if self.options.internal_ips else []
        return self.tpus("tpu-vm", "scp", *map(str, files), f"{node}:{self.folder}/", f"--worker={index}", *inside)

    def install(self) -> str:
        """Shell that makes the code and its environment on a worker."""
        setup = self.options.setup or setup_of(self.options.code, "jax[tpu]")
        return f"cd {self.folder} && {unpack('code.tar.gz', setup)}"

    def follow(self, attempt: str, line: int) -> str:
        """Shell that starts the job's command on a worker, or follows it from one of its lines on."""
        variables = [f"{name}={value}" for name, value in {"PYTHONUNBUFFERED": "1", **self.job.environment}.items()]
        command = ["env", *variables, PYTHON, "-m", "jaxformer", *self.job.command]
        return shlex.join(["python3", f"{self.folder}/worker.py", "follow", attempt, str(line), "--", *command])

    def tell(self, what: str) -> str:
        """Shell that lets the command on a worker "stop" or "end"."""
        return f"python3 {self.folder}/worker.py {what}"

    def state(self) -> str:
        """What the platform says of the TPUs, "" where there are none. A queued resource may be ACTIVE without being
        whole: then it is what its first node is that is not READY. Raises ToolError when there is no answer."""
        state = _answer(self.describe())
        if state != "ACTIVE":
            return state
        nodes = [_answer(self.describe_node(node)) for node in self.nodes]
        return next((node or "TERMINATED" for node in nodes if node != "READY"), state)

    def why_not(self) -> str:
        """What the platform says of a queued resource that failed."""
        if not self.queued:
            return ""
        said = _answer(self.describe("state.failedData.error.message"))
        return f": {said}" if said else ""


def _answer(words: list[str]) -> str:
    try:
        return run(words).strip()
    except ToolError as error:
        if error.kind == "missing":
            return ""
        raise
