"""What the train loop watches: the numbers of each step, steps that get stuck, and where their time goes."""

import contextlib
import datetime
import faulthandler
import math
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxformer.errors import UserError
from jaxformer.footprint import peak
from jaxformer.runs.learner import Learner
from jaxformer.runs.log import MetricsLog
from jaxformer.runs.progress import Display
from jaxformer.storage import read_record
from jaxformer.training import COUNT, Phase


class Meter:
    """Reads each step's metrics, stops the run when too many in a row are not finite, logs and shows them with rates.

    `tokens`, `seconds` and `skipped` go on from where the log left off, so a resumed run counts like an unbroken one.
    """

    def __init__(self, learner: Learner, start: int, log: MetricsLog, display: Display) -> None:
        self.training = learner.config.training
        self.log, self.display, self.learning_rate, self.flops = log, display, learner.learning_rate, learner.flops
        self.loss = math.nan
        self.tokens, self.seconds = log.last("train/tokens"), log.last("train/seconds")
        self.skipped, self.consecutive_non_finite = int(log.last("train/skipped_steps")), 0
        self.empty = int(log.last("train/batches_without_predictions"))
        device_peak = peak(jax.devices()[0].device_kind)
        self.peak = device_peak and device_peak * learner.mesh.size
        self.began = _began(log.path.parent) if log.writes else time.time()
        self.step, self.since = start, time.perf_counter()
        self.phase: Phase | None = None
        self.data_waits: list[float] = []  # of the steps that are not read yet
        self.waited = dict.fromkeys(("data", "checkpoint"), 0.0)
        self._mark = (start, self.tokens, self.seconds)
        self._flops = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave evaluation and saving out of the training time."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def compiling(self, phase: Phase) -> contextlib.AbstractContextManager[None] | None:
        """Return what leaves the compilation of a phase's step out of the training time; None where that is done."""
        compiles, self.phase = phase is not self.phase, phase
        return self.paused() if compiles else None

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.data_waits.append(time.perf_counter() - began)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Leave a save out of the training time, and count how long training waits for it."""
        began = time.perf_counter()
        with self.paused():
            yield
        self.waited["checkpoint"] += time.perf_counter() - began

    def read(self, step: int, metrics: Mapping[str, jax.Array], always: bool = False) -> None:
        """Take the metrics of `step` and log them when it is their turn.

        Raises UserError when the loss or the gradient is not finite and no more such steps may be skipped.
        """
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now
        self.tokens += values.pop("tokens")
        empty = self._without_predictions(step, values)
        self._flops += self.flops(step)
        self.waited["data"] += self.data_waits.pop(0) if self.data_waits else 0.0
        if not empty:
            self.loss = values["loss"]
        if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
            self.consecutive_non_finite = 0
        else:
            self.skipped, self.consecutive_non_finite = self.skipped + 1, self.consecutive_non_finite + 1
            if self.consecutive_non_finite > self.training.skip_non_finite:
                self._stop(step, values)
            self.display.note(
                f"step {step}: the loss is {values['loss']} and the gradient norm {values['grad_norm']}; skipped "
                f"({self.consecutive_non_finite} in a row, {self.skipped} in all)"
            )
        if not always and step % self.training.log_every:
            return
        done, before_tokens, before_seconds = self._mark
        seconds = max(self.seconds - before_seconds, 1e-9)
        rate, steps = (self.tokens - before_tokens) / seconds, max(step - done, 1)
        values |= {
            "learning_rate": self.learning_rate(step - 1),
            "tokens": self.tokens,
            "tokens_per_second": rate,
            "step_seconds": seconds / steps,
            "seconds": self.seconds,
            "data_wait_seconds": self.waited["data"] / steps,
            "checkpoint_wait_seconds": self.waited["checkpoint"],
            "goodput": min(self.seconds / max(time.time() - self.began, 1e-9), 1.0),
        }
        if self.empty:
            values["batches_without_predictions"] = self.empty
        if self.skipped:
            values["skipped_steps"] = self.skipped
        if self.peak:
            values["mfu"] = self._flops / seconds / self.peak
        self._mark, self._flops = (step, self.tokens, self.seconds), 0.0
        self.waited = dict.fromkeys(self.waited, 0.0)
        # JSON knows no infinite numbers.
        logged = {name: value for name, value in values.items() if math.isfinite(value) and name not in empty}
        self.log.write(step, {f"train/{name}": value for name, value in logged.items()})
        brief = {"loss": self.loss, "tok/s": rate} | ({"MFU": values["mfu"]} if self.peak else {})
        self.display.progress("training", step, self.training.num_steps, brief)

    def _without_predictions(self, step: int, values: dict[str, float]) -> set[str]:
        """Take the counts out of a step's values and return the losses that mean nothing, of groups that have none."""
        counts = {name: values.pop(name) for name in list(values) if name.startswith(COUNT)}
        groups = [name.removeprefix(COUNT) for name, count in counts.items() if count == 0]
        if not groups:
            return set()
        if not self.empty:
            self.display.note(
                f"step {step}: the batch predicts nothing ({', '.join(groups)}), and no loss of it is logged; "
                "are its texts empty, or all unknown to the tokenizer? Further ones are counted in the log as "
                "train/batches_without_predictions"
            )
        self.empty += 1
        return {"loss", *(f"{name}_loss" for name in groups)}

    def _stop(self, step: int, values: Mapping[str, float]) -> None:
        before = (
            f" after {self.consecutive_non_finite - 1} skipped ones in a row" if self.consecutive_non_finite > 1 else ""
        )
        raise UserError(
            f"step {step}: the loss is {values['loss']} and the gradient norm {values['grad_norm']}; stopped{before}, "
            f"and checkpoints before it are intact; lower optimizer.learning_rate, "
            "set optimizer.clip_norm, or let such steps change nothing with training.skip_non_finite"
        )


def _began(workdir: Path) -> float:
    """Return when the run was first started, in seconds of the epoch; goodput counts from there, stops included."""
    return datetime.datetime.fromisoformat(read_record(workdir)["created"]).timestamp()


class Watchdog:
    """Reports, once, a step that takes longer than `seconds` (0: never), with the stack of every thread in a file."""

    def __init__(self, seconds: float, workdir: Path, display: Display) -> None:
        self.seconds, self.display = seconds, display
        self.path = workdir / f"stuck-{jax.process_index()}.txt"
        self._watched, self._closed = (0, time.monotonic()), threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def watch(self, step: int) -> None:
        """Start counting for `step`; the one before it is done."""
        self._watched = (step, time.monotonic())

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        reported = None
        while not self._closed.wait(min(self.seconds / 4, 5.0)):
            step, since = self._watched
            if step != reported and time.monotonic() - since > self.seconds:
                reported = step
                self._report(step)

    def _report(self, step: int) -> None:
        what = f"step {step} is not done after {self.seconds:g} seconds (compiling, evaluating and saving count)"
        with contextlib.suppress(OSError), self.path.open("a") as file:
            print(f"{datetime.datetime.now().isoformat(timespec='seconds')}: {what}", file=file, flush=True)
            faulthandler.dump_traceback(file, all_threads=True)
        self.display.note(f"{what}; where every thread stands: {self.path}; training.stuck_seconds says when to report")


class Profiler:
    """Writes a trace of a few steps, once compilation is over, for the profiler's viewer; None: nothing."""

    SKIPPED, STEPS = 3, 5

    def __init__(self, folder: Path | None, start: int, display: Display, run: Path | None = None) -> None:
        self.folder, self.display = folder, display
        self.shown = folder and (run or folder.parent) / folder.name  # where it ends up
        self.first = start + 1 + self.SKIPPED
        self.last = self.first + self.STEPS - 1
        self._runs = False

    def before(self, step: int) -> None:
        if self.folder is not None and step == self.first:
            jax.profiler.start_trace(str(self.folder))
            self._runs = True

    def after(self, step: int, state: Any) -> None:
        if self._runs and step == self.last:
            jax.block_until_ready(state)
            self._stop(self.STEPS)

    def close(self) -> None:
        if self._runs:
            self._stop(0)
        elif self.folder is not None and not self.folder.exists():
            self.display.note(f"no profile: the run ended before step {self.first}, where it would have begun")

    def _stop(self, steps: int) -> None:
        self._runs = False
        jax.profiler.stop_trace()
        what = f"a profile of {steps} steps" if steps else "a profile of the last steps"
        self.display.note(
            f"{what} is in {self.shown}; see it with `pip install xprof` and `xprof --logdir={self.shown}`"
        )
