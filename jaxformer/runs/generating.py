"""Answers to prompts: texts in, what a model writes after each or in answer to it out."""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxformer.errors import UserError, suggest
from jaxformer.evaluation import before_stops, token_rules
from jaxformer.generation import (
    DEFAULT_NEW_TOKENS,
    Answer,
    GenerationConfig,
    check_prompts,
    generate,
    new_tokens,
    room_for_answers,
    stream,
)
from jaxformer.runs.shapes import batches_by_length, rounded_up
from jaxformer.runs.streaming import pieces

if TYPE_CHECKING:
    from jaxformer.runs.loading import LoadedRun


def writing(run: "LoadedRun", generation: GenerationConfig | None, changes: dict[str, Any]) -> GenerationConfig:
    """Return how a run writes: as its config says, or `generation`, with changes of its fields.

    Raises UserError for a field that there is not, a model that does not write, more beams than tokens, and choices
    that cannot be spelled.
    """
    fields = [field.name for field in dataclasses.fields(GenerationConfig)]
    for name in changes:
        if name not in fields:
            raise UserError(f"generation.{name}: no such key{suggest(name, fields)}; there are {', '.join(fields)}")
    config = dataclasses.replace(generation or run.config.generation, **changes)
    check_prompts(run.model, [], config)
    if config.choices:
        token_rules(run.model, run.tokenizer, config)
    return config


def open_length(run: "LoadedRun") -> int:
    """Return the most tokens of an answer where nobody has said how long it may be: as many as the targets of the run's
    task have, if there is room for them."""
    learnt = run.config.supervision
    tasks = [part.objective.answering for part in learnt.parts] if learnt.decodes else []
    return max((task.target_length for task in tasks if task is not None), default=0) or DEFAULT_NEW_TOKENS


def lacks_room(run: "LoadedRun", config: GenerationConfig, row: np.ndarray, answer: Mapping[str, Any]) -> bool:
    """Say whether an answer to a prompt, given as ids, was cut only because model.max_length has no room for more."""
    room = int(room_for_answers(run.model, [row])[0])
    return not answer["ended"] and answer["tokens"] == room < new_tokens(config, open_length(run))


def checked_prompt(run: "LoadedRun", config: GenerationConfig, prompt: str) -> np.ndarray:
    """Return what the model reads of a prompt, int32. Raises UserError for one that is empty or too long."""
    row = run.prompt_ids(prompt)
    # Of an empty text there is nothing but what stands around it.
    is_empty = len(row) <= 2 and not len(run.tokenizer.encode(prompt))
    check_prompts(run.model, [row[:0] if is_empty else row], config, open_length(run))
    return row


def prompt_rows(run: "LoadedRun", config: GenerationConfig, prompts: Sequence[str]) -> list[np.ndarray]:
    """Return what the model reads of each prompt. Raises UserError, naming it by its number."""
    rows = []
    for number, prompt in enumerate(prompts):
        try:
            rows.append(checked_prompt(run, config, prompt))
        except UserError as error:
            if len(prompts) == 1:
                raise
            raise UserError(str(error).replace("the prompt", f"prompt {number}", 1)) from error
    return rows


def answered(
    run: "LoadedRun", config: GenerationConfig, rows: Sequence[np.ndarray], numbers: Sequence[int], batch_size: int,
    done: Callable[[list[list[dict[str, Any]]]], None] = lambda answers: None,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """Return the answers to each prompt, given as ids, a batch of about one length at a time; `numbers` are the
    prompts' in the whole input, from which follows what is drawn. `done` is told the answers of each batch."""
    rules = token_rules(run.model, run.tokenizer, config)
    answers: list[list[dict[str, Any]]] = [[] for _ in rows]
    for places in batches_by_length([len(row) for row in rows], batch_size):
        count = rounded_up(len(places), 1, batch_size)  # so that there are few shapes
        filled = [places[min(place, len(places) - 1)] for place in range(count)]
        found = generate(
            run.model, run.weights, [rows[place] for place in filled], config, rules,
            numbers=[numbers[place] for place in filled], default_length=open_length(run),
        )  # fmt: skip
        for place, each in zip(places, found, strict=False):
            answers[place] = [described(run, config, rows[place], answer) for answer in each]
        done([answers[place] for place in places])
    return answers


def streamed(
    run: "LoadedRun", config: GenerationConfig, row: np.ndarray, number: int
) -> Generator[str, None, dict[str, Any]]:
    """Yield the answer to a prompt, given as ids, piece by piece, and return it."""
    rules, last = token_rules(run.model, run.tokenizer, config), {}
    answers = stream(
        run.model, run.weights, [row], config, rules, numbers=[number], default_length=open_length(run), every=1
    )

    def texts() -> Generator[str, None, None]:
        nonlocal last
        for ((answer,),) in answers:
            last = described(run, config, row, answer)
            yield last["text"]

    yield from pieces(texts(), config.stop)
    return last


def check_streams(config: GenerationConfig) -> None:
    """Raise UserError for answers that are not known before they are whole."""
    if config.num_beams > 1 or config.num_answers > 1:
        key = "num_beams" if config.num_beams > 1 else "num_answers"
        raise UserError(f"generation.{key}: a text that is shown as it comes is one answer without beams; set it to 1")


def described(run: "LoadedRun", config: GenerationConfig, row: np.ndarray, answer: Answer) -> dict[str, Any]:
    """Return an answer to a prompt's ids as JSON holds it."""
    continues = run.model.config.family == "decoder_only"
    text = run.continuation(row, answer.ids) if continues else run.tokenizer.decode(answer.ids)
    return {
        "text": before_stops(text, config.stop),
        "score": answer.score,
        "tokens": len(answer.ids),
        "ended": answer.ended,
    }
