"""A job: what runs, on how much, and how often it may be started again; the same plain description for every place."""

import dataclasses
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from jaxformer.checks import check_range
from jaxformer.errors import UserError

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")  # Kubernetes adds to it, and ends at 63 characters
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|passphrase|key|apikey)$", re.IGNORECASE)
_WORD = re.compile(r"[\w.:@%+=,/*-]*")
COORDINATOR_PORT = 8476  # of the first process, where others must be told of it


def option(text: str, default: Any = "", metavar: str = "") -> Any:
    """A field of a job or of a place's options that the command line offers, with what its help says."""
    made = {"default_factory": lambda: default} if isinstance(default, dict) else {"default": default}
    return dataclasses.field(**made, metadata={"help": text, "metavar": metavar})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """`command` holds the words behind `jaxformer`, `workdir` the run directory that they name or imply, `environment`
    variables that anybody may see, `secrets` the names of those that nobody may: their values are taken from the
    environment of the launcher and are written nowhere.

    Raises UserError for anything that a place could misunderstand.
    """

    command: tuple[str, ...]
    workdir: str = ""
    name: str = option("of the job: lower-case letters, digits and - (default: the run directory's)", metavar="NAME")
    accelerator: str = option("v5litepod-16 and the like for TPUs, KIND:N for N GPUs a host, as h100:8", metavar="TYPE")
    hosts: int = option("machines (a TPU slice knows its own number)", 1, metavar="N")
    slices: int = option("TPU slices, connected by the data centre's network", 1, metavar="N")
    environment: Mapping[str, str] = option(
        "a variable for every worker, NAME=VALUE; may be repeated", {}, "NAME=VALUE"
    )
    secrets: tuple[str, ...] = option(
        "the name of a variable that every worker gets with the value that it has here, and that is written nowhere; "
        "may be repeated", (), "NAME",
    )  # fmt: skip
    mounts: Mapping[str, str] = option(
        "an object store's URL as a folder of every worker; may be repeated", {}, "FOLDER=URL"
    )
    spot: bool = option("capacity that is cheap and may be taken away", False)
    reserved: str = option("the name of a reservation whose capacity is used", metavar="NAME")
    restarts: int = option("how often a job that was preempted is started again", 20, metavar="N")
    backoff: float = option("pause before the first restart, doubled with each quick one", 10.0, "SECONDS")

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"--name: '{self.name}' must be lower-case letters, digits and -, begin with a letter, end with a "
                "letter or digit, and have at most 40 characters"
            )
        if not self.command:
            raise UserError("nothing to run: give a verb behind --, as in: launch local -- train --config=gpt:smoke")
        for field, least in (("hosts", 1), ("slices", 1), ("restarts", 0), ("backoff", 0)):
            check_range(f"--{field}", getattr(self, field), at_least=least)
        if self.spot and self.reserved:
            raise UserError("--spot and --reserved exclude each other: capacity is one or the other")
        for word in (*self.command, *self.environment.values(), *self.mounts, *self.mounts.values(), self.reserved):
            if any(ord(letter) < 32 or ord(letter) == 127 for letter in word):
                raise UserError(f"{word!r}: line breaks and other control characters cannot go on a command line")
        for variable in (*self.environment, *self.secrets):
            if not _VARIABLE.fullmatch(variable):
                raise UserError(f"'{variable}' is no name of a variable; write --env NAME=VALUE or --secret NAME")
        for variable in self.environment:
            if _SECRET.search(variable):
                raise UserError(
                    f"--env {variable}=…: that looks like a secret, and everybody may see an environment; export it "
                    f"here and give --secret {variable}"
                )
        for variable in self.secrets:
            if not os.environ.get(variable):
                raise UserError(f"--secret {variable}: it is not set here; export {variable} first")
            if "\n" in os.environ[variable]:
                raise UserError(f"--secret {variable}: its value has several lines; only one can be passed on")

    def secret_values(self) -> dict[str, str]:
        """Return the secrets with their values: for the standard input of a process, and for nothing that is kept."""
        return {variable: os.environ[variable] for variable in self.secrets}

    def record(self) -> dict[str, Any]:
        """Return what may be kept on disk of the job."""
        return dataclasses.asdict(self)


def of_record(kept: Mapping[str, Any]) -> Job:
    """Return the job that `record` wrote, without its secrets, which need not be set here any more."""
    return Job(**{**kept, "command": tuple(kept["command"]), "secrets": ()})


def name_of(workdir: str) -> str:
    """Return the name of a job made of its run directory, or of its verb where it has none."""
    slug = re.sub(r"[^a-z0-9]+", "-", workdir.rstrip("/").rpartition("/")[2].lower()).strip("-")
    return (slug if slug[:1].isalpha() else f"job-{slug}")[:40].strip("-")


def require_store(job: Job) -> None:
    """Raise UserError unless the run directory outlives the machines, which share no disk and may be taken away."""
    workdir = job.workdir
    if workdir.startswith("gs://") or any(f"{workdir}/".startswith(f"{folder}/") for folder in job.mounts):
        return
    raise UserError(
        f"--workdir: '{workdir}' is a folder of machines that share no disk and may be taken away; "
        "give gs://BUCKET/RUN, or a folder below one of --mount"
    )


def checked(flag: str, value: str) -> str:
    """Return a word that goes into a script's header, where quoting is not to be trusted; UserError for odd ones."""
    if not _WORD.fullmatch(value):
        raise UserError(f"{flag}: '{value}' may hold letters, digits and . : @ % + = , / * - _ only")
    return value


def check_words(options: Any, besides: Sequence[str] = ()) -> None:
    """Raise UserError for a text among a place's options, `besides` left out, that is not one plain word."""
    for field in dataclasses.fields(options):
        if isinstance(value := getattr(options, field.name), str) and field.name not in besides:
            checked(f"--{field.name.replace('_', '-')}", value)


def exports(job: Job) -> list[str]:
    """Return the job's environment as lines of a shell script."""
    return [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
