"""Judging parameters on held-out rows: while a run trains, and afterwards, on data of one's own too."""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxformer import config as configs
from jaxformer.config import Config
from jaxformer.data import Member, evaluation_batches, prepare
from jaxformer.devices import own_rows, place
from jaxformer.errors import UserError
from jaxformer.evaluation import combined, evaluate, not_finite
from jaxformer.models import Model, Params
from jaxformer.runs.data import Data, label_names
from jaxformer.runs.fingerprints import check_data
from jaxformer.runs.loading import bind, load
from jaxformer.storage import store_errors, write_json
from jaxformer.training import losses_of, make_eval_step

_log = logging.getLogger(__name__)


def judge(
    config: Config, data: Data, model: Model, eval_step: Any, params: Params, mesh: Mesh | None = None
) -> dict[str, float]:
    """Return the metrics of parameters on the held-out rows of all members; none where there are no such rows.

    On a mesh every process judges its own rows, and all return the same.
    """
    parts = []
    for member in data.held_out:
        found = evaluate(
            model, data.supervision, eval_step, params, held_out_batches(config, member, mesh),
            place=(lambda batch: batch) if mesh is None else functools.partial(place, mesh),
            tokenizer=data.tokenizer, labels=data.labels,
        )  # fmt: skip
        parts.append((member.name, member.weight, found))
    return combined(parts) if parts else {}


def held_out_batches(config: Config, member: Member, mesh: Mesh | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of held-out rows, the same at every call; on a mesh, this process's rows of them."""
    batch_size = config.evaluation_rows
    return evaluation_batches(
        member.rows,
        member.transform,
        seed=config.seed,
        batch_size=batch_size,
        limit=config.evaluation.max_examples,
        own=None if mesh is None else own_rows(mesh, batch_size),
    )


@dataclasses.dataclass(frozen=True)
class Relabelled:
    """Examples whose classes are renumbered: imported weights may number the labels in another order than ours."""

    examples: Any
    classes: Sequence[int]  # ours by the data's

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        example = self.examples[number]
        label = int(example["label"])
        return example | {"label": self.classes[label] if label >= 0 else label}


@store_errors()
def evaluate_run(
    workdir: Path, split: str, overrides: Sequence[str] = (), *, allow_change: bool = False
) -> dict[str, float]:
    """Judge a run's newest checkpoint on a split of its data (or of the data that the overrides name) and write the
    result to `results/evaluate-SPLIT.json`. Raises UserError, unless `allow_change`, where its own data changed."""
    run = load(workdir, allow_change=allow_change)
    config = configs.resolve(run.config.to_dict(), overrides, name=run.config.name, stored=True)
    if config.model != run.config.model:
        raise UserError("--config.model: a trained model cannot be changed; leave these overrides out")
    check_data(workdir, config, run.config, allow_change)
    names = label_names(config)
    labels = run.labels or names  # imported weights that write their labels know none before they see the data
    if set(names) != set(labels):
        raise UserError(f"data: its labels {names} are not those that the run learnt, {labels}")
    supervision = bind(config, run.tokenizer, labels)
    held_out = prepare(config.data, supervision, run.tokenizer, split, seed=config.seed)
    if names != labels:
        classes = [labels.index(name) for name in names]
        held_out = [member._replace(rows=Relabelled(member.rows, classes)) for member in held_out]
    data = Data(run.tokenizer, labels, supervision, [], held_out)
    eval_step = jax.jit(make_eval_step(run.model, losses_of(supervision)))
    metrics = judge(config, data, run.model, eval_step, run.params)
    write_json(workdir / "results" / f"evaluate-{split}.json", {"step": run.step, "split": split, "metrics": metrics})
    if odd := not_finite(metrics):
        _log.warning("%s: this evaluation is not finite (%s); in the results these are null", workdir, ", ".join(odd))
    return metrics
