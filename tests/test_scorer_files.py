"""Files of predictions, to the letter that GLUE's server and the scorers of SQuAD, CoNLL and sacreBLEU read."""

import json

import pytest

from jaxformer.errors import UserError
from jaxformer.tasks.metrics import KINDS, measure
from jaxformer.tasks.scorer_files import FILES


def labelled(*names):
    return [{"label": name} for name in names]


def test_every_kind_of_label_that_has_a_scorer_has_files() -> None:
    assert set(FILES) < set(KINDS)


@pytest.mark.parametrize(
    "labels, given, written",
    [
        pytest.param(("unacceptable", "acceptable"), "acceptable", "1", id="cola"),
        pytest.param(("acceptable", "unacceptable"), "acceptable", "1", id="cola-in-alphabetical-order"),
        pytest.param(("negative", "positive"), "negative", "0", id="sst2"),
        pytest.param(("0", "1"), "1", "1", id="sst2-as-its-file-has-it"),
        pytest.param(("not_equivalent", "equivalent"), "equivalent", "1", id="mrpc"),
        pytest.param(("not_duplicate", "duplicate"), "duplicate", "1", id="qqp"),
        pytest.param(("not_entailment", "entailment"), "entailment", "1", id="wnli"),
        pytest.param(("entailment", "not_entailment"), "entailment", "entailment", id="rte-qnli"),
        pytest.param(("contradiction", "entailment", "neutral"), "neutral", "neutral", id="mnli"),
    ],
)
def test_classes_as_glue_wants_them(labels, given, written) -> None:
    files = FILES["class"](labelled(given, labels[0]), [{}, {}], labels)
    first, second = (line.split("\t") for line in files["predictions.tsv"].splitlines()[1:])
    assert first == ["0", written] and second[0] == "1" and second[1] in (labels[0], "0", "1")


def test_a_table_of_classes_to_the_letter() -> None:
    labels = ("entailment", "not_entailment")
    records = [{"index": "7"}, {"index": "8"}, {"index": "12"}]
    files = FILES["class"](labelled("entailment", "not_entailment", None), records, labels)
    assert files == {"predictions.tsv": "index\tprediction\n7\tentailment\n8\tnot_entailment\n12\tentailment\n"}
    # Numbers are the record's, whatever it calls them; else the rows are counted, and where the numbers repeat.
    for records, numbers in (
        ([{"idx": 5}, {"idx": 3}], ["5", "3"]),
        ([{"id": "gj04"}, {}], ["0", "1"]),
        ([{"idx": -1}, {"idx": -1}], ["0", "1"]),
        ([{"idx": 4}, {"idx": 4}], ["0", "1"]),
    ):
        table = FILES["class"](labelled("a", "b"), records, ("a", "b"))["predictions.tsv"]
        assert [line.split("\t")[0] for line in table.splitlines()[1:]] == numbers, records


def test_numbers_to_three_places() -> None:
    answers = [{"number": 3.2}, {"number": 4.99951}, {"number": 0}]
    assert FILES["number"](answers, [{"index": n} for n in (0, 1, 2)]) == {
        "predictions.tsv": "index\tprediction\n0\t3.200\n1\t5.000\n2\t0.000\n"
    }


def test_answers_of_squad() -> None:
    answers = [{"answer": "El Niño", "null_odds": -2.5}, {"answer": "", "null_odds": 1.25}]
    records = [{"id": "56ddde6b"}, {"id": 7}]
    files = FILES["span"](answers, records)
    assert set(files) == {"predictions.json", "null_odds.json"} and "Niño" in files["predictions.json"]
    assert json.loads(files["predictions.json"]) == {"56ddde6b": "El Niño", "7": ""}
    assert json.loads(files["null_odds.json"]) == {"56ddde6b": -2.5, "7": 1.25}
    # Without odds of every question there is no such file.
    for answer in ({"answer": "x"}, {"answer": "x", "null_odds": None}):
        assert set(FILES["span"]([answers[0], answer], records)) == {"predictions.json"}
    with pytest.raises(UserError, match="question 1 has no id"):
        FILES["span"](answers, [{"id": "a"}, {}])
    with pytest.raises(UserError, match="several questions have the same id"):
        FILES["span"](answers, [{"id": "1"}, {"id": 1}])


def tagged(words, tags):
    return {"tags": [{"word": word, "tag": tag} for word, tag in zip(words.split("|"), tags.split(), strict=True)]}


def test_columns_of_conll() -> None:
    answers = [tagged("Ada|went|New York", "B-PER O B-LOC"), tagged("Hi", "O")]
    truths = [["B-PER", "O", "I-LOC"], ["O"]]
    assert FILES["tags"](answers, [{}, {}], (), truths) == {
        "predictions.conll": "Ada B-PER B-PER\nwent O O\nNew_York I-LOC B-LOC\n\nHi O O\n\n"
    }
    assert FILES["tags"](answers, [{}, {}])["predictions.conll"] == "Ada B-PER\nwent O\nNew_York B-LOC\n\nHi O\n\n"
    # conlleval knows no S and parts B from E: the same entities as BIO, and with them the same score.
    true, guess = "S-PER O B-LOC I-LOC E-LOC S-LOC", "S-PER O B-LOC E-LOC E-LOC O"
    text = FILES["tags"]([tagged("a|b|c|d|e|f", guess)], [{}], (), [true.split()])["predictions.conll"]
    columns = [line.split() for line in text.splitlines() if line]
    assert " ".join(column[1] for column in columns) == "B-PER O B-LOC I-LOC I-LOC B-LOC"
    assert " ".join(column[2] for column in columns) == "B-PER O B-LOC I-LOC B-LOC O"
    bio = measure("seqeval_f1", [[column[1] for column in columns]], [[column[2] for column in columns]])
    assert bio == measure("seqeval_f1", [true.split()], [guess.split()])
    # Other tags stay as they are.
    assert FILES["tags"]([tagged("a|b", "DET NOUN")], [{}])["predictions.conll"] == "a DET\nb NOUN\n\n"


def test_one_line_for_each_text() -> None:
    answers = [{"text": "Ein Hund ."}, {"text": ""}, {"text": "two\nlines\r\nand a third"}]
    assert FILES["text"](answers, [{}] * 3) == {"predictions.txt": "Ein Hund .\n\ntwo lines and a third\n"}
