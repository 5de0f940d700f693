"""Jobs on this machine, and what signals do to them."""

import os
import signal
from pathlib import Path

import clouds
import pytest
from launching import Launch, output, status, until
from sampling import sampled

from jaxformer.launch.records import Record, jobs_folder


@pytest.mark.parametrize(
    ("number", "code", "processes"),
    # One process may be told what several are.
    sampled(
        [(signal.SIGTERM, 75, 1), (signal.SIGTERM, 75, 2), (signal.SIGINT, 130, 1), (signal.SIGINT, 130, 2)],
        path=lambda number, code, processes: "SIGINT to one" if (code, processes) == (130, 1) else "SIGTERM",
        ci=[(signal.SIGINT, 130, 2)],
    ),
)
def test_a_signal_goes_on_to_all_local_processes(
    number: signal.Signals, code: int, processes: int, cloud: clouds.Cloud, launch: Launch, project: Path
) -> None:
    (project / "sitecustomize.py").write_text(
        "import os, signal, sys, time\n"
        "def save(number, frame):\n"
        "    print('saved on', signal.Signals(number).name, flush=True)\n"
        "    os._exit(130 if number == signal.SIGINT else 75)\n"
        "if 'launch' not in sys.orig_argv and 'train' in sys.orig_argv:\n"
        "    signal.signal(signal.SIGTERM, save), signal.signal(signal.SIGINT, save)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(100)\n"
    )
    cloud.environment["PYTHONPATH"] = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    process = launch("local", "--name=job", f"--processes={processes}", "--", "train", "--config=gpt:smoke")
    record = Record(jobs_folder() / "job")
    until(lambda: "".join(path.read_text() for path in record.logs().values()).count("ready") == processes, process)
    process.send_signal(number)
    said = output(process, code)
    # Of several processes JAX listens for SIGTERM alone.
    name = "SIGINT" if processes == 1 and number == signal.SIGINT else "SIGTERM"
    assert all(f"[{index}] saved on {name}" in said for index in range(processes)) and "attempt 2" not in said
    assert status(launch, "job")["state"] == "stopped"


@pytest.mark.parametrize(
    "how",
    sampled(["stop", "delete", "SIGINT", "SIGTERM"], path=lambda how: how.startswith("SIG"), ci=["delete"]),
)
def test_a_local_job_can_be_stopped_while_it_pauses(
    how: str, cloud: clouds.Cloud, launch: Launch, project: Path
) -> None:
    (project / "sitecustomize.py").write_text(
        "import os, sys\nif 'launch' not in sys.orig_argv and 'train' in sys.orig_argv:\n    os._exit(75)\n"
    )
    cloud.environment["PYTHONPATH"] = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    process = launch("local", "--name=job", "--backoff=300", "--", "train", "--config=gpt:smoke")
    record = Record(jobs_folder() / "job")
    until(lambda: record.folder.exists() and record.state()["state"] == "waiting to run again", process)
    if how in ("stop", "delete"):
        output(launch(how, "job"), 0)
    else:
        process.send_signal(signal.Signals[how])
    assert "preempted; attempt 2 in 300 s" in output(process, 75)
    if how != "delete":
        assert status(launch, "job")["state"] == "stopped"
    else:
        assert not record.folder.exists()
