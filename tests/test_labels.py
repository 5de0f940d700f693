"""Labels and held-out rows: which rows have none, which classes there are, which rows are held out and judged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jaxformer.data import EVERY, check_split
from jaxformer.data.batches import evaluated
from jaxformer.data.files import Files, JSONLines, Parquet, Text
from jaxformer.data.labels import classes_among, in_order, label_of
from jaxformer.data.sources import SourceMixture
from jaxformer.errors import UserError

ALL = {"validation_share": 1e-12}  # nothing is held out


def json_lines(path: Path, labels: list[Any], **keys: Any) -> JSONLines:
    path.write_text("".join(json.dumps({"text": f"text {n}", "label": label}) + "\n" for n, label in enumerate(labels)))
    return JSONLines(path=str(path), **keys)


def parquet(path: Path, labels: Any, **keys: Any) -> Parquet:
    texts = [f"text {number}" for number in range(len(labels))]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)
    return Parquet(path=str(path), **keys)


def classes(source: Files, split: str = "train") -> dict[str, str]:
    """Return {text: label} of a split's examples."""
    names = source.label_names()
    return {example["text"]: names[example["label"]] for example in source.examples(split, ("text",))}


# Rows without a label.


@pytest.mark.parametrize("nothing", [None, float("nan"), -1, -1.0, "-1", "", "  "])
def test_no_label_is_left_out_and_counted(nothing: Any, tmp_path: Path) -> None:
    source = json_lines(tmp_path / "a.jsonl", ["x", nothing, "y", nothing, "x"], **ALL)
    left_out: dict[str, Any] = {}
    found = [example["text"] for example in source.examples("train", ("text",), left_out=left_out)]
    assert found == ["text 0", "text 2", "text 4"] and source.label_names() == ("x", "y")
    assert left_out == {"rows left out: no label": {"count": 2, "of": 5}}


@pytest.mark.parametrize(
    ("column", "names", "kept"),
    [
        (pyarrow.array([1, None, 10, 2], pyarrow.int8()), ("1", "2", "10"), 3),
        (pyarrow.array([1.0, float("nan"), 10.0, 2.0]), ("1", "2", "10"), 3),
        (pyarrow.array([0, -1, 1, -1], pyarrow.int64()), ("0", "1"), 2),
        (pyarrow.array(["b", None, "a", "b"]).dictionary_encode(), ("a", "b"), 3),
        (pyarrow.array([True, None, False, True]), ("False", "True"), 3),
        (pyarrow.array([b"no", b"yes", b"no", None]), ("no", "yes"), 3),
    ],
)
def test_parquet_columns_give_their_classes(column: Any, names: tuple[str, ...], kept: int, tmp_path: Path) -> None:
    source = parquet(tmp_path / "a.parquet", column, **ALL)
    assert source.label_names() == names and len(classes(source)) == kept


def test_numpy_values_are_labels_like_any() -> None:
    values = [np.int64(3), np.array(3), np.float32(3.0), np.bool_(True), np.int8(-1), np.float64("nan"), np.str_("a")]
    assert [label_of(value) for value in values] == [3, 3, 3.0, True, None, None, "a"]
    for value in ([1], {"a": 1}, np.array([1, 2])):
        with pytest.raises(TypeError):
            label_of(value)


# Classes.


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, 2], ("2", "9", "10")),
        ([10.0, 9.0, 2.0], ("2", "9", "10")),
        (["10", "9", "2"], ("2", "9", "10")),
        ([0, -2, 10], ("-2", "0", "10")),
        (["cat", "10", "9"], ("10", "9", "cat")),  # as text
        (["b", "B", "a"], ("B", "a", "b")),
    ],
)
def test_whole_numbers_sort_as_numbers(labels: list[Any], names: tuple[str, ...], tmp_path: Path) -> None:
    assert json_lines(tmp_path / "a.jsonl", labels * 2, **ALL).label_names() == names


@pytest.mark.parametrize("pair", [(1, 1.0), (1, True), (1, "1"), (1.0, True), (1.0, "1"), (True, "1")])
def test_labels_of_several_kinds_are_refused(pair: tuple[Any, Any], tmp_path: Path) -> None:
    source = json_lines(tmp_path / "a.jsonl", [pair[0], pair[0], pair[1], pair[1]], **ALL)
    with pytest.raises(UserError) as caught:
        source.label_names()
    message = str(caught.value)
    assert "mixed" in message and "a.jsonl:1 has " in message and "a.jsonl:3 has " in message and ":2 " not in message


@pytest.mark.parametrize("labels", [[0.1, 2.0, 4.0], ["0.1", "2.5", "4.0"], [1.0, float("inf")]])
def test_scores_are_no_classes(labels: list[Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="scores, and a task tells classes apart"):
        json_lines(tmp_path / "a.jsonl", labels * 2).label_names()
    assert json_lines(tmp_path / "b.jsonl", ["1.5", "2.5", "v"] * 2, **ALL).label_names() == ("1.5", "2.5", "v")


def test_white_space_around_labels_is_said(tmp_path: Path) -> None:
    source = json_lines(tmp_path / "a.jsonl", ["cat", " cat", "dog", "dog\n", " cat"], **ALL)
    assert source.label_names() == (" cat", "cat", "dog", "dog\n")
    (said,) = [line for line in source.labels.notes() if "white space" in line]
    assert "' cat' (2 rows)" in said and "'dog\\n' (1 rows)" in said


def test_a_run_knows_its_labels_in_its_own_order() -> None:
    assert in_order(["10", "9"]) == ["9", "10"]
    assert classes_among(["9", "10"], ["10", "9"]) == [1, 0]  # numbered before whole numbers were
    assert classes_among(["1", "2"], ["1.0", "2.0", "nan"]) == [0, 1]  # named before floats were whole
    assert classes_among(["b"], ["a", "b"]) == [1]  # a file may lack a class
    with pytest.raises(UserError, match="labels c, d are not among those that the run learnt: a, b"):
        classes_among(["a", "c", "d"], ["a", "b"])


# Held-out rows.


def held_out_before(count: int, share: float = 0.05) -> list[int]:
    """The rows that the hash of their number holds out, as it always has."""
    import hashlib

    hashes = [int.from_bytes(hashlib.sha256(str(n).encode()).digest()[:8], "big") / 2**64 for n in range(count)]
    return [number for number, hashed in enumerate(hashes) if hashed < share]


def test_a_larger_file_is_split_as_ever(tmp_path: Path) -> None:
    source = json_lines(tmp_path / "a.jsonl", ["x", "y"] * 500)
    expected = [f"text {number}" for number in held_out_before(1000)]
    assert list(classes(source, "validation")) == list(source.documents("validation")) == expected
    assert len(expected) == 55 and len(classes(source)) == 1000 - 55


def test_a_small_file_holds_out_a_row_of_each_class_that_has_several(tmp_path: Path) -> None:
    assert held_out_before(10) == []
    source = json_lines(tmp_path / "a.jsonl", ["x", "x", "y", "y", "y", "z", None, "x", "y", "y"])
    train, held_out = classes(source), classes(source, "validation")
    assert sorted(held_out.values()) == ["x", "y"] and set(train.values()) == {"x", "y", "z"}
    assert not train.keys() & held_out.keys() and len(train) + len(held_out) == 9
    assert classes(json_lines(tmp_path / "b.jsonl", ["x", "x", "y", "y", "y", "z", None, "x", "y", "y"]), "validation")
    said = " / ".join(source.labels.notes())
    assert "held out so that each label has a held-out row: 2" in said and "labels that no held-out row has: z" in said


def test_a_rare_class_is_held_out_and_no_other_row_moves(tmp_path: Path) -> None:
    labels = ["x", "y"] * 200 + ["rare"] * 3
    before = held_out_before(len(labels))
    assert not {400, 401, 402} & set(before)
    held_out = classes(json_lines(tmp_path / "a.jsonl", labels), "validation")
    assert list(held_out)[:-1] == [f"text {number}" for number in before]
    assert list(held_out.values())[-1] == "rare" and list(held_out.values()).count("rare") == 1


@pytest.mark.parametrize("count", [1, 2, 5, 18])
def test_a_small_text_holds_out_a_document(count: int, tmp_path: Path) -> None:
    assert held_out_before(count) == []
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {number}" for number in range(count)))
    source = Text(path=str(tmp_path / "a.txt"))
    train, held_out = list(source.documents("train")), list(source.documents("validation"))
    assert len(held_out) == (1 if count > 1 else 0) and len(train) + len(held_out) == count
    assert not set(train) & set(held_out)
    assert len(list(Text(path=str(tmp_path / "a.txt"), **ALL).documents("train"))) == count


def test_a_class_of_held_out_rows_alone_is_known(tmp_path: Path) -> None:
    labels = ["x", "y"] * 50
    (first, *_) = held_out_before(100)
    labels[first] = "only"
    source = json_lines(tmp_path / "a.jsonl", labels)
    assert source.label_names() == ("only", "x", "y")
    assert "only" in classes(source, "validation").values() and "only" not in classes(source).values()
    assert "no training row has, so nothing teaches them: only" in " ".join(source.labels.notes())


# Files of their own.


@pytest.mark.parametrize("kind", [Text, JSONLines, Parquet])
def test_validation_and_test_files_are_read_whole(kind: Any, tmp_path: Path) -> None:
    def file(name: str, count: int) -> str:
        path, texts = tmp_path / name, [f"{name} {number}" for number in range(count)]
        if kind is Text:
            path.write_text("\n\n".join(texts))
        elif kind is JSONLines:
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        else:
            pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
        return str(path)

    def counts(source: Files) -> list[int]:
        return [len(list(source.documents(split))) for split in (*source.splits, EVERY)]

    path, validation, test = file("a", 100), file("b", 7), file("c", 5)
    share = len(held_out_before(100))
    assert counts(kind(path=path, validation_path=validation)) == [100, 7, 100]
    assert counts(kind(path=path, test_path=test)) == [100 - share, share, 5, 100]
    assert counts(kind(path=path, validation_path=validation, test_path=test)) == [100, 7, 5, 100]
    prints = [kind(path=path).fingerprint("train"), kind(path=path, validation_path=validation).fingerprint("train")]
    assert len(set(prints)) == 2  # all of it, or a share
    for key in ("validation_path", "test_path"):
        with pytest.raises(UserError, match=f"data.{key}: no file nowhere"):
            counts(kind(path=path, **{key: "nowhere"}))


def test_classes_are_those_of_all_files(tmp_path: Path) -> None:
    for name, labels in (("val", ["a", "new"]), ("test", ["b", None])):
        json_lines(tmp_path / f"{name}.jsonl", labels)
    keys = {f"{key}_path": str(tmp_path / f"{name}.jsonl") for key, name in (("validation", "val"), ("test", "test"))}
    source = json_lines(tmp_path / "a.jsonl", ["a", "b"] * 5, **keys)
    assert source.label_names() == ("a", "b", "new")
    assert list(classes(source, "test").values()) == ["b"] and len(classes(source)) == 10


def test_a_split_that_there_is_not_is_refused_in_every_source(tmp_path: Path) -> None:
    path = str(tmp_path / "a.txt")
    mixture = SourceMixture(members=({"name": "text", "path": path, "test_path": path}, {"name": "text", "path": path}))
    with pytest.raises(UserError, match=r"data.members\[1\]: there is no test split; .*data.members\[1\].test_path"):
        check_split(mixture, "test")
    with pytest.raises(UserError, match="data: there is no test split; there are train, validation"):
        check_split(Text(path=path), "test")
    check_split(mixture, "validation")
    check_split(Text(path=path, test_path=path), "test")


# A limited evaluation.


def test_a_limited_evaluation_draws_its_rows_by_seed() -> None:
    chosen = evaluated(1000, 100, seed=0)
    assert len(set(chosen)) == 100 and list(chosen) == sorted(chosen) and chosen == evaluated(1000, 100, seed=0)
    assert evaluated(1000, 100, seed=1) != chosen
    assert 30 < sum(number < 500 for number in chosen) < 70  # not the first
    for limit in (0, 1000, 2000):
        assert list(evaluated(1000, limit, seed=0)) == list(range(1000))
    assert len(evaluated(10**12, 5, seed=0)) == 5  # nothing of that size is made
