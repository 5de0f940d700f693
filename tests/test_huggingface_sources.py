"""Data sets of Hugging Face, saved and by name; `make test-reference` installs what reads them."""

from pathlib import Path
from typing import Any

import pytest
from labelled import ALL, CONTEXT, OF_ROWS, refusal, write

from jaxformer.data.huggingface import HuggingFace
from jaxformer.errors import UserError

datasets = pytest.importorskip("datasets", reason="make test-reference installs datasets")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    rows = {
        "idx": [0, 1, 2],
        "question": ["Who?"] * 3,
        "context": [CONTEXT] * 3,
        "answers": [{"text": [], "answer_start": []}, *[{"text": ["Al"], "answer_start": [8]}] * 2],
        "label": [0, 1, 0],
        "score": [0.0, 0.5, 1.0],
        "tokens": [["Ada", "met"]] * 3,
        "tags": [[1, 0]] * 3,
        "options": [["a", "b"]] * 3,
        "pair": [{"en": f"{number}", "de": f"Nummer {number}"} for number in range(3)],
    }
    train = datasets.Dataset.from_dict(rows)
    train = train.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    train = train.cast_column("tags", datasets.List(datasets.ClassLabel(names=["O", "B-PER"])))
    test = train.map(lambda row: {"label": -1, "score": -1.0}, load_from_cache_file=False)
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(folder / "both")
    train.save_to_disk(folder / "alone")
    return folder


@pytest.mark.parametrize(("label_field", "kind", "fields", "labels"), OF_ROWS)
def test_hugging_face_gives_labels_of_every_kind(
    label_field: str, kind: str, fields: tuple[str, ...], labels: list[Any], saved: Path
) -> None:
    source = HuggingFace(dataset=str(saved / "both"), label_field=label_field, test_split="test", **ALL)
    examples = list(source.examples("train", fields, kind))
    assert [example["label"] for example in examples] == labels
    assert [example["record"]["idx"] for example in examples] == [0, 1, 2]
    names = {"class": ("no", "yes"), "tags": ("B-PER", "O")}
    assert source.label_names(kind) == names.get(kind, ())
    if kind in ("class", "number"):
        assert list(source.examples("test", fields, kind)) == []


def test_a_saved_dataset_has_splits_and_a_fingerprint_of_its_content(saved: Path, tmp_path: Path) -> None:
    alone = HuggingFace(dataset=str(saved / "alone"), text_field="pair.de", validation_share=0.5)
    both = HuggingFace(dataset=str(saved / "both"), text_field="pair.de", validation_split="test")
    assert list(both.documents("train")) == list(both.documents("validation")) == [f"Nummer {n}" for n in range(3)]
    train, validation = (list(alone.documents(split)) for split in ("train", "validation"))
    assert sorted(train + validation) == [f"Nummer {n}" for n in range(3)] and train and validation
    first = alone.fingerprint("train")
    (saved / "alone").rename(tmp_path / "moved")
    moved = HuggingFace(dataset=str(tmp_path / "moved"), text_field="pair.de", validation_share=0.5)
    assert moved.fingerprint("train") == first != moved.fingerprint("validation")
    (tmp_path / "moved").rename(saved / "alone")
    for name, text in (("a", "one"), ("b", "two")):
        type(alone._loaded["train"]).from_dict({"text": [text]}).save_to_disk(tmp_path / name)
    assert len({HuggingFace(dataset=str(tmp_path / name)).fingerprint("train") for name in "ab"}) == 2
    assert set(both.contents()["dataset"]) == {"train", "test"}
    with pytest.raises(UserError, match="has no split 'tset'; did you mean 'test'.; it has train, test"):
        list(HuggingFace(dataset=str(saved / "both"), test_split="tset").documents("test"))


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, config: str | None) -> Any:
        if name != "glue":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nmore lines")
        return datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": [str(config)]})})

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(HuggingFace(dataset="glue", config="sst2", **ALL).documents("train")) == ["sst2"]
    message = refusal(HuggingFace(dataset="glu"))
    assert message == (
        "data.dataset: glu is not saved on disk, and could not be loaded by that name (Dataset 'glu' doesn't exist on "
        "the Hub)"
    )
    for folder in (str(tmp_path), f"{tmp_path}/nowhere", "./nowhere"):
        assert f"data.dataset: {folder} is no folder that `save_to_disk`" in refusal(HuggingFace(dataset=folder))
    write(tmp_path / "state.json", "{}")
    assert f"data.dataset: {tmp_path} cannot be read" in refusal(HuggingFace(dataset=str(tmp_path)))
