"""What a model is fine-tuned on: pure numpy functions from a labelled example to arrays, and from outputs to answers.

What lives here: the tasks, each as how texts are written (`writing`) x what is read x how it is judged (`metrics`), and
what a config file `defined` of its own.
What may come in: another task, and a line in TASKS; a family's way to write.
What must not: JAX; a shift between inputs and targets that a model would have to know."""

from collections.abc import Mapping
from typing import Any

from jaxformer.checks import several
from jaxformer.objectives import Supervision
from jaxformer.tasks.answering import QuestionAnswering, place_of
from jaxformer.tasks.classification import Classification, MultiLabel, MultipleChoice, Regression
from jaxformer.tasks.defined import Definitions, defined_by, joined, read_file
from jaxformer.tasks.metrics import intervals, measure, signatures
from jaxformer.tasks.mixture import TaskMixture
from jaxformer.tasks.scorer_files import FILES as SCORER_FILES
from jaxformer.tasks.tagging import TokenClassification
from jaxformer.tasks.template import template_of
from jaxformer.tasks.text_to_text import TextToText

__all__ = [
    "SCORER_FILES",
    "TASKS",
    "Definitions",
    "defined_by",
    "intervals",
    "joined",
    "measure",
    "place_of",
    "read_file",
    "renamed",
    "signatures",
]

TASKS: dict[str, type[Supervision]] = {
    Classification.name: Classification,
    MultiLabel.name: MultiLabel,
    Regression.name: Regression,
    MultipleChoice.name: MultipleChoice,
    TokenClassification.name: TokenClassification,
    QuestionAnswering.name: QuestionAnswering,
    TextToText.name: TextToText,
    TaskMixture.name: TaskMixture,
}

# The names that tasks had when each family had one of its own, the values that they had where a config says nothing,
# and the keys that have another name now.
_FORMER: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "extract_classification": (Classification.name, {"language_model_weight": 0.5}, {}),
    "pooled_classification": (Classification.name, {}, {"pooled_at": "read_at"}),
    "decoder_classification": (Classification.name, {}, {}),
}


def renamed(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's task with the names of today: runs and configs of before have others."""
    if section.get("name") == "text_to_text_classification":
        return _as_text_to_text(section)
    if section.get("name") not in _FORMER:
        return dict(section)
    name, defaults, keys = _FORMER[section["name"]]
    return defaults | {keys.get(key, key): value for key, value in section.items()} | {"name": name}


def _as_text_to_text(section: Mapping[str, Any]) -> dict[str, Any]:
    keys: dict[str, Any] = (
        {"target_length": 8, "metrics": ("accuracy", "f1")} | dict(section) | {"name": TextToText.name}
    )
    prefix, fields = keys.pop("prefix", ""), keys.pop("text_fields", ("text",))
    return {"input": template_of(prefix, several(fields))} | keys
