"""Text to text: what is read and written of every kind of label, by hand; T5's strings; answers; several tasks in one
run."""

import dataclasses
import pickle

import numpy as np
import pytest
from cases import carrier

from jaxformer.errors import UserError
from jaxformer.experiments.finetune.text_to_text import TASKS as PAPERS
from jaxformer.objectives import Padded
from jaxformer.tasks import TASKS, renamed
from jaxformer.tasks.mixture import TaskMixture
from jaxformer.tasks.template import read_template
from jaxformer.tasks.text_to_text import TextToText, read_number, written_number
from jaxformer.tasks.writing import cut
from jaxformer.tokenizers import Tokenizer, Vocabulary, load_tokenizer

ROLES = ("pad", "end", "unknown", "start")
SPECIAL = {role: number for number, role in enumerate(ROLES)}
PAD, END, UNKNOWN, START = range(4)
WORDS = {"sum:": 20, "a:": 21, "b:": 22, "no": 24, "yes": 25, "very": 26, "red": 27, "cat": 28, "3.2": 29, "0.0": 30}
SPELLED = {number: word for word, number in WORDS.items()}


def encode(text):
    return np.array([WORDS.get(word, UNKNOWN) for word in text.split()], np.int32)


def encode_numbers(text):
    """As above, for a tokenizer that writes any number."""
    return np.array([WORDS.get(word, 31) for word in text.split()], np.int32)


def decode(ids):
    return " ".join(SPELLED.get(int(number), "?") for number in ids)


def vocabulary(start="pad", without=()):
    special = {role: number for role, number in SPECIAL.items() if role not in without}
    words = Vocabulary(100, special, np.array([], np.int32), np.arange(100) < len(ROLES), np.ones(100, bool))
    return words.starting(start)


def bound(labels=("no", "very yes"), start="pad", family="encoder_decoder", encode=encode, **keys):
    keys = {"sequence_length": 10, "target_length": 5} | keys
    task = TextToText(**keys).for_model(carrier(family, "causal"))
    return task.bind(vocabulary(start), labels, encode, decode)


def arrays_of(task, label, **lengths):
    """What is written of an example whose fields have so many tokens: 40, 41, …; 60, 61, …."""
    fields = {
        name: np.arange(length, dtype=np.int32) + 40 + 20 * number
        for number, (name, length) in enumerate(lengths.items())
    }
    return task(fields | {"label": label, "window": 0}, np.random.default_rng(0))


def check(arrays, **expected):
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values, err_msg=name)


# What is read.


def test_a_template_has_fields_between_its_words():
    found = read_template("task.input", "mnli hypothesis: {hypothesis} premise: {premise}")
    assert found == (("hypothesis", "premise"), ("mnli hypothesis: ", " premise: ", ""))
    assert read_template("task.input", "{{x}} {text}.") == (("text",), ("{x} ", "."))
    assert read_template("task.input", "{the text}").fields == ("the text",)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("summarize:", "names no field"),
        ("a {", "is not a text with"),
        ("a {} b", "a field that is no name"),
        ("a {text:>10}", "a field that is no name"),
        ("{text} and {text}", "the field 'text' twice"),
    ],
)
def test_a_template_that_says_nothing_is_refused(template, message):
    with pytest.raises(UserError, match=f"task.input: .*{message}"):
        TextToText(input=template)


def test_by_hand():
    task = bound(input="sum: a: {a} b: {b}")
    assert (task.fields, task.label_kind, task.metrics, task.room) == (("a", "b"), "class", ("accuracy", "f1"), 6)
    arrays = arrays_of(task, 1, a=2, b=1)
    check(
        arrays,
        encoder_inputs=[20, 21, 40, 41, 22, 60, END, 0, 0, 0],
        encoder_segment_ids=[1] * 7 + [0] * 3,
        encoder_positions=[*range(7), 0, 0, 0],
        inputs=[PAD, 26, 25, 0, 0],
        targets=[26, 25, END, 0, 0],
        weights=[1, 1, 1, 0, 0],
        segment_ids=[1, 1, 1, 0, 0],
        positions=[0, 1, 2, 0, 0],
    )
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == task.shapes
    assert not arrays_of(task, None, a=2, b=1)["weights"].any()


def test_words_are_never_cut_and_the_longest_field_is_first():
    task = bound(input="sum: {a} a: {b} b: {c} very", sequence_length=11)
    assert task.room == 6
    check(arrays_of(task, 0, a=9, b=1, c=9), encoder_inputs=[20, 40, 41, 42, 21, 60, 22, 80, 81, 26, END])
    assert task.is_cut({"a": np.array([9, 2]), "b": np.array([1, 2]), "c": np.array([9, 2])}).tolist() == [True, False]


@pytest.mark.parametrize(
    ("lengths", "room", "kept"),
    [
        ((3, 3, 3), 9, (3, 3, 3)), ((9, 1, 9), 6, (3, 1, 2)), ((2, 9, 9), 10, (2, 4, 4)), ((9, 9, 9), 4, (2, 1, 1)),
        ((0, 9), 4, (0, 4)), ((7,), 4, (4,)), ((9, 8), 5, (3, 2)),
    ],
)  # fmt: skip
def test_texts_are_cut_to_the_same_length(lengths, room, kept):
    assert tuple(map(len, cut([np.arange(length) for length in lengths], room))) == kept


def test_bart_begins_both_texts_and_its_decoder_starts_from_the_end():
    task = bound(input="sum: {text}", start="end", target_kind="text", encode=encode_numbers)
    check(
        arrays_of(task, ["red cat", "cat"], text=2),
        encoder_inputs=[START, 20, 40, 41, END, 0, 0, 0, 0, 0],
        inputs=[END, START, 27, 28, 0],
        targets=[START, 27, 28, END, 0],
        weights=[1, 1, 1, 1, 0],
    )
    assert task.room == 10 - 3
    check(arrays_of(task, ["red cat red cat"], text=9), targets=[START, 27, 28, 27, END])


def test_one_stack_reads_and_writes_in_one_row():
    task = bound(input="sum: {text}", family="decoder_only", sequence_length=8, target_length=4)
    arrays = arrays_of(task, 1, text=2)
    check(
        arrays,
        inputs=[20, 40, 41, END, 26, 25, 0, 0, 0, 0, 0],
        targets=[40, 41, END, 26, 25, END, 0, 0, 0, 0, 0],
        weights=[0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0],
        segment_ids=[1] * 6 + [0] * 5,
        positions=[*range(6), 0, 0, 0, 0, 0],
        prefix_length=4,
    )
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == task.shapes
    assert not arrays_of(task, None, text=2)["weights"].any() and task.delimited


# What is written.


def targets(task, label):
    arrays = arrays_of(task, label, text=1)
    return arrays["targets"][arrays["weights"] > 0].tolist()


def test_classes_are_written_in_their_words():
    task = bound(words={"0": "red cat", 1: "yes"}, labels=("0", "1"))
    assert (targets(task, 0), targets(task, 1)) == ([27, 28, END], [25, END])
    rows = [{"label": 0, "window": 0}] * 4
    answers = task.answers(rows, task.read({"written": ["red cat", " yes", "cat red", ""]}, rows))
    assert answers == [
        {"label": "0", "text": "red cat"}, {"label": "1", "text": "yes"}, {"label": None, "text": "cat red"},
        {"label": None, "text": ""},
    ]  # fmt: skip
    assert (task.guesses(answers), task.truths(rows)) == ([0, 1, -1, -1], [0] * 4)


@pytest.mark.parametrize(
    ("number", "text"),
    [(3.2, "3.2"), (3.11, "3.2"), (3.09, "3.0"), (5, "5.0"), (0, "0.0"), (-0.01, "0.0"), (4.999, "5.0")],
)
def test_numbers_are_multiples_of_a_fifth(number, text):
    assert written_number(number) == text


def test_text_that_is_no_number_is_the_worst():
    task = bound(target_kind="number", encode=encode_numbers)
    assert targets(task, 3.15) == [29, END] and task.metrics == ("pearson", "spearman")
    rows = [{"label": 3.0, "window": 0}] * 4
    answers = task.answers(rows, task.read({"written": ["3.2", "equal", "nan", " 5 "]}, rows))
    assert [answer["number"] for answer in answers] == [3.2, None, None, 5.0]
    assert (task.guesses(answers), task.truths(rows)) == ([3.2, -1.0, -1.0, 5.0], [3.0] * 4)
    assert read_number("1e999") is None and read_number("-0.5") == -0.5


def test_texts_and_answers():
    task = bound(target_kind="text")
    assert targets(task, ["red cat", "cat"]) == [27, 28, END] and task.metrics == ("bleu",)
    rows = [{"label": ["red cat", "cat"], "window": 0}]
    answers = task.answers(rows, task.read({"written": ["cat"]}, rows))
    assert (answers, task.guesses(answers), task.truths(rows)) == ([{"text": "cat"}], ["cat"], [["red cat", "cat"]])
    span = bound(target_kind="span")
    gold = {"text": ["red", "red cat"], "answer_start": [3, 3]}
    none = {"text": [], "answer_start": []}
    assert (targets(span, gold), targets(span, none)) == ([27, END], [END])
    rows = [{"label": gold, "window": 0}, {"label": none, "window": 0}]
    answers = span.answers(rows, ["cat", ""])
    assert answers == [{"answer": "cat"}, {"answer": ""}]
    assert (span.guesses(answers), span.truths(rows)) == (["cat", ""], [["red", "red cat"], []])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"target_kind": "tags"}, "task.target_kind: 'tags' is not one of class, number, text, span"),
        ({"target_length": 2}, "task.target_length: 2, but the label 'very yes' takes 3 tokens with the end"),
        ({"labels": ("no", "maybe")}, "cannot write the label 'maybe'"),
        ({"words": {"maybe": "no"}}, "task.words: there is no label 'maybe'; the data has no, very yes"),
        ({"words": {"no": "very yes"}}, "task.words: 'very yes' is written for two labels"),
        ({"words": {"no": "red"}, "target_kind": "text"}, "task.words: they are written for classes"),
        ({"target_kind": "number"}, "cannot write numbers"),
        ({"input": "sum: " * 9 + "{text}"}, "task.sequence_length: 10, but task.input takes 10 without fields"),
        ({"metrics": ("acuracy",)}, "task.metrics: 'acuracy'.*did you mean 'accuracy'"),
        ({"metrics": ("bleu",)}, "task.metrics: .*bleu"),
    ],
)
def test_what_cannot_be_written_is_refused(keys, message):
    with pytest.raises(UserError, match=message):
        bound(**keys)


def test_other_families_and_vocabularies_are_refused():
    with pytest.raises(UserError, match="text_to_text needs encoder_decoder or decoder_only"):
        TextToText().for_model(carrier("encoder_only", "full"))
    with pytest.raises(UserError, match="end"):
        TextToText().bind(vocabulary(without=("end",)), ("no",), encode, decode)


def test_the_former_class_is_a_template():
    former = {"name": "text_to_text_classification", "prefix": "sum: {x}", "text_fields": ("a", "b"), "z_loss": 0.1}
    now = renamed(former)
    assert now.pop("name") == "text_to_text"
    assert now == {
        "input": "sum: {{x}} a: {a} b: {b}", "target_length": 8, "metrics": ("accuracy", "f1"), "z_loss": 0.1,
    }  # fmt: skip
    assert renamed({"name": "text_to_text_classification"})["input"] == "text: {text}"
    assert TextToText(**now).template.literals == ("sum: {x} a: ", " b: ", "")


# T5's strings.

EXAMPLES = ("A dog runs.", "the U.S.A. (1999) won 3-2", "Is it?  No; never", "e.g. l'été, 12%", '"Quoted"')


@pytest.fixture(scope="module")
def t5(reference_data) -> Tokenizer:
    return load_tokenizer(reference_data / "tokenizers" / "t5" / "spiece.model")


@pytest.mark.parametrize("name", PAPERS)
def test_pieces_are_those_of_the_whole_string(name, t5):
    keys = PAPERS[name][0]
    labels = {"stsb": ()}.get(name, ("acceptable", "not_equivalent"))
    task = TextToText(**keys, sequence_length=256).bind(t5.vocabulary, labels, t5.encode, t5.decode)
    for first in range(len(EXAMPLES)):
        texts = {field: EXAMPLES[(first + place) % len(EXAMPLES)] for place, field in enumerate(task.fields)}
        example = {field: t5.encode(text) for field, text in texts.items()} | {"label": None}
        arrays = task(example, np.random.default_rng(0))
        found = arrays["encoder_inputs"][arrays["encoder_segment_ids"] > 0].tolist()
        assert found == [*t5.encode(keys["input"].format(**texts)), t5.vocabulary.id("end")]


def test_what_t5_writes_is_what_its_tokenizer_says(t5):
    task = TextToText(words={"0": "not_equivalent", "1": "equivalent"}, target_length=16)
    task = task.bind(t5.vocabulary, ("0", "1"), t5.encode, t5.decode)
    assert targets(task, 0) == [*t5.encode("not_equivalent"), 1]
    assert task.guesses(task.answers([{}] * 2, ["equivalent", "not_equivalent"])) == [1, 0]
    number = TextToText(target_kind="number").bind(t5.vocabulary, (), t5.encode, t5.decode)
    assert t5.decode(targets(number, 2.57)[:-1]) == "2.6"


def test_spaces_are_tokens_where_the_tokenizer_makes_them(reference_data):
    gpt2 = load_tokenizer(reference_data / "tokenizers" / "gpt2" / "vocab.bpe")
    task = TextToText(input="summarize: {a} by {b}.", sequence_length=32).for_model(carrier("decoder_only", "causal"))
    task = task.bind(gpt2.vocabulary, ("no", "yes"), gpt2.encode, gpt2.decode)
    arrays = task({"a": gpt2.encode("Hello"), "b": gpt2.encode("me"), "label": 1}, np.random.default_rng(0))
    read = arrays["inputs"][: arrays["prefix_length"] - 1]
    assert gpt2.decode(read) == "summarize: Hello by me."


# Several tasks.

SUM = {"name": "text_to_text", "title": "sum", "input": "sum: {text}", "target_kind": "text", "target_length": 6}
YES = {"name": "text_to_text", "input": "a: {a} b: {b}", "corpora": [1], "target_length": 4, "sequence_length": 12}


def mixture(*members, labels=((), ("no", "very yes")), family="encoder_decoder"):
    task = TaskMixture(members=members).for_model(carrier(family, "causal"))
    return task.bind(vocabulary(), labels, encode, decode)


def test_members_keep_their_own_and_share_shapes():
    task = mixture(SUM, YES)
    assert task.labels == ((), ("no", "very yes"))
    assert [part.title for part in task.parts] == ["sum", "text_to_text1"] and [
        part.corpora for part in task.parts
    ] == [(), (1,)]
    assert [part.objective.metrics for part in task.parts] == [("bleu",), ("accuracy", "f1")]
    for part, label, lengths in zip(task.parts, (["red cat"], 1), ({"text": 3}, {"a": 2, "b": 2}), strict=True):
        arrays = arrays_of(Padded(part.objective, task.shapes), label, **lengths)
        assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == task.shapes
    assert task.shapes["encoder_inputs"][0] == (128,) and task.shapes["targets"][0] == (6,)
    check(arrays, targets=[26, 25, END, 0, 0, 0], weights=[1, 1, 1, 0, 0, 0])
    one = mixture(SUM, YES, family="decoder_only")
    assert one.shapes["inputs"][0] == (128 + 6 - 1,) and one.shapes["prefix_length"][0] == ()


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (YES | {"name": "classification"}, r"task.members\[1\].name: no 'classification'"),
        (YES | {"corpora": ["b"]}, r"task.members\[1\].corpora: \['b'\] is not a list of numbers"),
        (YES | {"title": 3}, r"task.members\[1\].title: 3 is not text"),
        (YES | {"metrics": ["accurcy"]}, r"task.members\[1\].metrics: 'accurcy'"),
        (YES | {"metrics": [1]}, r"task.members\[1\].metrics: 1 is not text"),
        (YES | {"label_smoothing": 0.1}, r"task.members\[1\]: label_smoothing is 0.1, .*a run has one loss"),
        (YES | {"input": "no field"}, r"task.members\[1\].input: 'no field' names no field"),
    ],
)
def test_members_that_do_not_fit_are_refused(member, message):
    with pytest.raises(UserError, match=message):
        mixture(SUM, member)


def test_tasks_can_be_sent_to_other_processes():
    task = mixture(SUM, YES)
    copied = pickle.loads(pickle.dumps(task))
    check(arrays_of(copied.parts[0].objective, ["cat"], text=2), **arrays_of(task.parts[0].objective, ["cat"], text=2))
    keys = {field.name for field in dataclasses.fields(TextToText) if field.metadata.get("config", True)}
    assert keys == {
        "input", "target_kind", "words", "sequence_length", "target_length", "metrics", "label_smoothing", "z_loss",
    }  # fmt: skip
    assert {"text_to_text", "mixture"} <= set(TASKS)
