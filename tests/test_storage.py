"""Run directories on gs://: paths, checkpoints, the log, whole runs, and what goes wrong there, with a fake store."""

import hashlib
import importlib.util
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import aiohttp
import gcs
import google.auth.exceptions
import numpy as np
import pytest
from compiling import xla_flags
from sampling import sampled
from states import assert_equal, make_state, restore_named, save_all, shapes
from training import assert_same_run, fine_tuning, logged, make_corpus, params, pretraining

import jaxformer
from jaxformer import config as configs
from jaxformer import storage
from jaxformer.checkpoint import (
    CheckpointConfig,
    Checkpoints,
    finished_steps,
    manager,
    restore_params,
    save_params,
)
from jaxformer.checkpoint.naming import check_may_train, checkpoint_of
from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.interop.folders import check_new
from jaxformer.launch import local
from jaxformer.report import find_runs, read_run
from jaxformer.runs import staging
from jaxformer.runs.loading import stored_run
from jaxformer.runs.loop import train
from jaxformer.runs.staging import staged
from jaxformer.storage import (
    content_digest,
    delete_tree,
    files_below,
    folders_in,
    is_remote,
    local_path,
    location,
    read_metrics,
    store_errors,
    write_json,
)


@pytest.fixture(scope="module")
def served() -> Iterator[gcs.Bucket]:
    with gcs.serve() as bucket:
        yield bucket


@pytest.fixture
def bucket(served: gcs.Bucket) -> gcs.Bucket:
    """The bucket gs://bucket, empty."""
    served.objects.clear()
    served.generations.clear()
    served.requests.clear()
    served.refuse = lambda method, name: 0
    return served


@pytest.fixture
def run() -> Path:
    return location("gs://bucket/runs/a")


@pytest.fixture(autouse=True)
def _temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What killed runs leave lies with the test's own files."""
    folder = tmp_path.with_name(f"{tmp_path.name}-temporary")
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


def test_a_line_of_the_log_that_a_crash_tore_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[2]\n{"step": 3, "train/lo\n{"step": 4}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 4}]
    assert read_metrics(tmp_path / "elsewhere") == []


# Paths.


def test_a_path_keeps_what_it_is(tmp_path: Path) -> None:
    assert location("runs/a") == Path("runs/a") and location(tmp_path) == tmp_path and location("C:/a") == Path("C:/a")
    for text in ("gs://bucket/runs/a", "gs://bucket/runs/a/"):
        path = location(text)
        assert is_remote(path) and str(path) == "gs://bucket/runs/a" and path.name == "a"
        assert location(path) == path and str(storage.absolute(path)) == str(path)
        assert str(path / "checkpoints" / "5") == "gs://bucket/runs/a/checkpoints/5"
    assert local_path("report", "--output") == Path("report")
    with pytest.raises(UserError, match="--output: gs://bucket/a must be a local path"):
        local_path("gs://bucket/a", "--output")


@pytest.mark.parametrize("name", ["s3://bucket/run", "az://b/run", "hf://b/run", "https://host/run", "file:///run"])
def test_other_stores_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: runs lie in local folders or on gs://; mount"):
        location(name)


@pytest.mark.parametrize(
    "name", ["gs:/bucket/run", "gs://", "gs://bucket", "gs://bucket/", "gs:///run", "GS://bucket/run"]
)
def test_half_a_path_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="write gs://BUCKET/FOLDER"):
        location(name)


def test_a_path_that_lost_a_slash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, config = Path("gs://bucket/run"), configs.load("gpt:smoke", [])
    for ask in (
        lambda: location(path), lambda: train(config, path), lambda: jaxformer.load(path), lambda: stored_run(path),
        lambda: read_run(path), lambda: check_new(path, "OUT"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="write gs://BUCKET/FOLDER"):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_without_gcsfs_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"gs://bucket/run: gs:// needs gcsfs.*pip install 'jaxformer\[gcs\]'"):
        location("gs://bucket/run")


@pytest.mark.parametrize("where", ["gs:/bucket/run", "s3://bucket/run"])
@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config=gpt:smoke", "--workdir=WHERE"],
        ["train", "--config=gpt:smoke", "--workdir=run", "--config.init_from=WHERE"],
        ["train", "--config=distilbert:smoke", "--workdir=run", "--config.distillation.teacher=WHERE"],
        ["evaluate", "--workdir=WHERE"],
        ["generate", "--workdir=WHERE", "a"],
        ["report", "WHERE"],
        ["report", "run", "--output=WHERE"],
        ["import", "folder", "--workdir=WHERE"],
        ["import", "WHERE", "--workdir=run"],
        ["export", "--workdir=WHERE", "out"],
        ["export", "--workdir=run", "WHERE"],
        ["tokenizer", "train", "--config=gpt:smoke", "--output=WHERE"],
        ["models", "--plot=WHERE"],
        ["demo", "--family=gpt", "--output=WHERE"],
    ],
    ids=lambda words: f"{words[0]} {[word for word in words if 'WHERE' in word][0]}",
)
def test_no_verb_takes_them_for_a_local_folder(
    words: list[str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("WHERE", where) for word in words]) == 2
    assert where in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == []


# Folders that are beginnings of names.


def test_folders(bucket: gcs.Bucket, run: Path, tmp_path: Path) -> None:
    assert files_below(run) == {} and folders_in(run) == []
    for name in ("runs/a/", "runs/a/5/"):
        bucket.put(name, b"")  # as Google's console makes folders
    assert files_below(run) == {} and folders_in(run) == [run / "5"]
    bucket.objects.clear()
    for name in ("runs/a/x", "runs/a/5/y", "runs/a/5/z/w", "runs/ab/x"):
        bucket.put(name, name.encode())
    assert files_below(run) == {"5/y": 10, "5/z/w": 12, "x": 8} and folders_in(run) == [run / "5"]
    bucket.put("runs/a/7/y", b"")  # no listing from before is used
    assert folders_in(run) == [run / "5", run / "7"]
    bucket.requests.clear()
    storage.move_tree(run / "5", run / "6", first="z/w")
    assert bucket.names("runs/a") == ["6/y", "6/z/w", "7/y", "x"] and bucket.objects["runs/a/6/y"] == b"runs/a/5/y"
    assert [name for method, name in bucket.requests if method == "DELETE"][0] == "runs/a/5/z/w"
    delete_tree(run / "6", first="none")
    assert bucket.names("runs/a") == ["7/y", "x"] and bucket.names("runs/ab") == ["x"]
    (tmp_path / "checkpoints").mkdir()
    for name in ("config.json", "tokenizer.json", "checkpoints/0"):
        (tmp_path / name).write_text(name)
    storage.upload(tmp_path, run / "whole")
    assert list(bucket.objects)[-1] == "runs/a/whole/config.json" and len(bucket.names("runs/a/whole")) == 3


def test_a_store_that_fails_is_no_empty_folder(bucket: gcs.Bucket, run: Path) -> None:
    save_all(run / "checkpoints", {1: None})
    bucket.refuse = lambda method, name: 403
    for ask in (lambda: folders_in(run), lambda: files_below(run), lambda: restore(run)):
        with pytest.raises(UserError, match="no permission for gs://bucket"), store_errors():
            ask()


# Checkpoints.


def restore(run: Path) -> tuple[int, Any] | None:
    return Checkpoints(run / "checkpoints", CheckpointConfig()).restore_latest(shapes(make_state(0)))


def steps(bucket: gcs.Bucket) -> list[str]:
    return sorted({name.partition("/")[0] for name in bucket.names("runs/a/checkpoints")})


@pytest.mark.parametrize("packed", [False, True])
def test_a_checkpoint_comes_back_bit_by_bit(
    packed: bool, bucket: gcs.Bucket, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "_PACK_FROM_BYTES", 0 if packed else 1e9)
    save_all(run / "checkpoints", {7: 0.5})
    found = restore(run)
    assert found is not None and found[0] == 7
    assert_equal(found[1], make_state(7))
    for path in (run, run / "checkpoints", run / "checkpoints" / "7", "gs://bucket/runs/a"):
        assert_equal(restore_named(path, shapes(make_state(0)))[1], make_state(7))  # type: ignore[arg-type]
    names = bucket.names("runs/a/checkpoints/7")
    assert ("manifest.ocdbt" if packed else "params.head.kernel/0.0") in names and steps(bucket) == ["7"]
    written = [name for method, name in bucket.requests if method == "POST"]
    assert written[-1].endswith("7/digest.json")  # only then it is a finished one


def test_old_ones_are_deleted_and_no_longer_finished_first(bucket: gcs.Bucket, run: Path) -> None:
    save_all(run / "checkpoints", {10: 3.0, 20: 1.0, 30: 5.0, 40: 2.0}, keep_last=1)
    assert steps(bucket) == ["20", "40"]
    last = max(number for number, request in enumerate(bucket.requests) if request[0] == "POST")
    deleted = [name.partition("checkpoints/")[2] for method, name in bucket.requests[last:] if method == "DELETE"]
    assert deleted[0] == "30/digest.json" and len(deleted) > 15


def test_what_a_kill_leaves_is_deleted_and_damage_is_set_aside(
    bucket: gcs.Bucket, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_all(run / "checkpoints", {1: None, 2: None, 3: None, 4: None}, keep_last=0)
    del bucket.objects["runs/a/checkpoints/4/digest.json"]
    damaged = bucket.objects["runs/a/checkpoints/3/step/0"]
    bucket.objects["runs/a/checkpoints/3/step/0"] = bytes([damaged[0] ^ 1]) + damaged[1:]
    bucket.objects.pop("runs/a/checkpoints/2/params.head.kernel/0.0")
    bucket.put("runs/a/checkpoints/3.damaged-1/x", b"")
    found = restore(run)
    assert found is not None and found[0] == 1
    assert_equal(found[1], make_state(1))
    assert steps(bucket) == ["1", "2.damaged-1", "3.damaged-1", "3.damaged-2"]
    assert "deleting gs://bucket/runs/a/checkpoints/4" in caplog.text
    assert "step/0 does not agree with its hash; set aside as 3.damaged-2" in caplog.text
    delete_tree(run / "checkpoints" / "1")
    with pytest.raises(UserError, match="no sound checkpoint is left in gs://bucket/runs/a/checkpoints: 2.damaged-1"):
        restore(run)


def test_checkpoints_without_their_config_are_not_started_over(bucket: gcs.Bucket, run: Path) -> None:
    check_may_train(run)
    save_all(run / "checkpoints", {1: None, 2: None})
    with pytest.raises(UserError, match=r"gs://bucket/runs/a has checkpoints \(1, 2\) but no config.json"):
        check_may_train(run)
    bucket.put("runs/a/config.json", b'{"name": "a", "config": {}, "labels": []}')
    check_may_train(run)
    assert os.fspath(checkpoint_of(f"{run}@1")) == f"{run}/checkpoints/1"
    with pytest.raises(UserError, match="gs://bucket/runs/a has no checkpoint of step 3; there are 1, 2"):
        checkpoint_of(f"{run}@3")
    with pytest.raises(UserError, match="is the checkpoint 1 of the run gs://bucket/runs/a; give --workdir="):
        check_may_train(run / "checkpoints" / "1")


def test_a_copy_of_a_local_run_is_as_good(bucket: gcs.Bucket, run: Path, tmp_path: Path) -> None:
    save_all(tmp_path / "checkpoints", {3: None})
    storage.upload(tmp_path, run)
    found = restore(run)
    assert found is not None
    assert_equal(found[1], make_state(3))
    save_params(tmp_path / "alone", make_state(3).params)
    storage.upload(tmp_path / "alone", location("gs://bucket/alone/checkpoints"))
    assert_equal(restore_params(location("gs://bucket/alone"), make_state(0).params)[0], make_state(3).params)


@pytest.mark.parametrize("what", ["_METADATA", "params.head.kernel/0.0", "digest.json"])
def test_a_save_that_is_not_permitted_is_one_line_and_leaves_no_checkpoint(
    what: str, bucket: gcs.Bucket, run: Path
) -> None:
    save_all(run / "checkpoints", {1: None})
    bucket.refuse = lambda method, name: 403 * (method == "POST" and name.endswith(what))
    with pytest.raises(UserError, match=r"no permission for gs://bucket \(.*a@b.c.*; give the account"):
        save_all(run / "checkpoints", {2: None})
    assert finished_steps(run / "checkpoints") == [1]
    bucket.refuse = lambda method, name: 0
    # Arrays that were on their way when another was refused may still have arrived; a resume takes them away.
    deadline = time.monotonic() + 10
    while True:
        found = Checkpoints(run / "checkpoints", CheckpointConfig()).restore_latest(shapes(make_state(1)))
        assert found is not None and found[0] == 1
        if steps(bucket) == ["1"]:
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_log_is_copied_before_a_checkpoint_is_finished(bucket: gcs.Bucket, run: Path) -> None:
    seen: list[bool] = []

    def look() -> None:
        seen.append("runs/a/checkpoints/1/digest.json" in bucket.objects)

    checkpoints = Checkpoints(run / "checkpoints", CheckpointConfig(), before_finishing=look)
    checkpoints.save(1, make_state(1))
    checkpoints.close()
    assert seen == [False] and "runs/a/checkpoints/1/digest.json" in bucket.objects


# The log.


def test_a_result_is_one_object(bucket: gcs.Bucket, run: Path) -> None:
    write_json(run / "results" / "evaluate-test.json", {"loss": 1.5})
    assert json.loads(bucket.objects["runs/a/results/evaluate-test.json"]) == {"loss": 1.5}
    assert {method for method, _ in bucket.requests} == {"POST"}  # nothing is renamed


def test_a_local_run_is_its_own_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "filesystem", lambda: pytest.fail("nothing is copied"))
    with staged(tmp_path / "runs" / "a") as own:
        assert own.folder == own.run == tmp_path / "runs" / "a" and own.folder.is_dir()
        (own.folder / "x").write_text("x")
        own.sync()
    assert (tmp_path / "runs" / "a" / "x").exists()


def test_small_files_are_fetched_and_copied_when_they_change(bucket: gcs.Bucket, run: Path) -> None:
    for name in ("config.json", "emissions/1-0.csv", "tensorboard/old", "checkpoints/1/digest.json"):
        bucket.put(f"runs/a/{name}", name.encode())
    with staged(run) as own:
        assert sorted(files_below(own.folder)) == ["config.json", "emissions/1-0.csv"]
        bucket.requests.clear()
        own.sync()
        assert bucket.requests == []
        for name, text in {"metrics.jsonl": "1", "tensorboard/new": "2", ".torn": "3", "x.partial": "4"}.items():
            (own.folder / name).parent.mkdir(exist_ok=True)
            (own.folder / name).write_text(text)
        own.sync()
        own.sync()
        assert [name for _, name in bucket.requests] == ["", ""] and bucket.objects["runs/a/metrics.jsonl"] == b"1"
        with (own.folder / "metrics.jsonl").open("a") as file:
            file.write("5")
    assert bucket.objects["runs/a/metrics.jsonl"] == b"15" and not own.folder.exists()
    assert bucket.names("runs/a/tensorboard") == ["new", "old"] and len(bucket.names("runs/a")) == 6


def test_the_log_goes_up_while_the_run_goes_on(
    bucket: gcs.Bucket, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(staging, "SYNC_SECONDS", 0.05)
    with staged(run) as own:
        bucket.refuse = lambda method, name: 403 * (method == "POST")
        (own.folder / "metrics.jsonl").write_text("1")
        wait_until(lambda: len([method for method, _ in bucket.requests if method == "POST"]) > 2)
        assert caplog.text.count("could not be written to gs://bucket/runs/a, tried again: no permission") == 1
        bucket.refuse = lambda method, name: 0
        wait_until(lambda: bucket.objects.get("runs/a/metrics.jsonl") == b"1")


def test_what_cannot_be_copied_in_the_end_is_kept(
    bucket: gcs.Bucket, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(method: str, name: str) -> int:
        return 403 * (method == "POST")

    with pytest.raises(UserError, match="the last of the log could not be written to gs://bucket/runs/a .no perm") as e:
        with staged(run) as own:
            (own.folder / "metrics.jsonl").write_text("1")
            bucket.refuse = refuse
    assert str(own.folder) in str(e.value) and (own.folder / "metrics.jsonl").read_text() == "1"
    bucket.refuse = lambda method, name: 0
    with pytest.raises(ZeroDivisionError), staged(run) as own:  # what stopped the run is what is raised
        (own.folder / "metrics.jsonl").write_text("1")
        bucket.refuse = refuse
        raise ZeroDivisionError
    assert str(own.folder) in caplog.text and (own.folder / "metrics.jsonl").exists()


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# What goes wrong.


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (google.auth.exceptions.RefreshError("invalid_grant"), "gs:// does not accept the credentials.*invalid_grant"),
        (aiohttp.ClientConnectionError("Cannot connect"), "gs:// cannot be reached .Cannot connect.; run the same"),
        (ValueError("UNAVAILABLE: Error reading gs://b/x [code='503']"), "gs://b cannot be reached"),
        (FileNotFoundError("https://host/upload/storage/v1/b/buck/o"), "there is no bucket gs://buck; create it"),
    ],
)
def test_what_the_store_answers_becomes_one_line(error: Exception, reason: str, bucket: gcs.Bucket, run: Path) -> None:
    files_below(run)  # gcsfs is imported
    with pytest.raises(UserError, match=reason), store_errors():
        raise error


@pytest.mark.parametrize("error", [ValueError("gs://b/x/403"), FileNotFoundError("/a/b/c/o"), ZeroDivisionError()])
def test_what_is_no_answer_stays_an_error(error: Exception, bucket: gcs.Bucket, run: Path) -> None:
    files_below(run)
    with pytest.raises(type(error)) as raised, store_errors():
        raise error
    assert raised.value is error


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config=gpt:smoke", "--workdir=gs://BUCKET/run"],
        ["evaluate", "--workdir=gs://BUCKET/run"],
        ["report", "gs://BUCKET/run"],
        ["export", "--workdir=gs://BUCKET/run", "out"],
        ["import", "FOLDER", "--workdir=gs://BUCKET/run"],
        ["train", "--config=gpt:smoke", "--workdir=run", "--config.init_from=gs://BUCKET/run"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize(
    ("name", "status", "message"),
    [("nobucket", 0, "there is no bucket gs://nobucket"), ("bucket", 403, "no permission for gs://bucket"),
     ("bucket", 401, "does not accept the credentials")],
)  # fmt: skip
def test_every_verb_says_so(
    words: list[str], name: str, status: int, message: str, bucket: gcs.Bucket, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    bucket.refuse = lambda method, name: status
    assert main([word.replace("BUCKET", name).replace("FOLDER", str(tmp_path)) for word in words]) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed and printed.count("\n") == 1


def test_a_run_that_is_only_described_says_so_too(bucket: gcs.Bucket, run: Path) -> None:
    bucket.refuse = lambda method, name: 401
    with pytest.raises(UserError, match="does not accept the credentials"):
        stored_run(run)


def test_weights_are_imported_from_here(bucket: gcs.Bucket, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "gs://bucket/bert", "--workdir=run"]) == 2
    assert "gs://bucket/bert: copy the folder here first" in capsys.readouterr().err


# Whole runs.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def quick(workdir: Any, corpus: Path, **keys: Any) -> list[str]:
    return pretraining(
        "gpt", corpus, workdir, **{"model.d_ff": 64, "footprint.enabled": False, "optimizer.warmup_steps": 1, **keys}
    )


def test_a_run_on_a_bucket_is_the_same_run(bucket: gcs.Bucket, corpus: Path, tmp_path: Path) -> None:
    run = location("gs://bucket/runs/a")
    keys = {"checkpoint.every": 0, "sharding.data": 1, "optimizer.decay_steps": 3, "model.d_ff": 32}  # few files
    for num_steps in (2, 3):  # made, and gone on with
        for workdir in (run, tmp_path / "run"):
            assert main(quick(workdir, corpus, **{"training.num_steps": num_steps, **keys})) == 0
        assert_same_run(run, tmp_path / "run")
    assert steps(bucket) == ["2", "3"]
    kinds = sorted({name.partition("/")[0] for name in bucket.names("runs/a")})
    assert kinds == ["checkpoints", "config.json", "metrics.jsonl", "tensorboard", "tokenizer.json"]
    (found,) = find_runs(["gs://bucket/runs"])
    assert found.name == "a" and found.metrics == read_run(run).metrics and len(found.metrics) == len(logged(run))
    assert {run.name for run in find_runs([run, tmp_path / "run"])} == {
        "gs:/bucket/runs/a", (tmp_path / "run").resolve().relative_to("/").as_posix()
    }  # fmt: skip


def has_ended(started: list["subprocess.Popen[str]"]) -> bool:
    return any(process.poll() is not None for process in started)


# What one process writes is what the first of two writes; test_launch_preemption.py takes a machine from two.
@pytest.mark.parametrize("processes", sampled([1, 2], path=lambda processes: "killed", ci=[1]))
def test_a_killed_run_goes_on_bit_by_bit(processes: int, bucket: gcs.Bucket, corpus: Path, tmp_path: Path) -> None:
    run = location("gs://bucket/runs/a")
    keys = {"training.num_steps": 60, "checkpoint.every": 20, "checkpoint.keep_last": 0, "training.eval_every": 30}
    if processes == 1:  # which may be this one, and has as many devices, so that it finds what that has compiled
        keys["sharding.data"] = 1
    flags = {"XLA_FLAGS": xla_flags(1 if processes > 1 else 8)}

    def finish(workdir: Path) -> None:
        if processes == 1:
            assert main(quick(workdir, corpus, **keys)) == 0
            return
        with (tmp_path / "output.txt").open("a") as output:
            started = local.start(quick(workdir, corpus, **keys), processes, flags, stdout=output, stderr=output)
            assert local.wait(started) == 0, (tmp_path / "output.txt").read_text()

    finish(tmp_path / "run")
    # Killed while the checkpoint of step 40 is being written.
    started = local.start(quick(run, corpus, **keys), processes, flags, stdout=PIPE, stderr=STDOUT)
    folder = "runs/a/checkpoints/40/"
    while not any(name.startswith(folder) for name in list(bucket.objects)) and not has_ended(started):
        time.sleep(0.01)
    for process in started:
        process.kill()
    outputs = [process.communicate()[0] for process in started]
    finished = [name for name in steps(bucket) if f"runs/a/checkpoints/{name}/digest.json" in bucket.objects]
    assert "runs/a/config.json" in bucket.objects and "60" not in finished, outputs
    if finished:  # no line before a checkpoint is lost
        assert read_metrics(run)[-1]["step"] >= max(map(int, finished))
    finish(run)
    assert_same_run(run, tmp_path / "run")


@pytest.mark.slow
def test_a_stopped_run_is_saved_and_its_log_is_there(bucket: gcs.Bucket, corpus: Path) -> None:
    command = quick("gs://bucket/runs/a", corpus, **{"training.num_steps": 100_000, "checkpoint.every": 20})
    flags = {"XLA_FLAGS": xla_flags(1)}
    (process,) = local.start(command, 1, flags, stdout=PIPE, stderr=STDOUT)
    wait_until(lambda: "runs/a/checkpoints/20/digest.json" in bucket.objects or process.poll() is not None, 120)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75 and "saved gs://bucket/runs/a at step" in output, output
    run = location("gs://bucket/runs/a")
    assert read_metrics(run)[-1]["step"] == jaxformer.load(run).step > 20


@pytest.mark.slow
def test_everything_reads_a_run_on_a_bucket(
    bucket: gcs.Bucket, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gs = "gs://bucket/runs/a"
    few = {"training.num_steps": 4, "checkpoint.every": 0, "sharding.data": 1}  # each file on the bucket takes a while
    assert main(quick(gs, corpus, **few, **{"footprint.enabled": True})) == 0
    assert main(["evaluate", f"--workdir={gs}"]) == 0
    assert b'"loss"' in bucket.objects["runs/a/results/evaluate-validation.json"]
    assert main(["generate", f"--workdir={gs}", "--max-new-tokens=4", "The cat"]) == 0
    assert main(["report", gs, f"--output={tmp_path / 'report'}"]) == 0
    assert "gs://bucket/runs/a" in next((tmp_path / "report").glob("*.html")).read_text()
    assert read_run(gs).emissions.segments == 1 and read_run(gs).results
    assert main(["export", f"--workdir={gs}", str(tmp_path / "out")]) == 0
    assert main(["export", f"--workdir={gs}", "gs://bucket/out"]) == 0
    assert bucket.objects["out/model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert main(["export", f"--workdir={gs}", "gs://bucket/out"]) == 2
    assert main(["import", str(tmp_path / "out"), "--workdir=gs://bucket/imported"]) == 0
    for path, leaf in params(gs).items():
        np.testing.assert_array_equal(params("gs://bucket/imported")[path], leaf)
    tuning = fine_tuning("gpt", corpus, tmp_path / "tuned", gs, **{"training.num_steps": 2, "model.d_ff": 64})  # type: ignore[arg-type]
    assert main([*tuning, "--config.checkpoint.init_new=row_heads/.*"]) == 0
    teaching = few | {"distillation.teacher": gs, "training.num_steps": 2}
    capsys.readouterr()
    code = main(quick("gs://bucket/student", corpus, **teaching))
    assert code == 0, capsys.readouterr().err
    assert bucket.names("student/checkpoints/2")


def test_a_record_is_whole_or_refused_in_one_line(tmp_path: Path) -> None:
    record = {"config": {"seed": 0}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert storage.read_record(tmp_path, needed=("config",)) == record  # enough for a report
    for content in (record, record | {"name": "gpt", "labels": [], "config": 3}, [record]):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="does not describe a run"):
            storage.read_record(tmp_path)
    with pytest.raises(UserError, match="is not a run: it has no config.json"):
        storage.read_record(tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        storage.read_record(tmp_path)


def test_the_content_of_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("some text")
    expected = hashlib.sha256(b"some text").hexdigest()
    reads: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: reads.append("read") or digest(*args))
    monkeypatch.setattr(storage, "_CLOCK_NANOSECONDS", 0)
    assert [content_digest(file), content_digest(file), content_digest(tmp_path / "." / "a.txt")] == [expected] * 3
    assert len(reads) == 1
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    time.sleep(0.01)
    file.write_text("same text")
    os.utime(file, ns=times)  # neither its size nor its time tells
    assert content_digest(file) == hashlib.sha256(b"same text").hexdigest() and len(reads) == 2
    monkeypatch.setattr(storage, "_CLOCK_NANOSECONDS", 10**12)
    young = tmp_path / "b.txt"
    young.write_text("a")
    assert content_digest(young) == content_digest(young) == hashlib.sha256(b"a").hexdigest() and len(reads) == 4
