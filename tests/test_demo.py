"""The demonstration, at a size where it shows nothing but that it works."""

import dataclasses
from pathlib import Path

import pytest
from pages import visible_text
from sampling import sampled

from jaxformer import config as configs
from jaxformer.errors import UserError
from jaxformer.report import ARMS, read_transfer
from jaxformer.studies import demo

TINY = ("model.d_model=16", "model.d_ff=32", "model.num_heads=2", "model.head_dim=8", "model.num_layers=1")


def shrunk(recipe: demo.Recipe) -> demo.Recipe:
    return dataclasses.replace(
        recipe,
        pretraining_steps=70,  # beyond the warm-up
        model=(*recipe.model, *TINY),
        pretraining=(*recipe.pretraining, "training.batch_size=8", "evaluation.max_examples=8"),
        steps={20: 10, 40: 10},
        seeds=2,
    )


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}


@pytest.mark.parametrize("family", demo.RECIPES)
def test_the_configs_of_every_family_are_ones(family: str) -> None:
    recipe = demo.RECIPES[family]
    configs.load(f"{family}:smoke", [*recipe.model, *recipe.pretraining])
    asked = demo.comparison(family, recipe, Path("base"))
    config = configs.load(asked.config, asked.overrides)
    assert (config.optimizer.warmup_steps, config.optimizer.warmup_share) == (0, 0.1) and config.task.labelled
    assert max(asked.labels) == 800 and len(asked.steps) == len(asked.labels) and len(asked.rates) == 2


# `make demo`, of .ci/run, shows bert's at its real size.
@pytest.mark.parametrize("family", sampled(demo.RECIPES, path=lambda family: "a study"))
def test_both_arms_are_trained_judged_and_shown(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = shrunk(demo.RECIPES[family])
    monkeypatch.setitem(demo.RECIPES, family, recipe)
    demo.run_demo(family, tmp_path)
    shown = capsys.readouterr().out
    assert "From the checkpoint" in shown and "From scratch" in shown and "mWh" in shown
    study = read_transfer(tmp_path / family / "transfer")
    points = {(point["labels"], point["arm"]): point for point in study["points"]}
    assert points.keys() == {(labels, arm) for labels in recipe.steps for arm in ARMS}
    for point in points.values():
        assert len(point["seeds"]) == 2 and all(0 <= accuracy <= 1 for accuracy in point["seeds"])
        assert all(used > 0 for used in point["energy_wh"]) and point["learning_rate"] in recipe.rates
    assert study["pretraining"]["energy_wh"] > 0 and study["also"] == "eval/f1" and not study["unfinished"]
    text = visible_text(tmp_path / family / "transfer" / "report" / "report.html")
    assert "by number of labels and by energy" in text and "scratch, 40 labels, seed 2" in text
    kept = [path.parents[3].name for path in tmp_path.rglob("digest.json") if "trials" in path.parts]
    assert len(kept) == 2 * recipe.seeds, "of each arm the best point keeps its checkpoints"

    before = times(tmp_path)
    assert len(before) == 1 + 4 + 2 * 2 * 2
    demo.run_demo(family, tmp_path)
    assert times(tmp_path) == before, "a second demonstration trains nothing anew"

    monkeypatch.setitem(demo.RECIPES, family, dataclasses.replace(recipe, fine_tuning=(*recipe.fine_tuning, "seed=7")))
    with pytest.raises(UserError, match=r"another transfer \(.*config seed: 0 -> 7"):
        demo.run_demo(family, tmp_path)
