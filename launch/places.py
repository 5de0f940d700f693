"""All places, and what the command line does with them."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import typing
from collections.abc import Mapping
from typing import Any

from jaxformer.errors import UserError
from jaxformer.launch import gke, local, skypilot, slurm, tpu_vm
from jaxformer.launch.commands import ToolError
from jaxformer.launch.job import Job, name_of
from jaxformer.launch.output import hiding, say
from jaxformer.launch.records import FAILED, OVER, Status, find, open_record, records

PLACES: dict[str, Any] = {"local": local, "slurm": slurm, "tpu_vm": tpu_vm, "gke": gke, "skypilot": skypilot}
# Those whose launcher looks after the job itself; elsewhere the platform does, and the launcher only watches.
WATCHED = ("local", "tpu_vm")
_EVERYWHERE = ("name", "environment", "secrets", "restarts", "backoff")
_FLAGS = {"environment": "env", "secrets": "secret", "mounts": "mount"}


def add_flags(parser: argparse.ArgumentParser, place: str) -> None:
    """Give a parser the flags of the job's fields that a place takes, and of its own options."""
    module = PLACES[place]
    for owner, names in ((Job, (*_EVERYWHERE, *module.TAKES)), (module.Options, None)):
        kinds = typing.get_type_hints(owner)
        for field in dataclasses.fields(owner):
            if names is not None and field.name not in names:
                continue
            flag = f"--{_FLAGS.get(field.name, field.name).replace('_', '-')}"
            text, metavar, kind = field.metadata["help"], field.metadata["metavar"] or None, kinds[field.name]
            shared: dict[str, Any] = {"dest": field.name, "help": text}
            if kind is bool:
                parser.add_argument(flag, action="store_true", **shared)
            elif field.name == "reserved":
                parser.add_argument(flag, nargs="?", const="any", default="", metavar=metavar, **shared)
            elif kind in (int, float, str):
                shared["help"] += f" (default: {field.default})" if field.default not in ("", 0, 0.0) else ""
                parser.add_argument(flag, type=kind, default=field.default, metavar=metavar, **shared)
            else:
                parser.add_argument(flag, action="append", default=[], metavar=metavar, **shared)


def described(place: str, command: list[str], given: Mapping[str, Any]) -> tuple[Job, Any]:
    """Return the job and the place's options that the flags' values stand for. Raises UserError for bad ones."""
    module = PLACES[place]

    def pairs(name: str) -> dict[str, str]:
        words = given.get(name, ())
        for word in words:
            if "=" not in word:
                raise UserError(f"--{_FLAGS[name]}: '{word}' is not of the form A=B")
        return dict(word.split("=", 1) for word in words)

    fields = {name: given[name] for name in (*_EVERYWHERE, *module.TAKES) if name in given}
    fields |= {"environment": pairs("environment"), "secrets": tuple(given["secrets"])}
    fields |= {"mounts": pairs("mounts")} if "mounts" in fields else {}
    fields["name"] = given["name"] or name_of(command)
    options = {
        field.name: tuple(value) if isinstance(value := given[field.name], list) else value
        for field in dataclasses.fields(module.Options)
    }
    job, own = Job(command=tuple(command), **fields), module.Options(**options)
    module.check(job, own)
    return job, own


def launch(place: str, job: Job, options: Any, detach: bool = False) -> int:
    """Run a job at a place and follow it, unless `detach`; return its exit code, or 0 for one that goes on.

    Raises UserError for what the user can mend; the job is then known as failed, for that reason.
    """
    module = PLACES[place]
    asked = {"place": place, "job": job.record(), "options": dataclasses.asdict(options)}
    record = open_record(job.name, asked)
    with _interruptible() if place != "local" else contextlib.nullcontext():
        try:
            with record.watched() if place in WATCHED else contextlib.nullcontext():
                code = module.launch(job, options, record)
            if place in WATCHED:
                return code
            if not detach:
                say(f"following it; Ctrl-C only ends that, `jaxformer launch stop {job.name}` stops the job")
                module.follow(record)
                return code_of(module.status(record, 0))
        except UserError as error:
            if record.state()["state"] not in OVER:
                record.note(state=FAILED, message=str(error).splitlines()[0], code=2)
            raise
        except KeyboardInterrupt:
            say(f"{job.name} goes on without this launcher; `jaxformer launch stop {job.name}` stops it" + (
                ", the same command looks after it again" if place in WATCHED else ""
            ))  # fmt: skip
            return 130
    say(f"`jaxformer launch status {job.name}` shows how it stands, `… logs {job.name}` follows it")
    return 0


@contextlib.contextmanager
def _interruptible() -> Any:
    """Let SIGTERM end the launcher as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def code_of(status: Status) -> int:
    """Return a job's exit code, and print why it failed."""
    if status.state in OVER and status.message:
        say(f"{status.state}: {status.message}")
    return 1 if status.code is None else status.code


def show(name: str, lines: int, as_json: bool) -> None:
    """Print how one job, or each, stands."""
    chosen = [find(name)] if name else records()
    shown = []
    for record in chosen:
        place = record.asked()["place"]
        try:
            status = PLACES[place].status(record, lines if name else 0)
        except UserError as error:  # of one among many, whose platform does not answer
            status = Status("unknown", record.state()["attempts"], str(error))
        hide = hiding(record)
        said = {worker: [hide(line) for line in lines] for worker, lines in status.workers.items()}
        shown.append({"name": record.name, "place": place, **dataclasses.asdict(status), "workers": said})
    if as_json:
        print(json.dumps(shown[0] if name else shown))
        return
    if not shown:
        print("no job was launched from here", file=sys.stderr)
        return
    width = max(len(entry["name"]) for entry in shown)
    for entry in shown:
        attempts = f"attempt {entry['attempts']}" if entry["attempts"] else ""
        row = f"{entry['name']:{width}}  {entry['place']:8}  {entry['state']:20}  {attempts:11}  {entry['message']}"
        print(row.rstrip())
        for worker, said in entry["workers"].items():
            for line in said:
                print(f"  [{worker}] {line}")


def act(what: str, name: str) -> None:
    """Stop or delete a job, or print what it says until it is over."""
    record = find(name)
    module = PLACES[record.asked()["place"]]
    try:
        with _interruptible() if what == "logs" else contextlib.nullcontext():
            {"stop": module.stop, "delete": module.delete, "logs": module.follow}[what](record)
    except ToolError as error:
        raise error.for_people() from error
    if what == "delete":
        if record.is_watched() and (pid := record.state().get("launcher")) != os.getpid():
            os.kill(pid, signal.SIGTERM)
        record.forget()
    if what != "logs":
        say(f"{name} is {'being stopped' if what == 'stop' else 'deleted'}")
