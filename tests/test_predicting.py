"""What a fine-tuned model answers: each kind of answer, any batch, files of any kind, and files that go on."""

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs
from runs import LABELS, make_run, params_of

import jaxformer
from jaxformer.checkpoint import save_params
from jaxformer.errors import UserError
from jaxformer.runs import answer_file, answering, predicting
from jaxformer.runs.loading import LoadedRun
from jaxformer.trees import unflatten

BERT = ("bert_base", "wordpiece", {"num_layers": 1})
SPANS = {"max_query_length": 8, "doc_stride": 4, "n_best": 3}
TASKS: dict[str, dict[str, Any]] = {
    "a_pair": {"name": "regression", "text_fields": ("one", "other")},
    "classes": {"name": "multi_label"},
    "choices": {"name": "multiple_choice", "choice_fields": ("a", "b", "c")},
    "tags": {"name": "token_classification"},
    "spans": {"name": "question_answering", **SPANS},
}
WRITES = [
    {"name": "text_to_text", "title": title, "input": f"{title}: {{text}}", "target_kind": kind, "target_length": 4}
    for title, kind in (("sum", "text"), ("squad", "span"))
]
MORE = {name: (*BERT, {"task": {"sequence_length": 32, **task}}) for name, task in TASKS.items()}
MORE["several"] = ("t5_base", "unigram", {"num_heads": 3}, {"task": {"name": "mixture", "members": WRITES}})  # type: ignore[assignment]
TEXTS = [
    f"{verb} the {thing}."
    for verb in "Return Open read Parse print".split()
    for thing in "queue file lock text".split()
]
SMALL = "--config.evaluation.batch_size=2"  # 16 rows are read together
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the run of a case; its newest checkpoint, 8, tells texts apart."""
    made: dict[str, Path] = {}
    runs.CASES.update(MORE)  # type: ignore[arg-type]

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make_run(name, tmp_path_factory.mktemp("predicting") / name, num_layers=1)
            params = unflatten({path: array - np.float32(0.5) for path, array in params_of(made[name]).items()})
            save_params(made[name] / "checkpoints", params, step=8)
        return made[name]

    return get


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.split("\n") if line]


# Answers in Python.


def by_hand(run: LoadedRun, text: str) -> np.ndarray:
    """The probabilities of the classes of one text, read alone."""
    vocabulary = run.tokenizer.vocabulary
    ids = np.array([[vocabulary.id("classify"), *run.tokenizer.encode(text), vocabulary.id("separator")]])
    batch = {"inputs": ids, "positions": np.arange(ids.size)[None], "segment_ids": np.ones_like(ids)}
    return np.asarray(jax.nn.softmax(jax.jit(run.model.apply)(run.params, batch)["label"][0]))


def test_answers_are_the_models_and_come_in_the_order_of_the_texts(folder: Callable[[str], Path]) -> None:
    run = jaxformer.load(folder("bert_label"))
    answers = run.predict(TEXTS, batch_size=4)
    assert len(answers) == len(TEXTS) and {answer["label"] for answer in answers} <= set(LABELS)
    for place in (0, 6):
        wanted = dict(zip(LABELS, by_hand(run, TEXTS[place]).tolist(), strict=True))
        found = answers[place]
        assert found["probabilities"] == pytest.approx(wanted, abs=1e-6)
        assert found["label"] == max(wanted, key=lambda label: wanted[label])
        assert found["probability"] == found["probabilities"][found["label"]]
    assert len({answer["probability"] for answer in answers}) > 5  # or order would not show
    longer = [*TEXTS[:3], "Read every line. " * 8, *TEXTS[3:]]
    mixed = run.predict(longer, batch_size=16)
    for found, answer in zip([*mixed[:3], *mixed[4:]], answers, strict=True):
        assert found["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-6)
    assert run.predict([]) == []


def test_every_kind_of_answer(folder: Callable[[str], Path]) -> None:
    pair = jaxformer.load(folder("a_pair"))
    alike = [{"one": "Read it.", "other": "A file."}, ("Read it.", "A file."), ["Read it.", "A file."]]
    numbers = [answer["number"] for answer in pair.predict(alike)]
    assert isinstance(numbers[0], float) and numbers == pytest.approx([numbers[0]] * 3)
    assert pair.predict(("A file.", "Read it."))[0]["number"] != pytest.approx(numbers[0])
    (found,) = jaxformer.load(folder("classes")).predict("Read it.")
    assert set(found["probabilities"]) == set(LABELS)
    assert found["labels"] == [label for label in LABELS if found["probabilities"][label] >= 0.5]
    given = {"context": "Wait.", "a": "Read it.", "b": "A file.", "c": "The lock."}
    (found,) = jaxformer.load(folder("choices")).predict(given)
    assert found["choice"] == int(np.argmax(found["probabilities"])) and len(found["probabilities"]) == 3
    assert sum(found["probabilities"]) == pytest.approx(1.0) and found["text"] == given["abc"[found["choice"]]]
    running, listed = jaxformer.load(folder("tags")).predict(
        ["Read  the file.", {"text": ["Read", "the", "file", "."]}]
    )
    places = [[0, 4], [6, 9], [10, 14], [14, 15]]
    assert [[word["start"], word["end"]] for word in running["tags"]] == places
    assert [word["word"] for word in listed["tags"]] == ["Read", "the", "file", "."]
    assert {word["tag"] for word in listed["tags"]} <= set(runs.LABELS_OF["tags"])


def test_of_several_tasks_one_is_named(
    folder: Callable[[str], Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def written(model: Any, task: Any, params: Any, batch: Any, *others: Any) -> dict[str, list[str]]:
        asked.append((task.input, batch["encoder_inputs"].shape[1], others[-1].temperature))
        return {"written": ["it is said"] * len(batch["inputs"])}

    monkeypatch.setattr(predicting, "outputs_of", written)
    run = jaxformer.load(folder("several"))
    assert run.predict("Read it.", task="sum") == [{"text": "it is said"}]
    assert run.predict(["Read it."], task="squad") == [{"answer": "it is said"}]
    code, out, _ = cli(
        "predict", f"--workdir={folder('several')}", "--task=sum", "Read it.", "--config.generation.temperature=0.5"
    )
    assert code == 0 and read(out) == [{"index": 0, "text": "it is said"}]
    assert asked == [("sum: {text}", 16, 0.0), ("squad: {text}", 16, 0.0), ("sum: {text}", 16, 0.5)]
    code, _, err = cli("predict", f"--workdir={folder('several')}", "Read it.")
    assert code == 2 and "--task: the run has learnt several; name one of sum, squad" in err


def test_windows_of_a_context_give_one_answer(folder: Callable[[str], Path], tmp_path: Path, cli: Cli) -> None:
    context = " ".join(TEXTS[:12])
    rows = [
        {"id": name, "question": "Read it?", "context": text}
        for name, text in zip("abc", (TEXTS[0], context, TEXTS[1]), strict=True)
    ]
    run = jaxformer.load(folder("spans"))
    answers = run.predict(rows)
    assert len(answers) == 3 and all(len(answer["n_best"]) <= 4 for answer in answers)
    for row, answer in zip(rows, answers, strict=True):
        spans = [one for one in answer["n_best"] if one["text"]]
        assert spans and all(row["context"][one["start"] : one["end"]] == one["text"] for one in spans)
    paragraphs = [{"context": row["context"], "qas": [{"id": row["id"], "question": row["question"]}]} for row in rows]
    source = write(tmp_path / "dev.json", [{"data": [{"title": "t", "paragraphs": paragraphs}]}])
    code, _, err = cli("predict", f"--workdir={folder('spans')}", f"--input={source}", "--format=official",
                       f"--output={tmp_path / 'answers.jsonl'}")  # fmt: skip
    assert code == 0, err
    found = json.loads((tmp_path / "answers.json").read_text())
    assert found == {row["id"]: answer["answer"] for row, answer in zip(rows, answers, strict=True)}


def test_columns_are_read_as_the_runs_own_data_are(folder: Callable[[str], Path], tmp_path: Path, cli: Cli) -> None:
    source = write(tmp_path / "rows.tsv", ["one\tother", '"Read it.\tA file.', "Wait.\tThe lock."])
    words = ["predict", f"--workdir={folder('a_pair')}", f"--input={source}"]
    code, _, err = cli(*words)
    assert code == 2 and f"{source}:2" in err and "data.quoting=none" in err
    code, out, err = cli(*words, "--config.data.name=csv", "--config.data.quoting=none")
    assert code == 0, err
    answers = jaxformer.load(folder("a_pair")).predict([('"Read it.', "A file."), ("Wait.", "The lock.")])
    assert [line["number"] for line in read(out)] == pytest.approx([answer["number"] for answer in answers], abs=1e-6)


def test_inputs_that_do_not_fit_are_named(folder: Callable[[str], Path]) -> None:
    pair = jaxformer.load(folder("a_pair"))
    with pytest.raises(UserError, match=r"^input 1: the task reads one, other; give a dict with them, or their texts"):
        pair.predict([("Read it.", "A file."), "Read it."])
    with pytest.raises(UserError, match=r"^input 0: no field 'other'.*it has one"):
        pair.predict({"one": "Read it."})
    with pytest.raises(UserError, match=r"^input 0: field 'text' is int, not text"):
        jaxformer.load(folder("bert_label")).predict([{"text": 3}])
    with pytest.raises(UserError, match="^--task: the run has learnt one task, regression"):
        pair.predict([], task="squad")


@pytest.mark.parametrize(("name", "verb"), [("bert", "fine-tune it on a task first"), ("gpt2", "`jaxformer generate`")])
def test_a_run_that_has_learnt_an_objective_has_no_answers(
    name: str, verb: str, folder: Callable[[str], Path], cli: Cli
) -> None:
    code, out, err = cli("predict", f"--workdir={folder(name)}", "Read it.")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "has learnt an objective" in err and verb in err and "`jaxformer embed`" in err


# Files.


def test_lines_of_json_have_the_rows_number_and_its_id(folder: Callable[[str], Path], tmp_path: Path, cli: Cli) -> None:
    rows = [{"text": text, "id": f"ü{n}"} for n, text in enumerate(TEXTS[:3])]
    source = write(tmp_path / "rows.jsonl", [rows[0], "", rows[1], {"text": TEXTS[2]}])
    code, out, err = cli("predict", f"--workdir={folder('bert_label')}", f"--input={source}")
    assert code == 0 and err == ""
    found = read(out)
    assert [(line["index"], line.get("id")) for line in found] == [(0, "ü0"), (1, "ü1"), (2, None)]
    assert list(found[0]) == ["index", "id", "label", "probability", "probabilities"] and "ü0" in out
    answers = jaxformer.load(folder("bert_label")).predict(TEXTS[:3])
    for line, answer in zip(found, answers, strict=True):
        assert line["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-6)


@pytest.mark.parametrize("how", ["file", "stdin", "texts", "lines of JSON on stdin"])
def test_texts_come_from_anywhere(
    how: str, folder: Callable[[str], Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [TEXTS[0], "", TEXTS[1]]  # an empty line is a text, too: answers stand on the lines of their texts
    rows = [json.dumps({"text": text}) for text in texts] if "JSON" in how else texts
    words = {"file": [f"--input={write(tmp_path / 'rows.txt', rows)}"], "texts": texts, "stdin": ["--input=-"]}
    given = "".join(f"{row}\n" for row in rows).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    code, out, _ = cli("predict", f"--workdir={folder('bert_label')}", *words.get(how, []))
    assert code == 0 and len(read(out)) == 3
    answers = jaxformer.load(folder("bert_label")).predict(texts)
    assert [line["label"] for line in read(out)] == [answer["label"] for answer in answers]


def test_several_fields_are_read_of_objects_alone(folder: Callable[[str], Path], tmp_path: Path, cli: Cli) -> None:
    words = ["predict", f"--workdir={folder('a_pair')}"]
    code, out, _ = cli(*words, '{"one": "Read it.", "other": "A file."}')
    assert code == 0 and isinstance(read(out)[0]["number"], float)
    code, _, err = cli(*words, "Read it.")
    assert code == 2 and "text 0: the task reads several fields; give them as JSON" in err
    code, _, err = cli(*words, f"--input={write(tmp_path / 'rows.txt', TEXTS)}")
    assert code == 2 and "rows.txt is plain text, but several fields are read" in err
    code, _, err = cli(*words, f"--input={tmp_path / 'nowhere.jsonl'}")
    assert code == 2 and "no file" in err


def test_malformed_rows_are_named_before_anything_is_answered(
    folder: Callable[[str], Path], tmp_path: Path, cli: Cli
) -> None:
    rows = [{"text": TEXTS[0]}, "{", {"txt": "Read it."}, {"text": TEXTS[1]}]
    source, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "answers.jsonl"
    words = ["predict", f"--workdir={folder('bert_label')}", f"--input={source}", f"--output={output}"]
    code, _, err = cli(*words)
    assert code == 2 and f"{source}:2: not JSON" in err and not output.exists()
    code, _, err = cli(*words, "--skip-malformed=1")
    assert code == 2 and f"{source}:3: no field 'text'; did you mean 'txt'?" in err
    assert "--skip-malformed=1 let pass 1 before it" in err and not output.exists()
    code, _, err = cli(*words, "--skip-malformed=2")
    assert code == 0 and "4 answers (2 malformed)" in err
    found = read(output.read_text())
    assert [line["index"] for line in found] == [0, 1, 2, 3]
    assert found[1]["error"].startswith(f"{source}:2: not JSON") and "label" not in found[2] and "label" in found[3]


def test_what_is_cut_is_said(folder: Callable[[str], Path], tmp_path: Path, cli: Cli) -> None:
    source = write(tmp_path / "rows.txt", [TEXTS[0], "Read every line. " * 30])
    code, _, err = cli("predict", f"--workdir={folder('bert_label')}", f"--input={source}")
    assert code == 0 and "2 answers (1 of 2 examples cut to 30 tokens of text)" in err


@contextlib.contextmanager
def stopped(monkeypatch: pytest.MonkeyPatch, after: int, stop: Callable[[], None]) -> Iterator[None]:
    """Stop where rows are answered for the next time after so many times."""
    calls = iter(range(after + 1))
    answers_to = answering.answers_to

    def answers(*given: Any) -> Any:
        if next(calls) == after:
            stop()
        return answers_to(*given)

    with monkeypatch.context() as patch:
        patch.setattr(answering, "answers_to", answers)
        yield


def test_a_file_goes_on_behind_its_last_whole_line(
    folder: Callable[[str], Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "rows.jsonl", [{"text": text} for text in TEXTS * 2])
    words = ["predict", f"--workdir={folder('bert_label')}", f"--input={source}", SMALL]
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert cli(*words, f"--output={whole}")[0] == 0 and len(read(whole.read_text())) == 40

    def interrupt() -> None:
        raise KeyboardInterrupt

    def terminate() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    for stop, code, name, there in ((interrupt, 130, "SIGINT", 16), (terminate, 75, "SIGTERM", 32)):
        with stopped(monkeypatch, 1, stop):
            ended, _, err = cli(*words, f"--output={broken}")
        assert ended == code and f"stopped by {name}: {there} of 40 are answered; run the same command to go on" in err
        assert len(read(broken.read_text())) == there
    code, _, err = cli(*words, f"--output={broken}")
    assert code == 0 and "going on behind answer 32 of 40" in err
    assert broken.read_bytes() == whole.read_bytes()
    for size in (1, len(whole.read_bytes()) // 2, len(whole.read_bytes()) - 1):  # a kill may leave anything
        broken.write_bytes(whole.read_bytes()[:size])
        assert cli(*words, f"--output={broken}")[0] == 0 and broken.read_bytes() == whole.read_bytes()
    code, _, err = cli(*words, f"--output={broken}")
    assert code == 0 and "nothing to do" in err and broken.read_bytes() == whole.read_bytes()


def test_other_input_or_another_model_does_not_go_on_in_a_file(
    folder: Callable[[str], Path], tmp_path: Path, cli: Cli
) -> None:
    source, other = write(tmp_path / "rows.txt", TEXTS[:2]), write(tmp_path / "other.txt", TEXTS[2:4])
    output = tmp_path / "answers.jsonl"
    words = ["predict", f"--workdir={folder('bert_label')}", f"--output={output}"]
    assert cli(*words, f"--input={source}")[0] == 0
    before = output.read_bytes()
    copied = shutil.copy(source, tmp_path / "copied.txt")
    assert cli(*words, f"--input={copied}")[0] == 0  # content counts, not the name
    for changed, said in (
        ([f"--input={other}"], "input: "),
        ([f"--input={source}", "--step=7"], "checkpoint: step 8, "),
        ([f"--input={source}", "--config.task.sequence_length=16"], "task.sequence_length: 32 -> 16"),
    ):
        code, _, err = cli(*words, *changed)
        assert code == 2 and f"are of something else ({said}" in err and "--overwrite" in err
        assert output.read_bytes() == before
    assert cli(*words, f"--input={other}", "--overwrite")[0] == 0 and output.read_bytes() != before

    output.write_text("mine\n")
    code, _, err = cli(*words, f"--input={other}")
    assert code == 2 and "line 1 of" in err and output.read_text() == "mine\n"
    output.with_name("answers.jsonl.run.json").unlink()
    code, _, err = cli(*words, f"--input={other}")
    assert code == 2 and "not known to hold answers" in err and output.read_text() == "mine\n"
    before = source.read_bytes()
    code, _, err = cli(*words[:2], f"--input={source}", f"--output={source}", "--overwrite")
    assert code == 2 and "is the input" in err and source.read_bytes() == before
    with answer_file.answer_file(tmp_path / "held.jsonl", {}):
        code, _, err = cli("predict", f"--workdir={folder('bert_label')}", "--output", tmp_path / "held.jsonl", "A")
    assert code == 2 and "another process writes to" in err


def test_what_official_scorers_read_stands_beside_the_answers(
    folder: Callable[[str], Path], tmp_path: Path, cli: Cli
) -> None:
    source = write(tmp_path / "rows.jsonl", [{"text": text, "idx": 7 + n} for n, text in enumerate(TEXTS[:3])])
    words = ["predict", f"--workdir={folder('bert_label')}", f"--input={source}", "--format=official"]
    code, _, err = cli(*words)
    assert code == 2 and "name a file for these with --output" in err
    code, _, err = cli(*words, f"--output={tmp_path / 'rte.jsonl'}")
    labels = [line["label"] for line in read((tmp_path / "rte.jsonl").read_text())]
    rows = [f"{7 + n}\t{label}" for n, label in enumerate(labels)]
    assert code == 0 and (tmp_path / "rte.tsv").read_text().splitlines() == ["index\tprediction", *rows]
    words[1] = f"--workdir={folder('classes')}"
    code, _, err = cli(*words, f"--output={tmp_path / 'classes.jsonl'}")
    assert code == 2 and "no official file for the answers of multi_label" in err
    assert not (tmp_path / "classes.jsonl").exists()


# Vectors.


def test_vectors_are_written_as_an_array(folder: Callable[[str], Path], tmp_path: Path, cli: Cli) -> None:
    run, output = jaxformer.load(folder("bert_label")), tmp_path / "vectors.npy"
    texts = [*TEXTS, "Read every line. " * 50]
    source = write(tmp_path / "rows.jsonl", [{"text": text, "body": "x"} for text in texts])
    words = ["embed", f"--workdir={folder('bert_label')}", f"--input={source}", f"--output={output}", SMALL]
    code, _, err = cli(*words)
    assert code == 0 and "float32 [21, 16] (1 cut to 64 tokens)" in err
    found = np.load(output)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, run.embed(texts, batch_size=2), atol=1e-6)
    code, _, err = cli(*words, "--pooling=first", "--layer=0")
    assert code == 2 and "vectors.npy is there" in err and (np.load(output) == found).all()
    assert cli(*words, "--pooling=first", "--layer=0", "--overwrite")[0] == 0
    np.testing.assert_allclose(np.load(output), run.embed(texts, "first", 0), atol=1e-6)
    code, _, err = cli(*words, "--field=title", "--overwrite")
    assert code == 2 and f"{source}:1: no field 'title'" in err and np.load(output).shape == (21, 16)
    assert cli(*words, "--field=body", "--overwrite")[0] == 0 and np.ptp(np.load(output), axis=0).max() < 1e-6
    assert [file.name for file in tmp_path.iterdir() if "unfinished" in file.name] == []
