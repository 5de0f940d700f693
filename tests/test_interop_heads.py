"""Heads that come and go: what a folder says of the task, which class has which head, and what no class has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import LABELS, changed, make_run, params_of
from safetensors.numpy import load_file

from jaxformer.errors import UserError
from jaxformer.interop import export_run, import_run
from jaxformer.runs.loading import StoredRun, stored_run


def head(rows: int) -> dict[str, np.ndarray]:
    """BERT's classifier with so many outputs."""
    return {"classifier.weight": np.ones((rows, 16), np.float32), "classifier.bias": np.ones(rows, np.float32)}


def imported(folder: Path) -> StoredRun:
    import_run(str(folder), folder.with_name(f"{folder.name}-run"))
    return stored_run(folder.with_name(f"{folder.name}-run"))


@pytest.mark.parametrize(
    ("outputs", "said", "task", "labels"),
    [
        (5, {"id2label": {str(n): f"area {n}" for n in range(5)}}, "classification", [f"area {n}" for n in range(5)]),
        (2, {"id2label": None}, "classification", ["LABEL_0", "LABEL_1"]),  # which transformers leaves out
        (3, {"problem_type": "multi_label_classification"}, "multi_label", list(LABELS)),
        (1, {"problem_type": "multi_label_classification", "id2label": {"0": "spam"}}, "multi_label", ["spam"]),
        (1, {"problem_type": "regression"}, "regression", []),
        (1, {"problem_type": None, "id2label": {"0": "LABEL_0"}}, "regression", []),  # as transformers reads one output
        (3, {"problem_type": None}, "classification", list(LABELS)),
    ],
)
def test_the_number_of_outputs_and_the_kind_of_problem_say_the_task(
    outputs: int, said: dict, task: str, labels: list, exported: Any, tmp_path: Path
) -> None:
    _, out, _ = exported("bert_label")
    tensors = {} if outputs == 3 else head(outputs)
    run = imported(changed(out, tmp_path / "hf", tensors=tensors, config={"jaxformer": None} | said))
    assert run.config.selected["task"] == task and list(run.labels) == labels
    assert [(name, size, reads) for name, size, reads in run.model.heads] == [("label", outputs, "row")]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"problem_type": "regression"}, "a regression of 3 numbers cannot be imported; there is only that of one"),
        ({"problem_type": "ranking"}, "problem_type: 'ranking' is not one of single_label_classification, multi"),
        ({"id2label": ["a", "b", "c"]}, "id2label is no table of labels"),
        ({"architectures": ["BertForMultipleChoice"]}, r"classifier.bias has shape \[3\], the model's is \[1\]"),
        ({"jaxformer": {"task": {"name": "classification", "sequence_length": 4}}}, "task.sequence_length: 4"),
        ({"classifier_dropout": 2, "jaxformer": None}, "task.head_dropout: 2.0 must be at least 0 and below 1"),
    ],
)  # fmt: skip
def test_what_no_task_tells_is_refused(said: dict, message: str, exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported("bert_label")
    with pytest.raises(UserError, match=message):
        import_run(str(changed(out, tmp_path / "hf", config=said)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_class_tells_heads_apart_that_look_alike(exported: Any, tmp_path: Path) -> None:
    """BERT's classifier is that of rows, of choices and of tokens; without a class it is that of what it stands on."""
    _, out, _ = exported("bert_choices")
    run = imported(changed(out, tmp_path / "choices", config={"jaxformer": None}))
    assert run.model.heads == (("label", 1, "choices"),)
    bare = {"architectures": ["BertModel"], "jaxformer": None}
    run = imported(changed(out, tmp_path / "bare", config=bare))
    assert run.model.heads == (("label", 1, "row"),) and run.config.selected["task"] == "regression"


def test_settings_of_a_task_come_back_where_it_is_still_that_task(exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported("bert_classes")
    config = json.loads((out / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification" and config["jaxformer"]["task"]["threshold"] == 0.3
    assert config["id2label"] == {"0": "concurrency", "1": "data", "2": "files"}
    assert imported(out).config.task.threshold == 0.3
    # Somebody has trained the folder for another task.
    folder = changed(out, tmp_path / "other", config={"problem_type": "single_label_classification"})
    task = imported(folder).config.task
    assert (task.name, task.sequence_length) == ("classification", 64)
    # What is no task of ours is left alone.
    for number, ours in enumerate(({"task": "regression"}, "words", {"task": {"name": 3}}, {"task": {"name": "mine"}})):
        assert imported(changed(out, tmp_path / str(number), config={"jaxformer": ours})).config.task.threshold == 0.5


def test_the_dropout_before_a_head_has_keys_of_its_own(exported: Any, tmp_path: Path) -> None:
    keys = {"bert_label": "classifier_dropout", "distilbert_choices": "seq_classif_dropout",
            "gpt2_choices": "summary_first_dropout", "bart_classes": "classifier_dropout"}  # fmt: skip
    for name, key in keys.items():
        run, out, _ = exported(name)
        assert json.loads((out / "config.json").read_text())[key] == stored_run(run).config.task.head_dropout
        folder = changed(out, tmp_path / name, config={"jaxformer": None, key: 0.25})
        assert imported(folder).config.task.head_dropout == 0.25
    _, out, _ = exported("bert_label")  # where it has none, it is the body's
    said = {"jaxformer": None, "classifier_dropout": None, "hidden_dropout_prob": 0.3}
    assert imported(changed(out, tmp_path / "body", config=said)).config.task.head_dropout == 0.3
    _, out, _ = exported("bert_span")  # BERT's answers have none at all
    assert imported(changed(out, tmp_path / "span", config={"jaxformer": None})).config.task.head_dropout == 0


@pytest.mark.parametrize("case", ["bert_span", "bart_span"])
def test_the_start_and_end_of_an_answer_are_one_array_there(case: str, exported: Any) -> None:
    run, out, _ = exported(case)
    ours, theirs = params_of(run), load_file(out / "model.safetensors")
    assert theirs["qa_outputs.weight"].shape == (2, 16) and theirs["qa_outputs.bias"].shape == (2,)
    for row, name in enumerate(("start", "end")):
        assert np.array_equal(theirs["qa_outputs.weight"][row], ours[f"token_heads/{name}/kernel"][:, 0])
        assert theirs["qa_outputs.bias"][row] == ours[f"token_heads/{name}/bias"][0]


def test_the_former_names_of_tasks_are_read(exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported("bert_label")
    ours = {"task": {"name": "pooled_classification", "sequence_length": 20, "pooled_at": "first"}}
    task = imported(changed(out, tmp_path / "hf", config={"jaxformer": ours})).config.task
    assert (task.name, task.sequence_length, task.read_at) == ("classification", 20, "first")


def test_a_short_model_leaves_room_for_a_context(exported: Any, tmp_path: Path) -> None:
    _, out, _ = exported("bert_span")
    task = imported(changed(out, tmp_path / "hf", config={"jaxformer": None})).config.task
    assert (task.sequence_length, task.max_query_length) == (64, 21)


def test_a_bias_that_the_model_lacks_is_zero_there(exported: Any, tmp_path: Path) -> None:
    name = "multiple_choice_head.summary.bias"
    for case, bias in (("gpt_choices", False), ("gpt2_choices", True)):
        run, out, _ = exported(case)
        stored = load_file(out / "model.safetensors")[name]
        assert stored.shape == (1,) and bool(stored[0]) is bias
        assert ("row_heads/label/bias" in params_of(run)) is bias
    _, out, _ = exported("gpt_choices")
    folder = changed(out, tmp_path / "hf", tensors={name: np.array([0.5], np.float32)})
    run = imported(folder)
    assert run.model.config.head_bias and params_of(tmp_path / "hf-run")["row_heads/label/bias"] == [0.5]
    wider = changed(out, tmp_path / "mean", config={"summary_type": "mean"})
    with pytest.raises(UserError, match="summary_type = 'mean' is not supported for openai-gpt, only 'cls_index'"):
        imported(wider)


@pytest.mark.parametrize(
    ("case", "task", "message"),
    [
        ("bert_label", {"read_at": "last"}, "bert reads a row's first state, and this run its last"),
        ("gpt_label", {"both_orders": True, "text_fields": ("a", "b")}, "no class with a head 'label' that reads sum"),
        ("bart_label", {"name": "multiple_choice"}, "bart has no class with choices"),
    ],
)
def test_what_no_class_has_is_not_exported(case: str, task: dict, message: str, tmp_path: Path) -> None:
    run = make_run(case, tmp_path / "run", task=task)
    with pytest.raises(UserError, match=message):
        export_run(run, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_of_one_label_is_not_exported(tmp_path: Path) -> None:
    run = make_run("bert_label", tmp_path / "run", labels=("all",))
    with pytest.raises(UserError, match="a single label: to Hugging Face's classes that is a number to predict"):
        export_run(run, tmp_path / "hf")
