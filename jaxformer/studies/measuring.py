"""How fast models answer: seconds of a forward pass of a single row, as the papers on small models tell it."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxformer.config import Config
from jaxformer.runs import build_model

ROUNDS = 30


def forward_seconds(configs: Mapping[str, Config], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median seconds of a compiled forward pass of one full row, for every model, taken in turn so that what
    else the machine does meets all of them alike. The parameters are random: they do not change how long it takes."""
    passes = {name: _forward(config) for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _forward(config: Config) -> Callable[[], None]:
    """Return what runs a model once on a full row, after compiling it."""
    model = build_model(config, config.supervision)
    params = jax.jit(model.init)(jax.random.key(0))
    # Every row is as long as it may be, and all of one segment.
    batch = {
        name: np.full((1, *shape), 1 if name.endswith("segment_ids") else 0, dtype)
        for name, (shape, dtype) in config.supervision.shapes.items()
    }
    forward = jax.jit(lambda params: model.apply(params, batch))

    def run() -> None:
        jax.block_until_ready(forward(params))

    run()
    return run
