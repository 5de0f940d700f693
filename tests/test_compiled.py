"""From a config to live objects: what runs of one process share."""

import dataclasses
from typing import Any

from runs import LABELS, tokenizer_of

from jaxformer.config import Config, load
from jaxformer.devices.sharding import make_mesh
from jaxformer.runs.learner import step_settings
from jaxformer.runs.loading import bind, build_model
from jaxformer.training.compiled import compiled_steps
from jaxformer.training.step import losses_of

SMALL = ["model.vocab_size=300", "model.num_layers=1", "training.unroll_layers=1"]


def steps_of(config: Config) -> Any:
    supervision = bind(config, tokenizer_of("wordpiece"), LABELS)
    mesh = make_mesh(config.sharding, {"training.batch_size": 8})
    settings = step_settings(config, supervision, config.phases[-1])
    return compiled_steps(build_model(config, supervision), settings, mesh)


def test_runs_of_one_shape_share_their_compiled_steps() -> None:
    base = load("finetune/area:bert,smoke", SMALL)
    first = steps_of(base)
    for override in ("seed=3", "optimizer.learning_rate=1e-2", "optimizer.warmup_steps=7", "training.num_steps=99"):
        assert steps_of(load("finetune/area:bert,smoke", [*SMALL, override])) is first, override


def test_what_changes_a_step_is_compiled_anew() -> None:
    first = steps_of(load("finetune/area:bert,smoke", SMALL))
    for override in (
        "optimizer.weight_decay=0.5", "optimizer.clip_norm=0.5", "model.dropout=0.3", "task.head_dropout=0.3",
        "training.accumulation_steps=2", "training.trainable=row_heads/.*", "training.remat=full",
    ):  # fmt: skip
        assert steps_of(load("finetune/area:bert,smoke", [*SMALL, override])) is not first, override


def test_losses_compare_by_what_the_step_reads() -> None:
    config = load("finetune/area:bert,smoke", SMALL)
    one, other = (bind(config, tokenizer_of("wordpiece"), LABELS) for _ in range(2))
    assert losses_of(one) == losses_of(other) and hash(losses_of(one)) == hash(losses_of(other))
    assert losses_of(dataclasses.replace(one, head_dropout=0.4)) != losses_of(one)
    assert losses_of(bind(config, tokenizer_of("wordpiece"), LABELS[:2])) != losses_of(one)
