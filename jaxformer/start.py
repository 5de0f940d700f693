"""Where a run's parameters come from: its own checkpoint, another run, the layers of a teacher, or chance.

The teacher of a distillation is a run, too: its model is read and never trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxformer.build import Steps, mesh_of
from jaxformer.checkpoint import Checkpoints, RestoreTable, restore_params, stored_shapes
from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.models.model import Model, Params
from jaxformer.progress import Display
from jaxformer.run import OpenRun, compare_with_base, open_run
from jaxformer.sharding import param_shardings
from jaxformer.step import Teaching, TrainState, execution
from jaxformer.storage import location
from jaxformer.tokenizers import Tokenizer


class Teacher(NamedTuple):
    """How a run is taught, and the parameters of what teaches it, heads of rows left out."""

    teaching: Teaching
    params: Params


def start_state(
    config: Config, workdir: Path, resumes: bool, checkpoints: Checkpoints, steps: Steps, rng: jax.Array,
    display: Display, new_token_ids: Sequence[int], labels: Sequence[str], teacher: Teacher | None,
) -> TrainState:  # fmt: skip
    """Return the state to go on from: the newest good checkpoint, else `init_from` with fresh embeddings for the tokens
    that it has not learnt, else layers of a teacher, else fresh."""
    if resumes:
        found = checkpoints.restore_latest(placed(jax.eval_shape(steps.make_state, rng), steps.shardings))
        if found is not None:
            display.note(f"resuming {workdir} at step {found[0]}")
            return found[1]
    state = steps.make_state(rng)
    if config.init_from:
        params, table = restore_params(
            location(config.init_from), state.params, skip=config.checkpoint.init_skip, new=config.checkpoint.init_new
        )
        display.note(table.render())
        for line in compare_with_base(config, labels, table.restored):
            display.note(f"note: {line}")
        if new_token_ids:
            rows = np.array(new_token_ids)
            table_VD, fresh_VD = params["embedding"]["tokens"], state.params["embedding"]["tokens"]
            take = jax.jit(lambda table, fresh: table.at[rows].set(fresh[rows]), out_shardings=table_VD.sharding)
            params["embedding"]["tokens"] = take(table_VD, fresh_VD)
        state = state._replace(params=params)
    elif teacher is not None and teacher.teaching.config.layers:
        params, table = begin_with_layers(config, teacher, state.params)
        display.note(table.render())
        state = state._replace(params=params)
    return state


def fitting_teacher(config: Config, tokenizer: Tokenizer) -> OpenRun | None:
    """Return the run that `config.distillation` names as teacher, its parameters unread; None without that section.

    Raises UserError for a folder that is no run, and a teacher of which this student cannot learn: another family or
    vocabulary, a shorter table of positions, hidden states of another size to compare, layers that it does not have.
    """
    distillation, student = config.distillation, config.model
    if distillation is None:
        return None
    run = open_run(location(distillation.teacher))
    theirs = run.config.model
    where = f"distillation.teacher: {distillation.teacher}"
    if theirs.family != student.family:
        raise UserError(f"{where} is {theirs.family}, the student {student.family}; both must read the same batch")
    if run.tokenizer.fingerprint != tokenizer.fingerprint or theirs.vocab_size != student.vocab_size:
        raise UserError(
            f"{where} has another vocabulary ({theirs.vocab_size} ids, tokenizer {run.tokenizer.fingerprint}) than the "
            f"student ({student.vocab_size} ids, tokenizer {tokenizer.fingerprint}); a distribution cannot be compared"
        )
    if distillation.cosine_weight and theirs.d_model != student.d_model:
        raise UserError(
            f"{where} has hidden states of {theirs.d_model} numbers, the student of {student.d_model}; "
            "set distillation.cosine_weight=0 or model.d_model to the teacher's"
        )
    if theirs.position == "learned" and config.longest_row > theirs.max_length:
        raise UserError(f"{where} knows {theirs.max_length} positions, but rows are {config.longest_row} tokens long")
    if distillation.layers and len(distillation.layers) != student.num_layers:
        raise UserError(
            f"distillation.layers: {len(distillation.layers)} layers for a student of {student.num_layers}; "
            "give as many as model.num_layers"
        )
    if distillation.layers and distillation.layers[-1] >= theirs.num_layers:
        raise UserError(
            f"distillation.layers: there is no layer {distillation.layers[-1]} among the teacher's {theirs.num_layers}"
        )
    return run


def placed(shapes: Any, shardings: Any) -> Any:
    """Return a tree of shapes with where each array shall live."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def open_teacher(config: Config, run: OpenRun | None, mesh: Mesh) -> Teacher | None:
    """Return the teacher that `fitting_teacher` found, its parameters placed on the mesh."""
    if run is None or config.distillation is None:
        return None
    folder = location(config.distillation.teacher)
    model = Model(run.config.model, execution(config.training, mesh_of(config, mesh)))
    target = placed(model.shapes, param_shardings(mesh, model.shapes, model.config.head_dim))
    skip = ("row_heads/.*",) if any(path.startswith("row_heads/") for path in stored_shapes(folder)) else ()
    return Teacher(Teaching(config.distillation, model), restore_params(folder, target, skip=skip)[0])


def begin_with_layers(config: Config, teacher: Teacher, fresh: Params) -> tuple[Params, RestoreTable]:
    """Return a student's parameters taken over from its teacher: the chosen layers, embeddings and all else that both
    have. What only one side has must be named, as for any restore: `checkpoint.init_skip`, `checkpoint.init_new`."""
    distillation, model = teacher.teaching
    dropped = set(range(model.config.num_layers)) - set(distillation.layers)
    skip = (*config.checkpoint.init_skip, *(rf".*/layers[{layer}]/.*" for layer in sorted(dropped)))
    return restore_params(location(distillation.teacher), fresh, skip=skip, new=config.checkpoint.init_new)
