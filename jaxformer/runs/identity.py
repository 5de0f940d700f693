"""What makes two trainings one and the same: everything that decides their numbers, and nothing else."""

import hashlib
import json
from collections.abc import Collection
from typing import Any

from jaxformer.checkpoint import checkpoint_of, content_of
from jaxformer.config import Config, flat
from jaxformer.data import PLACES
from jaxformer.runs.fingerprints import contents
from jaxformer.runs.paths import paths_of, target
from jaxformer.storage import finite

# What is logged and kept, and where a run is placed.
LEFT_OUT = (
    "training.log_every", "training.stuck_seconds", "data.workers", "checkpoint.every", "checkpoint.keep_",
    "sharding.", "footprint.",
)  # fmt: skip
_PLACES = tuple(place for place in PLACES if place != "dataset")  # a data set's sizes do not tell it from all others


def identity_of(config: Config, counted: Collection[str] = ()) -> str:
    """Return 16 hexadecimal digits that are the same for equal trainings.

    They are made of the resolved config without what is logged, kept and placed (but for the keys that are `counted`),
    of the data's content, and of the checkpoints that the run starts from or is taught by. Raises UserError where one
    of these is not there.
    """
    known = config.to_dict()
    data = contents(config)
    facts: dict[str, Any] = flat(known) | {key: target(path) for key, path in paths_of(known).items() if "[" not in key}
    if data:  # known by its content, wherever it lies
        for place in _PLACES:
            facts.pop(f"data.{place}", None)
        if "data.members" in facts:
            facts["data.members"] = [
                {key: value for key, value in member.items() if key not in _PLACES} for member in facts["data.members"]
            ]
    facts = {key: value for key, value in facts.items() if key in counted or not key.startswith(LEFT_OUT)}
    facts["content"] = [list(found.values()) for _, found in sorted(data.items())]
    teacher = config.distillation.teacher if config.distillation is not None else ""
    for key, run in (("init_from", config.init_from), ("distillation.teacher", teacher)):
        if run:
            facts[key] = content_of(checkpoint_of(run))
    if config.defined is not None:
        facts["defined"] = config.defined.sha256
    text = json.dumps(finite(facts), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
