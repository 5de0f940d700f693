"""When a job runs again, the same for every place.

| a worker ends with | the job |
| --- | --- |
| 0, all of them | is done |
| 75, or its machine was taken away | runs again, after a pause, at most `restarts` times |
| 2 | stops: the user has something to mend, and the line that says so is shown |
| anything else | stops, with what the failing worker said last |
"""

import signal
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxformer.launch.job import Job
from jaxformer.launch.records import DONE, FAILED, PAUSED, STARTING, STOPPED, Record

PREEMPTED, USER_ERROR = 75, 2
# What runs again, in the words of a shell's exit codes: 134 is how JAX aborts the other processes when the first is
# lost, 143 a SIGTERM that came before the process could save.
AGAIN = (PREEMPTED, 128 + int(signal.SIGABRT), 128 + int(signal.SIGTERM))
SHELL_AGAIN = "|".join(map(str, AGAIN))  # as a pattern of `case`
_KILLED = 128 + signal.SIGKILL  # perhaps for another worker's sake
QUICK_SECONDS = 600.0  # an attempt that lasted longer is no reason to wait longer before the next
LONGEST_PAUSE = 600.0


class Outcome(NamedTuple):
    """How an attempt ended: `code` as the job's own, `message` in words ("" for done)."""

    code: int
    message: str = ""


def outcome_of(codes: Iterable[tuple[str, int | None]], last_line: Callable[[str], str]) -> Outcome:
    """Return what the exit codes of workers say of an attempt, in the order in which they ended if that is known; None
    is a worker that was lost. `last_line` is asked for what the one that failed said last.

    A worker that ended because another one had gone is one of AGAIN, and does not count beside it.
    """
    known = list(codes)
    failed = [(worker, code) for worker, code in known if code not in (0, *AGAIN, None)]
    for worker, code in sorted(failed, key=lambda entry: (entry[1] != USER_ERROR, entry[1] == _KILLED)):
        said = last_line(worker)
        message = f"worker {worker} {_ended(code or 0)}" + (f": {said}" if said else "")
        return Outcome(USER_ERROR if code == USER_ERROR else 1, message)
    return Outcome(0) if all(code == 0 for _, code in known) else Outcome(PREEMPTED, "preempted")


def _ended(code: int) -> str:
    try:
        return f"was ended by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"ended with exit code {code}"


def pause_before(restart: int, backoff: float) -> float:
    """Return the seconds to wait before one of several quick restarts in a row, counted from 0."""
    return min(backoff * 2.0**restart, LONGEST_PAUSE)


def shell_pause(restart: str, backoff: float) -> str:
    """Return shell that sets $pause to `pause_before` of a variable that counts restarts from 0."""
    longest = round(LONGEST_PAUSE)
    return (
        f"pause=$(( {round(backoff)} << ({restart} < 10 ? {restart} : 10) )); "
        f"pause=$(( pause < {longest} ? pause : {longest} ))"
    )


def supervise(job: Job, record: Record, attempt: Callable[[int], Outcome], say: Callable[[str], None]) -> int:
    """Make attempts until the job is done, has failed, was stopped or has run out of restarts; return its exit code.

    The attempts of a job are numbered on from those of earlier launchers.
    """
    number, quick = record.state()["attempts"], 0
    for left in range(job.restarts, -1, -1):
        number += 1
        record.note(state=STARTING, attempts=number, message="", code=None)
        began = time.monotonic()
        outcome = attempt(number)
        if outcome.code == 0:
            return _over(record, DONE, outcome)
        if record.is_asked_to_stop():
            return _over(record, STOPPED, outcome)
        if outcome.code != PREEMPTED or not left:
            if outcome.code == PREEMPTED:
                outcome = Outcome(PREEMPTED, f"{outcome.message}; started {job.restarts + 1} times")
            if outcome.message:
                say(record.hider()(outcome.message))
            return _over(record, FAILED, outcome)
        quick = 0 if time.monotonic() - began > QUICK_SECONDS else quick + 1
        pause = pause_before(max(quick - 1, 0), job.backoff)
        say(f"{outcome.message}; attempt {number + 1} in {pause:.0f} s ({left} restart{'s' * (left > 1)} left)")
        record.note(state=PAUSED, message=outcome.message)
        if not _sleep(pause, record):
            return _over(record, STOPPED, outcome)
    raise AssertionError("the last attempt has returned")


def _over(record: Record, state: str, outcome: Outcome) -> int:
    record.note(state=state, message=outcome.message, code=outcome.code)
    return outcome.code


def _sleep(seconds: float, record: Record) -> bool:
    """Wait, and say whether the job shall still run then."""
    until = time.monotonic() + seconds
    while not record.is_asked_to_stop():
        left = until - time.monotonic()
        if left <= 0:
            return True
        time.sleep(min(left, 0.5))
    return False
