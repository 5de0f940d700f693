"""Errors for people: what went wrong, where, and what to do, in one line."""

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator
from pathlib import Path

# Failures of the file system that the user can mend; anything else stays a traceback.
_FIXABLE = {
    errno.ENOSPC: "the disk is full; free space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free space or choose another folder",
    errno.EACCES: "no permission; choose a folder you may write to",
    errno.EPERM: "not permitted; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EFBIG: "the file would exceed the size limit; raise it or choose another folder",
}


class UserError(Exception):
    """Something the user can fix. The command line prints the message on one line and exits with code 2."""


class EmptySplit(UserError):
    """A split of the data holds nothing. Training needs its own; without a held-out one there is no evaluation.

    `left_out` tells what it held, {what: {"count", "of"}}.
    """

    def __init__(self, message: str, left_out: dict[str, dict[str, int]] | None = None) -> None:
        super().__init__(message)
        self.left_out = left_out or {}


class Interrupted(BaseException):
    """A signal stopped the run, which was saved and can go on. `code` is the exit code of the command line.

    No Exception: it may arise anywhere, and whatever handles errors there must not take it for one.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the spelling in `choices` nearest to `word`, or "" if none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def summary_of(error: Exception) -> str:
    """Return one line about an exception of a user's file: its type, its message, and the line where it left off."""
    lines, trace = str(error).strip().splitlines(), error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""
    where = "" if isinstance(error, SyntaxError) else where  # its message has the line
    return f"{type(error).__name__}: {lines[0] if lines else ''}{where}"


@contextlib.contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn a full disk, a missing permission or a read-only file system at `path` into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FIXABLE:
            raise
        raise UserError(f"cannot write {error.filename or path}: {_FIXABLE[error.errno]}") from error
