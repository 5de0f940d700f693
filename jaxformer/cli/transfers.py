"""The verbs `transfer` and `demo`: their flags, and what they do."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxformer.checks import check_range
from jaxformer.errors import UserError
from jaxformer.storage import finite, local_path

EXAMPLE = (
    "transfer --pretrained=runs/bert-smoke --config=finetune/area:bert,smoke --labels=0.05,0.2,1\n"
    "Trains from the run and from scratch, each with the learning rate that suits it, and compares them"
)


def add_transfer(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    verb = add("transfer", transfer, "show what a checkpoint is worth for a task, against training from scratch",
               EXAMPLE, overrides=True)  # fmt: skip
    verb.add_argument("--pretrained", required=True, metavar="RUN", help="the run to start from; RUN@best, RUN@STEP")
    verb.add_argument("--config", required=True, metavar="NAME[:ARG]|FILE[:ARG]", help="the task, as finetune/…")
    verb.add_argument(
        "--study", metavar="DIR", help="where it all goes; one that is there goes on (default: studies/transfer-…)"
    )
    verb.add_argument(
        "--labels", default="0.01,0.1,1", metavar="N,…",
        help="how many: up to 1 shares of the training split's labels, else counts (default: 0.01,0.1,1)",
    )  # fmt: skip
    verb.add_argument(
        "--steps", default="", metavar="N,…",
        help="of each of --labels, or one for all (default: training.num_steps with the most labels, and with fewer "
        "in proportion to the square root of their number)",
    )  # fmt: skip
    verb.add_argument(
        "--rates", default="", metavar="X,…",
        help="learning rates to choose from, on the validation split with the most labels (default: a third, one and "
        "three times the config's)",
    )  # fmt: skip
    verb.add_argument("--scratch-rates", default="", metavar="X,…", help="those from scratch, where they are others")
    verb.add_argument("--seeds", type=int, default=3, metavar="N", help="of the fine-tunings (default: 3)")
    verb.add_argument(
        "--metric", default="", metavar="NAME[:min|max]", help="eval/… (default: that of the config's best checkpoint)"
    )
    verb.add_argument("--split", default="test", choices=("test", "validation"), help="that judges (default: test)")
    verb.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at a time, here (default: 1)")
    verb.add_argument("--allow-config-change", action="store_true", help="go on although something else is asked now")
    verb.add_argument("--quiet", action="store_true", help="show nothing but the result")
    verb.add_argument("--json", action="store_true", help="print what was found as JSON")


def add_demo(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb to the command line."""
    verb = add("demo", demo, "show what pretraining is worth, on the built-in corpus", "demo --family=bert")
    verb.add_argument("--family", default="bert", choices=("bert", "gpt", "t5", "all"), help="default: bert")
    verb.add_argument("--output", default="runs/demo", metavar="DIR", help="where it all goes (default: runs/demo)")


def transfer(args: argparse.Namespace, overrides: list[str]) -> int:
    check_range("--parallel", args.parallel, at_least=1)
    rates = {name: _numbers(f"--{name.replace('_', '-')}", getattr(args, name)) for name in ("rates", "scratch_rates")}
    labels = _numbers("--labels", args.labels)
    steps = tuple(int(number) for number in _numbers("--steps", args.steps, whole=True))

    from jaxformer import studies
    from jaxformer.devices import expects_peers

    if expects_peers():
        raise UserError(
            "transfer: each of its runs is one process; start it as one, with --parallel=N for several runs"
        )
    default = studies.default_study(args.config)
    folder = local_path(args.study or default.with_name(f"transfer-{default.name}"), "--study")
    asked = studies.Transfer(
        config=studies.absolute_spec(args.config), pretrained=args.pretrained, overrides=tuple(overrides),
        labels=labels, steps=steps, seeds=args.seeds, metric=args.metric, split=args.split, **rates,
    )  # fmt: skip
    found = studies.transfer(
        asked, folder, parallel=args.parallel, quiet=args.quiet, allow_change=args.allow_config_change
    )
    _show(args, found, folder / "report" / "report.html")
    return 0


def _numbers(option: str, text: str, whole: bool = False) -> tuple[float, ...]:
    """Return the numbers of a list. Raises UserError for one that is none, or not above 0."""
    found: list[float] = []
    for word in filter(None, text.split(",")):
        try:
            found.append(int(word) if whole else float(word))
        except ValueError:
            raise UserError(
                f"{option}: '{word}' is no {'whole ' * whole}number; give some, with commas between"
            ) from None
        check_range(option, found[-1], above=0)
    return tuple(found)


def _show(args: argparse.Namespace, found: Mapping[str, Any], page: Path) -> None:
    from jaxformer import report

    if args.json:
        print(json.dumps(finite(found)))
        return
    report.print_transfer(found)
    print(f"report: {page}")


def report_transfer(args: argparse.Namespace, folder: Path) -> int:
    """Write the page on a transfer, by default into its own folder."""
    from jaxformer import report

    found = report.read_transfer(folder)
    page = Path() if args.json else report.write_transfer_report(
        found, local_path(args.output or folder / "report", "--output")
    )  # fmt: skip
    _show(args, found, page)
    return 0


def demo(args: argparse.Namespace, overrides: list[str]) -> int:
    from jaxformer.studies import run_demo

    run_demo(args.family, local_path(args.output, "--output"))
    return 0
