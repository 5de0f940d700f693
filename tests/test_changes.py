"""Nothing changes under a run without a word: its data, labels, tokenizer, bases, paths, rates, and its own record."""

import json
import math
import os
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import make_run
from training import SIZES, arguments

import jaxformer
from jaxformer import config as configs
from jaxformer.checkpoint import content_of
from jaxformer.checkpoint.digest import best_step, read_digest
from jaxformer.cli.main import main
from jaxformer.data.files import JSONLines, Text
from jaxformer.data.records import Source
from jaxformer.data.sources import TFDS, StdlibDocs
from jaxformer.errors import UserError
from jaxformer.report import read_run, write_report
from jaxformer.runs import evaluate_run, fingerprints
from jaxformer.runs.learner import Learner
from jaxformer.runs.log import MetricsLog
from jaxformer.runs.paths import anchored, same_target, where_recorded
from jaxformer.runs.record import check_resumable, other_rates
from jaxformer.storage import read_metrics, read_record, write_json

ROWS = 60
TINY = {f"model.{name}": size for name, size in (SIZES | {"num_layers": 1}).items()} | {
    "training.batch_size": 8, "training.eval_every": 0, "training.log_every": 1, "checkpoint.every": 0,
    "footprint.enabled": False, "sharding.data": 1, "optimizer.warmup_steps": 0, "model.dropout": 0.0,
}  # fmt: skip
TUNED = "finetune/area:bert,smoke"


def write_rows(path: Path, labels: tuple[str, ...] = ("cat", "dog"), lead: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": f"This one tells of number {n}.", "label": labels[n % len(labels)]} for n in range(-lead, ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tuning(workdir: Path, data: Path | str, **keys: Any) -> list[str]:
    own = {"data.name": "json_lines", "data.path": data, "data.label_field": "label", "task.sequence_length": 16,
           "optimizer.schedule": "constant", "training.num_steps": 1, "tokenizer.vocab_size": 300}  # fmt: skip
    return arguments("train", TUNED, workdir, {**TINY, **own, **keys})


def pretraining(workdir: Path, **keys: Any) -> list[str]:
    own = {"objective.sequence_length": 16, "training.num_steps": 2, "tokenizer.vocab_size": 300}
    return arguments("train", "gpt:smoke", workdir, {**TINY, **own, **keys})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a labelled file, rows.jsonl, and a run that has learnt from it, one step long."""
    folder = tmp_path_factory.mktemp("tuned")
    assert main(tuning(folder / "run", write_rows(folder / "rows.jsonl"))) == 0
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two corpora, a/ and b.txt, and a run that has learnt from both, two steps long, with a decay."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "a").mkdir()
    for name in ("a/1.txt", "a/2.txt", "b.txt"):
        (folder / name).write_text("\n\n".join(f"Line {n} of {name} is about {n * 7} things." for n in range(60)))
    members = [{"name": "text", "path": str(folder / name)} for name in ("a", "b.txt")]
    assert main(pretraining(folder / "run", **{"data.name": "mixture", "data.members": members})) == 0
    return folder


@pytest.fixture
def own_tuned(tuned: Path, tmp_path: Path) -> Path:
    """A copy of `tuned`; the data of its run lie in the original."""
    return shutil.copytree(tuned, tmp_path / "copy")


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """What was shown since the last call, on the terminal or as a warning, spaces as one."""

    def get() -> str:
        text = capsys.readouterr().err + caplog.text
        caplog.clear()
        return " ".join(text.split())

    get()
    yield get


# The content of data, wherever it lies.


def test_content_names_a_file_not_its_path_or_times(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "one" / "rows.jsonl")
    source = JSONLines(path=str(path))
    first, kept = source.fingerprint("train"), source.contents()
    os.utime(path, ns=(1, 1))
    (tmp_path / "link.jsonl").symlink_to(path)
    moved = shutil.copy(path, tmp_path / "moved.jsonl")
    for other in (path, tmp_path / "link.jsonl", moved, path.parent, f"{tmp_path}/o*/*.jsonl"):
        assert JSONLines(path=str(other)).fingerprint("train") == first
        assert list(JSONLines(path=str(other)).contents()["path"].values()) == list(kept["path"].values())
    write_rows(path, labels=("cow", "dog"))  # of the same size
    os.utime(path, ns=(1, 1))
    assert JSONLines(path=str(path)).fingerprint("train") != first


def test_files_count_in_their_order(tmp_path: Path) -> None:
    texts = {"a.txt": "one", "b.txt": "two"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    before = Text(path=str(tmp_path))
    kept, first = before.contents(), before.fingerprint("train")
    assert list(kept["path"]) == ["a.txt", "b.txt"]
    (tmp_path / "a.txt").rename(tmp_path / "c.txt")
    assert before.fingerprint("train") != first and list(before.contents()["path"]) == ["b.txt", "c.txt"]
    (tmp_path / "b.txt").rename(tmp_path / "d.txt")  # other names, the old order
    assert before.fingerprint("train") == first and fingerprints.differences({"data": kept}, {"data": kept}) == []


@pytest.mark.parametrize(
    ("before", "now", "line"),
    [
        ({"a": "1", "b": "2"}, {"a": "3", "b": "2"}, "data.path: a changed"),
        ({"a": "1", "b": "2"}, {"b": "2"}, "data.path: a gone"),
        ({"a": "1"}, {"a": "1", "c": "4"}, "data.path: c new"),
        ({"a": "1", "b": "2"}, {"a": "3", "d": "4"}, "data.path: a changed; b gone; d new"),
        ({"a": "1", "b": "2"}, {"a": "2", "b": "1"}, "data.path: a, b changed"),
        ({"a": "1", "b": "2"}, {"b": "2", "c": "1"}, "data.path: the same files in another order, or not as often"),
        ({"a": "1"}, {"z": "1"}, None),
        ({str(n): str(n) for n in range(7)}, {}, "data.path: 0, 1, 2, 3, 4 and 2 more gone"),
        ({"d/1 train": "5 rows"}, {"d/1 train": "6 rows"}, "data.path: d/1 train: 5 rows -> 6 rows"),
    ],
)
def test_the_files_that_differ_are_named(before: dict[str, str], now: dict[str, str], line: str | None) -> None:
    lines = fingerprints.differences({"data": {"data.path": before}}, {"data": {"data.path": now}})
    assert lines == ([] if line is None else [line])


@pytest.mark.parametrize("source", [StdlibDocs(), TFDS(dataset="reviews", data_dir="/data")])
def test_datasets_are_named_by_version_and_sizes(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def builder(rows: int, name: str = "reviews/1.0.0") -> Any:
        parts = {"train": types.SimpleNamespace(num_examples=rows, num_bytes=900)}
        return types.SimpleNamespace(info=types.SimpleNamespace(full_name=name, splits=parts))

    monkeypatch.setattr(type(source), "_builder", lambda *_: builder(5))
    first = source.fingerprint("train")
    assert list(source.contents().values()) == [{"reviews/1.0.0 train": "5 rows, 900 bytes"}]
    if isinstance(source, TFDS):  # wherever it lies, and however its name is spelt
        elsewhere = TFDS(dataset="reviews:1.0.0", data_dir="/copy")
        assert elsewhere.fingerprint("train") == first and elsewhere.contents() == source.contents()
    for other in (builder(6), builder(5, "reviews/1.0.1")):
        monkeypatch.setattr(type(source), "_builder", lambda *_, other=other: other)
        assert source.fingerprint("train") != first


# Resuming.


def test_a_run_keeps_its_fingerprints(tuned: Path, pretrained: Path) -> None:
    record = read_record(tuned / "run")
    assert list(record["fingerprints"]["data"]["data.path"]) == ["rows.jsonl"]
    assert record["fingerprints"]["tokenizer"] == jaxformer.load(tuned / "run").tokenizer.fingerprint
    assert record["labels"] == ["cat", "dog"]
    assert record["segments"] == [
        {"from_step": 0, "time": record["created"], "command": record["command"], "changed": {}}
    ]
    kept = read_record(pretrained / "run")["fingerprints"]["data"]
    assert {key: list(files) for key, files in kept.items()} == {
        "data.members[0].path": ["1.txt", "2.txt"], "data.members[1].path": ["b.txt"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "lead", "message"),
    [
        (("cat", "dog"), 1, "data.path: rows.jsonl changed)"),  # held-out rows would move into training
        (("zebra", "bee"), 0, "data.path: rows.jsonl changed; labels: cat, dog -> bee, zebra)"),
        (("cod", "dog"), 0, "data.path: rows.jsonl changed; labels: cat, dog -> cod, dog)"),
        (("cat", "dog", "cow"), 0, "data.path: rows.jsonl changed; labels: cat, dog -> cat, cow, dog)"),
    ],
)
def test_changed_data_are_refused_and_nothing_is_touched(
    labels: tuple[str, ...], lead: int, message: str, own_tuned: Path, tmp_path: Path, said: Any
) -> None:
    before = {path: path.read_bytes() for path in own_tuned.rglob("*") if path.is_file()}
    other = write_rows(tmp_path / "rows.jsonl", labels, lead)
    assert main(tuning(own_tuned / "run", other, **{"training.num_steps": 3})) == 2
    text = said()
    assert message in text and "--allow-config-change" in text
    assert {path: path.read_bytes() for path in own_tuned.rglob("*") if path.is_file()} == before


def test_a_change_that_is_allowed_becomes_the_record(own_tuned: Path, tmp_path: Path, said: Any) -> None:
    run, before = own_tuned / "run", read_record(own_tuned / "run")
    other = write_rows(tmp_path / "rows.jsonl", lead=1)
    command = tuning(run, other, **{"training.num_steps": 2, "seed": 1})
    assert main(command) == 2
    assert "seed: 0 -> 1" in said()
    assert main([*command, "--allow-config-change"]) == 0
    assert "changed: data.path: rows.jsonl changed" in said()
    record = read_record(run)
    assert record["config"]["seed"] == 1 and record["config"]["data"]["path"] == str(other)
    assert record["created"] == before["created"]
    first, second = record["segments"]
    assert first == before["segments"][0] and second["from_step"] == 1
    changed = second["changed"]
    assert changed["seed"] == [0, 1] and changed["training.num_steps"] == [1, 2]
    assert changed["data.path"] == [before["config"]["data"]["path"], str(other)]
    assert changed["fingerprints.data.data.path"] == [
        before["fingerprints"]["data"]["data.path"], record["fingerprints"]["data"]["data.path"],
    ]  # fmt: skip
    assert set(changed) == {
        "seed", "training.num_steps", "data.path", "fingerprints.data.data.path"
    }  # fmt: skip
    assert main(command) == 0  # the same command again
    assert read_record(run) == record and "nothing to do" in said()
    evaluate_run(run, "validation")  # reads the newest data: the old ones may go
    write_rows(other)
    with pytest.raises(UserError, match="rows.jsonl changed"):
        evaluate_run(run, "validation")


def test_equal_content_goes_on_wherever_it_lies(own_tuned: Path, tmp_path: Path, said: Any) -> None:
    run, moved = own_tuned / "run", write_rows(tmp_path / "elsewhere" / "renamed.jsonl")
    assert main(tuning(run, moved, **{"training.num_steps": 2})) == 0
    shown = said()
    assert "tokenising" not in shown and "changed" not in shown
    record = read_record(run)
    assert record["config"]["data"]["path"] == str(moved) and len(record["segments"]) == 2
    os.utime(moved, ns=(1, 1))
    assert main(tuning(run, moved, **{"training.num_steps": 3})) == 0
    assert len(read_record(run)["segments"]) == 3 and read_metrics(run)[-1]["step"] == 3


def test_a_members_change_is_named(pretrained: Path, tmp_path: Path, said: Any) -> None:
    folder = shutil.copytree(pretrained, tmp_path / "copy")
    members = [{"name": "text", "path": str(folder / name)} for name in ("a", "b.txt")]
    keys = {"data.name": "mixture", "data.members": members, "training.num_steps": 2}
    with (folder / "a" / "2.txt").open("a") as file:
        file.write("\n\nOne more.")
    assert main(pretraining(folder / "run", **keys)) == 2
    assert "(data.members[0].path: 2.txt changed)" in said()
    members[0]["document"] = "line"
    assert main(pretraining(folder / "run", **keys)) == 2
    assert "data.members:" in said()


def test_a_run_from_before_goes_on_with_a_word_and_keeps_fingerprints_from_then_on(
    own_tuned: Path, tuned: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = own_tuned / "run", own_tuned / "run" / "config.json"
    monkeypatch.chdir(tuned)
    record = read_record(run)
    old = {key: value for key, value in record.items() if key not in ("fingerprints", "segments")}
    old["config"]["data"]["path"] = "rows.jsonl"  # as it was spelt
    write_json(path, old)
    evaluate_run(run, "validation")
    assert "keeps no fingerprints" in said()
    assert main(tuning(run, tuned / "rows.jsonl", **{"training.num_steps": 2})) == 0
    assert "keeps no fingerprints" in said()
    now = read_record(run)
    assert now["fingerprints"] == record["fingerprints"]
    assert [list(segment["changed"]) for segment in now["segments"]] == [[], ["training.num_steps"]]
    write_json(path, old | {"labels": ["dog", "cat"]})
    assert main(tuning(run, "rows.jsonl", **{"training.num_steps": 3})) == 2
    assert "labels: dog, cat -> cat, dog" in said()


# Tokenizers, teachers, bases.


def permute(run: Path) -> None:
    """Let two tokens change places in a run's tokenizer."""
    state = json.loads((run / "tokenizer.json").read_text())
    vocabulary = state["model"]["vocab"]
    one, other = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (run / "tokenizer.json").write_text(json.dumps(state))


def test_a_permuted_tokenizer_is_refused_by_every_verb(
    pretrained: Path, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(pretrained / "run", tmp_path / "run")
    before = read_record(run)["fingerprints"]["tokenizer"]
    state = json.loads((run / "tokenizer.json").read_text())
    (run / "tokenizer.json").write_text(json.dumps(state))  # written otherwise, the same
    assert main(["generate", f"--workdir={run}", "--max-new-tokens=1", "A"]) == 0
    permute(run)
    members = read_record(run)["config"]["data"]["members"]
    data = {"data.name": "mixture", "data.members": members}
    for words in (
        ["generate", f"--workdir={run}", "--max-new-tokens=1", "A"],
        ["evaluate", f"--workdir={run}"],
        ["export", f"--workdir={run}", str(tmp_path / "out")],
        pretraining(run, **data),
        pretraining(tmp_path / "new", init_from=run, **data),
    ):
        assert main(words) == 2, words
        shown = said()
        assert f"tokenizer: {before} -> " in shown and "--allow-config-change" in shown, words
    with pytest.raises(UserError, match="is not the tokenizer that the run was trained with"):
        jaxformer.load(run)
    assert main(["generate", f"--workdir={run}", "--max-new-tokens=1", "A", "--allow-config-change"]) == 0
    assert jaxformer.load(run, allow_change=True).step == 2


def test_a_tokenizer_file_that_changed_since_is_refused(tmp_path: Path, own_tuned: Path, said: Any) -> None:
    run, rows = own_tuned / "run", own_tuned / "rows.jsonl"
    (own_tuned / "words").mkdir()
    file = shutil.copy(run / "tokenizer.json", own_tuned / "words" / "tokenizer.json")
    record = read_record(run)
    record["config"]["tokenizer"] = {"name": "file", "path": str(file)}
    write_json(run / "config.json", record)
    keys = {"tokenizer.name": "file", "tokenizer.path": file}
    words = [word for word in tuning(run, rows, **keys) if "tokenizer.vocab_size" not in word]
    assert main(words) == 0  # nothing to do
    permute(own_tuned / "words")
    assert main(words) == 2
    assert f"tokenizer.path: {file} is " in said()


def test_another_teacher_is_noticed_and_a_base_is_needed_no_more(tmp_path: Path) -> None:
    teacher = make_run("gpt2", tmp_path / "teacher")
    assert read_record(teacher)["config"]["tokenizer"]["path"] == str(Path.cwd() / "tokenizer.json")  # it was relative
    config = configs.load(
        "gpt:smoke", [f"init_from={teacher}", f"data.path={write_rows(tmp_path / 'x.txt')}", "data.name=text"]
    )
    tokenizer = jaxformer.load(teacher).tokenizer
    first = fingerprints.taken(config, tokenizer)
    assert first["init_from"].startswith("step 7, ")
    shutil.copytree(teacher, tmp_path / "copy")
    copied = configs.load(
        "gpt:smoke", [f"init_from={tmp_path / 'copy'}", f"data.path={tmp_path / 'x.txt'}", "data.name=text"]
    )
    assert fingerprints.differences(first, fingerprints.taken(copied, tokenizer)) == []
    shutil.rmtree(teacher)
    assert fingerprints.taken(config, tokenizer, first) == first
    now = first | {"distillation.teacher": "step 9, b"}
    lines = fingerprints.differences(first | {"distillation.teacher": "step 7, a"}, now)
    assert lines == ["distillation.teacher: step 7, a -> step 9, b"]


# Paths.


def test_paths_are_kept_from_the_root_and_compared_by_what_they_lead_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "texts").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    one = str(home / "texts")
    for spelling in ("texts", "./texts/", "~/texts", f"{tmp_path}/link/texts", "../home/texts", one + "/"):
        assert same_target(spelling, one), spelling
    assert same_target("texts/*.txt", f"{tmp_path}/link/texts/*.txt")
    assert same_target("gs://bucket/run", "gs://bucket/run/") and not same_target("gs://bucket/run", "gs://bucket/ru")
    assert not same_target("texts", "text") and same_target("", "") and not same_target("", ".")
    members = [{"name": "text", "path": "texts"}, {"name": "text", "path": "more/*.txt"}]
    keys = ["data.name=mixture", f"data.members={members}", "init_from=gs://bucket/base"]
    kept = anchored(configs.load("gpt:smoke", keys))
    assert [member["path"] for member in kept.data.members] == [one, f"{home}/more/*.txt"]
    assert kept.init_from == "gs://bucket/base"
    plain = configs.load("gpt:smoke")
    assert anchored(plain) == plain  # no path: nothing to anchor
    student = configs.load("distilbert:smoke", ["tokenizer.name=file", "tokenizer.path=~/t.json"])
    kept = anchored(student)
    assert (kept.distillation.teacher, kept.tokenizer.path) == (f"{home}/runs/bert-smoke", f"{home}/t.json")
    assert student.distillation.teacher == "runs/bert-smoke"  # as the experiment has it


def test_a_relative_path_is_the_recorded_one_where_it_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    write_rows(tmp_path / "here" / "rows.jsonl")
    monkeypatch.chdir(tmp_path / "here")
    config = configs.load("gpt:smoke", ["data.name=json_lines", "data.path=rows.jsonl", "init_from=runs/base"])
    record = anchored(config).to_dict()
    monkeypatch.chdir(tmp_path / "there")
    found = where_recorded(config, record)
    assert found.data.path == str(tmp_path / "here" / "rows.jsonl")
    assert found.init_from == str(tmp_path / "here" / "runs" / "base")
    write_rows(tmp_path / "there" / "rows.jsonl")
    assert where_recorded(config, record).data.path == "rows.jsonl"  # it leads somewhere, which is then compared


def test_a_run_works_from_another_folder(
    tuned: Path, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tuned, tmp_path / "copy")
    monkeypatch.chdir(folder)
    record = read_record(folder / "run")
    record["config"]["data"]["path"] = str(folder / "rows.jsonl")
    write_json(folder / "run" / "config.json", record)
    base = evaluate_run(Path("run"), "validation")
    monkeypatch.chdir(tmp_path)
    assert evaluate_run(Path("copy/run"), "validation") == base
    for data in ("rows.jsonl", "copy/rows.jsonl", "./copy/"):
        check_resumable(folder / "run", configs.load(TUNED, overrides(tuning(folder, data))), False)
    assert main(tuning(folder / "run", "rows.jsonl")) == 0
    assert "nothing to do" in said()


def overrides(words: list[str]) -> list[str]:
    return [word.removeprefix("--config.") for word in words if word.startswith("--config.")]


def test_a_moved_base_is_the_same_base(own_tuned: Path, tmp_path: Path) -> None:
    run, base = own_tuned / "run", make_run("bert_label", tmp_path / "base")
    record = read_record(run)
    record["config"]["init_from"] = str(base)
    record["fingerprints"]["init_from"] = content_of(base)
    write_json(run / "config.json", record)

    def resumable(init_from: Path) -> None:
        words = overrides(tuning(run, record["config"]["data"]["path"], init_from=init_from))
        check_resumable(run, configs.load(TUNED, words), False)

    (tmp_path / "link").symlink_to(base)
    resumable(tmp_path / "link")
    base.rename(tmp_path / "moved")
    resumable(tmp_path / "moved")
    resumable(base)  # gone, and needed no more
    with pytest.raises(UserError, match="init_from: .* -> "):
        resumable(make_run("bert", tmp_path / "other"))


def test_another_file_to_evaluate_is_no_change_of_the_runs_data(own_tuned: Path, tmp_path: Path) -> None:
    run = own_tuned / "run"
    record = read_record(run)
    record["config"]["data"]["path"] = str(own_tuned / "rows.jsonl")
    write_json(run / "config.json", record)
    other = write_rows(tmp_path / "other.jsonl", lead=3)
    evaluate_run(run, "validation", [f"data.path={other}"])
    write_rows(own_tuned / "rows.jsonl", lead=1)
    for keys in ([], ["evaluation.max_examples=8"], [f"data.path={own_tuned}/./rows.jsonl"]):
        with pytest.raises(UserError, match=r"data.path: rows.jsonl changed"):
            evaluate_run(run, "validation", keys)
    evaluate_run(run, "validation", [f"data.path={other}"])
    evaluate_run(run, "validation", allow_change=True)


# Longer and shorter runs.


def long_run(num_steps: int = 10, **keys: Any) -> configs.Config:
    words = [f"training.num_steps={num_steps}", "optimizer.warmup_steps=2", "optimizer.learning_rate=1.0"]
    return configs.load("gpt:smoke", [*words, *(f"optimizer.{key}={value}" for key, value in keys.items())])


@pytest.mark.parametrize(
    ("before", "now", "step", "rates"),
    [
        (long_run(schedule="linear"), long_run(20, schedule="linear"), 10, "of step 11 would be 0.5 instead of 0;"),
        (long_run(schedule="linear"), long_run(8, schedule="linear"), 4, "of step 5 would be 0.5 instead of 0.6;"),
        (long_run(schedule="cosine"), long_run(12, schedule="cosine"), 7, "of step 8 would be 0.5 instead of 0.3087;"),
        (long_run(schedule="linear"), long_run(20, schedule="linear"), 1, "of step 3 would be 0.9 instead of 0.8;"),
        (long_run(schedule="linear"), long_run(20, schedule="linear", decay_steps=10), 10, None),
        (long_run(schedule="linear", decay_steps=40), long_run(20, schedule="linear", decay_steps=40), 10, None),
        (long_run(schedule="linear"), long_run(20, schedule="linear", decay_steps=20), 10, "0.5 instead of 0"),
        (long_run(schedule="linear"), long_run(10, schedule="linear"), 5, None),
        (long_run(schedule="linear"), long_run(8, schedule="linear"), 9, None),  # no step to go
        (long_run(schedule="constant"), long_run(20, schedule="constant"), 10, None),
        (long_run(schedule="inverse_sqrt"), long_run(20, schedule="inverse_sqrt"), 10, None),
        (long_run(schedule="linear", final_fraction=1.0), long_run(20, schedule="linear", final_fraction=1.0), 10,
         None),
    ],
)  # fmt: skip
def test_another_length_shows_both_learning_rates(before: Any, now: Any, step: int, rates: str | None) -> None:
    lines = other_rates(before, now, step)
    assert (lines == []) if rates is None else (len(lines) == 1 and rates in lines[0])
    if rates and rates.endswith(";"):
        assert "optimizer.decay_steps=10 keeps the decay as it was" in lines[0]


def test_a_longer_run_asks_first_and_one_that_has_gone_further_has_nothing_to_do(
    pretrained: Path, tmp_path: Path, said: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(pretrained / "run", tmp_path / "run")
    data = {"data.name": "mixture", "data.members": read_record(run)["config"]["data"]["members"]}
    assert main(pretraining(run, **data, **{"training.num_steps": 3})) == 2
    assert "the learning rate of step 3 would be 0.00025 instead of 0; optimizer.decay_steps=2 keeps" in said()
    kept = {"training.num_steps": 3, "optimizer.decay_steps": 2}
    assert main(pretraining(run, **data, **kept)) == 0
    last = read_metrics(run)
    assert [line["step"] for line in last if "train/loss" in line] == [1, 2, 3]
    assert [line["train/learning_rate"] for line in last if "train/loss" in line][-1] == 0.0
    assert list(read_record(run)["segments"][-1]["changed"]) == ["optimizer.decay_steps", "training.num_steps"]
    record = read_record(run)
    said()
    for steps in (1, 2, 3):
        assert main(pretraining(run, **data, **(kept | {"training.num_steps": steps}))) == 0
        shown = said()
        assert f"nothing to do: {run} is at step 3, training.num_steps is {steps}" in shown
        assert "nan" not in shown and f"train/loss {last[-2]['train/loss']:.4g}" in shown and "eval/loss" in shown
    assert read_metrics(run) == last and read_record(run) == record


# What is not finite.


def strict(text: str) -> Any:
    """Read JSON as others do, who know no NaN."""

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_an_evaluation_that_is_not_finite_is_said_and_never_the_best(
    pretrained: Path, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(pretrained / "run", tmp_path / "run")
    data = {"data.name": "mixture", "data.members": read_record(run)["config"]["data"]["members"]}
    judged = iter({"loss": loss, "accuracy": 1 / abs(loss)} for loss in (math.nan, -math.inf, 2.0))
    monkeypatch.setattr(Learner, "judge", lambda self, params: next(judged))
    keys = {"training.num_steps": 5, "training.eval_every": 1, "checkpoint.every": 1, "checkpoint.keep_last": 0}
    assert main([*pretraining(run, **data, **keys), "--allow-config-change"]) == 0
    shown = said()
    assert "step 3: this evaluation is not finite (eval/loss, eval/accuracy)" in shown
    assert "step 4: this evaluation is not finite (eval/loss)" in shown and "step 5: this" not in shown
    checkpoints = run / "checkpoints"
    for step in ("3", "4"):
        assert strict((checkpoints / step / "digest.json").read_text())["metrics"] == {}
    assert read_digest(checkpoints / "5").metrics == {"eval/loss": 2.0, "eval/accuracy": 0.5}
    for metric, mode in (("eval/loss", "min"), ("eval/loss", "max"), ("eval/accuracy", "min")):
        assert best_step(checkpoints, metric, mode) not in (3, 4), (metric, mode)
    lines = [strict(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"step": 4, "eval/loss": None, "eval/accuracy": 0.0} in lines
    assert read_run(run).series("eval/loss")[0] == [2, 5]
    write_report([run], tmp_path / "page")


def test_logs_and_results_hold_no_numbers_that_json_lacks(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write(1, {"train/loss": 2.0, "eval/loss": math.nan, "eval/perplexity": math.inf})
    log.write(2, {"eval/loss": -math.inf})
    log.close()
    lines = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "train/loss": 2.0, "eval/loss": None, "eval/perplexity": None}
    assert lines[1] == {"step": 2, "eval/loss": None}
    log = MetricsLog(tmp_path, 2)
    assert log.last("eval/loss") == 0.0 and log.newest() == {"train/loss": 2.0} and log.evaluated(2)
    log.close()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "eval/loss": NaN}\n')  # from before
    MetricsLog(tmp_path, 1).close()
    assert strict((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "eval/loss": None}
    write_json(tmp_path / "r.json", {"metrics": {"loss": math.nan, "rows": (1, math.inf)}, "n": 3})
    assert strict((tmp_path / "r.json").read_text()) == {"metrics": {"loss": None, "rows": [1, None]}, "n": 3}


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_wordpiece_from_before_strip_accents_was_a_key_goes_on_as_it_was(lowercase: bool, tmp_path: Path) -> None:
    """Lower case took the accents off then, as BERT's experiments say now."""
    words = [f"tokenizer.lowercase={lowercase}", f"tokenizer.strip_accents={lowercase}"]
    config = configs.load("bert:smoke", words)
    stored = config.to_dict()
    del stored["tokenizer"]["strip_accents"], stored["data"]["sentences"]
    (tmp_path / "config.json").write_text(json.dumps({"name": "bert:smoke", "config": stored, "labels": []}))
    check_resumable(tmp_path, config, False)
    with pytest.raises(UserError, match=f"tokenizer.strip_accents: {lowercase} -> {not lowercase}"):
        check_resumable(
            tmp_path, configs.load("bert:smoke", [words[0], f"tokenizer.strip_accents={not lowercase}"]), False
        )
