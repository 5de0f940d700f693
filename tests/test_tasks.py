"""Classification tasks: hand-written examples and properties that all of them share."""

import dataclasses
import pickle

import numpy as np
import pytest

from jaxformer.config import load
from jaxformer.errors import UserError
from jaxformer.tasks import TASKS
from jaxformer.tasks.classification import (
    DecoderClassification,
    ExtractClassification,
    PooledClassification,
    TextToTextClassification,
    cut,
)
from jaxformer.tokenizers import Vocabulary

ROLES = ("pad", "end", "unknown", "classify", "separator", "mask", "start", "delimiter", "extract")
SPECIAL = {role: number for number, role in enumerate(ROLES)}
WORDS = {"text:": 20, "a:": 21, "b:": 22, "task": 23, "no": 24, "yes": 25, "very": 26}
LABELS = ("no", "very very yes")
PAIR = ("a", "b")


def encode(text):
    return np.array([WORDS.get(word, SPECIAL["unknown"]) for word in text.split()], np.int32)


def vocabulary(without=()):
    special = {role: number for role, number in SPECIAL.items() if role not in without}
    return Vocabulary(100, special, np.array([], np.int32), np.arange(100) < len(ROLES), np.ones(100, bool))


def bound(task, labels=LABELS):
    return task.bind(vocabulary(), labels, encode)


def example(*lengths, label=1):
    names = ("text",) if len(lengths) == 1 else PAIR
    texts = {
        name: np.arange(length, dtype=np.int32) + 30 * place + 30
        for place, (name, length) in enumerate(zip(names, lengths, strict=True))
    }
    return texts | {"label": label}


def check(arrays, **expected):
    for name, values in expected.items():
        np.testing.assert_allclose(arrays[name], values, err_msg=name)


@pytest.fixture(
    params=[(kind, fields) for kind in TASKS.values() for fields in (("text",), PAIR)],
    ids=lambda param: f"{param[0].name}-{len(param[1])}",
)
def task(request):
    kind, fields = request.param
    return bound(kind(sequence_length=12, text_fields=fields))


def test_every_task_has_its_name():
    assert all(kind.name == name for name, kind in TASKS.items())


def test_shapes_and_dtypes_never_change(task):
    unbound = type(task)(sequence_length=12, text_fields=task.fields)
    for length in (0, 1, 4, 30):
        arrays = task(example(*[length] * len(task.fields)), np.random.default_rng(0))
        assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == unbound.shapes


def test_special_tokens_and_words_are_never_cut(task):
    whole = task(example(*[1] * len(task.fields)), np.random.default_rng(0))
    long = task(example(*[30] * len(task.fields)), np.random.default_rng(0))
    name = "encoder_inputs" if "encoder_inputs" in whole else "inputs"
    fixed = [[token for token in arrays[name] if 0 < token < 30] for arrays in (whole, long)]
    assert fixed[0] == fixed[1] and fixed[0]
    assert (long[name.replace("inputs", "segment_ids")] == 1).all()


def test_members_the_step_reads(task):
    expected = {"tokens"} if task.predicts_tokens else set()
    assert set(task.coefficients) == expected | set(task.heads)
    for head in task.heads:
        assert {f"{head}_targets", f"{head}_weights"} <= set(task.shapes)
    copied = pickle.loads(pickle.dumps(task))(example(*[3] * len(task.fields)), np.random.default_rng(0))
    check(copied, **task(example(*[3] * len(task.fields)), np.random.default_rng(0)))


def test_an_example_without_label_weighs_nothing(task):
    arrays = task(example(*[3] * len(task.fields), label=-1), np.random.default_rng(0))
    assert not arrays["weights" if task.decodes else "label_weights"].any()


@pytest.mark.parametrize(
    ("task", "role"),
    [
        (ExtractClassification(), "extract"),
        (ExtractClassification(text_fields=PAIR), "delimiter"),
        (PooledClassification(), "separator"),
        (TextToTextClassification(), "end"),
    ],
)
def test_a_vocabulary_without_a_role_is_refused(task, role):
    with pytest.raises(UserError, match=role):
        task.bind(vocabulary(without=(role,)), LABELS, encode)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"metrics": ("acuracy",)}, "metrics.*did you mean 'accuracy'"),
        ({"text_fields": ()}, "text_fields"),
        ({"sequence_length": 2}, "sequence_length"),
        ({"head_dropout": 1.0}, "head_dropout"),
    ],
)
def test_impossible_settings_are_refused(values, key):
    with pytest.raises(UserError, match=f"task.{key}"):
        ExtractClassification(**values)


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [((3, 3), 6, (3, 3)), ((9, 2), 6, (4, 2)), ((2, 9), 6, (2, 4)), ((9, 8), 5, (3, 2)), ((3, 3), 5, (3, 2))],
)
def test_the_longer_text_is_cut_first(lengths, room, expected):
    texts = [np.arange(length) for length in lengths]
    assert tuple(map(len, cut(texts, room))) == expected


def test_extract_by_hand():
    task = bound(ExtractClassification(sequence_length=8))
    assert (task.heads, task.coefficients) == ({"label": 2}, {"tokens": 0.5, "label": 1.0})
    check(
        task(example(3), np.random.default_rng(0)),
        inputs=[6, 30, 31, 32, 8, 0, 0, 0],
        segment_ids=[1, 1, 1, 1, 1, 0, 0, 0],
        positions=[0, 1, 2, 3, 4, 0, 0, 0],
        targets=[30, 31, 32, 8, 0, 0, 0, 0],
        weights=np.array([1, 1, 1, 1, 0, 0, 0, 0]) / 4,
        label_positions=4,
        label_targets=1,
        label_weights=1,
    )


def test_extract_of_a_pair_by_hand():
    task = bound(ExtractClassification(sequence_length=8, text_fields=PAIR, language_model_weight=0.0))
    arrays = task(example(4, 2, label=0), np.random.default_rng(0))
    check(arrays, inputs=[6, 30, 31, 32, 7, 60, 61, 8], label_positions=7, label_targets=0)
    assert not task.predicts_tokens and task.coefficients == {"label": 1.0} and "targets" not in arrays


def test_pooled_by_hand():
    task = bound(PooledClassification(sequence_length=8))
    check(
        task(example(3), np.random.default_rng(0)),
        inputs=[3, 30, 31, 32, 4, 0, 0, 0],
        segment_ids=[1, 1, 1, 1, 1, 0, 0, 0],
        positions=[0, 1, 2, 3, 4, 0, 0, 0],
        token_types=[0] * 8,
        label_targets=1,
        label_weights=1,
    )
    pair = bound(PooledClassification(sequence_length=8, text_fields=PAIR))
    arrays = pair(example(2, 1), np.random.default_rng(0))
    check(arrays, inputs=[3, 30, 31, 4, 60, 4, 0, 0], token_types=[0, 0, 0, 0, 1, 1, 0, 0])


def test_a_left_to_right_encoder_is_classified_at_its_last_token():
    task = bound(PooledClassification(sequence_length=8, pooled_at="last"))
    arrays = task(example(3), np.random.default_rng(0))
    check(arrays, inputs=[3, 30, 31, 32, 4, 0, 0, 0], label_positions=4)
    assert set(arrays) == set(task.shapes)
    with pytest.raises(UserError, match="task.pooled_at: 'lst' is not one of first, last; did you mean 'last'"):
        PooledClassification(pooled_at="lst")
    with pytest.raises(UserError, match="task.pooled_at: the first token sees nothing"):
        load("finetune/area:bert,smoke", ["model.visibility=causal"])
    load("finetune/area:bert,smoke", ["model.visibility=causal", "task.pooled_at=last"])


def test_text_to_text_by_hand():
    task = bound(TextToTextClassification(sequence_length=10, text_fields=PAIR, prefix="task", target_length=5))
    assert (task.heads, task.decodes) == ({}, True)
    check(
        task(example(3, 2), np.random.default_rng(0)),
        encoder_inputs=[23, 21, 30, 31, 32, 22, 60, 61, 1, 0],
        encoder_segment_ids=[1] * 9 + [0],
        encoder_positions=[*range(9), 0],
        inputs=[0, 26, 26, 25, 0],
        targets=[26, 26, 25, 1, 0],
        weights=[1, 1, 1, 1, 0],
        segment_ids=[1, 1, 1, 1, 0],
        positions=[0, 1, 2, 3, 0],
    )
    arrays = bound(TextToTextClassification(sequence_length=8))(example(2, label=0), np.random.default_rng(0))
    check(arrays, encoder_inputs=[20, 30, 31, 1, 0, 0, 0, 0], targets=[24, 1, 0, 0, 0, 0, 0, 0])


def test_text_to_text_refuses_labels_it_cannot_write():
    with pytest.raises(UserError, match="task.target_length: 3, but the label 'very very yes' takes 4"):
        bound(TextToTextClassification(target_length=3))
    with pytest.raises(UserError, match="cannot write the label 'maybe'"):
        bound(TextToTextClassification(), ("no", "maybe"))
    with pytest.raises(UserError, match="task.sequence_length: 8, but prefix"):
        bound(TextToTextClassification(sequence_length=8, prefix="task " * 8))


def test_bound_fields_are_no_config_keys():
    for kind in TASKS.values():
        keys = {field.name for field in dataclasses.fields(kind) if field.metadata.get("config", True)}
        assert not keys & {"vocabulary", "_vocabulary", "labels", "words", "label_ids"}
        assert {"sequence_length", "text_fields", "metrics"} <= keys


def test_decoder_classification_by_hand():
    """BART: the decoder reads what the encoder reads, one place later; its last place is classified."""
    special = {**SPECIAL, "decoder_start": SPECIAL["end"]}
    words = dataclasses.replace(vocabulary(), special=special)
    task = DecoderClassification(sequence_length=8).bind(words, LABELS, encode)
    start, end = SPECIAL["start"], SPECIAL["end"]
    arrays = task(example(2), np.random.default_rng(0))
    check(
        arrays,
        encoder_inputs=[start, 30, 31, end, 0, 0, 0, 0],
        inputs=[end, start, 30, 31, 0, 0, 0, 0],
        segment_ids=[1, 1, 1, 1, 0, 0, 0, 0],
        encoder_segment_ids=[1, 1, 1, 1, 0, 0, 0, 0],
        positions=[0, 1, 2, 3, 0, 0, 0, 0],
        label_positions=3,
        label_targets=1,
    )
    pair = dataclasses.replace(task, text_fields=PAIR, sequence_length=9)
    arrays = pair(example(9, 9), np.random.default_rng(0))
    check(arrays, encoder_inputs=[start, 30, 31, 32, end, end, 60, 61, end], label_positions=8)


def test_decoder_classification_without_a_start_token():
    """T5: its vocabulary has no <s>, and its decoder starts from padding."""
    task = DecoderClassification(sequence_length=8, text_fields=PAIR).bind(vocabulary(("start",)), LABELS, encode)
    end = SPECIAL["end"]
    arrays = task(example(2, 1), np.random.default_rng(0))
    check(arrays, encoder_inputs=[30, 31, end, 60, end, 0, 0, 0], inputs=[0, 30, 31, end, 60, 0, 0, 0])
    check(arrays, label_positions=4)


def test_a_text_alone_is_classified_at_its_last_token():
    task = ExtractClassification(sequence_length=8, special_tokens=False, language_model_weight=0.0)
    task = task.bind(vocabulary(("start", "extract")), LABELS, encode)
    assert task.new_token_ids == []
    arrays = task(example(3), np.random.default_rng(0))
    check(arrays, inputs=[30, 31, 32, 0, 0, 0, 0, 0], segment_ids=[1, 1, 1, 0, 0, 0, 0, 0], label_positions=2)
    arrays = task(example(0), np.random.default_rng(0))
    check(arrays, segment_ids=[1, 0, 0, 0, 0, 0, 0, 0], label_positions=0)
    with pytest.raises(UserError, match="two texts need a delimiter"):
        ExtractClassification(special_tokens=False, text_fields=PAIR)
