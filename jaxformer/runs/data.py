"""What a run reads: its tokenizer, its labels, its objective or task with both, and rows to train on and to judge."""

import contextlib
import dataclasses
import itertools
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxformer.checkpoint import checkpoint_of, finished_steps, named
from jaxformer.config import Config
from jaxformer.data import (
    LeftOut,
    Member,
    check_split,
    classes_among,
    corpus_tokenizer,
    doubts,
    left_out_files,
    left_out_of,
    num_records,
    prepare,
    train_batches,
    weighted_sources,
)
from jaxformer.devices import check_same, first_alone, own_rows
from jaxformer.errors import EmptySplit, UserError
from jaxformer.models import TransformerConfig
from jaxformer.objectives import CLASS_KINDS, Supervision
from jaxformer.runs import fingerprints
from jaxformer.runs.loading import StoredRun, bind, own_tokenizer
from jaxformer.runs.opened import OpenedRun
from jaxformer.runs.progress import Display
from jaxformer.runs.teacher import fitting_teacher
from jaxformer.storage import read_record
from jaxformer.tables import counted
from jaxformer.tokenizers import Tokenizer, load_tokenizer
from jaxformer.training import Phase


class Data(NamedTuple):
    """What a run reads. `training` has the members of the mixture (or the only one) for each of its phases."""

    tokenizer: Tokenizer
    labels: tuple[str, ...]  # of a task; () for an objective
    supervision: Supervision  # the objective or task, bound to both
    training: list[list[Member]]
    held_out: list[Member]
    fingerprints: Mapping[str, Any] = {}  # of what is read
    left_out: Mapping[str, LeftOut] = {}  # of the files and of each split, what is not read, or cut
    teacher: StoredRun | None = None  # the run that teaches, whose parameters are not read yet


def prepare_data(run: OpenedRun) -> Data:
    """Return what a training run reads, prepared by process 0 first and found done by the others.

    Raises UserError for data that cannot be used as the config says, for a teacher that does not fit, and, where a run
    goes on, for data, labels or a tokenizer that changed: before any text is tokenised.
    """
    config = run.config
    check_split(config.data, config.evaluation.split)
    tokenizer = first_alone(lambda: choose_tokenizer(run))
    teacher = fitting_teacher(config, tokenizer, run.allows_change)
    labels = numbered(run, label_names(config))
    read = first_alone(lambda: fingerprints_of(run, tokenizer, labels))
    supervision = bind(config, tokenizer, labels)
    training = first_alone(lambda: training_members(config, tokenizer, labels, run.display))
    held_out, empty = first_alone(lambda: held_out_members(config, supervision, tokenizer, run.display))
    check_same("the tokenizer", tokenizer.fingerprint)
    sizes = [[len(member.rows) for member in drawn] for drawn in (*training, held_out)]
    check_same("the data", str([sizes, read["data"]]))
    left_out = {
        "files": left_out_files(config.data),
        "train": left_out_of(itertools.chain.from_iterable(training)),
        config.evaluation.split: left_out_of(held_out) or empty,
    }
    for line in [
        *counted(left_out),
        *label_notes(config),
        *split_sizes(training[0], held_out, config.evaluation.split),
    ]:
        run.display.note(line)
    return Data(tokenizer, labels, supervision, training, held_out, read, left_out, teacher)


def fingerprints_of(run: OpenedRun, tokenizer: Tokenizer, labels: Sequence[str]) -> dict[str, Any]:
    """Return the fingerprints of what a run reads, compared with those of a run that goes on.

    Raises UserError naming what changed, unless the run allows it: then it is said.
    """
    recorded = read_record(run.folder) if run.resumes else {}
    saved = run.resumes and finished_steps(run.workdir / "checkpoints")  # else it starts from `init_from` once more
    found = fingerprints.taken(run.config, tokenizer, recorded.get(fingerprints.KEY) if saved else None)
    if not run.resumes:
        return found
    lines = fingerprints.differences_of_run(recorded, run.config, labels, found, tokenizer)
    if fingerprints.KEY not in recorded:
        run.display.note(f"{run.workdir} {fingerprints.NOT_KEPT}")
    if lines and not run.allows_change:
        raise fingerprints.refusal(run.workdir, fingerprints.OTHER_DATA, lines)
    for line in lines:
        run.display.note(f"changed: {line}")
    return found


def choose_tokenizer(run: OpenedRun) -> Tokenizer:
    """Return the run's own tokenizer when it resumes, that of `init_from` or of a teacher when it starts from there,
    else the config's.

    Raises UserError when such a base is no run, or another tokenizer is named than the checkpoint's.
    """
    config, own = run.config, run.folder / "tokenizer.json"
    if run.resumes and own.exists():
        return load_tokenizer(own)
    bases = {"init_from": config.init_from}
    if config.distillation is not None:
        bases["distillation.teacher"] = config.distillation.teacher
    found: dict[str, Tokenizer] = {}
    for key, base in bases.items():
        if base:
            source, _ = named(base)
            if not finished_steps(source / "checkpoints"):  # said now, before a corpus is tokenised
                raise UserError(f"{key}: {base} is not a run with a checkpoint; give a folder that `train` wrote")
            checkpoint_of(base)
            found[f"{key} {base}"] = own_tokenizer(source, run.allows_change)
    if config.selected["tokenizer"] == "file":
        found[f"tokenizer.path {config.tokenizer.path}"] = load_tokenizer(config.tokenizer.path)
    if not found:
        return corpus_tokenizer(
            config.tokenizer, config.data, config.supervision, run.display.progress, run.display.note
        )
    (first, tokenizer), *others = found.items()
    for where, other in others:
        if other.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{where}: its tokenizer is not that of {first} (fingerprints {other.fingerprint}, "
                f"{tokenizer.fingerprint}); all must have one vocabulary (leave tokenizer.path out to use a run's own)"
            )
    return tokenizer


def label_names(config: Config) -> tuple[Any, ...]:
    """Return the names of the classes that a task learns, which every corpus that it reads must share; () where it has
    none. Of several tasks, those of each.

    Raises UserError for corpora that differ, and for a single class: there is nothing to tell apart.
    """
    corpora, parts = [corpus for corpus, _ in weighted_sources(config.data)], config.supervision.parts
    if len(parts) == 1 or not config.supervision.labelled:
        return _names(config.supervision, corpora)
    return tuple(
        _names(part.objective, [corpora[n] for n in part.corpora if 0 <= n < len(corpora)] or corpora) for part in parts
    )


def _names(supervision: Supervision, corpora: Sequence[Any]) -> tuple[str, ...]:
    """Return the names of the classes that a task learns of some corpora."""
    kind, task = supervision.label_kind, supervision.answering
    if kind not in CLASS_KINDS or task is None:
        return ()
    names = {corpus.label_names(kind) for corpus in corpora}
    if len(names) > 1:
        found = " / ".join(map(str, sorted(names)))
        raise UserError(f"data: the members of the mixture have different labels: {found}")
    (labels,) = names
    if len(labels) < (2 if kind == "class" else 1):
        what = f"all rows that have a label have the same, '{labels[0]}'" if labels else "no row has a label"
        raise UserError(
            f"data: {what}, and there is nothing to learn; null, NaN, -1 and empty text count as no label; "
            "check data.label_field"
        )
    return task.learnt(labels)


def numbered(run: OpenedRun, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return a task's labels with the numbers of a run that goes on from before whole numbers had the order of numbers,
    and were the same with and without a point: those of text."""
    stored = tuple(read_record(run.folder)["labels"]) if run.resumes else ()
    if len(run.config.supervision.parts) == 1 and stored == tuple(sorted(stored)):
        with contextlib.suppress(UserError):
            classes_among(names, stored)
            return stored
    return names


def label_notes(config: Config) -> list[str]:
    """Return what a person should know of a task's classes, a line each."""
    sources = [source for source, _ in weighted_sources(config.data)]
    return [
        f"data.members[{number}]: {line}" if len(sources) > 1 else line
        for number, source in enumerate(sources)
        for line in dict.fromkeys(
            line
            for part in config.supervision.parts
            if part.objective.labelled and number in (part.corpora or range(len(sources)))
            for line in source.label_notes(part.objective.label_kind)
        )
    ]


def split_sizes(training: Sequence[Member], held_out: Sequence[Member], split: str) -> list[str]:
    """Return a line for every member: how many documents, pairs or examples are for training, and how many held out."""
    return [
        f"{f'{member.name}: ' if member.name else ''}{num_records(member.rows):,} rows of data to train on, "
        f"{num_records(other.rows):,} held out ({split})"
        for member, other in zip(training, held_out, strict=False)
    ]


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
            progress=display.progress, note=display.note,
        )  # fmt: skip
        members.append(drawn)
        for doubt in doubts(drawn):
            display.note(doubt)
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


def check_batch(batch: Mapping[str, np.ndarray], model: TransformerConfig, supervision: Supervision) -> None:
    """Raise UserError for a number in a batch that points nowhere: a device would take the nearest row or place for it,
    without a word. Predictions without weight do not count. Raise it, too, for rows that are packed where the objective
    says that none is: kernels of attention rely on it."""
    width = batch["inputs"].shape[-1]
    limits = dict.fromkeys(("inputs", "encoder_inputs", "targets"), (model.vocab_size, "ids of the model's vocabulary"))
    limits |= {"predict_positions": (width, "places of the row"), "prefix_length": (width + 1, "lengths of a prefix")}
    if model.token_types:
        limits["token_types"] = (model.token_types, "types of model.token_types")
    if model.position == "learned":
        limits |= dict.fromkeys(("positions", "encoder_positions"), (model.max_length, "places of model.max_length"))
    for name, head in supervision.heads.items():
        limits[f"{name}_positions"] = (width, "places of the row")
        if head.loss == "places":
            limits[f"{name}_targets"] = (width, "places of the row")
        elif head.loss == "softmax":
            classes = batch["inputs"].shape[1] if head.reads == "choices" else head.size
            limits[f"{name}_targets"] = (classes, "its choices" if head.reads == "choices" else "its classes")
    for name, (limit, what) in limits.items():
        values = batch.get(name)
        if values is None or not values.size or (values.min() >= 0 and values.max() < limit):
            continue
        outside = (values < 0) | (values >= limit)
        if name.endswith("targets"):
            outside &= batch[f"{name.removesuffix('targets')}weights"] > 0
        if outside.any():
            raise UserError(
                f"{supervision.name}: {name} holds {values[outside][0]}, but there are 0 to {limit - 1} ({what}); "
                "the objective or task that makes this array is to be mended"
            )
    for name in ("segment_ids", "encoder_segment_ids"):
        if name in batch and not supervision.packed and not _is_one_segment(batch[name]):
            raise UserError(
                f"{supervision.name}: {name} has rows of several segments, or with padding before text; the objective "
                "or task that makes them must say packed=True, or attention would cross segments"
            )


def _is_one_segment(segments: np.ndarray) -> bool:
    """Whether every row is a text of segment 1 with padding behind it."""
    return bool(((segments == 0) | (segments == 1)).all() and (np.diff(segments, axis=-1) <= 0).all())


def held_out_members(
    config: Config, supervision: Supervision, tokenizer: Tokenizer, display: Display
) -> tuple[list[Member], LeftOut]:
    """Return the held-out rows of every member, or none, with a note and what was left out of them, where one has
    none."""
    try:
        members = prepare(
            config.data, supervision, tokenizer, config.evaluation.split, seed=config.seed,
            progress=display.progress, note=display.note,
        )  # fmt: skip
    except EmptySplit as error:
        display.note(f"no evaluation during this run: {error}")
        return [], error.left_out
    return members, {}
