"""Generation: the cache against recomputing everything, padding that changes nothing, ends, sampling, refusals."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import carrier
from runs import make_run
from sampling import sampled
from tiny import CONFIGS, params_of

import jaxformer
from jaxformer.errors import UserError
from jaxformer.generation import (
    Answer,
    GenerationConfig,
    TokenRules,
    choice_table,
    decoding_weights,
    generate,
    stop_table,
    stream,
)
from jaxformer.generation.decoding import programs
from jaxformer.generation.writing import arguments, prompt_batch
from jaxformer.models.config import TransformerConfig
from jaxformer.models.model import Model, Params
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.corruption import PrefixLM
from jaxformer.objectives.denoising import TextInfilling
from jaxformer.objectives.mixture import ObjectiveMixture
from jaxformer.objectives.parallel_text import ParallelText
from jaxformer.tokenizers import ByteBPE, train_tokenizer

Ids = np.ndarray
NO_END = 1000  # beyond every vocabulary
NEW = 8
START = 3


def tiny(name: str, **changes: Any) -> TransformerConfig:
    return dataclasses.replace(CONFIGS[name], **{"num_layers": 2, **changes})


MODELS = {
    "learned": tiny("gpt", tied_embeddings=False),
    "banded": tiny("gpt3"),
    # As T5, it may go beyond `max_length`.
    "relative": tiny(
        "gpt",
        tied_embeddings=False,
        max_length=4,
        position="relative",
        norm_placement="pre",
        relative_buckets=8,
        relative_max_distance=16,
    ),
    # It sees its whole prompt, both ways.
    "prefix": tiny(
        "gpt", tied_embeddings=False, visibility="prefix", position="relative", norm_placement="pre",
        relative_buckets=8, relative_max_distance=16,
    ),
    "transformer": tiny("transformer", tied_embeddings=False),  # sinusoidal
    "t5": tiny("t5", tied_embeddings=False),
}  # fmt: skip


SEEDS = {
    "learned": 58,
    "banded": 43,
    "relative": 6,
    "prefix": 0,
    "transformer": 21,
    "t5": 41,
}  # of models whose answers vary


@functools.cache
def built(name: str) -> tuple[Model, Params]:
    """A model with parameters so large that it does not only repeat itself, drawn by numpy, which compiles nothing."""
    model, rng = Model(MODELS[name]), np.random.default_rng(SEEDS[name])
    sizes = {"bias": 0.05, "scale": 0.1, "positions": 2.0, "relative_bias": 3.0}

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        kind = path[-1].key
        size = 2.0 / np.sqrt(leaf.shape[-2]) if kind == "kernel" else sizes.get(kind, 0.3)
        return jnp.asarray((kind == "scale") + size * rng.normal(size=leaf.shape), leaf.dtype)

    return model, jax.tree.map_with_path(draw, model.shapes)


def prompts_of(*lengths: int, seed: int = 0) -> list[Ids]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 31, length).astype(np.int32) for length in lengths]


PROMPTS = prompts_of(7, 1, 12, 3, 2, 9)  # whenever there are as many, the program that was compiled before is used


@functools.cache
def logits_after(name: str) -> Callable[[Ids, Ids], Ids]:
    """Return a function (prompt, written) -> the next token's logits, computed without a cache, from all tokens."""
    model, params = built(name)
    size = 32
    encodes = model.config.family == "encoder_decoder"

    @jax.jit
    def run(batch: dict[str, jax.Array], last: jax.Array) -> jax.Array:
        return model.project(params, model.apply(params, batch)["hidden"][0, last])

    def row(tokens: Ids) -> dict[str, jax.Array]:
        count = len(tokens)
        inputs = np.concatenate([tokens, np.zeros(size - count, np.int32)])
        segments = (np.arange(size) < count).astype(np.int32)
        arrays = {"inputs": inputs, "segment_ids": segments, "positions": np.arange(size, dtype=np.int32) * segments}
        return {key: jnp.asarray(value)[None] for key, value in arrays.items()}

    def logits(prompt: Ids, written: Ids) -> Ids:
        decoded = np.concatenate([[START] if encodes else prompt, written]).astype(np.int32)
        batch = row(decoded)
        if encodes:
            batch |= {f"encoder_{key}": value for key, value in row(prompt).items()}
        else:
            batch["prefix_length"] = jnp.array([len(prompt)])
        return np.asarray(run(batch, len(decoded) - 1))

    return logits


def greedy_by_recomputing(name: str, prompt: Ids, count: int = NEW) -> list[int]:
    written: list[int] = []
    for _ in range(count):
        written.append(int(np.argmax(logits_after(name)(prompt, np.array(written, np.int32)))))
    return written


def continued(
    name: str, prompts: list[Ids], end_id: int = NO_END, start_id: int = START, min_width: int = 1, **config: Any
) -> list[list[int]]:
    model, params = built(name)
    generation, rules = GenerationConfig(max_new_tokens=NEW, **config), TokenRules(end_id, start_id)
    answers = generate(model, decoding_weights(model, params), prompts, generation, rules, min_width=min_width)
    return [answer.ids.tolist() for (answer,) in answers]


@pytest.mark.parametrize("name", sampled(MODELS, path=lambda name: name, daily=["learned", "banded", "t5"]))
def test_the_cache_gives_what_recomputing_the_whole_prefix_gives(name: str) -> None:
    answers = continued(name, PROMPTS)
    assert answers == [greedy_by_recomputing(name, prompt) for prompt in PROMPTS]
    # The test sees something: rows differ, and tokens within a row.
    assert len(set(map(tuple, answers))) == 6 and sum(len(set(answer)) for answer in answers) > 12


def operations(jaxpr: Any) -> Iterator[Any]:
    """All operations of a traced program, those of the programs that they call included."""
    for operation in jaxpr.eqns:
        yield operation
        for called in jax.tree.leaves(list(operation.params.values())):
            if hasattr(getattr(called, "jaxpr", called), "eqns"):
                yield from operations(getattr(called, "jaxpr", called))


@pytest.mark.parametrize("name", ["learned", "t5"])
def test_the_loop_takes_no_weights_out_of_a_stack(name: str) -> None:
    """It would copy all of them at every token, which makes small batches several times slower."""
    model, params = built(name)
    prompts = prompts_of(*[3] * 6)
    given = arguments(model, GenerationConfig(), TokenRules(), np.full(6, NEW, np.int32))
    compiled, weights = programs(model, NEW, False, ()), decoding_weights(model, params)
    batch = prompt_batch(model, prompts, 32, START)
    state = jax.eval_shape(compiled.begin, weights, batch, given)
    program = jax.make_jaxpr(compiled.advance)(weights, batch["positions"][:, -1], state, given, NEW)
    (loop,) = (operation for operation in operations(program.jaxpr) if operation.primitive.name == "while")
    read = {
        variable.aval.shape
        for operation in operations(loop.params["body_jaxpr"].jaxpr)
        for variable in operation.invars
    }
    stacked = {leaf.shape for leaf in jax.tree.leaves(params["decoder"]["layers"])}
    assert stacked & (read | {variable.aval.shape for variable in loop.invars}) == set()
    assert {shape[1:] for shape in stacked} <= read


@pytest.mark.parametrize("name", ["banded", "t5"])
def test_neighbours_and_padding_change_nothing(name: str) -> None:
    together = continued(name, PROMPTS)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert continued(name, [prompt] * 6) == [answer] * 6
    assert continued(name, PROMPTS[::-1]) == together[::-1]
    assert continued(name, PROMPTS[:1], min_width=33) == together[:1]


@pytest.mark.parametrize("name", ["learned", "t5"])
def test_the_end_stops_its_row_and_no_other(name: str) -> None:
    free = continued(name, PROMPTS)
    for end in sorted({token for answer in free for token in answer}):
        expected = [answer[: answer.index(end)] if end in answer else answer for answer in free]
        assert continued(name, PROMPTS, end_id=end) == expected
    assert continued(name, PROMPTS[:1] * 6, end_id=free[0][0]) == [[]] * 6


@pytest.mark.parametrize("name", ["learned", "t5"])
def test_stops_and_choices_end_their_row(name: str) -> None:
    """Of ids that spell letters: a stop over the border of two tokens, and choices that are no likely answer."""
    model, params = built(name)
    pieces, free = [chr(97 + number) for number in range(31)], continued(name, PROMPTS)
    stop = "".join(pieces[token] for token in free[0][2:4])
    stops, weights = stop_table([stop], pieces), decoding_weights(model, params)

    def answers(rules: TokenRules) -> list[Answer]:
        return [one for (one,) in generate(model, weights, PROMPTS, GenerationConfig(max_new_tokens=NEW), rules)]

    for answer, whole in zip(answers(TokenRules(NO_END, START, stops=stops)), free, strict=True):
        text = "".join(pieces[token] for token in whole)
        length = text.find(stop) + len(stop) if stop in text else NEW
        assert answer.ids.tolist() == whole[:length] and answer.ended == (stop in text)
    choices = [np.array(ids, np.int32) for ids in ([20, 21], [22, 23, 24], [22, 25])]
    found = answers(TokenRules(NO_END, START, choices=choice_table(choices, 31, NO_END)))
    assert {tuple(answer.ids.tolist()) for answer in found} <= {tuple(choice.tolist()) for choice in choices}
    assert all(answer.ended for answer in found)


@pytest.mark.parametrize("name", ["learned", "t5"])
def test_scores_are_the_probabilities_of_what_is_written(name: str) -> None:
    model, params = built(name)
    end = continued(name, PROMPTS)[0][3]
    config = GenerationConfig(max_new_tokens=NEW)
    answers = generate(model, decoding_weights(model, params), PROMPTS, config, TokenRules(end, START))
    for prompt, (answer,) in zip(PROMPTS, answers, strict=True):
        row = [*answer.ids.tolist(), *([end] if answer.ended else [])]
        total = 0.0
        for place, token in enumerate(row):
            logits = logits_after(name)(prompt, np.array(row[:place], np.int32)).astype(np.float64)
            total += logits[token] - np.log(np.exp(logits).sum())
        assert answer.score == pytest.approx(total, rel=1e-4, abs=1e-4)
    assert {answer.ended for (answer,) in answers} == {True, False}


def test_each_answer_may_have_its_own_longest() -> None:
    """The Transformer writes at most 50 tokens more than it reads (section 6.1)."""
    free = continued("t5", PROMPTS)
    assert continued("t5", PROMPTS, extra_length=2) == [
        answer[: len(prompt) + 2] for prompt, answer in zip(PROMPTS, free, strict=True)
    ]


@pytest.mark.parametrize("beams", [1, 2])
def test_a_text_comes_in_pieces(beams: int) -> None:
    model, params = built("learned")
    config = GenerationConfig(max_new_tokens=NEW, num_beams=beams)
    given = model, decoding_weights(model, params), PROMPTS, config, TokenRules(NO_END)
    parts = list(stream(*given, every=3))
    assert len(parts) == 3
    last = [answer.ids.tolist() for (answer,) in parts[-1]]
    assert last == [answer.ids.tolist() for (answer,) in generate(*given)]
    if beams == 1:  # beams have no answer before the last one
        assert [answer.ids.tolist() for (answer,) in parts[0]] == [row[:3] for row in last]


def test_an_answer_depends_on_its_start() -> None:
    assert continued("t5", PROMPTS) != continued("t5", PROMPTS, start_id=START + 1)


def test_greedy_ignores_the_seed() -> None:
    assert continued("learned", PROMPTS, seed=1) == continued("learned", PROMPTS, seed=2)


@functools.cache
def forgetful() -> tuple[Model, Params, Ids]:
    """A model whose final norm writes one vector whatever it read, and the logits of that vector."""
    model, params = built("banded")
    hidden = 2.0 * np.random.default_rng(3).normal(size=model.config.d_model).astype(np.float32)
    norm = {"scale": jnp.zeros_like(hidden), "bias": jnp.asarray(hidden)}
    params = params | {"decoder": params["decoder"] | {"final_norm": norm}}
    return model, params, np.asarray(model.project(params, jnp.asarray(hidden)[None])[0])


def drawn_ids(**config: Any) -> Ids:
    model, params, _ = forgetful()
    generation = GenerationConfig(max_new_tokens=NEW, **config)
    answers = generate(model, decoding_weights(model, params), prompts_of(1) * 300, generation, TokenRules(NO_END))
    return np.array([answer.ids for (answer,) in answers])


def test_sampling_follows_the_seed() -> None:
    first = drawn_ids(temperature=1.0, seed=1)
    assert first.shape == (300, NEW)
    np.testing.assert_array_equal(drawn_ids(temperature=1.0, seed=1), first)
    assert (drawn_ids(temperature=1.0, seed=2) != first).mean() > 0.1


def test_a_very_low_temperature_is_greedy() -> None:
    assert (drawn_ids(temperature=1e-9, seed=1) == forgetful()[2].argmax()).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_samples_have_the_distribution_of_the_logits(temperature: float) -> None:
    model, _, logits = forgetful()
    drawn = drawn_ids(temperature=temperature, seed=5)
    # The stored table has a row more than the vocabulary, which nobody ever draws.
    size = model.config.vocab_size
    assert model.config.stored_vocab_size == size + 1 and drawn.max() < size
    expected = np.exp((logits[:size] - logits[:size].max()) / temperature)
    expected /= expected.sum()
    assert np.sum(expected > 0.02) >= 4

    def close(observed: float | Ids, probability: float | Ids, count: int) -> bool:
        spread = np.sqrt(np.asarray(probability) * (1 - np.asarray(probability)) / count)
        return bool((np.abs(observed - probability) <= 4.5 * spread + 1 / count).all())

    assert close(np.bincount(drawn.reshape(-1), minlength=size) / drawn.size, expected, drawn.size)
    # Every row and every step draws for itself: two of them agree as often as chance has it.
    chance = float(np.sum(expected**2))
    assert close((drawn[:, 0] == drawn[:, 1]).mean(), chance, 300)
    assert close((drawn[::2, 0] == drawn[1::2, 0]).mean(), chance, 150)


@pytest.mark.parametrize(
    ("name", "temperature"),
    # Greedy and drawn, with and without an encoder.
    sampled(
        itertools.product(("learned", "t5"), (0.0, 50.0)),
        path=lambda name, temperature: temperature,
        daily=[("learned", 0.0)],
    ),
)
def test_ids_without_a_token_are_never_written(name: str, temperature: float) -> None:
    """Of a tokenizer of 6 ids, whose padding and a gap in whose ids are not writable, in a larger table."""
    model, params = built(name)
    writable = np.array([False, True, True, False, True, True])
    prompts = [np.array([1, 2, 4], np.int32), np.array([5, 5], np.int32)] * 8
    config = GenerationConfig(max_new_tokens=NEW, temperature=temperature)
    weights = decoding_weights(model, params)
    free, answers = (
        [answer.ids for (answer,) in generate(model, weights, prompts, config, TokenRules(NO_END, writable=allowed))]
        for allowed in (None, writable)
    )
    assert {len(answer) for answer in answers} == {NEW}
    assert set(np.concatenate(answers).tolist()) <= {1, 2, 4, 5}
    assert not set(np.concatenate(free).tolist()) <= {1, 2, 4, 5}


def test_no_prompts_give_no_answers() -> None:
    assert continued("learned", []) == []


def refused(config: TransformerConfig, prompts: list[Ids], **generation: Any) -> str:
    with pytest.raises(UserError) as caught:
        generate(Model(config), {}, prompts, GenerationConfig(**generation), TokenRules(NO_END))
    return str(caught.value)


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"num_beams": 2}])
def test_the_last_new_token_needs_no_place(settings: dict[str, Any]) -> None:
    model = Model(tiny("gpt", num_layers=1))  # of 32 places
    weights = decoding_weights(model, params_of(model))
    rules = TokenRules(NO_END)

    def lengths(sizes: tuple[int, ...], **limits: int) -> list[int]:
        prompts, config = prompts_of(*sizes), GenerationConfig(**settings, **limits)
        found = generate(model, weights, prompts, config, rules, default_length=NEW)
        if settings.get("num_beams", 1) == 1:
            *_, streamed = stream(model, weights, prompts, config, rules, default_length=NEW, every=1)
            assert all(np.array_equal(a[0].ids, b[0].ids) for a, b in zip(found, streamed, strict=True))
        return [len(answers[0].ids) for answers in found]

    # 25 + 8 - 1 = 32 places are read, and 32 + 1 - 1; behind 26 there are 7, behind 30 3.
    assert lengths((25, 1), max_new_tokens=8) == [8, 8]
    assert lengths((32,), max_new_tokens=1) == [1]
    assert lengths((25, 26, 30, 32)) == [8, 7, 3, 1]
    with pytest.raises(
        UserError, match="prompt 0: generation.max_new_tokens 8, but model.max_length 32 has room for 7"
    ):
        lengths((26, 1), max_new_tokens=8)
    with pytest.raises(UserError, match="the prompt: 33 tokens exceed model.max_length 32"):
        lengths((33,))


def test_what_cannot_be_generated_is_refused() -> None:
    assert "encoder_only" in refused(tiny("bert"), prompts_of(3))
    for name in ("gpt", "t5"):
        assert "prompt 1 is empty" in refused(tiny(name), prompts_of(3, 0))
    learned = tiny("transformer", position="learned")
    for config in (tiny("gpt"), learned):
        assert "prompt 0: 33 tokens exceed model.max_length 32" in refused(config, prompts_of(33, 1), max_new_tokens=1)
    said = refused(tiny("gpt"), prompts_of(1, 26), max_new_tokens=8)
    assert "prompt 1: generation.max_new_tokens 8, but model.max_length 32 has room for 7 behind 26" in said
    said = refused(learned, prompts_of(1), max_new_tokens=33)
    assert "the prompt: generation.max_new_tokens 33, but model.max_length 32 has room for 32;" in said
    with pytest.raises(UserError, match=r"generation.max_new_tokens: -1 must be at least 0"):
        GenerationConfig(max_new_tokens=-1)
    with pytest.raises(UserError, match=r"generation.temperature: -1.0 must be at least 0"):
        GenerationConfig(temperature=-1.0)


def test_a_row_may_fill_the_position_table() -> None:
    prompts = prompts_of(*[33 - NEW] * 6)  # nothing is read behind the last token
    assert continued("learned", prompts) == [greedy_by_recomputing("learned", prompt) for prompt in prompts]


def test_an_open_length_is_what_fits_each_prompt() -> None:
    model, params = built("learned")
    prompts = prompts_of(31, 1, 12)
    answers = generate(model, decoding_weights(model, params), prompts, GenerationConfig(), TokenRules(NO_END))
    assert [len(answer.ids) for (answer,) in answers] == [2, 32, 21]
    assert answers[0][0].ids.tolist() == greedy_by_recomputing("learned", prompts[0], 2)


def test_a_mask_in_a_prompt_is_one_where_masks_are_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ByteBPE(vocab_size=300, special="bart")
    tokenizer, rows = train_tokenizer(config, ["The lock is free. <mask> </s>"] * 3), []
    monkeypatch.setattr(
        "jaxformer.runs.generating.generate", lambda _, __, prompts, *___, **____: rows.extend(prompts) or [[]]
    )
    run = dataclasses.replace(jaxformer.load(make_run("bart", tmp_path / "run")), tokenizer=tokenizer)
    members = [{"name": "text_infilling", "weight": 1}, {"name": "prefix_lm", "weight": 1}]
    for objective in (TextInfilling(), ParallelText(), ObjectiveMixture(members=members)):  # type: ignore[arg-type]
        dataclasses.replace(run, config=dataclasses.replace(run.config, objective=objective)).generate(
            ["the <mask> lock</s>"]
        )
    special = [[tokenizer.tokens([id])[0] for id in row if tokenizer.vocabulary.is_special[id]] for row in rows]
    assert special == [["<s>", "<mask>", "</s>"], ["<s>", "</s>"], ["<s>", "<mask>", "</s>"]]


@pytest.mark.parametrize(("objective", "ends"), [(ParallelText(), True), (PrefixLM(), False), (CausalLM(), False)])
def test_a_prompt_ends_as_what_was_read_in_training_did(
    objective: Any, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, rows = jaxformer.load(make_run("gpt2", tmp_path / "run")), []
    monkeypatch.setattr(
        "jaxformer.runs.generating.generate", lambda _, __, prompts, *___, **____: rows.extend(prompts) or [[]]
    )
    carried = objective.for_model(carrier("decoder_only", "prefix"))
    dataclasses.replace(run, config=dataclasses.replace(run.config, objective=carried)).generate(["Open the file."])
    text = run.tokenizer.encode("Open the file.").tolist()
    assert rows[0].tolist() == [*text, *([run.tokenizer.vocabulary.id("end")] if ends else [])]
