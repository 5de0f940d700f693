"""Trainings of tiny models on a handful of a task's examples, without a run around them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tiny import CONFIGS, head_shapes

from jaxformer.evaluation.held_out import evaluate
from jaxformer.models.model import Model
from jaxformer.training.step import init_state, losses_of, make_eval_step, make_train_step

Rows = Sequence[dict[str, Any]]


class Overfitting:
    """A tiny model of a system ("bert", "t5", …; see tiny.py), compiled once for a bound task."""

    def __init__(self, task: Any, system: str, tokenizer: Any, steps: int = 200, learning_rate: float = 3e-3) -> None:
        config = dataclasses.replace(CONFIGS[system], vocab_size=tokenizer.vocab_size, num_layers=1)
        self.task, self.tokenizer = task, tokenizer
        self.model = Model(config, heads=head_shapes(task.heads), predicts_tokens=task.predicts_tokens)
        losses, optimizer = losses_of(task), optax.adam(learning_rate)
        step = make_train_step(self.model, losses, optimizer)
        self.eval_step = jax.jit(make_eval_step(self.model, losses))

        @jax.jit
        def train(batch: Any) -> Any:
            state = init_state(self.model, optimizer, jax.random.key(0))
            one = lambda state, _: (step(state, batch, jax.random.key(1), 0.0)[0], None)  # noqa: E731
            return jax.lax.scan(one, state, None, length=steps)[0].params

        self._train = train

    def batch(self, rows: Rows) -> dict[str, Any]:
        arrays = [self.task(row, np.random.default_rng(0)) for row in rows]
        return {name: jnp.asarray(np.stack([one[name] for one in arrays])) for name in arrays[0]}

    def train(self, rows: Rows) -> Any:
        """The parameters after the training."""
        return self._train(self.batch(rows))

    def judge(self, params: Any, rows: Rows) -> dict[str, float]:
        """The metrics on rows."""
        return evaluate(
            self.model, self.task, self.eval_step, params, [self.batch(rows)], place=lambda batch: batch,
            tokenizer=self.tokenizer, rows=rows,
        ).metrics  # fmt: skip
