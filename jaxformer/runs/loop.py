"""Training, told from beginning to end: open the run, prepare what it reads, build what learns, find where it starts,
then step, log, evaluate and save."""

import contextlib
import signal
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import Config
from jaxformer.devices import agreed, meet
from jaxformer.errors import Interrupted
from jaxformer.evaluation import not_finite
from jaxformer.runs.data import prepare_data, training_batches
from jaxformer.runs.instruments import Instruments, watching
from jaxformer.runs.learner import Learner, build_learner
from jaxformer.runs.opened import Judge, OpenedRun, opened_run
from jaxformer.runs.patience import has_ended, patience_left, why_it_ended
from jaxformer.runs.progress import Display
from jaxformer.runs.start import start_state
from jaxformer.storage import store_errors
from jaxformer.tables import metrics_line
from jaxformer.training import TrainState


@store_errors()
def train(
    config: Config, workdir: Path, *, allow_config_change: bool = False, display: Display | None = None,
    profile: bool = False, judge: Judge | None = None,
) -> dict[str, float]:  # fmt: skip
    """Train to `training.num_steps` and return the last held-out metrics ("eval/…") and the last "train/loss".

    Precedence: resume the run's own workdir, else start from `init_from`, else start fresh. With `profile` a trace of a
    few steps is written into the run directory. `judge` is told the step and the metrics of every evaluation but the
    last, and where it says so the run ends there, without saving. Raises UserError for what the user can fix, and
    Interrupted, after saving, on SIGTERM or Ctrl-C.
    """
    opening = opened_run(
        config, workdir, allow_config_change=allow_config_change, display=display, profiles=profile, judge=judge
    )
    with opening as run:
        data = prepare_data(run)
        run.footprint.start()  # not before: TFDS, while it loads itself, patches the import of all threads
        learner = build_learner(run, data)
        state = start_state(run, learner)
        return loop(run, learner, state)


def loop(run: OpenedRun, learner: Learner, state: TrainState) -> dict[str, float]:
    """Step from `state` to the end of the run: log, evaluate and save when it is time. Returns what `train` does."""
    training, start = run.config.training, int(state.step)
    if start >= training.num_steps:
        run.display.note(f"nothing to do: {run.workdir} is at step {start}, training.num_steps is {training.num_steps}")
    batches = training_batches(run.config, learner.data.training, run.mesh, start)
    results: dict[str, float] = {}
    with watching(run, learner, start) as watch, contextlib.closing(batches):
        run.signals.steps = True
        if _owes_evaluation(run, watch, start):
            results = evaluate(run, learner, watch, state)
        last = start if has_ended(run, watch.log, start) else training.num_steps
        pending: Any = None  # metrics of the newest step, whose numbers are not read yet
        for step in range(start + 1, last + 1):
            run.lock.check()
            watch.before(step)
            with watch.meter.waiting_for_data():
                phase, batch = next(batches)
            state, metrics = learner.step(step, phase, state, batch, watch.meter.compiling(phase))
            if pending is not None:  # the device is already at the next step while this one's numbers are read
                watch.meter.read(step - 1, pending)
            pending = metrics
            watch.profiler.after(step, state)
            due = what_is_due(run.config, step, stop=run.signals.after_step())
            # A state is judged or saved only once its own loss is known to be finite. A CPU has taken the step by now.
            if (acts := due.evaluates or due.saves) or pending["loss"].is_ready():
                watch.meter.read(step, pending, always=acts)
                pending = None
            if not acts:
                continue
            if due.evaluates:
                results = evaluate(run, learner, watch, state)
                if step < last and run.ends_at(step, results):
                    run.display.note(f"step {step}: ended before {training.num_steps}, as its study has it")
                    break
                due = due.after(patience_left(run, watch.log), training.patience)
            if due.saves and (due.must_save or not watch.meter.consecutive_non_finite):
                save(run, watch, state, results if due.evaluates else {})
            if due.stop:
                stop(run, step, due.stop)
            if due.ends:
                run.display.note(f"step {step}: ended before {training.num_steps}: {why_it_ended(run, watch.log)}")
                break
        run.checkpoints.wait()
        meet()
        if start >= last:  # what the log says; only process 0 has all of it
            return watch.log.newest() | results
    return {"train/loss": watch.meter.loss, **results}


class Due(NamedTuple):
    """What is to be done after a step. `stop` is the signal that asks the run to stop, or 0."""

    evaluates: bool
    saves: bool
    must_save: bool  # also where the newest steps were not finite: they go on being counted where the run resumes
    stop: int
    ends: bool = False  # no evaluation has been better for `training.patience` of them

    def after(self, left: int, patience: int) -> "Due":
        """Return what is due after an evaluation that leaves so much of the patience: the best state so far is saved,
        and so is the last."""
        if not patience:
            return self
        ends = left == 0 and not self.must_save
        return self._replace(saves=self.saves or ends or left == patience, must_save=self.must_save or ends, ends=ends)


def what_is_due(config: Config, step: int, stop: int = 0) -> Due:
    """Return what is to be done after `step`: a run that is asked to stop saves and does nothing else."""
    must_save = step == config.training.num_steps or bool(stop)
    every = config.checkpoint.every
    saves = must_save or (every > 0 and step % every == 0)
    return Due(is_evaluated(config, step) and not stop, saves, must_save, stop)


def is_evaluated(config: Config, step: int) -> bool:
    """Say whether a run is evaluated after this step."""
    every = config.training.eval_every
    return step == config.training.num_steps or (every > 0 and step > 0 and step % every == 0)


def _owes_evaluation(run: OpenedRun, watch: Instruments, start: int) -> bool:
    """Say whether the state that a run starts from is to be evaluated: that of a finished run is, for whoever asks;
    else a stop may have left no time for it."""
    if start > run.config.training.num_steps or not is_evaluated(run.config, start):
        return False
    return start == run.config.training.num_steps or not agreed(watch.log.evaluated(start))


def evaluate(run: OpenedRun, learner: Learner, watch: Instruments, state: TrainState) -> dict[str, float]:
    """Judge a state on the held-out rows; log and show the metrics, and return them as "eval/…". What is not finite is
    said, and null in the log."""
    training, best = run.config.training, run.config.checkpoint.best_metric
    with watch.meter.paused():
        step = int(state.step)
        found = {f"eval/{name}": value for name, value in learner.judge(state).items()}
        if not found and learner.data.held_out:
            run.display.note(f"step {step}: the held-out rows predict nothing, so they give no loss; check their texts")
        if found and not watch.log.evaluated(step):
            watch.log.write(step, found)
            run.display.note(f"step {step}: {metrics_line(found)}")
        if odd := not_finite(found):
            run.display.note(
                f"step {step}: this evaluation is not finite ({', '.join(odd)}): the model gives no numbers for some "
                "held-out rows; a checkpoint of this step does not count as the best"
            )
        if training.patience and best not in found:
            given = ", ".join(found) or "nothing"
            run.display.note(f"step {step}: training.patience has no {best} to go by; this evaluation gives {given}")
    return found


def save(run: OpenedRun, watch: Instruments, state: TrainState, metrics: dict[str, float]) -> None:
    """Start to save a checkpoint; `metrics` are those of an evaluation of this very state. One that is not finite says
    nothing of the others either: no class is chosen by the scores of a model that gives none."""
    metrics = {} if not_finite(metrics) else metrics
    with watch.meter.saving():
        run.lock.confirm()
        run.checkpoints.save(int(state.step), state, metrics)
        run.footprint.flush()


def stop(run: OpenedRun, step: int, number: int) -> None:
    """Wait until what is saved is complete, on all processes, and raise Interrupted."""
    run.checkpoints.wait()
    meet()  # process 0 may still be hashing; on the way out JAX waits for it for some minutes only
    what = f"stopped by {signal.Signals(number).name} and saved {run.workdir} at step {step}"
    raise Interrupted(f"{what}; run the same command to go on", code=130 if number == signal.SIGINT else 75)
