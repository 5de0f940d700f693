"""Phases: a batch that grows and rows that get longer, in order, by number, and after a stop."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training import logged, make_corpus, pretraining

import jaxformer
from jaxformer import config as configs
from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.training.phases import read_phases
from jaxformer.trees import flatten

BERT = ["training.num_steps=40", "optimizer.warmup_steps=2"]


def phases_of(phases: list[dict[str, Any]], spec: str = "bert:smoke", *more: str) -> Any:
    return configs.load(spec, [*BERT, f"training.phases={phases}", *more]).phases


def test_steps_and_examples_follow_each_other() -> None:
    short = {"sequence_length": 64, "max_predictions": 10}
    first, second, last = phases_of([{"steps": 10, "batch_size": 8}, {"steps": 5, "batch_size": 16, **short}])
    assert (first.first, first.last, first.first_example, first.batch_size) == (0, 10, 0, 8)
    assert (second.first, second.last, second.first_example, second.batch_size) == (10, 15, 80, 16)
    assert (last.first, last.last, last.first_example, last.batch_size) == (15, None, 160, 24)
    assert first.changes == last.changes == {} and second.changes == short
    assert second.example(12) == 112 and last.example(15) == 160


def test_a_phase_changes_the_objective_and_nothing_else() -> None:
    objective = configs.load("bert:smoke").objective
    (phase, _) = phases_of([{"steps": 3, "sequence_length": 64, "max_predictions": 10}])
    shapes = phase.of(objective).shapes
    assert shapes["inputs"][0] == (64,) and shapes["predict_positions"][0] == (10,)
    assert objective.shapes["inputs"][0] == (128,)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"batch_size": 8}, r"training.phases\[0\].steps: missing"),
        ({"steps": 0}, r"training.phases\[0\].steps: 0 must be at least 1"),
        ({"steps": 2, "batch_size": 1.5}, r"phases\[0\].batch_size: 1.5 is not a whole number"),
        ({"steps": 2, "sequence_lenght": 64}, r"sequence_lenght: no such key; did you mean 'sequence_length'"),
        ({"steps": 2, "sequence_length": "64"}, r"phases\[0\].sequence_length: '64' is not a whole number"),
        ({"steps": 2, "sequence_length": 4096}, r"model.max_length: 128 positions, but rows are 4096"),
        ({"steps": 2, "masking_rate": 7.0}, r"training.phases\[0\]: objective.masking_rate"),
        ({"steps": 2, "next_sentence": False}, r"phases\[0\]: a run has one loss, and next_sentence would change it"),
        ({"steps": 2, "label_smoothing": 0.1}, r"phases\[0\]: a run has one loss, and label_smoothing would change it"),
        ({"steps": 2, "batch_size": 9, "accumulation_steps": 2}, r"phases\[0\].batch_size: 9 is no multiple"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(phase: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        phases_of([phase])
    assert len(str(caught.value).splitlines()) == 1


def test_a_phase_of_a_task_must_keep_its_loss_too() -> None:
    with pytest.raises(UserError, match="language_model_weight would change it"):
        phases_of([{"steps": 3, "language_model_weight": 0.9}], "finetune/area:gpt,smoke")


def test_without_phases_there_is_one() -> None:
    (only,) = read_phases((), 8, 2, object(), "masked_lm")
    assert (only.first, only.last, only.batch_size, only.accumulation_steps) == (0, None, 8, 2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_a_run_resumes_in_any_phase(family: str, tmp_path: Path) -> None:
    """The ramp of GPT-3 and the two lengths of BERT, stopped inside each phase and where one ends."""
    corpus = make_corpus(tmp_path)
    phases = {
        "gpt": [{"steps": 4, "batch_size": 8}, {"steps": 3, "batch_size": 16, "accumulation_steps": 2}],
        "bert": [{"steps": 6, "sequence_length": 16, "max_predictions": 2}],
    }[family]
    keys = {"training.phases": phases, "training.batch_size": 24, "footprint.enabled": False, "checkpoint.keep_last": 0}
    keys |= {
        "model.num_layers": 1,
        "sharding.data": 1,
        "optimizer.schedule": "constant",
        "checkpoint.every": 1,
        "training.eval_every": 0,
    }

    def run(name: str, steps: int) -> Path:
        assert main(pretraining(family, corpus, tmp_path / name, **{**keys, "training.num_steps": steps})) == 0
        return tmp_path / name

    whole = run("whole", 10)
    for steps in (4, 6, 10):
        run("broken", steps)
    lines = [[line for line in logged(tmp_path / name) if "train/loss" in line] for name in ("whole", "broken")]
    assert lines[0] == lines[1] and len(lines[0]) == 10
    expected, found = (flatten(jaxformer.load(tmp_path / name).params) for name in ("whole", "broken"))
    assert all(np.array_equal(found[path], leaf) for path, leaf in expected.items())
    sizes = [line["train/tokens"] for line in lines[0]]
    steps_tokens = [after - before for before, after in itertools.pairwise([0, *sizes])]
    if family == "gpt":
        assert steps_tokens == [8 * 24] * 4 + [16 * 24] * 3 + [24 * 24] * 3
    else:
        assert max(steps_tokens[:6]) <= 24 * 16 < min(steps_tokens[6:])
    assert whole.exists()
