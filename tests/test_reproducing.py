"""Reproductions of tables: what is read, what is trained in which order, what is kept; a result put to the test."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compiling import xla_flags
from sweeps import overrides
from training import logged, make_corpus

from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.report import read_sweep
from jaxformer.studies import Reproduction, check_result, planned, read_table, reproduce

TABLE = '''
"""A table for tests."""

DATA = KEYS | {"data.path": "{data}/documents.txt"}

def get_table(scale: str) -> dict:
    return {
        "question": "Does a second layer help?",
        "paper": "Nobody (2026)",
        "place": "Table 1, page 1",
        "base": "one layer",
        "seeds": 2,
        "stages": {
            "first": {"config": "gpt:smoke", "set": DATA},
            "second": {"config": "gpt:smoke", "set": DATA | {"init_from": "@first"}},
            "other": {"config": "gpt:smoke", "set": KEYS | {"data.path": "{data}/nowhere.txt"}},
        },
        "columns": {
            "loss": {"stage": "second", "metric": "eval/loss", "mode": "min"},
            "percent": {"stage": "first", "metric": "eval/loss", "mode": "min", "scale": 100, "paper": "loss"},
            "elsewhere": {"stage": "other", "metric": "eval/loss", "mode": "min"},
            "size": {"measure": "parameters", "stage": "second", "mode": "min"},
        },
        "rows": {
            "one layer": {"paper": {"loss": 4.0}},
            "two layers": {"paper": {"loss": 3.9}, "set": {"first": TWO, "second": TWO, "other": TWO}},
            "too wide": {"paper": {"loss": 1.0}, "set": {"first": {"training.batch_size": -1}}},
            "LSTM": {"paper": {"loss": 5.0}, "not_provided": "there is none"},
        },
        "notes": ["Made up."],
    }
'''
TWO = {"model.num_layers": 2}


def write_table(folder: Path, text: str = TABLE, **keys: Any) -> str:
    """Write a table whose runs take seconds, and return its spec."""
    settings = {"training.num_steps": 6, "training.eval_every": 0, "checkpoint.every": 0, "model.num_layers": 1} | keys
    words = dict(word.split("=", 1) for word in overrides(folder, **settings))
    del words["data.path"]
    path = folder / "layers.py"
    path.write_text(f"KEYS = {words!r}\nTWO = {TWO!r}\n{text}")
    return str(path)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def asked(corpus: Path) -> Reproduction:
    return Reproduction(table=write_table(corpus), data=str(corpus))


@pytest.fixture(scope="module")
def finished(asked: Reproduction, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("reproductions") / "layers"
    return folder, reproduce(asked, folder, quiet=True)


def mtimes(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("stages/*/*/trials/*/metrics.jsonl")}


def test_every_row_is_trained_with_every_seed_and_starts_from_its_own(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, found = finished
    for row in ("one layer", "two layers"):
        assert found["rows"][row]["state"] == "done"
        for index, seed in enumerate((0, 1)):
            first, second = (
                folder / "stages" / stage / str(seed) / "trials" / found["trials"][stage][row][index]
                for stage in ("first", "second")
            )
            config = json.loads((second / "config.json").read_text())["config"]
            assert config["seed"] == seed and Path(config["init_from"]) == first
            assert config["model"]["num_layers"] == {"one layer": 1, "two layers": 2}[row]
            assert found["rows"][row]["values"]["loss"][index] == logged(second)[-1]["eval/loss"]
            assert found["rows"][row]["values"]["percent"][index] == 100 * logged(first)[-1]["eval/loss"]
    sizes = {row: found["rows"][row]["values"]["size"][0] for row in ("one layer", "two layers")}
    assert sizes["two layers"] > sizes["one layer"] > 0
    # Runs from which others start keep their checkpoints, and those alone.
    assert len(list(folder.glob("stages/first/*/trials/*/checkpoints"))) == 4
    assert not list(folder.glob("stages/second/*/trials/*/checkpoints"))


def test_rows_that_cannot_be_trained_stand_in_the_table_with_the_reason(finished: tuple[Path, dict[str, Any]]) -> None:
    _, found = finished
    rows = found["rows"]
    assert list(rows) == ["one layer", "two layers", "too wide", "LSTM"]
    assert rows["LSTM"]["state"] == "not provided" and rows["LSTM"]["reason"] == "there is none"
    assert rows["too wide"]["state"] == "cannot run" and "batch_size" in rows["too wide"]["reason"]
    assert rows["one layer"]["values"]["elsewhere"] == [None, None]
    assert "nowhere.txt" in rows["one layer"]["reason"]


def test_a_second_start_trains_nothing_and_more_seeds_train_the_rest(
    asked: Reproduction, finished: tuple[Path, dict[str, Any]]
) -> None:
    folder, found = finished
    before = mtimes(folder)
    again = reproduce(asked, folder, quiet=True)
    assert again["rows"] == found["rows"] and mtimes(folder) == before


def test_another_table_is_not_mixed_in(corpus: Path, tmp_path: Path, finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    text = Path(write_table(corpus)).read_text().replace("'training.num_steps': '6'", "'training.num_steps': '7'")
    (tmp_path / "layers.py").write_text(text)
    changed = Reproduction(table=str(tmp_path / "layers.py"), data=str(corpus))
    with pytest.raises(UserError, match="holds another table.*num_steps.*--allow-config-change"):
        reproduce(changed, folder, quiet=True)


def test_a_result_that_is_true_passes_and_a_falsified_one_does_not(
    corpus: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, found = finished
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(found))
    checked = check_result(path, data=str(corpus), quiet=True)
    assert checked["same_trials"]
    for one in checked["columns"].values():
        assert one["found"] == one["stated"]
    row, seed = checked["row"], checked["seed"]
    for name in ("loss", "percent"):
        false = json.loads(json.dumps(found))
        false["rows"][row]["values"][name] = [value * 0.8 for value in found["rows"][row]["values"][name]]
        path.write_text(json.dumps(false))
        with pytest.raises(UserError, match=rf"'{row}' with seed {seed} does not come out as stated: {name} is stated"):
            check_result(path, row=row, seed=seed, data=str(corpus), quiet=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda result: result["rows"]["two layers"]["paper"].update(loss=3.0), "states 3.0 as the paper's loss.*3.9"),
        (lambda result: result["rows"].pop("LSTM"), "'LSTM'.*is not there"),
        (lambda result: result["rows"].update(more=result["rows"]["one layer"]), "has no row 'more'"),
        (lambda result: result["rows"]["one layer"]["values"]["loss"].pop(), "1 values of loss for 2 seeds"),
        (lambda result: result.update(kind="sweep"), "holds no reproduction"),
    ],
)
def test_a_file_that_does_not_agree_with_its_table_is_refused_before_training(
    change: Callable[[dict[str, Any]], object],
    said: str,
    corpus: Path,
    finished: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    result = json.loads(json.dumps(finished[1]))
    change(result)
    (tmp_path / "layers.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=said):
        check_result(tmp_path / "layers.json", data=str(corpus), folder=tmp_path / "again", quiet=True)
    assert not (tmp_path / "again").exists()


def test_what_is_wrong_with_a_table_is_said(corpus: Path, tmp_path: Path) -> None:
    text = Path(write_table(corpus)).read_text()
    for old, new, said in (
        ('"base": "one layer"', '"base": "one laier"', "the base 'one laier' is no row.*one layer"),
        ('"@first"', '"@frist"', "'@frist' in second.*first"),
        ('"mode": "min", "scale"', '"mode": "least", "scale"', "the column percent needs a 'mode'"),
        ('"stage": "other"', '"stage": "others"', "the column elsewhere names no stage"),
        ('"notes"', '"note"', "the table has no 'note'.*notes"),
        ('{"first": TWO, ', '{"frist": TWO, ', "the row two layers changes 'frist'.*first"),
        ('"question": "Does a second layer help?",', "", "the table has no 'question'"),
    ):
        assert old in text
        (tmp_path / "wrong.py").write_text(text.replace(old, new))
        with pytest.raises(UserError, match=said):
            read_table(str(tmp_path / "wrong.py"), "smoke")


def test_what_cannot_be_asked_is_refused(asked: Reproduction, corpus: Path) -> None:
    with pytest.raises(UserError, match="--data: layers at smoke reads documents.txt, nowhere.txt"):
        planned(Reproduction(table=asked.table))
    with pytest.raises(UserError, match="--rows: 'LSTM' is none that layers trains at smoke .there is none."):
        planned(Reproduction(table=asked.table, data=str(corpus), rows=("LSTM",)))
    with pytest.raises(UserError, match="nothing can be trained: first: .*documents.txt"):
        planned(Reproduction(table=asked.table, data=str(corpus / "empty"), rows=("one layer",)))
    with pytest.raises(UserError, match="no table 'bert_tabl5'.*bert_table5"):
        read_table("bert_tabl5", "smoke")
    with pytest.raises(UserError, match="--data: bert_table5 at smoke reads no folder"):
        planned(Reproduction(table="bert_table5", data=str(corpus)))


def test_a_dry_run_says_every_run_and_its_cost_and_writes_nothing(
    asked: Reproduction,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", asked.table, f"--data={corpus}", "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "3 rows, 2 seeds, 8 runs" in said and "FLOPs" in said and "not trained: too wide" in said
    assert "--config.init_from=@first" in said and said.count("jaxformer train --config=gpt:smoke") == 4
    assert main([*words, "--place=slurm --partition=long --time=10:00:00"]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --partition=long" in said and "reproduce" in said and "--study=" in said
    assert not list(tmp_path.glob("studies*"))


@pytest.mark.slow
def test_a_killed_reproduction_goes_on_as_an_unbroken_one(
    asked: Reproduction, corpus: Path, finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """SIGKILL at moments that fall into both stages; in the end every number is that of the reproduction before."""
    command = [
        sys.executable,
        "-m",
        "jaxformer",
        "reproduce",
        asked.table,
        f"--data={corpus}",
        f"--study={tmp_path / 'layers'}",
    ]
    environment = {**os.environ, "XLA_FLAGS": xla_flags(8)}
    kills = 0
    for wanted in (1, 3, 6):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 300
        while process.poll() is None and len(mtimes(tmp_path / "layers")) < wanted and time.monotonic() < until:
            time.sleep(0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert kills >= 2
    _, expected = finished
    result = json.loads((tmp_path / "layers" / "report" / "layers.json").read_text())
    for row in ("one layer", "two layers"):
        assert result["rows"][row]["values"] == expected["rows"][row]["values"]
        assert result["rows"][row]["state"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert_table5", "t5_table6_7"])
def test_the_smoke_scale_of_a_table_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", name, f"--study={tmp_path / name}", "--seeds=1"]) == 0
    said = capsys.readouterr().out
    table = read_table(name, "smoke")
    result = json.loads((tmp_path / name / "report" / f"{name}.json").read_text())
    assert list(result["rows"]) == list(table.rows)
    for row in table.runs:
        assert result["rows"][row]["state"] == "done", result["rows"][row]["reason"]
        assert row in said
    for file in ("report.html", f"{name}.md", f"{name}.png"):
        assert (tmp_path / name / "report" / file).stat().st_size > 1000
    for study in (tmp_path / name / "stages").glob("*/*"):
        assert {trial.state for trial in read_sweep(study).trials} == {"done"}


@pytest.mark.slow
def test_the_example_of_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "reproducing.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(example.splitlines()) <= 35
    (tmp_path / "width.py").write_text(example)
    found = reproduce(Reproduction(table=str(tmp_path / "width.py"), seeds=(0,)), tmp_path / "study", quiet=True)
    assert {name: row["state"] for name, row in found["rows"].items()} == {
        "d_ff 128": "done", "d_ff 512": "done", "LSTM": "not provided",
    }  # fmt: skip
    assert "Nobody (2026)" in (tmp_path / "study" / "report" / "width.md").read_text()
