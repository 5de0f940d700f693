"""A run that is open for training: what surrounds it from its first moment to its last, whatever happens."""

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxformer.checkpoint import Checkpoints, check_may_train
from jaxformer.config import Config
from jaxformer.devices import agreed, connect, is_first, make_mesh, prepare_process
from jaxformer.footprint import Footprint
from jaxformer.runs.paths import where_recorded
from jaxformer.runs.progress import Display
from jaxformer.runs.record import check_resumable
from jaxformer.runs.signals import Signals
from jaxformer.runs.staging import Staging, staged
from jaxformer.storage import is_run, read_record


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A run that trains in this process and its peers."""

    config: Config
    staging: Staging
    resumes: bool
    started: datetime.datetime
    display: Display  # quiet in all processes but the first
    signals: Signals
    mesh: Mesh  # of all devices of all processes
    checkpoints: Checkpoints
    footprint: Footprint
    profiles: bool  # whether a trace of a few steps is wanted
    allows_change: bool  # whether it may go on although its config, or what it reads, has changed

    @property
    def workdir(self) -> Path:
        """Where the run lies."""
        return self.staging.run

    @property
    def folder(self) -> Path:
        """Where its small files are read and written: the workdir, or for one on gs:// a folder on this machine."""
        return self.staging.folder


@contextlib.contextmanager
def opened_run(
    config: Config, workdir: Path, *, allow_config_change: bool = False, display: Display | None = None,
    profiles: bool = False,
) -> Iterator[OpenedRun]:  # fmt: skip
    """Open a run directory for training and close it in the end.

    Opening takes over the signals, connects the processes of the run, and fetches its small files where it lies on
    gs://; closing waits for the last checkpoint and copies the files back. Energy is charged from here on, and measured
    once `footprint.start()` is called. Raises UserError for a run that this config cannot resume, and for batches that
    do not divide among the devices.
    """
    started = datetime.datetime.now(datetime.UTC)
    check_may_train(workdir)
    resumes = is_run(workdir)
    if resumes:
        config = where_recorded(config, read_record(workdir)["config"])
        check_resumable(workdir, config, allow_config_change)
    prepare_process()
    with Signals() as signals, staged(workdir) as staging:  # signals first: before JAX has its own for SIGTERM
        connect()
        # What does not divide is refused before data is touched.
        mesh = make_mesh(config.sharding, config.batch_sizes)
        resumes = bool(agreed(resumes))
        if display is None or not is_first():
            display = Display(quiet=True)
        checkpoints = Checkpoints(staging.run / "checkpoints", config.checkpoint, before_finishing=staging.sync)
        footprint = Footprint(staging.folder, config.footprint, jax.process_index(), run=staging.run)
        finished = False
        try:
            yield OpenedRun(
                config, staging, resumes, started, display, signals, mesh, checkpoints, footprint, profiles,
                allow_config_change,
            )  # fmt: skip
            finished = True
        finally:
            try:
                if finished or jax.process_count() == 1:  # peers may be gone, and would be waited for
                    checkpoints.close()
            finally:
                footprint.stop()
