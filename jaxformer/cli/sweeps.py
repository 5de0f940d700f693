"""The verb `sweep`: its flags, and what it does."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.storage import finite, local_path, location

EXAMPLE = (
    "sweep --config=bert:small --study=studies/lr --sweep.optimizer.learning_rate=1e-4,3e-4,1e-3 --sweep.seed=0:3\n"
    "         jaxformer sweep status --study=studies/lr\n"
    "--sweep.SECTION.KEY=A,B,C searches a list, LOW..HIGH[:log][:int][:STEP] a range, and 0:3 is 0,1,2;\n"
    "--sweep.KEY,KEY=(A,B),(C,D) are lists that go together; seeds are averaged"
)

SEVERAL = (
    "the processes of a job are one worker of a sweep, and train each run together; leave --parallel and --processes "
    "of the sweep out, and start several jobs instead (slurm --array=N, elsewhere one each, under names of their own)"
)


def add_sweep(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    verb = add("sweep", sweep, "search hyperparameters of an experiment, by trainings as `train` makes them", EXAMPLE,
               overrides=True)  # fmt: skip
    verb.add_argument("action", nargs="?", choices=("status",), help="status: show how a study stands, and do nothing")
    verb.add_argument("--config", metavar="NAME[:ARG]|FILE[:ARG]", help="the experiment")
    verb.add_argument(
        "--study", metavar="DIR", help="the study's folder; one that is there goes on (default: studies/…)"
    )
    verb.add_argument(
        "--space",
        metavar="FILE.py[:ARG]",
        help="whose get_sweep(arg) is searched (default: the experiment's)",
    )
    verb.add_argument(
        "--metric", default="", metavar="NAME[:min|max],…",
        help="what is sought: eval/…, train/…, hours, device_hours, energy_kwh, emissions_kg; several: the Pareto "
        "front (default: that of the experiment's best checkpoint)",
    )  # fmt: skip
    verb.add_argument(
        "--sampler",
        default="",
        metavar="NAME",
        help="grid, random, tpe, cma_es (default: grid for lists, tpe with ranges)",
    )
    verb.add_argument("--trials", type=int, default=0, metavar="N", help="points to try (default: all of a grid)")
    verb.add_argument("--search-seed", type=int, default=0, metavar="N", help="of what is drawn at random (default: 0)")
    verb.add_argument(
        "--pruner",
        default="none",
        metavar="NAME",
        help="ends runs early by their evaluations: none, median, halving, hyperband (default: none)",
    )
    verb.add_argument("--keep", default="best", metavar="WHOSE", help="checkpoints: best, all, none (default: best)")
    verb.add_argument("--attempts", type=int, default=2, metavar="N", help="of a run that fails (default: 2)")
    verb.add_argument(
        "--storage",
        default="",
        metavar="URL",
        help="a database that machines share (default: a journal in DIR)",
    )
    verb.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time, here (default: 1)")
    verb.add_argument("--processes", type=int, default=1, metavar="N", help="processes of each run, here (default: 1)")
    verb.add_argument("--allow-config-change", action="store_true", help="go on although the study is another one now")
    verb.add_argument("--quiet", action="store_true", help="show nothing but the result")
    verb.add_argument("--json", action="store_true", help="print the runs as JSON")
    verb.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)


def sweep(args: argparse.Namespace, overrides: list[str]) -> int:
    if args.action == "status":
        return status(args)
    _check(args, overrides)

    from jaxformer import studies

    if args.worker:
        studies.worker(location(args.study), parent=True)
        return 0
    shows = joined(args.parallel * args.processes > 1)
    if args.config:
        study = studies.open_study(*_asked(args, overrides), _storage(args), args.allow_config_change)
    else:
        study = studies.read_study(location(args.study), _storage(args))
    found = studies.run_study(study, args.parallel, args.processes, quiet=args.quiet)
    if shows:
        _show(args, study, found)
    return 0


def joined(starts_workers: bool) -> bool:
    """Join the processes that are one worker together with this one, or make it one that only starts workers, whose
    devices it leaves alone; say whether it shows what the study gives."""
    from jaxformer import studies
    from jaxformer.devices import expects_peers

    if not starts_workers:
        return studies.joined()
    if expects_peers():
        raise UserError(f"--parallel: {SEVERAL}")
    studies.leave_devices()
    return True


def check_launch(args: argparse.Namespace, overrides: list[str], asked: Any) -> None:
    """Raise UserError for a sweep that cannot be launched: what is wrong with it shows before machines are paid for.
    `asked` is the place's job and its options."""
    job, options = asked
    sizes = {"--hosts": job.hosts, "--slices": job.slices, "--processes": getattr(options, "processes", 1)}
    sizes["--tasks-per-node"] = getattr(options, "tasks_per_node", 1)
    for flag, number in sizes.items():
        if number > 1 and args.parallel * args.processes > 1:
            raise UserError(f"{flag}: {SEVERAL}")
    _check(args, overrides)
    if not args.config:
        return

    from jaxformer import studies

    studies.check_search(studies.planned_study(*_asked(args, overrides), _storage(args)))


def _storage(args: argparse.Namespace) -> str:
    return args.storage or os.environ.get("JAXFORMER_SWEEP_STORAGE", "")


def _asked(args: argparse.Namespace, overrides: list[str]) -> tuple[Path, Any, Any, Any]:
    """Return the folder, the experiment, the space and the settings that the words say."""
    from jaxformer import config as configs
    from jaxformer import studies

    experiment = studies.Experiment(studies.absolute_spec(args.config), tuple(overrides))
    if args.searched:
        space = studies.read_words(args.searched)
    else:
        space = configs.load_described(args.space or args.config, "get_sweep", "--space" if args.space else "--config")
    names = ("sampler", "trials", "search_seed", "pruner", "keep", "attempts")
    metrics = tuple(name for name in args.metric.split(",") if name)
    settings = studies.Settings(metrics=metrics, **{name: getattr(args, name) for name in names})
    return location(args.study) if args.study else studies.default_study(args.config), experiment, space, settings


def _check(args: argparse.Namespace, overrides: list[str]) -> None:
    check_range("--parallel", args.parallel, at_least=1)
    check_range("--processes", args.processes, at_least=1)
    if not args.config and not args.study:
        raise UserError("give --config, the experiment, or --study, a study to go on with")
    if not args.config and (overrides or args.searched or args.space or args.metric or args.sampler):
        raise UserError("--config: what is searched, and how, is said together with the experiment; give that, too")
    if args.searched and args.space:
        raise UserError("--space: --sweep.KEY says what is searched; leave one of them out")


def _show(args: argparse.Namespace, study: Any, found: Any) -> None:
    from jaxformer import report, studies

    if args.json:
        print(json.dumps(finite(found.rows())))
        return
    report.print_sweep(found)
    if found.best is None:
        print(f"no point is finished: {study.folder}")
        return
    if (page := study.folder / "report" / "report.html").exists():
        print(f"report: {page}")
    print(f"best: {studies.best_command(study, found) or study.folder / 'best.py'}")


def status(args: argparse.Namespace) -> int:
    """Show how a study stands."""
    from jaxformer import report

    if not args.study:
        raise UserError("sweep status: give --study=DIR")
    found = report.read_sweep(location(args.study))
    if args.json:
        print(json.dumps(finite({"record": dict(found.record), "costs": found.costs(), "runs": found.rows()})))
    else:
        report.print_sweep(found)
    return 0


def train_seeds(args: argparse.Namespace, overrides: list[str], workdir: Path) -> int:
    """Train an experiment with several seeds, as a study of one point, and print mean and spread of what it gave."""
    if args.seeds < 1 or args.profile:
        raise UserError("--seeds: give at least 1, and no --profile, which is of one run")
    from jaxformer import config as configs
    from jaxformer import studies
    from jaxformer.report import print_seeds

    first = configs.load(args.config, overrides).seed
    shows = joined(starts_workers=False)
    space = {"seed": list(range(first, first + args.seeds))}
    experiment = studies.Experiment(studies.absolute_spec(args.config), tuple(overrides))
    folder = location(args.workdir) if args.workdir else workdir.with_name(f"{workdir.name}-seeds")
    study = studies.open_study(folder, experiment, space, studies.Settings(), "", args.allow_config_change)
    found = studies.run_study(study, quiet=args.quiet)
    if shows:
        print_seeds(found)
    return 0


def report_sweep(args: argparse.Namespace, folder: Path) -> int:
    """Write the page on a study, by default into its own folder."""
    from jaxformer import report

    found = report.read_sweep(folder)
    if args.json:
        print(json.dumps(finite(found.rows())))
        return 0
    output = local_path(args.output or folder / "report", "--output")
    command = f"jaxformer train --config={folder / 'best.py'}" if found.best is not None else ""
    page = report.write_sweep_report(found, output, command)
    report.print_sweep(found)
    print(f"report: {page}")
    return 0
