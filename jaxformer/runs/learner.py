"""What learns in a run: the model, who teaches it, the mesh that they live on, and the compiled functions."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxformer.config import Config
from jaxformer.devices import activations_mesh, has_peers, place
from jaxformer.models import Model, attentions_in_words, chosen_attentions, count_parameters
from jaxformer.objectives import Supervision
from jaxformer.runs.data import Data, check_batch
from jaxformer.runs.judging import judge
from jaxformer.runs.loading import build_model
from jaxformer.runs.opened import OpenedRun
from jaxformer.runs.teacher import Teacher, open_teacher
from jaxformer.training import (
    Metrics,
    Phase,
    Steps,
    StepSettings,
    Teaching,
    TrainState,
    compiled_steps,
    compiling,
    losses_of,
    parameters_of,
    schedule,
    step_flops,
    without_schedule,
)


@dataclasses.dataclass(frozen=True)
class Learner:
    """What learns. `rngs` are those of the run: for fresh parameters, and for dropout."""

    config: Config
    data: Data
    model: Model
    mesh: Mesh
    teacher: Teacher | None
    rngs: tuple[jax.Array, jax.Array]
    _compiled: dict[int, Steps] = dataclasses.field(default_factory=dict)

    def steps(self, phase: Phase) -> Steps:
        """Return the compiled functions of a phase of the run."""
        if phase.first not in self._compiled:
            taught = self.teacher and self.teacher.teaching
            settings = step_settings(self.config, self.data.supervision, phase, taught)
            self._compiled[phase.first] = compiled_steps(self.model, settings, self.mesh)
        return self._compiled[phase.first]

    @property
    def last(self) -> Steps:
        """The compiled functions of the last phase; how a state is made and judged is the same in all."""
        return self.steps(self.config.phases[-1])

    @functools.cached_property
    def learning_rate(self) -> Callable[[int], float]:
        """The learning rate as a function of the number of updates done."""
        return schedule(self.config.optimizer, self.config.training.num_steps)

    @functools.cached_property
    def flops(self) -> Callable[[int], float]:
        """The FLOPs of a step as a function of its number."""
        taught = self.teacher and self.teacher.teaching.model
        return step_flops(self.config.phases, self.model, self.data.supervision, taught)

    @functools.cached_property
    def num_parameters(self) -> int:
        return count_parameters(self.model)

    def step(
        self, number: int, phase: Phase, state: TrainState, batch: Mapping[str, np.ndarray],
        compiling: contextlib.AbstractContextManager[None] | None = None,
    ) -> tuple[TrainState, Metrics]:  # fmt: skip
        """Take step `number` on this process's rows of its batch; an accelerator goes on after the return. The old
        state is used up. The first step of a phase compiles within `compiling` (under pmap it runs there, too)."""
        check_batch(batch, self.config.model, self.data.supervision)
        rate, taught = self.learning_rate(number - 1), () if self.teacher is None else (self.teacher.params,)
        step, arguments = self.steps(phase).train_step, (state, place(self.mesh, batch), self.rngs[1], rate, *taught)
        if compiling is not None:
            with compiling:
                if self.config.sharding.strategy == "pmap":
                    return step(*arguments)
                step.lower(*arguments).compile()
        return step(*arguments)

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Compile the first step of a fresh run beside what is done meanwhile. Where there are peers nothing is: they
        would have to compile in one order."""
        if self.config.sharding.strategy == "pmap" or has_peers():
            yield
            return
        phase, taught = self.config.phases[0], () if self.teacher is None else (self.teacher.params,)
        made: Any = self.data.training[0][0].transform  # an objective or a task
        batch = {name: ((phase.batch_size, *shape), dtype) for name, (shape, dtype) in made.shapes.items()}
        thread = compiling(self.steps(phase), self.mesh, batch, self.rngs[1], *taught)
        try:
            yield
        finally:
            thread.join()

    def judge(self, state: TrainState) -> dict[str, float]:
        """Return the metrics of a state's parameters, or of their moving average where that is what is judged, on the
        held-out rows; none where there are no such rows."""
        params = parameters_of(state, self.config.evaluation.parameters)
        return judge(self.config, self.data, self.model, self.last.eval_step, params, self.mesh)


def build_learner(run: OpenedRun, data: Data) -> Learner:
    """Return what learns in a run. Parameters are made, or read, by `start_state`; a teacher's are read here."""
    config, mesh = run.config, run.mesh
    model = build_model(config, data.supervision, activations_mesh(config.sharding, mesh))
    teacher = open_teacher(config, data.teacher, mesh)
    learner = Learner(config, data, model, mesh, teacher, _rngs(np.int64(config.seed)))
    devices = f"{mesh.size} {jax.devices()[0].device_kind} device{'s' * (mesh.size > 1)}"
    run.display.note(f"{config.name}: {learner.num_parameters:,} parameters on {devices}")
    for line in dict.fromkeys(line for shapes in config.shapes for line in _attentions(model, shapes)):
        run.display.note(line)
    return learner


def _attentions(model: Model, shapes: Mapping[str, Any]) -> list[str]:
    """Return which attention runs on batches of these shapes, and why none that is preferred. Raises UserError for one
    that is named and cannot run here."""
    return attentions_in_words(chosen_attentions(model.config, model.execution, shapes))


@jax.jit  # one program, where each of these operations would be one
def _rngs(seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the random numbers for fresh parameters, and those for dropout."""
    init_rng, dropout_rng = jax.random.split(jax.random.key(seed))
    return init_rng, dropout_rng


def step_settings(
    config: Config, supervision: Supervision, phase: Phase, teaching: Teaching | None = None
) -> StepSettings:
    """Return what decides the compiled step of a phase of a run."""
    return StepSettings(
        losses=losses_of(supervision),
        optimizer=without_schedule(config.optimizer),
        trainable=config.training.trainable,
        accumulation_steps=phase.accumulation_steps,
        strategy=config.sharding.strategy,
        skips=config.training.skip_non_finite > 0,
        ema_decay=config.training.ema_decay,
        teaching=teaching,
    )
