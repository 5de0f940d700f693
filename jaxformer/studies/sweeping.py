"""A sweep from beginning to end: what it will take, what is shown meanwhile, and what it leaves."""

import contextlib
import dataclasses
import os
import re
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from jaxformer import report
from jaxformer.checks import several
from jaxformer.config import load_described
from jaxformer.devices import has_peers, is_first
from jaxformer.errors import Interrupted, UserError, suggest
from jaxformer.models import Execution, Model, count_parameters
from jaxformer.report import Sweep
from jaxformer.runs import Display
from jaxformer.storage import is_remote, location, write_lines
from jaxformer.studies import space as spaces
from jaxformer.studies.searching import Search, check_search
from jaxformer.studies.space import described
from jaxformer.studies.study import Experiment, Settings, Study, open_study
from jaxformer.studies.workers import share_out, stoppable
from jaxformer.studies.working import END, Apart, follow, keep_checkpoints, tell, work
from jaxformer.tables import gigabytes

BEST = "best.py"
SHOW_SECONDS = 2.0
_FAR_SHOW_SECONDS = 30.0  # on an object store, whose every file is a request


def sweep(
    config: str | Mapping[str, Any], space: Mapping[str, Any] | None = None, study: str | Path = "", *,
    overrides: Sequence[str] = (), storage: str = "", parallel: int = 1, processes: int = 1,
    allow_config_change: bool = False, quiet: bool = False, **settings: Any,
) -> Sweep:  # fmt: skip
    """Search a space over a config and return the study with all its trials; `load_study` gives them as rows.

    `config` is an experiment's name or file, as for `jaxformer train`, or a dict of its sections; `space` what is
    searched (see `jaxformer.studies.space`; None: the experiment's own `get_sweep`), `study` the folder, in which a
    sweep that was broken off goes on. `parallel` trials run at a time, each in so many `processes`. `settings` are
    those of `jaxformer sweep`: metrics, sampler, trials, search_seed, pruner, keep, attempts. Raises UserError for what
    the user can mend, before anything is trained.
    """
    if isinstance(config, str):
        experiment = Experiment(absolute_spec(config), tuple(overrides))
    else:
        experiment = Experiment("config", tuple(overrides), dict(config))
    if space is None:
        space = load_described(experiment.spec, "get_sweep") if isinstance(config, str) else {}
    known = [field.name for field in dataclasses.fields(Settings)]
    for name in settings:
        if name not in known:
            raise UserError(f"sweep: no setting '{name}'{suggest(name, known)}; there are {', '.join(known)}")
    chosen = Settings(**settings | {"metrics": several(settings.get("metrics", ()))})
    folder = location(study or default_study(experiment.spec))
    made = open_study(folder, experiment, space, chosen, storage, allow_config_change)
    return run_study(made, parallel, processes, quiet=quiet)


def default_study(spec: str) -> Path:
    """Return studies/NAME[-ARG] for a config NAME[:ARG] or FILE[:ARG]."""
    name, _, arg = spec.rpartition("/")[2].partition(":") if ".py" in spec else spec.partition(":")
    return Path("studies") / re.sub(r"[^\w.-]+", "-", "-".join(filter(None, (name.removesuffix(".py"), arg))))


def absolute_spec(spec: str) -> str:
    """Return NAME[:ARG] as it is and FILE[:ARG] with the whole path of the file, as workers elsewhere need it."""
    file, colon, arg = spec.partition(".py")
    if not colon:
        return spec
    return f"{os.path.abspath(os.path.expanduser(file))}.py{arg}"


def run_study(study: Study, parallel: int = 1, processes: int = 1, *, quiet: bool = False) -> Sweep:
    """Train what is left of a study, by `parallel` workers here of so many processes each, and write what was found
    into its folder. Where this process has peers, all of them call it, and are one worker."""
    check_search(study)
    if has_peers() and not is_first():
        follow(study)
        return report.read_sweep(study.folder)
    Search(study)  # a storage that cannot be used is told now
    with Display(quiet=quiet) as display:
        for line in what_it_takes(study, parallel):
            display.note(line)
    train_study(study, parallel, processes, quiet=quiet)
    found = finish(study)
    tell(END)
    return found


def train_study(study: Study, parallel: int = 1, processes: int = 1, *, quiet: bool = False) -> Sweep:
    """Train what is left of a study, by `parallel` workers here of so many processes each, and return it. Raises
    Interrupted, after saving, on SIGTERM or Ctrl-C."""
    try:
        with stoppable(), _shown(study, parallel, quiet) as say:
            if parallel * processes > 1:
                share_out(study, parallel, processes, say)
            else:
                work(study, say)
    except Apart:
        raise
    except (Interrupted, KeyboardInterrupt) as stop:
        done = report.progress_line(report.read_sweep(study.folder))
        code = stop.code if isinstance(stop, Interrupted) else 130
        raise Interrupted(f"stopped: {done}; run the same command to go on", code=code) from stop
    keep_checkpoints(study)
    return report.read_sweep(study.folder)


def finish(study: Study) -> Sweep:
    """Write what a study found: the best point as an experiment file, and the page."""
    found = report.read_sweep(study.folder)
    if found.best is not None:
        write_lines(study.folder / BEST, [best_file(study, found)])
        if not is_remote(study.folder):
            report.write_sweep_report(found, study.folder / "report", best_command(study, found))
    return found


def what_it_takes(study: Study, parallel: int) -> list[str]:
    """Return what a person should know before a study starts: how many runs, and how much disk they keep."""
    base = study.experiment.config()
    fixed = study.fixed_points()
    points = study.settings.trials if fixed is None else len(fixed)
    runs = points * len(study.seeds)
    # AdamW keeps two numbers for every parameter, Adafactor hardly any, and EMA one more.
    copies = (1.1 if base.selected["optimizer"] == "adafactor" else 3.0) + bool(base.training.ema_decay)
    each = count_parameters(Model(base.model, Execution())) * 4 * copies
    size = each * (max(base.checkpoint.keep_last, 1) + base.checkpoint.keep_best)
    kept = {"all": runs, "best": len(study.seeds), "none": 0}[study.settings.keep]
    most = size * max(kept, min(kept + max(parallel, len(study.seeds)), runs))
    return [
        f"{points} points by {study.settings.sampler}, {len(study.seeds)} seed{'s' * (len(study.seeds) > 1)} each: "
        f"{runs} runs of {_steps(study, base.training.num_steps)} steps, judged by {', '.join(study.settings.metrics)}",
        f"disk: about {gigabytes(size)} of checkpoints a run while it trains, {gigabytes(size * kept)} kept "
        f"(--keep={study.settings.keep}), at most {gigabytes(most)} at a time",
    ]


def _steps(study: Study, base: int) -> str:
    """Return how many steps the runs of a study take, `base` in its experiment, or how few and many where that is
    searched."""
    searched = {int(point.get("training.num_steps", base)) for point in study.space.checked()}
    return " to ".join(f"{steps:,}" for steps in sorted({min(searched), max(searched)}))


def best_command(study: Study, found: Sweep) -> str:
    """Return the command that trains the best point again, or "" where no command line can say it."""
    point, words = found.best, study.experiment.command
    if point is None or not words:
        return ""
    values = [f"--config.{word}" for word in spaces.overrides_of(point.values)]
    workdir = study.folder.with_name(f"{study.folder.name}-best")
    return shlex.join([*words, *values, f"--config.seed={study.seeds[0]}", f"--workdir={workdir}"])


def best_file(study: Study, found: Sweep) -> str:
    """Return an experiment file that gives the best point's whole config, as data."""
    assert found.best is not None
    values = spaces.overrides_of(found.best.values)
    config = study.experiment.config([*values, f"seed={study.seeds[0]}"])
    metrics = ", ".join(f"{name} {found.best.mean(name):.4g}" for name in found.metrics)
    lines = [
        f'"""The best point of the study {study.folder.name}: {described(found.best.values)} ({metrics}).',
        "",
        f"jaxformer train --config={study.folder / BEST}",
        '"""',
        "",
        "from ml_collections import ConfigDict",
        "",
        "",
        'def get_config(arg: str = "") -> ConfigDict:',
        "    return ConfigDict(",
        "        {",
    ]
    for section, entries in config.to_dict().items():
        if isinstance(entries, Mapping):
            lines += [f"            {section!r}: {{"]
            lines += [f"                {key!r}: {value!r}," for key, value in entries.items()]
            lines += ["            },"]
        else:
            lines += [f"            {section!r}: {entries!r},"]
    return "\n".join([*lines, "        }", "    )"])


@contextlib.contextmanager
def _shown(study: Study, at_once: int, quiet: bool) -> Iterator[Any]:
    """Show the study's table on a terminal while the block runs; give what prints a line where there is none."""
    console = Console(stderr=True, highlight=False, emoji=False, quiet=quiet)
    if not console.is_interactive:
        yield lambda line: console.print(line, markup=False, soft_wrap=True)
        return
    closed = threading.Event()
    seconds = _FAR_SHOW_SECONDS if is_remote(study.folder) else SHOW_SECONDS
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def draw() -> None:
            while not closed.wait(seconds):
                with contextlib.suppress(OSError, UserError, ValueError):
                    found = report.read_sweep(study.folder)
                    shown = report.sweep_table(found)
                    shown.caption = report.progress_line(found, at_once)
                    live.update(shown, refresh=True)

        thread = threading.Thread(target=draw, name="table", daemon=True)
        thread.start()
        try:
            yield lambda line: None
        finally:
            closed.set()
            thread.join()
