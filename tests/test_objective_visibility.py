"""What each prediction of every objective may see of the text, beside a real model that reads its arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, SIZE, generator, rows_of

from jaxformer.models.config import Execution, TransformerConfig
from jaxformer.models.model import Model


@pytest.fixture(params=CASES, ids=lambda case: case.label)
def case(request):
    """Every objective in every family under every visibility."""
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpora")


LENGTHS = {"inputs": 48, "encoder_inputs": 24}
VARIANTS = 36


@functools.cache
def logits_of(family, visibility):
    """Return a function of a batch to the logits [variants, predictions, vocabulary] of a tiny model.

    Rows are read one by one: so those that do not differ in what is seen give the same numbers to the last bit.
    """
    config = TransformerConfig(
        family=family, visibility=visibility, vocab_size=SIZE, d_model=16, d_ff=32, num_heads=2, head_dim=8,
        num_layers=2, max_length=LENGTHS["inputs"], token_types=2 if family == "encoder_only" else 0, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    model = Model(config, Execution(unroll=1))  # compiles fastest
    leaves, tree = jax.tree.flatten(model.shapes)
    rng = generator(0)
    # Weights large enough that what passes two layers does not vanish in float32.
    params = jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32) for leaf in leaves])

    @jax.jit
    def logits(params, batch):
        rows = {name: array[:, None] for name, array in batch.items()}
        return jax.lax.map(lambda row: model.project(params, model.apply(params, row)["hidden"])[0], rows)

    return functools.partial(logits, params)


def model_batch(examples, family):
    """Return the examples' arrays that a model reads, all of the same length in every objective."""
    batch = {}
    sides = ("", "encoder_") if family == "encoder_decoder" else ("",)
    names = [f"{side}{name}" for side in sides for name in ("inputs", "segment_ids", "positions")]
    names += {"encoder_only": ["token_types"], "decoder_only": ["prefix_length"]}.get(family, [])
    for name in names:
        length = LENGTHS["encoder_inputs" if name.startswith("encoder") else "inputs"]
        shape = (VARIANTS,) if name == "prefix_length" else (VARIANTS, length)
        batch[name] = np.zeros(shape, np.int32)
        for number, example in enumerate(examples):
            if name in example:
                batch[name][(number, *(slice(size) for size in example[name].shape))] = example[name]
    if family == "encoder_only":
        batch["predict_positions"] = np.tile(np.arange(LENGTHS["inputs"], dtype=np.int32), (VARIANTS, 1))
        if "predict_positions" in examples[0]:
            for number, example in enumerate(examples):
                batch["predict_positions"][number, : len(example["predict_positions"])] = example["predict_positions"]
    return batch


def changed(token, words, shift):
    """Return another token that is special, and begins a word, where this one does."""
    alike = np.flatnonzero(
        (words.is_special == words.is_special[token]) & (words.word_starts == words.word_starts[token])
    )
    return alike[(np.searchsorted(alike, token) + shift) % len(alike)]


def test_what_a_prediction_may_see_is_what_moves_a_model(case, folder):
    logits = logits_of(case.family, case.visibility)
    sees_all = case.family == "encoder_decoder" or case.visibility == "prefix"
    sees_all &= case.objective.name in ("deshuffling", "sentence_permutation", "document_rotation")
    some_seen = some_hidden = False
    for number, (transform, objective, row) in enumerate(rows_of(case, folder)):
        count = len(row["tokens"])
        assert 0 < count < VARIANTS
        examples = [transform(row, generator(number))]
        for place in range(count):
            tokens = row["tokens"].copy()
            tokens[place] = changed(tokens[place], objective.vocabulary, 1 + number)
            examples.append(transform(row | {"tokens": tokens}, generator(number)))
        found = np.asarray(logits(model_batch(examples, case.family)))
        seen = objective.visible(row, generator(number), case.visibility)
        moved = (found[1 : count + 1, : len(seen)] != found[0, : len(seen)]).any(axis=-1).T
        np.testing.assert_array_equal(moved, seen)
        some_seen, some_hidden = some_seen or seen.any(), some_hidden or not seen.all()
    assert some_seen and some_hidden != sees_all


def test_no_language_model_sees_what_it_predicts(case, folder):
    for _, objective, row in rows_of(case, folder):
        if objective.name not in ("causal_lm", "prefix_lm", "plain_lm"):
            continue
        seen = objective.visible(row, generator(), case.visibility)
        written = objective.write(row, generator())
        for prediction in np.flatnonzero(written["weights"]):
            target = written["targets"][prediction]
            if target >= 0:
                assert not seen[prediction, target:].any()  # nor anything after it
                document = row["segment_ids"] == row["segment_ids"][target]
                before = np.arange(len(document)) < target
                if getattr(objective, "document_mask", False):
                    before &= document
                np.testing.assert_array_equal(np.flatnonzero(seen[prediction]), np.flatnonzero(before))
