"""Sources of labelled data: CSV, SQuAD, CoNLL, parallel text, TFDS datasets, and arrays of JSON."""

import bz2
import gzip
import itertools
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from labelled import ALL, CONTEXT, OF_ROWS, refusal, write
from sampling import sampled

from jaxformer.config import load
from jaxformer.data.columns import CSV, CoNLL
from jaxformer.data.files import JSONLines
from jaxformer.data.finding import find_sets
from jaxformer.data.huggingface import HuggingFace
from jaxformer.data.parallel import Parallel
from jaxformer.data.records import Source
from jaxformer.data.sources import SOURCES, TFDS, SourceMixture
from jaxformer.data.squad import SQuAD
from jaxformer.errors import UserError


def records(source: Source, split: str = "train") -> list[Any]:
    return [record for _, record in source.records(split, True)]


# Columns.


@pytest.mark.parametrize(
    ("name", "content", "keys"),
    [
        ("a.csv", "text,label\na b,x\nc,y\n", {}),
        ("a.tsv", "text\tlabel\na b\tx\nc\ty\n", {}),
        ("a.csv", "\ufefftext,label\r\n\r\n\"a b\",x\r\nc,y", {}),
        ("a.txt", "text;label\na b;x\nc;y\n", {"delimiter": ";"}),
        ("a.csv", "text\tlabel\na b\tx\nc\ty\n", {"delimiter": "tab"}),
        ("a.tsv", '"text"\t"label"\n"a b"\t"x"\nc\ty\n', {}),
        ("a.csv.gz", gzip.compress(b"text,label\na b,x\nc,y\n", mtime=0), {}),
        ("a.tsv.xz", lzma.compress(b"text\tlabel\na b\tx\nc\ty\n"), {}),
    ],
)  # fmt: skip
def test_csv_gives_columns_by_name_and_by_number(name: str, content: str, keys: Any, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    source = CSV(path=path, **keys, **ALL)
    assert records(source) == [{"text": "a b", "label": "x"}, {"text": "c", "label": "y"}]
    assert list(source.documents("train")) == ["a b", "c"] and source.label_names() == ("x", "y")
    numbers = CSV(path=path, text_field="1", label_field="2", **keys, **ALL)
    assert list(numbers.documents("train")) == ["a b", "c"] and numbers.label_names() == ("x", "y")
    (first, _) = numbers.examples("train", ("1", "text"))
    assert first["1"] == first["text"] == "a b" and first["record"] == {"1": "a b", "text": "a b", "2": "x"}


def test_csv_without_a_header_has_numbers_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "gj04\t1\t\tGood.\ngj04\t0\t*\tBad it.\n")
    source = CSV(path=path, header=False, quoting="none", text_field="4", label_field="2", **ALL)
    assert list(source.documents("train")) == ["Good.", "Bad it."] and source.label_names() == ("0", "1")
    assert records(source)[1] == {"1": "gj04", "2": "0", "3": "*", "4": "Bad it."}
    for field in ("0", "5", "text"):
        assert f"a.tsv:1: no field '{field}'" in refusal(source, field)


def test_quotes_hold_columns_together_or_are_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,label\n"one, ""two""\nthree",x\nfour,y\n')
    source = CSV(path=path, **ALL)
    assert list(source.documents("train")) == ['one, "two"\nthree', "four"]
    assert [where for where, _ in source.records("train", True)] == [f"{path}:2", f"{path}:4"]
    glue = write(tmp_path / "a.tsv", 'text\tlabel\n"Yes, he said.\tx\nShe "left".\ty\n" quoted "\ty\n')
    assert list(CSV(path=glue, quoting="none", **ALL).documents("train")) == [
        '"Yes, he said.', 'She "left".', '" quoted "',
    ]  # fmt: skip
    message = refusal(CSV(path=glue, **ALL))
    assert message.startswith(f"{glue}:2: a quote is opened, and not closed") and "data.quoting=none" in message
    lost = CSV(path=glue, skip_malformed=9, **ALL)  # what an open quote swallows is not one row
    assert "a quote is opened" in refusal(lost)
    inside = CSV(path=write(tmp_path / "b.csv", 'text,label\n"a" b,x\nc,y\n'), **ALL)
    assert f"{inside.path}:2: ',' expected after '\"'; mend it, or set data.quoting=none" in refusal(inside)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"c", "1 columns, but the header has 2"),
        (b"c,x,", "3 columns, but the header has 2"),
        (b"\xe9t\xe9,x", "not UTF-8 text but, it seems, Latin-1"),
    ],
)
def test_a_malformed_row_of_columns_is_named_and_may_be_left_out(line: bytes, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text,label\na,x\nb,y\n" + line + b"\nd,y\n")
    message = refusal(CSV(path=path, **ALL))
    assert message.startswith(f"{path}:4: ") and words in message
    left_out: dict[str, Any] = {}
    source = CSV(path=path, skip_malformed=1, **ALL)
    assert [example["text"] for example in source.examples("train", ("text",), left_out=left_out)] == ["a", "b", "d"]
    assert left_out == {"rows left out: malformed": {"count": 1, "of": 4}}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"delimiter": "||"}, r"data.delimiter: '\|\|' is not one character"),
        ({"delimiter": '"'}, "data.delimiter: '\"' is not one character"),
        ({"quoting": "all"}, "data.quoting: 'all' is not one of minimal, none"),
    ],
)
def test_columns_that_cannot_be_told_apart_are_refused(keys: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        CSV(path="a.csv", **keys)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label,text\na,x,b\n")
    assert f"{path}:1: two columns are called 'text'" in refusal(CSV(path=path, **ALL))
    assert records(CSV(path=write(tmp_path / "b.csv", ",text,\n0,a,1\n"), **ALL)) == [{"1": "0", "text": "a", "3": "1"}]


def test_a_folder_gives_its_files_of_columns(tmp_path: Path) -> None:
    for name in ("a.csv", "deep/b.tsv", "c.jsonl", ".d.csv", "e.csv~"):
        write(tmp_path / name, f"text\n{name}\n")
    source = CSV(path=str(tmp_path), **ALL)
    assert list(source.documents("train")) == ["a.csv", "deep/b.tsv"]
    assert source.left_out_files() == {"files left out: .jsonl": {"count": 1, "of": 3}}
    write(tmp_path / "test.csv", "text\nt\n")
    held = CSV(path=f"{tmp_path}/a.csv", validation_path=f"{tmp_path}/deep", test_path=f"{tmp_path}/test.csv")
    assert [list(held.documents(split)) for split in ("train", "validation", "test")] == [
        ["a.csv"],
        ["deep/b.tsv"],
        ["t"],
    ]
    assert len({held.fingerprint(split) for split in held.splits}) == 3


def test_settings_of_columns_change_the_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,x\n")
    settings: list[dict[str, Any]] = [{}, {"header": False}, {"quoting": "none"}, {"delimiter": ";"}]
    assert len({CSV(path=path, **keys).fingerprint("train") for keys in settings}) == 4


# Arrays of JSON.


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_may_be_an_array_of_objects(indent: int | None, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}, 3]
    path = write(tmp_path / "a.json", "\ufeff\n" + json.dumps(rows, indent=indent))
    source = JSONLines(path=path, skip_malformed=1, **ALL)
    assert list(source.documents("train")) == ["a", "b"] and source.label_names() == ("x", "y")
    assert refusal(JSONLines(path=path, **ALL)) == f"{path}[2]: int, not an object with fields"
    packed = write(tmp_path / "b.json.bz2", bz2.compress(json.dumps(rows[:2], indent=indent).encode()))
    assert list(JSONLines(path=packed, **ALL).documents("train")) == ["a", "b"]
    lines = write(tmp_path / "c.json", '{"text": "a"}\n{"text": "b"}\n')
    assert list(JSONLines(path=lines, **ALL).documents("train")) == ["a", "b"]
    cut = write(tmp_path / "d.json", '[{"text": "a"},\n{"text": ')
    assert refusal(JSONLines(path=cut, **ALL)).startswith(f"{cut}:2: not JSON (")


# SQuAD.


def squad(path: Path, *questions: Any, **paragraph: Any) -> str:
    held = {"context": CONTEXT, "qas": list(questions)} | paragraph
    return write(path, json.dumps({"version": "v2.0", "data": [{"title": "Meetings", "paragraphs": [held]}]}))


def question(number: int, *answers: tuple[str, int], **more: Any) -> dict[str, Any]:
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": f"q{number}", "question": f"Question {number}?", "answers": found} | more


def test_squad_gives_questions_with_answers(tmp_path: Path) -> None:
    impossible = question(2, ("Al", 8), is_impossible=True)
    unanswered = {"id": "q3", "question": "Question 3?"}
    path = squad(
        tmp_path / "a.json", question(0, ("Al", 8)), question(1, ("Ada", 0), ("Rome", 14)), impossible, unanswered
    )
    source, left_out = SQuAD(path=path, **ALL), {}
    examples = list(source.examples("train", ("question", "context"), "span", left_out))
    assert [example["label"] for example in examples] == [
        {"text": ["Al"], "answer_start": [8]},
        {"text": ["Ada", "Rome"], "answer_start": [0, 14]},
        {"text": [], "answer_start": []},
    ]
    assert left_out == {"rows left out: no label": {"count": 1, "of": 4}}
    assert records(source)[0] == {
        "id": "q0", "title": "Meetings", "question": "Question 0?", "context": CONTEXT,
        "answers": {"text": ["Al"], "answer_start": [8]},
    }  # fmt: skip
    assert examples[1]["record"]["id"] == "q1" and list(source.documents("train")) == [CONTEXT]
    packed = write(tmp_path / "b.json.xz", lzma.compress(Path(path).read_bytes()))
    assert records(SQuAD(path=packed, **ALL)) == records(source)
    assert [example["label"] for example in source.examples("train", ("question",), "text")] == [
        ["Al"],
        ["Ada", "Rome"],
    ]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (question(1, ("Al", 9)), "paragraphs[0].qas[1] (question q1): the answer 'Al' does not stand at character 9"),
        (question(1, ("Al", 8), ("Bo", 0)), "the answer 'Bo' does not stand at character 0 of 'context'; it is not in"),
        ({"id": "q1", "answers": []}, "qas[1]: not a question"),
        (question(1) | {"answers": [{"text": "Al"}]}, "qas[1]: 'answers' is not a list of answers"),
        (question(1) | {"answers": "Al"}, "qas[1]: 'answers' is not a list of answers"),
        ([], "qas[1]: not a question"),
    ],
)
def test_a_malformed_question_is_named_and_may_be_left_out(bad: Any, words: str, tmp_path: Path) -> None:
    path = squad(tmp_path / "a.json", question(0, ("Al", 8)), bad, question(2, ("Ada", 0)))
    message = refusal(SQuAD(path=path, **ALL), "question", "context", kind="span")
    assert message.startswith(f"{path} data[0].paragraphs[0].qas[1]") and words in message
    kept = SQuAD(path=path, skip_malformed=1, **ALL).examples("train", ("question", "context"), "span")
    assert [example["record"]["id"] for example in kept] == ["q0", "q2"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"question": "?"}]', "not as SQuAD's files are"),
        ('{"data": [{"title": "a"}]}', "data[0]: no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "data[0].paragraphs[0]: not a paragraph with"),
        ('{"data": [', "not JSON"),
    ],
)
def test_what_is_not_as_squad_is_is_named(content: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", content)
    message = refusal(SQuAD(path=path, **ALL), "question", kind="span")
    assert message.startswith(path) and words in message


# CoNLL.

CONLL = "-DOCSTART- -X- O O\n\nAda NNP B-NP B-PER\nmet VBD B-VP O\n\n\nRome NNP B-NP B-LOC"


def test_conll_gives_sentences_of_words_and_tags(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", CONLL)
    source = CoNLL(path=path, **ALL)
    assert records(source) == [
        {"words": ["Ada", "met"], "tags": ["B-PER", "O"]}, {"words": ["Rome"], "tags": ["B-LOC"]},
    ]  # fmt: skip
    assert [where for where, _ in source.records("train", True)] == [f"{path}:3", f"{path}:7"]
    assert source.label_names("tags") == ("B-LOC", "B-PER", "O") and list(source.documents("train")) == [
        "Ada met",
        "Rome",
    ]
    (first, _) = source.examples("train", ("words",), "tags")
    assert first == {"words": "Ada met", "label": [1, 2], "record": {"words": ["Ada", "met"], "tags": ["B-PER", "O"]}}
    parts = CoNLL(path=path, tag_column=2, text_field="text", label_field="pos", **ALL)
    assert records(parts)[0] == {"text": ["Ada", "met"], "pos": ["NNP", "VBD"]}
    lower = CoNLL(path=path, word_column=3, **ALL)
    assert records(lower)[1] == {"words": ["B-NP"], "tags": ["B-LOC"]}


@pytest.mark.parametrize(
    "content",
    [
        "New York\tB-LOC\n,\tO\n\t\n#\tO\n",
        "# id = 1\nNew York\tB-LOC\n,\tO\n\n#\tO",
        "\ufeffNew York\tB-LOC\r\n,\tO\r\n\r\n#\tO",
    ],
)
def test_tabs_part_columns_where_there_are_some(content: str, tmp_path: Path) -> None:
    source = CoNLL(path=write(tmp_path / "a.txt", content), **ALL)
    assert records(source) == [{"words": ["New York", ","], "tags": ["B-LOC", "O"]}, {"words": ["#"], "tags": ["O"]}]


def test_words_alone_are_sentences_without_tags(tmp_path: Path) -> None:
    source = CoNLL(path=write(tmp_path / "a.conll", "Ada\nmet\n\nAl\n"), **ALL)
    assert [example["label"] for example in source.examples("every", ("words",), "tags", unlabelled=True)] == [
        None,
        None,
    ]
    assert list(source.documents("train")) == ["Ada met", "Al"]


@pytest.mark.parametrize("line", ["met", "met VBD", "met VBD O O"])
def test_words_without_their_tags_are_named_and_may_be_left_out(line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", f"Ada NNP B-PER\n\nwho VBD O\n{line}\nAl NNP O\n\nRome NNP B-LOC\n")
    message = refusal(CoNLL(path=path, **ALL), "words", kind="tags")
    assert message.startswith(f"{path}:4: {len(line.split())} column") and "words and tags of unequal number" in message
    kept = CoNLL(path=path, skip_malformed=1, **ALL).examples("train", ("words",), "tags")
    assert [example["words"] for example in kept] == ["Ada", "Rome"]


@pytest.mark.parametrize("keys", [{"word_column": 0}, {"tag_column": -2}, {"tag_column": 5}, {"word_column": 9}])
def test_columns_that_there_are_not_are_refused(keys: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"data.{next(iter(keys))}: "):
        list(CoNLL(path=write(tmp_path / "a.conll", CONLL), **keys).examples("train", ("words",), "tags"))


# Parallel text.


def test_parallel_lines_are_fields_of_one_row(tmp_path: Path) -> None:
    write(tmp_path / "train.en", "one\ntwo \r\n\n")
    write(tmp_path / "train.de.gz", gzip.compress("eins\nzwei\u2028\n\n".encode()))
    write(tmp_path / "train.fr", "un\ndeux\n\n")
    source = Parallel(path=str(tmp_path / "train"), languages=("en", "de"), **ALL)
    assert records(source) == [{"en": "one", "de": "eins"}, {"en": "two", "de": "zwei"}, {"en": "", "de": ""}]
    left_out: dict[str, Any] = {}
    examples = list(source.examples("train", ("en",), "text", left_out))
    assert [(example["en"], example["label"]) for example in examples] == [("one", ["eins"]), ("two", ["zwei"])]
    assert left_out == {"rows left out: no label": {"count": 1, "of": 3}}
    back = Parallel(
        path=str(tmp_path / "train"), languages=("en", "de", "fr"), text_field="fr", label_field="en", **ALL
    )
    assert next(iter(back.examples("train", ("fr",), "text")))["label"] == ["one"]
    assert list(back.documents("train"))[0] == "un" and source.contents()["path"].keys() == {"train.en", "train.de.gz"}
    assert source.fingerprint("train") != back.fingerprint("train")


def test_parallel_files_have_splits_and_patterns(tmp_path: Path) -> None:
    for name, text in (("b", "2"), ("a", "1"), ("val", "v"), (".c", "hidden")):
        for language in ("en", "de"):
            write(tmp_path / f"{name}.{language}", f"{text} {language}\n")
    keys: dict[str, Any] = {"languages": ("en", "de"), "validation_path": str(tmp_path / "val")}
    source = Parallel(path=f"{tmp_path}/[ab.]*", **keys)
    assert [example["de"] for example in records(source)] == ["1 de", "2 de"]
    assert records(source, "validation") == [{"en": "v en", "de": "v de"}]
    assert [files[0].name for files in find_sets(f"{tmp_path}/*", ("en",))] == ["a.en", "b.en", "val.en"]


def test_parallel_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    source = Parallel(path=str(tmp_path / "a"), languages=("en", "de"), **ALL)
    assert f"data.path: no file {tmp_path}/a.en, compressed or not" in refusal(source, "en", kind="text")
    write(tmp_path / "a.en", "one\ntwo\nthree\n")
    assert refusal(source, "en", kind="text").endswith(
        f"no file {tmp_path}/a.de, compressed or not; beside it are a.en"
    )
    write(tmp_path / "a.de", "eins\n")
    assert f"{tmp_path}/a.en has 3 lines, {tmp_path}/a.de has 1 lines" in refusal(source, "en", kind="text")
    write(tmp_path / "a.de", b"eins\nz\xfcrich\ndrei\n")
    assert f"{tmp_path}/a.de:2: not UTF-8 text" in refusal(source, "en", kind="text")
    write(tmp_path / "a.en.xz", b"not read: the other is there")
    skipping = Parallel(path=str(tmp_path / "a"), languages=("en", "de"), skip_malformed=1, **ALL)
    assert [example["en"] for example in skipping.examples("train", ("en",), "text")] == ["one", "three"]
    for languages in (("en",), ("en", "en"), "en"):
        with pytest.raises(UserError, match="data.languages: .*name two languages or more"):
            Parallel(path="a", languages=languages)  # type: ignore[arg-type]


def test_a_mixture_has_members_of_these_kinds(tmp_path: Path) -> None:
    member = {"name": "parallel", "path": str(tmp_path / "a"), "languages": ["en", "de"]}
    ((source, _),) = SourceMixture(members=(member,)).sources()
    assert source == Parallel(path=str(tmp_path / "a"), languages=("en", "de"))
    with pytest.raises(UserError, match=r"languages: 3 is not text"):
        SourceMixture(members=(member | {"languages": 3},))


# TFDS.


class TinyTasks(tfds.core.GeneratorBasedBuilder):
    """Rows with a label of every kind, as the datasets of TFDS have them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = tfds.features
        answers = features.Sequence({"text": features.Text(), "answer_start": np.int32})
        tags = features.Sequence(features.ClassLabel(names=["O", "B-PER"]))
        row = {
            "idx": np.int32, "question": features.Text(), "context": features.Text(), "answers": answers,
            "label": features.ClassLabel(names=["no", "yes"]), "score": np.float32,
            "tokens": features.Sequence(features.Text()), "tags": tags, "options": features.Sequence(features.Text()),
            "pair": features.Translation(languages=["en", "de"]),
        }  # fmt: skip
        return tfds.core.DatasetInfo(builder=self, features=features.FeaturesDict(row))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(True), "test": self._generate_examples(False)}

    def _generate_examples(self, labelled: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(3):
            found = {"text": ["Al"], "answer_start": [8]} if labelled and number else {"text": [], "answer_start": []}
            yield number, {
                "idx": number, "question": "Who?", "context": CONTEXT, "answers": found,
                "label": number % 2 if labelled else -1, "score": number / 2 if labelled else -1.0,
                "tokens": ["Ada", "met"], "tags": [1, 0], "options": ["a", "b"],
                "pair": {"en": f"{number}", "de": f"Nummer {number}"},
            }  # fmt: skip


@pytest.fixture(scope="module")
def tiny_tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tfds")
    TinyTasks(data_dir=folder).download_and_prepare(file_format="array_record")
    return str(folder)


@pytest.mark.parametrize(("label_field", "kind", "fields", "labels"), OF_ROWS)
def test_tfds_gives_labels_of_every_kind(
    label_field: str, kind: str, fields: tuple[str, ...], labels: list[Any], tiny_tasks: str
) -> None:
    source = TFDS(dataset="tiny_tasks", data_dir=tiny_tasks, label_field=label_field, test_split="test", **ALL)
    examples = sorted(source.examples("train", fields, kind), key=lambda example: example["record"]["idx"])
    assert [example["label"] for example in examples] == labels
    assert json.loads(json.dumps(examples)) == examples  # plain values
    assert source.label_names("class" if kind == "class" else "tags") if kind in ("class", "tags") else True
    if kind in ("class", "number"):
        assert list(source.examples("test", fields, kind)) == []


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'jaxformer[huggingface]'" in refusal(HuggingFace(dataset="glue"))


def test_the_sources_have_these_names() -> None:
    names = {"csv": CSV, "squad": SQuAD, "conll": CoNLL, "parallel": Parallel, "huggingface": HuggingFace}
    assert names.items() <= SOURCES.items()


# Published data sets: the table of docs/data.md.

DOCS = Path(__file__).resolve().parents[1] / "docs" / "data.md"
FIRST = "| data set | keys |"


def published() -> list[tuple[str, ...]]:
    """Return (data set, keys, fields, kind, rows, labels) of every line of the table."""
    lines = iter(DOCS.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(FIRST):
            break
    next(lines)
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [tuple(cell.strip().replace("`", "") for cell in row.strip("|").split("|")) for row in rows]


def _reader(name: str, keys: str, fields: str, kind: str, rows: str, labels: str) -> tuple[str, str]:
    """In CI each reader reads each kind once."""
    return keys.split()[0], kind


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "keys", "fields", "kind", "rows", "labels"),
    sampled(published(), _reader, ci=[row for row in published() if row[0] in ("CoLA", "LAMBADA")]),
    ids=[row[0] for row in published()],
)
def test_a_published_data_set_loads_by_one_line(
    name: str, keys: str, fields: str, kind: str, rows: str, labels: str, reference_data: Path
) -> None:
    overrides = []
    for key, _, value in (entry.partition("=") for entry in keys.split()):
        overrides.append(f"data.{key}={reference_data / value if key.endswith('path') else value}")
    source = load("bert:tiny", overrides).data
    splits = ["every"] if source.shares else ["train", "validation"]
    read = [
        source.documents(split) if kind == "documents" else source.examples(split, tuple(fields.split(", ")), kind)
        for split in [*splits, *source.splits[2:]]
    ]
    assert [f"{sum(1 for _ in found):,}" for found in read] == rows.split(" + ")
    assert (str(len(source.label_names(kind))) if labels else "") == labels


def test_the_table_of_published_data_sets_has_every_kind_and_reader() -> None:
    kinds, names = {row[3] for row in published()}, {row[1].split()[0].removeprefix("name=") for row in published()}
    assert kinds == {"class", "classes", "number", "choice", "tags", "span", "text", "documents"}
    assert names == {"csv", "json_lines", "squad", "conll", "parallel", "text"}
