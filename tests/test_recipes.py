"""The experiments of fine-tuning: each takes the model of the run that it starts from, and heads that fit."""

import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import make_run

from jaxformer import config as configs
from jaxformer.checkpoint import checkpoint_of, fresh_heads
from jaxformer.config import experiments
from jaxformer.errors import UserError
from jaxformer.training import schedule

RECIPES = [name for name in experiments() if name.startswith("finetune/")]
ENCODERS = [name for name in RECIPES if name.split("/")[1] in ("classify", "glue", "choice", "ner", "squad", "squad2")]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run("bert", tmp_path_factory.mktemp("recipes") / "bert")


def short(recipe: str) -> list[str]:
    """The keys that rows of the tiny run need: it has few places."""
    keys = ["task.sequence_length=64"]
    return keys + ["task.max_query_length=16", "task.doc_stride=16"] * ("squad" in recipe)


@pytest.mark.parametrize("recipe", ENCODERS)
def test_a_recipe_takes_the_model_of_the_run_that_it_starts_from(recipe: str, pretrained: Path) -> None:
    config = configs.load(f"{recipe}:bert", [f"init_from={pretrained}", *short(recipe)])
    base = configs.resolve(configs.read_record(pretrained)["config"], name="base", stored=True)
    assert config.model == base.model and config.selected["model"] == base.selected["model"]
    assert config.checkpoint.init_heads == "fresh"
    changed = configs.load(f"{recipe}:bert", [f"init_from={pretrained}", "model.dropout=0.3", *short(recipe)])
    assert changed.model.dropout == 0.3 and changed.model.d_model == base.model.d_model


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_refuses_a_family_it_does_not_know(recipe: str) -> None:
    module = importlib.import_module(f"jaxformer.experiments.{recipe.replace('/', '.')}")
    if hasattr(module, "FAMILIES"):
        with pytest.raises(UserError, match="nobody"):
            configs.load(f"{recipe}:nobody,smoke")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("translate:transformer,base", (4, "gnmt", 0.6, 50, 0, 0, 0)),
        ("translate:t5,small", (4, "gnmt", 0.6, -1, 0, 0, 0)),
        ("translate:bart,base", (5, "power", 1.0, -1, 0, 0, 0)),
        ("summarize:bart,large", (4, "power", 2.0, -1, 55, 140, 3)),
        ("summarize:bart,xsum,large", (6, "power", 1.0, -1, 10, 60, 3)),
        ("summarize:bart,smoke", (4, "power", 2.0, -1, 0, 0, 3)),
        ("summarize:t5,base", (4, "gnmt", 0.6, -1, 0, 0, 0)),
        ("text_to_text:t5,en_ro,base", (4, "gnmt", 0.6, -1, 0, 0, 0)),
        ("text_to_text:t5,cnn_dailymail,base", (4, "gnmt", 0.6, -1, 0, 0, 0)),
        ("text_to_text:t5,cola,base", (1, "gnmt", 0.0, -1, 0, 0, 0)),
        ("text_to_text:t5,all,base", (1, "gnmt", 0.0, -1, 0, 0, 0)),
    ],
)  # fmt: skip
def test_translations_and_summaries_are_written_as_the_papers_do(recipe: str, expected: tuple) -> None:
    keys = ("num_beams", "length_penalty", "length_alpha", "extra_length", "min_new_tokens", "max_new_tokens")
    settings = configs.load(f"finetune/{recipe}").generation
    assert tuple(getattr(settings, key) for key in (*keys, "no_repeat_ngram")) == expected


def test_a_run_of_another_family_is_refused(pretrained: Path) -> None:
    for recipe in ("finetune/classify:gpt", "finetune/glue:bart", "finetune/summarize:t5"):
        with pytest.raises(
            UserError, match=rf"init_from: .*bert is a model of encoder_only .*--config={recipe} is for"
        ):
            configs.load(recipe, [f"init_from={pretrained}"])


def test_without_a_run_to_start_from_there_is_no_model() -> None:
    with pytest.raises(UserError, match="model.preset: 'init_from' is the model of the run .* give --config.init_from"):
        configs.load("finetune/classify:bert")
    assert configs.load("finetune/classify:bert,base").selected["model"] == "bert_base"


def test_heads_that_both_do_not_share_start_fresh(pretrained: Path) -> None:
    def tree(**heads: dict[str, tuple[int, ...]]) -> dict[str, Any]:
        return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, np.float32), heads, is_leaf=_is_shape)

    checkpoint = checkpoint_of(pretrained)
    skip, new = fresh_heads(checkpoint, tree(row_heads={"label": (16, 3)}, encoder={"only_here": (2,)}), True)
    assert new == ("row_heads/label",)
    assert {"row_heads/next_sentence/kernel", "vocabulary/bias"} <= {path.replace("\\", "") for path in skip}
    assert all(path.startswith(("row_heads/", "vocabulary/")) for path in skip)

    labelled = checkpoint_of(make_run("bert_label", pretrained.parent / "label"))
    same = tree(row_heads={"label": {"kernel": (16, 3), "bias": (3,)}})
    alike = {path for path in fresh_heads(labelled, same, True)[0] if "label" in path}
    other = {path for path in fresh_heads(labelled, same, False)[0] if "label" in path}
    assert alike in (set(), other) and len(other) == 2


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple)


def test_a_share_of_the_steps_warms_up() -> None:
    def rates(steps: int, **keys: Any) -> list[float]:
        optimizer = configs.load(
            "finetune/classify:bert,base", [f"{key}={value}" for key, value in keys.items()]
        ).optimizer
        rate = schedule(optimizer, steps)
        return [rate(done) / optimizer.learning_rate for done in range(steps)]

    for steps in (20, 200):
        # BERT's code: (n / w) while the rate rises, 1 - n / N from there on.
        found, warmup = rates(steps), steps // 10
        assert found[:warmup] == pytest.approx([n / warmup for n in range(warmup)])
        assert found[warmup:] == pytest.approx([1 - n / steps for n in range(warmup, steps)])
    assert rates(20, **{"optimizer.warmup_steps": 5})[:5] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])  # steps count more


def commands() -> list[str]:
    """The commands of docs/fine-tuning.md that train from a BERT, each on one line."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "fine-tuning.md").read_text().replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in text.splitlines() if line.startswith("    jaxformer train")]
    return [line for line in lines if "finetune/" in line and ":bert" in line]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.split()[2])
def test_the_documented_commands_resolve(command: str, pretrained: Path) -> None:
    spec, *keys = [word.removeprefix("--config") for word in command.split() if word.startswith("--config")]
    given = [key.removeprefix(".") for key in keys]
    assert any(key.startswith("init_from=runs/") for key in given)
    config = configs.load(spec.removeprefix("="), [*given, f"init_from={pretrained}", "task.sequence_length=64"])
    assert config.task.labelled and config.training.num_steps in (2000, 240)
