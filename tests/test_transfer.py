"""A transfer: which runs it consists of, what it refuses, how it goes on, and what is found in it. test_demo.py trains
one for real."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import visible_text
from runs import make_run
from sweeps import RATE, opened
from training import make_corpus

from jaxformer import config as configs
from jaxformer.checkpoint import save_params
from jaxformer.cli.main import main
from jaxformer.config import Config
from jaxformer.errors import Interrupted, UserError
from jaxformer.report import read_transfer
from jaxformer.report.transfer_words import rows_of, sentences
from jaxformer.studies import Transfer, transfer, transferring, working

RATES = (1e-3, 1e-2, 1e-1)
Train = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run("bert", tmp_path_factory.mktemp("transfer") / "base")


def keys(corpus: Path, **changes: object) -> tuple[str, ...]:
    rows = corpus / "labelled.jsonl"
    given = {"data.name": "json_lines", "data.path": rows, "data.test_path": rows, "data.label_field": "label"}
    given |= {"task.text_fields": "text", "task.sequence_length": 32, "footprint.enabled": False}
    given |= {"training.num_steps": 40, "training.eval_every": 20, "training.batch_size": 8, "sharding.data": 1}
    return tuple(f"{key}={value}" for key, value in (given | changes).items())


def asked(run: Path, corpus: Path, **changes: Any) -> Transfer:
    given: dict[str, Any] = {"config": "finetune/classify:bert", "pretrained": str(run), "overrides": keys(corpus)}
    return Transfer(**given | {"labels": (10, 40), "rates": RATES, "seeds": 2} | changes)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that a make-believe training was called for: four times the labels do as well from scratch, whose
    best rate is ten times that from the checkpoint."""
    configs: list[Config] = []

    def train(config: Config, workdir: Path, *, display: Any = None, judge: Any = None) -> dict[str, float]:
        configs.append(config)
        best, labels = (1e-3, 4) if config.init_from else (1e-2, 1)
        reached = 0.1 * math.log2(labels * config.data.max_examples) + config.seed / 100
        reached -= 0.05 * abs(math.log10(config.optimizer.learning_rate / best))
        last = config.training.num_steps
        metrics: dict[str, float] = {}
        with (workdir / "metrics.jsonl").open("w") as file:
            for step in sorted(
                {*range(config.training.eval_every or last, last, config.training.eval_every or 1), last}
            ):
                metrics = {"eval/loss": 1 - reached * step / last, "eval/accuracy": reached * step / last}
                file.write(json.dumps({"step": step, **metrics}) + "\n")
        return metrics

    monkeypatch.setattr(working, "train", train)
    monkeypatch.setattr(working, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(transferring, "write_report", lambda *_: None)  # drawing takes longer than all else
    return configs


def differing(one: Config, other: Config) -> set[str]:
    flat = [configs.flat(config.to_dict()) for config in (one, other)]
    return {key for key in {**flat[0], **flat[1]} if flat[0].get(key) != flat[1].get(key)}


def test_arms_differ_in_where_they_start_and_in_their_rates(
    run: Path, corpus: Path, tmp_path: Path, trained: list[Config]
) -> None:
    transfer(asked(run, corpus), tmp_path / "study", quiet=True)
    tuning, final = trained[:6], trained[6:]
    assert [bool(config.init_from) for config in trained] == [True] * 3 + [False] * 3 + [True] * 4 + [False] * 4
    for config in tuning:
        assert (config.data.max_examples, config.training.num_steps, config.seed) == (40, 40, 0)
        assert (config.evaluation.split, config.training.eval_every) == ("validation", 0)
    assert [config.optimizer.learning_rate for config in tuning] == list(RATES) * 2
    assert {config.optimizer.learning_rate for config in final[:4]} == {1e-3}
    assert {config.optimizer.learning_rate for config in final[4:]} == {1e-2}
    sizes = [(config.data.max_examples, config.training.num_steps, config.training.eval_every) for config in final[:4]]
    assert sizes == [(10, 20, 10)] * 2 + [(40, 40, 20)] * 2  # half the steps of a quarter of the labels
    for config, other in zip(final[:4], final[4:], strict=True):
        assert differing(config, other) == {"init_from", RATE}
        assert config.seed == config.data.subset_seed in (1, 2) and config.evaluation.split == "test"
        assert config.model.d_model == 16 and config.tokenizer.path == str(run / "tokenizer.json")
        assert (config.optimizer.warmup_steps, config.optimizer.warmup_share) == (0, 0.1)


def test_a_warm_up_in_steps_keeps_its_share(run: Path, corpus: Path, tmp_path: Path, trained: list[Config]) -> None:
    words = keys(corpus, **{"optimizer.warmup_steps": 10, "data.subset_seed": 3})
    transfer(asked(run, corpus, overrides=words, rates=(1e-3,), seeds=1, steps=(8,)), tmp_path / "study", quiet=True)
    assert len(trained) == 4, "a rate that stands alone needs no choosing"
    for config in trained:
        assert config.training.num_steps == 8 and config.optimizer.warmup_share == 0.25
        assert config.data.subset_seed == 3, "what is given counts"


def test_shares_of_the_labels_are_counted(run: Path, corpus: Path, tmp_path: Path, trained: list[Config]) -> None:
    words = asked(run, corpus, labels=(1.0, 0.1), rates=(1e-3,), scratch_rates=(1e-2, 1e-1), seeds=1)
    found = transfer(words, tmp_path / "study", quiet=True)
    most = max(point["labels"] for point in found["points"])
    assert 200 < most < 240  # of 240 rows some are held out
    assert [point["labels"] for point in found["points"]] == [round(most / 10), most] * 2
    assert [bool(config.init_from) for config in trained] == [False] * 2 + [True] * 2 + [False] * 2


def test_what_was_found_is_read_drawn_and_written_again(
    run: Path, corpus: Path, tmp_path: Path, trained: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "study"
    words = [
        "transfer",
        f"--pretrained={run}",
        "--config=finetune/classify:bert",
        f"--study={folder}",
        "--labels=10,40",
    ]
    words += ["--rates=1e-3,1e-2,1e-1", "--seeds=2", *(f"--config.{key}" for key in keys(corpus))]
    assert main(words) == 0 and len(trained) == 14
    shown = capsys.readouterr()
    assert "From the checkpoint: 0.001 of 0.001 (" in shown.err and "it is the lowest that was tried" in shown.err
    assert "From scratch: 0.01 of 0.001 (" in shown.err
    assert (
        "10 labels from the checkpoint do the work of 40 from scratch (4.0 times as many): 54.7 % accuracy."
        in re.sub(r"\s+", " ", shown.out)
    )
    assert "54.7 ± 0.7 %" in shown.out and "+20.0" in shown.out and "base has no log of it" in shown.out

    found = read_transfer(folder)
    assert found["points"][0]["curves"][0] == [
        (10, pytest.approx(0.2711, abs=1e-4)),
        (20, pytest.approx(0.5422, abs=1e-4)),
    ]
    assert main(words) == 0 and len(trained) == 14, "finished runs are kept"
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert (folder / "report" / "transfer-steps.png").exists()
    text = visible_text(folder / "report" / "report.html")
    assert "Accuracy by number of labels" in text and "Accuracy by step" in text and "on the test split" in text
    assert "chosen on the validation split: from the checkpoint 0.001 of 0.001 (" in text and "10 labels" in text
    capsys.readouterr()
    assert main(["report", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "eval/accuracy"


def test_a_loss_is_better_where_it_is_lower(run: Path, corpus: Path, tmp_path: Path, trained: list[Config]) -> None:
    found = transfer(asked(run, corpus, metric="eval/loss", seeds=1), tmp_path / "study", quiet=True)
    assert found["mode"] == "min" and {point["learning_rate"] for point in found["points"]} == {1e-3, 1e-2}
    assert found["equal"]["labels_pretrained"] == pytest.approx(10)
    assert sentences(found)["headline"].endswith("40 from scratch (4.0 times as many): loss 0.4578.")
    headings, rows, _ = rows_of(found)
    assert headings[2:4] == ["Loss", "Accuracy"] and headings[-1] == "Gain"
    assert rows[0][2:4] == ["0.4578", "54.2 %"] and [row[-1] for row in rows] == ["+0.2", "+0.2"]


def test_a_transfer_that_is_stopped_goes_on(
    run: Path, corpus: Path, tmp_path: Path, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    train: Train = working.train

    def stopped(config: Config, *given: Any, **named: Any) -> dict[str, float]:
        if len(trained) == 8:
            raise Interrupted("stopped", code=75)
        return train(config, *given, **named)

    monkeypatch.setattr(working, "train", stopped)
    with pytest.raises(Interrupted, match="run the same command to go on"):
        transfer(asked(run, corpus), tmp_path / "study", quiet=True)
    monkeypatch.setattr(working, "train", train)
    half = read_transfer(tmp_path / "study")
    assert any("2 of 4 runs are over" in line for line in half["unfinished"])
    assert "scratch/labels: not begun yet" in half["unfinished"]
    found = transfer(asked(run, corpus), tmp_path / "study", quiet=True)
    assert len(trained) == 14 and found["unfinished"] == []


def test_more_seeds_and_labels_keep_what_is_there(
    run: Path, corpus: Path, tmp_path: Path, trained: list[Config]
) -> None:
    folder = tmp_path / "study"
    transfer(asked(run, corpus), folder, quiet=True)
    more = asked(run, corpus, labels=(10, 20, 40), steps=(20, 30, 40), seeds=3)
    with pytest.raises(UserError, match=r"another transfer \(space labels: .*; space seeds: \[1, 2\] -> \[1, 2, 3\]"):
        transfer(more, folder, quiet=True)
    trained.clear()
    found = transfer(more, folder, quiet=True, allow_change=True)
    assert len(trained) == 2 * (3 * 3 - 4), "equal runs are kept, and no rate is tried again"
    assert [len(point["seeds"]) for point in found["points"]] == [3] * 6 and found["unfinished"] == []


def test_an_arm_that_fails_is_told(
    run: Path, corpus: Path, tmp_path: Path, trained: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    train: Train = working.train

    def failing(config: Config, *given: Any, **named: Any) -> dict[str, float]:
        if not config.init_from and (config.data.max_examples == 10 or config.seed == 0 and len(RATES) > fine):
            raise UserError("scratch: it cannot")
        return train(config, *given, **named)

    monkeypatch.setattr(working, "train", failing)
    fine = 0
    with pytest.raises(UserError, match="from scratch: no learning rate gives eval/accuracy; scratch: it cannot"):
        transfer(asked(run, corpus), tmp_path / "none", quiet=True)
    fine = len(RATES)
    found = transfer(asked(run, corpus), tmp_path / "some", quiet=True)
    assert sum("failed 2 times: scratch: it cannot" in line for line in found["unfinished"]) == 1
    assert [row[-1] for row in rows_of(found)[1]] == ["–", "+20.0"]


def test_what_cannot_be_compared_is_refused_before_anything_is_trained(
    run: Path, corpus: Path, tmp_path: Path, trained: list[Config]
) -> None:
    folder, empty = tmp_path / "study", tmp_path / "empty"
    (tmp_path / "full" / "things").mkdir(parents=True)
    empty.mkdir()
    opened(tmp_path / "sweep", corpus, {RATE: [1e-3]})
    one_split = tuple(word for word in keys(corpus) if not word.startswith("data.test_path"))
    for changes, where, said in (
        ({"pretrained": str(tmp_path / "no")}, folder, "--pretrained: no checkpoint at .*no: the folder"),
        ({"pretrained": str(empty)}, folder, "--pretrained: no checkpoint in .*empty; name a run"),
        ({"config": "finetune/classify:gpt,smoke"}, folder, "--pretrained: .*base is a model of encoder_only, but"),
        ({"config": "finetune/classify:bert,smoke"}, folder, "a width of 16 .model.d_model., and .* one of 128"),
        ({"config": "gpt:smoke", "overrides": ()}, folder, "--config=gpt:smoke: it learns no labels"),
        ({"overrides": keys(corpus, **{"tokenizer.vocab_size": 99})}, folder, "tokenizer: both arms read"),
        ({"overrides": keys(corpus, init_from="x")}, folder, "--config.init_from: give the run as --pretrained"),
        ({"overrides": keys(corpus, **{"data.max_examples": 9})}, folder, "--labels says how many"),
        ({"overrides": keys(corpus, **{"training.patience": 2})}, folder, "training.patience: each number"),
        ({"overrides": one_split}, folder, "there is no test split; .*--split=validation"),
        ({"labels": (10, 500)}, folder, "there are 2.. labelled examples to train on, and 500 asks for more"),
        ({"labels": (0.001,)}, folder, "0.001 gives not even one; give a larger share"),
        ({"labels": (10, 10.5)}, folder, "--labels: 10.5 is neither a share"),
        ({"labels": (0.05, 0.0501)}, folder, "0.05 and 0.0501 both are 1. labels"),
        ({"labels": ()}, folder, "--labels: none are given"),
        ({"steps": (1, 2, 3)}, folder, "--steps: 3 values for 2 of --labels"),
        ({"seeds": 0}, folder, "--seeds: 0 must be at least 1"),
        ({"split": "train"}, folder, "--split: 'train' is not one of test, validation"),
        ({"metric": "train/loss"}, folder, "--metric: train/loss does not judge a run"),
        ({"metric": "accuracy"}, folder, "'accuracy' is nothing that a run logs"),
        ({}, tmp_path / "full", "has no study.json but holds things"),
        ({}, run, "base is a run; a study needs a folder of its own"),
        ({}, tmp_path / "sweep", "sweep holds another kind of study .sweep, not transfer."),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said) as error:
            transfer(asked(run, corpus, **changes), where, quiet=True)
        assert "\n" not in str(error.value)
    assert not trained and not folder.exists()


def test_the_validation_split_judges_where_it_is_asked_to(
    run: Path, corpus: Path, tmp_path: Path, trained: list[Config]
) -> None:
    words = tuple(word for word in keys(corpus) if not word.startswith("data.test_path"))
    found = transfer(asked(run, corpus, overrides=words, split="validation"), tmp_path / "study", quiet=True)
    assert {config.evaluation.split for config in trained} == {"validation"}
    assert "It was judged on that split, too" in sentences(found)["how"]


def test_a_metric_that_is_not_logged_and_what_changed_meanwhile_are_refused(
    tmp_path: Path, trained: list[Config]
) -> None:
    run, corpus = make_run("bert", tmp_path / "base"), make_corpus(tmp_path)
    with pytest.raises(UserError, match="log no eval/f2; they log eval/loss, eval/accuracy"):
        transfer(asked(run, corpus, metric="eval/f2"), tmp_path / "study", quiet=True)
    assert len(trained) == 1
    rows = (corpus / "labelled.jsonl").read_text()
    (corpus / "labelled.jsonl").write_text(rows + rows.splitlines()[0] + "\n")
    with pytest.raises(UserError, match="the data changed since the transfer began"):
        transfer(asked(run, corpus), tmp_path / "study", quiet=True, allow_change=True)
    save_params(run / "checkpoints", {"other": np.zeros(2, np.float32)}, step=8)
    with pytest.raises(UserError, match="the checkpoint of .*base changed since the transfer began"):
        transfer(asked(run, corpus), tmp_path / "study", quiet=True, allow_change=True)


def test_lists_on_the_command_line_are_numbers(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["transfer", f"--pretrained={run}", "--config=finetune/area:bert,smoke"]
    for wrong, said in (
        ("--labels=ten", "--labels: 'ten' is no number"),
        ("--steps=1.5", "--steps: '1.5' is no whole number"),
        ("--rates=0", "--rates: 0.0 must be above 0"),
        ("--study=gs://bucket/x", "--study"),
        ("--parallel=0", "--parallel: 0"),
    ):
        assert main([*words, wrong]) == 2 and said in capsys.readouterr().err, wrong
