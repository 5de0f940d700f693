"""What `predict`, `generate`, `fill` and `embed` do: files of any length in, an answer or a vector for each row out."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer import config as configs
from jaxformer.data import PLACES, Malformed, Record, unlabelled
from jaxformer.errors import UserError, disk_errors
from jaxformer.generation import GenerationConfig
from jaxformer.objectives import Supervision
from jaxformer.runs.answer_rows import Example, Output, Read, Work, answer_rows, bracketed, looked_through
from jaxformer.runs.embedding import layer_number, vectors
from jaxformer.runs.filling import Asking, blank, chosen, filled
from jaxformer.runs.generating import answered, check_streams, checked_prompt, lacks_room, streamed, writing
from jaxformer.runs.given import Given
from jaxformer.runs.loading import LoadedRun
from jaxformer.runs.official import check_official, write_official
from jaxformer.runs.predicting import answers_to
from jaxformer.runs.progress import Display
from jaxformer.storage import store_errors
from jaxformer.tables import brief

_NONE = {"text": "", "ended": False}  # of beams, none of which ended


@store_errors()
def predict(run: LoadedRun, task: Supervision, rows: Given, output: Output, facts: Mapping[str, Any],
            display: Display) -> None:  # fmt: skip
    """Write the task's answer to each row as a line of JSON (see `answer_rows`)."""

    def read(record: Record | Malformed, where: str) -> Example:
        return unlabelled(record, task.fields, task.label_kind, run.config.data, where)

    def answer(examples: Sequence[Example], numbers: Sequence[int], count: Callable[..., None]) -> list[dict[str, Any]]:
        answers, num_cut = answers_to(run, task, examples, run.config.evaluation_rows)
        count(cut=num_cut)
        return answers

    if output.official:
        check_official(task, output.path, looked_through(rows, read, output.skip_malformed)[1])
    work = Work("predicting", read, answer, run.config.evaluation_rows)
    found = answer_rows(rows, work, output, facts, display)
    notes = [f"{found.malformed:,} malformed"] if found.malformed else []
    what = task.answering.what_is_cut if task.answering else ""
    notes += [f"{found.counts['cut']:,} of {found.answered:,} {what}"] if found.counts["cut"] else []
    if output.path is not None or notes:
        display.note(f"{output.path or 'standard output'}: {found.total:,} answers{bracketed(notes)}")
    if output.official and output.path is not None:
        for path in write_official(task, output.path):
            display.note(f"{path}: for the official scorer")


@store_errors()
def generate(
    run: LoadedRun, rows: Given, field: str, output: Output, facts: Mapping[str, Any], display: Display
) -> None:
    """Write what the model writes after each row's text (`field`), or in answer to it, as a line of JSON (see
    `answer_rows`): "prompt", and what `LoadedRun.answers` says of the answer, or of several as "answers"."""
    config, size = writing(run, None, {}), run.config.evaluation_rows

    read = prompt_reader(run, config, field)

    def answer(examples: Sequence[Example], numbers: Sequence[int], count: Callable[..., None]) -> list[dict[str, Any]]:
        def done(found: Sequence[Sequence[Mapping[str, Any]]]) -> None:
            answers = [answer for each in found for answer in each]
            cut = sum(not answer["ended"] for answer in answers)
            count(rows=len(found), answers=len(answers), cut=cut, tokens=sum(answer["tokens"] for answer in answers))

        found = answered(run, config, [example["row"] for example in examples], numbers, size, done)
        for example, answers in zip(examples, found, strict=True):
            count(full=sum(lacks_room(run, config, example["row"], answer) for answer in answers))
        return [
            {"prompt": example[field], **({"answers": each} if config.num_answers > 1 else each[0] if each else _NONE)}
            for example, each in zip(examples, found, strict=True)
        ]

    found = answer_rows(rows, Work("generating", read, answer, size), output, facts, display)
    if output.path is not None or found.counts["full"]:
        malformed = [f"{found.malformed:,} malformed"] if found.malformed else []
        display.note(
            f"{output.path or 'standard output'}: {found.total:,} rows"
            f"{bracketed([*malformed, *written(run, found.counts, found.seconds)])}"
        )


def written(run: LoadedRun, counts: Mapping[str, int], seconds: float) -> list[str]:
    """Return what is said of answers that were written."""
    if not counts.get("answers"):
        return []
    notes = [f"{counts['cut']:,} of {counts['answers']:,} answers not ended"] if counts["cut"] else []
    if counts["full"]:
        notes.append(
            f"{counts['full']:,} cut where prompt and answer fill model.max_length {run.model.config.max_length}"
        )
    return [*notes, f"{counts['tokens']:,} tokens, {brief(counts['tokens'] / max(seconds, 1e-9))} per second"]


def prompt_reader(run: LoadedRun, config: GenerationConfig, field: str) -> Read:
    """Return what reads a record as a prompt, its ids as "row"; an empty one, or one too long, is malformed."""

    def read(record: Record | Malformed, where: str) -> Example:
        example = unlabelled(record, (field,), "", run.config.data, where)
        try:
            return example | {"row": checked_prompt(run, config, example[field])}
        except UserError as error:
            raise Malformed(f"{where}: {error}") from error

    return read


@store_errors()
def show(run: LoadedRun, rows: Given, field: str, put: Callable[[str], Any], display: Display) -> None:
    """Write the answers to the rows' texts (`field`) one after the other, as they come; behind the prompt, where they
    go on with it."""
    config, counts, begun = writing(run, None, {}), Counter[str](), time.monotonic()
    check_streams(config)
    read = prompt_reader(run, config, field)
    prompts = [read(record, where) for where, record in rows.rows()]  # refused before anything is shown
    for number, prompt in enumerate(prompts):
        put(prompt[field] if run.model.config.family == "decoder_only" else "")
        stream = streamed(run, config, prompt["row"], number)
        try:
            while True:
                put(next(stream))
        except StopIteration as end:
            full = lacks_room(run, config, prompt["row"], end.value)
            counts.update(answers=1, tokens=end.value["tokens"], cut=not end.value["ended"], full=full)
        put("\n")
    display.note("; ".join(written(run, counts, time.monotonic() - begun)))


def as_text(line: Mapping[str, Any], continues: bool) -> str:
    """Return a line of `generate` as people read it: the answers, one below the other, each behind its prompt where it
    goes on with it; of a malformed row what is wrong."""
    if "error" in line:
        return str(line["error"])
    return "\n".join(line["prompt"] * continues + answer["text"] for answer in line.get("answers", [line]))


@store_errors()
def fill(run: LoadedRun, asking: Asking, rows: Given, output: Output, facts: Mapping[str, Any],
         display: Display) -> None:  # fmt: skip
    """Write what fills the masks of each row's text as a line of JSON (see `answer_rows`): what
    `LoadedRun.fill` says."""
    choice, size = chosen(run, asking), run.config.evaluation_rows

    def read(record: Record | Malformed, where: str) -> Example:
        example = unlabelled(record, (asking.field,), "", run.config.data, where)
        return example | {"blank": blank(run, example[asking.field], where)}

    def answer(examples: Sequence[Example], numbers: Sequence[int], count: Callable[..., None]) -> list[dict[str, Any]]:
        return filled(run, [example["blank"] for example in examples], asking, choice, size)

    asked = {"top": asking.top, "targets": list(asking.targets), "one_by_one": asking.one_by_one}
    found = answer_rows(rows, Work("filling", read, answer, size), output, {**facts, **asked}, display)
    if output.path is not None:
        malformed = [f"{found.malformed:,} malformed"] if found.malformed else []
        display.note(f"{output.path}: {found.total:,} texts{bracketed(malformed)}")


def facts_of(run: LoadedRun) -> dict[str, Any]:
    """Return what answers depend on, beside the rows: the parameters, the tokenizer, how it answers and reads."""
    settings = {key: value for key, value in run.config.to_dict().items() if key in ("task", "generation", "data")}
    flat = {key: value for key, value in configs.flat(settings).items() if key not in {f"data.{key}" for key in PLACES}}
    known = {"checkpoint": run.source.content, "tokenizer": run.tokenizer.fingerprint, **flat}
    found: dict[str, Any] = json.loads(json.dumps(known, default=str))  # as it is read back
    return found


def field_of(run: LoadedRun) -> str:
    """Return the field whose text is embedded where none is named: the task's, if it reads one alone, else that of the
    documents of the run's data."""
    fields = run.config.supervision.fields
    return fields[0] if len(fields) == 1 else getattr(run.config.data, "text_field", "") or "text"


@store_errors()
def embed(run: LoadedRun, rows: Given, field: str, pooling: tuple[str, int], output: Output, display: Display) -> None:
    """Write a vector of each row's text (`field`) to a .npy file, float32 [N, D], whole or not at all; `pooling` is its
    kind and the layer. Raises UserError, naming the row, for one without such a text."""
    path = output.path
    assert path is not None
    layer_number(run.model, *pooling)
    if path.exists() and not output.overwrite:
        raise UserError(f"--output: {path} is there; choose another one, or replace it with --overwrite")

    def read(record: Record | Malformed, where: str) -> Example:
        return unlabelled(record, (field,), "", run.config.data, where)

    total, _ = looked_through(rows, read, 0)
    temporary = path.with_name(f".{path.name}.unfinished")
    counts = np.zeros(2, np.int64)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not all vectors need fit into memory.
            array = np.lib.format.open_memmap(temporary, "w+", np.float32, (total, run.model.config.d_model))
            done = 0
            texts = (read(record, where)[field] for where, record in rows.rows())
            for found, *numbers in vectors(run, texts, *pooling):
                array[done : done + len(found)] = found
                done, counts = done + len(found), counts + numbers
                display.progress("embedding", done, total)
            array.flush()
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    cut, empty = counts.tolist()
    notes = [f"{cut:,} cut to {run.model.config.max_length} tokens"] if cut else []
    notes += [f"{empty:,} without a token: their vectors are 0"] if empty else []
    display.note(f"{path}: float32 {list(array.shape)}{bracketed(notes)}")
