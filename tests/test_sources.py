"""Sources: what each kind of file gives, splits, labels, fingerprints, and what is said about malformed data."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from jaxformer.data import stdlib_docs
from jaxformer.data.columns import CSV, CoNLL
from jaxformer.data.files import JSONLines, Parquet, Text
from jaxformer.data.huggingface import HuggingFace
from jaxformer.data.parallel import Parallel
from jaxformer.data.records import Source
from jaxformer.data.sources import SOURCES, TFDS, SourceMixture, StdlibDocs
from jaxformer.data.squad import SQuAD
from jaxformer.errors import UserError

ALL = {"validation_share": 1e-12}  # practically everything is for training


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def json_lines(path: Path, *records: Any) -> str:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


def parquet(path: Path, **columns: list[Any]) -> str:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def documents(source: Source) -> list[str]:
    return list(source.documents("train"))


def refusal(source: Source, fields: tuple[str, ...] = ()) -> str:
    """Return the one line that reading the source's documents, or examples with `fields`, ends in."""
    with pytest.raises(UserError) as caught:
        list(source.examples("train", fields) if fields else source.documents("train"))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


LINES = "one\nstill one\n\n\n  \ntwo\n\nthree\n"


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("blank_line", ["one\nstill one", "two", "three"]),
        ("line", ["one", "still one", "two", "three"]),
        ("file", ["one\nstill one\n\n\n  \ntwo\n\nthree"]),
    ],
)
def test_text_is_cut_into_documents(document: str, expected: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", LINES)
    assert documents(Text(path=path, document=document, **ALL)) == expected
    windows = write(tmp_path / "b.txt", "\ufeff" + LINES.replace("\n", "\r\n"))
    assert documents(Text(path=windows, document=document, **ALL)) == expected


def test_a_text_document_stands_where_its_first_line_does(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", LINES)
    found = [where for where, _ in Text(path=path, **ALL).records("train", False)]
    assert found == [f"{path}:{line}" for line in (1, 6, 8)]


def test_a_folder_gives_all_its_files_in_order(tmp_path: Path) -> None:
    for name, text in (("b.txt", "b"), ("a.txt", "a"), ("deeper/c.txt", "c")):
        write(tmp_path / name, text)
    assert documents(Text(path=str(tmp_path), **ALL)) == ["a", "b", "c"]


def test_a_pattern_gives_the_files_that_match(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "b.md"):
        write(tmp_path / name, name)
    assert documents(Text(path=str(tmp_path / "*.txt"), **ALL)) == ["a.txt", "b.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_found(tmp_path: Path) -> None:
    assert documents(Text(path=write(tmp_path / "part[1].txt", "here"), **ALL)) == ["here"]


def test_a_folder_of_json_lines_gives_only_those(tmp_path: Path) -> None:
    json_lines(tmp_path / "a.jsonl", {"text": "a"})
    write(tmp_path / "README.md", "not JSON")
    assert documents(JSONLines(path=str(tmp_path), **ALL)) == ["a"]


def test_json_lines_skips_blank_lines_and_other_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a", "more": [1]}\n\n{"text": "é\\u00e9"}')
    assert documents(JSONLines(path=path, **ALL)) == ["a", "éé"]


def test_another_field_can_be_the_text(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", {"text": "a", "body": "b"})
    assert documents(JSONLines(path=path, text_field="body", **ALL)) == ["b"]


def test_parquet_gives_text_also_from_bytes(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=["a", "b"], more=[1, 2])
    assert documents(Parquet(path=path, **ALL)) == ["a", "b"]
    assert documents(Parquet(path=parquet(tmp_path / "b.parquet", text=["é".encode()]), **ALL)) == ["é"]


def test_examples_carry_their_fields_and_class(tmp_path: Path) -> None:
    records = [{"text": text, "title": text.upper(), "label": label} for text, label in zip("abc", "yxy", strict=True)]
    expected = [
        {"text": "a", "title": "A", "label": 1, "record": {"text": "a", "title": "A", "label": "y"}},
        {"text": "b", "title": "B", "label": 0, "record": {"text": "b", "title": "B", "label": "x"}},
    ]
    for source in (
        JSONLines(path=json_lines(tmp_path / "a.jsonl", *records), **ALL),
        Parquet(path=parquet(tmp_path / "a.parquet", **{key: [r[key] for r in records] for key in records[0]}), **ALL),
    ):
        assert source.label_names() == ("x", "y")
        assert list(source.examples("train", ("text", "title")))[:2] == expected


def test_labels_may_be_numbers_or_bytes(tmp_path: Path) -> None:
    numbers = JSONLines(path=json_lines(tmp_path / "a.jsonl", *({"text": "t", "label": n} for n in (2, 0))), **ALL)
    assert numbers.label_names() == ("0", "2")
    named = Parquet(path=parquet(tmp_path / "a.parquet", text=["t", "t"], label=[b"no", b"yes"]), **ALL)
    assert named.label_names() == ("no", "yes")


# What is malformed is named with its file and line.


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "c"', "not JSON"),
        ("plain", "not JSON"),
        ('["text"]', "list, not an object"),
        ('{"txt": "c"}', "no field 'text'; did you mean 'txt'"),
        ('{"text": null}', "no field 'text'"),
        ('{"text": 3}', "field 'text' is int, not text"),
        ('{"text": "half \\ud83d"}', "not UTF-8 text"),
        (b'{"text": "\xe9t\xe9"}', "not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("before", [1, 3000], ids=["near the start", "far into the file"])
def test_a_malformed_json_line_is_named(line: str | bytes, words: str, before: int, tmp_path: Path) -> None:
    bad = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' * before + bad + b'\n{"text": "good"}\n')
    message = refusal(JSONLines(path=path, **ALL))
    assert f"{path}:{before + 1}: " in message and words in message


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\n\ntwo\n\nthree \xff\n")
    assert f"{path}:5: not UTF-8" in refusal(Text(path=path, **ALL))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "b"}, "no field 'label'"),
        ({"text": "b", "label": ["x"]}, "list, not a label"),
        ({"text": "b", "label": "\ud83d"}, "field 'label' is not UTF-8 text"),
        ({"label": "x"}, "no field 'text'"),
        ({"text": ["b"], "label": "x"}, "list, not text"),
    ],
)
def test_a_malformed_example_is_named(record: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", {"text": "a", "label": "x"}, record)
    message = refusal(JSONLines(path=path, **ALL), ("text",))
    assert f"{path}:2: " in message and words in message


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["a", None], "row 1: no field 'text'"),
        ([1, 2], "row 0: field 'text' is int, not text"),
        ([b"a", b"\xff"], "row 1: field 'text' is not UTF-8"),
        ([["a"], ["b"]], "row 0: field 'text' is list, not text"),
    ],
)
def test_a_malformed_parquet_row_is_named(column: list[Any], words: str, tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=column)
    assert f"{path} {words}" in refusal(Parquet(path=path, **ALL))


def test_a_parquet_file_of_other_columns_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", body=["a"])
    assert f"{path} row 0: no field 'text'; it has body" == refusal(Parquet(path=path, **ALL))


@pytest.mark.parametrize("damage", ["truncated", "data", "empty", "another file"])
def test_a_damaged_parquet_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet(path, text=[f"some text {number}" for number in range(200)])
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[:-30], "data": whole[:4] + b"\xff" * 200 + whole[204:], "empty": b"", "another file": b"x"}[
            damage
        ]
    )
    assert refusal(Parquet(path=str(path), **ALL)).startswith(f"{path}: not a Parquet file, or damaged")


@pytest.mark.parametrize("kind", [Text, JSONLines, Parquet])
def test_a_missing_file_is_named(kind: Any, tmp_path: Path) -> None:
    for missing in (str(tmp_path / "nowhere"), str(tmp_path / "*.none")):
        assert refusal(kind(path=missing)).startswith(f"data.path: no file {missing}; give a file")
    with pytest.raises(UserError, match="data.path: missing"):
        kind(path="")


def test_a_folder_without_such_files_says_which_it_looked_for(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text")
    assert f"no file *.jsonl in {tmp_path}" in refusal(JSONLines(path=str(tmp_path)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("kind", [Text, JSONLines, Parquet])
def test_a_file_without_permission_is_named(kind: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a", "text")
    Path(path).chmod(0)
    assert refusal(kind(path=path)).startswith(f"{path}: cannot be read")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"document": "paragraph"}, "data.document: 'paragraph' is not one of blank_line, line, file"),
        ({"validation_share": 0.0}, "data.validation_share: 0.0"),
        ({"validation_share": 1.5}, "data.validation_share: 1.5"),
        ({"max_examples": -1}, "data.max_examples: -1"),
        ({"workers": -1}, "data.workers: -1"),
    ],
)
def test_impossible_settings_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Text(path="a.txt", **keys)


# Splits, subsets, fingerprints.


def numbered(folder: Path, count: int, **keys: Any) -> JSONLines:
    records = ({"text": f"text {number}", "label": "abc"[number % 10 % 3]} for number in range(count))
    return JSONLines(path=json_lines(folder / "n.jsonl", *records), **keys)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_splits_are_disjoint_and_complete(share: float, tmp_path: Path) -> None:
    source = numbered(tmp_path, 2000, validation_share=share)
    train, validation = (list(source.documents(split)) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(f"text {number}" for number in range(2000))
    assert abs(len(validation) / 2000 - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    with pytest.raises(UserError, match="no test split; there are train, validation; name one with data.test_path"):
        list(source.documents("test"))
    assert [example["text"] for example in source.examples("train", ("text",))] == train


def test_more_rows_leave_earlier_ones_in_their_split(tmp_path: Path) -> None:
    few = set(numbered(tmp_path, 100, validation_share=0.3).documents("validation"))
    many = set(numbered(tmp_path, 200, validation_share=0.3).documents("validation"))
    assert few < many


def test_a_subset_is_balanced_and_drawn_by_its_seed(tmp_path: Path) -> None:
    def subset(**keys: Any) -> list[tuple[str, int]]:
        source = numbered(tmp_path, 300, **keys)
        return [(example["text"], example["label"]) for example in source.examples("train", ("text",))]

    everything = subset()
    chosen = subset(max_examples=31)
    assert len(chosen) == len(set(chosen)) == 31 and set(chosen) <= set(everything)
    assert sorted(np.bincount([label for _, label in chosen]).tolist()) == [10, 10, 11]
    assert np.bincount([label for _, label in everything]).max() > 100  # not balanced by themselves
    assert subset(max_examples=31) == chosen != subset(max_examples=31, subset_seed=1)
    assert subset(max_examples=10) == chosen[:10]
    assert sorted(subset(max_examples=10**6)) == sorted(everything)


def test_a_subset_leaves_the_held_out_split_whole(tmp_path: Path) -> None:
    whole, few = (numbered(tmp_path, 300, max_examples=number) for number in (0, 5))
    assert list(whole.examples("validation", ("text",))) == list(few.examples("validation", ("text",)))


def test_a_fingerprint_stays_until_the_content_changes(tmp_path: Path) -> None:
    source = numbered(tmp_path, 10)
    first = source.fingerprint("train")
    assert source.fingerprint("train") == first != source.fingerprint("validation")
    path = Path(source.path)
    os.utime(path, ns=(1, 1))
    assert source.fingerprint("train") == first  # touched
    path.write_bytes(path.read_bytes() + b'{"text": "more"}\n')
    os.utime(path, ns=(1, 1))
    assert source.fingerprint("train") != first


def test_a_fingerprint_follows_the_settings_that_change_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    plain = Text(path=path).fingerprint("train")
    for keys in ({"document": "line"}, {"validation_share": 0.5}, {"text_field": "body"}):
        assert Text(path=path, **keys).fingerprint("train") != plain
    for keys in ({"workers": 2}, {"max_examples": 3}, {"subset_seed": 4}):
        assert Text(path=path, **keys).fingerprint("train") == plain
    assert JSONLines(path=path).fingerprint("train") != Parquet(path=path).fingerprint("train")


# TFDS.


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    """Twenty reviews with classes and a list of classes; in the test split none is labelled."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> Any:
        features = {
            "text": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["negative", "positive"]),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["short", "long"])),
            "stars": np.int32,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(20, True), "test": self._generate_examples(4, False)}

    def _generate_examples(self, count: int, labelled: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(count):
            label = number % 2 if labelled else -1
            yield number, {"text": f"review {number}", "label": label, "tags": [0, 1], "stars": number % 5}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tfds")
    TinyReviews(data_dir=folder).download_and_prepare(file_format="array_record")
    return str(folder)


def test_tfds_gives_text_and_the_names_of_classes(reviews: str) -> None:
    source = TFDS(dataset="tiny_reviews", data_dir=reviews, **ALL)
    texts = [f"review {number}" for number in range(20)]
    assert sorted(documents(source)) == sorted(texts)
    assert source.label_names() == ("negative", "positive")
    for example in source.examples("train", ("text",)):
        assert example["label"] == int(example["text"].split()[1]) % 2


def test_tfds_shares_its_training_split_where_it_names_no_other(reviews: str) -> None:
    source = TFDS(dataset="tiny_reviews:1.0.0", data_dir=reviews, validation_share=0.4)
    train, validation = (set(source.documents(split)) for split in ("train", "validation"))
    assert train and validation and not train & validation and len(train | validation) == 20
    with pytest.raises(UserError, match="no test split; there are train, validation; name one with data.test_split"):
        list(source.documents("test"))


def test_tfds_splits_that_are_named_are_read_whole(reviews: str) -> None:
    source = TFDS(dataset="tiny_reviews", data_dir=reviews, validation_split="test", validation_share=0.4)
    assert len(list(source.documents("train"))) == 20
    assert len(list(source.documents("validation"))) == 4
    held_back = TFDS(dataset="tiny_reviews", data_dir=reviews, test_split="test", validation_share=0.4)
    assert len(list(held_back.documents("test"))) == 4
    assert len([*held_back.documents("train"), *held_back.documents("validation")]) == 20


def test_tfds_rows_without_a_label_are_left_out_and_counted(reviews: str) -> None:
    source = TFDS(dataset="tiny_reviews", data_dir=reviews, test_split="test", **ALL)
    left_out: dict[str, Any] = {}
    assert list(source.examples("test", ("text",), left_out=left_out)) == []
    assert left_out == {"rows left out: no label": {"count": 4, "of": 4}}
    assert len(list(source.examples("train", ("text",)))) == 20


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"text_field": "body"}, r"tiny_reviews train\[0\]: no field 'body'"),
        ({"text_field": "stars"}, r"train\[0\]: field 'stars' is int, not text"),
        ({"train_split": "trian"}, "no split 'trian'; did you mean 'train'"),
        ({"dataset": "no_reviews"}, "no_reviews is not prepared as ArrayRecord in"),
        ({"dataset": "tiny_reviews:2.0.0"}, "tiny_reviews:2.0.0 is not prepared as ArrayRecord in"),
    ],
)
def test_tfds_says_what_is_missing(keys: dict[str, str], words: str, reviews: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        list(TFDS(**({"dataset": "tiny_reviews", "data_dir": reviews} | keys)).documents("train"))
    assert len(str(caught.value).splitlines()) == 1


def test_tfds_labels_are_one_class_each(reviews: str) -> None:
    source = TFDS(dataset="tiny_reviews", data_dir=reviews, label_field="tags", **ALL)
    assert "not a label" in refusal(source, ("text",))


def test_tfds_reads_a_copied_folder_whose_builder_it_does_not_know(reviews: str, tmp_path: Path) -> None:
    shutil.copytree(Path(reviews) / "tiny_reviews", tmp_path / "copied" / "tiny_reviews")
    here, there = (TFDS(dataset="tiny_reviews", data_dir=str(path)) for path in (reviews, tmp_path / "copied"))
    assert list(here.documents("train")) == list(there.documents("train"))
    assert here.fingerprint("train") == TFDS(dataset="tiny_reviews", data_dir=reviews, workers=2).fingerprint("train")


# The built-in corpus: no test knows its numbers, which differ between versions of Python.


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[dict[str, Any]]]:
    return {split: list(stdlib_docs.labelled(split)) for split in ("train", "validation", "test")}


def words_of(text: str) -> str:
    return " ".join(text.split())


def test_no_docstring_of_the_corpus_is_in_two_splits(corpus: dict[str, list[dict[str, Any]]]) -> None:
    seen = [words_of(example["text"]) for examples in corpus.values() for example in examples]
    assert len(seen) == len(set(seen)) > 1000


def test_each_docstring_is_in_the_documents_of_its_own_split_only(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"docstring {number}" for number in range(60)]
    again = [text.replace(" ", "\n  ") for text in texts]  # the same words elsewhere, set otherwise
    library = [(name, [(f"{name}.f", text) for text in part]) for name, part in (("json", texts), ("ast", again))]
    monkeypatch.setattr(stdlib_docs, "modules", lambda: library)
    monkeypatch.setattr(stdlib_docs, "topics", lambda: [])
    found = {
        split: {words_of(part) for document in stdlib_docs.documents(split) for part in document["text"].split("\n\n")}
        for split in ("train", "validation", "test")
    }
    assert sum(len(part) for part in found.values()) == len(set().union(*found.values())) == 60
    assert all(found.values()) and len(found["train"]) > 30


def test_the_training_split_is_the_large_one(corpus: dict[str, list[dict[str, Any]]]) -> None:
    train, validation, test = (len(corpus[split]) for split in ("train", "validation", "test"))
    assert train > 2 * (validation + test) and min(validation, test) > 100
    total = sum(len(document["text"]) for document in stdlib_docs.documents("train"))
    assert 5e5 < total < 5e6


def test_every_area_of_the_corpus_has_examples_in_every_split(corpus: dict[str, list[dict[str, Any]]]) -> None:
    for split, examples in corpus.items():
        assert {example["area"] for example in examples} == set(stdlib_docs.AREAS), split


def test_a_module_belongs_to_one_area() -> None:
    modules = [module for names in stdlib_docs.AREAS.values() for module in names.split()]
    assert len(modules) == len(set(modules))
    assert stdlib_docs.AREA_OF["json"] == "formats"


def test_a_labelled_docstring_is_its_summary_and_its_body(corpus: dict[str, list[dict[str, Any]]]) -> None:
    for example in corpus["test"]:
        assert words_of(f"{example['summary']} {example['body']}") == words_of(example["text"])
        assert len(example["text"].split()) >= stdlib_docs.MIN_WORDS and example["summary"]


def test_underlines_and_runs_of_blank_lines_are_cleaned_away() -> None:
    assert stdlib_docs._clean("Title\n=====\n\n\n  \nBody - with *stars*\n") == "Title\n\nBody - with *stars*"


@pytest.fixture(scope="module")
def built_in(jaxformer_cache: Path) -> StdlibDocs:
    return StdlibDocs()


def test_the_built_in_source_gives_the_corpus(built_in: StdlibDocs, corpus: dict[str, list[dict[str, Any]]]) -> None:
    expected = {document["text"] for document in stdlib_docs.documents("validation")}
    assert set(built_in.documents("validation")) == expected
    examples = list(built_in.examples("test", ("summary", "body")))
    names = built_in.label_names()
    found = {(example["summary"], names[example["label"]]) for example in examples}
    assert found == {(example["summary"], example["area"]) for example in corpus["test"]}
    assert names == tuple(sorted(stdlib_docs.AREAS))


def test_the_built_in_corpus_is_made_once(built_in: StdlibDocs, monkeypatch: pytest.MonkeyPatch) -> None:
    first = built_in.fingerprint("train")
    monkeypatch.setattr(stdlib_docs, "modules", lambda: pytest.fail("made again"))
    assert StdlibDocs().fingerprint("train") == first
    assert next(iter(StdlibDocs().documents("train")))


def test_tfds_reads_the_built_in_corpus_by_name(built_in: StdlibDocs, jaxformer_cache: Path) -> None:
    name = f"stdlib_docs/documents_{stdlib_docs.PYTHON}"
    source = TFDS(dataset=name, data_dir=str(jaxformer_cache / "tfds"), validation_split="validation")
    assert list(source.documents("validation")) == list(built_in.documents("validation"))


def test_a_damaged_corpus_is_made_again_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(stdlib_docs, "modules", lambda: [("json", [(f"json.{n}", f"text {n}") for n in range(40)])])
    monkeypatch.setattr(stdlib_docs, "topics", lambda: [])
    first, notes = list(StdlibDocs().documents("train")), []
    for name in ("dataset_info.json", "*-train.array_record*"):
        (path,) = tmp_path.rglob(name)
        whole = path.read_bytes()
        path.write_bytes(whole[:99] + bytes([whole[99] ^ 4]) + whole[100:])
        StdlibDocs().mend(notes.append)
        assert list(StdlibDocs().documents("train")) == first
        assert len(notes) == 1 and str(path) in notes.pop()
        StdlibDocs().mend(notes.append)
        assert not notes


def test_damaged_tfds_data_is_named(reviews: str, tmp_path: Path) -> None:
    shutil.copytree(Path(reviews) / "tiny_reviews", tmp_path / "tiny_reviews")
    (path,) = tmp_path.rglob("*-train.array_record*")
    whole = path.read_bytes()
    path.write_bytes(bytes(byte ^ 255 for byte in whole[:40000]) + whole[40000:])
    message = refusal(TFDS(dataset="tiny_reviews", data_dir=str(tmp_path), **ALL))
    assert "damaged" in message or "not prepared as ArrayRecord" in message


# Mixtures.


def test_a_mixture_knows_its_members_and_weights(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.txt", "a"), json_lines(tmp_path / "b.jsonl", {"body": "b"})
    mixture = SourceMixture(
        members=(
            {"name": "text", "path": first, "document": "line", "weight": 3},
            {"name": "json_lines", "path": second, "text_field": "body"},
        )
    )
    (text, three), (lines, one) = mixture.sources()
    assert text == Text(path=first, document="line") and lines == JSONLines(path=second, text_field="body")
    assert (three, one) == (3.0, 1.0)


@pytest.mark.parametrize(
    ("member", "words"),
    [
        ({"name": "txt", "path": "a"}, r"data.members\[1\].name: no 'txt'; did you mean 'text'"),
        ({"path": "a"}, r"data.members\[1\].name: no 'None'"),
        ({"name": "mixture", "members": ()}, r"data.members\[1\].name: no 'mixture'"),
        ({"name": "text"}, r"data.members\[1\]: missing .*'path'"),
        ({"name": "text", "path": "a", "docment": "line"}, r"\[1\].docment: no such key; did you mean 'document'"),
        ({"name": "text", "path": "a", "document": "words"}, r"data.members\[1\].document: 'words'"),
        ({"name": "text", "path": 3}, r"data.members\[1\].path: 3 is not text"),
        ({"name": "text", "path": "a", "workers": 2}, r"data.members\[1\].workers: no such key"),
        ({"name": "text", "path": "a", "weight": 0}, r"data.members\[1\].weight: 0 must be"),
        ({"name": "text", "path": "a", "weight": float("nan")}, r"data.members\[1\].weight: nan is not a number"),
        ({"name": "text", "path": "a", "weight": "1"}, r"data.members\[1\].weight: '1' is not a number"),
        ("text", r"data.members\[1\]: 'text' is not a dict"),
    ],
)
def test_a_bad_member_is_named(member: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        SourceMixture(members=({"name": "text", "path": "a"}, member))
    assert len(str(caught.value).splitlines()) == 1


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="data.members: a mixture needs at least one member"):
        SourceMixture(members=())


def test_keys_of_the_members_are_refused_beside_them() -> None:
    members = ({"name": "text", "path": "a"},)
    assert SourceMixture(members=members, workers=2).workers == 2
    with pytest.raises(UserError, match="data.max_examples: .* set it in data.members"):
        SourceMixture(members=members, max_examples=5)


def test_every_source_of_the_list_is_tested() -> None:
    elsewhere = {CSV, SQuAD, CoNLL, Parallel, HuggingFace}  # test_labelled_sources.py
    assert set(SOURCES.values()) == {StdlibDocs, TFDS, Text, JSONLines, Parquet, SourceMixture} | elsewhere
