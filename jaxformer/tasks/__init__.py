"""Supervision: labelled examples in, arrays of the batch contract out, and the metrics that judge the answers."""

from typing import Any

from jaxformer.tasks.classification import ExtractClassification, PooledClassification, TextToTextClassification

TASKS: dict[str, Any] = {
    "extract_classification": ExtractClassification,
    "pooled_classification": PooledClassification,
    "text_to_text_classification": TextToTextClassification,
}
