"""A run's own checkpoints: asynchronous saves, the last few and the best kept, damaged ones set aside."""

import dataclasses
import shutil
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxformer.checkpoint.digest import (
    DIGEST,
    array_paths,
    best_step,
    find_damage,
    finished_steps,
    step_folders,
    write_digest,
)
from jaxformer.checkpoint.reading import restore
from jaxformer.errors import UserError, disk_errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, what to keep, and which parameters a fine-tuning takes over (patterns, see `parameters.match`)."""

    every: int = 0  # steps between saves; 0: at the end only
    keep_last: int = 2
    keep_best: bool = True
    best_metric: str = "eval/loss"
    best_mode: str = "min"
    init_skip: tuple[str, ...] = ()  # in the checkpoint of `init_from`, not in this model
    init_new: tuple[str, ...] = ()  # in this model, not in that checkpoint: freshly initialised

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"checkpoint.every: {self.every} must be 0 (at the end only) or more")
        if self.keep_last < 1:
            raise UserError(f"checkpoint.keep_last: {self.keep_last} must be at least 1")
        if self.best_mode not in ("min", "max"):
            raise UserError(f"checkpoint.best_mode: '{self.best_mode}' is not one of min, max")


class Checkpoints:
    """The checkpoints of one run, in `directory`/STEP. What fails in the background is raised by the next call."""

    def __init__(self, directory: Path, config: CheckpointConfig) -> None:
        self.directory, self.config = directory.absolute(), config
        with disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        self._saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False))
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Copy the state out of the devices and write it in the background; it may be donated right after.

        Raises UserError when this or the save before cannot be written; checkpoints that are there stay.
        """
        self.wait()
        arrays = {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in array_paths(state).items()}
        folder = self.directory / str(step)
        with disk_errors(folder):
            if folder.exists():
                shutil.rmtree(folder)  # only ever the unfinished remains of this very step
            self._saver.save(folder, args=ocp.args.PyTreeSave(state))

        def finish() -> None:
            try:
                self._saver.wait_until_finished()
                if jax.process_index() == 0:
                    # The digest comes last: a folder without it is an unfinished save.
                    write_digest(folder, step, arrays, dict(metrics or {}))
                    self._prune()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=finish, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the newest save is on disk. Raises UserError when it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            _raise_as_disk_error(error, self.directory)

    def close(self) -> None:
        """Let go of the writer's threads; an error of the last save is not raised here (see `wait`)."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._saver.close()

    def restore_latest(self, target: Any) -> tuple[int, Any] | None:
        """Return (step, state) of the newest good checkpoint, None when none was ever finished.

        Damaged and unfinished ones on the way are renamed with a warning. Raises UserError when there are damaged ones
        only: never a silent fresh start.
        """
        damaged = []
        for step in reversed(step_folders(self.directory)):
            folder = self.directory / str(step)
            damage = find_damage(folder)
            if damage is None:
                return step, restore(folder, target)
            unfinished = not (folder / DIGEST).exists()
            aside = _set_aside(folder, "unfinished" if unfinished else "damaged")
            warnings.warn(
                f"checkpoint {folder} is {'an unfinished save' if unfinished else f'damaged ({damage})'}; set aside as "
                f"{aside.name}",
                stacklevel=2,
            )
            if not unfinished:
                damaged.append(step)
        if damaged or any(self.directory.glob("*.damaged-*")):
            raise UserError(
                f"{self.directory}: every checkpoint is damaged; restore one from a backup, or start anew with another "
                "--workdir"
            )
        return None

    def _prune(self) -> None:
        finished = finished_steps(self.directory)
        kept = set(finished[-self.config.keep_last :])
        if self.config.keep_best:
            kept.add(best_step(self.directory, self.config.best_metric, self.config.best_mode) or finished[-1])
        for step in set(finished) - kept:
            # The digest goes first, so that a kill in between leaves an unfinished folder, not a damaged one.
            (self.directory / str(step) / DIGEST).unlink()
            shutil.rmtree(self.directory / str(step))


def _set_aside(folder: Path, what: str) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{what}-{number}")).exists():
        number += 1
    with disk_errors(folder):
        folder.rename(aside)
    return aside


def _raise_as_disk_error(error: BaseException, path: Path) -> None:
    """Raise a save's error, as UserError where the disk is to blame: tensorstore hides the cause in its message."""
    with disk_errors(path):
        if isinstance(error, OSError):
            raise error
        for words in ("No space left", "RESOURCE_EXHAUSTED", "File too large", "Disk quota", "Permission denied"):
            if words in str(error):
                raise UserError(
                    f"cannot write the checkpoint in {path}: {words}; free space or choose another --workdir "
                    "(checkpoints that were finished are intact)"
                ) from error
        raise error
