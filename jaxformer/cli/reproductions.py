"""The verb `reproduce`: its flags, and what it does."""

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.storage import finite, local_path, location

CHECK, PAGES = "check", "pages"
EXAMPLE = (
    "reproduce bert_table5\n"
    "         jaxformer reproduce bert_table5 --scale=small --data=FOLDER\n"
    "         jaxformer reproduce check docs/results/bert_table5.json --data=FOLDER\n"
    "The first takes about two minutes. Without a name it lists the tables, and what each costs at every scale"
)
SCALES = ("smoke", "small", "paper")


def add_reproduce(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    verb = add("reproduce", reproduce, "train a paper's table of ablations, and set ours beside theirs", EXAMPLE)
    verb.add_argument(
        "name",
        nargs="?",
        metavar="NAME|FILE.py|check|pages",
        help="the table; check: train a row of a result "
        "again; pages: write the pages of results anew, from their JSON files",
    )
    verb.add_argument("result", nargs="?", metavar="FILE.json|DIR", help="of check: the result; of pages: their folder")
    verb.add_argument(
        "--scale", default="smoke", choices=SCALES,
        help="smoke: the machinery, on the built-in corpus; small: some rows, on your files; paper: the paper's "
        "setting, for a pod (default: smoke)",
    )  # fmt: skip
    verb.add_argument("--data", default="", metavar="FOLDER", help="what `small` reads (see docs/reproducing.md)")
    verb.add_argument(
        "--study", metavar="DIR", help="where it all goes; one that is there goes on (default: studies/NAME-SCALE)"
    )
    verb.add_argument("--rows", default="", metavar="ROW;…", help="only these, and the row that they are compared with")
    verb.add_argument("--seeds", type=int, default=0, metavar="N", help="of each row (default: what the table says)")
    verb.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time, here (default: 1)")
    verb.add_argument("--processes", type=int, default=1, metavar="N", help="processes of each run, here (default: 1)")
    verb.add_argument(
        "--place",
        dest="where",
        default="",
        metavar="'PLACE FLAGS'",
        help="where to run it, in the words of `jaxformer launch`: 'slurm --nodes=4'",
    )
    verb.add_argument("--row", default="", metavar="ROW", help="of check: which row (default: drawn)")
    verb.add_argument("--seed", type=int, default=None, metavar="N", help="of check: which seed (default: drawn)")
    verb.add_argument(
        "--dry-run", action="store_true", help="say what would be trained and what it costs, and do nothing"
    )
    verb.add_argument("--allow-config-change", action="store_true", help="go on although the table is another one now")
    verb.add_argument("--quiet", action="store_true", help="show nothing but the result")
    verb.add_argument("--json", action="store_true", help="print JSON")


def reproduce(args: argparse.Namespace, overrides: list[str]) -> int:
    if not args.name:
        return _list(args)
    if args.name == CHECK:
        return _check(args)
    if args.name == PAGES:
        return _pages(args)
    if args.result is not None:
        raise UserError(f"'{args.result}': one table at a time; only `reproduce check` takes a file")
    if args.row or args.seed is not None:
        raise UserError("--row, --seed: they belong to `reproduce check`; here it is --rows and --seeds")
    check_range("--parallel", args.parallel, at_least=1)
    check_range("--processes", args.processes, at_least=1)
    check_range("--seeds", args.seeds, at_least=0)
    asked, folder = _asked(args)
    if args.where:
        return _launch(args, folder)

    from jaxformer import report, studies
    from jaxformer.cli.sweeps import joined

    if args.dry_run:
        _dry_run(args, studies.planned(asked))
        return 0
    shows = joined(args.parallel * args.processes > 1)
    found = studies.reproduce(
        asked, folder, parallel=args.parallel, processes=args.processes, quiet=args.quiet,
        allow_change=args.allow_config_change,
    )  # fmt: skip
    if shows and args.json:
        print(json.dumps(finite(found)))
    elif shows:
        report.print_reproduction(found)
        print(f"report: {folder / 'report' / 'report.html'}")
    return 0


def _asked(args: argparse.Namespace) -> tuple[Any, Path]:
    """Return what is to be reproduced, and the folder."""
    from jaxformer import studies

    data = str(local_path(args.data, "--data").absolute()) if args.data else ""
    if data and not Path(data).is_dir():
        raise UserError(f"--data: no folder {args.data}")
    table = studies.absolute_spec(args.name)
    rows = tuple(filter(None, (row.strip() for row in args.rows.split(";"))))
    if rows:  # the base is what all others are compared with
        rows = tuple(dict.fromkeys((studies.read_table(table, args.scale).base, *rows)))
    asked = studies.Reproduction(table=table, scale=args.scale, data=data, rows=rows, seeds=tuple(range(args.seeds)))
    name = table.rpartition("/")[2].removesuffix(".py")
    return asked, location(args.study or Path("studies") / f"{name}-{args.scale}")


def _pages(args: argparse.Namespace) -> int:
    """Write the pages, the pictures and the index of a folder of results."""
    from jaxformer import report

    if args.result is None:
        raise UserError("pages: name the folder of the results, as docs/results")
    for path in report.write_results(local_path(args.result, "reproduce pages")):
        print(path)
    return 0


def check_launch(args: argparse.Namespace) -> None:
    """Raise UserError for a reproduction that cannot be launched: what is wrong with it shows before machines are paid
    for."""
    from jaxformer import studies

    if args.name and args.name not in (CHECK, PAGES):
        studies.planned(_asked(args)[0])


def _launch(args: argparse.Namespace, folder: Path) -> int:
    """Run the same command at a place, as `jaxformer launch PLACE FLAGS -- reproduce …` does."""
    from jaxformer.cli import main

    given = {"scale": args.scale, "data": args.data, "study": str(folder), "rows": args.rows}
    given |= {name: str(getattr(args, name)) for name in ("seeds", "parallel", "processes")}
    flags = [f"--{name}={value}" for name, value in given.items() if value not in ("", "0")]
    flags += [f"--{name.replace('_', '-')}" for name in ("allow_config_change", "quiet", "json") if getattr(args, name)]
    own = ["--dry-run"] if args.dry_run else []
    if args.dry_run:
        from jaxformer import studies

        _dry_run(args, studies.planned(_asked(args)[0]))
    return main.main(["launch", *shlex.split(args.where), *own, "--", "reproduce", args.name, *flags])


def _dry_run(args: argparse.Namespace, plan: Any) -> None:
    """Print every run of a reproduction, and what all of them cost."""
    from jaxformer import studies

    if args.json:
        runs = [{"stage": stage, "row": row, "seed": seed} for stage, row, seed in plan.runs()]
        print(json.dumps({"runs": runs, **studies.work_in(plan)._asdict()}))
        return
    for line in studies.told(plan):
        print(line)
    for command in studies.commands(plan):
        print(f"  {command}")


def _list(args: argparse.Namespace) -> int:
    from jaxformer import studies
    from jaxformer.tables import table

    found = studies.listed()
    if args.json:
        print(json.dumps(found))
        return 0
    from rich.console import Console

    from jaxformer.tables import duration, roomy, table_width

    headings, rows = ["Table", "Of", "Rows", *SCALES], []
    for entry in found:
        cells = [entry["name"], f"{entry['paper']}, {entry['place']}", str(entry["rows"])]
        for scale in SCALES:
            cost = entry["scales"][scale]
            hours = f"{cost['device_hours']:,.0f} h" if scale == "paper" else duration(cost["seconds"])
            cells.append(f"{cost['runs']} runs, {hours}")
        rows.append(cells)
    shown = table()
    for heading in headings:
        shown.add_column(heading, justify="left" if heading in headings[:2] else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console = roomy(Console(), table_width([list(column) for column in zip(headings, *rows, strict=True)]))
    console.print(shown)
    console.print(
        "smoke and small: about how long on two CPU cores; paper: hours of an A100 at 40 % of its peak. Run one: "
        "jaxformer reproduce NAME",
        soft_wrap=True,
    )
    return 0


def _check(args: argparse.Namespace) -> int:
    from jaxformer import studies

    if args.result is None:
        raise UserError("check: name the result, as docs/results/bert_table5.json")
    found = studies.check_result(
        local_path(args.result, "reproduce check"), row=args.row, seed=args.seed,
        data=str(local_path(args.data, "--data").absolute()) if args.data else "",
        folder=location(args.study) if args.study else None, quiet=args.quiet,
    )  # fmt: skip
    if args.json:
        print(json.dumps(finite(found)))
        return 0
    for line in found["lines"]:
        print(line)
    return 0


def report_reproduction(args: argparse.Namespace, folder: Path) -> int:
    """Write the page on a reproduction of a paper's table, by default into its own folder."""
    from jaxformer import report

    found = report.read_reproduction(folder)
    if args.json:
        print(json.dumps(finite(found)))
        return 0
    page = report.write_reproduction_report(found, local_path(args.output or folder / "report", "--output"))
    report.print_reproduction(found)
    print(f"report: {page}")
    return 0
