"""When a run ends early: `training.patience` evaluations in a row were no better than the best before them.

What they gave is read from the log, which a resumed run cuts at the step that it goes on from: so it ends where an
unbroken one does, and once ended it stays so.
"""

from collections.abc import Sequence

from jaxformer.devices import agreed
from jaxformer.runs.log import MetricsLog
from jaxformer.runs.opened import OpenedRun
from jaxformer.tables import metric

History = Sequence[tuple[int, float | None]]


def since_best(history: History, mode: str) -> tuple[int, int, float | None]:
    """Return (how many evaluations, the newest, were no better than the best; its step; its value), given the (step,
    value) of all; None is not finite, and better than nothing. Of equal ones the earliest is the best."""
    since, step, best = 0, 0, None
    for number, value in history:
        if value is not None and (best is None or (value < best if mode == "min" else value > best)):
            since, step, best = 0, number, value
        else:
            since += 1
    return since, step, best


def patience_left(run: OpenedRun, log: MetricsLog) -> int:
    """Return how many more evaluations in a row may be no better: 0, the run ends; all of `training.patience`, the
    newest is the best. The same on all processes, of which the first alone has the log."""
    patience, settings = run.config.training.patience, run.config.checkpoint
    if not patience:
        return 0
    since, _, _ = since_best(log.history(settings.best_metric), settings.best_mode)
    return agreed(max(patience - since, 0))


def has_ended(run: OpenedRun, log: MetricsLog, step: int) -> bool:
    """Say whether the run that goes on from `step` has ended early there, and note it."""
    training = run.config.training
    if not training.patience or not 0 < step < training.num_steps or patience_left(run, log):
        return False
    run.display.note(f"nothing to do: {run.workdir} ended early at step {step}: {why_it_ended(run, log)}")
    return True


def why_it_ended(run: OpenedRun, log: MetricsLog) -> str:
    """Return what is to be said of a run that ends early."""
    name = run.config.checkpoint.best_metric
    since, step, best = since_best(log.history(name), run.config.checkpoint.best_mode)
    found = "none was finite" if best is None else f"the best, {metric(best)}, is of step {step}"
    return f"{since} evaluations in a row gave no better {name} ({found}); raise training.patience to go on"
