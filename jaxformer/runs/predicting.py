"""Answers of a fine-tuned model to new texts: rows in, one answer each out, in their order."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data import Malformed, unlabelled
from jaxformer.errors import UserError, suggest
from jaxformer.evaluation import outputs_of
from jaxformer.models import Model
from jaxformer.objectives import Supervision
from jaxformer.runs.shapes import batches_by_length, rounded_up, windows

if TYPE_CHECKING:
    from jaxformer.runs.loading import LoadedRun

READ = ("inputs", "segment_ids", "positions", "token_types")  # arrays of a row, which padding may be cut from
Input = str | Mapping[str, Any] | Sequence[str]


def task_of(run: "LoadedRun", title: str = "") -> Supervision:
    """Return the task that a run has learnt, bound; of several the one with this title.

    Raises UserError for a run that has learnt no task, and where it is not said which of several is meant.
    """
    supervision = run.supervision
    if len(supervision.parts) > 1 and supervision.labelled:
        named = ((part.title or f"{part.objective.name}{n}", part) for n, part in enumerate(supervision.parts))
        titles: dict[str, Supervision] = {name: part.objective for name, part in named}  # as results call them
        if title not in titles:
            said = f"there is no '{title}'{suggest(title, titles)}" if title else "the run has learnt several"
            raise UserError(f"--task: {said}; name one of {', '.join(titles)}")
        return titles[title]
    if supervision.answering is None:
        verb = (
            "fine-tune it on a task first (--config.init_from)"
            if run.config.model.family == "encoder_only"
            else "`jaxformer generate` lets it write"
        )
        raise UserError(
            f"this run has learnt an objective, {supervision.name}, and no task, so it has no answers to give; {verb}, "
            "and `jaxformer embed` makes vectors of texts"
        )
    if title and title != supervision.name:
        raise UserError(f"--task: the run has learnt one task, {supervision.name}; leave it out")
    return supervision


def as_record(given: Input, fields: Sequence[str], where: str) -> Mapping[str, Any]:
    """Return an input as a record: text where one field is read, else a mapping, or as many texts in their order.

    Raises Malformed for anything else.
    """
    if isinstance(given, Mapping):
        return given
    texts = [given] if isinstance(given, str) else list(given)
    if len(texts) != len(fields) or not all(isinstance(text, str) for text in texts):
        wanted = "a text" if len(fields) == 1 else "a dict with them, or their texts in this order"
        raise Malformed(f"{where}: the task reads {', '.join(fields)}; give {wanted}")
    return dict(zip(fields, texts, strict=True))


def predicted(
    run: "LoadedRun", task: Supervision, inputs: Iterable[Input], batch_size: int
) -> Iterator[dict[str, Any]]:
    """Yield the answer to each input. Raises UserError, naming it, for one that cannot be read."""

    def examples() -> Iterator[dict[str, Any]]:
        for number, given in enumerate(inputs):
            where = f"input {number}"
            record = as_record(given, task.fields, where)
            yield unlabelled(record, task.fields, task.label_kind, run.config.data, where)

    for window in windows(examples(), batch_size):
        yield from answers_to(run, task, window, batch_size)[0]


def answers_to(
    run: "LoadedRun", task: Supervision, examples: Sequence[Mapping[str, Any]], batch_size: int
) -> tuple[list[dict[str, Any]], int]:
    """Return the answers to examples, which are read together, and how many of them had to be cut."""
    answering = task.answering
    assert answering is not None
    if not examples:
        return [], 0
    rows, lengths = _rows(run, task, examples)
    found: list[Any] = [None] * len(rows)
    arrays = [dict(task_arrays(task, row)) for row in rows]  # type: ignore[arg-type]
    for places in batches_by_length([_length(each) for each in arrays], batch_size):
        batch = _batch([arrays[place] for place in places], task, batch_size)
        outputs = _outputs(run, task, batch)
        real = {name: values[: len(places)] for name, values in outputs.items()}
        for place, read in zip(places, answering.read(real, [rows[place] for place in places]), strict=True):
            found[place] = read
    return answering.answers(rows, found), int(np.sum(answering.is_cut(lengths)))


def task_arrays(task: Any, row: Mapping[str, Any]) -> Mapping[str, np.ndarray]:
    """Return the arrays that a task makes of a row. Nothing is drawn for a row that is to be answered."""
    arrays: Mapping[str, np.ndarray] = task(row, np.random.default_rng(0))
    return arrays


def _rows(
    run: "LoadedRun", task: Supervision, examples: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Return the rows of examples, tokenised, as the store gives them, and {field: tokens of each, int64 [N]}."""
    rows = [dict(example) | {"offsets": {}} for example in examples]
    lengths = {}
    for field in task.fields:
        encodings = run.tokenizer.encode_batch([example[field] for example in examples])
        lengths[field] = np.array([len(encoding.ids) for encoding in encodings], np.int64)
        for row, encoding in zip(rows, encodings, strict=True):
            row[field] = np.array(encoding.ids, np.int32)
            row["offsets"][field] = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    assert task.answering is not None
    counts = task.answering.num_rows(lengths)
    each = zip(rows, counts, strict=True)
    return [row | {"window": window} for row, count in each for window in range(int(count))], lengths


def _length(arrays: Mapping[str, np.ndarray]) -> int:
    """Return how many tokens of a row are read, of the side that reads more."""
    return max(int((arrays[name] > 0).sum(axis=-1).max()) for name in arrays if name.endswith("segment_ids"))


def _batch(rows: Sequence[Mapping[str, np.ndarray]], task: Supervision, size: int) -> dict[str, np.ndarray]:
    """Return rows as a batch, without what no row of it fills; rows and widths are rounded up, so that there are few
    shapes."""
    filled = [rows[min(place, len(rows) - 1)] for place in range(rounded_up(len(rows), 1, size))]
    batch = {name: np.stack([row[name] for row in filled]) for name in rows[0]}
    for side in ("", "encoder_"):
        # What a decoder is to write has no tokens yet.
        if f"{side}segment_ids" not in batch or (not side and task.decodes):
            continue
        segments = batch[f"{side}segment_ids"]
        width = segments.shape[-1]
        longest = 1 + int(np.flatnonzero(segments.reshape(-1, width).any(axis=0))[-1])
        for name in {f"{side}{name}" for name in READ} & set(batch):
            batch[name] = batch[name][..., : rounded_up(longest, 16, width)]
    return batch


def _outputs(run: "LoadedRun", task: Supervision, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what the model says of a batch: the logits of its heads, or what it writes."""
    if task.decodes:
        return outputs_of(run.model, task, run.weights, batch, {}, run.tokenizer, run.config.generation)
    read = {name: array for name, array in batch.items() if not name.endswith(("targets", "weights"))}
    return {name: np.asarray(logits) for name, logits in _compiled(run.model)(run.params, read).items()}


@functools.lru_cache(maxsize=8)
def _compiled(model: Model) -> Any:
    """Return jitted logits(params, batch) -> {head: float32 [B, …]}."""

    def logits(params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        outputs = model.apply(params, batch)
        return {name: outputs[name].astype(jnp.float32) for name, _, _ in model.heads}

    return jax.jit(logits)
