"""The lock of a run directory: one run at a time trains there.

`RUN/.lock` says which process holds it. In a local folder that is a file locked by `flock`, which ends with the
process, whatever ends it. On gs://, which has no locks, it is an object that the holder renews and writes only where
nobody else has written it since: a lease, which lapses `LEASE_SECONDS` after the last renewal. Shared file systems may
have no `flock`, or one that other machines do not see, so the local file is renewed and read as a lease as well.
"""

import contextlib
import dataclasses
import datetime
import errno
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from jaxformer.devices import agreed, is_first, let_speak, meet
from jaxformer.errors import Interrupted, UserError, disk_errors
from jaxformer.footprint import machine_name
from jaxformer.launch import LAUNCHED
from jaxformer.runs.progress import Display
from jaxformer.runs.repeating import repeated
from jaxformer.storage import (
    check_bucket,
    delete_object,
    is_remote,
    read_object,
    replace_object,
    store_errors,
)

try:
    import fcntl
except ImportError:  # Windows: the file is a lease only
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
WAIT_SECONDS = 90.0  # longer than a lease lasts
_POLL_SECONDS = 1.0
_CLOCK_SECONDS = 10.0  # by which the start of a process may seem to move when the clock is set
_WITHOUT_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_descriptors: set[int] = set()  # of the lock files that this process holds
_claims: dict[str, "Lock"] = {}  # the runs that this process holds before it opens them


@dataclasses.dataclass(frozen=True)
class Holder:
    """The process that holds a run: what `.lock` says. Times are seconds since 1970 by the clock of its machine.

    Process numbers mean the same where `machine` is the same. `file` is the inode of a local lock file, which a copy of
    it has not.
    """

    host: str
    pid: int
    started: str
    machine: str
    born: float
    token: str
    renewed: float
    file: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.started}"

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine that lives."""
        if self.machine != _machine():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.born) < _CLOCK_SECONDS
        except psutil.Error:
            return False

    @property
    def has_lapsed(self) -> bool:
        """Whether it renewed too long ago, or is known to be dead."""
        return abs(time.time() - self.renewed) > LEASE_SECONDS or (self.machine == _machine() and not self.is_here)


class Found(NamedTuple):
    """Who holds a lock that could not be taken (None: it does not say), and whether it lives for certain."""

    holder: Holder | None
    lives: bool


class Lost(UserError):
    """Another process has taken over the run."""


class _Place(Protocol):
    def acquire(self, own: Holder) -> Found | None: ...
    def renew(self, own: Holder) -> None: ...
    def release(self, own: Holder) -> None: ...


class Lock:
    """The lock of a run while this process holds it, renewed by a thread; one without a `place` guards nothing."""

    def __init__(self, run: Path, place: _Place | None, own: Holder | None) -> None:
        self.run, self._place, self._own = run, place, own
        self._renewed = time.monotonic()
        self._renewing = threading.Lock()
        self._lost: Lost | None = None

    def check(self) -> None:
        """Raise Lost where a renewal has found another holder. Costs nothing."""
        if self._lost is not None:
            raise self._lost

    def confirm(self) -> None:
        """Make sure, before something of the run is written, that it is still this process's. Raises Lost."""
        self.check()
        if time.monotonic() - self._renewed > LEASE_SECONDS / 2:  # a thread that could not renew for so long
            self.renew()

    def renew(self) -> None:
        if self._place is None or self._own is None:
            return
        with self._renewing:
            self.check()
            try:
                self._place.renew(dataclasses.replace(self._own, renewed=time.time()))
            except Lost as lost:
                self._lost = lost
                raise
            self._renewed = time.monotonic()


@contextlib.contextmanager
def held_by_first(run: Path, display: Display) -> Iterator[Lock]:
    """Let the first process of a run hold it for all; where it cannot, all end alike. See `locked`."""
    failure: UserError | Interrupted | None = None
    with contextlib.ExitStack() as held:
        lock = Lock(run, None, None)
        if is_first():
            try:
                lock = _claims.get(os.fspath(run)) or held.enter_context(locked(run, display))
            except (UserError, Interrupted) as error:
                failure = error
        meet()  # process 0 may wait for some time
        code = agreed(0 if failure is None else getattr(failure, "code", 2))
        if failure is not None:
            raise failure
        if code:
            let_speak()
            said_there = "process 0 could not lock the run; its own message says why"
            raise UserError(said_there) if code == 2 else Interrupted(said_there, code)
        yield lock


@contextlib.contextmanager
def locked(run: Path, display: Display) -> Iterator[Lock]:
    """Hold a run directory, which is made where there is none, for this process.

    Raises UserError where another process trains in it. A job of `jaxformer launch` waits for that to end, for its own
    last attempt may be saving, and raises Interrupted with 75 if it does not. So does any start where the holder cannot
    be seen from here, as long as it does not show that it lives.
    """
    place, own = _parties(run)
    with store_errors():
        _take(run, place, own, display)
    with _kept(run, place, own) as lock:
        yield lock


@contextlib.contextmanager
def claimed(run: Path) -> Iterator[Lock | None]:
    """Hold a run directory for what this process does with it, trainings included, and wait for nobody: None where
    another process holds it, or may do so."""
    place, own = _parties(run)
    with store_errors():
        found = place.acquire(own)
    if found is not None:
        yield None
        return
    with _kept(run, place, own) as lock:
        _claims[os.fspath(run)] = lock
        try:
            yield lock
        finally:
            del _claims[os.fspath(run)]


def _parties(run: Path) -> tuple[_Place, Holder]:
    """Return where the lock of a run lies, and this process as its holder."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    born = psutil.Process().create_time()
    own = Holder(socket.gethostname(), os.getpid(), now, _machine(), born, uuid.uuid4().hex, time.time())
    return _Bucket(run) if is_remote(run) else _Folder(run), own


@contextlib.contextmanager
def _kept(run: Path, place: _Place, own: Holder) -> Iterator[Lock]:
    """Keep a lock that was taken, and give it back in the end."""
    lock = Lock(run, place, own)
    try:
        with repeated(lock.renew, RENEW_SECONDS, f"the lock of {run} could not be renewed"):
            yield lock
    finally:
        with contextlib.suppress(Exception):  # a lease that cannot be given back lapses
            place.release(own)


def _take(run: Path, place: _Place, own: Holder, display: Display) -> None:
    """Take the lock, or wait for it where that may help."""
    deadline, first = time.monotonic() + WAIT_SECONDS, True
    seen: Holder | None = None
    while (found := place.acquire(dataclasses.replace(own, renewed=time.time()))) is not None:
        holder = found.holder
        lives = found.lives or (seen is not None and holder is not None and holder.renewed != seen.renewed)
        patient, over = bool(os.environ.get(LAUNCHED)), time.monotonic() > deadline
        who = f"{run} is being trained by {holder or 'another process'}"
        if patient and over:
            raise Interrupted(f"{who}, which has not ended in {WAIT_SECONDS:g} s; run the same command again", code=75)
        if not patient and (lives or over):
            raise UserError(f"{who}; wait until it has ended, stop it, or choose another --workdir")
        if first:
            display.note(f"{who}; waiting until it has ended, at most {WAIT_SECONDS:g} s")
        first, seen = False, seen or holder
        time.sleep(_POLL_SECONDS)


@functools.cache
def _machine() -> str:
    """Return what all processes have in common among whom process numbers mean the same."""
    name = machine_name()
    with contextlib.suppress(OSError):  # a container may have numbers of its own
        name += " " + os.readlink("/proc/self/ns/pid")
    return name


class _Folder:
    """The lock file of a local run. It is gone when the run is over, and what a kill leaves of it is no lock."""

    def __init__(self, run: Path) -> None:
        self._path = run / LOCK
        self._descriptor = -1

    def acquire(self, own: Holder) -> Found | None:
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                found = self._lock(descriptor)
                if found is None and self._is_file(descriptor):
                    self._write(descriptor, own)
                    self._descriptor, descriptor = descriptor, -1
                    _descriptors.add(self._descriptor)
                    return None
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
            return found or self.acquire(own)  # its last holder has just deleted it

    def _lock(self, descriptor: int) -> Found | None:
        """Lock the open file; return its holder where there is one."""
        has_flock = fcntl is not None
        try:
            if has_flock:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Found(_read(_content(descriptor)), lives=True)
        except OSError as error:
            if error.errno not in _WITHOUT_FLOCK:
                raise
            has_flock = False
        holder = _read(_content(descriptor))
        if holder is None or holder.file != os.fstat(descriptor).st_ino or holder.has_lapsed:
            return None
        if holder.is_here:
            return None if has_flock else Found(holder, lives=True)
        return Found(holder, lives=False)

    def renew(self, own: Holder) -> None:
        with contextlib.suppress(FileNotFoundError):
            holder = _read(self._path.read_bytes())
            if holder is not None and holder.token != own.token:
                raise _taken(self._path.parent, holder)
        self._write(self._descriptor, own)

    def release(self, own: Holder) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        _descriptors.discard(descriptor)
        try:
            holder = _read(self._path.read_bytes())
            if self._is_file(descriptor) and holder is not None and holder.token == own.token:
                self._path.unlink()
        finally:
            os.close(descriptor)

    def _is_file(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _write(self, descriptor: int, own: Holder) -> None:
        content = _written(dataclasses.replace(own, file=os.fstat(descriptor).st_ino))
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))


class _Bucket:
    """The lease of a run on gs://."""

    def __init__(self, run: Path) -> None:
        self._run, self._path = run, run / LOCK
        self._generation = 0

    def acquire(self, own: Holder) -> Found | None:
        check_bucket(self._run)
        while True:
            content, generation = read_object(self._path)
            holder = _read(content)
            if holder is not None and holder.token != own.token and not holder.has_lapsed:
                return Found(holder, lives=holder.is_here)
            if (written := replace_object(self._path, _written(own), generation)) is not None:
                self._generation = written
                return None

    def renew(self, own: Holder) -> None:
        generation: int | None = self._generation
        while (written := replace_object(self._path, _written(own), generation or 0)) is None:
            # Somebody else's, deleted by somebody, or our own of which no answer came.
            content, generation = read_object(self._path)
            holder = _read(content)
            if holder is not None and holder.token != own.token:
                raise _taken(self._run, holder)
        self._generation = written

    def release(self, own: Holder) -> None:
        delete_object(self._path, self._generation)


def _taken(run: Path, holder: Holder) -> Lost:
    return Lost(f"{run} was taken over by {holder}; this process has stopped and writes nothing more")


def _written(holder: Holder) -> bytes:
    content = dataclasses.asdict(holder) | {"renewed": round(holder.renewed, 3)}
    return (json.dumps(content).ljust(480) + "\n").encode()  # of one length, so that no reader finds half of it


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, 1 << 16, 0)


def _read(content: bytes) -> Holder | None:
    """Return who holds the lock; None for what is empty, torn or foreign."""
    try:
        values = json.loads(content)
        known = {field.name: type(field.default) for field in dataclasses.fields(Holder)}
        holder = Holder(**{name: value for name, value in values.items() if name in known})
        return dataclasses.replace(holder, renewed=float(holder.renewed), born=float(holder.born), pid=int(holder.pid))
    except (ValueError, TypeError, AttributeError):
        return None


def _forked() -> None:
    """Let go, in a child, of the files whose locks it has inherited: it may outlive the process that holds them."""
    for descriptor in _descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
