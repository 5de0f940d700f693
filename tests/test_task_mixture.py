"""Several text-to-text tasks in one run: how often each is drawn, and what each knows of its own data."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import carrier

from jaxformer.config import resolve
from jaxformer.data import prepare
from jaxformer.data.batches import train_batches
from jaxformer.data.preparing import learnt_from, training_texts
from jaxformer.data.sources import SourceMixture
from jaxformer.errors import UserError
from jaxformer.planning import plan
from jaxformer.runs.data import label_names
from jaxformer.tasks.mixture import TaskMixture
from jaxformer.tokenizers import Tokenizer, train_tokenizer
from jaxformer.tokenizers.training import Unigram

COLA = {"name": "text_to_text", "title": "cola", "input": "cola sentence: {s}", "corpora": [0], "target_length": 24}
RTE = {
    "name": "text_to_text", "title": "rte", "input": "rte a: {a} b: {b}", "corpora": [1], "metrics": ["accuracy"],
    "words": {"0": "entailment", "1": "not_entailment"}, "sequence_length": 64, "target_length": 32,
}  # fmt: skip
SIZES = (30, 10)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tasks")
    cola = [{"s": f"it is {n}", "label": ("unacceptable", "acceptable")[n % 2]} for n in range(SIZES[0])]
    rte = [{"a": f"one {n}", "b": "two", "label": n % 2} for n in range(SIZES[1])]
    paths = [write(folder / "cola.jsonl", cola), write(folder / "rte.jsonl", rte)]
    held_out = [write(folder / "cola-dev.jsonl", cola[:4]), write(folder / "rte-dev.jsonl", rte[:6])]
    return [
        {"name": "json_lines", "path": path, "validation_path": other}
        for path, other in zip(paths, held_out, strict=True)
    ]


@pytest.fixture(scope="module")
def tokenizer(data: list[dict[str, Any]]) -> Tokenizer:
    texts = list(training_texts(SourceMixture(members=tuple(data)), TaskMixture(members=(COLA, RTE))))
    assert {"cola sentence:", "rte a:", "b:", "unacceptable", "entailment", "not_entailment", "it is 3"} <= set(texts)
    assert not {"0", "1"} & set(texts)  # the words in their place
    return train_tokenizer(Unigram(vocab_size=120, num_sentinels=0), iter(texts * 3))


def bound(tokenizer: Tokenizer, *members: dict[str, Any]) -> TaskMixture:
    task = TaskMixture(members=members or (COLA, RTE)).for_model(carrier("encoder_decoder"))
    labels = [("acceptable", "unacceptable") if member["title"] != "rte" else ("0", "1") for member in task.members]
    return task.bind(tokenizer.vocabulary, labels, tokenizer.encode, tokenizer.decode)


@pytest.mark.parametrize(
    ("mixing", "weights", "shares"),
    [
        ({}, (1, 1), (1 / 2, 1 / 2)),  # equal
        ({"mixing": "proportional"}, (1, 1), (3 / 4, 1 / 4)),
        ({"mixing": "proportional", "cap": 20}, (1, 1), (2 / 3, 1 / 3)),
        ({"mixing": "proportional", "cap": 20, "temperature": 2.0}, (1, 1), (2**0.5 / (1 + 2**0.5), 1 / (1 + 2**0.5))),
        ({"mixing": "proportional", "cap": 20}, (1, 3), (2 / 5, 3 / 5)),
    ],
)
def test_tasks_are_drawn_as_the_data_says(
    mixing: dict[str, Any], weights: tuple[int, int], shares: tuple[float, float], data: Any, tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:  # fmt: skip
    task = bound(tokenizer, COLA | {"weight": float(weights[0])}, RTE | {"weight": float(weights[1])})
    members = prepare(
        SourceMixture(members=tuple(data), **mixing), task, tokenizer, "train", seed=0, cache=tmp_path
    )  # fmt: skip
    assert [member.name for member in members] == ["cola", "rte"] and tuple(len(one.rows) for one in members) == SIZES
    assert [member.weight for member in members] == pytest.approx(shares)


def test_batches_have_them_in_these_shares(data: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = SourceMixture(members=tuple(data), mixing="proportional")
    members = prepare(source, bound(tokenizer), tokenizer, "train", seed=0, cache=tmp_path)
    batches = train_batches(members, seed=0, batch_size=40)
    batch = next(batches)
    batches.close()
    first = tokenizer.encode("rte a:")
    assert np.all(batch["encoder_inputs"][:, : len(first)] == first, axis=1).sum() == 10


def test_one_corpus_may_be_read_both_ways(data: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """As a translation from either side: what stands in one place for one task stands in another for the other."""
    there = RTE | {"title": "there"}
    task = bound(tokenizer, COLA, there | {"words": {}}, there | {"title": "back", "input": "{b} {a}", "words": {}})
    labels = [("acceptable", "unacceptable"), ("0", "1"), ("0", "1")]
    task = task.bind(tokenizer.vocabulary, labels, tokenizer.encode, tokenizer.decode)
    source = SourceMixture(members=tuple(data), mixing="proportional")
    members = prepare(source, task, tokenizer, "train", seed=0, cache=tmp_path)
    assert [(one.name, round(one.weight, 6)) for one in members] == [("cola", 0.6), ("there", 0.2), ("back", 0.2)]
    with pytest.raises(UserError, match=r"task.members\[0\].target_length: 8, but the label 'acceptable' takes"):
        bound(tokenizer, COLA | {"target_length": 8}, RTE)
    with pytest.raises(UserError, match=r"task.members\[0\].corpora: there is no data.members\[2\]"):
        prepare(source, bound(tokenizer, COLA | {"corpora": [2]}, RTE), tokenizer, "train", seed=0, cache=tmp_path)


def test_each_knows_its_own_labels_and_is_judged_by_itself(data: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    members = prepare(
        SourceMixture(members=tuple(data)), bound(tokenizer), tokenizer, "validation", seed=0, cache=tmp_path
    )
    found = [learnt_from(member) for member in members]
    assert [one.metrics for one in found] == [("accuracy", "f1"), ("accuracy",)]
    assert [one.labels for one in found] == [("acceptable", "unacceptable"), ("0", "1")]
    rows = [[member.rows[number] for number in range(len(member.rows))] for member in members]
    assert [one.answering.truths(each)[:2] for one, each in zip(found, rows, strict=True)] == [[1, 0], [0, 1]]
    answers = found[1].answering.answers(rows[1], ["entailment", "unacceptable"])
    assert answers == [{"label": "0", "text": "entailment"}, {"label": None, "text": "unacceptable"}]


def test_a_config_of_several_tasks(data: Any) -> None:
    sections: dict[str, Any] = {
        "model": {"preset": "t5_small", "num_layers": 1},
        "task": {"name": "mixture", "members": [COLA, RTE]},
        "tokenizer": {"name": "unigram", "vocab_size": 120},
        "data": {"name": "mixture", "members": data, "mixing": "proportional"},
        "optimizer": {"name": "adafactor", "learning_rate": 1e-3},
        "training": {"num_steps": 2, "batch_size": 8},
    }
    config = resolve(sections, name="several")
    assert label_names(config) == (("acceptable", "unacceptable"), ("0", "1"))
    assert resolve(json.loads(json.dumps(config.to_dict())), name="again").task == config.task
    notes: list[str] = []
    assert config.longest_row == 128 and plan._labelled(config, notes) is config.task and not notes
    with pytest.raises(UserError, match=r"task.members\[1\].title: another member is 'cola' already"):
        resolve(sections | {"task": {"name": "mixture", "members": [COLA, RTE | {"title": "cola"}]}}, name="several")
    with pytest.raises(UserError, match="task.members.*no 'clasification'"):
        resolve(sections | {"task": {"name": "mixture", "members": [COLA | {"name": "clasification"}]}}, name="several")
