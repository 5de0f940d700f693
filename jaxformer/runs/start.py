"""Where a run's parameters come from: its own checkpoint, another run, the layers of a teacher, or chance."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxformer.checkpoint import Which, fresh_heads, named, restore_params, source_of
from jaxformer.config import Config
from jaxformer.devices import is_first, placed
from jaxformer.models import Params
from jaxformer.runs.fingerprints import KEY
from jaxformer.runs.learner import Learner
from jaxformer.runs.opened import OpenedRun
from jaxformer.runs.record import compare_with_base, write_record, write_segment
from jaxformer.runs.teacher import begin_with_layers
from jaxformer.storage import read_record
from jaxformer.tasks import renamed
from jaxformer.training import TrainState, beginning_with


def start_state(run: OpenedRun, learner: Learner) -> TrainState:
    """Return the state to go on from: the newest good checkpoint, else `init_from` with fresh embeddings for the tokens
    that it has not learnt, else layers of a teacher, else fresh.

    A new run's record and tokenizer are written here and no sooner: what failed until now has left no run that a
    corrected command must resume.
    """
    state = _resumed(run, learner) if run.resumes else None
    if state is None:
        with learner.compiling():
            state = learner.last.make_state(learner.rngs[0])
        params = _from_another(run, learner, state.params)
        state = state if params is None else beginning_with(state, params)
    if is_first():
        _record(run, learner, int(state.step))
    run.staging.sync()  # config.json is there before the first checkpoint
    return state


def _record(run: OpenedRun, learner: Learner, step: int) -> None:
    """Write what the run is, or, where it goes on, what changed; a run that has no step to go stays as it is."""
    data, count = learner.data, learner.num_parameters
    read = {KEY: data.fingerprints, "left_out": {part: counts for part, counts in data.left_out.items() if counts}}
    if not run.resumes:
        data.tokenizer.save(run.folder / "tokenizer.json")
        write_record(run.folder, run.config, data.labels, count, run.started, read)
    elif step < run.config.training.num_steps:
        write_segment(run.folder, run.config, data.labels, count, read, step)


def _resumed(run: OpenedRun, learner: Learner) -> TrainState | None:
    steps = learner.last
    shapes = jax.eval_shape(steps.make_state, learner.rngs[0])
    found = run.checkpoints.restore_latest(placed(shapes, steps.shardings))
    if found is None:
        return None
    run.display.note(f"resuming {run.workdir} at step {found[0]}")
    return found[1]


def _from_another(run: OpenedRun, learner: Learner, fresh: Params) -> Params | None:
    """Return the parameters that come from another run, or None where all are fresh."""
    config, teacher = run.config, learner.teacher
    if config.init_from:
        source = source_of(config.init_from, Which(parameters=config.checkpoint.init_parameters))
        skip, new = config.checkpoint.init_skip, config.checkpoint.init_new
        if config.checkpoint.init_heads == "fresh":
            skipped, started = fresh_heads(
                source.checkpoints[0], fresh, same_task=_is_same_task(config, learner.data.labels)
            )
            skip, new = (*skip, *skipped), (*new, *started)
        base = read_record(named(config.init_from)[0])["config"]["model"]
        vocab_size = config.model.vocab_size if base["vocab_size"] == config.model.vocab_size else 0
        params, table = restore_params(source, fresh, skip=skip, new=new, vocab_size=vocab_size)
        run.display.note(table.render())
        for line in compare_with_base(config, learner.data.labels, table.restored):
            run.display.note(f"note: {line}")
        return _with_fresh_tokens(params, fresh, learner.data.supervision.new_token_ids)
    if teacher is not None and teacher.teaching.config.layers:
        params, table = begin_with_layers(config, teacher, fresh)
        run.display.note(table.render())
        return params
    return None


def _is_same_task(config: Config, labels: Sequence[str]) -> bool:
    """Say whether the run that this one starts from has learnt the same task, with the same labels."""
    record = read_record(named(config.init_from)[0])
    task = renamed(record["config"].get("task", {}))
    return task.get("name") == config.selected.get("task") and list(labels) == record["labels"]


def _with_fresh_tokens(params: Params, fresh: Params, ids: Sequence[int]) -> Params:
    """Return parameters with the fresh embeddings of these tokens, which the other run has not learnt."""
    if not ids:
        return params
    rows = np.array(ids)
    table_VD, fresh_VD = params["embedding"]["tokens"], fresh["embedding"]["tokens"]
    take = jax.jit(lambda table, fresh: table.at[rows].set(fresh[rows]), out_shardings=table_VD.sharding)
    return params | {"embedding": params["embedding"] | {"tokens": take(table_VD, fresh_VD)}}
