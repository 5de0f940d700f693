"""Judging parameters on held-out rows: while a run trains, and afterwards, on data of one's own too."""

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxformer.checkpoint import NEWEST, Which, named
from jaxformer.checks import several
from jaxformer.config import Config
from jaxformer.data import (
    Chosen,
    Member,
    evaluated_rows,
    evaluation_batches,
    learnt_from,
    left_out_files,
    left_out_of,
    prepare,
)
from jaxformer.devices import check_same, connect, first_alone, is_first, meet, own_rows, place, prepare_process
from jaxformer.evaluation import Evaluation, combined, confidence, evaluate, not_finite
from jaxformer.models import Model, Params
from jaxformer.runs.data import Data, check_batch, label_names
from jaxformer.runs.devices_here import mesh_here
from jaxformer.runs.fingerprints import check_data
from jaxformer.runs.judged_data import Judged, described, judged_data, with_rows
from jaxformer.runs.loading import LoadedRun, bind, overridden, stored_run, with_parameters
from jaxformer.runs.progress import Display
from jaxformer.storage import read_record, store_errors, write_json, write_lines
from jaxformer.tables import counted
from jaxformer.tasks import signatures
from jaxformer.training import compiled_eval_step, losses_of


def judge(
    config: Config, data: Data, model: Model, eval_step: Any, params: Params, mesh: Mesh | None = None
) -> dict[str, float]:
    """Return the metrics of parameters on the held-out rows of all members, and how many "examples" were judged, of a
    mixture in all and of each member; none where there are no such rows.

    On a mesh every process judges its own rows, and all return the same.
    """
    return summary(evaluations(config, data, model, eval_step, params, mesh))


def evaluations(
    config: Config, data: Data, model: Model, eval_step: Any, params: Params, mesh: Mesh | None = None
) -> list[tuple[Member, int, Evaluation]]:
    """Return (member, how many of its examples were judged, what was found on them) of each member."""
    found = []
    for member in data.held_out:
        chosen = evaluated_rows(member.rows, config.evaluation.max_examples, config.seed)
        learnt = learnt_from(member)  # of several, each is judged by itself
        is_task = learnt.answering is not None
        evaluation = evaluate(
            model, learnt, eval_step, params,
            checked(config, data, held_out_batches(config, member, chosen, mesh)),
            place=(lambda batch: batch) if mesh is None else functools.partial(place, mesh),
            tokenizer=data.tokenizer, rows=Chosen(member.rows, chosen) if is_task else (),
            generation=config.generation,
        )  # fmt: skip
        found.append((member, len(evaluation.answers) if is_task else len(chosen), evaluation))
    return found


def summary(found: Sequence[tuple[Member, int, Evaluation]]) -> dict[str, float]:
    """Return the metrics of all members, and how many "examples" they are of."""
    if not found:
        return {}
    counts = {member.name: count for member, count, _ in found}
    each = {f"{name}/examples": count for name, count in counts.items()} if len(counts) > 1 else {}
    parts = [(member.name, member.weight, evaluation.metrics) for member, _, evaluation in found]
    return combined(parts) | {"examples": sum(counts.values())} | each


def checked(config: Config, data: Data, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches in which every number points somewhere (see `check_batch`)."""
    for batch in batches:
        check_batch(batch, config.model, data.supervision)
        yield batch


def held_out_batches(
    config: Config, member: Member, chosen: Sequence[int], mesh: Mesh | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Return the batches of chosen held-out rows, the same at every call; on a mesh, this process's rows of them."""
    batch_size = config.evaluation_rows
    return evaluation_batches(
        member.rows,
        member.transform,
        chosen,
        seed=config.seed,
        batch_size=batch_size,
        own=None if mesh is None else own_rows(mesh, batch_size),
    )


class Result(NamedTuple):
    """What an evaluation found: metrics and, of a task's, the bounds (low, high) of their 95 % bootstrap intervals."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


@store_errors()
def evaluate_run(
    workdir: Path, split: str, overrides: str | Sequence[str] = (), display: Display | None = None, *,
    which: Which = NEWEST, allow_change: bool = False,
) -> Result:  # fmt: skip
    """Judge parameters of a run (those of its newest checkpoint, or what `which` says) on a split of its data, or on
    all rows of the data that the overrides name. All rows are judged unless the overrides limit them.

    All processes share the rows, on the devices that `mesh_here` finds, and return the same; the first one writes. The
    result goes to `results/evaluate-SPLIT.json`, which names the step and the data with what of it was left out or cut,
    which `display` says; that of other data than the run's own to `results/evaluate-SPLIT-NAME-FINGERPRINT.json`, that
    of a step which was asked for has `-step-STEP` behind its name, that of an average `-average-N`, of the moving
    average `-ema`. A task's answers stand beside it, one example a line, in `….answers.jsonl`. Raises UserError for a
    split that there is not, for labels that the run has not learnt, and, unless `allow_change`, where the run's own
    data changed.
    """
    prepare_process()
    connect()
    display = display if display is not None and is_first() else Display(quiet=True)
    (workdir, chosen), stored, given = named(workdir, which.step), stored_run(workdir, allow_change), several(overrides)
    # A limit is for evaluations during training; here it is taken from the overrides alone.
    config, mesh = mesh_here(overridden(stored.config, ["evaluation.max_examples=0", *given]), given, display.note)
    run = with_parameters(stored._replace(config=config), workdir, which._replace(step=chosen), mesh)
    data, judged = first_alone(lambda: _held_out(run, stored.config, split, workdir, allow_change, display))
    check_same("the data", str([[len(member.rows) for member in data.held_out], judged.facts]))
    for line in [*counted(data.left_out), *[described(fact, judged.part) for fact in judged.facts]]:
        display.note(line)
    eval_step = compiled_eval_step(run.model, losses_of(data.supervision))
    found = evaluations(config, data, run.model, eval_step, run.params, mesh)
    result = Result(summary(found), bounds(found, config.seed))
    if is_first():
        name = judged.name + (f"-step-{run.step}" if chosen != "latest" else "") + run.source.name
        facts = {"step": run.step, **run.source.facts, "split": split, "data": judged.facts}
        _write(workdir / "results" / name, facts, result, found, data)
    meet()
    if odd := not_finite(result.metrics):
        display.note(f"{workdir}: this evaluation is not finite ({', '.join(odd)}); in the results these are null")
    return result


def _held_out(
    run: LoadedRun, trained: Config, split: str, workdir: Path, allow_change: bool, display: Display
) -> tuple[Data, Judged]:
    """Return what is judged, and the facts of it, given the run as it was `trained`."""
    config = run.config
    check_data(workdir, config, trained, allow_change)
    judged = judged_data(config, trained, split, read_record(workdir))
    labels = run.labels or label_names(config)  # imported weights that write their labels know none before
    supervision = bind(config, run.tokenizer, labels)
    held_out = prepare(
        config.data, supervision, run.tokenizer, judged.part, seed=config.seed, progress=display.progress,
        note=display.note,
    )  # fmt: skip
    left_out = {"files": left_out_files(config.data), judged.part: left_out_of(held_out)}
    data = Data(run.tokenizer, labels, supervision, [], held_out, left_out=left_out)
    return data, judged._replace(facts=with_rows(judged, held_out))


def _write(
    path: Path, facts: dict[str, Any], result: Result, found: Sequence[tuple[Member, int, Evaluation]], data: Data
) -> None:
    """Write what an evaluation found and, of a task, the answers beside it."""
    content = facts | {"metrics": result.metrics, "left_out": data.left_out}
    if data.supervision.labelled:
        content["intervals"] = result.intervals
        for part in data.supervision.parts:
            own = [one for member, _, one in found if learnt_from(member) is part.objective]
            content |= signatures(part.objective.metrics, [truth for one in own for truth in one.truths])
        write_lines(path.with_name(f"{path.name}.answers.jsonl"), answer_lines(found))
    write_json(path.with_name(f"{path.name}.json"), content)


def bounds(found: Sequence[tuple[Member, int, Evaluation]], seed: int) -> dict[str, tuple[float, float]]:
    """Return the 95 % intervals of a task's metrics, under the names that `summary` has them by; there is none of a
    mean over members."""
    several_of = len(found) > 1
    return {
        f"{member.name}/{name}" if several_of else name: bound
        for member, _, evaluation in found
        for name, bound in confidence(learnt_from(member), evaluation, seed).items()
    }


def answer_lines(found: Sequence[tuple[Member, int, Evaluation]]) -> Iterator[str]:
    """Yield a line of JSON of each example that was judged: its number, what is true of it, and the answer."""
    for member, _, evaluation in found:
        for number, (truth, answer) in enumerate(zip(evaluation.truths, evaluation.answers, strict=True)):
            where = {"member": member.name} if len(found) > 1 else {}
            yield json.dumps(where | {"index": number, "truth": truth} | answer, ensure_ascii=False)
