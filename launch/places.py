"""All places, and what the command line does with them."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from jaxformer.errors import UserError
from jaxformer.launch import LAUNCHED, gke, local, skypilot, slurm, tpu_vm
from jaxformer.launch.commands import ToolError
from jaxformer.launch.job import Job, name_of
from jaxformer.launch.output import say
from jaxformer.launch.records import FAILED, OVER, RUNNING, Busy, Record, Status, find, open_record, records

PLACES: dict[str, Any] = {"local": local, "slurm": slurm, "tpu_vm": tpu_vm, "gke": gke, "skypilot": skypilot}
# Those whose launcher looks after the job itself; elsewhere the platform does, and the launcher only watches.
WATCHED = ("local", "tpu_vm")
LONGEST_SAVE = 120.0  # seconds that a launcher has to let its job save and end
_EVERYWHERE = ("name", "environment", "secrets", "restarts", "backoff")
_FLAGS = {"environment": "env", "secrets": "secret", "mounts": "mount"}


def introduced(place: str) -> tuple[str, str]:
    """Return what a place is, and an example without the word jaxformer, both from the module's first lines."""
    text, _, example, *_ = [*(PLACES[place].__doc__ or place).splitlines(), "", "", ""]
    return text.rstrip("."), example.removeprefix("jaxformer ")


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


def described(place: str, command: list[str], workdir: str, given: Mapping[str, Any]) -> tuple[Job, Any]:
    """Return the job and the place's options that the flags' values stand for; the command works in `workdir`, if in
    any. Raises UserError for bad ones."""
    module = PLACES[place]

    def pairs(name: str) -> dict[str, str]:
        words = given.get(name, ())
        for word in words:
            if "=" not in word:
                raise UserError(f"--{_FLAGS[name]}: '{word}' is not of the form A=B")
        return dict(word.split("=", 1) for word in words)

    fields = {name: given[name] for name in (*_EVERYWHERE, *module.TAKES) if name in given}
    fields |= {"environment": {LAUNCHED: "1"} | pairs("environment"), "secrets": tuple(given["secrets"])}
    fields |= {"mounts": pairs("mounts")} if "mounts" in fields else {}
    fields["name"] = given["name"] or name_of(workdir or command[0])
    options = {
        field.name: tuple(value) if isinstance(value := given[field.name], list) else value
        for field in dataclasses.fields(module.Options)
    }
    job, own = Job(command=tuple(command), workdir=workdir, **fields), module.Options(**options)
    module.check(job, own)
    return job, own


def launch(place: str, job: Job, options: Any, detach: bool = False) -> int:
    """Run a job at a place and follow it, unless `detach`; return its exit code, or 0 for one that goes on.

    Raises UserError for what the user can mend. A job of which nothing runs yet is then known as failed, for that
    reason; from one that runs, only sight is lost.
    """
    module = PLACES[place]
    asked = {"place": place, "job": job.record(), "options": dataclasses.asdict(options)}
    record = open_record(job.name, asked, getattr(module, "FIXED", ()))
    if place == "local":  # it has its own way with signals
        with record.watched():
            return module.launch(job, options, record)
    try:
        with _interruptible():
            if place in WATCHED:
                with record.watched(), _failures(record):
                    return module.launch(job, options, record)
            with _failures(record):
                module.launch(job, options, record)
            if detach:
                say(f"`jaxformer launch status {job.name}` shows how it stands, `… logs {job.name}` follows it")
                return 0
            say(f"following it; Ctrl-C only ends that, `jaxformer launch stop {job.name}` stops the job")
            module.follow(record)
            status = module.status(record, 0)
            if status.code and status.message:
                say(f"{status.state}: {record.hider()(status.message)}")
            return 1 if status.code is None else status.code
    except ToolError as error:
        raise error.for_people() from error
    except KeyboardInterrupt:
        again = ", the same command looks after it again" if place in WATCHED else ""
        say(f"left {job.name} as it is; `jaxformer launch stop {job.name}` stops it{again}")
        return 130


@contextlib.contextmanager
def _failures(record: Record) -> Iterator[None]:
    try:
        yield
    except Busy:
        raise
    except (ToolError, UserError) as error:
        if record.state()["state"] == RUNNING:
            say(f"lost sight of {record.name}, which goes on; the same command looks after it again")
        elif record.state()["state"] not in OVER:
            line = str(error.for_people() if isinstance(error, ToolError) else error).splitlines()[0]
            record.note(state=FAILED, message=line, code=2)
        raise


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the launcher as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def show(name: str, lines: int, as_json: bool) -> None:
    """Print how one job, or each, stands."""
    shown = [
        _shown(record, lines if name else 0, strict=bool(name)) for record in ([find(name)] if name else records())
    ]
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


def _shown(record: Record, lines: int, strict: bool) -> dict[str, Any]:
    """Return how a job stands, without secrets; unless `strict` one of which nothing can be known is no error."""
    place = ""
    try:
        place, hide = record.asked()["place"], record.hider()
        try:
            status = PLACES[place].status(record, lines)
        except ToolError as error:
            raise error.for_people() from error
    except UserError as error:
        if strict:
            raise
        return {"name": record.name, "place": place, **dataclasses.asdict(Status("unknown", 0, str(error)))}
    workers = {worker: [hide(line) for line in said] for worker, said in status.workers.items()}
    values = {**dataclasses.asdict(status), "message": hide(status.message), "workers": workers}
    return {"name": record.name, "place": place, **values}


def act(what: str, name: str) -> None:
    """Stop or delete a job, or print what it says until it is over."""
    record = find(name)
    module = PLACES[record.asked()["place"]]
    try:
        if what == "logs":
            with _interruptible():
                module.follow(record)
            return
        if what == "stop":
            state = module.status(record, 0).state
            if state in OVER:
                say(f"{name} is {state} already")
                return
            module.stop(record)
            say(f"{name} is being stopped")
            return
        _delete(record, module)
        say(f"{name} is deleted")
    except ToolError as error:
        raise error.for_people() from error
    except KeyboardInterrupt:
        return


def _delete(record: Record, module: Any) -> None:
    """End a job's launcher first, which might make anew what is deleted, then what the job holds, then its record."""
    if launcher := record.launcher():
        record.ask_to_stop()
        os.kill(launcher, signal.SIGTERM)
        until = time.monotonic() + LONGEST_SAVE
        while record.launcher() == launcher:
            if time.monotonic() > until:
                raise UserError(
                    f"the launcher of {record.name} (process {launcher}) does not end; try again, or kill it"
                )
            time.sleep(0.1)
    module.delete(record)
    record.forget()
