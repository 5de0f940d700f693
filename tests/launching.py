"""What tests of launching share: jobs on make-believe clouds, and how to wait for what they do."""

import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import clouds

from jaxformer.launch.job import Job
from jaxformer.launch.records import Record, jobs_folder

SECRET = "hf_PkxQ-not-for-anybody"
# Two workers, as gcloud counts.
TPU = ["tpu_vm", "--zone=us-central2-b", "--accelerator=v4-16", "--poll=0.1", "--backoff=0.1"]
GKE = ["gke", "--name=job", "--image=image:1", "--poll=0.1", "--backoff=0"]
SKY = ["skypilot", "--name=job", "--image=image:1", "--accelerator=h100:8", "--hosts=2", "--backoff=0"]
COMMAND = ["--", "train", "--config=gpt:smoke", "--workdir=gs://b/job"]
Launch = Callable[..., "subprocess.Popen[str]"]


def python_is(script: str) -> str:
    """Shell for --setup that makes a worker's Python this script of bash, in place of an installation."""
    write = shlex.join(["printf", "%s", f"#!/bin/bash\n{script}\n"])
    return f"mkdir -p .venv/bin && {write} > .venv/bin/python && chmod +x .venv/bin/python"


def output(process: "subprocess.Popen[str]", code: int) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said
    return said


def status(launch: Launch, name: str) -> dict[str, object]:
    return json.loads(output(launch("status", name, "--json"), 0))


def until(holds: Callable[[], object], process: "subprocess.Popen[str] | None" = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def speaking() -> bool:
    """Whether both workers of the job have said something."""
    said = [path.read_text().splitlines() for path in Record(jobs_folder() / "job").logs().values()]
    return len(said) == 2 and all(len(lines) > 1 for lines in said)  # the first says which attempt it is


def interrupted(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGINT) -> str:
    process.send_signal(number)
    return output(process, 130)


def tpu(script: str, *words: str, secret: str = "") -> list[str]:
    return [
        *TPU,
        f"--setup={python_is(script)}",
        *words,
        "--",
        "train",
        "--config=gpt:smoke",
        f"--workdir=gs://b/{secret or 'job'}",
    ]


def stub(cloud: clouds.Cloud, script: str) -> None:
    """Make `jaxformer`, which an image has, a script of bash."""
    folder = cloud.folder / "image"
    folder.mkdir()
    (folder / "jaxformer").write_text(f"#!/bin/bash\n{script}\n")
    (folder / "jaxformer").chmod(0o755)
    cloud.worker_environment["PATH"] = os.pathsep.join([str(folder), os.environ["PATH"]])


def read(path: Path) -> bytes:
    """The bytes of a file of /proc, none where its process has gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def job(**fields: object) -> Job:
    """A job with these fields and others that do."""
    return Job(**{"name": "job", "command": ("train", "--workdir=gs://b/r"), "workdir": "gs://b/r", **fields})  # type: ignore[arg-type]
