"""What a model is fine-tuned on: pure numpy functions from a labelled example to the arrays of one example."""

from jaxformer.tasks.classification import (
    DecoderClassification,
    ExtractClassification,
    PooledClassification,
    TextToTextClassification,
)

TASKS: dict[str, type] = {
    ExtractClassification.name: ExtractClassification,
    PooledClassification.name: PooledClassification,
    DecoderClassification.name: DecoderClassification,
    TextToTextClassification.name: TextToTextClassification,
}
