"""Checkpoints: asynchronous saves with a digest, verified restores, and partial restores for fine-tuning.

What lives here: a run's own checkpoints (`manager`), what makes one sound (`digest`), which one is meant (`naming`),
reading them (`reading`), and taking over another run's parameters, strictly (`partial`).
What may come in: other ways to keep and to select.
What must not: what a run is beyond its arrays and their step."""

from jaxformer.checkpoint.digest import content_of, finished_steps, stored_shapes
from jaxformer.checkpoint.manager import CheckpointConfig, Checkpoints, save_params
from jaxformer.checkpoint.naming import check_may_train, checkpoint_of, named
from jaxformer.checkpoint.partial import RestoreTable, fresh_heads, restore_params
from jaxformer.checkpoint.reading import read_params_in_groups

__all__ = [
    "CheckpointConfig",
    "Checkpoints",
    "RestoreTable",
    "content_of",
    "check_may_train",
    "checkpoint_of",
    "finished_steps",
    "fresh_heads",
    "named",
    "read_params_in_groups",
    "restore_params",
    "save_params",
    "stored_shapes",
]
