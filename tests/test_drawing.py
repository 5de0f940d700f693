"""Drawn answers: what each limit leaves of the distribution, and that a seed means the same draws everywhere."""

from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats
from test_generation import NEW, NO_END, PROMPTS, START, built, forgetful, prompts_of

from jaxformer.generation import Answer, GenerationConfig, TokenRules, decoding_weights, generate

Ids = np.ndarray


def limited(logits: Ids, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Ids:
    """Return the probabilities of tokens, the plain way: sorted, one token at a time."""
    probabilities = scipy.special.softmax(logits.astype(np.float64) / temperature)
    order = np.argsort(-probabilities)[: top_k or None]
    probabilities[np.setdiff1d(np.arange(len(logits)), order)] = 0
    probabilities /= probabilities.sum()
    kept, mass = [], 0.0
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += probabilities[token]
    probabilities = np.where(np.isin(np.arange(len(logits)), kept), probabilities, 0)
    probabilities[probabilities < min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    ("limits", "tokens"),
    [
        pytest.param({"temperature": 3.0, "top_k": 6}, 6, marks=pytest.mark.slow),
        ({"temperature": 4.0, "top_p": 0.8}, 16),
        pytest.param({"temperature": 5.0, "min_p": 0.32}, 15, marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_a_chi_square_test_of_what_is_drawn(limits: dict[str, Any], tokens: int) -> None:
    model, params, logits = forgetful()
    config = GenerationConfig(max_new_tokens=NEW, seed=2, **limits)
    answers = generate(model, decoding_weights(model, params), prompts_of(1) * 300, config, TokenRules(NO_END))
    drawn = np.concatenate([answer.ids for (answer,) in answers])
    counts = np.bincount(drawn, minlength=model.config.vocab_size)
    expected = limited(logits[: model.config.vocab_size], **limits) * len(drawn)
    assert (expected > 0).sum() == tokens
    assert not counts[expected == 0].any()
    often = expected >= 5  # the test's approximation needs as many; the others are one kind
    groups = [np.append(values[often], values[~often].sum()) for values in (counts, expected)]
    observed, wanted = (group[groups[1] > 0] for group in groups)
    assert scipy.stats.chisquare(observed, wanted).pvalue > 1e-3


def drawn(name: str, prompts: list[Ids], weights: Any = None, **options: Any) -> list[list[list[int]]]:
    model, params = built(name)
    wider = {key: options.pop(key) for key in ("numbers", "min_width") if key in options}
    config = GenerationConfig(max_new_tokens=NEW, temperature=2.0, **options)
    weights = decoding_weights(model, params) if weights is None else weights
    found: list[list[Answer]] = generate(model, weights, prompts, config, TokenRules(NO_END, START), **wider)
    return [[answer.ids.tolist() for answer in answers] for answers in found]


@pytest.mark.parametrize("name", ["banded", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_seed_draws_the_same_whatever_stands_beside_a_prompt(name: str) -> None:
    together = drawn(name, PROMPTS, seed=3)
    assert len({tuple(answer) for (answer,) in together}) == len(PROMPTS)
    # In another order, in a smaller batch with more padding, and with further answers to each prompt.
    order = [4, 0, 5, 1, 3, 2]
    assert drawn(name, [PROMPTS[i] for i in order], seed=3, numbers=order) == [together[i] for i in order]
    three = drawn(name, PROMPTS[2:4], seed=3, numbers=[2, 3], min_width=33, num_answers=3)
    assert [answers[:1] for answers in three] == together[2:4]
    assert len({tuple(answer) for answers in three for answer in answers}) == 6
    # Equal prompts draw each for itself, and another seed something else.
    assert len({tuple(answer) for (answer,) in drawn(name, PROMPTS[:1] * 6, seed=3)}) == 6
    assert not any(a == b for a, b in zip(drawn(name, PROMPTS, seed=4), together, strict=True))


@pytest.mark.slow
def test_a_seed_draws_the_same_on_any_number_of_devices() -> None:
    """Of weights that lie in pieces on eight devices."""
    model, params = built("t5")
    weights = decoding_weights(model, params)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("shards",))
    assert mesh.size == 8

    def placed(leaf: jax.Array) -> jax.Array:
        axis = next((axis for axis, size in enumerate(leaf.shape) if size % 8 == 0), None)
        spec = [] if axis is None else [None] * axis + ["shards"]
        return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P(*spec)))

    assert drawn("t5", PROMPTS, jax.tree.map(placed, weights), seed=3) == drawn("t5", PROMPTS, weights, seed=3)
