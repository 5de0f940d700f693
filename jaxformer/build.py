"""From a resolved config to live objects: tokenizer, labels, bound objective or task, model, held-out rows."""

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, PartitionSpec

from jaxformer.checkpoint import finished_steps
from jaxformer.config import Config
from jaxformer.data.batches import Member, evaluation_batches, train_batches
from jaxformer.data.prepare import corpus_tokenizer, prepare, weighted_sources
from jaxformer.errors import EmptySplit, UserError
from jaxformer.models.model import Model
from jaxformer.optimizers import Optimizer, freeze, make_optimizer
from jaxformer.phases import Phase
from jaxformer.progress import Display
from jaxformer.sharding import make_mesh, own_rows, replicated, split, state_shardings
from jaxformer.step import Losses, Teaching, TrainState, execution, init_state, make_eval_step, make_train_step
from jaxformer.storage import location
from jaxformer.tokenizers import Tokenizer, load_tokenizer


def choose_tokenizer(config: Config, workdir: Path, resumes: bool, display: Display) -> Tokenizer:
    """Return the run's own tokenizer when it resumes, that of `init_from` or of a teacher when it starts from there,
    else the config's.

    Raises UserError when such a base is no run, or another tokenizer is named than the checkpoint's.
    """
    own = workdir / "tokenizer.json"
    if resumes and own.exists():
        return load_tokenizer(own)
    bases = {"init_from": config.init_from}
    if config.distillation is not None:
        bases["distillation.teacher"] = config.distillation.teacher
    found: dict[str, Tokenizer] = {}
    for key, base in bases.items():
        if base:
            if not finished_steps(location(base) / "checkpoints"):  # said now, before a corpus is tokenised
                raise UserError(f"{key}: {base} is not a run with a checkpoint; give a folder that `train` wrote")
            found[f"{key} {base}"] = load_tokenizer(location(base) / "tokenizer.json")
    if config.selected["tokenizer"] == "file":
        found[f"tokenizer.path {config.tokenizer.path}"] = load_tokenizer(config.tokenizer.path)
    if not found:
        return corpus_tokenizer(config.tokenizer, config.data, config.supervision, display.progress)
    (first, tokenizer), *others = found.items()
    for where, other in others:
        if other.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{where}: its tokenizer is not that of {first} (fingerprints {other.fingerprint}, "
                f"{tokenizer.fingerprint}); all must have one vocabulary (leave tokenizer.path out to use a run's own)"
            )
    return tokenizer


def label_names(config: Config) -> tuple[str, ...]:
    """Return a task's label names, which every member of a mixture must share; () for an objective."""
    if config.task is None:
        return ()
    names = {member.label_names() for member, _ in weighted_sources(config.data)}
    if len(names) > 1:
        found = " / ".join(map(str, sorted(names)))
        raise UserError(f"data: the members of the mixture have different labels: {found}")
    return names.pop()


def run_mesh(config: Config) -> Mesh:
    """Return the mesh of a run. Raises UserError when a batch of any of its phases does not divide among devices."""
    return make_mesh(config.sharding, batch_sizes(config))


def batch_sizes(config: Config) -> dict[str, int]:
    """Return the sizes of all batches that devices share, each under the name that errors call it by."""
    batches = {"evaluation.batch_size": _evaluation_rows(config)}
    for number, phase in enumerate(config.phases):
        where = "training" if phase.last is None else f"training.phases[{number}]"
        name = f"{where}.batch_size / accumulation_steps"
        batches[name] = phase.batch_size // phase.accumulation_steps
    return batches


def _evaluation_rows(config: Config) -> int:
    """Return how many rows are judged at a time: where the config does not say, as many as a micro-batch has."""
    return config.evaluation.batch_size or config.training.batch_size // config.training.accumulation_steps


def mesh_of(config: Config, mesh: Mesh) -> Mesh | None:
    """Return the mesh that activations are split over: none under pmap, whose devices know nothing of each other."""
    return mesh if config.sharding.strategy == "mesh" else None


def training_members(
    config: Config, tokenizer: Tokenizer, labels: Sequence[str], display: Display
) -> list[list[Member]]:
    """Return what the batches of every phase draw from; phases with the same rows share them."""
    members: list[list[Member]] = []
    for number, phase in enumerate(config.phases):
        same = [other for other in range(number) if config.phases[other].changes == phase.changes]
        if same:
            members.append(members[same[0]])
            continue
        section = "task" if config.objective is None else "objective"
        changed = dataclasses.replace(config, **{section: phase.of(config.supervision)})
        drawn = prepare(
            config.data, bind(changed, tokenizer, labels), tokenizer, "train", seed=config.seed,
            progress=display.progress,
        )  # fmt: skip
        members.append(drawn)
    return members


def training_batches(
    config: Config, members: Sequence[Sequence[Member]], mesh: Mesh, start: int
) -> Generator[tuple[Phase, dict[str, np.ndarray]]]:
    """Yield (phase, this process's rows of the batch) of every step after `start`, endlessly; close it in the end."""
    for phase, drawn in zip(config.phases, members, strict=True):
        if phase.last is not None and phase.last <= start:
            continue
        done = max(start, phase.first)
        batches = train_batches(
            drawn, seed=config.seed, batch_size=phase.batch_size, first_example=phase.example(done),
            rows=own_rows(mesh, phase.batch_size), workers=config.data.workers,
        )  # fmt: skip
        with contextlib.closing(batches):
            while phase.last is None or done < phase.last:
                yield phase, next(batches)
                done += 1


def held_out_batches(config: Config, member: Member, mesh: Mesh | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of held-out rows, the same at every call; on a mesh, this process's rows of them."""
    batch_size = _evaluation_rows(config)
    return evaluation_batches(
        member.rows,
        member.transform,
        seed=config.seed,
        batch_size=batch_size,
        limit=config.evaluation.max_examples,
        own=None if mesh is None else own_rows(mesh, batch_size),
    )


def held_out_members(config: Config, supervision: Any, tokenizer: Tokenizer, display: Display) -> list[Member]:
    """Return the held-out rows of every member, or none, with a note, where one has none."""
    try:
        return prepare(
            config.data, supervision, tokenizer, config.evaluation.split, seed=config.seed, progress=display.progress
        )
    except EmptySplit as error:
        display.note(f"no evaluation during this run: {error}")
        return []


def build_model(config: Config, supervision: Any, mesh: Mesh | None = None) -> Model:
    """Return the model of a config with the heads that its objective or task asks for, its activations split over a
    mesh where one is given."""
    return _shared(
        Model(
            config.model,
            execution(config.training, mesh),
            heads=tuple(supervision.heads.items()),
            head_dropout=supervision.head_dropout,
            predicts_tokens=supervision.predicts_tokens,
        )
    )


@functools.lru_cache(maxsize=8)
def _shared(model: Model) -> Model:
    """Return the first of equal models, which knows its shapes already."""
    return model


class Steps(NamedTuple):
    """The compiled functions of a run, and where the arrays of its state live."""

    make_state: Any  # (rng) -> state, every array made where it lives
    train_step: Any  # (state, batch, rng, learning_rate[, teacher_params]) -> (state, metrics); the state is donated
    eval_step: Any  # (params, batch) -> (sums, predictions)
    shardings: Any  # of the state


@functools.lru_cache(maxsize=8)
def compiled_steps(
    model: Model, losses: Losses, optimizer: Optimizer, trainable: tuple[str, ...], accumulation_steps: int, mesh: Mesh,
    strategy: str = "mesh", skips: bool = False, teaching: Teaching | None = None,
) -> Steps:  # fmt: skip
    """Return the jitted (or pmapped) functions of a run on a mesh.

    Runs of one shape in one process, as sweeps and fine-tunings have many, share them, and are traced and compiled
    once. The optimizer's learning rate and schedule are not read.
    """
    update = freeze(make_optimizer(optimizer, model.shapes), trainable, model.shapes)
    everywhere = replicated(mesh)

    def make_state(rng: jax.Array) -> TrainState:
        return init_state(model, update, rng)

    placed = state_shardings(mesh, jax.eval_shape(make_state, jax.random.key(0)), model.config.head_dim)
    step = functools.partial(make_train_step, model, losses, update, accumulation_steps, teaching, skips=skips)
    if strategy == "pmap":
        train_step = _pmapped(step(axis="data"), mesh)
    else:
        keep = functools.partial(jax.lax.with_sharding_constraint, shardings=placed.params)
        train_step = jax.jit(
            step(keep=keep) if mesh.size > 1 else step(), donate_argnums=0, out_shardings=(placed, everywhere)
        )
    eval_step = jax.jit(make_eval_step(model, losses))
    return Steps(jax.jit(make_state, out_shardings=placed), train_step, eval_step, placed)


def _pmapped(step: Any, mesh: Mesh) -> Any:
    """Return the step under `jax.pmap`, as a function of the same global arrays as the jitted one."""
    count, copies = mesh.size, PartitionSpec()
    mapped = jax.pmap(
        step, axis_name="data", in_axes=(None, 0, None, None, None), out_axes=None, donate_argnums=0,
        devices=list(mesh.devices.ravel()),
    )  # fmt: skip
    by_device = jax.jit(
        lambda batch: jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch), out_shardings=split(mesh)
    )

    def train_step(
        state: TrainState, batch: Any, rng: jax.Array, learning_rate: jax.Array | float, teacher_params: Any = None
    ) -> Any:
        rate = jnp.asarray(learning_rate, float)
        if jax.process_count() == 1:
            return mapped(state, by_device(batch), rng, rate, teacher_params)
        # Each process gives pmap its own part of what is global, and gets its own part back.
        state, teacher_params = multihost_utils.global_array_to_host_local_array((state, teacher_params), mesh, copies)
        rows = multihost_utils.global_array_to_host_local_array(by_device(batch), mesh, PartitionSpec("data"))
        results = mapped(state, rows, rng, rate, teacher_params)
        return multihost_utils.host_local_array_to_global_array(results, mesh, copies)

    return train_step


def timeless(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer's config without what only its schedule reads: what is left decides the compiled step."""
    return dataclasses.replace(
        optimizer, learning_rate=1.0, schedule="constant", warmup_steps=0, decay_steps=0, final_fraction=0.0
    )


def bind(config: Config, tokenizer: Tokenizer, labels: Sequence[str]) -> Any:
    """Return the config's objective or task with the tokenizer's ids, the labels and their texts.

    Raises UserError when the tokenizer has more ids than the model's table, or lacks one that is needed.
    """
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"model.vocab_size: {config.model.vocab_size}, but the tokenizer has {tokenizer.vocab_size} ids; "
            "use the tokenizer that belongs to the model, or a larger vocab_size"
        )
    vocabulary = tokenizer.vocabulary
    if config.model.family == "encoder_decoder":
        vocabulary = vocabulary.starting(config.model.decoder_start)
    if config.task is None:
        return config.objective.bind(vocabulary)
    return config.task.bind(vocabulary, tuple(labels), tokenizer.encode)
