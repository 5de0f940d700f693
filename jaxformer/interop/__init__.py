"""Weights in and out: Hugging Face folders to runs and back."""

from jaxformer.interop.exporting import export_run
from jaxformer.interop.importing import import_run

__all__ = ["export_run", "import_run"]
