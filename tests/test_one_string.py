"""One string is one: wherever texts, prompts, patterns, overrides or folders are taken, it is not its characters."""

from pathlib import Path

import numpy as np
import pytest
from runs import make_run, tokenizer_of

import jaxformer
from jaxformer import config as configs
from jaxformer.checkpoint import CheckpointConfig, restore_params
from jaxformer.checks import several
from jaxformer.report import find_runs
from jaxformer.tasks import TASKS
from jaxformer.tasks.metrics import measure
from jaxformer.tokenizers import ByteBPE, train_tokenizer
from jaxformer.trees import flatten, mask, match


def test_one_prompt_has_one_answer(tmp_path: Path) -> None:
    run = jaxformer.load(make_run("gpt", tmp_path / "run"))
    one = run.generate("Return the lock")
    assert len(one) == 1 and one == run.generate(["Return the lock"]) == run.generate(("Return the lock",))


@pytest.mark.parametrize(("given", "wanted"), [
    ("abc", ("abc",)), ("", ("",)), (Path("a/b"), (Path("a/b"),)), (["abc", "d"], ("abc", "d")), ((), ()),
])  # fmt: skip
def test_a_text_or_a_path_is_one(given: object, wanted: tuple[object, ...]) -> None:
    assert several(given) == wanted  # type: ignore[type-var]


def test_a_pattern_is_one() -> None:
    params = {"head": {"kernel": np.zeros(2), "bias": np.zeros(1)}, "body": {"kernel": np.zeros(2)}}
    assert flatten(mask(params, "head/.*")) == {"head/kernel": True, "head/bias": True, "body/kernel": False}
    assert match("head/kernel", (2,), "head/.*") is True
    config = CheckpointConfig(init_skip="head/.*", init_new="head/b.*")  # type: ignore[arg-type]
    assert (config.init_skip, config.init_new) == (("head/.*",), ("head/b.*",))


def test_a_pattern_of_a_restore_is_one(tmp_path: Path) -> None:
    target = {"embedding": {"tokens": np.zeros((290, 16), np.float32)}}
    skip = r"(?!embedding/tokens).*"
    params, table = restore_params(make_run("gpt2", tmp_path / "run"), target, skip=skip)  # type: ignore[arg-type]
    assert list(table.restored) == ["embedding/tokens"] and list(flatten(params)) == ["embedding/tokens"]


def test_an_override_is_one() -> None:
    assert configs.load("gpt:smoke", "seed=12").seed == 12


@pytest.mark.parametrize(("key", "value", "wanted"), [
    ("task.text_fields", "headline", ("headline",)), ("task.metrics", "f1", ("f1",)),
    ("training.trainable", "row_heads/.*", ("row_heads/.*",)), ("optimizer.decay_exclude", ".*/bias", (".*/bias",)),
    ("checkpoint.init_skip", "head/.*", ("head/.*",)), ("checkpoint.init_new", "head/.*", ("head/.*",)),
])  # fmt: skip
def test_a_string_in_a_config_is_one(key: str, value: str, wanted: tuple[str, ...]) -> None:
    section, field = key.split(".")
    experiment = configs.load("finetune/area:bert,smoke").to_dict()
    experiment[section] |= {field: value}
    assert configs.flat(configs.resolve(experiment, name="mine").to_dict())[key] == wanted
    if section == "task":
        task = TASKS["classification"](**{field: value})  # type: ignore[call-arg]
        assert getattr(task, field) == wanted


def test_a_text_to_train_a_tokenizer_on_is_one() -> None:
    text = "the cat and the other cat " * 20
    one, several_ = (train_tokenizer(ByteBPE(vocab_size=270), texts) for texts in (text, [text]))
    assert one.fingerprint == several_.fingerprint and len(one.encode("the cat")) < 5


def test_a_metric_and_a_folder_are_one(tmp_path: Path) -> None:
    assert measure("accuracy", [0, 1], [0, 0], 2) == {"accuracy": 0.5}
    run = make_run("gpt", tmp_path / "abc")
    assert [found.name for found in find_runs(str(run))] == [found.name for found in find_runs(run)] == ["abc"]


def test_the_tokenizer_of_these_runs_reads_characters_otherwise() -> None:
    """What the first test would miss: that a string's characters give other ids than the string."""
    tokenizer = tokenizer_of("bpe")
    assert len(tokenizer.encode("Return the lock")) < len("Return the lock")
