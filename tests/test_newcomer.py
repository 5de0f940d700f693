"""A newcomer's first hour, from a folder of their own texts to an exported model, in which nothing changes unsaid."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from training import SIZES, TOPICS, make_corpus

from jaxformer.cli.main import main
from jaxformer.storage import read_metrics

pytestmark = pytest.mark.slow

TINY = [
    f"--config.model.{name}={size}" for name, size in {**SIZES, "d_ff": 64}.items()
]  # exports have four times d_model
TINY += ["--config.tokenizer.vocab_size=420", "--config.objective.sequence_length=24", "--config.training.batch_size=8"]
TINY += ["--config.training.log_every=1", "--config.training.eval_every=20", "--config.checkpoint.every=20"]
TINY += ["--config.optimizer.warmup_steps=5", "--config.optimizer.decay_steps=400", "--config.footprint.enabled=False"]
TINY += ["--config.sharding.data=1"]


def start(*words: str, cwd: Path) -> "subprocess.Popen[str]":
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "jaxformer", *words], cwd=cwd, **pipes)


Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Run:
    """Return a function that runs a command to its end, in this process, and gives what it printed and what it said."""

    def command(*words: str, cwd: Path, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            found = main(list(words))
        printed, said = capsys.readouterr()
        assert found == code, said
        if code == 2:
            assert said.strip().count("\n") == 0 or said.strip().splitlines()[-1].startswith("jaxformer "), said
        return printed, said + caplog.text

    return command


def record(workdir: Path) -> dict:
    return json.loads((workdir / "config.json").read_text())


def fill(folder: Path) -> tuple[Path, Path]:
    """Make a folder of texts among other things, and a file of labelled rows with one of a rare class."""
    texts = folder / "texts"
    (texts / ".git").mkdir(parents=True)
    make_corpus(folder)
    documents = (folder / "documents.txt").read_text().split("\n\n")
    (texts / "first.txt").write_text("\n\n".join(documents[:120]))
    with gzip.open(texts / "second.txt.gz", "wt") as file:
        file.write("\n\n".join(documents[120:]))
    for name in (".draft.txt", "first.txt~", "#first.txt#", ".git/packed.txt"):
        (texts / name).write_text("A secret that no model may learn.\n\n" * 50)
    (texts / "table.csv").write_text("a,b\n1,2\n")
    (texts / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    rows = [json.loads(line) for line in (folder / "labelled.jsonl").read_text().splitlines()]
    rows += [{"text": "The whale and the shark came.", "label": "weather"}]
    rows += [{"text": "Nobody knows.", "label": label} for label in (None, -1)]
    labelled = folder / "labelled.jsonl"
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return texts, labelled


def test_a_newcomers_hour(tmp_path: Path, run: Run) -> None:
    texts, labelled = fill(tmp_path)
    own = [
        "train",
        "--config=gpt:smoke",
        "--workdir=run",
        "--config.data.name=text",
        f"--config.data.path={texts}",
        *TINY,
    ]

    # Their texts: what is no text of theirs is not read, and what is left out is said.
    endless = [*own, "--config.training.num_steps=1000000"]
    process = start(*endless, cwd=tmp_path)
    workdir = tmp_path / "run"
    while not any(line["step"] >= 25 for line in read_metrics(workdir)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)

    # A second start beside the first.
    _, said = run(*endless, cwd=tmp_path, code=2)
    assert str(process.pid) in said and os.uname().nodename in said

    # A stop.
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75 and "run the same command to go on" in said
    assert "1 of 4 files left out: .csv" in said and "1 of 4 files left out: .png" in said
    assert len(record(workdir)["fingerprints"]["data"]["data.path"]) == 2
    stopped = read_metrics(workdir)[-1]["step"]
    assert stopped >= 25

    # A changed file, and back: a copy of equal content is no change.
    first = texts / "first.txt"
    before = first.read_text()
    first.write_text("A paragraph in front of it.\n\n" + before)
    _, said = run(*endless, cwd=tmp_path, code=2)
    assert "first.txt" in said and "--allow-config-change" in said
    assert read_metrics(workdir)[-1]["step"] == stopped
    first.write_text(before)
    _, said = run(*own, f"--config.training.num_steps={stopped + 30}", cwd=tmp_path)
    assert f"at step {stopped}" in said
    steps = [line["step"] for line in read_metrics(workdir) if "train/loss" in line]
    assert steps == list(range(1, stopped + 31))
    _, said = run(*own, "--config.training.num_steps=20", cwd=tmp_path)
    assert "nothing to do" in said and "nan" not in said

    # Their labels: rows without one are counted, the rare class is known, and every number says of how many rows.
    tune = ["train", "--config=finetune/area:gpt,smoke", "--workdir=tuned", "--config.init_from=run@best"]
    tune += ["--config.data.name=json_lines", f"--config.data.path={labelled}", "--config.data.label_field=label"]
    tune += [word for word in TINY if "objective" not in word and "tokenizer" not in word]
    tune += ["--config.task.sequence_length=24", "--config.training.num_steps=60"]
    _, said = run(*tune, cwd=tmp_path)
    tuned = tmp_path / "tuned"
    assert record(tuned)["labels"] == ["animals", "numbers", "weather"]
    assert "no label" in said and "2 of" in said
    judged = [line for line in read_metrics(tuned) if "eval/accuracy" in line]
    assert judged and all(line["eval/examples"] >= 2 for line in judged)

    # Another file, sorted by label, without the rare class: all of its rows, in a file of results of its own.
    other = tmp_path / "other.jsonl"
    pairs = [(f"The {word} and the {word} came.", topic) for topic in sorted(TOPICS) for word in TOPICS[topic].split()]
    other.write_text("".join(json.dumps({"text": text, "label": topic}) + "\n" for text, topic in pairs))
    printed, _ = run("evaluate", "--workdir=tuned", f"--config.data.path={other}", "--json", cwd=tmp_path)
    assert json.loads(printed.splitlines()[-1])["examples"] == len(pairs)
    run("evaluate", "--workdir=tuned", cwd=tmp_path)
    results = [json.loads(path.read_text()) for path in (tuned / "results").glob("evaluate*.json")]
    assert len(results) == 2
    _, said = run("evaluate", "--workdir=tuned", "--split=test", cwd=tmp_path, code=2)
    assert "test" in said

    # The best checkpoint, exported from another folder, and read again.
    away = tmp_path / "away"
    away.mkdir()
    run("export", f"--workdir={tuned}", "--step=best", "out", cwd=away)
    run("import", "out", "--workdir=again", cwd=away)
    assert record(away / "again")["labels"] == ["animals", "numbers", "weather"]
    printed, _ = run("generate", f"--workdir={workdir}", "--step=best", "--max-new-tokens=4", "The </s> cat", cwd=away)
    assert printed.startswith("The </s> cat")
