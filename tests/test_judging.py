"""What evaluations read and say: the rows of the run's own splits, all rows of a file of one's own, and how many."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from training import SIZES, arguments

from jaxformer.cli.main import main
from jaxformer.data.files import JSONLines
from jaxformer.report import read_run, summary_rows, write_report
from jaxformer.runs.judged_data import _was_read
from jaxformer.storage import read_metrics

TINY: dict[str, Any] = {f"model.{name}": size for name, size in (SIZES | {"num_layers": 1}).items()} | {
    "data.name": "json_lines", "data.label_field": "label", "task.sequence_length": 16, "tokenizer.vocab_size": 300,
    "optimizer.schedule": "constant", "optimizer.warmup_steps": 0, "training.num_steps": 1, "training.batch_size": 8,
    "evaluation.max_examples": 8, "footprint.enabled": False, "sharding.data": 1,
}  # fmt: skip


def write(path: Path, labels: list[Any]) -> Path:
    rows = ({"text": f"Text {number} of many, it is {label}.", "label": label} for number, label in enumerate(labels))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def training(workdir: Path, data: Path, **keys: Any) -> list[str]:
    return arguments("train", "finetune/area:bert,smoke", workdir, TINY | {"data.path": data} | keys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a run that has learnt from rows.jsonl, 30 of whose 100 rows have no label, with files of its own to
    validate and to test on; and what it said."""
    folder = tmp_path_factory.mktemp("trained")
    write(folder / "rows.jsonl", [10, 9, None, -1, float("nan"), 10, 9, 10, 9, 10] * 10)
    keys = {"data.validation_path": write(folder / "validation.jsonl", [9] * 10 + [10] * 9 + [11] * 5)}
    keys["data.test_path"] = write(folder / "test.jsonl", [9, 10, None, 9, 10])
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("jaxformer.runs.progress.Display.note", lambda self, text: lines.append(str(text)))
        assert main(training(folder / "run", folder / "rows.jsonl", **keys)) == 0
    return folder, "\n".join(lines)


@pytest.fixture
def run(trained: tuple[Path, str], tmp_path: Path) -> Path:
    return shutil.copytree(trained[0] / "run", tmp_path / "run")


def evaluated(run: Path, capsys: Any, *words: str) -> dict[str, float]:
    capsys.readouterr()
    assert main(["evaluate", f"--workdir={run}", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def results(run: Path) -> dict[str, Any]:
    return {file.name: json.loads(file.read_text()) for file in (run / "results").glob("*.json")}


def test_training_says_how_many_rows_there_are_and_are_judged(trained: tuple[Path, str], tmp_path: Path) -> None:
    folder, said = trained
    assert "30 of 100 rows left out: no label" in said
    assert "70 rows of data to train on, 24 held out (validation)" in said
    assert "no training row has, so nothing teaches them: 11" in said and "eval/examples 8" in said
    assert [line["eval/examples"] for line in read_metrics(folder / "run") if "eval/loss" in line] == [8]
    assert json.loads((folder / "run" / "config.json").read_text())["labels"] == ["9", "10", "11"]
    (row,) = summary_rows([read_run(folder / "run")])
    assert row["eval_examples"] == 8
    assert "Rows judged" in write_report([folder / "run"], tmp_path).read_text()


def test_evaluate_takes_all_rows_unless_it_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluated(run, capsys)
    assert found["examples"] == 24
    lines = (run / "results" / "evaluate-validation.answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert [answer["index"] for answer in answers] == list(range(24))
    assert [answer["truth"] for answer in answers] == [0] * 10 + [1] * 9 + [2] * 5  # the rows 9, 10 and 11, in order
    right = [("9", "10", "11")[answer["truth"]] == answer["label"] for answer in answers]
    assert sum(right) / 24 == pytest.approx(found["accuracy"])
    assert evaluated(run, capsys, "--split=test")["examples"] == 4
    assert evaluated(run, capsys, "--split=train")["examples"] == 70
    found = results(run)
    assert set(found) == {f"evaluate-{split}.json" for split in ("validation", "test", "train")}
    for split, rows in (("validation", 24), ("test", 4), ("train", 70)):
        result = found[f"evaluate-{split}.json"]
        (data,) = result["data"]
        assert data["rows"] == rows == result["metrics"]["examples"] and len(data["fingerprint"]) == 16
        assert Path(data["data"]).name == ("rows.jsonl" if split == "train" else f"{split}.jsonl")
    assert evaluated(run, capsys, "--config.evaluation.max_examples=5")["examples"] == 5


def test_a_file_of_ones_own_is_judged_whole_in_a_file_of_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = write(tmp_path / "one.jsonl", [9, None, 9]), write(tmp_path / "two.jsonl", [11] * 20 + [10] * 20)
    assert evaluated(run, capsys, f"--config.data.path={one}")["examples"] == 2  # of a class alone, too
    assert evaluated(run, capsys, f"--config.data.path={two}")["examples"] == 40
    assert evaluated(run, capsys)["examples"] == 24
    write(one, [9, 10, 11, 11])
    whole = evaluated(run, capsys, f"--config.data.path={one}")
    found = results(run)
    assert len(found) == 4 and sum(name.startswith("evaluate-validation-one-") for name in found) == 2
    assert sorted(result["metrics"]["examples"] for result in found.values()) == [2, 4, 24, 40]
    # The classes are the run's: the same rows give the same numbers whatever others the file has.
    name = next(name for name, result in found.items() if result["metrics"]["examples"] == 4)
    intervals = {f"{metric}_interval": bounds for metric, bounds in found[name]["intervals"].items()}
    assert found[name]["metrics"] | intervals == whole and set(intervals) == {"accuracy_interval", "f1_interval"}
    assert found[name]["data"][0]["data"] == str(one)
    page = write_report([run], tmp_path / "page").read_text()
    assert f"{one} (4 rows, fingerprint {found[name]['data'][0]['fingerprint']})" in page and "Examples 40" in page


def test_the_runs_own_file_is_its_own_wherever_it_lies(
    run: Path, trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copy(trained[0] / "rows.jsonl", tmp_path / "copied.jsonl")
    for path in (trained[0] / "rows.jsonl", copied):
        assert evaluated(run, capsys, f"--config.data.path={path}")["examples"] == 24
    assert set(results(run)) == {"evaluate-validation.json"}


def test_splits_may_be_named_for_an_evaluation(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write(tmp_path / "other.jsonl", [9, 10, 11])
    assert evaluated(run, capsys, f"--config.data.test_path={other}", "--split=test")["examples"] == 3
    assert evaluated(run, capsys, f"--config.data.validation_path={other}")["examples"] == 3
    assert all("-other-" in name for name in results(run)) and len(results(run)) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split=test", "--config.data.test_path="], "no test split; there are train, validation; name one with"),
        (["--split=test", "--config.data.path=OTHER"], "all rows are judged; leave --split out"),
        (["--config.data.path=OTHER"], "the labels 12 are not among those that the run learnt: 9, 10, 11"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    words: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other.jsonl", [9, 12, 11])
    words = [word.replace("OTHER", str(other)) for word in words]
    assert main(["evaluate", f"--workdir={run}", *words]) == 2
    assert said in capsys.readouterr().err and not (run / "results").exists()


@pytest.mark.parametrize(
    ("labels", "keys", "said"),
    [
        ([7] * 30, {}, "all rows that have a label have the same, '7'"),
        ([1, None, -1, 1], {}, "null, NaN, -1 and empty text count as no label"),
        ([None, -1], {}, "no row has a label"),
        ([0.1, 1.5, 4.0] * 9, {}, "scores"),
        ([1, "1"] * 9, {}, "mixed"),
        ([1, 2] * 9, {"evaluation.split": "test"}, "no test split"),
    ],
)
def test_data_that_cannot_be_learnt_is_refused(
    labels: list[Any], keys: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(training(tmp_path / "run", write(tmp_path / "rows.jsonl", labels), **keys)) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run" / "config.json").exists()


def test_a_run_from_before_keeps_the_numbers_of_its_labels(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole numbers were sorted as text: 10, 11, 9."""
    now = evaluated(run, capsys)
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(record | {"labels": ["10", "11", "9"]}))
    then = evaluated(run, capsys)
    # Its classifier's rows now mean other classes: the loss differs, and the rows are the same.
    assert then["examples"] == now["examples"] and then["loss"] != now["loss"]


def test_many_files_of_the_runs_own_are_known_by_their_one_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxformer.data.files._LISTED", 1)
    before = tmp_path / "before"
    before.mkdir()
    for name in "ab":
        write(before / f"{name}.jsonl", [9, 10])
    own = JSONLines(path=str(before))
    record = {"fingerprints": {"data": {"data.path": own.contents()["path"]}}}
    assert list(own.contents()["path"]) == ["2 files"]
    moved = JSONLines(path=str(before.rename(tmp_path / "now")))
    assert _was_read(moved, [own], record)
    write(tmp_path / "now" / "b.jsonl", [9, 9])
    assert not _was_read(moved, [own], record)
