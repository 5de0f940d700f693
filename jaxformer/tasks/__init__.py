"""What a model is fine-tuned on: pure numpy functions from a labelled example to the arrays of one example.

What lives here: classification as each family does it, the metrics that judge it, and what
a config file `defined` of its own.
What may come in: another task, as how fields are written x what is read x how it is judged; a line in TASKS.
What must not: JAX; a shift between inputs and targets that a model would have to know."""

from jaxformer.objectives import Supervision
from jaxformer.tasks.classification import (
    DecoderClassification,
    ExtractClassification,
    PooledClassification,
    TextToTextClassification,
)
from jaxformer.tasks.defined import Definitions, defined_by, joined, read_file
from jaxformer.tasks.metrics import task_metrics

__all__ = ["TASKS", "Definitions", "defined_by", "joined", "read_file", "task_metrics"]

TASKS: dict[str, type[Supervision]] = {
    ExtractClassification.name: ExtractClassification,
    PooledClassification.name: PooledClassification,
    DecoderClassification.name: DecoderClassification,
    TextToTextClassification.name: TextToTextClassification,
}
