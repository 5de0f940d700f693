"""From prompts to answers: checks, batches of few shapes, and the compiled programs in turn."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxformer.devices import gathered, num_shares, place_whole
from jaxformer.errors import UserError
from jaxformer.generation import beams, decoding
from jaxformer.generation.config import GenerationConfig
from jaxformer.generation.logits import logit_functions
from jaxformer.generation.writing import (
    DEFAULT_NEW_TOKENS,
    Answer,
    Batch,
    TokenRules,
    arguments,
    bucket,
    longest_answers,
    new_tokens,
    prompt_batch,
)
from jaxformer.models import Model, Params


def require_generator(family: str) -> None:
    """Raise UserError for a family that cannot write text."""
    if family == "encoder_only":
        raise UserError(
            "an encoder_only model cannot generate text: it predicts masked tokens (`jaxformer fill`); use gpt or t5"
        )


def decoding_weights(model: Model, params: Params) -> Params:
    """Return the parameters as decoding reads them, `model.unstacked`: to be made once for any number of prompts. They
    take the memory of the decoder's layers."""
    return model.unstacked(params)


def generate(
    model: Model,
    weights: Params,
    prompts: Sequence[np.ndarray],
    config: GenerationConfig,
    rules: TokenRules,
    *,
    numbers: Sequence[int] | None = None,
    min_width: int = 1,
    default_length: int = DEFAULT_NEW_TOKENS,
) -> list[list[Answer]]:
    """Return the answers to each prompt, `config.num_answers` of them, the best ones first after beams.

    `weights` are `decoding_weights(model, params)`. A decoder-only model goes on with a prompt; an encoder-decoder
    reads it and starts its answer from `rules.start_id`. What is drawn follows from the seed and the prompts' `numbers`
    (default: 0, 1, …), whatever stands beside them. Prompts are padded to at least `min_width`, so that batches of a
    set share one compiled program. An answer has at most `default_length` tokens, or as many as fit, where the config
    leaves it open. The devices of a model's mesh share the rows; every process gives all of them and
    gets all answers. Raises UserError for encoder-only models, empty prompts, more beams than tokens, and lengths
    beyond a table of learned positions.
    """
    *_, answers = stream(
        model, weights, prompts, config, rules, numbers=numbers, min_width=min_width, default_length=default_length
    )
    return answers


def stream(
    model: Model,
    weights: Params,
    prompts: Sequence[np.ndarray],
    config: GenerationConfig,
    rules: TokenRules,
    *,
    numbers: Sequence[int] | None = None,
    min_width: int = 1,
    default_length: int = DEFAULT_NEW_TOKENS,
    every: int = 0,
) -> Iterator[list[list[Answer]]]:
    """Yield what `generate` returns as far as it is written, after `every` further tokens (0: once, whole)."""
    limits = check_prompts(model, prompts, config, default_length)
    if not prompts:
        yield []
        return
    longest = max(len(prompt) for prompt in prompts)
    num_new = new_tokens(config, default_length)
    searches = config.num_beams > 1
    repeats = 1 if searches else config.num_answers
    rows = [np.asarray(prompt) for prompt in prompts for _ in range(repeats)]
    mesh, num_rows = model.execution.mesh, len(rows)
    if mesh is not None:  # its devices share the rows; copies of the last one fill them up
        rows += [rows[-1]] * (-num_rows % num_shares(mesh))
    batch = prompt_batch(model, rows, bucket(max(longest, min_width)), rules.start_id)
    filled = functools.partial(np.pad, pad_width=(0, len(rows) - num_rows), mode="edge")
    given = arguments(model, config, rules, filled(np.repeat(limits, repeats)))
    samples = config.temperature > 0 and not searches
    if samples:
        chosen = np.arange(len(prompts)) if numbers is None else np.asarray(numbers)
        answers = np.tile(np.arange(repeats), len(prompts))
        given["keys_B"] = decoding.row_keys(config.seed, filled(np.repeat(chosen, repeats)), filled(answers))
    programs = _programs(model, config, num_new, samples)
    if mesh is not None:
        batch = place_whole(mesh, batch)
    for state in _written(programs, weights, batch, given, num_new, every):
        if searches:
            yield beams.answers_of(state, config.num_answers, rules.end_id)[:num_rows]
        else:
            flat = decoding.answers_of(state, num_new, rules.end_id)
            yield [flat[first : first + repeats] for first in range(0, num_rows, repeats)]


def check_prompts(
    model: Model, prompts: Sequence[np.ndarray], config: GenerationConfig, default_length: int = DEFAULT_NEW_TOKENS
) -> np.ndarray:
    """Return the most tokens that the answer to each prompt may have, int32 [B]. Raises UserError, naming the prompt,
    for what cannot be generated."""
    require_generator(model.config.family)
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            which = f"prompt {number}" if len(prompts) > 1 else "the prompt"
            raise UserError(f"{which} is empty: give at least one token")
    for key in ("num_beams", "top_k"):
        if getattr(config, key) > model.config.vocab_size:
            raise UserError(
                f"generation.{key}: {getattr(config, key)} is more than the {model.config.vocab_size} tokens of the "
                "vocabulary"
            )
    return longest_answers(model, config, prompts, default_length)


def _programs(model: Model, config: GenerationConfig, num_new: int, samples: bool) -> decoding.Programs:
    functions = logit_functions(
        repetition_penalty=config.repetition_penalty,
        no_repeat_ngram=config.no_repeat_ngram,
        min_new_tokens=config.min_new_tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
    )
    if config.num_beams > 1:
        return beams.programs(model, num_new, config.num_beams, config.length_penalty, config.early_stopping, functions)
    return decoding.programs(model, num_new, samples, functions)


def _written(
    programs: decoding.Programs, weights: Params, batch: Batch, given: dict[str, Any], num_new: int, every: int
) -> Iterator[Any]:
    """Yield the state after `every` further tokens (0: at the end)."""
    state = programs.begin(weights, batch, given)
    positions_B = batch["positions"][:, -1]
    step = every or num_new
    for until in range(step, num_new + step, step):
        state = programs.advance(weights, positions_B, state, given, np.int32(min(until, num_new)))
        ended = state.done_B if hasattr(state, "done_B") else state.ended_B
        yield state
        if every and bool(np.all(gathered(ended))):
            return
