"""Vectors of texts, against the same computed by hand, text by text, without padding."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import pytest
from runs import make_run

import jaxformer
from jaxformer.errors import UserError
from jaxformer.runs.loading import LoadedRun

SHORT, LONG = "A thread may wait.", "Open the file and read every line of it, one at a time."
Run = Callable[[str], LoadedRun]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made: dict[str, LoadedRun] = {}

    def get(name: str) -> LoadedRun:
        if name not in made:
            run = jaxformer.load(make_run(name, tmp_path_factory.mktemp("embedding") / name, num_layers=2))
            params = jax.tree.map(lambda leaf: np.asarray(leaf) - 0.5, run.params)  # so that no sum loses digits
            made[name] = dataclasses.replace(run, params=params)
        return made[name]

    return get


def states_by_hand(run: LoadedRun, ids: np.ndarray) -> list[np.ndarray]:
    """The hidden states [T, D] of one text: what the first layer reads and each layer's output, the last one's after
    the final norm."""
    names = ("inputs", "positions", "segment_ids")
    row = dict(zip(names, (ids[None], np.arange(len(ids))[None], np.ones((1, len(ids)), np.int32)), strict=True))
    if run.model.config.family != "encoder_decoder":
        stack = "decoder" if run.model.config.family == "decoder_only" else "encoder"
        outputs = jax.jit(run.model.apply, static_argnames="collect")(run.params, row, collect=(stack,))
        return [*np.asarray(outputs[stack][:-1, 0]), np.asarray(outputs["hidden"][0])]
    encoded = {f"encoder_{name}": array for name, array in row.items()}
    encode = jax.jit(lambda params: run.model.module.apply({"params": params}, encoded, True, method="encode"))
    final, layers = encode(run.params)
    return [*np.asarray(layers[:-1, 0]), np.asarray(final[0])]


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_vectors_are_those_computed_by_hand(loaded: Run, name: str) -> None:
    run = loaded(name)
    texts = [LONG, SHORT]  # side by side, so that one is padded
    states = states_by_hand(run, run.tokenizer.encode(SHORT, special=True))
    found = run.embed(texts)
    assert found.dtype == np.float32 and found.shape == (2, 16)
    np.testing.assert_allclose(found[1], states[-1].mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(run.embed(texts, layer=2), found)
    np.testing.assert_allclose(run.embed(texts, layer=-2)[1], states[1].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(run.embed(texts, "last")[1], states[-1][-1], atol=1e-6)
    if name != "gpt2":
        np.testing.assert_allclose(run.embed(texts, "first")[1], states[-1][0], atol=1e-6)


def test_neither_the_batch_nor_the_padding_nor_the_order_counts(loaded: Run) -> None:
    run = loaded("bert")
    texts = [f"{text} {number}" for number in range(20) for text in (SHORT, LONG)]
    alone = np.concatenate([run.embed(text) for text in texts[:4]])
    for batch_size in (2, 16):
        np.testing.assert_allclose(run.embed(texts, batch_size=batch_size)[:4], alone, atol=1e-6)
    np.testing.assert_allclose(run.embed(texts[::-1], batch_size=16)[:-5:-1], alone, atol=1e-6)


def test_special_tokens_count_and_stay_where_a_text_is_cut(loaded: Run) -> None:
    run = loaded("bert")
    ids = run.tokenizer.encode(LONG * 4, special=True)
    assert len(ids) > run.model.config.max_length == 64
    kept = np.append(ids[:63], run.tokenizer.vocabulary.id("separator"))
    np.testing.assert_allclose(run.embed(LONG * 4, layer=0)[0], states_by_hand(run, kept)[0].mean(axis=0), atol=1e-6)


def test_a_text_without_tokens_has_a_vector_of_zeros(loaded: Run) -> None:
    found = loaded("gpt2").embed(["", SHORT, ""])
    assert not found[[0, 2]].any() and found[1].any()
    assert loaded("gpt2").embed([""]).shape == (1, 16) and loaded("gpt2").embed([]).shape == (0, 16)
    assert loaded("bert").embed([""]).any()  # [CLS] [SEP]


def test_what_there_is_not_is_refused(loaded: Run) -> None:
    for layer in (3, -4):
        with pytest.raises(UserError, match=rf"^layer: there is no {layer}; there are 0 to 2, and -1 to -3"):
            loaded("bert").embed(SHORT, layer=layer)
    with pytest.raises(UserError, match=r"^pooling: 'cls' is not one of mean, first, last"):
        loaded("bert").embed(SHORT, pooling="cls")
    with pytest.raises(UserError, match=r"^pooling: the first token of this model sees nothing"):
        loaded("gpt2").embed(SHORT, pooling="first")
