"""A run's own checkpoints: asynchronous saves, which ones are kept, and the restore after a stop."""

import contextlib
import dataclasses
import logging
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxformer.checkpoint.digest import (
    DIGEST,
    PARAMS,
    Shape,
    array_paths,
    best_step,
    find_damage,
    finished_steps,
    spaced_steps,
    step_folders,
    write_digest,
)
from jaxformer.checkpoint.reading import quiet_orbax, restore_state
from jaxformer.checkpoint.source import ROOTS
from jaxformer.checks import check_choice, check_range, several
from jaxformer.devices import agreed, let_speak, meet
from jaxformer.errors import UserError, disk_errors
from jaxformer.storage import absolute, delete_tree, files_below, folders_in, is_remote, move_tree, store_errors

_log = logging.getLogger(__name__)

# Until all is written and hashed, and again while it is deleted, a checkpoint does not bear its step's name, so that a
# kill at any moment leaves nothing that looks like a damaged one. On gs://, where renaming would mean copying, it bears
# that name from the beginning, and without its digest, written last and deleted first, it counts as unfinished.
UNFINISHED, DELETED = ".unfinished", ".deleted"
# One file per array writes faster; from here on (1e9 parameters with AdamW) Orbax's packed format restores faster.
_PACK_FROM_BYTES = 12_000_000_000
_NONE, _NO_GOOD = -1, -2
_saves: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()  # of all runs of this process
LOWER_IS_BETTER = ("loss", "perplexity", "mse")  # how the names of such metrics end


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save, what to keep, and how parameters of another run are taken over.

    `init_skip` and `init_new` are for `init_from`: patterns of the parameters in that run's checkpoint that are not
    wanted, and of those in this model that start fresh; all others must be in both. With `init_heads` "fresh", heads
    need no patterns: those that are not in both, or tell other labels apart, are left out there and start fresh here.
    """

    every: int = 0  # steps between saves; 0: at the end only
    keep_last: int = 2  # 0: keep all
    keep_every_hours: float = 0.0  # and one for every so many hours of the run; 0: none
    keep_best: bool = True  # by best_metric, among the checkpoints that were saved right after an evaluation
    best_metric: str = ""  # "": the first of the task's metrics (eval/accuracy), of an objective eval/loss
    best_mode: str = ""  # min: lower is better; max; "": as the metric has it
    init_skip: tuple[str, ...] = ()
    init_new: tuple[str, ...] = ()
    init_heads: str = "named"
    init_parameters: str = "trained"  # or ema: that run's moving average of them

    def __post_init__(self) -> None:
        for key in ("init_skip", "init_new"):
            object.__setattr__(self, key, several(getattr(self, key)))
        for key in ("every", "keep_last", "keep_every_hours"):
            check_range(f"checkpoint.{key}", getattr(self, key), at_least=0)
        check_choice("checkpoint.best_mode", self.best_mode, ("min", "max", ""))
        check_choice("checkpoint.init_heads", self.init_heads, ("named", "fresh"))
        check_choice("checkpoint.init_parameters", self.init_parameters, ROOTS)

    def judged_by(self, metrics: Sequence[str]) -> Self:
        """Return a copy that says which checkpoint is the best, where it did not yet; `metrics` are the task's."""
        metric = self.best_metric or f"eval/{next(iter(metrics), 'loss')}"
        mode = self.best_mode or ("min" if metric.endswith(LOWER_IS_BETTER) else "max")
        return dataclasses.replace(self, best_metric=metric, best_mode=mode)


class Checkpoints:
    """The checkpoints in `directory`, one folder per step. One object per run; all processes call it alike.

    State is any tree of jax arrays, global ones where there are several processes.
    """

    def __init__(
        self, directory: Path, config: CheckpointConfig, before_finishing: Callable[[], None] = lambda: None
    ) -> None:
        """`before_finishing` is called, in the background, before what is written becomes a finished checkpoint."""
        self.directory = absolute(directory)
        self.config, self.before_finishing = config.judged_by(()), before_finishing
        self._orbax: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._newest: int | None = None
        quiet_orbax()

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Start saving; return once the state is copied, so that it may be donated. A step is saved only once.

        `metrics` are those of an evaluation of this very state; one of them ranks the checkpoints.

        Raises:
          UserError: this save, or the one before it, which is waited for, met a full disk or a missing permission.
            The checkpoints that were there stay.
        """
        self.wait()
        if step == self._newest:
            return
        self._newest = step
        arrays = {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in array_paths(state).items()}
        if jax.default_backend() == "cpu":
            # Nothing leaves the device there, and a donation would wait until all is written.
            state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        with self._failures(step):
            if not is_remote(self.directory):  # a bucket would be made there
                self.directory.mkdir(parents=True, exist_ok=True)
            if self._orbax is None:
                self._orbax = _make_orbax(state)
            self._orbax.save(self._being_written(step), args=ocp.args.PyTreeSave(state), force=True)
        values = {name: float(value) for name, value in (metrics or {}).items()}
        self._thread = threading.Thread(target=self._finish, args=(step, arrays, values), name="checkpoint")
        _saves.add(self._thread)
        self._thread.start()

    def wait(self) -> None:
        """Wait until the save under way is complete. Raises UserError if it failed for a reason the user can mend."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            with self._failures(self._newest):
                raise failure

    def close(self) -> None:
        """Wait for the save under way and let go of Orbax's threads. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            orbax, self._orbax = self._orbax, None
            if orbax is not None:
                with store_errors():  # it raises once more what made a save fail
                    orbax.close()

    def restore_latest(self, target: Any) -> tuple[int, Any] | None:
        """Return (step, state) of the newest sound checkpoint, or None where none was ever finished.

        `target`: the tree of `jax.ShapeDtypeStruct`s with shardings. Damaged checkpoints newer than the one used are
        renamed to STEP.damaged-N, with a warning; what a kill left of an unfinished save is deleted, with a note.

        Raises:
          UserError: there are checkpoints but no sound one (nothing is renamed then), or it does not fit `target`.
        """
        self.wait()
        step = self._choose() if jax.process_count() == 1 else self._choose_together()
        if step is None:
            return None
        state = restore_state(self._folder(step), target)
        self._newest = step
        return step, state

    def _folder(self, step: int | None, suffix: str = "") -> Path:
        return self.directory / f"{step}{suffix}"

    def _being_written(self, step: int | None) -> Path:
        return self._folder(step, "" if is_remote(self.directory) else UNFINISHED)

    def _finish(self, step: int, arrays: dict[str, tuple[Shape, str]], metrics: dict[str, float]) -> None:
        """In the background: wait for Orbax, then write the digest, give the folder its name, delete old ones."""
        try:
            assert self._orbax is not None
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                self.before_finishing()
                write_digest(self._being_written(step), step, arrays, metrics)
                if not is_remote(self.directory):
                    self._folder(step, UNFINISHED).rename(self._folder(step))
                self._prune()
        except BaseException as error:
            self._failure = error

    def _prune(self) -> None:
        """Delete all finished checkpoints but the last ones, the best, and one for every so many hours."""
        steps = finished_steps(self.directory)
        kept: set[int | None] = set(steps[-self.config.keep_last :])  # [-0:] is all of them
        if self.config.keep_best:
            kept.add(best_step(self.directory, self.config.best_metric, self.config.best_mode))
        if self.config.keep_every_hours:
            kept.update(spaced_steps(self.directory, self.config.keep_every_hours))
        for step in steps:
            if step not in kept:
                if is_remote(self.directory):
                    delete_tree(self._folder(step), first=DIGEST)
                else:
                    self._folder(step).rename(self._folder(step, DELETED))
                    delete_tree(self._folder(step, DELETED))

    @contextlib.contextmanager
    def _failures(self, step: int | None) -> Iterator[None]:
        """Delete what a failed save has written, and turn a full disk and the like into a UserError. What arrives on
        gs:// after that is no checkpoint, and the next resume deletes it."""
        try:
            yield
        except BaseException:
            if jax.process_index() == 0:
                with contextlib.suppress(Exception):
                    for path in folders_in(self.directory):
                        if path.name.startswith(f"{step}{UNFINISHED}") or self._is_unfinished(path, step):
                            delete_tree(path)
            self._newest = None
            with store_errors(), disk_errors(self._folder(step)), _system_errors(self._folder(step)):
                raise

    def _choose(self) -> int | None:
        """Find the newest sound checkpoint, setting damaged ones aside."""
        with disk_errors(self.directory):
            self._sweep()
            damaged: dict[int, str] = {}
            for step in reversed(step_folders(self.directory)):
                damage = find_damage(self._folder(step))
                if damage is None:
                    self._set_aside(damaged)
                    return step
                damaged[step] = damage
        aside = [path.name for path in folders_in(self.directory) if ".damaged-" in path.name]
        if damaged or aside:
            names = [f"{step} ({damage})" for step, damage in damaged.items()] + aside
            raise UserError(
                f"no sound checkpoint is left in {self.directory}: {', '.join(names)}; "
                "bring one back from a copy, start in another workdir, or delete them to start afresh"
            )
        return None

    def _choose_together(self) -> int | None:
        """Let process 0 choose for all, for it alone renames."""
        failure: UserError | None = None
        chosen = _NONE
        if jax.process_index() == 0:
            try:
                step = self._choose()
                chosen = _NONE if step is None else step
            except UserError as error:
                failure, chosen = error, _NO_GOOD
        meet()  # hashing takes longer than devices may like to wait
        chosen = agreed(chosen)
        if chosen == _NO_GOOD and failure is None:
            let_speak()
        if chosen == _NO_GOOD:
            raise failure or UserError(f"no sound checkpoint is left in {self.directory}; see process 0")
        return None if chosen == _NONE else chosen

    def _sweep(self) -> None:
        """Delete what a kill has left behind: unfinished saves, half-deleted checkpoints, folders without a file."""
        for path in folders_in(self.directory):
            if UNFINISHED in path.name or path.name.endswith(DELETED) or self._is_unfinished(path):
                _log.warning("deleting %s, which a stopped run left unfinished", path)
                delete_tree(path)
        for step in step_folders(self.directory):
            if not files_below(self._folder(step)):
                _log.warning("deleting %s, an empty folder and no checkpoint", self._folder(step))
                delete_tree(self._folder(step))

    def _is_unfinished(self, path: Path, step: int | None = None) -> bool:
        """Whether a folder on gs:// is a checkpoint (that of `step`) without a digest."""
        is_step = path.name.isdecimal() if step is None else path.name == str(step)
        return is_remote(path) and is_step and DIGEST not in files_below(path)

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        for step, damage in damaged.items():
            number = 1
            while self._folder(step, f".damaged-{number}").exists():
                number += 1
            aside = self._folder(step, f".damaged-{number}")
            move_tree(self._folder(step), aside, DIGEST)
            _log.warning("checkpoint %s is damaged: %s; set aside as %s", self._folder(step), damage, aside.name)


def finish_saves() -> None:
    """Wait for what runs that failed beside their peers have left under way: a run does not wait for it, as it does not
    know whether they are still there."""
    for thread in list(_saves):
        thread.join()


def save_params(directory: Path, params: Mapping[str, Any], step: int = 0) -> None:
    """Write a checkpoint of parameters alone (numpy arrays), from which a run can start but not go on.

    Arrays that begin at a multiple of 64 bytes are not copied. Raises UserError for a full disk and the like.
    """
    quiet_orbax()
    state = {PARAMS.rstrip("/"): jax.tree.map(jax.dlpack.from_dlpack, dict(params))}
    folder = absolute(directory) / f"{step}{UNFINISHED}"
    arrays = {path: (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in array_paths(state).items()}
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_make_orbax(state)) as orbax, _system_errors(folder):
            orbax.save(folder, args=ocp.args.PyTreeSave(state), force=True)
            orbax.wait_until_finished()
        write_digest(folder, step, arrays, {})
        folder.rename(folder.with_name(str(step)))


@contextlib.contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Raise what TensorStore reports of the file system as OSError: its ValueErrors carry the number in their text."""
    try:
        yield
    except Exception as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _make_orbax(state: Any) -> ocp.AsyncCheckpointer:
    large = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) > _PACK_FROM_BYTES
    # Trained weights hardly compress; trying costs processor time beside the training and 0.4 times the memory.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=large or jax.process_count() > 1, use_compression=False)
    return ocp.AsyncCheckpointer(handler, timeout_secs=3600)
