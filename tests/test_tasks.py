"""Tasks that read one state of a row, and T5's classification: hand-written examples and properties that all share."""

import dataclasses
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from jaxformer import config as configs
from jaxformer.config import load
from jaxformer.errors import UserError
from jaxformer.objectives import Head
from jaxformer.tasks import TASKS, renamed
from jaxformer.tasks.classification import Classification, MultiLabel, MultipleChoice, Regression
from jaxformer.tasks.text_to_text import TextToText
from jaxformer.tasks.writing import cut
from jaxformer.tokenizers import Vocabulary

ROLES = ("pad", "end", "unknown", "classify", "separator", "mask", "start", "delimiter", "extract")
SPECIAL = {role: number for number, role in enumerate(ROLES)}
WORDS = {"text:": 20, "a:": 21, "b:": 22, "task": 23, "no": 24, "yes": 25, "very": 26}
LABELS = ("no", "very very yes")
PAIR = ("a", "b")
FAMILIES = ("decoder_only", "encoder_only", "encoder_decoder")


def encode(text: str) -> np.ndarray:
    return np.array([WORDS.get(word, SPECIAL["unknown"]) for word in text.split()], np.int32)


def decode(ids: Sequence[int] | np.ndarray) -> str:
    words = {number: word for word, number in WORDS.items()}
    return " ".join(words.get(int(number), "?") for number in ids)


def vocabulary(without: tuple[str, ...] = ()) -> Vocabulary:
    special = {role: number for role, number in SPECIAL.items() if role not in without}
    return Vocabulary(100, special, np.array([], np.int32), np.arange(100) < len(ROLES), np.ones(100, bool))


def bound(task: Any, labels: tuple[str, ...] = LABELS, without: tuple[str, ...] = ()) -> Any:
    return task.bind(vocabulary(without), labels, encode, decode)


def example(*lengths: int, label: Any = 1, names: tuple[str, ...] = ()) -> dict[str, Any]:
    names = names or (("text",) if len(lengths) == 1 else PAIR)
    texts = {
        name: np.arange(length, dtype=np.int32) + 30 * place + 30
        for place, (name, length) in enumerate(zip(names, lengths, strict=True))
    }
    return texts | {"label": label}


def check(arrays: dict[str, np.ndarray], **expected: Any) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(arrays[name], values, err_msg=name)


def call(task: Any, example: dict[str, Any]) -> dict[str, np.ndarray]:
    return task(example, np.random.default_rng(0))


# A label of each kind.
SAMPLES: dict[str, Any] = {"class": 1, "classes": [0, 1], "number": 2.5, "choice": 1}
STATES = [(kind, family) for kind in (Classification, MultiLabel, Regression) for family in FAMILIES]


def members() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, family in STATES:
        for fields in (("text",), PAIR):
            found[f"{kind.name}-{family}-{len(fields)}"] = kind(sequence_length=12, text_fields=fields, family=family)
        found[f"{kind.name}-{family}-both"] = kind(
            sequence_length=12, text_fields=PAIR, family=family, both_orders=True
        )
    for family in FAMILIES:
        found[f"choice-{family}"] = MultipleChoice(
            sequence_length=12, text_fields=("a",), choice_fields=("b", "c", "d"), family=family
        )
    for text in ("text: {text}", "task a: {a} b: {b}"):
        found[f"t5-{text}"] = TextToText(sequence_length=12, input=text)
    return found


MEMBERS = members()


def sample(task: Any, length: int, label: Any = ...) -> dict[str, Any]:
    label = SAMPLES[task.label_kind] if label is ... else label
    return example(*[length] * len(task.fields), label=label, names=task.fields)


@pytest.fixture(params=MEMBERS)
def task(request: pytest.FixtureRequest) -> Any:
    return bound(MEMBERS[request.param])


def test_every_task_has_its_name() -> None:
    assert all(kind.name == name for name, kind in TASKS.items())


def test_shapes_and_dtypes_never_change(task: Any) -> None:
    for length in (0, 1, 4, 30):
        arrays = call(task, sample(task, length))
        assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == task.shapes


def test_special_tokens_and_words_are_never_cut(task: Any) -> None:
    whole, long = call(task, sample(task, 1)), call(task, sample(task, 30))
    name = "encoder_inputs" if "encoder_inputs" in whole else "inputs"
    fixed = [[token for token in arrays[name].ravel() if 0 < token < 30] for arrays in (whole, long)]
    assert fixed[0] == fixed[1] and fixed[0]
    assert (long[name.replace("inputs", "segment_ids")] == 1).all()


def test_what_is_cut_is_known_from_lengths(task: Any) -> None:
    wide = dataclasses.replace(task, sequence_length=200)
    side = "encoder_segment_ids" if "encoder_segment_ids" in task.shapes else "segment_ids"
    for length in range(12):
        whole, found = (call(one, sample(task, length))[side].sum() for one in (wide, task))
        (said,) = task.is_cut({field: np.array([length]) for field in task.fields})
        assert said == (found < whole), length


def test_members_the_step_reads(task: Any) -> None:
    expected = {"tokens"} if task.predicts_tokens else set()
    assert set(task.coefficients) == expected | set(task.heads)
    for head in task.heads:
        assert {f"{head}_targets", f"{head}_weights"} <= set(task.shapes)
    copied = call(pickle.loads(pickle.dumps(task)), sample(task, 3))
    check(copied, **call(task, sample(task, 3)))


def test_an_example_without_label_weighs_nothing(task: Any) -> None:
    arrays = call(task, sample(task, 3, label=None))
    assert not arrays["weights" if task.decodes else "label_weights"].any()
    assert call(task, sample(task, 3))["weights" if task.decodes else "label_weights"].any()


@pytest.mark.parametrize(
    ("task", "role"),
    [
        (Classification(family="decoder_only"), "extract"),
        (Classification(family="decoder_only", text_fields=PAIR), "delimiter"),
        (Regression(family="encoder_only"), "separator"),
        (MultipleChoice(family="decoder_only"), "delimiter"),
        (Classification(family="encoder_decoder"), "end"),
        (TextToText(), "end"),
    ],
)
def test_a_vocabulary_without_a_role_is_refused(task: Any, role: str) -> None:
    with pytest.raises(UserError, match=role):
        bound(task, without=(role,))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"metrics": ("acuracy",)}, "metrics.*did you mean 'accuracy'"),
        ({"text_fields": ()}, "text_fields"),
        ({"text_fields": ("a", "b", "c")}, "text_fields: 3 fields"),
        ({"sequence_length": 2}, "sequence_length"),
        ({"head_dropout": 1.0}, "head_dropout"),
        ({"read_at": "lst"}, "read_at: 'lst' is not one of auto, first, last; did you mean 'last'"),
        ({"language_model_weight": -1.0}, "language_model_weight"),
        ({"special_tokens": False, "text_fields": PAIR}, "special_tokens: two texts need a delimiter"),
        ({"both_orders": True}, "both_orders: there is one text"),
        ({"label_smoothing": 2.0}, "label_smoothing"),
        ({"class_weights": (1.0, 0.0)}, "class_weights"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=f"task.{key}"):
        Classification(**values)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"choice_fields": ("a",)}, "choice_fields: 1, but a choice is among two or more"),
        ({"text_fields": ()}, "text_fields: none"),
        ({"both_orders": True}, "both_orders"),
    ],
)
def test_impossible_choices_are_refused(values: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=f"task.{key}"):
        MultipleChoice(**values)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.language_model_weight=0.5"], "task.language_model_weight: it is for decoder_only models"),
        (["task.special_tokens=false"], "task.special_tokens: it is for decoder_only models"),
        (["model.visibility=causal"], "task.read_at: the first token sees nothing"),
    ],
)
def test_what_another_family_has_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load("finetune/area:bert,smoke", overrides)


@pytest.mark.parametrize(
    ("lengths", "room", "expected"),
    [((3, 3), 6, (3, 3)), ((9, 2), 6, (4, 2)), ((2, 9), 6, (2, 4)), ((9, 8), 5, (3, 2)), ((3, 3), 5, (3, 2))],
)
def test_the_longer_text_is_cut_first(lengths: tuple[int, ...], room: int, expected: tuple[int, ...]) -> None:
    texts = [np.arange(length) for length in lengths]
    assert tuple(map(len, cut(texts, room))) == expected


# GPT.


def test_extract_by_hand() -> None:
    task = bound(Classification(sequence_length=8, family="decoder_only", language_model_weight=0.5))
    assert (task.heads, task.coefficients) == ({"label": Head(2)}, {"tokens": 0.5, "label": 1.0})
    assert task.new_token_ids == [6, 7, 8]
    check(
        call(task, example(3)),
        inputs=[6, 30, 31, 32, 8, 0, 0, 0],
        segment_ids=[1, 1, 1, 1, 1, 0, 0, 0],
        positions=[0, 1, 2, 3, 4, 0, 0, 0],
        targets=[30, 31, 32, 8, 0, 0, 0, 0],
        weights=np.array([1, 1, 1, 1, 0, 0, 0, 0]) / 4,
        label_positions=4,
        label_targets=1,
        label_weights=1,
    )


def test_extract_of_a_pair_by_hand() -> None:
    task = bound(Classification(sequence_length=8, family="decoder_only", text_fields=PAIR))
    arrays = call(task, example(4, 2, label=0))
    check(arrays, inputs=[6, 30, 31, 32, 7, 60, 61, 8], label_positions=7, label_targets=0)
    assert not task.predicts_tokens and task.coefficients == {"label": 1.0} and "targets" not in arrays


def test_similarity_reads_a_pair_in_both_orders() -> None:
    """GPT, section 3.3: both sequences, whose states are added; the loss of each as a language model, too."""
    task = Regression(
        sequence_length=8, text_fields=PAIR, family="decoder_only", both_orders=True, language_model_weight=0.5
    )
    task = bound(task)
    assert task.heads == {"label": Head(1, "sum", "squared")}
    check(
        call(task, example(2, 1, label=3.5)),
        inputs=[[6, 30, 31, 7, 60, 8, 0, 0], [6, 60, 7, 30, 31, 8, 0, 0]],
        segment_ids=[[1] * 6 + [0] * 2] * 2,
        positions=[[0, 1, 2, 3, 4, 5, 0, 0]] * 2,
        targets=[[30, 31, 7, 60, 8, 0, 0, 0], [60, 7, 30, 31, 8, 0, 0, 0]],
        weights=[[0.2] * 5 + [0] * 3] * 2,
        label_positions=[5, 5],
        label_targets=3.5,
        label_weights=1,
    )


def test_a_text_alone_is_classified_at_its_last_token() -> None:
    task = Classification(sequence_length=8, family="decoder_only", special_tokens=False)
    task = bound(task, without=("start", "extract"))
    assert task.new_token_ids == []
    arrays = call(task, example(3))
    check(arrays, inputs=[30, 31, 32, 0, 0, 0, 0, 0], segment_ids=[1, 1, 1, 0, 0, 0, 0, 0], label_positions=2)
    check(call(task, example(0)), segment_ids=[1, 0, 0, 0, 0, 0, 0, 0], label_positions=0)


# BERT.


def test_pooled_by_hand() -> None:
    task = bound(Classification(sequence_length=8, family="encoder_only"))
    check(
        call(task, example(3)),
        inputs=[3, 30, 31, 32, 4, 0, 0, 0],
        segment_ids=[1, 1, 1, 1, 1, 0, 0, 0],
        positions=[0, 1, 2, 3, 4, 0, 0, 0],
        token_types=[0] * 8,
        label_targets=1,
        label_weights=1,
    )
    pair = bound(Classification(sequence_length=8, text_fields=PAIR, family="encoder_only"))
    arrays = call(pair, example(2, 1))
    check(arrays, inputs=[3, 30, 31, 4, 60, 4, 0, 0], token_types=[0, 0, 0, 0, 1, 1, 0, 0])
    assert "label_positions" not in arrays


def test_a_left_to_right_encoder_is_classified_at_its_last_token() -> None:
    task = bound(Classification(sequence_length=8, read_at="last", family="encoder_only"))
    arrays = call(task, example(3))
    check(arrays, inputs=[3, 30, 31, 32, 4, 0, 0, 0], label_positions=4)
    assert set(arrays) == set(task.shapes)
    load("finetune/area:bert,smoke", ["model.visibility=causal", "task.read_at=last"])


def test_swag_by_hand() -> None:
    """BERT, section 4.4: a sentence and each of the ends that may follow, one score each."""
    task = MultipleChoice(
        sequence_length=9, text_fields=("a",), stem_fields=("b",), choice_fields=("c", "d"), family="encoder_only"
    )
    task = bound(task)
    assert task.fields == ("a", "b", "c", "d") and task.heads == {"label": Head(1, "choices")}
    check(
        call(task, example(2, 1, 2, 1, label=1, names=("a", "b", "c", "d"))),
        inputs=[[3, 30, 31, 4, 60, 90, 91, 4, 0], [3, 30, 31, 4, 60, 120, 4, 0, 0]],
        token_types=[[0, 0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1, 0, 0]],
        label_targets=1,
        label_weights=1,
    )
    # The context is cut, not the choice.
    long = call(task, example(9, 1, 2, 1, label=0, names=("a", "b", "c", "d")))
    check(long, inputs=[[3, 30, 31, 32, 4, 60, 90, 91, 4], [3, 30, 31, 32, 33, 4, 60, 120, 4]])


def test_story_cloze_by_hand() -> None:
    """GPT, section 3.3: [start] context [delimiter] answer [extract] for each answer."""
    task = bound(MultipleChoice(sequence_length=8, text_fields=("a",), choice_fields=("b", "c"), family="decoder_only"))
    arrays = call(task, example(2, 1, 2, label=0, names=("a", "b", "c")))
    check(
        arrays,
        inputs=[[6, 30, 31, 7, 60, 8, 0, 0], [6, 30, 31, 7, 90, 91, 8, 0]],
        label_positions=[5, 6],
        label_targets=0,
    )


# Kinds of labels.


def test_several_labels_are_a_row_of_zeros_and_ones() -> None:
    task = bound(MultiLabel(sequence_length=8, family="encoder_only"), labels=("x", "y", "z"))
    assert task.heads == {"label": Head(3, "row", "sigmoid")}
    check(call(task, example(1, label=[2, 0])), label_targets=[1, 0, 1], label_weights=1)
    check(call(task, example(1, label=[])), label_targets=[0, 0, 0], label_weights=1)
    check(call(task, example(1, label=None)), label_targets=[0, 0, 0], label_weights=0)


def test_a_number_is_its_own_target() -> None:
    task = bound(Regression(sequence_length=8, family="encoder_only"), labels=())
    check(call(task, example(1, label=4.2)), label_targets=4.2, label_weights=1)
    check(call(task, example(1, label=-1.0)), label_targets=-1.0, label_weights=1)


def test_class_weights_weigh_the_examples_of_their_class() -> None:
    task = bound(Classification(sequence_length=8, family="encoder_only", class_weights=(0.5, 3.0)))
    check(call(task, example(1, label=0)), label_weights=0.5)
    check(call(task, example(1, label=1)), label_weights=3.0)
    with pytest.raises(UserError, match="task.class_weights: 2 weights, but there are 3 labels: x, y, z"):
        bound(task, labels=("x", "y", "z"))


def test_metrics_that_do_not_fit_the_labels_are_refused() -> None:
    task = Classification(family="encoder_only", metrics=("accuracy", "f1_binary"))
    assert bound(task).metrics == ("accuracy", "f1_binary")
    with pytest.raises(UserError, match="f1_binary is the F1 of the second of two classes, but there are 3"):
        bound(task, labels=("x", "y", "z"))
    with pytest.raises(UserError, match="pearson judges a number, but this task predicts a class"):
        Classification(metrics=("pearson",))


def test_answers_by_hand() -> None:
    logits = np.log(np.array([[1, 3], [8, 2]], np.float32))
    task = bound(Classification(family="encoder_only"))
    rows = [example(1, label=1), example(1, label=1)]
    found = task.answers(rows, task.read({"label": logits}, rows))
    assert [answer["label"] for answer in found] == ["very very yes", "no"]
    assert found[0]["probabilities"] == pytest.approx({"no": 0.25, "very very yes": 0.75})
    assert [answer["probability"] for answer in found] == pytest.approx([0.75, 0.8])
    assert task.truths(rows) == [1, 1] and task.guesses(found) == [1, 0]

    several = bound(MultiLabel(family="encoder_only", threshold=0.7), labels=("x", "y", "z"))
    found = several.answers(rows[:1], several.read({"label": np.array([[2.0, 0.0, 1.0]])}, rows[:1]))
    assert found[0]["labels"] == ["x", "z"] and several.guesses(found) == [[0, 2]]
    assert found[0]["probabilities"] == pytest.approx({"x": 0.8807971, "y": 0.5, "z": 0.7310586})

    number = bound(Regression(family="encoder_only"), labels=())
    found = number.answers(rows[:1], number.read({"label": np.array([[2.5]])}, rows[:1]))
    assert found == [{"number": 2.5}] and number.guesses(found) == [2.5]

    choice = bound(MultipleChoice(family="encoder_only"), labels=())
    found = choice.answers(rows[:1], choice.read({"label": np.log([[1.0, 6.0, 2.0, 1.0]])}, rows[:1]))
    assert (found[0]["choice"], choice.guesses(found)) == (1, [1])
    assert found[0]["probabilities"] == pytest.approx([0.1, 0.6, 0.2, 0.1])


# The names of before.


@pytest.mark.parametrize(
    ("family", "former", "now"),
    [
        ("gpt", {"name": "extract_classification"}, {"language_model_weight": 0.5}),
        ("gpt", {"name": "extract_classification", "language_model_weight": 0.0}, {"language_model_weight": 0.0}),
        ("bert", {"name": "pooled_classification", "pooled_at": "last"}, {"read_at": "last"}),
        ("bert", {"name": "pooled_classification", "head_dropout": 0.2}, {"head_dropout": 0.2}),
        ("t5", {"name": "decoder_classification"}, {}),
    ],
)
def test_former_names_are_read(family: str, former: dict[str, Any], now: dict[str, Any]) -> None:
    experiment = configs.load(f"finetune/area:{family},smoke").to_dict() | {"task": former}
    config = configs.resolve(experiment, name="of before", stored=True)
    assert config.selected["task"] == "classification" and isinstance(config.task, Classification)
    assert {key: getattr(config.task, key) for key in now} == now
    assert renamed({"name": "regression"}) == {"name": "regression"}


def test_bound_fields_are_no_config_keys() -> None:
    for name, kind in TASKS.items():
        keys = {field.name for field in dataclasses.fields(kind) if field.metadata.get("config", True)}  # type: ignore[arg-type]
        assert not keys & {"vocabulary", "_vocabulary", "labels", "label_ids", "family", "spelled", "bound", "choices"}
        read = "input" if name == "text_to_text" else "text_fields"
        assert {"members"} <= keys if name == "mixture" else {"sequence_length", read, "metrics"} <= keys


# BART.


def test_decoder_classification_by_hand() -> None:
    """BART: the decoder reads what the encoder reads, one place later; its last place is classified."""
    words = dataclasses.replace(vocabulary(), special={**SPECIAL, "decoder_start": SPECIAL["end"]})
    task = Classification(sequence_length=8, family="encoder_decoder").bind(words, LABELS, encode, decode)
    start, end = SPECIAL["start"], SPECIAL["end"]
    check(
        call(task, example(2)),
        encoder_inputs=[start, 30, 31, end, 0, 0, 0, 0],
        inputs=[end, start, 30, 31, 0, 0, 0, 0],
        segment_ids=[1, 1, 1, 1, 0, 0, 0, 0],
        encoder_segment_ids=[1, 1, 1, 1, 0, 0, 0, 0],
        positions=[0, 1, 2, 3, 0, 0, 0, 0],
        label_positions=3,
        label_targets=1,
    )
    pair = dataclasses.replace(task, text_fields=PAIR, sequence_length=9)
    arrays = call(pair, example(9, 9))
    check(arrays, encoder_inputs=[start, 30, 31, 32, end, end, 60, 61, end], label_positions=8)


def test_decoder_classification_without_a_start_token() -> None:
    """T5: its vocabulary has no <s>, and its decoder starts from padding."""
    task = bound(Classification(sequence_length=8, text_fields=PAIR, family="encoder_decoder"), without=("start",))
    end = SPECIAL["end"]
    arrays = call(task, example(2, 1))
    check(arrays, encoder_inputs=[30, 31, end, 60, end, 0, 0, 0], inputs=[0, 30, 31, end, 60, 0, 0, 0])
    check(arrays, label_positions=4)
