"""Evaluations on any number of devices and processes give the same numbers and answers, and lay parameters as told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from compiling import xla_flags
from runs import make_run

from jaxformer.checkpoint import NEWEST
from jaxformer.cli.main import main
from jaxformer.devices import make_mesh
from jaxformer.generation import GenerationConfig, TokenRules, decoding_weights, generate
from jaxformer.runs.loading import overridden, stored_run, with_parameters
from jaxformer.tasks.metrics import intervals
from jaxformer.trees import flatten

ROWS = 11  # of which some devices get none in the last batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs that nothing was trained in: `writes`, which translates, and `tells`, which tells classes
    apart; and rows for both."""
    folder = tmp_path_factory.mktemp("meshes")
    words = "file queue lock thread line item text data".split()
    rows = [
        {
            "text": f"Read the {words[n % 8]} and the {words[n * 3 % 7]}.",
            "label": ("data", "files", "concurrency")[n % 3],
            "to": words[n % 5],
        }
        for n in range(ROWS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_run("transformer", folder / "writes", task={"target_kind": "text", "input": "{text}", "metrics": ("bleu",)})
    make_run("bert_label", folder / "tells")
    return folder


def evaluated(run: Path, capsys: Any, *words: str) -> tuple[dict[str, Any], list[str]]:
    """What an evaluation prints, and its answers."""
    capsys.readouterr()
    keys = {"data.name": "json_lines", "data.path": run.parent / "rows.jsonl", "evaluation.batch_size": 4}
    keys["data.label_field"] = "to" if run.name == "writes" else "label"
    assert (
        main(["evaluate", f"--workdir={run}", "--json", *(f"--config.{k}={v}" for k, v in keys.items()), *words]) == 0
    )
    (answers,) = (run / "results").glob("*.answers.jsonl")
    lines = answers.read_text().splitlines()
    shutil.rmtree(run / "results")
    return json.loads(capsys.readouterr().out.splitlines()[-1]), lines


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value == pytest.approx(expected[key], rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        pytest.param("writes", ("data=1", "fsdp=2", "tensor=2"), marks=pytest.mark.slow),
        ("tells", ("data=3",)),
    ],
)
def test_any_devices_judge_alike(
    name: str, keys: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metrics, intervals and answers; the batches of four rows become such as the devices share."""
    beams = ("--config.generation.num_beams=2", "--config.generation.length_alpha=0.6") if name == "writes" else ()
    one, answers = evaluated(folder / name, capsys, "--config.sharding.data=1", *beams)
    assert one["examples"] == len(answers) == ROWS
    found, theirs = evaluated(folder / name, capsys, *(f"--config.sharding.{key}" for key in keys), *beams)
    assert_alike(found, one)
    if name == "writes":
        assert theirs == answers
    else:
        assert [json.loads(line)["label"] for line in theirs] == [json.loads(line)["label"] for line in answers]


def test_a_run_from_other_devices_is_judged_on_those_at_hand(folder: Path, tmp_path: Path, capsys: Any) -> None:
    run = shutil.copytree(folder, tmp_path / "moved") / "tells"
    one, _ = evaluated(run, capsys, "--config.sharding.data=1")
    record = json.loads((run / "config.json").read_text())
    record["config"]["sharding"] |= {"data": 1, "fsdp": 16}
    (run / "config.json").write_text(json.dumps(record))
    assert_alike(evaluated(run, capsys)[0], one)
    assert main(["evaluate", f"--workdir={run}", "--config.sharding.fsdp=16"]) == 2
    assert "need 16 devices" in capsys.readouterr().err


@pytest.mark.slow
def test_parameters_lie_as_they_are_told(folder: Path) -> None:
    """No device has a whole array that is split, in the weights that decoding reads either; what is drawn for a row is
    the same wherever it is drawn, and rows that do not divide are filled up."""
    stored = stored_run(folder / "writes")
    config = overridden(stored.config, ["sharding.data=1", "sharding.fsdp=2", "sharding.tensor=2"])
    mesh = make_mesh(config.sharding)
    run = with_parameters(stored._replace(config=config), folder / "writes", NEWEST, mesh)
    weights = decoding_weights(run.model, run.params)
    for tree, path in ((run.params, "decoder/layers/feed_forward/input/kernel"), (run.params, "embedding/tokens")):
        leaf = flatten(tree)[path]
        assert leaf.addressable_shards[0].data.size < leaf.size, path
    kernels = [leaf for leaf in jax.tree.leaves(weights) if leaf.ndim >= 2 and leaf.size > 256]
    assert kernels and all(leaf.addressable_shards[0].data.size < leaf.size for leaf in kernels)
    alone = with_parameters(stored, folder / "writes", NEWEST)
    prompts = [np.arange(3, 4 + n) for n in range(1, 6)]
    settings = GenerationConfig(max_new_tokens=6, temperature=0.8, num_answers=2)
    expected = generate(alone.model, decoding_weights(alone.model, alone.params), prompts, settings, TokenRules(1))
    found = generate(run.model, weights, prompts, settings, TokenRules(1))
    assert [[list(one.ids) for one in each] for each in found] == [[list(one.ids) for one in each] for each in expected]
    assert len(found) == 5 and all(len(each) == 2 for each in found)


@pytest.mark.slow
# What a classifier says is gathered as what a model writes is; devices of one process judge it every day.
@pytest.mark.parametrize("name", ["writes", pytest.param("tells", marks=pytest.mark.full)])
def test_two_processes_judge_as_one_does(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the launcher; the first one alone writes and prints."""
    monkeypatch.setattr("jaxformer.evaluation.held_out.intervals", intervals)  # of as many resamples as theirs
    run = shutil.copytree(folder, tmp_path / name) / name
    field = "to" if name == "writes" else "label"
    keys = ["data.name=json_lines", f"data.path={run.parent}/rows.jsonl", f"data.label_field={field}"]
    command = ["evaluate", f"--workdir={run}", "--json", *(f"--config.{key}" for key in keys)]
    one, answers = evaluated(run, capsys, "--config.sharding.data=1")
    words = [sys.executable, "-m", "jaxformer", "launch", "local", "--processes=2", "--", *command]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stderr.splitlines() if "] {" in line]  # where a launcher shows its workers
    assert len(printed) == 1 and printed[0].startswith("[0] {"), done.stderr
    assert_alike(json.loads(printed[0].removeprefix("[0] ")), one)
    (file,) = (run / "results").glob("*.answers.jsonl")
    theirs = file.read_text().splitlines()
    assert len(theirs) == len(answers) and (name == "tells" or theirs == answers)
