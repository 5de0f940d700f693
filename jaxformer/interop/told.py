"""What a model tells of a text, in config.json: the task, its labels, and how it is trained.

Hugging Face has keys for the labels, the kind of problem and the dropout before the head. The settings of a task have
none: an export keeps them under `jaxformer`, and an import reads them where they are still those of the task that the
class and its `problem_type` say.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.checks import check_choice
from jaxformer.errors import UserError
from jaxformer.interop.layouts import Class, Layout
from jaxformer.interop.weights import StoredTensor
from jaxformer.runs import StoredRun, bind
from jaxformer.tasks import TASKS, renamed

KEY = "jaxformer"
# What stands on a body and tells something of a text -> the task; a "label" may be of several.
TOLD = {"label": "", "choices": "multiple_choice", "tags": "token_classification", "span": "question_answering"}
_SINGLE = "single_label_classification"
_PROBLEMS = {_SINGLE: "classification", "multi_label_classification": "multi_label", "regression": "regression"}
_LOSSES = {"softmax": _SINGLE, "sigmoid": "multi_label_classification", "squared": "regression"}
CLASSIFYING = tuple(_PROBLEMS.values())


def read_task(
    layout: Layout, classes: tuple[str, ...], theirs: Mapping[str, Any], where: Path,
    tensors: Mapping[str, StoredTensor],
) -> tuple[dict[str, Any], tuple[str, ...]]:  # fmt: skip
    """Return (the section of the task, the names of its labels) of a model on whose body `classes` stand; ({}, ()) of
    one that tells nothing of a text.

    Raises UserError for what no task here tells.
    """
    kept = theirs.get(KEY)
    kept = kept if isinstance(kept, Mapping) else {}
    ours = kept.get("task")
    ours = renamed(ours) if isinstance(ours, Mapping) and isinstance(ours.get("name"), str) else {}
    told = next((what for what in classes if what in TOLD), "")
    if not told:
        kind = TASKS.get(str(ours.get("name")))
        if kind is None or kind.decodes is not True:
            return {}, ()
        return ours, tuple(map(str, kept.get("labels") or ()))  # the task's texts: no class there has a head for them
    name = TOLD[told]
    labels: tuple[str, ...] = ()
    if told in ("label", "tags"):
        count = _size(layout, told, tensors)
        name = name or _PROBLEMS[_problem(theirs, where, count)]
        labels = () if name == "regression" else _labels(theirs, where, count)
    task = {"name": name, "head_dropout": _dropout(layout.classes[classes], theirs)}
    return task | (ours if ours.get("name") == name else {}), labels


def _dropout(one: Class, theirs: Mapping[str, Any]) -> Any:
    """Return the dropout before a class's head: some have none."""
    rates = (default if theirs.get(key) is None else theirs[key] for key, default in one.dropout.items())
    return next((rate for rate in rates if rate is not None), 0.0)


def _size(layout: Layout, told: str, tensors: Mapping[str, StoredTensor]) -> int:
    """Return how many numbers a head gives."""
    modules = layout.heads[told]
    (name,) = (theirs for ours, theirs in modules.items() if ours.endswith("/label"))
    return tensors[f"{name}.weight"].shape[0]


def _problem(theirs: Mapping[str, Any], where: Path, count: int) -> str:
    """Return the kind of problem. As there, a single number without a word about it is one of regression."""
    kind = str(theirs.get("problem_type") or _SINGLE)
    check_choice(f"{where}: problem_type", kind, _PROBLEMS)
    if kind == "regression" and count > 1:
        raise UserError(f"{where}: a regression of {count} numbers cannot be imported; there is only that of one")
    return "regression" if kind == _SINGLE and count == 1 else kind


def _labels(theirs: Mapping[str, Any], where: Path, count: int) -> tuple[str, ...]:
    """Return the names of labels, in the order of their numbers."""
    names = theirs.get("id2label") or {}
    if not isinstance(names, Mapping):
        raise UserError(f"{where}: id2label is no table of labels")
    named = [str(names.get(str(number), f"LABEL_{number}")) for number in range(count)]
    return tuple(named if len(set(named)) == count else [f"LABEL_{number}" for number in range(count)])


def write_task(run: StoredRun, layout: Layout, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return what config.json says of a run's task; {} of a run without one.

    Raises UserError for what no class there tells.
    """
    section = run.config.to_dict().get("task")
    if not section:
        return {}
    said: dict[str, Any] = {KEY: {"task": section}}
    task, told = bind(run.config, run.tokenizer, run.labels), next((what for what in classes if what in TOLD), "")
    if not told:
        said[KEY] |= {"labels": list(run.labels)} if run.labels else {}
        return said
    if run.model.config.family == "encoder_only" and "label_positions" in task.shapes:
        raise UserError(
            f"Hugging Face's {layout.model_type} reads a row's first state, and this run its last (task.read_at)"
        )
    for key in list(layout.classes[classes].dropout)[:1]:
        if not any(key in keys for keys in layout.keys.values()):  # there it says more than this
            said[key] = task.head_dropout
    if told == "label":
        said["problem_type"] = _LOSSES[task.heads["label"].loss]
        if said["problem_type"] == _SINGLE and len(task.labels) < 2:
            raise UserError("the run knows a single label: to Hugging Face's classes that is a number to predict")
    if told in ("label", "tags"):
        labels = task.labels or ("LABEL_0",)
        said["id2label"] = {str(number): label for number, label in enumerate(labels)}
        said["label2id"] = {label: number for number, label in enumerate(labels)}
    return said
