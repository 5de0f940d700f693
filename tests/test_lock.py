"""One run at a time trains in a run directory: locks that end with their process, leases that lapse."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import gcs
import pytest
from runs import make_run

from jaxformer.cli.main import main
from jaxformer.errors import Interrupted, UserError
from jaxformer.launch import LAUNCHED
from jaxformer.report import read_run
from jaxformer.runs import lock as locks
from jaxformer.runs.lock import LOCK, Holder, Lost, locked
from jaxformer.runs.progress import Display
from jaxformer.runs.staging import staged
from jaxformer.storage import is_remote, location, read_object, replace_object

QUIET = Display(quiet=True)


@pytest.fixture
def bucket(monkeypatch):
    with gcs.serve() as bucket:
        yield bucket


@pytest.fixture(params=["folder", "gs"])
def run(request, tmp_path, bucket):
    """A run directory of each kind."""
    return tmp_path / "runs" / "a" if request.param == "folder" else location("gs://bucket/runs/a")


@pytest.fixture
def hurried(monkeypatch):
    """Leases of a fraction of a second."""
    for name, seconds in (("LEASE_SECONDS", 0.8), ("RENEW_SECONDS", 0.05), ("WAIT_SECONDS", 1.2)):
        monkeypatch.setattr(locks, name, seconds)
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.02)


def written(run: Path) -> dict | None:
    path = run / LOCK
    return json.loads(path.read_text()) if path.exists() else None


def leave(run: Path, **values: object) -> Holder:
    """Leave the lock of another process, as a kill or a copy does."""
    there = {"host": "elsewhere", "pid": 7, "started": "2026-01-02T03:04:05+00:00", "machine": "another", "born": 1.0,
             "token": "theirs", "renewed": time.time(), "file": 0}  # fmt: skip
    run.mkdir(parents=True, exist_ok=True)
    if is_remote(run):
        holder = Holder(**(there | values))
        (run / LOCK).write_bytes(locks._written(holder))
        return holder
    (run / LOCK).touch()
    holder = Holder(**(there | {"file": (run / LOCK).stat().st_ino} | values))
    with (run / LOCK).open("r+b") as file:  # in place, as a renewal
        file.write(locks._written(holder))
        file.truncate()
    return holder


def test_a_second_start_is_refused_while_the_first_trains(run, monkeypatch):
    monkeypatch.setattr(locks, "_POLL_SECONDS", 60.0)  # waiting would show
    with locked(run, QUIET):
        said = written(run)
        assert (said["pid"], said["host"]) == (os.getpid(), os.uname().nodename)
        with pytest.raises(UserError) as refused, locked(run, QUIET):
            pytest.fail("locked twice")
        assert f"{run} is being trained by process {os.getpid()} on {said['host']} since 20" in str(refused.value)
        assert "\n" not in str(refused.value) and written(run)["token"] == said["token"]
    assert written(run) is None
    with locked(run, QUIET):
        pass


def test_one_folder_under_several_names_is_one_run(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "runs", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    with locked(tmp_path / "runs" / "a", QUIET):
        for other in (Path("runs/a"), tmp_path / "link" / "a", Path("runs/../link/a")):
            with pytest.raises(UserError, match="is being trained"), locked(other, QUIET):
                pytest.fail(f"locked again as {other}")
        with locked(tmp_path / "runs" / "b", QUIET):
            pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted("", 75), UserError("x"), SystemExit(1)])
def test_every_end_unlocks(run, error):
    with contextlib.suppress(BaseException), locked(run, QUIET):
        raise error
    assert written(run) is None


def test_of_many_that_start_at_once_one_wins(run, monkeypatch):
    """Each thread is a start of its own: locks belong to open files, leases to tokens."""
    monkeypatch.setattr(locks, "_POLL_SECONDS", 60.0)
    won, refused, begin, all_tried = [], [], threading.Barrier(8), threading.Event()

    def start() -> None:
        begin.wait()
        try:
            with locked(run, QUIET):
                won.append(written(run)["token"])
                all_tried.wait(20)
        except UserError as error:
            refused.append(str(error))
            if len(refused) == 7:
                all_tried.set()

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_workers_that_outlive_the_process_do_not_keep_the_lock(tmp_path):
    """A child that was forked shares the files of its parent, one that was started afresh does not have them."""
    place, own = locks._Folder(tmp_path / "run"), leave(tmp_path / "elsewhere")
    assert place.acquire(own) is None and not os.get_inheritable(place._descriptor)
    ready, tell = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(tell, b"x")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(ready, 1)
        with pytest.raises(UserError, match="process 7 on elsewhere"), locked(tmp_path / "run", QUIET):
            pytest.fail("locked twice: the child has unlocked the file, and not only closed it")
        os.close(place._descriptor)  # what a kill does
        locks._descriptors.discard(place._descriptor)
        leave(tmp_path / "run", machine=locks._machine())
        with locked(tmp_path / "run", QUIET):
            assert written(tmp_path / "run")["pid"] == os.getpid()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


def test_what_a_dead_process_has_left_is_taken_over_at_once(run, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", -1.0)
    over = subprocess.Popen(["true"])
    over.wait()
    # Its number may be another process's by now, and a file may be torn or empty.
    for values in ({"pid": over.pid}, {"pid": os.getpid(), "born": 1.0}, {"renewed": time.time() - 100}):
        leave(run, machine=locks._machine(), **values)
        with locked(run, QUIET):
            assert written(run)["pid"] == os.getpid() and written(run)["token"] != "theirs"
    for content in ("", "{", '{"host": 1}', "[]", "null"):
        (run / LOCK).write_text(content)
        with locked(run, QUIET):
            pass


def test_a_copy_of_a_run_that_trains_can_be_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", -1.0)
    with locked(tmp_path / "run", QUIET):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with locked(tmp_path / "copy", QUIET):
            assert written(tmp_path / "copy")["token"] != written(tmp_path / "run")["token"]
    # Nor does it matter where it was copied from.
    leave(tmp_path / "other", file=1)
    with locked(tmp_path / "other", QUIET):
        pass


def test_a_holder_that_cannot_be_seen_is_waited_for_until_it_lapses(run, hurried):
    leave(run)
    began = time.monotonic()
    with locked(run, QUIET):
        assert 0.4 < time.monotonic() - began < 5
    leave(run, renewed=time.time() - 1)
    began = time.monotonic()
    with locked(run, QUIET):
        assert time.monotonic() - began < 0.4


@contextlib.contextmanager
def renewed_elsewhere(run: Path):
    """Let a process of another machine hold the run."""
    leave(run)
    over = threading.Event()

    def renew() -> None:
        while not over.wait(0.1):
            leave(run)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_holder_elsewhere_that_renews_is_named(run, hurried):
    with renewed_elsewhere(run), pytest.raises(UserError) as refused, locked(run, QUIET):
        pytest.fail("locked twice")
    assert "process 7 on elsewhere since 2026-01-02" in str(refused.value)


def test_without_flock_the_file_is_a_lease(tmp_path, hurried, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(locks.errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    with locked(tmp_path, QUIET), pytest.raises(UserError, match="is being trained"), locked(tmp_path, QUIET):
        pytest.fail("locked twice")
    with locked(tmp_path, QUIET):
        pass


def test_a_launched_start_waits_for_its_own_ghost(run, hurried, monkeypatch):
    monkeypatch.setenv(LAUNCHED, "1")
    held, over = threading.Event(), threading.Event()

    def ghost() -> None:
        with locked(run, QUIET):
            held.set()
            over.wait(20)

    thread = threading.Thread(target=ghost)
    thread.start()
    held.wait(20)
    try:
        with pytest.raises(Interrupted) as stopped, locked(run, QUIET):
            pytest.fail("locked twice")
        assert stopped.value.code == 75 and f"process {os.getpid()} on" in str(stopped.value)
        threading.Timer(0.3, over.set).start()
        with locked(run, QUIET):
            assert over.is_set()
    finally:
        over.set()
        thread.join()


def test_a_lease_is_renewed_and_lapses_for_nobody_who_renews(bucket, hurried):
    run = location("gs://bucket/runs/a")
    with locked(run, QUIET) as lock:
        first = written(run)
        time.sleep(1.0)  # longer than a lease
        assert written(run)["renewed"] > first["renewed"] and written(run)["token"] == first["token"]
        lock.check()
        bucket.refuse = lambda method, name: 403 if method == "POST" else 0
        time.sleep(0.2)
        bucket.refuse = lambda method, name: 0  # nobody has taken it over meanwhile
        lock.renew()
        (run / LOCK).unlink()  # by somebody who tidies up
        lock.renew()
        assert written(run)["token"] == first["token"]


def test_a_run_that_has_lost_its_lock_writes_nothing_more(run, hurried, monkeypatch):
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(locked(run, QUIET))
        leave(run)
        with pytest.raises(Lost) as lost:
            for _ in range(200):
                lock.check()
                time.sleep(0.02)
        assert "was taken over by process 7 on elsewhere" in str(lost.value)
        with pytest.raises(Lost):
            lock.confirm()
    assert written(run)["token"] == "theirs"  # nor is the other's lock deleted


def test_nothing_is_copied_to_a_run_that_was_taken_over(bucket, monkeypatch, caplog):
    run = location("gs://bucket/runs/a")
    monkeypatch.setattr(locks, "LEASE_SECONDS", 0.0)  # as after a sleep that was too long to renew
    with pytest.raises(UserError, match="taken over"), locked(run, QUIET) as lock, staged(run, lock.confirm) as own:
        (own.folder / "metrics.jsonl").write_text("ours")
        own.sync()
        assert bucket.objects["runs/a/metrics.jsonl"] == b"ours"
        leave(run)
        bucket.objects["runs/a/metrics.jsonl"] = b"theirs"
        (own.folder / "metrics.jsonl").write_text("ours, and more")
    assert bucket.objects["runs/a/metrics.jsonl"] == b"theirs"


def test_objects_are_replaced_where_nobody_else_has_written(bucket):
    path = location("gs://bucket/runs/a/x")
    assert read_object(path) == (b"", 0)
    first = replace_object(path, b"1", 0)
    assert replace_object(path, b"2", 0) is None and read_object(path) == (b"1", first)
    second = replace_object(path, b"2", first)
    assert replace_object(path, b"3", first) is None and read_object(path) == (b"2", second)


def test_a_missing_bucket_is_named(bucket):
    with pytest.raises(UserError, match="no bucket gs://nowhere"), locked(location("gs://nowhere/a"), QUIET):
        pytest.fail("locked")


def test_train_refuses_a_run_that_trains_and_touches_nothing_of_it(tmp_path, capsys, monkeypatch):
    run = make_run("gpt", tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 9, "train/loss": 1.0}\n')
    (run / "checkpoints" / "8").mkdir()  # one that a resume would set aside
    words = ["train", f"--config={tmp_path / 'mine.py'}", "--allow-config-change", "--config.training.batch_size=8"]
    text = "from jaxformer.experiments import gpt\ndef get_config(arg=''):\n    return gpt.get_config('smoke')\n"
    (tmp_path / "mine.py").write_text(text)
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}
    for folder in (run, tmp_path / "fresh"):
        with locked(folder, QUIET):
            assert main([*words, f"--workdir={folder}"]) == 2
            said = capsys.readouterr().err.strip().splitlines()
            assert len(said) == 1 and f"{folder} is being trained by process {os.getpid()} on" in said[0]
            if folder == run:
                assert read_run(run).metrics == ({"step": 9, "train/loss": 1.0},)  # others may read
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*")) if path != run} == {
        path: time for path, time in before.items() if path != run
    }
    assert list((tmp_path / "fresh").iterdir()) == []
    monkeypatch.setenv(LAUNCHED, "1")
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.05)
    with locked(run, QUIET):
        assert main([*words, f"--workdir={run}"]) == 75


@pytest.mark.parametrize(("own", "code"), [(UserError("held"), 2), (Interrupted("held", 75), 75)])
def test_where_the_first_process_cannot_lock_all_end_alike(tmp_path, monkeypatch, own, code):
    @contextlib.contextmanager
    def refused(run, display):
        raise own
        yield

    monkeypatch.setattr(locks, "locked", refused)
    with pytest.raises(type(own), match="held"), locks.held_by_first(tmp_path, QUIET):
        pytest.fail("held")
    monkeypatch.setattr(locks, "is_first", lambda: False)
    monkeypatch.setattr(locks, "agreed", lambda value: code)  # process 0's
    monkeypatch.setattr(locks, "let_speak", lambda: None)
    with pytest.raises(type(own), match="process 0 could not lock"), locks.held_by_first(tmp_path, QUIET):
        pytest.fail("held")
    monkeypatch.setattr(locks, "agreed", lambda value: 0)
    with locks.held_by_first(tmp_path, QUIET) as lock:  # the peers of a run do not lock it again
        lock.check()
        lock.confirm()
    assert not (tmp_path / LOCK).exists()
