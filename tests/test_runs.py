"""Whole runs as users make them: pretraining that survives kills, fine-tuning, evaluation, generation, mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from runs import make_run
from sampling import sampled
from training import FAMILIES, TOPICS, assert_same_run, fine_tuning, logged, make_corpus, pretraining

import jaxformer
from jaxformer.checkpoint import finished_steps
from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.runs.signals import Signals
from jaxformer.storage import read_metrics
from jaxformer.trees import flatten

NUM_STEPS = {"gpt": 120, "bert": 80, "t5": 80}  # time for a kill before the end, or two


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def start(words: list[str], cwd: Path) -> "subprocess.Popen[str]":
    # With as many devices as here: what one process has compiled, another finds in the cache.
    command = [sys.executable, "-m", "jaxformer", *words]
    return subprocess.Popen(command, cwd=cwd, stderr=subprocess.PIPE, text=True)


def stop_after(step: int, process: "subprocess.Popen[str]", workdir: Path, number: signal.Signals) -> int:
    """Signal the process once `step` is logged and a checkpoint is there; return its exit code."""
    for _ in range(3000):
        steps = [line["step"] for line in read_metrics(workdir)]
        if steps and steps[-1] >= step and finished_steps(workdir / "checkpoints"):
            break
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


def killable(family: str, corpus: Path, workdir: Path, **more: object) -> list[str]:
    """Arguments of a run on one device of those that there are, so that all runs of a family share what is compiled.
    Only one family measures: that takes as long as its steps."""
    keys = {"training.num_steps": NUM_STEPS[family], "footprint.enabled": family == "gpt", "sharding.data": 1}
    return pretraining(family, corpus, workdir, **{**keys, **more})


@pytest.fixture(scope="module")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Finished pretraining runs, made when first asked for."""

    class Runs(dict[str, Path]):
        def __missing__(self, family: str) -> Path:
            folder = tmp_path_factory.mktemp(f"unbroken-{family}")
            assert main(killable(family, corpus, folder / "run")) == 0
            self[family] = folder / "run"
            return self[family]

    yield Runs()


# Each family is stopped and goes on in this process below.
@pytest.mark.parametrize("family", sampled(FAMILIES, path=lambda family: "the kill", daily=("gpt",)))
def test_a_killed_run_equals_an_unbroken_one(
    family: str, corpus: Path, unbroken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    words = killable(family, corpus, workdir)
    with start(words, tmp_path) as process:
        assert stop_after(25, process, workdir, signal.SIGKILL) == -signal.SIGKILL
    newest = finished_steps(workdir / "checkpoints")[-1]
    assert main(words) == 0
    shown = capsys.readouterr().err
    assert f"at step {newest}" in shown and "attention einsum (" in shown
    assert_same_run(workdir, unbroken[family])
    # Whether a kill leaves what was measured until then depends on its moment.
    assert len(list((workdir / "emissions").glob("*.csv"))) in ((1, 2) if family == "gpt" else (0,))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stop_before_the_first_step_leaves_nothing_and_says_run_again(
    number: signal.Signals, code: int, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def interrupted(*args: object, **keys: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr("jaxformer.runs.data.training_members", interrupted)
    assert main(pretraining("gpt", corpus, tmp_path / "run")) == code
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert ("run the same command to go on" if code == 75 else "interrupted") in shown
    assert not list((tmp_path / "run").iterdir()) and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# In CI test_phases.py stops a BERT.
@pytest.mark.parametrize("family", sampled(FAMILIES, path=lambda family: family == "t5", daily=["gpt"]))
def test_a_stop_at_a_step_that_was_to_be_judged_leaves_the_judgement_for_later(
    family: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"training.num_steps": 8, "training.eval_every": 4, "footprint.enabled": False}
    whole, broken = (killable(family, corpus, tmp_path / name, **keys) for name in ("whole", "broken"))
    assert main(whole) == 0
    for last in (4, 8):
        with monkeypatch.context() as patch:
            calls = iter([0, 0, 0, signal.SIGTERM])  # after each of the four steps of this part of the run
            patch.setattr(Signals, "after_step", lambda self, calls=calls: next(calls))
            assert main(broken) == 75
        assert not any("eval/loss" in line for line in logged(tmp_path / "broken") if line["step"] == last)
    assert main(broken) == 0
    assert_same_run(tmp_path / "broken", tmp_path / "whole")
    before = logged(tmp_path / "broken")
    assert main(broken) == 0  # once more changes nothing
    assert logged(tmp_path / "broken") == before


# The base of every day is the one that the tests below read; test_judging.py tunes and judges BERT.
@pytest.mark.parametrize("family", sampled(FAMILIES, path=lambda family: family == "t5", daily=["gpt"]))
def test_fine_tuning_from_a_run_beats_chance_and_can_be_used(
    family: str, corpus: Path, unbroken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "tuned"
    assert main(fine_tuning(family, corpus, workdir, unbroken[family])) == 0
    shown = capsys.readouterr().err
    assert "Parameters from" in shown and "embedding/tokens" in shown
    if family != "t5":
        assert "row_heads/label/kernel" in shown and "new" in shown
    assert main(["evaluate", f"--workdir={workdir}", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["accuracy"] > 0.8 and metrics["f1"] > 0.8
    stored = json.loads((workdir / "results" / "evaluate-validation.json").read_text())
    intervals = {f"{name}_interval": bounds for name, bounds in stored["intervals"].items()}
    assert stored["metrics"] | intervals == metrics and stored["step"] == 100
    run = jaxformer.load(workdir)
    assert run.labels == tuple(sorted(TOPICS)) and run.step == 100
    if family == "t5":
        assert run.generate(["area text: The cat and the dog came."]) == ["animals"]


@pytest.mark.slow
def test_a_mixture_of_objectives_and_corpora_resumes_and_is_judged_by_its_members(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = tmp_path / "more.txt"
    more.write_text((corpus / "documents.txt").read_text().upper())
    objectives = [
        {"name": "span_corruption", "sequence_length": 24, "max_target_length": 24, "weight": 3.0},
        {"name": "span_corruption", "sequence_length": 16, "noise_density": 0.5, "corpora": [1]},
        {"name": "prefix_lm", "sequence_length": 24},
    ]
    corpora = [{"name": "text", "path": str(path), "cap": 50} for path in (corpus / "documents.txt", more)]
    keys = {"objective.name": "mixture", "objective.members": objectives, "data.name": "mixture"}
    keys |= {"data.members": corpora, "data.mixing": "proportional", "data.temperature": 2.0, "checkpoint.every": 5}

    def run(folder: Path, steps: int) -> dict[str, np.ndarray]:
        words = pretraining("t5", corpus, folder, **{**keys, "training.num_steps": steps, "footprint.enabled": False})
        unread = ("--config.data.path", "--config.objective.sequence_length")
        assert main([word for word in words if not word.startswith(unread)]) == 0
        return flatten(jaxformer.load(folder).params)

    unbroken, _ = run(tmp_path / "unbroken", 10), run(tmp_path / "broken", 5)
    broken = run(tmp_path / "broken", 10)
    assert all(np.array_equal(broken[path], unbroken[path]) for path in unbroken)
    judged = read_metrics(tmp_path / "unbroken")[-1]
    names = [f"span_corruption0-data{n}" for n in (0, 1)] + ["span_corruption1-data1"]
    names += [f"prefix_lm2-data{n}" for n in (0, 1)]
    assert {key.split("/")[1] for key in judged if key.count("/") == 2} == set(names) and "eval/loss" in judged
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={tmp_path / 'unbroken'}", "--json"]) == 0
    assert "prefix_lm2-data1/perplexity" in json.loads(capsys.readouterr().out)


def test_text_comes_from_a_run_on_the_command_line(
    unbroken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", f"--workdir={unbroken['gpt']}", "--max-new-tokens=8"]
    assert main([*words, "The cat"]) == 0
    greedy = capsys.readouterr().out
    assert greedy.startswith("The cat") and len(greedy.strip()) > len("The cat")
    assert main([*words, "--json", "--temperature=1", "--seed=3", "The cat"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*words, "--json", "--temperature=1", "--seed=3", "The cat"]) == 0
    assert json.loads(capsys.readouterr().out) == first and first["prompt"] == "The cat"
    assert main(["generate", f"--workdir={make_run('bert', tmp_path / 'bert')}", "The cat"]) == 2
    assert "cannot generate" in capsys.readouterr().err


def test_the_report_shows_a_run(unbroken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(unbroken["gpt"]), f"--output={tmp_path / 'page'}"]) == 0
    assert "Best eval loss" in capsys.readouterr().out
    page = (tmp_path / "page" / "report.html").read_text()
    assert "<svg" in page and "kWh" in page and list((tmp_path / "page").glob("*.png"))


def test_a_finished_run_trains_no_further_and_a_longer_one_goes_on(
    corpus: Path, unbroken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(unbroken["gpt"], workdir)
    before = logged(workdir)
    assert main(killable("gpt", corpus, workdir)) == 0
    assert logged(workdir) == before
    longer = {"training.num_steps": NUM_STEPS["gpt"] + 10}
    assert main(killable("gpt", corpus, workdir, **longer)) == 2
    assert f"optimizer.decay_steps={NUM_STEPS['gpt']} keeps the decay as it was" in capsys.readouterr().err
    longer["optimizer.decay_steps"] = NUM_STEPS["gpt"]
    assert main(killable("gpt", corpus, workdir, **longer)) == 0
    assert logged(workdir)[: len(before)] == before and logged(workdir)[-1]["step"] == NUM_STEPS["gpt"] + 10
    capsys.readouterr()
    assert main(killable("gpt", corpus, workdir, **longer, seed=1)) == 2
    shown = capsys.readouterr().err
    assert "another config (seed: 0 -> 1)" in shown and "--allow-config-change" in shown


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(
    corpus: Path, unbroken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = tmp_path / "run"
    assert main(killable("gpt", corpus, workdir, **{"training.num_steps": 10})) == 0
    words = killable("gpt", corpus, workdir, **{"optimizer.learning_rate": 1e30})
    capsys.readouterr()
    assert main([*words, "--allow-config-change"]) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the loss is nan" in shown and "lower optimizer.learning_rate" in shown
    assert finished_steps(workdir / "checkpoints") == [10] and jaxformer.load(workdir).step == 10


def test_damaged_checkpoints_are_set_aside_at_home_and_refused_elsewhere(
    corpus: Path, unbroken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, base = tmp_path / "run", unbroken["gpt"]
    shutil.copytree(base, workdir)
    newest = workdir / "checkpoints" / str(NUM_STEPS["gpt"])
    victim = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    assert main(fine_tuning("gpt", corpus, tmp_path / "tuned", workdir)) == 2
    assert "is damaged" in capsys.readouterr().err.strip().splitlines()[-1] and newest.exists()
    assert main(killable("gpt", corpus, workdir)) == 0
    assert (
        "resuming" in capsys.readouterr().err and (workdir / "checkpoints" / f"{NUM_STEPS['gpt']}.damaged-1").exists()
    )
    assert NUM_STEPS["gpt"] in finished_steps(workdir / "checkpoints")
    assert_same_run(workdir, base)


def test_mistakes_end_in_one_line_and_leave_nothing_behind(
    corpus: Path, unbroken: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir, base = tmp_path / "run", unbroken["gpt"]
    other = tmp_path / "tokenizer.json"
    assert main(["tokenizer", "train", "--config=gpt:smoke", "--config.tokenizer.vocab_size=300", f"--output={other}",
                 "--config.data.name=text", f"--config.data.path={corpus / 'documents.txt'}"]) == 0  # fmt: skip
    capsys.readouterr()
    file = {"tokenizer.name": "file", "tokenizer.path": other}
    mistakes = {
        "no file": pretraining("gpt", corpus, workdir, **{"data.path": tmp_path / "nowhere"}),
        "its tokenizer is not that of": fine_tuning("gpt", corpus, workdir, base, **file),
        "are not the model's": fine_tuning("gpt", corpus, workdir, base, **{"model.d_ff": 48}),
        "the tokenizer has no 'classify' token": pretraining("bert", corpus, workdir, **file),
        "do not divide among 8 devices": pretraining("gpt", corpus, workdir, **{"training.batch_size": 12}),
        "evaluation.batch_size": pretraining("gpt", corpus, workdir, **{"evaluation.batch_size": 3}),
        "is not a run with a checkpoint": fine_tuning("gpt", corpus, workdir, tmp_path),
    }
    for message, words in mistakes.items():
        keys = [word for word in words if not word.startswith("--config.tokenizer.vocab_size")]
        assert main(keys if any("tokenizer.path" in word for word in words) else words) == 2, message
        shown = capsys.readouterr().err
        assert message in shown and "Traceback" not in shown, message
    assert not finished_steps(workdir / "checkpoints")


def test_a_full_disk_is_one_line_and_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    """A file size limit stands for the disk: the same failure on every file that grows beyond it."""
    words = killable("gpt", corpus, tmp_path / "run", **{"footprint.enabled": False})
    environment = os.environ.copy()
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "3600"  # the cache is read, and never written to
    command = ["bash", "-c", 'ulimit -f 24; exec "$@"', "bash", sys.executable, "-m", "jaxformer", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "would exceed the size limit" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_damaged_config_is_refused(tmp_path: Path, unbroken: dict[str, Path]) -> None:
    shutil.copytree(unbroken["gpt"], tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is damaged"):
        jaxformer.load(tmp_path / "run")
