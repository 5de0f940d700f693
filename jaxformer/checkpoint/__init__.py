"""Checkpoints: asynchronous saves with a digest, verified restores, and partial restores for fine-tuning."""

from jaxformer.checkpoint.digest import finished_steps, stored_shapes
from jaxformer.checkpoint.manager import CheckpointConfig, Checkpoints, save_params
from jaxformer.checkpoint.partial import RestoreTable, restore_params
from jaxformer.checkpoint.reading import read_params_in_groups, restore_named

__all__ = [
    "CheckpointConfig",
    "Checkpoints",
    "RestoreTable",
    "finished_steps",
    "read_params_in_groups",
    "restore_named",
    "restore_params",
    "save_params",
    "stored_shapes",
]
