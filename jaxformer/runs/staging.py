"""The small files of a run, everything but checkpoints: where the run lies on gs://, which cannot append, they are
written in a folder on this machine and copied there, whole, again and again.

A kill loses what was not copied yet: at most `SYNC_SECONDS` of the log, and nothing that stands before a checkpoint,
for they are copied before that is a finished one.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from jaxformer.errors import UserError, disk_errors
from jaxformer.runs.repeating import repeated
from jaxformer.storage import check_bucket, filesystem, is_remote, location, said

SYNC_SECONDS = 30.0
_FETCHED = ("", "emissions")  # the folders of a run that going on with it reads or counts
_log = logging.getLogger(__name__)


class Staging:
    """A run, and the `folder` on this machine in which its small files are read and written; `sync` copies them.

    Of a local run both are the same, and nothing is copied. Several processes have a folder each; each copies what it
    wrote itself. Nothing is copied once `confirm` raises: then the run has become another process's.
    """

    def __init__(self, run: Path, folder: Path, confirm: Callable[[], None] = lambda: None) -> None:
        self.run, self.folder, self._confirm = run, folder, confirm
        self._copied: dict[Path, tuple[int, int]] = {}
        self._copying = threading.Lock()

    def fetch(self) -> None:
        """Copy what is there to the folder here."""
        for name in _FETCHED:
            below = self.folder / name
            below.mkdir(exist_ok=True)
            entries = []
            with contextlib.suppress(FileNotFoundError):
                entries = filesystem().ls(os.fspath(self.run / name), detail=True)
            for entry in entries:
                path = below / PurePath(entry["name"]).name
                if entry["type"] == "file" and not path.name.startswith("."):
                    path.write_bytes(filesystem().cat_file(entry["name"]))
                    self._copied[path] = _version(path)

    def sync(self) -> None:
        """Copy the files that changed since they were last copied."""
        self._confirm()
        if self.folder == self.run:
            return
        with self._copying:
            for path in sorted(self.folder.rglob("*")):
                if not path.is_file() or path.name.startswith(".") or path.name.endswith(".partial"):
                    continue
                try:
                    version = _version(path)
                    content = None if version == self._copied.get(path) else path.read_bytes()
                except FileNotFoundError:
                    continue  # deleted or renamed just now
                if content is not None:
                    target = self.run / path.relative_to(self.folder).as_posix()
                    filesystem().pipe_file(os.fspath(target), content)
                    self._copied[path] = version


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@contextlib.contextmanager
def staged(run: Path, confirm: Callable[[], None] = lambda: None) -> Iterator[Staging]:
    """Give the files of a run for reading and writing; copy them from time to time and, whatever happens, at the end,
    as long as `confirm` does not raise.

    Raises UserError where the last copy fails; the folder here is kept then.
    """
    run = location(run)
    if not is_remote(run):
        with disk_errors(run):
            run.mkdir(parents=True, exist_ok=True)
        yield Staging(run, run, confirm)
        return
    check_bucket(run)
    staging = Staging(run, Path(tempfile.mkdtemp(prefix="jaxformer-")), confirm)
    try:
        staging.fetch()
    except BaseException:
        shutil.rmtree(staging.folder, ignore_errors=True)
        raise
    went_well = False
    try:
        with repeated(staging.sync, SYNC_SECONDS, f"the log could not be written to {run}"):
            yield staging
        went_well = True
    finally:
        try:
            staging.sync()
            shutil.rmtree(staging.folder, ignore_errors=True)
        except Exception as error:
            what = f"the last of the log could not be written to {run} ({said(error)}); it is kept in "
            if went_well:
                raise UserError(what + str(staging.folder)) from error
            _log.warning("%s%s", what, staging.folder)
