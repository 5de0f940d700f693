"""A run that is open for training: what surrounds it from its first moment to its last, whatever happens."""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxformer.checkpoint import Checkpoints, check_may_train
from jaxformer.config import Config
from jaxformer.devices import agreed, connect, is_first, make_mesh, prepare_process
from jaxformer.footprint import Footprint, read_emissions
from jaxformer.runs.lock import Lock, held_by_first
from jaxformer.runs.paths import where_recorded
from jaxformer.runs.progress import Display
from jaxformer.runs.record import check_resumable
from jaxformer.runs.signals import Signals
from jaxformer.runs.staging import Staging, staged
from jaxformer.storage import is_run, location, read_record

# What is told the step and the metrics of every evaluation, in the first process, and says whether the run ends there.
Judge = Callable[[int, Mapping[str, float]], bool]


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A run that trains in this process and its peers."""

    config: Config
    staging: Staging
    resumes: bool
    started: datetime.datetime
    display: Display  # quiet in all processes but the first
    lock: Lock  # held by the first process
    signals: Signals
    mesh: Mesh  # of all devices of all processes
    checkpoints: Checkpoints
    footprint: Footprint
    profiles: bool  # whether a trace of a few steps is wanted
    allows_change: bool  # whether it may go on although its config, or what it reads, has changed
    judge: Judge | None = None

    @property
    def workdir(self) -> Path:
        """Where the run lies."""
        return self.staging.run

    @property
    def folder(self) -> Path:
        """Where its small files are read and written: the workdir, or for one on gs:// a folder on this machine."""
        return self.staging.folder

    def ends_at(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Say whether who judges the evaluations lets the run end here; all processes ask alike."""
        if self.judge is None:
            return False
        return bool(agreed(is_first() and self.judge(step, metrics)))


@contextlib.contextmanager
def opened_run(
    config: Config, workdir: Path, *, allow_config_change: bool = False, display: Display | None = None,
    profiles: bool = False, judge: Judge | None = None,
) -> Iterator[OpenedRun]:  # fmt: skip
    """Open a run directory for training and close it in the end.

    Opening takes over the signals, connects the processes of the run, locks it, and fetches its small files where it
    lies on gs://; closing waits for the last checkpoint, copies the files back and unlocks. Energy is charged from here
    on, and measured once `footprint.start()` is called. Raises UserError for a run that this config cannot resume, for
    one in which another process trains, and for batches that do not divide among the devices.
    """
    started = datetime.datetime.now(datetime.UTC)
    config = _resumable(config, workdir, allow_config_change)  # refused before the processes find each other
    prepare_process()
    with Signals() as signals, contextlib.ExitStack() as held:  # signals first: before JAX has its own for SIGTERM
        connect()
        # What does not divide is refused before data is touched.
        mesh = make_mesh(config.sharding, config.batch_sizes)
        if display is None or not is_first():
            display = Display(quiet=True)
        lock = held.enter_context(held_by_first(location(workdir), display))
        config = _resumable(config, workdir, allow_config_change)  # the lock's last holder may have made it
        staging = held.enter_context(staged(workdir, lock.confirm))
        resumes = bool(agreed(is_run(workdir)))
        checkpoints = Checkpoints(staging.run / "checkpoints", config.checkpoint, before_finishing=staging.sync)
        footprint = Footprint(staging.folder, config.footprint, jax.process_index(), run=staging.run)
        finished = False
        try:
            yield OpenedRun(
                config, staging, resumes, started, display, lock, signals, mesh, checkpoints, footprint, profiles,
                allow_config_change, judge,
            )  # fmt: skip
            finished = True
        finally:
            try:
                if finished or jax.process_count() == 1:  # peers may be gone, and would be waited for
                    checkpoints.close()
            finally:
                footprint.stop()
        if is_first() and (cost := read_emissions(staging.folder)).segments:
            display.note(f"energy: {cost}")


def _resumable(config: Config, workdir: Path, allow_change: bool) -> Config:
    """Return the config with which a run goes on, where there is one. Raises UserError for one that it cannot."""
    check_may_train(workdir)
    if is_run(workdir):
        config = where_recorded(config, read_record(workdir)["config"])
        check_resumable(workdir, config, allow_change)
    return config
