"""Weights in and out: Hugging Face folders to runs and back.

What lives here: reading and writing their config.json, safetensors and tokenizer files (`importing`, `exporting`), as
tables of names and forms (`tables`, `layouts`), and the model card.
What may come in: further classes and formats, push and pull, adapters of other people's evaluation.
What must not: models of a shape that only another library has."""

from jaxformer.interop.exporting import export_run
from jaxformer.interop.importing import import_run

__all__ = ["export_run", "import_run"]
