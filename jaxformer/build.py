"""From a resolved config to live objects: tokenizer, labels, bound objective or task, model, held-out rows."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer.checkpoint import finished_steps
from jaxformer.config import Config
from jaxformer.data.batches import Member, evaluation_batches
from jaxformer.data.prepare import corpus_tokenizer, prepare, weighted_sources
from jaxformer.errors import EmptySplit, UserError
from jaxformer.models.model import Model
from jaxformer.optimizers import Optimizer, freeze, make_optimizer
from jaxformer.progress import Display
from jaxformer.sharding import replicated
from jaxformer.step import Losses, Teaching, execution, init_state, make_eval_step, make_train_step
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
            if not finished_steps(Path(base) / "checkpoints"):  # said now, before a corpus is tokenised
                raise UserError(f"{key}: {base} is not a run with a checkpoint; give a folder that `train` wrote")
            found[f"{key} {base}"] = load_tokenizer(Path(base) / "tokenizer.json")
    if config.selected["tokenizer"] == "file":
        found[f"tokenizer.path {config.tokenizer.path}"] = load_tokenizer(Path(config.tokenizer.path))
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


def held_out_batches(config: Config, member: Member) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of held-out rows, the same at every call."""
    return evaluation_batches(
        member.rows,
        member.transform,
        seed=config.seed,
        batch_size=config.evaluation.batch_size or config.training.batch_size,
        limit=config.evaluation.max_examples,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
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


def build_model(config: Config, supervision: Any) -> Model:
    """Return the model of a config with the heads that its objective or task asks for."""
    return _shared(
        Model(
            config.model,
            execution(config.training),
            heads=tuple(supervision.heads.items()),
            head_dropout=supervision.head_dropout,
            predicts_tokens=supervision.predicts_tokens,
        )
    )


@functools.lru_cache(maxsize=8)
def _shared(model: Model) -> Model:
    """Return the first of equal models, which knows its shapes already."""
    return model


@functools.lru_cache(maxsize=8)
def compiled_steps(
    model: Model, losses: Losses, optimizer: Optimizer, trainable: tuple[str, ...], accumulation_steps: int, mesh: Any,
    teaching: Teaching | None = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Return jitted make_state(rng), train_step and eval_step, replicated over the mesh.

    Runs of one shape in one process, as sweeps and fine-tunings have many, share them, and are traced and compiled
    once. The optimizer's learning rate and schedule are not read.
    """
    update = freeze(make_optimizer(optimizer, model.shapes), trainable, model.shapes)
    everywhere = replicated(mesh)
    make_state = jax.jit(lambda key: init_state(model, update, key), out_shardings=everywhere)
    train_step = jax.jit(
        make_train_step(model, losses, update, accumulation_steps, teaching),
        donate_argnums=0,
        out_shardings=(everywhere, everywhere),
    )
    return make_state, train_step, jax.jit(make_eval_step(model, losses))


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
