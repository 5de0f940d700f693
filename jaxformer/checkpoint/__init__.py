"""Checkpoints: asynchronous saves with a digest, verified restores, and partial restores for fine-tuning."""

from jaxformer.checkpoint.digest import stored_shapes
from jaxformer.checkpoint.manager import CheckpointConfig, Checkpoints
from jaxformer.checkpoint.partial import RestoreTable, restore_params
from jaxformer.checkpoint.reading import restore_named

__all__ = ["CheckpointConfig", "Checkpoints", "RestoreTable", "restore_named", "restore_params", "stored_shapes"]
