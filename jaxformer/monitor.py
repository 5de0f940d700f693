"""What the train loop watches: the numbers of each step, and the signals that ask it to stop."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax

from jaxformer.config import Config
from jaxformer.errors import UserError
from jaxformer.flops import flops_per_example, peak
from jaxformer.models.model import Model
from jaxformer.progress import Display
from jaxformer.run import MetricsLog


class Meter:
    """Reads each step's metrics, stops the run when they are not finite, and logs and shows them with rates.

    `tokens` and `seconds` go on from where the log left off, so a resumed run counts like an unbroken one.
    """

    def __init__(
        self, config: Config, model: Model, supervision: Any, start: int, log: MetricsLog, display: Display,
        learning_rate: Callable[[int], float], teacher: Model | None = None,
    ) -> None:  # fmt: skip
        self.training, self.workdir = config.training, log.path.parent
        self.log, self.display, self.learning_rate = log, display, learning_rate
        self.loss = math.nan
        self.tokens, self.seconds = log.last("train/tokens"), log.last("train/seconds")
        lengths = {name: shape[0] for name, (shape, _) in supervision.shapes.items() if shape}
        per_example = _flops(model, lengths)
        if teacher is not None:  # which only runs forward
            per_example += _flops(teacher, lengths) / 3
        self.flops = self.training.batch_size * per_example
        device_peak = peak(jax.devices()[0].device_kind)
        self.peak = device_peak and device_peak * jax.device_count()
        self.step, self.since = start, time.perf_counter()
        self._mark = (start, self.tokens, self.seconds)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave evaluation and saving out of the training time."""
        began = time.perf_counter()
        yield
        self.since += time.perf_counter() - began

    def read(self, step: int, metrics: Mapping[str, jax.Array], always: bool = False) -> None:
        """Take the metrics of `step` and log them when it is their turn.

        Raises UserError when the loss or the gradient is not finite.
        """
        values = {name: float(value) for name, value in metrics.items()}
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now
        self.tokens += values.pop("tokens")
        self.loss = values["loss"]
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise UserError(
                f"step {step}: the loss is {values['loss']} and the gradient norm {values['grad_norm']}; stopped, and "
                f"checkpoints before it are intact in {self.workdir / 'checkpoints'}; lower optimizer.learning_rate or "
                "set optimizer.clip_norm"
            )
        if not always and step % self.training.log_every:
            return
        done, before_tokens, before_seconds = self._mark
        seconds = max(self.seconds - before_seconds, 1e-9)
        rate, step_seconds = (self.tokens - before_tokens) / seconds, seconds / max(step - done, 1)
        self._mark = (step, self.tokens, self.seconds)
        values |= {
            "learning_rate": self.learning_rate(step - 1),
            "tokens": self.tokens,
            "tokens_per_second": rate,
            "step_seconds": step_seconds,
            "seconds": self.seconds,
        }
        if self.peak:
            values["mfu"] = self.flops / step_seconds / self.peak
        self.log.write(step, {f"train/{name}": value for name, value in values.items()})
        brief = {"loss": values["loss"], "tok/s": rate} | ({"MFU": values["mfu"]} if self.peak else {})
        self.display.progress("training", step, self.training.num_steps, brief)


def _flops(model: Model, lengths: Mapping[str, int]) -> float:
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
        lengths=lengths,
    )


class Signals:
    """SIGTERM and the first Ctrl-C are remembered until the step is done; the second Ctrl-C stops at once."""

    def __enter__(self) -> "Signals":
        self.received = 0
        self._previous: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: the program around us owns the signals
                pass
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            os._exit(130)
        self.received = number

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
