"""Which checkpoint of a run is meant: its latest, its best, or that of a step. RUN@best, RUN@1000 and RUN@latest name
one where a config or the command line names a run; RUN alone is its latest."""

import os
from pathlib import Path
from typing import NamedTuple

from jaxformer.checkpoint.digest import best_step, finished_steps, locate
from jaxformer.checkpoint.source import ROOTS, Source
from jaxformer.checks import check_choice, check_range
from jaxformer.errors import UserError
from jaxformer.storage import absolute, folders_in, is_remote, is_run, location, read_record

LATEST, BEST = "latest", "best"
_CHECKPOINTS = "checkpoints"


class Which(NamedTuple):
    """Which parameters of a run are meant: of its checkpoint of `step` ("": its latest), or the mean of the `average`
    last ones up to it; and which kind, "trained" or "ema" ("": what the run's config has judged)."""

    step: str | int = ""
    average: int = 1
    parameters: str = ""


NEWEST = Which()


def named(text: str | os.PathLike[str], step: str | int = "") -> tuple[Path, str]:
    """Return (run, step) of what names a run or one of its checkpoints; the step is "latest", "best" or a number.

    It may be said by `step`, by an @ behind the run, or by its folder, RUN/checkpoints/STEP. A folder whose own name
    holds an @ is taken as it is. Raises UserError for a step that is none, or that is said twice.
    """
    path = location(text)
    before, at, behind = path.name.rpartition("@")
    run, said = path, ""
    if at and before and not _is_there(path) and is_run(path.with_name(before)):
        run, said = path.with_name(before), behind
        if not _is_step(behind):
            raise UserError(f"{text}: '{behind}' is no step; write {run}@best, {run}@latest or {run}@STEP")
    elif path.name == _CHECKPOINTS and is_run(path.parent):
        run = path.parent
    elif path.name.isdecimal() and path.parent.name == _CHECKPOINTS and is_run(path.parent.parent):
        run, said = path.parent.parent, path.name
    given = str(step)
    if given and not _is_step(given):
        raise UserError(f"step: '{given}' is no step; give best, latest or the number of one")
    if given and said and given != said:
        raise UserError(f"{text} names the checkpoint of step {said}, and {given} was asked for; name one of them")
    return run, given or said or LATEST


def checkpoint_of(text: str | os.PathLike[str], step: str | int = "") -> Path:
    """Return the folder of the checkpoint that is meant (see `named`), unread.

    The best is the one that was saved with the lowest (or highest) `checkpoint.best_metric` of the run's config.

    Raises:
      UserError: the run has none, none of that step (those that there are, are named), or none that was evaluated.
    """
    run, wanted = named(text, step)
    directory = absolute(run) / _CHECKPOINTS
    steps = finished_steps(directory)
    there = f"there {'is' if len(steps) == 1 else 'are'} {', '.join(map(str, steps))}"
    if wanted == LATEST or not steps:
        return locate(run)
    if wanted == BEST:
        settings = {"best_metric": "eval/loss", "best_mode": "min"}
        settings |= read_record(run)["config"].get("checkpoint", {})
        best = best_step(directory, settings["best_metric"], settings["best_mode"])
        if best is None:
            raise UserError(
                f"{run}: no checkpoint was saved with {settings['best_metric']}, so none is the best; {there} "
                "(training.eval_every and checkpoint.every say when a run is judged and saved)"
            )
        return directory / str(best)
    if int(wanted) not in steps:
        raise UserError(f"{run} has no checkpoint of step {wanted}; {there}")
    return directory / str(int(wanted))


def source_of(text: str | os.PathLike[str], which: Which) -> Source:
    """Return where the parameters that are meant are read; `text` names the run, or one of its checkpoints.

    Raises:
      UserError: as `checkpoint_of`; there are fewer checkpoints, or there is no such kind.
    """
    step, average, kind = which
    kind = kind or "trained"
    check_choice("--parameters", kind, ROOTS)
    check_range("--average", average, at_least=1)
    last = checkpoint_of(text, step)
    if average == 1:
        return Source((last,), kind)
    run, steps = named(text, step)[0], [one for one in finished_steps(last.parent) if one <= int(last.name)]
    if len(steps) < average:
        kept = read_record(run)["config"].get("checkpoint", {}).get("keep_last", "not known")
        raise UserError(
            f"--average={average}: {run} has {len(steps)} checkpoint{'s' * (len(steps) > 1)} up to step {last.name} "
            f"({', '.join(map(str, steps))}); how many are kept, checkpoint.keep_last says (here {kept}; 0: all), and "
            "how often one is saved, checkpoint.every"
        )
    return Source(tuple(last.parent / str(one) for one in steps[-average:]), kind)


def check_may_train(workdir: Path) -> None:
    """Raise UserError for a folder in which no run may begin or go on: one of a run's checkpoints, and one that has
    checkpoints but no config.json, over which a new run would write."""
    if is_run(workdir):
        return
    run, step = named(workdir)
    if run != workdir:
        what = "are the checkpoints" if step == LATEST else f"is the checkpoint {step}"
        raise UserError(
            f"--workdir: {workdir} {what} of the run {run}; give --workdir={run} to go on with it, or another folder "
            f"and --config.init_from={run}@{step} to start from there"
        )
    there = [path.name for path in folders_in(workdir / _CHECKPOINTS) if path.name.partition(".")[0].isdecimal()]
    if there:
        raise UserError(
            f"{workdir} has checkpoints ({', '.join(there)}) but no config.json, which says whose they are; bring it "
            "back from a copy to go on, choose another --workdir, or delete the checkpoints to start afresh"
        )


def _is_step(text: str) -> bool:
    return text in (LATEST, BEST) or (text.isascii() and text.isdecimal())


def _is_there(path: Path) -> bool:
    return is_run(path) if is_remote(path) else path.exists()
