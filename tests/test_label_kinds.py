"""Labels of every kind: what a row may hold, what a task gets of it, and what is said of labels that are none."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxformer.data.files import JSONLines
from jaxformer.data.records import digest
from jaxformer.errors import UserError

ALL = {"validation_share": 1e-12}  # nothing is held out


def json_lines(folder: Path, *records: Any, **keys: Any) -> JSONLines:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return JSONLines(path=str(path), **({} if "validation_share" in keys else ALL) | keys)


def labelled(folder: Path, *labels: Any, **keys: Any) -> JSONLines:
    return json_lines(folder, *({"text": f"text {n}", "label": label} for n, label in enumerate(labels)), **keys)


def found(source: JSONLines, kind: str, *fields: str, **keys: Any) -> list[Any]:
    return [example["label"] for example in source.examples("train", fields or ("text",), kind, **keys)]


def refusal(source: JSONLines, kind: str, *fields: str) -> str:
    with pytest.raises(UserError) as caught:
        found(source, kind, *fields)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Several classes.


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        ([["b", "a"], ["c"], []], ("a", "b", "c"), [[1, 0], [2], []]),
        (["b, a", "c", "b"], ("a", "b", "c"), [[1, 0], [2], [1]]),
        (["a,,a ,b"], ("a", "b"), [[0, 1]]),
        ([[10, 9], [9]], ("9", "10"), [[1, 0], [0]]),
        (["cs.CL", None, "", ["q-bio"]], ("cs.CL", "q-bio"), [[0], [1]]),
        ([3, [3, 5]], ("3", "5"), [[0], [0, 1]]),
    ],
)
def test_several_classes_are_a_list_or_text(labels: list[Any], names: tuple[str, ...], expected: Any, tmp_path: Path):
    source = labelled(tmp_path, *labels)
    assert source.label_names("classes") == names and found(source, "classes") == expected


def test_another_separator_parts_classes_and_an_empty_one_does_not(tmp_path: Path) -> None:
    for separator, names in ((";", ("a,b", "c")), ("", ("a,b; c",))):
        source = labelled(tmp_path, "a,b; c", label_separator=separator)
        assert source.label_names("classes") == names
    comma = labelled(tmp_path, "a").fingerprint("train")
    assert labelled(tmp_path, "a", label_separator=";").fingerprint("train") != comma
    assert digest({"label_separator": ","}) == digest({})  # the data of runs from before there was one


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (["a", None], "no list of classes: its element 1 is None"),
        ([["a"]], "no list of classes: its element 0 is list"),
        ({"a": 1}, "dict"),
    ],
)
def test_what_is_no_list_of_classes_is_named(label: Any, words: str, tmp_path: Path) -> None:
    message = refusal(labelled(tmp_path, ["a"], label), "classes")
    assert f"{tmp_path}/a.jsonl:2: field 'label'" in message and words in message


def test_classes_of_several_kinds_are_mixed(tmp_path: Path) -> None:
    assert "mixed" in refusal(labelled(tmp_path, ["a"], [1]), "classes")


# Numbers.


def test_numbers_are_numbers_however_they_are_written(tmp_path: Path) -> None:
    source = labelled(tmp_path, 2.5, "3.750", 4, " -1 ", "1e-2", None, "", -1, 0)
    left_out: dict[str, Any] = {}
    assert found(source, "number", left_out=left_out) == [2.5, 3.75, 4.0, -1.0, 0.01, -1.0, 0.0]
    assert left_out == {"rows left out: no label": {"count": 2, "of": 9}} and source.label_names("number") == ()


@pytest.mark.parametrize("label", ["three", "3,5", True, [2.5], "inf", "1_000"])
def test_what_is_no_number_is_named(label: Any, tmp_path: Path) -> None:
    message = refusal(labelled(tmp_path, 2.5, label), "number")
    assert f"{tmp_path}/a.jsonl:2: field 'label' is " in message and message.endswith(", not a number")
    assert found(labelled(tmp_path, 2.5, label, skip_malformed=1), "number") == [2.5]


def test_a_split_of_which_every_number_is_minus_one_has_none(tmp_path: Path) -> None:
    test = tmp_path / "test.jsonl"
    test.write_text('{"text": "a", "label": -1}\n{"text": "b", "label": -1.0}\n')
    source = labelled(tmp_path, -1, 0.5, test_path=str(test))
    assert found(source, "number") == [-1.0, 0.5]
    assert list(source.examples("test", ("text",), "number")) == []
    unlabelled = list(source.examples("test", ("text",), "number", unlabelled=True))
    assert [example["label"] for example in unlabelled] == [None, None]


# One of several choices.

ENDS = ("end0", "end1", "end2")


def chosen(folder: Path, *labels: Any, **keys: Any) -> JSONLines:
    texts = {"text": "a"} | {end: f"the {end}" for end in ENDS}
    return json_lines(folder, *(texts | {"label": label} for label in labels), **keys)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["A", "C", "b"], [0, 2, 1]),
        ([0, 2, 1], [0, 2, 1]),
        ([1, 3, 2, 2], [0, 2, 1, 1]),
        (["1", "3"], [0, 2]),
        ([1.0, 0.0, float("nan")], [1, 0]),
        (["the end2", "the end0"], [2, 0]),
        ([None, 0, -1, ""], [0]),
    ],
)
def test_choices_are_letters_numbers_or_their_texts(labels: list[Any], expected: list[int], tmp_path: Path) -> None:
    source = chosen(tmp_path, *labels)
    assert found(source, "choice", "text", *ENDS) == expected and source.label_names("choice") == ()


def test_rows_of_all_splits_tell_how_choices_are_counted(tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    for label, expected in ((3, [0, 1]), (0, [1, 2])):
        source = chosen(tmp_path, label)
        Path(source.path).rename(other)
        assert found(chosen(tmp_path, 1, 2, validation_path=str(other)), "choice", "text", *ENDS) == expected


@pytest.mark.parametrize(
    ("labels", "place", "words"),
    [
        (["A", "B", "D"], 3, "names none of the choices; as in the other rows it should be a letter A to C"),
        (["A", "B", 1], 3, "it should be a letter A to C"),
        ([0, 1, 3], 3, "it should be a whole number from 0 to 2"),
        ([1, 3, 4], 3, "it should be a whole number from 1 to 3"),
        (["the end1", "end"], 2, "it should be the text of one of them"),
        ([0, 1, 1.5], 3, "is 1.5, not a choice"),
        ([0, True], 2, "is True, not a choice"),
        ([0, [1]], 2, "is list, not a label"),
    ],
)
def test_a_label_that_is_no_choice_is_named(labels: list[Any], place: int, words: str, tmp_path: Path) -> None:
    message = refusal(chosen(tmp_path, *labels), "choice", "text", *ENDS)
    assert f"{tmp_path}/a.jsonl:{place}: " in message and words in message


def test_numbers_that_may_count_from_0_or_1_are_refused(tmp_path: Path) -> None:
    message = refusal(chosen(tmp_path, 1, 2, 1), "choice", "text", *ENDS)
    assert "numbers from 1 to 2 of 3 choices" in message and "from 0 or from 1" in message


def test_a_text_of_two_choices_is_named(tmp_path: Path) -> None:
    rows = [{"text": "a", "end0": "x", "end1": "x", "end2": "y", "label": label} for label in ("y", "x")]
    assert "a.jsonl:2: the label 'x' in 'label' names several" in refusal(
        json_lines(tmp_path, *rows), "choice", "text", *ENDS
    )


def test_a_list_of_choices_is_named_by_its_elements(tmp_path: Path) -> None:
    race = {"article": "Long.", "question": "What?", "options": ["w", "x", "y", "z"], "answer": "C"}
    fields = ("article", "question", *(f"options[{number}]" for number in range(4)))
    source = json_lines(tmp_path, race, race | {"answer": "A"}, label_field="answer")
    first, second = source.examples("train", fields, "choice")
    assert (first["label"], second["label"], first["options[3]"]) == (2, 0, "z")
    assert first["record"] == {field: first[field] for field in fields} | {"answer": "C"}
    assert "field 'options' is list, not text; 'options[0]' is its first element" in refusal(
        source, "choice", "article", "options"
    )
    assert "no 'options[4]': field 'options' has 4 elements" in refusal(source, "choice", "article", "options[4]")


def test_fields_inside_of_fields_have_names(tmp_path: Path) -> None:
    choices = [{"label": letter, "text": f"choice {letter}"} for letter in "ABCDE"]
    row = {"id": "q1", "answerKey": "B", "question": {"stem": "Where?", "choices": choices}}
    fields = ("question.stem", *(f"question.choices[{number}]" for number in range(5)))
    (example,) = json_lines(tmp_path, row, label_field="answerKey").examples("train", fields, "choice")
    assert example["question.stem"] == "Where?" and example["question.choices[1]"] == "choice B"
    assert example["label"] == 1 and example["record"]["id"] == "q1"
    spelled = json_lines(tmp_path, row, text_field="question.choices[4].text", label_field="question.choices[0].label")
    assert list(spelled.documents("train")) == ["choice E"] and spelled.label_names() == ("A",)
    literal = json_lines(tmp_path, {"a.b": "whole", "a": {"b": "part"}}, text_field="a.b")
    assert list(literal.documents("train")) == ["whole"]
    for field, words in (
        ("question.stm", "no field 'stm' in 'question'; did you mean 'stem'?; it has stem, choices"),
        ("question.stem.more", "no field 'more' in 'question.stem'; it has none"),
        ("question.stem[0]", "field 'question.stem' is str, not a list"),
        ("answer.text", "no field 'answer'; did you mean 'answerKey'?"),
    ):
        assert words in refusal(json_lines(tmp_path, row, label_field="answerKey"), "class", field)


# Tags.


def test_tags_belong_to_words(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "text": ["Ada", "met", "Al"], "label": ["B-PER", "O", "B-PER"]},
        {"id": 8, "text": "in  Rome", "label": "O B-LOC"},
        {"id": 9, "text": ["no"], "label": None},
    ]
    source = json_lines(tmp_path, *rows)
    assert source.label_names("tags") == ("B-LOC", "B-PER", "O")
    first, second = source.examples("train", ("text",), "tags")
    assert first == {"text": "Ada met Al", "label": [1, 2, 1], "record": rows[0]}
    assert second["text"] == "in Rome" and second["label"] == [2, 0] and second["record"]["text"] == ["in", "Rome"]
    *_, third = source.examples("train", ("text",), "tags", unlabelled=True)
    assert third == {"text": "no", "label": None, "record": rows[2]}


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (["O"], "2 words in 'text', but 1 tags in 'label'"),
        (["O", "O", "O"], "2 words in 'text', but 3 tags in 'label'"),
        (["O", None], "no list of tags: its element 1 is None"),
        (4, "is 4, not a list of tags"),
    ],
)
def test_tags_that_do_not_match_the_words_are_named(tags: Any, words: str, tmp_path: Path) -> None:
    rows = [{"text": ["a", "b"], "label": ["O", "B"]}, {"text": ["c", "d"], "label": tags}]
    message = refusal(json_lines(tmp_path, *rows), "tags")
    assert f"{tmp_path}/a.jsonl:2: " in message and words in message


# Answers that stand in a text.

CONTEXT = "Ada met Al in Rome, and Al met Ada."
ASKED = {"question": "Who?", "context": CONTEXT}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"text": ["Al", "Rome"], "answer_start": [8, 14]}, {"text": ["Al", "Rome"], "answer_start": [8, 14]}),
        ([{"text": "Ada", "answer_start": 31}], {"text": ["Ada"], "answer_start": [31]}),
        ({"text": "Ada", "answer_start": 0}, {"text": ["Ada"], "answer_start": [0]}),
        ({"text": [], "answer_start": []}, {"text": [], "answer_start": []}),
        ([], {"text": [], "answer_start": []}),
    ],
)
def test_answers_are_texts_at_places(answers: Any, expected: Any, tmp_path: Path) -> None:
    source = json_lines(tmp_path, ASKED | {"answers": answers}, ASKED | {"answers": None}, label_field="answers")
    (example,) = source.examples("train", ("question", "context"), "span")
    assert example["label"] == expected and example["record"]["context"] == CONTEXT


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"text": ["Al"], "answer_start": [9]}, "'Al' does not stand at character 9 of 'context'; it stands at 8"),
        ({"text": ["Ada", "Al"], "answer_start": [0, -1]}, "'Al' does not stand at character -1"),
        ({"text": ["Bo"], "answer_start": [0]}, "it is not in it at all"),
        ({"text": ["Al"], "answer_start": []}, "1 answers at 0 places"),
        ({"text": ["Al"], "answer_start": ["8"]}, "an answer 'Al' at '8'"),
        ({"text": [""], "answer_start": [0]}, "an answer '' at 0"),
        ({"text": ["Al"]}, "not answers with 'text' and 'answer_start'"),
        ("Al", "is 'Al', not answers"),
        ([{"text": "Al"}], "an answer 'Al' at None"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_in_its_context_is_named(answers: Any, words: str, tmp_path: Path) -> None:
    good = ASKED | {"answers": [{"text": "Al", "answer_start": 8}]}
    source = json_lines(tmp_path, good, ASKED | {"answers": answers}, label_field="answers")
    message = refusal(source, "span", "question", "context")
    assert f"{tmp_path}/a.jsonl:2: " in message and words in message


# Texts to write.


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ({"text": ["Al"], "answer_start": [8]}, ["Al"]),
        ([{"text": "Al", "answer_start": 8}], ["Al"]),
    ],
)
def test_a_text_may_have_several_references(label: Any, expected: list[str], tmp_path: Path) -> None:
    source = labelled(tmp_path, label, None, "", [])
    assert found(source, "text") == [expected] and source.label_names("text") == ()
    assert list(source.texts("train", ("text",), kind="text")) == ["text 0", *expected, "text 1", "text 2", "text 3"]


def test_sentences_of_a_text_to_shorten_are_joined(tmp_path: Path) -> None:
    row = {"text": ["One here.", "Two there."], "label": "Both."}
    (example,) = json_lines(tmp_path, row).examples("train", ("text",), "text")
    assert example == {"text": "One here. Two there.", "label": ["Both."], "record": row}


@pytest.mark.parametrize("label", [3, True, ["a", 3], {"a": "b"}, "\ud83d"])
def test_what_is_no_text_is_named(label: Any, tmp_path: Path) -> None:
    message = refusal(labelled(tmp_path, "good", label), "text")
    assert f"{tmp_path}/a.jsonl:2: field 'label' is " in message and "text" in message


# What holds for all kinds.

EACH = {
    "class": [{"text": "a", "label": n % 3} for n in range(40)],
    "classes": [{"text": "a", "label": [n % 3]} for n in range(40)],
    "number": [{"text": "a", "label": n / 7} for n in range(40)],
    "choice": [{"text": "a", "end0": "x", "end1": "y", "label": n % 2} for n in range(40)],
    "tags": [{"text": ["a"], "label": ["BIO"[n % 3]]} for n in range(40)],
    "span": [{"text": "abc" * 9, "label": [{"text": "a", "answer_start": n % 9 * 3}]} for n in range(40)],
    "text": [{"text": "a", "label": f"b {n}"} for n in range(40)],
}


def numbered(kind: str, folder: Path, **keys: Any) -> tuple[JSONLines, tuple[str, ...]]:
    source = json_lines(folder, *({"id": n} | row for n, row in enumerate(EACH[kind])), **keys)
    return source, ("text", "end0", "end1") if kind == "choice" else ("text",)


@pytest.mark.parametrize("kind", EACH)
def test_every_kind_holds_out_by_the_same_hash_and_draws_by_seed(kind: str, tmp_path: Path) -> None:
    def ids(split: str, **keys: Any) -> list[int]:
        source, fields = numbered(kind, tmp_path, validation_share=0.3, **keys)
        return [example["record"]["id"] for example in source.examples(split, fields, kind)]

    train, held_out = ids("train"), ids("validation")
    assert sorted(train + held_out) == list(range(40)) and train == sorted(train) and 4 < len(held_out) < 22
    source, _ = numbered(kind, tmp_path, validation_share=0.3)
    assert held_out == [number for number in range(40) if source.held_out(number)]
    few = ids("train", max_examples=9)
    assert len(set(few)) == 9 and set(few) < set(train) and few == ids("train", max_examples=12)[:9]
    assert few != ids("train", max_examples=9, subset_seed=1) and ids("validation", max_examples=9) == held_out


@pytest.mark.parametrize("kind", EACH)
def test_every_kind_counts_rows_without_a_label(kind: str, tmp_path: Path) -> None:
    rows = [{"id": n} | row | ({"label": None} if n % 4 == 0 else {}) for n, row in enumerate(EACH[kind])]
    fields = ("text", "end0", "end1") if kind == "choice" else ("text",)
    source, left_out = json_lines(tmp_path, *rows), {}
    assert len(list(source.examples("train", fields, kind, left_out))) == 30
    assert left_out == {"rows left out: no label": {"count": 10, "of": 40}}
    every = list(source.examples("train", fields, kind, unlabelled=True))
    assert [example["record"]["id"] for example in every if example["label"] is None] == list(range(0, 40, 4))


@pytest.mark.parametrize("kind", EACH)
def test_rows_to_predict_need_no_label_at_all(kind: str, tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "label"} for row in EACH[kind][:3]]
    fields = ("text", "end0", "end1") if kind == "choice" else ("text",)
    every = list(json_lines(tmp_path, *rows).examples("every", fields, kind, unlabelled=True))
    assert [example["label"] for example in every] == [None] * 3 and [example["record"] for example in every] == rows
    assert "a.jsonl:1: no field 'label'" in refusal(json_lines(tmp_path, *rows), kind, *fields)


def test_classes_are_balanced_and_only_they(tmp_path: Path) -> None:
    labels = [0] * 30 + [1] * 10
    few = found(labelled(tmp_path, *labels, max_examples=12), "class")
    assert sorted(few) == [0] * 6 + [1] * 6
    many = found(labelled(tmp_path, *([label] for label in labels), max_examples=40), "classes")
    assert sorted(itertools.chain.from_iterable(many)) == labels and many != [[label] for label in labels]
    assert np.mean([label == [0] for label in many[:12]]) > 0.5
