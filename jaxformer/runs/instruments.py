"""What watches a run while it trains, in one context: its log, the meter of its steps, the watchdog, the profiler."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from jaxformer.devices import is_first
from jaxformer.runs.learner import Learner
from jaxformer.runs.log import MetricsLog
from jaxformer.runs.monitor import Meter, Profiler, Watchdog
from jaxformer.runs.opened import OpenedRun
from jaxformer.runs.progress import Display


class Instruments(NamedTuple):
    """What watches a run."""

    log: MetricsLog
    meter: Meter
    watchdog: Watchdog
    profiler: Profiler

    def before(self, step: int) -> None:
        """Take note that `step` begins."""
        self.watchdog.watch(step)
        self.profiler.before(step)


@contextlib.contextmanager
def watching(run: OpenedRun, learner: Learner, start: int) -> Iterator[Instruments]:
    """Give what watches a run from step `start` on, and close it in the end."""
    first, folder = is_first(), run.folder
    log = MetricsLog(folder, start, writes=first)
    meter = Meter(learner, start, log, run.display)
    watchdog = Watchdog(run.config.training.stuck_seconds, folder, run.display if first else Display())
    trace = folder / "profile" if run.profiles and first else None
    profiler = Profiler(trace, start, run.display, run.workdir)
    try:
        yield Instruments(log, meter, watchdog, profiler)
    finally:
        for part in (log, watchdog, profiler):
            part.close()
