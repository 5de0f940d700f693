"""A worker of a sweep: takes runs that are nobody's, trains them as `train` does, and tells the search what they gave.

Which runs are whose, the runs' own locks say, so that any number of workers on any machines share a study, and what a
dead one leaves behind is taken over, from its last checkpoint.

A worker may be several processes, as a run may. Then process 0 alone asks the search, holds the runs and writes what
becomes of them; it tells its peers what all of them train next.
"""

import contextlib
import datetime
import json
import math
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxformer.checkpoint import finish_saves
from jaxformer.config import Config
from jaxformer.devices import ended_alike, has_peers, is_peers_end, stop_is_due, told
from jaxformer.errors import Interrupted, UserError, disk_errors
from jaxformer.footprint import read_emissions
from jaxformer.report import (
    COSTS,
    DONE,
    FAILED,
    OVER,
    PRUNED,
    RUNNING,
    STOPPED,
    TRIAL,
    TRIALS,
    WAITING,
    costs_of,
    read_sweep,
    read_trial_record,
)
from jaxformer.runs import Display, Judge, Lost, claimed, identity_of, train
from jaxformer.storage import delete_tree, read_metrics, write_json
from jaxformer.studies.searching import Asked, Search
from jaxformer.studies.space import described, overrides_of
from jaxformer.studies.study import Study, Trial
from jaxformer.tables import metrics_line

POLL_SECONDS = 1.0
MOST_STARTS = 20  # of a run that ends none of them by itself: whatever kills it is not chance
TRAIN, WAIT, END = "train", "wait", "end"  # what process 0 tells the others of its worker
Said = Callable[[str], None]


class NotLogged(UserError):
    """A run does not log the metric that its study goes by."""


class Apart(Interrupted):
    """The processes of a worker have not come to the same end of a run: all of them must be started again."""


def work(study: Study, say: Said) -> None:
    """Train what is left of a study, and return when all of it is over, whoever trained it.

    Raises UserError where no run can give the study's metric or the storage cannot be used, and Interrupted, after
    saving, on SIGTERM or Ctrl-C.
    """
    search = Search(study)
    while True:
        busy = False
        for asked in search.asked():
            if asked.over:
                continue
            trained, waits = _work_on(study, search, asked, say)
            busy |= waits
            if trained:
                break  # what others have begun meanwhile may come first
        else:
            if search.ask():
                continue
            if not busy:
                return
            time.sleep(POLL_SECONDS)
            tell(WAIT)


def follow(study: Study) -> None:
    """Train, as one of a worker's other processes, what process 0 says, until it says that all is over.

    Raises UserError where this process has other data or another config than process 0, and Interrupted as `work` does.
    """
    while True:
        said = json.loads(told(""))
        _stop_if_due()
        if said["what"] == END:
            return
        if said["what"] == TRAIN:
            config, trial = study.experiment.config(said["words"]), said["trial"]
            if identity_of(config, study.space.keys) != trial:
                raise UserError(
                    f"trial {trial}: this process of the worker makes another run of {' '.join(said['words'])} than "
                    "process 0; give all hosts the same data, files and version"
                )
            _attempt(config, study.folder / TRIALS / trial, lambda step, metrics: False)


def tell(what: str, trial: Trial | None = None) -> None:
    """Tell the other processes of this worker, where it has some, what comes next. Raises Interrupted where one of them
    was asked to stop."""
    if has_peers():
        words = [] if trial is None else [*overrides_of(trial.point), f"seed={trial.seed}"]
        told(json.dumps({"what": what, "words": words, "trial": trial and trial.folder.name}))
        _stop_if_due()


def _stop_if_due() -> None:
    """Raise Interrupted, on all processes, where one of them was asked to stop: between runs there is nothing to
    save."""
    if stop_is_due():
        raise Interrupted("stopped by SIGTERM", code=75)


def _attempt(config: Config, folder: Path, judge: Judge) -> dict[str, float] | Exception:
    """Train a run, on all processes of this worker alike, and return what it gave, or the error with which it failed.

    Raises what ends this process: Interrupted; NotLogged; and, where there are peers, an error that is not theirs, or
    what is seen here of the end of one of them.
    """
    found: dict[str, float] | Exception
    try:
        found = train(config, folder, display=Display(quiet=True), judge=judge)
    except NotLogged:
        raise
    except Exception as error:
        if has_peers() and is_peers_end(error):
            raise
        found = error
    if not has_peers():
        return found
    failed = isinstance(found, Exception)
    if ended_alike(failed):
        if failed:
            finish_saves()
        return found
    if isinstance(found, Exception) and not isinstance(found, Lost):
        raise found
    why = found if isinstance(found, Lost) else "another process of this worker failed, and its own message says why"
    raise Apart(f"{why}; stopped", code=75)


def _work_on(study: Study, search: Search, asked: Asked, say: Said) -> tuple[bool, bool]:
    """Train one run of a point, or see that all are over; return (whether that was done, whether others train it)."""
    waits = False
    for number, trial in enumerate(study.trials(asked.point)):
        record = read_trial(trial)
        state = record["state"]
        if state in OVER and record.get("study") != study.name:  # trained when the study had other points or seeds
            _write(trial, record | {"study": study.name, "number": asked.number, "values": trial.values})
        if number and study.settings.pruner != "none" and read_trial(study.trials(asked.point)[0])["state"] != DONE:
            break  # the first seed decides whether the point is worth the others
        if state not in OVER:
            with claimed(trial.folder) as lock:
                if lock is None:
                    waits = True
                    continue
                if read_trial(trial)["state"] not in OVER:
                    _train(study, search, asked, trial, say)
                return True, waits
        if state in (PRUNED, FAILED):
            break
    return _settled(study, search, asked), waits


def _settled(study: Study, search: Search, asked: Asked) -> bool:
    """Tell the search what a point gave whose runs are over; say whether they are."""
    records = [read_trial(trial) for trial in study.trials(asked.point)]
    states = [record["state"] for record in records]
    if PRUNED in states or FAILED in states:
        search.tell(asked, None, pruned=PRUNED in states)
    elif set(states) == {DONE}:
        wanted = study.settings.metrics
        search.tell(asked, [statistics.fmean(_number(record, name) for record in records) for name in wanted])
    else:
        return False
    keep_checkpoints(study)
    return True


def _number(record: Mapping[str, Any], name: str) -> float:
    value = record["metrics"].get(name)
    return math.nan if value is None else float(value)


def read_trial(trial: Trial) -> dict[str, Any]:
    """Return what `trial.json` says of a run; of one that never began, that it waits."""
    return read_trial_record(trial.folder) or {"state": WAITING, "starts": 0, "failures": 0, "metrics": {}}


def _train(study: Study, search: Search, asked: Asked, trial: Trial, say: Said) -> None:
    """Train a run that this process has claimed, to its end or to where the pruner ends it."""
    before = read_trial(trial)
    # Starts that ended by themselves, or got further than the one before, were no accident of the run's own.
    step = max((line.get("step", 0) for line in read_metrics(trial.folder)), default=0)
    starts = before["starts"] + 1 if before["state"] == RUNNING and before.get("from_step") == step else 1
    record = before | {
        "study": study.name, "number": asked.number, "values": trial.values, "seed": trial.seed, "state": RUNNING,
        "starts": starts, "from_step": step, "began": before.get("began") or _now(),
    }  # fmt: skip
    if starts > MOST_STARTS:
        why = f"its process died {MOST_STARTS} times without getting beyond step {step}"
        _end(trial, record, FAILED, say, error=why)
        return
    _write(trial, record)
    judged = _Judge(study, search, asked, trial)
    say(f"trial {trial.folder.name} ({_words(trial)}): {'goes on' if step else 'begins'}")
    try:
        tell(TRAIN, trial)
        found = _attempt(trial.config, trial.folder, judged)
    except Apart:  # whoever goes on with the run sees how often it was begun
        raise
    except (Interrupted, KeyboardInterrupt):
        _end(trial, record, STOPPED, say)
        raise
    if isinstance(found, Lost):  # whoever took the run over tells its end
        return
    if isinstance(found, Exception):
        failures = record["failures"] + 1
        with disk_errors(trial.folder):
            text = "".join(traceback.format_exception(found))
            (trial.folder / "error.log").write_text(text, encoding="utf-8")
        line = f"{'' if isinstance(found, UserError) else f'{type(found).__name__}: '}{found}".strip().splitlines()[0]
        state = FAILED if failures >= study.settings.attempts else WAITING
        _end(trial, record | {"failures": failures}, state, say, error=line)
        return
    metrics = _metrics(trial, found)
    logged = {name: metrics[name] for name in study.settings.metrics if name in metrics}
    state = PRUNED if judged.has_pruned else DONE
    _end(trial, record | {"metrics": metrics, "error": ""}, state, say, gave=metrics_line(logged))
    missing = [name for name in study.settings.metrics if name not in metrics]
    if missing and not judged.has_pruned:
        raise _not_logged(missing[0], metrics)


class _Judge:
    """Sees every evaluation of a run on its way: that the metric is there, and, of a point's first seed, whether the
    pruner lets it go on."""

    def __init__(self, study: Study, search: Search, asked: Asked, trial: Trial) -> None:
        self._wanted = study.settings.metrics
        self._prune: Callable[[int, float], bool] | None = None
        if study.settings.pruner != "none" and trial.seed == study.seeds[0]:
            self._prune = search.judge(asked, trial.config.training.eval_every)
        self.has_pruned = False

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        for name in self._wanted:
            if name.startswith("eval/") and metrics and name not in metrics:
                raise _not_logged(name, metrics)
        if self._prune is not None:
            self.has_pruned = self._prune(step, float(metrics.get(self._wanted[0], math.nan)))
        return self.has_pruned


def _not_logged(name: str, metrics: Mapping[str, float]) -> NotLogged:
    logged = ", ".join(key for key in metrics if key not in COSTS)
    return NotLogged(f"--metric: the runs of this study log no {name}; they log {logged or 'no evaluation'}")


def _metrics(trial: Trial, results: Mapping[str, float]) -> dict[str, float]:
    """Return what a run logged last, and what it cost."""
    found: dict[str, float] = {}
    for line in read_metrics(trial.folder):
        found |= {name: value for name, value in line.items() if name != "step"}
    emissions = read_emissions(trial.folder)
    return found | dict(results) | (costs_of(emissions, _devices(trial)) if emissions.segments else {})


def _devices(trial: Trial) -> int:
    with contextlib.suppress(OSError, ValueError, LookupError):
        return int(json.loads((trial.folder / "config.json").read_text())["device"]["count"])
    return 1


def _end(trial: Trial, record: dict[str, Any], state: str, say: Said, error: str = "", gave: str = "") -> None:
    record |= {"state": state, "ended": _now(), "devices": _devices(trial)} | ({"error": error} if error else {})
    _write(trial, record)
    words = ", ".join(filter(None, (state, error or gave)))
    if state == WAITING:
        words = f"failed, is tried again: {error}"
    say(f"trial {trial.folder.name} ({_words(trial)}): {words}")


def _words(trial: Trial) -> str:
    return described(trial.values, trial.seed)


def _write(trial: Trial, record: Mapping[str, Any]) -> None:
    write_json(trial.folder / TRIAL, record)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def keep_checkpoints(study: Study) -> None:
    """Delete the checkpoints of runs that are over, but for those that the study keeps."""
    if study.settings.keep == "all":
        return
    sweep = read_sweep(study.folder)
    best = [] if study.settings.keep == "none" else sweep.pareto if len(sweep.metrics) > 1 else [sweep.best]
    kept = {trial.path for point in best if point is not None for trial in point.trials}
    for point in sweep.points:
        if point.state not in OVER:  # once its other seeds are over it may be the best
            continue
        for trial in point.trials:
            if trial.state in OVER and trial.path not in kept:
                with contextlib.suppress(FileNotFoundError):
                    delete_tree(trial.path / "checkpoints")
