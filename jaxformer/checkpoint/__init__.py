"""Checkpoints: asynchronous saves with a digest, verified restores, and partial restores for fine-tuning.

What lives here: a run's own checkpoints (`manager`), what makes one sound (`digest`), which one is meant (`naming`),
reading them (`reading`), which parameters of which ones (`source`), and taking over another run's, strictly
(`partial`).
What may come in: other ways to keep and to select.
What must not: what a run is beyond its arrays and their step."""

from jaxformer.checkpoint.digest import content_of, finished_steps, stored_shapes
from jaxformer.checkpoint.manager import LOWER_IS_BETTER, CheckpointConfig, Checkpoints, finish_saves, save_params
from jaxformer.checkpoint.naming import NEWEST, Which, check_may_train, checkpoint_of, named, source_of
from jaxformer.checkpoint.partial import RestoreTable, fresh_heads, restore_params
from jaxformer.checkpoint.source import ROOTS, Source, read_params_in_groups

__all__ = [
    "CheckpointConfig",
    "Checkpoints",
    "LOWER_IS_BETTER",
    "NEWEST",
    "ROOTS",
    "RestoreTable",
    "Source",
    "Which",
    "content_of",
    "check_may_train",
    "checkpoint_of",
    "finish_saves",
    "finished_steps",
    "fresh_heads",
    "named",
    "read_params_in_groups",
    "restore_params",
    "save_params",
    "source_of",
    "stored_shapes",
]
