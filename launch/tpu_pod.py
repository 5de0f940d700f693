"""The TPUs of a job, and what `gcloud` and a shell are told about them."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.errors import UserError
from jaxformer.launch.accelerators import Tpu, tpu
from jaxformer.launch.commands import ToolError, run
from jaxformer.launch.job import Job, checked, option

# The user's project, which is jaxformer or needs it, beside JAX for its accelerator and what reads gs://.
SETUP = (
    "python3 -m pip install --user --quiet uv && ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv && "
    "~/.local/bin/uv pip install --quiet --python .venv{constraint} --editable . '{jax}' gcsfs"
)
PYTHON = ".venv/bin/python"
CONSTRAINT = "constraints/python3.12.txt"
WORKER = Path(__file__).with_name("worker.py")


def setup_of(code: str, jax: str) -> str:
    """Return shell that installs the project in the current folder, with the versions that it pins if any."""
    pinned = (Path(code) / CONSTRAINT).is_file()
    return SETUP.format(constraint=f" --constraint {CONSTRAINT}" if pinned else "", jax=jax)


def require_project(code: str) -> None:
    """Raise UserError for a folder that nobody can install."""
    if not (Path(code) / "pyproject.toml").is_file():
        raise UserError(
            f"--code: {code} has no pyproject.toml; give the folder of a project that is jaxformer or depends on it, "
            "or say how it is installed with --setup"
        )


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
    setup: str = option(
        "shell that makes .venv there (default: installs the project, JAX for TPUs, gcsfs)", metavar="SHELL"
    )
    delete: bool = option("give the TPU back when the job is over", False)
    poll: float = option("seconds between two looks at a TPU that is being made", 10.0, "SECONDS")

    def __post_init__(self) -> None:
        if not self.zone:
            raise UserError("--zone: give the zone that has these TPUs, as --zone=us-west4-a")
        for field in dataclasses.fields(self):
            if isinstance(getattr(self, field.name), str) and field.name not in ("code", "setup"):
                checked(f"--{field.name.replace('_', '-')}", getattr(self, field.name))


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
    def workers(self) -> list[tuple[str, int]]:
        """(node, index in it) of every worker, in the order in which they are numbered."""
        return [(node, index) for node in self.nodes for index in range(self.slice.hosts)]

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
        which = (
            [f"--node-id={job.name}"]
            if job.slices == 1
            else [f"--node-count={job.slices}", f"--node-prefix={job.name}"]
        )
        until = [f"--valid-until-duration={options.valid_until}"] if options.valid_until else []
        return self.tpus("queued-resources", "create", job.name, *which, *flags, f"--runtime-version={version}", *until)

    def describe(self) -> list[str]:
        if self.queued:
            return self.tpus("queued-resources", "describe", self.job.name, "--format=value(state.state)")
        return self.describe_node(self.job.name)

    def describe_node(self, node: str) -> list[str]:
        return self.tpus("tpu-vm", "describe", node, "--format=value(state)")

    def delete(self) -> list[str]:
        force = ["--force"] if self.queued else []  # its nodes with it
        return self.tpus("queued-resources" if self.queued else "tpu-vm", "delete", self.job.name, *force)

    def ssh(self, worker: tuple[str, int | str], command: str) -> list[str]:
        node, index = worker
        alive = ["--ssh-flag=-o ServerAliveInterval=30", "--ssh-flag=-o ServerAliveCountMax=4"]
        inside = ["--internal-ip"] if self.options.internal_ips else []
        return self.tpus("tpu-vm", "ssh", node, f"--worker={index}", f"--command={command}", *alive, *inside)

    def scp(self, worker: tuple[str, int | str], files: Sequence[Path]) -> list[str]:
        node, index = worker
        inside = ["--internal-ip"] if self.options.internal_ips else []
        return self.tpus("tpu-vm", "scp", *map(str, files), f"{node}:{self.folder}/", f"--worker={index}", *inside)

    def pack(self, archive: Path) -> str:
        """Shell that packs what git knows of the code, and what it does not ignore."""
        code = shlex.quote(self.options.code)
        return (
            f"git -C {code} ls-files -z --cached --others --exclude-standard | "
            f"tar --create --gzip --file={shlex.quote(str(archive))} --directory={code} --ignore-failed-read --null "
            "--files-from=-"
        )

    def install(self) -> str:
        """Shell that makes the code and its environment on a worker."""
        setup = self.options.setup or setup_of(self.options.code, "jax[tpu]")
        return f"cd {self.folder} && mkdir -p code && tar -xzf code.tar.gz -C code && cd code && {setup}"

    def follow(self, attempt: int | str, line: int) -> str:
        """Shell that starts the job's command on a worker, or follows it from one of its lines on."""
        variables = [f"{name}={value}" for name, value in {"PYTHONUNBUFFERED": "1", **self.job.environment}.items()]
        command = ["env", *variables, PYTHON, "-m", "jaxformer", *self.job.command]
        return shlex.join(["python3", f"{self.folder}/worker.py", "follow", str(attempt), str(line), "--", *command])

    def state(self) -> str:
        """What the platform says of the TPUs, "" where there are none. A queued resource may be ACTIVE without being
        whole: then it is what its first node is that is not READY."""
        state = _answer(self.describe())
        if state != "ACTIVE":
            return state
        nodes = [_answer(self.describe_node(node)) for node in self.nodes]
        return next((node or "TERMINATED" for node in nodes if node != "READY"), state)


def _answer(words: list[str]) -> str:
    try:
        return run(words).strip()
    except ToolError as error:
        if error.kind == "missing":
            return ""
        raise
