"""What the train loop watches: the numbers of each step, the signals that ask it to stop, and steps that get stuck."""

import bisect
import contextlib
import datetime
import faulthandler
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from jaxformer.config import Config
from jaxformer.errors import Interrupted, UserError
from jaxformer.flops import flops_per_example, peak
from jaxformer.models.model import Model
from jaxformer.processes import has_peers
from jaxformer.progress import Display
from jaxformer.run import MetricsLog, read_record


class Meter:
    """Reads each step's metrics, stops the run when too many in a row are not finite, logs and shows them with rates.

    `tokens`, `seconds` and `skipped` go on from where the log left off, so a resumed run counts like an unbroken one.
    """

    def __init__(
        self, config: Config, start: int, log: MetricsLog, display: Display, learning_rate: Callable[[int], float],
        flops: Callable[[int], float], num_devices: int = 1,
    ) -> None:  # fmt: skip
        self.training = config.training
        self.log, self.display, self.learning_rate, self.flops = log, display, learning_rate, flops
        self.loss = math.nan
        self.tokens, self.seconds = log.last("train/tokens"), log.last("train/seconds")
        self.skipped, self.in_a_row = int(log.last("train/skipped_steps")), 0
        device_peak = peak(jax.devices()[0].device_kind)
        self.peak = device_peak and device_peak * num_devices
        self.began = _began(log.path.parent) if log.writes else time.time()
        self.step, self.since = start, time.perf_counter()
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
        self._flops += self.flops(step)
        self.waited["data"] += self.data_waits.pop(0) if self.data_waits else 0.0
        self.loss = values["loss"]
        if math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"]):
            self.in_a_row = 0
        else:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            if self.in_a_row > self.training.skip_non_finite:
                self._stop(step, values)
            self.display.note(
                f"step {step}: the loss is {values['loss']} and the gradient norm {values['grad_norm']}; skipped "
                f"({self.in_a_row} in a row, {self.skipped} in all)"
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
        if self.skipped:
            values["skipped_steps"] = self.skipped
        if self.peak:
            values["mfu"] = self._flops / seconds / self.peak
        self._mark, self._flops = (step, self.tokens, self.seconds), 0.0
        self.waited = dict.fromkeys(self.waited, 0.0)
        # JSON knows no infinite numbers.
        self.log.write(step, {f"train/{name}": value for name, value in values.items() if math.isfinite(value)})
        brief = {"loss": values["loss"], "tok/s": rate} | ({"MFU": values["mfu"]} if self.peak else {})
        self.display.progress("training", step, self.training.num_steps, brief)

    def _stop(self, step: int, values: Mapping[str, float]) -> None:
        before = f" after {self.in_a_row - 1} skipped ones in a row" if self.in_a_row > 1 else ""
        raise UserError(
            f"step {step}: the loss is {values['loss']} and the gradient norm {values['grad_norm']}; stopped{before}, "
            f"and checkpoints before it are intact; lower optimizer.learning_rate, "
            "set optimizer.clip_norm, or let such steps change nothing with training.skip_non_finite"
        )


def _began(workdir: Path) -> float:
    """Return when the run was first started, in seconds of the epoch; goodput counts from there, stops included."""
    return datetime.datetime.fromisoformat(read_record(workdir)["created"]).timestamp()


def flops_per_row(model: Model, supervision: Any) -> float:
    """Return the FLOPs of forward and backward for one row of an objective or task."""
    config = model.config
    return flops_per_example(
        family=config.family,
        d_model=config.d_model,
        d_ff=config.d_ff,
        num_heads=config.num_heads,
        head_dim=config.head_dim,
        num_layers=config.num_layers,
        vocab_size=config.stored_vocab_size,
        gated=config.gated,
        transform=config.output_head == "transform",
        lengths={name: shape[0] for name, (shape, _) in supervision.shapes.items() if shape},
    )


def step_flops(config: Config, model: Model, supervision: Any, teacher: Model | None) -> Callable[[int], float]:
    """Return the FLOPs of a step as a function of its number; a teacher only runs forward."""
    ends = [phase.last or math.inf for phase in config.phases]
    costs = []
    for phase in config.phases:
        read = phase.of(supervision)
        per_row = flops_per_row(model, read) + (flops_per_row(teacher, read) / 3 if teacher is not None else 0.0)
        costs.append(phase.batch_size * per_row)
    return lambda step: costs[bisect.bisect_left(ends, step)]


class Signals:
    """SIGTERM and the first Ctrl-C are remembered until the step is done; the second Ctrl-C stops at once. Before the
    first step, while data are prepared, there is nothing to save and both stop at once.

    Of several processes JAX watches for SIGTERM, once they are connected, and lets all stop after the same step,
    whichever was told.
    """

    def __enter__(self) -> "Signals":
        self.received, self.steps = 0, False
        self._previous: dict[int, Any] = {}
        self._asked = 0
        # Where JAX watches for SIGTERM already, a handler of ours would take its place.
        numbers = (signal.SIGINT,) if jax.distributed.is_initialized() else (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the program around us owns the signals
                pass
        return self

    def after(self, step: int) -> int:
        """Return the signal after which all processes stop at this step, or 0. All must ask at every step."""
        self._asked += 1  # JAX agrees on a number that is yet to come, and begins to count at 1: in a resumed run, too
        if has_peers() and multihost_utils.reached_preemption_sync_point(self._asked):
            self.received = signal.SIGTERM
        return self.received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            os._exit(130)
        if number == signal.SIGINT and (has_peers() or not self.steps):
            raise KeyboardInterrupt  # of several processes, one cannot stop by itself
        if not self.steps:
            raise Interrupted("stopped by SIGTERM before the first step; run the same command to go on", code=75)
        self.received = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            if number == signal.SIGINT or not jax.distributed.is_initialized():
                signal.signal(number, handler)


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
