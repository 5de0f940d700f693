"""The command line: thin verbs over the library. Nothing heavy is imported before it is known to be needed."""

import argparse
import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxformer import __version__
from jaxformer.checks import several
from jaxformer.cli import verbs
from jaxformer.cli.flags import add_flags
from jaxformer.cli.reproductions import add_reproduce
from jaxformer.cli.sweeps import add_sweep
from jaxformer.cli.transfers import add_demo, add_transfer
from jaxformer.errors import Interrupted, UserError
from jaxformer.generation import GenerationConfig

OVERRIDE, SEARCHED = "--config.", "--sweep."
CHANGED = "go on although the run's data or tokenizer changed"
STEP = "the checkpoint (default: latest); --workdir=DIR@best says it, too"
OVERRIDES = "--config.SECTION.KEY=VALUE overrides any key of the config"


def main(arguments: str | Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0 done, 2 the user can fix it, 75 preempted after saving, 130 Ctrl-C, 1 our fault.

    A process that has peers does not return: it ends, so that they do not wait for it.
    """
    try:
        code = _main(arguments)
    except SystemExit as end:  # argparse, or a terminal that has gone
        if _processes() is None:
            raise
        code = end.code if isinstance(end.code, int) else 1
    if (processes := _processes()) is not None:
        processes.leave(code, together=code in (0, 75))
    return code


def _processes() -> Any:
    """Return the module `processes` in a process that has peers, else None. Nothing is imported to find out."""
    module = sys.modules.get("jaxformer.devices.processes")
    return module if module is not None and module.has_peers() else None


def _main(arguments: str | Sequence[str] | None) -> int:
    words = list(several(sys.argv[1:] if arguments is None else arguments))
    # Behind a lone -- stands the command line of another process.
    cut = words.index("--") if words[:1] == ["launch"] and "--" in words else len(words)
    own, others = words[:cut], words[cut + 1 :]
    parser, (own, overrides, searched) = _parser(), _sorted(own)
    args = parser.parse_args(own)
    args.searched = searched
    if hasattr(args, "place"):
        if not others:
            parser.error(
                f"launch {args.place}: nothing to run; give a verb behind --, as in: -- train --config=gpt:smoke"
            )
        inner, *keys = _sorted(others)
        args.command, args.inner = others, parser.parse_args(inner)
        args.inner.overrides, args.inner.searched = keys
    elif others:
        parser.error(f"unrecognized arguments: -- {' '.join(others)}")
    try:
        code = _run(args, overrides)
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return code
    except UserError as error:
        if args.traceback:
            traceback.print_exc()
        print(f"jaxformer {args.verb}: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"jaxformer {args.verb}: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print(f"jaxformer {args.verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if args.traceback:
            traceback.print_exc()
        what = next(iter(str(error).strip().splitlines()), "")
        if (processes := _processes()) is not None and processes.is_peers_end(error):
            processes.let_speak()
            said = "another process of this run has gone, and its own message says why; stopped"
            print(f"jaxformer {args.verb}: {said} (seen here: {what})", file=sys.stderr)
            processes.leave(75, together=False)  # this one can run again; whether the run can, the other's code says
        if args.traceback:
            return 1
        log = _log_traceback(getattr(args, "workdir", None))
        message = f"internal error: {type(error).__name__}: {what} (traceback in {log}; --traceback shows it)"
        print(f"jaxformer {args.verb}: {message}", file=sys.stderr)
        return 1


def _sorted(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the words of a verb, its overrides of a config, and what it searches, without what they begin with."""
    found = [[word.removeprefix(start) for word in words if word.startswith(start)] for start in (OVERRIDE, SEARCHED)]
    return [word for word in words if not word.startswith((OVERRIDE, SEARCHED))], found[0], found[1]


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    if overrides and not args.takes_overrides:
        raise UserError(f"--config.{overrides[0]}: this verb takes no config keys")
    if args.searched and args.verb != "sweep":
        raise UserError(f"--sweep.{args.searched[0]}: this verb searches nothing; `jaxformer sweep` does")
    return args.run(args, overrides)


def _log_traceback(workdir: str | None) -> Path:
    """Write the traceback into the run directory where there is one, else into a fresh file that is nobody else's."""
    text = traceback.format_exc()
    if workdir and Path(workdir).is_dir():
        processes = _processes()
        path = Path(workdir) / ("error.log" if processes is None else f"error-{processes.number()}.log")
        with contextlib.suppress(OSError):  # a full disk may be what failed
            path.write_text(text, encoding="utf-8")
            return path
    with tempfile.NamedTemporaryFile("w", prefix="jaxformer-error-", suffix=".log", delete=False) as file:
        file.write(text)
    return Path(file.name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxformer",
        description="Pretrain, fine-tune and judge the three Transformer families in JAX.",
        epilog="example: jaxformer train --config=bert:smoke   (jaxformer VERB --help has one for every verb)",
    )
    parser.add_argument("--version", action="version", version=f"jaxformer {__version__}")
    choices = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(
        name: str, run: Callable[..., int], text: str, example: str, *, overrides: bool = False, within: Any = choices
    ) -> argparse.ArgumentParser:
        # No abbreviations: a mistyped flag is an error, not a guess.
        epilog = f"example: jaxformer {example}" + (f"\n{OVERRIDES}" if overrides else "")
        verb = within.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_argument("--traceback", action="store_true", help="on an error, show Python's traceback")
        verb.set_defaults(run=run, takes_overrides=overrides)
        return verb

    def choose_parameters(verb: argparse.ArgumentParser) -> None:
        """Add what says which parameters of a run a verb reads."""
        verb.add_argument("--step", default="", metavar="N|best|latest", help=STEP)
        verb.add_argument(
            "--average", type=int, default=1, metavar="N", help="the mean of the last N checkpoints (up to --step)"
        )
        verb.add_argument(
            "--parameters", default="", choices=("trained", "ema"),
            help="ema: their moving average (default: evaluation.parameters of the run's config)",
        )  # fmt: skip

    def group(name: str, text: str, example: str, metavar: str) -> Any:
        """Add a verb that has actions of its own, and return where they are added."""
        verb = choices.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example: jaxformer {example}",
            allow_abbrev=False,
        )
        return verb.add_subparsers(dest="action", metavar=metavar, required=True)

    train = add(
        "train", verbs.train, "train, or resume, the run of a config", "train --config=bert:smoke", overrides=True
    )
    train.add_argument("--config", required=True, metavar="NAME[:ARG]|FILE[:ARG]", help="the experiment")
    train.add_argument("--workdir", metavar="DIR", help="the run directory (default: runs/NAME[-ARG])")
    train.add_argument(
        "--allow-config-change", action="store_true", help="resume although the config, or what the run reads, differs"
    )
    train.add_argument("--profile", action="store_true", help="write a trace of a few steps to DIR/profile")
    train.add_argument("--seeds", type=int, default=0, metavar="N", help="train with N seeds: mean and spread")
    train.add_argument("--quiet", action="store_true", help="show nothing but errors")

    add_sweep(add)
    add_transfer(add)
    add_reproduce(add)

    evaluate = add(
        "evaluate", verbs.evaluate, "judge a run on held-out data", "evaluate --workdir=runs/bert-smoke", overrides=True
    )
    evaluate.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
    choose_parameters(evaluate)
    evaluate.add_argument(
        "--split", default="validation", choices=("validation", "test", "train"), help="default: validation"
    )
    evaluate.add_argument("--allow-config-change", action="store_true", help=CHANGED)
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    generate = add(
        "generate", verbs.generate, "continue a prompt, or answer it",
        'generate --workdir=runs/gpt-smoke "Return the" --temperature=0.8 --top-k=40', overrides=True,
    )  # fmt: skip
    generate.add_argument("prompts", nargs="*", metavar="PROMPT", help="prompts (default: --input, or standard input)")
    fill = add(
        "fill", verbs.fill, "fill the masks of texts: candidates with their probabilities",
        'fill --workdir=runs/bert-smoke "The [MASK] is empty."', overrides=True,
    )  # fmt: skip
    predict = add(
        "predict", verbs.predict, "let a fine-tuned model answer: a line of JSON for each row",
        "predict --workdir=runs/tuned --input=new.jsonl --output=answers.jsonl", overrides=True,
    )  # fmt: skip
    embed = add(
        "embed", verbs.embed, "write vectors of texts, a .npy file",
        "embed --workdir=runs/bert-smoke --input=texts.txt --output=vectors.npy", overrides=True,
    )  # fmt: skip
    score = add(
        "score", verbs.score, "say how likely a model finds texts: a line of JSON for each row",
        'score --workdir=runs/gpt-smoke --context="Return the" " queue." " file."', overrides=True,
    )  # fmt: skip
    for verb in (fill, predict, embed, score):
        verb.add_argument("texts", nargs="*", metavar="TEXT", help="texts (default: --input, or standard input)")
    for verb in (generate, fill, predict, embed, score):
        verb.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
        choose_parameters(verb)
        verb.add_argument(
            "--input", default="", metavar="FILE|-",
            help=".jsonl, .csv, .tsv, …, or plain text, a text a line; -: stdin",
        )  # fmt: skip
        verb.add_argument("--overwrite", action="store_true", help="replace what is in the output")
        verb.add_argument("--allow-config-change", action="store_true", help=CHANGED)
    for verb in (generate, fill, predict, score):
        verb.add_argument(
            "--output",
            metavar="FILE",
            help="where lines of JSON go (default: to standard output); begun again, it goes on there",
        )
        verb.add_argument(
            "--skip-malformed",
            type=int,
            default=0,
            metavar="N",
            help="answer up to N malformed rows with what is wrong",
        )
    predict.add_argument(
        "--format", default="jsonl", choices=("jsonl", "official"),
        help="official: and beside the output what official scorers and servers read",
    )  # fmt: skip
    predict.add_argument("--task", default="", metavar="TITLE", help="which one, of a run that has learnt several")
    embed.add_argument("--output", required=True, metavar="FILE.npy", help="where the vectors go, float32 [N, D]")
    embed.add_argument(
        "--pooling", default="mean", choices=("mean", "first", "last"), help="of a text's tokens (default: mean)"
    )
    embed.add_argument(
        "--layer", type=int, default=-1, metavar="N", help="0: what the first layer reads; -1, the default: the last"
    )
    for verb in (generate, fill, embed, score):
        verb.add_argument("--field", default="", metavar="NAME", help="whose text is read, of rows with several fields")
    fill.add_argument("--top", type=int, metavar="N", help="candidates of each mask (default: 5, or all the targets)")
    fill.add_argument("--targets", default="", metavar="WORD,…", help="words that alone are candidates, a token each")
    fill.add_argument(
        "--one-by-one", action="store_true",
        help="fill several masks one after the other, the most certain first (default: each as if the others stayed)",
    )  # fmt: skip
    for verb in (generate, fill):
        verb.add_argument("--json", action="store_true", help="print a line of JSON for each text")
    generate.add_argument(
        "--stream", action=argparse.BooleanOptionalAction,
        help="show text as it comes (default: where a terminal shows the answers to PROMPTs)",
    )  # fmt: skip
    add_flags(generate, "generation", GenerationConfig)
    score.add_argument("--context", metavar="TEXT", help="what each TEXT stands behind")
    score.add_argument("--choose", action="store_true", help="the TEXTs are candidates: which is the likeliest?")
    score.add_argument(
        "--normalization", default="tokens", choices=("none", "tokens", "bytes", "characters", "unconditional"),
        help="how candidates are compared: by their log-likelihood (none), that of each of their tokens (the default), "
        "bytes or characters, or unconditional: less the log-likelihood without the context",
    )  # fmt: skip
    score.add_argument(
        "--unconditional", default="Answer: ", metavar="TEXT", help="what stands for no context (default: 'Answer: ')"
    )
    score.add_argument("--end", action="store_true", help="score the end token behind each text, too")
    score.add_argument("--per-token", action="store_true", help="tell the log-likelihood of every token")
    score.add_argument(
        "--document", action="store_true", help="texts of any length, a plain file whole, in windows: perplexity"
    )
    score.add_argument("--stride", type=int, default=0, metavar="N", help="tokens that each window adds (default: all)")
    score.add_argument("--length", type=int, default=0, metavar="N", help="tokens of a window (default: the model's)")

    report = add("report", verbs.report, "write a page with plots and a table of runs", "report runs/* --output=report")
    report.add_argument("runs", nargs="+", metavar="DIR", help="run directories, or the folder of a sweep or transfer")
    where = "where the page goes (default: report; of a sweep or transfer, its own folder)"
    report.add_argument("--output", default="", metavar="DIR", help=where)
    report.add_argument("--json", action="store_true", help="print the table as JSON and write nothing")

    imports = add(
        "import", verbs.import_weights, "make a run of weights in Hugging Face format",
        "import FOLDER --workdir=runs/imported   (or a hub's name, as google-bert/bert-base-uncased)",
    )  # fmt: skip
    imports.add_argument("source", metavar="FOLDER|NAME", help="config.json, safetensors and tokenizer files")
    imports.add_argument("--workdir", required=True, metavar="DIR", help="the new run directory")
    imports.add_argument("--tokenizer", metavar="FILE|DIR", help="tokenizer files, where the folder has none")
    imports.add_argument("--revision", metavar="NAME", help="a branch, tag or commit of the hub's repository")

    export = add(
        "export", verbs.export_weights, "write a run's checkpoint in Hugging Face format",
        "export --workdir=runs/gpt-smoke gpt-smoke",
    )  # fmt: skip
    export.add_argument("out", metavar="OUT", help="the new folder")
    export.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
    export.add_argument("--allow-config-change", action="store_true", help=CHANGED)
    choose_parameters(export)
    export.add_argument("--format", default="huggingface", choices=("huggingface",), help="default: huggingface")

    actions = group("tokenizer", "train and try tokenizers", "tokenizer show --tokenizer=runs/bert-smoke", "ACTION")
    trained = add(
        "train", verbs.tokenizer_train, "train the tokenizer of a config on its data",
        "tokenizer train --config=bert:smoke --output=tokenizer.json", overrides=True, within=actions,
    )  # fmt: skip
    trained.add_argument("--config", required=True, metavar="NAME[:ARG]|FILE[:ARG]", help="the experiment")
    trained.add_argument("--output", required=True, metavar="FILE", help="where the tokenizer.json goes")
    for name, run, text, words in (
        ("encode", verbs.tokenizer_encode, "turn text into ids", ("texts", "TEXT")),
        ("decode", verbs.tokenizer_decode, "turn ids into text", ("ids", "ID")),
        ("show", verbs.tokenizer_show, "show a tokenizer's sizes and special tokens", None),
    ):
        ending = {"encode": ' "Some text"', "decode": " 17 4 23", "show": ""}[name]
        action = add(name, run, text, f"tokenizer {name} --tokenizer=runs/bert-smoke{ending}", within=actions)
        action.add_argument("--tokenizer", required=True, metavar="FILE|DIR", help="a tokenizer.json or a run")
        if words:
            action.add_argument(words[0], nargs="+", metavar=words[1], type=int if name == "decode" else str)
        if name == "encode":
            action.add_argument(
                "--special", action="store_true", help="read special tokens that the text spells; else they are text"
            )
        action.add_argument("--json", action="store_true", help="print JSON")

    models = add("models", verbs.models, "list the presets of the eight systems", "models --plot=models.png")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.add_argument("--plot", metavar="FILE", help="draw sizes over time instead: .png, .svg or .pdf")

    objectives = add(
        "objectives", verbs.objectives, "list the objectives and the families of models that they train",
        "objectives   (jaxformer objectives show NAME --text=FILE shows one at work)",
    )  # fmt: skip
    objectives.add_argument("--json", action="store_true", help="print JSON")
    actions = objectives.add_subparsers(dest="action", metavar="ACTION")
    show = add(
        "show", verbs.objectives_show, "show what an objective makes of a text",
        "objectives show masked_lm --text=README.md", overrides=True, within=actions,
    )  # fmt: skip
    show.add_argument("name", nargs="?", default="", metavar="NAME", help="the objective")
    show.add_argument("--config", default="", metavar="NAME[:ARG]|FILE[:ARG]", help="take it from an experiment")
    show.add_argument("--text", required=True, metavar="FILE", help="plain text, or .jsonl for fields of its lines")
    show.add_argument("--tokenizer", metavar="FILE|DIR", help="default: one trained on the text")
    show.add_argument("--family", default="", help="of models (default: the first that carries it)")
    show.add_argument("--visibility", default="", help="of the model: full, causal or prefix (default: what it needs)")
    show.add_argument("--examples", type=int, default=2, metavar="N", help="default: 2")
    show.add_argument(
        "--length", type=int, metavar="L", help="tokens that a stack reads (default: 64, or the config's)"
    )
    show.add_argument("--seed", type=int, help="seed of the run (default: 0, or the config's)")
    show.add_argument("--json", action="store_true", help="print JSON, with every array")

    # Names alone: these import no JAX.
    from jaxformer.footprint import CHIPS

    plan = add(
        "plan", verbs.plan, "say what a run will need: parameters, memory per device, hours, energy, CO2eq",
        "plan --config=gpt3:175b --devices=128 --chip=h100 --config.sharding.fsdp=16 --config.sharding.tensor=8",
        overrides=True,
    )  # fmt: skip
    plan.add_argument("--config", required=True, metavar="NAME[:ARG]|FILE[:ARG]", help="the experiment")
    plan.add_argument("--devices", type=int, metavar="N", help="default: as many as config.sharding asks for")
    plan.add_argument("--chip", default="", metavar="NAME", help=f"the accelerator: {', '.join(CHIPS)}")
    plan.add_argument(
        "--utilisation", type=float, default=0.4, metavar="SHARE", help="of the chip's peak (MFU; default: 0.4)"
    )
    plan.add_argument("--fit", action="store_true", help="find the fastest placements that fit --devices of --chip")
    plan.add_argument("--watts", type=float, metavar="W", help="power of a chip (default: its data sheet's)")
    plan.add_argument("--json", action="store_true", help="print JSON, with everything")

    from jaxformer.launch import places

    actions = group(
        "launch", "start a verb somewhere, here or on a cluster, and look after it",
        "launch local --processes=2 -- train --config=gpt:smoke", "PLACE|ACTION",
    )  # fmt: skip
    for place in places.PLACES:
        text, example = places.introduced(place)
        verb = add(place, verbs.launch, text, example, within=actions)
        verb.set_defaults(place=place)
        places.add_flags(verb, place)
        verb.add_argument(
            "--dry-run", action="store_true", help="print what would be done, ready to paste, and do nothing"
        )
        if place not in places.WATCHED:
            verb.add_argument("--detach", action="store_true", help="submit it, and do not follow it")
    status = add("status", verbs.launch_status, "show how jobs stand", "launch status gpt-smoke", within=actions)
    status.add_argument("name", nargs="?", default="", metavar="NAME", help="the job (default: all, a line each)")
    status.add_argument("--lines", type=int, default=5, metavar="N", help="last lines of each worker (default: 5)")
    status.add_argument("--json", action="store_true", help="print JSON")
    for name, text in (
        ("logs", "print what a job's workers say, until it is over"),
        ("stop", "let a job save and end; the command that launched it goes on with it"),
        ("delete", "end a job, give back what it holds, and forget it"),
    ):
        verb = add(name, verbs.launch_act, text, f"launch {name} gpt-smoke", within=actions)
        verb.add_argument("name", metavar="NAME", help="the job")

    add_demo(add)
    return parser
