"""Generation against transformers', live: every logit function, greedy decoding and beam search, token for token.

Needs torch and transformers, which `make test-reference` installs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed; make test-reference installs it")
transformers = pytest.importorskip("transformers")

from transformers.generation import logits_process as reference  # noqa: E402

from jaxformer.generation import GenerationConfig, TokenRules, decoding_weights, generate, logits  # noqa: E402
from jaxformer.interop.configs import layout_of, read_json  # noqa: E402
from jaxformer.interop.importing import describe, named, read_params  # noqa: E402
from jaxformer.interop.weights import stored_tensors  # noqa: E402
from jaxformer.models.model import Model, Params  # noqa: E402

pytestmark = pytest.mark.slow
torch.set_num_threads(1)  # the models are tiny

Ids = np.ndarray
ROWS, VOCABULARY, PLACES, LENGTH = 64, 97, 24, 20  # of the logit functions' arrays: 4 places are not yet written


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, Ids]:
    """Logits [B, V], no two of a row equal, and written tokens [B, S] of a small alphabet, so that n-grams repeat."""
    rng = np.random.default_rng(0)
    values = 4 * rng.normal(size=(ROWS, VOCABULARY)).astype(np.float32)
    assert all(len(np.unique(row)) == VOCABULARY for row in values)
    return values, rng.integers(0, 7, (ROWS, PLACES)).astype(np.int32)


END, PROMPT = 5, 12
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[Any], Any], tuple[Any, ...]]] = {
    "repetition_penalty": (
        logits.penalize_repetition, reference.RepetitionPenaltyLogitsProcessor, (0.5, 1.0, 1.2, 5.0)
    ),
    "no_repeat_ngram": (logits.forbid_repeated_ngrams, reference.NoRepeatNGramLogitsProcessor, (1, 2, 3, 4, 20, 21)),
    "min_new_tokens": (
        lambda values, written, count: logits.forbid_early_end(values, written, count, END),
        lambda count: reference.MinNewTokensLengthLogitsProcessor(PROMPT, count, END),
        (1, LENGTH - PROMPT, LENGTH - PROMPT + 1, 100),
    ),
    "temperature": (logits.divide_by_temperature, reference.TemperatureLogitsWarper, (0.01, 0.7, 1.0, 9.0)),
    "top_k": (logits.keep_top_k, reference.TopKLogitsWarper, (1, 2, 50, VOCABULARY, 1000)),
    "top_p": (logits.keep_top_p, reference.TopPLogitsWarper, (0.0, 0.01, 0.3, 0.5, 0.9, 0.99, 0.999)),
    "min_p": (logits.keep_min_p, reference.MinPLogitsWarper, (0.001, 0.05, 0.3, 0.99, 1.0)),
}  # fmt: skip


def state(tokens: Ids) -> logits.Written:
    """Return what our functions are told of rows of which LENGTH tokens are written, PROMPT of them by others."""
    return logits.Written(
        jnp.array(tokens),
        jnp.broadcast_to(jnp.arange(PLACES) < LENGTH, tokens.shape),
        jnp.int32(LENGTH),
        jnp.full(ROWS, LENGTH - PROMPT, jnp.int32),
    )


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (*_, values) in FUNCTIONS.items() for value in values]
)
def test_logit_functions(name: str, value: float, drawn: tuple[np.ndarray, Ids]) -> None:
    values, tokens = drawn
    ours, theirs, _ = FUNCTIONS[name]
    expected = theirs(value)(torch.from_numpy(tokens[:, :LENGTH]).long(), torch.from_numpy(values.copy())).numpy()
    np.testing.assert_allclose(ours(jnp.array(values), state(tokens), value), expected, rtol=1e-6)


def test_logit_functions_one_after_the_other(drawn: tuple[np.ndarray, Ids]) -> None:
    """All together, in the order in which transformers builds them."""
    settings = {"repetition_penalty": 1.3, "min_new_tokens": 9, "temperature": 0.8, "top_k": 40, "top_p": 0.9}
    values, tokens = drawn
    found = jnp.array(values)
    for function in logits.logit_functions(**settings, no_repeat_ngram=2, min_p=0.02):  # type: ignore[arg-type]
        found = function(found, state(tokens), settings | {"min_p": 0.02, "end": END})  # type: ignore[arg-type]
    config = transformers.GenerationConfig(
        do_sample=True, no_repeat_ngram_size=2, eos_token_id=END, min_p=0.02, **settings
    )
    theirs = BUILD["gpt2"][0]()
    theirs._prepare_special_tokens(config, device="cpu")
    processors = theirs._get_logits_processor(config, input_ids_seq_length=PROMPT, model_kwargs={})
    assert len(processors) == 7
    expected = processors(torch.from_numpy(tokens[:, :LENGTH]).long(), torch.from_numpy(values.copy())).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


NUM_PROMPTS, NEW, SIZE, LAYERS = 200, 20, 32, 2
PAIRED = {
    "vocab_size": VOCABULARY, "d_model": SIZE, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 1, "forced_bos_token_id": None, "forced_eos_token_id": None,
}  # fmt: skip
LEFT = {"vocab_size": VOCABULARY, "n_embd": SIZE, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "pad_token_id": 0}
T5 = {
    "vocab_size": VOCABULARY, "d_model": SIZE, "d_kv": 8, "d_ff": 64, "num_layers": LAYERS, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0,
}  # fmt: skip
MARIAN = {"activation_function": "relu", "scale_embedding": True, "decoder_start_token_id": 1}
# Of each family a fresh model, and a seed with which its answers vary.
BUILD: dict[str, tuple[Callable[[], Any], int]] = {
    "gpt": (lambda: transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**LEFT)), 1),
    "gpt2": (lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**LEFT)), 0),
    "t5": (lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)), 2),
    "bart": (lambda: transformers.BartForConditionalGeneration(transformers.BartConfig(**PAIRED)), 0),
    "transformer": (lambda: transformers.MarianMTModel(transformers.MarianConfig(**PAIRED | MARIAN)), 3),
}


def draw(model: Any, seed: int) -> None:
    """Give a model random parameters of sizes with which it does not only repeat itself: a decoder that hardly listens
    to its encoder, or whose tokens outweigh what stands before them, writes one token all the time."""
    numbers = torch.Generator().manual_seed(seed)
    sizes = {"relative_attention_bias": 3.0, "embed_positions": 0.5, "positions_embed": 1.0, "wpe": 1.0}
    tables = dict.fromkeys(("shared", "embed_tokens", "tokens_embed", "wte"), 0.3)
    listening = dict.fromkeys(("encoder_attn", "EncDecAttention"), 4.0 / SIZE**0.5)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "embed_positions" in path and model.config.model_type == "marian":
                continue  # sinusoids
            named = (size for word, size in (sizes | tables | listening).items() if word in path)
            usual = 0.1 if parameter.ndim == 1 else 2.0 / SIZE**0.5
            is_scale = path.endswith("weight") and any(word in path.lower() for word in ("norm", "ln_"))
            size = usual if parameter.ndim == 1 else next(named, usual)
            parameter.copy_(size * torch.randn(parameter.shape, generator=numbers) + is_scale)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A model of theirs, the same one of ours, prompts, and an end token that half of the greedy answers come to."""

    theirs: Any
    model: Model
    weights: Params
    prompts: list[Ids]
    rules: TokenRules


@pytest.fixture(scope="module", params=BUILD)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    build, seed = BUILD[request.param]
    theirs = build().eval()
    draw(theirs, seed)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    where = folder / "config.json"
    told = read_json(where)
    layout = layout_of(told, where)
    tensors = named(layout, stored_tensors(folder))
    config, classes = describe(layout, told, where, tensors)
    model = Model(config)
    params = read_params(layout, model, classes, tensors, folder)
    rng = np.random.default_rng(0)
    # Every length comes twenty times, so that theirs can read them without padding.
    lengths = rng.permutation(np.repeat(np.arange(3, 13), NUM_PROMPTS // 10))
    prompts = [rng.integers(3, VOCABULARY, length).astype(np.int32) for length in lengths]
    start = theirs.config.decoder_start_token_id if theirs.config.is_encoder_decoder else 0
    free = Pair(theirs, model, decoding_weights(model, params), prompts, TokenRules(-1, start))
    tokens = np.array([row for ((row, _),) in expected(free)])
    assert tokens.shape == (NUM_PROMPTS, NEW) and len(np.unique(tokens)) >= 20
    rows_with = np.array([(tokens == token).any(axis=1).sum() for token in range(VOCABULARY)])
    end = int(np.argmin(abs(rows_with - NUM_PROMPTS // 2)))
    return dataclasses.replace(free, rules=TokenRules(end, start))


def expected(pair: Pair, padded: bool = False, **settings: Any) -> list[list[tuple[list[int], float]]]:
    """Return, for each prompt, their answers (ids up to and with the end, score of a beam or 0). Prompts of one length
    are a batch unless `padded`."""
    paired = pair.theirs.config.is_encoder_decoder
    found: list[Any] = [None] * len(pair.prompts)
    lengths = np.array([len(prompt) for prompt in pair.prompts])
    widths = [lengths.max()] if padded or paired else np.unique(lengths)
    for width in widths:
        rows = np.flatnonzero((lengths == width) | (len(widths) == 1))
        ids = np.full((len(rows), width), pair.theirs.config.pad_token_id)
        mask = np.zeros_like(ids)
        for row, number in enumerate(rows):
            place = slice(0, lengths[number]) if paired else slice(width - lengths[number], width)
            ids[row, place], mask[row, place] = pair.prompts[number], 1
        outputs = pair.theirs.generate(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), do_sample=False,
            max_new_tokens=NEW, eos_token_id=None if pair.rules.end_id < 0 else pair.rules.end_id,
            pad_token_id=pair.theirs.config.pad_token_id, return_dict_in_generate=True, output_scores=True, **settings,
        )  # fmt: skip
        new = outputs.sequences[:, 1 if paired else width :].numpy()
        scores = outputs.get("sequences_scores")
        scores = np.zeros(len(new)) if scores is None else scores.numpy()
        answers = [(_ended(row, pair.rules.end_id), float(score)) for row, score in zip(new, scores, strict=True)]
        each = len(answers) // len(rows)
        for row, number in enumerate(rows):
            found[number] = answers[row * each : (row + 1) * each]
    return found


def _ended(row: Ids, end: int) -> list[int]:
    places = np.flatnonzero(row == end)
    ids: list[int] = row[: places[0] + 1 if places.size else NEW].tolist()
    return ids


def written(pair: Pair, **settings: Any) -> list[list[tuple[list[int], float]]]:
    answers = generate(
        pair.model, pair.weights, pair.prompts, GenerationConfig(max_new_tokens=NEW, **settings), pair.rules
    )
    end = [pair.rules.end_id]
    return [[(answer.ids.tolist() + (end if answer.ended else []), answer.score) for answer in row] for row in answers]


THEIR_NAMES = {
    "no_repeat_ngram": "no_repeat_ngram_size", "length_alpha": "length_penalty", "num_answers": "num_return_sequences"
}  # fmt: skip
NOT_THEIRS = ("length_penalty",)


def in_their_words(settings: dict[str, Any]) -> dict[str, Any]:
    return {THEIR_NAMES.get(key, key): value for key, value in settings.items() if key not in NOT_THEIRS}


GREEDY: dict[str, dict[str, Any]] = {
    "plain": {},
    "penalty": {"repetition_penalty": 1.5},
    "ngrams": {"no_repeat_ngram": 2},
    "all": {"repetition_penalty": 1.2, "no_repeat_ngram": 3, "min_new_tokens": 8},
}
BEAMS: dict[str, dict[str, Any]] = {
    "plain": {"num_beams": 4},
    "early": {"num_beams": 4, "early_stopping": True, "length_alpha": 1.0, "num_answers": 4},
    "late": {"num_beams": 3, "early_stopping": False, "length_alpha": 1.0, "num_answers": 3},
    "long": {"num_beams": 3, "length_alpha": 2.0, "min_new_tokens": 6, "num_answers": 2},
    "short": {"num_beams": 5, "length_alpha": -0.5, "num_answers": 5},
    "all": {
        "num_beams": 5, "early_stopping": True, "length_alpha": 0.6, "repetition_penalty": 1.3, "no_repeat_ngram": 2,
        "min_new_tokens": 3, "num_answers": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_greedy_answers(name: str, pair: Pair) -> None:
    compare(pair, GREEDY[name])


@pytest.mark.parametrize("name", BEAMS)
def test_beams(name: str, pair: Pair) -> None:
    compare(pair, {"length_alpha": 0.0, "length_penalty": "power"} | BEAMS[name])


@pytest.mark.parametrize("settings", [GREEDY["plain"], BEAMS["plain"] | {"length_alpha": 0.0}], ids=["greedy", "beams"])
@pytest.mark.parametrize("pair", ["gpt2"], indirect=True)
def test_their_padding_changes_nothing(settings: dict[str, Any], pair: Pair) -> None:
    compare(pair, settings, padded=True)


def compare(pair: Pair, settings: dict[str, Any], padded: bool = False) -> None:
    ours, theirs = written(pair, **settings), expected(pair, padded, **in_their_words(settings))
    assert len({token for row in theirs for ids, _ in row for token in ids}) >= 20
    lengths = [len(ids) for row in theirs for ids, _ in row]
    assert min(lengths) < NEW and max(lengths) == NEW and min(lengths) >= settings.get("min_new_tokens", 0)
    different = [n for n in range(NUM_PROMPTS) if [ids for ids, _ in ours[n]] != [ids for ids, _ in theirs[n]]]
    assert len(different) <= NUM_PROMPTS // 100
    assert [n for n in different if smallest_gap(pair, n, settings) > 1e-5] == []
    if "num_beams" in settings:  # greedy ones have none of theirs
        for number in set(range(NUM_PROMPTS)) - set(different):
            scores = [[score for _, score in answers[number]] for answers in (ours, theirs)]
            np.testing.assert_allclose(*scores, rtol=1e-4)  # float32: both are up to 1e-5 from their float64 ones


def smallest_gap(pair: Pair, number: int, settings: dict[str, Any]) -> float:
    """Return by how little two candidates of neighbouring ranks differ, of those that their search looks at."""
    gaps: list[float] = []

    def record(scores: Any, count: int) -> None:
        best = torch.topk(scores, count)[0]
        gaps.extend((best[:, :-1] - best[:, 1:])[best[:, 1:] > -1e8].tolist())

    def greedy(_: Any, scores: Any) -> Any:
        record(scores, 2)
        return scores

    def beams(accumulated_log_probs: Any, beams_to_keep: int, **others: Any) -> Any:
        record(accumulated_log_probs, beams_to_keep + 1)
        return type(pair.theirs)._get_top_k_continuations(
            pair.theirs, accumulated_log_probs=accumulated_log_probs, beams_to_keep=beams_to_keep, **others
        )

    alone = dataclasses.replace(pair, prompts=pair.prompts[number : number + 1])
    with pytest.MonkeyPatch.context() as patch:
        if "num_beams" in settings:
            patch.setattr(pair.theirs, "_get_top_k_continuations", beams)
            expected(alone, **in_their_words(settings))
        else:
            expected(alone, logits_processor=[greedy], **in_their_words(settings))
    return min(gaps)
