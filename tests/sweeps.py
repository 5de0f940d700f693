"""Studies for tests: over a tiny experiment, and with a make-believe training where only the search is looked at."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training import SIZES

from jaxformer.config import Config
from jaxformer.studies import Experiment, Settings, Study, open_study

RATE = "optimizer.learning_rate"


def overrides(corpus: Path, **changes: object) -> tuple[str, ...]:
    """The keys of a training of some seconds on one device, with an evaluation every ten steps."""
    keys: dict[str, object] = {f"model.{name}": size for name, size in SIZES.items()}
    keys |= {"tokenizer.vocab_size": 420, "objective.sequence_length": 24, "optimizer.warmup_steps": 5}
    keys |= {"data.name": "text", "data.path": corpus / "documents.txt", "sharding.data": 1, "checkpoint.every": 10}
    keys |= {"training.num_steps": 30, "training.batch_size": 8, "training.log_every": 5, "training.eval_every": 10}
    keys |= {"evaluation.max_examples": 16}
    return tuple(f"{key}={value}" for key, value in (keys | changes).items())


def opened(
    folder: Path, corpus: Path, space: Mapping[str, Any], storage: str = "", keys: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Study:  # fmt: skip
    made = Experiment("gpt:smoke", overrides(corpus, **(keys or {})))
    return open_study(folder, made, space, Settings(**settings), storage)


def make_believe(trained: list[str]) -> Callable[..., dict[str, float]]:
    """A training that takes no time: the loss follows from the rate and the seed, and falls from step to step."""

    def train(config: Config, workdir: Path, *, display: Any = None, judge: Any = None) -> dict[str, float]:
        trained.append(workdir.name)
        loss = abs(math.log10(config.optimizer.learning_rate) + 2) + config.seed / 100
        lines = []
        for step in range(10, config.training.num_steps + 1, 10):
            metrics = {"eval/loss": loss + 1 / step, "eval/accuracy": 1 / (1 + loss)}
            lines.append(json.dumps({"step": step, **metrics}))
            (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
            if step < config.training.num_steps and judge is not None and judge(step, metrics):
                break
        return metrics

    return train
