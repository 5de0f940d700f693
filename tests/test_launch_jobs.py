"""Jobs as they go: who runs again, what is known of them, and the worker that outlives its connection."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launching import SECRET, job

from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.launch import policy, records, worker


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))  # where jobs are remembered: there are none yet


# Who runs again.


@pytest.fixture
def record() -> Iterator[records.Record]:
    made = records.open_record("record", {"place": "local", "job": job(secrets=("HF_TOKEN",)).record(), "options": {}})
    yield made
    made.forget()


def supervised(codes: list[int], record: records.Record, **fields: object) -> tuple[int, list[int], list[str]]:
    made: list[int] = []
    said: list[str] = []

    def attempt(number: int) -> policy.Outcome:
        made.append(number)
        return policy.Outcome(codes[len(made) - 1], f"ended with {codes[len(made) - 1]}")

    return policy.supervise(job(backoff=0, **fields), record, attempt, said.append), made, said


@pytest.mark.parametrize(
    ("codes", "restarts", "code", "attempts", "state"),
    [
        ([0], 5, 0, 1, "done"),
        ([75, 75, 0], 5, 0, 3, "done"),
        ([75, 75, 75], 2, 75, 3, "failed"),
        ([75], 0, 75, 1, "failed"),
        ([75, 2], 5, 2, 2, "failed"),
        ([1], 5, 1, 1, "failed"),
    ],
)
def test_75_runs_again_so_many_times_and_all_else_stops(
    codes: list[int], restarts: int, code: int, attempts: int, state: str, record: records.Record
) -> None:
    assert supervised(codes, record, restarts=restarts)[:2] == (code, list(range(1, attempts + 1)))
    kept = record.state()
    assert (kept["state"], kept["attempts"], kept["code"]) == (state, attempts, code)
    # A later launcher counts on.
    assert supervised([0], record)[1] == [attempts + 1]


def test_pauses_double_up_to_a_limit_and_a_stop_ends_them(record: records.Record) -> None:
    assert [policy.pause_before(number, 10) for number in (0, 1, 2, 9)] == [10, 20, 40, 600]
    codes: list[int] = []
    waiting = threading.Thread(
        target=lambda: codes.append(
            policy.supervise(job(backoff=500), record, lambda _: policy.Outcome(75, "x"), print)
        )
    )
    waiting.start()
    while record.state()["state"] != records.PAUSED:
        time.sleep(0.01)
    record.ask_to_stop()
    waiting.join(10)
    assert codes == [75] and record.state()["state"] == "stopped" and record.state()["attempts"] == 1


@pytest.mark.parametrize("code", [75, 130, 1])
def test_a_job_that_is_stopped_does_not_run_again(code: int, record: records.Record) -> None:
    def attempt(number: int) -> policy.Outcome:
        record.ask_to_stop()
        return policy.Outcome(code)

    assert policy.supervise(job(backoff=0), record, attempt, print) == code
    assert record.state()["state"] == "stopped"


@pytest.mark.parametrize(
    ("codes", "code", "message"),
    [
        ([("0", 0), ("1", 0)], 0, ""),
        ([("0", 75), ("1", 75)], 75, "preempted"),
        ([("1", None), ("0", 75)], 75, "preempted"),
        ([("1", 0), ("0", 134)], 75, "preempted"),
        ([("1", 75), ("0", 2)], 2, "worker 0 ended with exit code 2: line of 0"),
        ([("1", 1), ("0", 2)], 2, "worker 0 ended with exit code 2: line of 0"),
        ([("1", 139), ("0", 1)], 1, "worker 1 was ended by SIGSEGV: line of 1"),
        ([("0", 143), ("1", 75)], 75, "preempted"),
        ([("0", 137), ("1", 143), ("2", 3)], 1, "worker 2 ended with exit code 3: line of 2"),
        ([("0", 137), ("1", 75)], 1, "worker 0 was ended by SIGKILL: line of 0"),
        ([("0", 134), ("1", 1), ("2", None)], 1, "worker 1 ended with exit code 1: line of 1"),
    ],
)
def test_the_worker_that_failed_speaks_for_all(codes: list[tuple[str, int | None]], code: int, message: str) -> None:
    assert policy.outcome_of(codes, lambda name: f"line of {name}") == policy.Outcome(code, message)


# What is known of jobs.


def test_a_name_belongs_to_one_job_until_that_is_over(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"place": "slurm", "job": job().record(), "options": {"zone": "a"}}
    record = records.open_record("mine", asked)
    record.note(state=records.RUNNING, attempts=1)
    assert records.open_record("mine", asked).state()["attempts"] == 1  # the same job goes on
    other = {**asked, "job": job(command=("evaluate",)).record()}
    with pytest.raises(UserError, match="another one .*launch delete mine"):
        records.open_record("mine", other)
    record.note(state=records.DONE, holds="a TPU")
    with pytest.raises(UserError, match="another one"):
        records.open_record("mine", other)
    records.open_record("mine", asked, fixed=["zone"])
    with pytest.raises(UserError, match="has a TPU with another --zone \\('a'\\)"):
        records.open_record("mine", {**asked, "options": {"zone": "b"}}, fixed=["zone"])
    record.note(holds="")
    assert records.open_record("mine", other).state()["attempts"] == 0
    with record.watched():
        assert record.launcher() == os.getpid()
        with pytest.raises(UserError, match="runs already"), record.watched():
            raise AssertionError
    assert record.launcher() is None
    with pytest.raises(UserError, match="did you mean 'mine'"):
        records.find("min")
    (record.folder / "job.json").write_text("{")
    assert main(["launch", "status", "mine"]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert main(["launch", "status"]) == 0  # the others are still shown
    assert "unknown" in capsys.readouterr().out
    record.forget()
    assert records.records() == []


def test_the_tail_of_a_log_is_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert records.tail(path, 3) == []
    path.write_text("x" * 30_000 + "\nprogress 1\rprogress 2\nlast\n")
    assert records.tail(path, 2) == ["progress 2", "last"] and records.tail(path, 0) == []


# The worker that outlives its connection.


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    (tmp_path / "code").mkdir()
    (tmp_path / "worker.py").write_bytes(Path(worker.__file__).read_bytes())

    def run(*words: str, variables: str = "") -> "subprocess.Popen[str]":
        started = subprocess.Popen(
            [sys.executable, tmp_path / "worker.py", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert started.stdin is not None
        started.stdin.write(variables)
        started.stdin.close()
        return started

    return run


def said(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    return process.stdout.read().splitlines()


def python(script: str) -> list[str]:
    return ["--", sys.executable, "-uc", script]


def test_a_worker_starts_once_and_is_followed_from_any_line(place: Callable[..., "subprocess.Popen[str]"]) -> None:
    script = python(
        "import os, sys\nprint(os.environ['A'], os.getcwd()[-4:])\nprint('two')\nprint('three', end='')\nsys.exit(75)"
    )
    first = place("follow", "1", "1", *script, variables="A=b=c\n")
    assert said(first) == ["1\tb=c code", "2\ttwo", "3\tthree", "exit\t75"] and first.wait() == 75
    again = place("follow", "1", "3", *python("print('not run')"))
    assert said(again) == ["3\tthree", "exit\t75"] and again.wait() == 75
    assert said(place("follow", "2", "1", *python("print('new')"))) == ["1\tnew", "exit\t0"]


def test_a_command_outlives_its_connection_and_ends_when_it_is_told(
    place: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    loop = python("import time\nfor i in range(10**6):\n    print(i); time.sleep(0.05)")
    first = place("follow", "1", "1", *loop)
    assert first.stdout is not None
    for number in range(3):
        assert first.stdout.readline() == f"{number + 1}\t{number}\n"
    first.kill()
    first.wait()
    second = place("follow", "1", "4", *loop)
    assert second.stdout is not None and second.stdout.readline() == "4\t3\n"
    assert place("stop").wait() == 0
    assert second.stdout.read().splitlines()[-1] == "exit\t143"
    # An earlier attempt is ended before a new one begins.
    third = place("follow", "2", "1", *loop)
    assert third.stdout is not None and third.stdout.readline() == "1\t0\n"
    fourth = place("follow", "3", "1", *python("print('alone')"))
    assert said(fourth) == ["1\talone", "exit\t0"]
    assert third.stdout.read().splitlines()[-1] == "exit\t143"


def test_a_machine_that_started_anew_is_a_preemption(
    place: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    first = place("follow", "1", "1", *python("import os; print(os.getppid(), flush=True)\nwhile True: pass"))
    assert first.stdout is not None
    keeper = int(first.stdout.readline().partition("\t")[2])
    os.kill(int((tmp_path / "attempt-1" / "pid").read_text()), 0)
    os.kill(keeper, 9)  # and with it what would have written down an exit code
    os.kill(int((tmp_path / "attempt-1" / "pid").read_text()), 9)
    assert first.stdout.read() == "exit\t75\n" and first.wait() == 75


def test_a_command_that_is_not_there_is_said_so(place: Callable[..., "subprocess.Popen[str]"]) -> None:
    lines = said(place("follow", "1", "1", "--", "no-such-command"))
    assert lines[0].startswith("1\tcannot start no-such-command") and lines[-1] == "exit\t2"
