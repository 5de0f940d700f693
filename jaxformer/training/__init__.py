"""Pure functions below the config: from (state, batch, rng) to (state, metrics).

What lives here: the step (`step`) and the losses, distillation, optimizers and schedules that it is made of; phases of
a run (`phases`); the moving average of the parameters (`moving_average`); the compiled functions on a mesh
(`compiled`); how a model runs by platform and size (`execution`); FLOPs (`flops`).
What may come in: another optimizer, loss or way to teach.
What must not: files, run directories, displays."""

from jaxformer.training.compiled import (
    Steps,
    StepSettings,
    compiled_eval_step,
    compiled_steps,
    compiling,
    without_schedule,
)
from jaxformer.training.distillation import DistillationConfig
from jaxformer.training.execution import execution, layers_on
from jaxformer.training.flops import step_flops
from jaxformer.training.moving_average import beginning_with, parameters_of
from jaxformer.training.optimizers import OPTIMIZERS, freeze, make_optimizer, schedule
from jaxformer.training.phases import Phase, read_phases
from jaxformer.training.step import (
    COUNT,
    Losses,
    Metrics,
    Teaching,
    TrainingConfig,
    TrainState,
    init_state,
    losses_of,
    make_eval_step,
    make_train_step,
)

__all__ = [
    "COUNT",
    "DistillationConfig",
    "Losses",
    "Metrics",
    "OPTIMIZERS",
    "Phase",
    "StepSettings",
    "Steps",
    "Teaching",
    "TrainState",
    "TrainingConfig",
    "beginning_with",
    "compiled_eval_step",
    "compiled_steps",
    "compiling",
    "execution",
    "freeze",
    "init_state",
    "layers_on",
    "losses_of",
    "make_eval_step",
    "make_optimizer",
    "make_train_step",
    "parameters_of",
    "read_phases",
    "schedule",
    "step_flops",
    "without_schedule",
]
